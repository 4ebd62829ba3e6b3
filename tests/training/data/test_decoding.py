"""Decoding single pictures: what is truly RGB with 8 bits a channel is taken, all else is refused by one sentence."""

from __future__ import annotations

import io
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from histodistill.training.data.decoding import decode_image
from histodistill.training.running.errors import InputError


PIXELS = np.random.default_rng(0).integers(0, 256, (10, 12, 3), dtype=np.uint8)
LOSSLESS = {
    "png": ("PNG", {}),
    "interlaced png": ("PNG", {"interlace": True}),
    "tiff": ("TIFF", {}),
    "tiff, lzw": ("TIFF", {"compression": "tiff_lzw"}),
    "tiff, deflate": ("TIFF", {"compression": "tiff_adobe_deflate", "tiffinfo": {317: 2}}),
    "tiff, in strips": ("TIFF", {"tiffinfo": {278: 4}}),
    "bmp": ("BMP", {}),
    "webp": ("WEBP", {"lossless": True}),
    "jp2": ("JPEG2000", {}),
    "j2k": ("JPEG2000", {"no_jp2": True, "mct": 1}),
    "ppm": ("PPM", {}),
}


def encoded(image: Image.Image | np.ndarray, form: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(buffer, form, **options)
    return buffer.getvalue()


def refused(source: bytes | Path, name: str = "it") -> str:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(InputError) as caught:
            decode_image(name, source)
    message = str(caught.value)
    assert message.startswith(name) and "\n" not in message
    return message


@pytest.mark.parametrize("kind", LOSSLESS)
def test_lossless_forms(tmp_path, kind):
    form, options = LOSSLESS[kind]
    data = encoded(PIXELS, form, **options)
    np.testing.assert_array_equal(decode_image("it", data), PIXELS)
    (tmp_path / "it").write_bytes(data)
    np.testing.assert_array_equal(decode_image("it", tmp_path / "it"), PIXELS)


@pytest.mark.parametrize(
    ("form", "options"),
    [
        ("JPEG", {"quality": 95}),
        ("TIFF", {"compression": "jpeg"}),
        ("WEBP", {"quality": 95}),
        ("JPEG", {"progressive": True}),
    ],
)
def test_forms_with_loss(form, options):
    smooth = np.add.outer(np.arange(16) * 4, np.arange(16) * 4).astype(np.uint8)[..., None].repeat(3, axis=2)
    decoded = decode_image("it", encoded(smooth, form, **options))
    assert decoded.shape == (16, 16, 3) and np.abs(decoded.astype(int) - smooth).mean() < 4
