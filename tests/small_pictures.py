"""Pictures of every form for tests, and the sentence with which one is refused."""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from histodistill.training.data.colour_forms import DecodingRules
from histodistill.training.data.pictures import decode_picture
from histodistill.training.running.errors import InputError


#: What most of the pictures show: 12x10 pixels of noise.
PIXELS = np.random.default_rng(0).integers(0, 256, (10, 12, 3), dtype=np.uint8)
#: Noise in 16 bits.
DEEP = np.random.default_rng(1).integers(0, 65536, (10, 12, 3), dtype=np.uint16)


def encoded(image: Image.Image | np.ndarray, form: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(buffer, form, **options)
    return buffer.getvalue()


def decode_image(
    name: str, source: bytes | Path, image_size: int | None = None, convert: Sequence[str] = ()
) -> np.ndarray:
    return decode_picture(name, source, image_size, DecodingRules(tuple(convert))).pixels


def refused(source: bytes | Path, name: str = "it", *convert: str) -> str:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(InputError) as caught:
            decode_image(name, source, convert=convert)
    message = str(caught.value)
    assert message.startswith(name) and "\n" not in message
    return message


def png16(pixels: np.ndarray) -> bytes:
    """A PNG of 16 bits a channel, H×W×C, as Pillow does not write it."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    height, width, channels = pixels.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    header = struct.pack(">IIBBBBB", width, height, 16, {1: 0, 2: 4, 3: 2, 4: 6}[channels], 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def tiff(
    samples: int = 3,
    bits: int = 8,
    sample_format: int = 1,
    photometric: int = 2,
    planar: int = 1,
    pixels: np.ndarray = PIXELS,
) -> bytes:
    """A TIFF of 12x10 pixels, not compressed, little-endian."""
    pixels = pixels.astype({1: "<u", 2: "<i", 3: "<f"}[sample_format] + str(bits // 8))
    pixels = np.concatenate([pixels, pixels[..., : samples - 3]], axis=2)
    planes = pixels.transpose(2, 0, 1) if planar == 2 else pixels[None]
    data = planes.tobytes()
    start = 8 + 2 + 13 * 12 + 4
    bits_at, format_at, offsets_at, counts_at, data_at = (start + i * 32 for i in range(5))
    each = len(data) // len(planes)
    several = len(planes) > 1
    tags = [
        (256, 3, 1, 12), (257, 3, 1, 10), (258, 3, samples, bits_at), (259, 3, 1, 1), (262, 3, 1, photometric),
        (273, 4, len(planes), offsets_at if several else data_at), (277, 3, 1, samples), (278, 3, 1, 10),
        (279, 4, len(planes), counts_at if several else each), (284, 3, 1, planar),
        *([(338, 3, samples - 3, 0)] if samples > 3 else []), (339, 3, samples, format_at),
    ]  # fmt: skip
    entries = b"".join(struct.pack("<HHII", *tag) for tag in tags)
    head = (b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4)).ljust(start, b"\0")
    for number, kind in ((bits, "H"), (sample_format, "H")):
        head += struct.pack(f"<{samples}{kind}", *[number] * samples).ljust(32, b"\0")
    for numbers in ([data_at + i * each for i in range(len(planes))], [each] * len(planes)):
        head += struct.pack(f"<{len(planes)}I", *numbers).ljust(32, b"\0")
    return head + data


def changed(data: bytes, before: bytes, after: bytes) -> bytes:
    assert data.count(before) == 1 and len(before) == len(after)
    return data.replace(before, after)
