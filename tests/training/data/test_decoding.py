"""Decoding single pictures: what is truly RGB with 8 bits a channel is taken, all else is refused by one sentence."""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import PIL
import pytest
from PIL import Image

from histodistill.training.data import limits
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


# --- not RGB with 8 bits ---


def png16() -> bytes:
    """A PNG of 16 bits a channel, as Pillow does not write it."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    rows = b"".join(b"\0" + bytes(6 * 12) for _ in range(10))
    header = struct.pack(">IIBBBBB", 12, 10, 16, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def tiff(samples: int = 3, bits: int = 8, sample_format: int = 1, photometric: int = 2, planar: int = 1) -> bytes:
    """A TIFF of 10x12 pixels, not compressed, little-endian, whose pixels are those of `PIXELS` where they fit."""
    pixels = PIXELS.astype({1: "<u", 2: "<i", 3: "<f"}[sample_format] + str(bits // 8))
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


def bmp16() -> bytes:
    """A BMP of 5 bits a channel."""
    rows = bytes(24 * 10)
    header = struct.pack("<IiiHHIIiiII", 40, 12, 10, 1, 16, 0, len(rows), 0, 0, 0, 0)
    return b"BM" + struct.pack("<IHHI", 54 + len(rows), 0, 0, 54) + header + rows


def jp2(components: bytes) -> bytes:
    """A JPEG 2000 file whose header describes its three channels like this."""
    return changed(encoded(PIXELS, "JPEG2000", mct=1), b"\0\x03" + b"\7\1\1" * 3, b"\0\x03" + components)


MORE_BITS = {
    "png": png16(),
    "tiff": tiff(bits=16),
    "tiff of 32 bits": tiff(bits=32),
    "jp2 of 16 bits": jp2(b"\x0f\1\1" * 3),
    "jp2 of 12 bits": jp2(b"\x0b\1\1" * 3),
}


@pytest.mark.parametrize(("mode", "format"), [("RGBA", "PNG"), ("P", "PNG"), ("CMYK", "JPEG"), ("L", "TIFF")])
def test_it_is_said_how_to_convert_what_has_8_bits(mode, format):
    message = refused(encoded(Image.fromarray(PIXELS).convert(mode), format))
    assert message.endswith("convert it, as with Pillow's image.convert('RGB'), or take it out if it is no tile")


@pytest.mark.parametrize("kind", MORE_BITS)
def test_more_than_8_bits_a_channel(kind):
    message = refused(MORE_BITS[kind])
    if kind != "tiff of 32 bits":  # which Pillow does not open
        assert " bits a channel: tiles must be RGB with 8 bits a channel; convert it" in message
        assert f"has {12 if '12' in kind else 16} bits" in message
        assert "Pillow" not in message  # which would cut off what is above 255


OTHER_NUMBERS = {
    "ppm up to 65535": b"P6 2 1 65535\n" + bytes(12),
    "ppm up to 100": b"P6 2 1 100\n" + bytes(6),
    "ppm as text": b"P3 2 1 255\n 1 2 3 4 5 6\n",
    "bmp of 5 bits": bmp16(),
    "jp2 with signs": jp2(b"\x87\1\1" * 3),
    "jp2 with fewer pixels of colour": jp2(b"\7\1\1\7\2\2\7\2\2"),
    "j2k that does not say RGB": encoded(PIXELS, "JPEG2000", no_jp2=True),
    "jpeg of 12 bits": changed(encoded(PIXELS, "JPEG"), b"\xff\xc0\x00\x11\x08", b"\xff\xc0\x00\x11\x0c"),
    "tiff of floats": tiff(bits=32, sample_format=3),
    "tiff with signs": tiff(sample_format=2),
    "tiff with a fourth channel": tiff(samples=4),
    "tiff of YCbCr": tiff(photometric=6),
    "tiff of Lab": tiff(photometric=8),
    "bmp with four channels": encoded(Image.fromarray(PIXELS).convert("RGBA"), "BMP"),
    "png with a transparent colour": encoded(PIXELS, "PNG", transparency=(1, 2, 3)),
    "webp with alpha": encoded(Image.fromarray(PIXELS).convert("RGBA").rotate(9), "WEBP", lossless=True),
}  # fmt: skip


# Earlier ones say that it cannot be read.
OPENS_YCBCR = pytest.mark.skipif(int(PIL.__version__.split(".")[0]) < 13, reason="this Pillow opens no TIFF of YCbCr")


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=OPENS_YCBCR if "YCbCr" in kind else ()) for kind in OTHER_NUMBERS]
)
def test_other_numbers_than_8_bits_of_rgb(kind):
    assert "RGB with 8 bits" in refused(OTHER_NUMBERS[kind])


@pytest.mark.parametrize(
    ("mode", "form"),
    [(mode, "TIFF") for mode in ("1", "L", "LA", "P", "RGBA", "CMYK", "LAB", "I", "F", "I;16")]
    + [pytest.param("YCbCr", "TIFF", marks=OPENS_YCBCR)]
    + [("CMYK", "JPEG"), ("L", "JPEG"), ("LA", "PNG"), ("I;16", "PNG"), ("RGBA", "JPEG2000"), ("L", "JPEG2000")]
    + [("P", "BMP"), ("L", "PPM")],
)
def test_other_modes(mode, form):
    assert "has the colour mode" in refused(encoded(Image.new(mode, (12, 10)), form))


def test_planes_of_colour_are_put_together():
    np.testing.assert_array_equal(decode_image("it", tiff(planar=2)), PIXELS)
    np.testing.assert_array_equal(decode_image("it", tiff()), PIXELS)


# --- several pictures in a file ---

FRAMES = [Image.fromarray(np.roll(PIXELS, i, axis=0)) for i in range(3)]
SEVERAL = {"save_all": True, "append_images": FRAMES[1:]}


@pytest.mark.parametrize("form", ["TIFF", "PNG", "WEBP", "MPO"])
def test_several_pictures_are_refused_with_their_number(form):
    message = refused(encoded(FRAMES[0], form, **SEVERAL))
    assert message == "it holds 3 pictures: a tile is one; save each in a file of its own"


def test_one_ppm_after_another_is_refused():
    assert "more in it than one picture" in refused(encoded(PIXELS, "PPM") * 2)


# --- other kinds of files ---


@pytest.mark.parametrize("form", ["PCX", "TGA", "SGI", "ICO", "EPS", "DIB", "PDF"])
def test_pillows_other_decoders_are_never_run(form, tmp_path):
    path = tmp_path / "tile.png"
    path.write_bytes(encoded(PIXELS, form))
    assert (
        refused(path, str(path)) == f"{path} cannot be read as an image: it may be damaged; replace it or take it out"
    )


@pytest.mark.parametrize(
    ("head", "kind"),
    [
        (b"GIF89a", "GIF"),
        (b"8BPS\0\1", "Photoshop"),
        (bytes(128) + b"DICM", "DICOM"),
        (b"\0\0\0 ftypavif", "AVIF"),
        (b"\0\0\0 ftypheic", "HEIF"),
        (b"II+\0\x08\0\0\0", "TIFF"),
    ],
)
def test_kinds_that_are_not_read_are_named(head, kind):
    message = refused(head.ljust(200, b"\0"))
    assert f" {kind}" in message and ("convert it" if kind == "TIFF" else "save it as PNG") in message


@pytest.mark.parametrize("kind", LOSSLESS)
def test_files_cut_short_are_refused(kind):
    form, options = LOSSLESS[kind]
    data = encoded(np.random.default_rng(1).integers(0, 256, (60, 60, 3), dtype=np.uint8), form, **options)
    for share in (0.02, 0.3, 0.6, 0.9):
        assert "cannot be read" in refused(data[: int(share * len(data))])


@pytest.mark.parametrize("content", [b"", b"\0" * 500, b"text", b"BM", b"P6\n", b"\xff\xd8\xff"])
def test_what_is_no_image(content):
    assert "cannot be read" in refused(content)


def test_a_file_that_is_not_there(tmp_path):
    assert "(No such file or directory)" in refused(tmp_path / "a.png", str(tmp_path / "a.png"))
    assert "(Is a directory)" in refused(tmp_path, str(tmp_path))


# --- orientation ---


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("form", ["PNG", "TIFF", "TIFF lzw", "WEBP"])
def test_orientation_is_applied(form, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"WEBP": {"lossless": True}, "TIFF lzw": {"compression": "tiff_lzw"}}.get(form, {})
    decoded = decode_image("it", encoded(PIXELS, form.split()[0], exif=exif, **options))
    turned = {
        1: PIXELS,
        2: PIXELS[:, ::-1],
        3: PIXELS[::-1, ::-1],
        4: PIXELS[::-1],
        5: PIXELS.transpose(1, 0, 2),
        6: np.rot90(PIXELS, -1),
        7: np.rot90(PIXELS, 2).transpose(1, 0, 2),
        8: np.rot90(PIXELS),
    }
    np.testing.assert_array_equal(decoded, turned[orientation])


def test_orientation_of_a_jpeg_is_applied_before_it_is_cut():
    pixels = np.zeros((20, 40, 3), np.uint8)
    pixels[:, 20:] = 255
    exif = Image.Exif()
    exif[0x0112] = 6
    decoded = decode_image("it", encoded(pixels, "JPEG", exif=exif, quality=95), image_size=16)
    assert decoded[:6].max() < 60 and decoded[-6:].min() > 190


# --- sizes ---


@pytest.mark.parametrize("form", ["PNG", "TIFF", "BMP", "JPEG", "WEBP", "PPM", "JPEG2000"])
def test_large_pictures_are_refused_before_decoding(form, monkeypatch):
    data = encoded(PIXELS, form)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 20)  # Pillow's own limit, beyond which it warns, and then fails
    monkeypatch.setenv(limits.MAX_PIXELS_VARIABLE, "119")
    assert refused(data) == (
        "it is 12x10 pixels: a tile may have at most 119 pixels; cut it into tiles, or set HISTODISTILL_MAX_PIXELS to "
        "120 or more"
    )
    monkeypatch.setenv(limits.MAX_PIXELS_VARIABLE, "120")
    assert decode_image("it", data).shape == (10, 12, 3)
    assert Image.MAX_IMAGE_PIXELS == 20


@pytest.mark.parametrize("shape", [(1, 70000, 3), (40000, 1, 3), (2, 30000, 3)])
def test_strips_that_would_be_enlarged_beyond_the_limit_are_refused(shape):
    data = encoded(np.zeros(shape, np.uint8), "PNG")
    assert decode_image("it", data).shape == shape
    with pytest.raises(InputError, match="it, resized with image_size=6400, is"):
        decode_image("it", data, 6400)
