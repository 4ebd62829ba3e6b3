from __future__ import annotations

import io
import struct
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image


def png_chunks(data: bytes) -> set[bytes]:
    assert data.startswith(b"\x89PNG\r\n\x1a\n")
    kinds, position = set(), 8
    while position < len(data):
        length, kind = struct.unpack(">I4s", data[position : position + 8])
        kinds.add(kind)
        position += 12 + length
    return kinds


@pytest.fixture(scope="session")
def read_png() -> Callable[[bytes], np.ndarray]:
    """`read_png(data)`: pixels of a figure, after the check that it is a PNG that tells of nothing but its pixels."""

    def read(data: bytes) -> np.ndarray:
        assert png_chunks(data) <= {b"IHDR", b"pHYs", b"sRGB", b"gAMA", b"PLTE", b"IDAT", b"IEND"}
        with Image.open(io.BytesIO(data)) as image:
            return np.asarray(image.convert("RGB"))

    return read
