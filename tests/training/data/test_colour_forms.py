"""What is truly RGB with 8 bits is taken, what can be made so is converted if asked for, the rest is refused."""

from __future__ import annotations

import struct

import numpy as np
import PIL
import pytest
from PIL import Image
from small_pictures import DEEP, PIXELS, changed, decode_image, encoded, png16, refused, tiff

from histodistill.training.data.colour_forms import CONVERSIONS, DecodingRules
from histodistill.training.running.errors import InputError


GREY = PIXELS[..., 0]
OPAQUE = np.dstack([PIXELS, np.full(PIXELS.shape[:2], 255, np.uint8)])
ALL = tuple(CONVERSIONS)


def decoded(data: bytes, *convert: str) -> np.ndarray:
    return decode_image("it", data, convert=convert)


# --- RGB in other forms ---


@pytest.mark.parametrize("form", ["PNG", "TIFF", "TIFF lzw", "WEBP", "BMP", "JPEG2000"])
def test_an_alpha_channel_that_is_opaque_is_dropped(form):
    options = {"WEBP": {"lossless": True}, "TIFF lzw": {"compression": "tiff_lzw"}, "JPEG2000": {"mct": 1}}
    data = encoded(OPAQUE, form.split()[0], **options.get(form, {}))
    np.testing.assert_array_equal(decoded(data), PIXELS)


@pytest.mark.parametrize("form", ["PNG", "TIFF", "WEBP", "JPEG2000"])
@pytest.mark.parametrize("alpha", [0, 254])
def test_an_alpha_channel_that_is_used_is_refused(form, alpha):
    pixels = OPAQUE.copy()
    pixels[3, 4, 3] = alpha
    options = {"WEBP": {"lossless": True}, "JPEG2000": {"mct": 1}}
    message = refused(encoded(pixels, form, **options.get(form, {})), "it", *ALL)
    assert message == (
        "it is transparent in parts: a tile has no ground to shine through; put it on one, as with Pillow's "
        "Image.alpha_composite, or take it out if it is no tile"
    )


def palette(colours: int = 256) -> Image.Image:
    return Image.fromarray(PIXELS).quantize(colours)


@pytest.mark.parametrize("form", ["PNG", "TIFF", "BMP"])
@pytest.mark.parametrize("colours", [2, 16, 100])
def test_a_palette_becomes_its_colours(form, colours):
    image = palette(colours)
    np.testing.assert_array_equal(decoded(encoded(image, form)), np.asarray(image.convert("RGB")))


def test_a_transparent_entry_of_a_palette_counts_where_it_is_used():
    image = palette(16)
    used = int(np.asarray(image)[0, 0])
    assert "is transparent in parts" in refused(encoded(image, "PNG", transparency=used))
    assert "is transparent in parts" in refused(encoded(image, "PNG", transparency=bytes([255] * 15 + [99])))
    image = palette(16).point(lambda value: 0 if value == 9 else value)
    np.testing.assert_array_equal(
        decoded(encoded(image, "PNG", transparency=bytes([255] * 9 + [0]))), np.asarray(image.convert("RGB"))
    )


def test_a_transparent_colour_counts_where_it_is_used():
    free = next(colour for colour in ((i, i, i) for i in range(256)) if not (colour == PIXELS).all(axis=2).any())
    np.testing.assert_array_equal(decoded(encoded(PIXELS, "PNG", transparency=free)), PIXELS)
    used = tuple(map(int, PIXELS[0, 0]))
    assert "is transparent in parts" in refused(encoded(PIXELS, "PNG", transparency=used))


# --- conversions ---


@pytest.mark.parametrize("form", ["PNG", "TIFF", "BMP", "PPM", "JPEG2000"])
def test_grey_becomes_three_channels_alike(form):
    data = encoded(GREY, form)
    np.testing.assert_array_equal(decoded(data, "grey"), GREY[..., None].repeat(3, axis=2))
    assert refused(data, "it", "16bit", "cmyk") == (
        "it is grey, of one channel: tiles must be RGB with 8 bits a channel; give convert with grey (the one channel "
        "of grey becomes red, green and blue alike), or take it out if it is no tile"
    )


@pytest.mark.parametrize(("mode", "form"), [("LA", "PNG"), ("LA", "TIFF"), ("1", "PNG"), ("1", "TIFF"), ("L", "JPEG")])
def test_other_greys(mode, form):
    image = Image.fromarray(GREY).convert(mode)
    data = encoded(image, form, **({"quality": 100} if form == "JPEG" else {}))
    expected = np.asarray(image.convert("RGB"))
    assert np.abs(decoded(data, "grey").astype(int) - expected).max() <= (2 if form == "JPEG" else 0)
    assert "give convert with grey" in refused(data)


DEEP_FORMS = {
    "png": png16(DEEP),
    "png with alpha": png16(np.dstack([DEEP, np.full(DEEP.shape[:2], 65535, np.uint16)])),
    "tiff": tiff(bits=16, pixels=DEEP),
}


@pytest.mark.parametrize("kind", DEEP_FORMS)
def test_of_16_bits_the_upper_8_are_kept(kind):
    np.testing.assert_array_equal(decoded(DEEP_FORMS[kind], "16bit"), DEEP >> 8)
    message = refused(DEEP_FORMS[kind], "it", "grey", "cmyk")
    assert message.startswith("it is 16 bits a channel: tiles must be RGB with 8 bits a channel; give convert with 16")


@pytest.mark.parametrize("kind", ["png", "tiff", "jpeg 2000"])
def test_grey_of_16_bits_takes_both(kind):
    grey = DEEP[..., 0]
    options = {"png": ("PNG", {}), "tiff": ("TIFF", {}), "jpeg 2000": ("JPEG2000", {})}
    data = encoded(grey, options[kind][0], **options[kind][1])
    np.testing.assert_array_equal(decoded(data, "16bit", "grey"), (grey >> 8)[..., None].repeat(3, axis=2))
    assert "is grey, of one channel and of 16 bits a channel:" in refused(data)
    assert "give convert with grey (" in refused(data, "it", "16bit")
    assert "give convert with 16bit (" in refused(data, "it", "grey")


@pytest.mark.parametrize("top", [256, 4096, 16384])
@pytest.mark.parametrize("write", [png16, lambda pixels: tiff(bits=16, pixels=pixels)])
def test_fewer_bits_in_16_are_refused_since_they_would_become_black(top, write):
    message = refused(write(DEEP % top), "it", "16bit")
    assert f"no value above {top - 1:,}, so that it seems to hold fewer bits" in message


@pytest.mark.parametrize("form", ["TIFF", "JPEG"])
def test_cmyk_is_converted_without_a_profile(form):
    inks = np.zeros((8, 8, 4), np.uint8)
    inks[:] = (255, 0, 128, 51)
    data = encoded(Image.fromarray(inks, "CMYK"), form, **({"quality": 100} if form == "JPEG" else {}))
    pixels = decoded(data, "cmyk")
    assert np.abs(pixels.astype(int) - (0, 204, 102)).max() <= 3
    assert "give convert with cmyk (red is (255 - cyan) x (255 - black) / 255" in refused(data, "it", "grey", "16bit")


def test_rules_are_kept_in_one_order_and_each_once():
    rules = DecodingRules(("cmyk", "grey", "cmyk"))
    assert rules == DecodingRules(("grey", "cmyk")) and rules.json() == {"convert": ["grey", "cmyk"]}
    assert DecodingRules().json() == {"convert": []}
    with pytest.raises(InputError, match=r"^convert=gray is unknown: it must be one of grey, 16bit, cmyk, or several"):
        DecodingRules(("gray",))


# --- what is refused whatever is asked for ---


def bmp16() -> bytes:
    """A BMP of 5 bits a channel."""
    rows = bytes(24 * 10)
    header = struct.pack("<IiiHHIIiiII", 40, 12, 10, 1, 16, 0, len(rows), 0, 0, 0, 0)
    return b"BM" + struct.pack("<IHHI", 54 + len(rows), 0, 0, 54) + header + rows


def jp2(components: bytes) -> bytes:
    """A JPEG 2000 file whose header describes its three channels like this."""
    return changed(encoded(PIXELS, "JPEG2000", mct=1), b"\0\x03" + b"\7\1\1" * 3, b"\0\x03" + components)


def jp2_of_space(number: int, **options: object) -> bytes:
    """A JPEG 2000 file whose colour space has this number."""
    content = encoded(PIXELS, "JPEG2000", **options)
    return changed(content, b"colr\1\0\0\0\0\0\x10", b"colr\1\0\0" + struct.pack(">I", number))


OTHERS = {
    "ppm up to 65535": b"P6 2 1 65535\n" + bytes(12),
    "ppm up to 100": b"P6 2 1 100\n" + bytes(6),
    "ppm as text": b"P3 2 1 255\n 1 2 3 4 5 6\n",
    "bmp of 5 bits": bmp16(),
    "jp2 of 12 bits": jp2(b"\x0b\1\1" * 3),
    "jp2 with signs": jp2(b"\x87\1\1" * 3),
    "jp2 with fewer pixels of colour": jp2(b"\7\1\1\7\2\2\7\2\2"),
    "jp2 of Lab": jp2_of_space(14),
    "jpeg of 12 bits": changed(encoded(PIXELS, "JPEG"), b"\xff\xc0\x00\x11\x08", b"\xff\xc0\x00\x11\x0c"),
    "tiff of 16 bits in planes": tiff(bits=16, pixels=DEEP, planar=2),
    "tiff of 32 bits": tiff(bits=32),
    "tiff of floats": tiff(bits=32, sample_format=3),
    "tiff with signs": tiff(sample_format=2),
    "tiff with a fourth channel": tiff(samples=4),
    "tiff of YCbCr": tiff(photometric=6),
    "tiff of Lab": tiff(photometric=8),
    "tiff of a smaller copy": encoded(PIXELS, "TIFF", tiffinfo={254: 1}),
}
# Earlier ones say that it cannot be read.
OPENS_YCBCR = pytest.mark.skipif(int(PIL.__version__.split(".")[0]) < 13, reason="this Pillow opens no TIFF of YCbCr")


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=OPENS_YCBCR if "tiff of YCbCr" in kind else ()) for kind in OTHERS]
)
def test_other_forms_are_refused(kind):
    message = refused(OTHERS[kind], "it", *ALL)
    assert "RGB with 8 bits" in message and "convert with" not in message


@pytest.mark.parametrize(
    ("mode", "form"),
    [(mode, "TIFF") for mode in ("LAB", "I", "F")] + [pytest.param("YCbCr", "TIFF", marks=OPENS_YCBCR)],
)
def test_other_modes_are_refused(mode, form):
    assert f"has the colour mode {mode}" in refused(encoded(Image.new(mode, (12, 10)), form), "it", *ALL)


def test_jpeg_2000_of_whatever_space_is_rgb_if_it_was_turned_from_rgb():
    np.testing.assert_array_equal(decoded(jp2_of_space(14, mct=1)), PIXELS)


def test_jpeg_2000_of_ycbcr_becomes_rgb():
    image = Image.fromarray(PIXELS).convert("YCbCr")
    data = encoded(np.asarray(image), "JPEG2000", mct=0)
    pixels = decoded(changed(data, b"colr\1\0\0\0\0\0\x10", b"colr\1\0\0\0\0\0\x12"))
    assert np.abs(pixels.astype(int) - np.asarray(image.convert("RGB"))).max() <= 2


@pytest.mark.parametrize(("space", "is_read"), [(b"RGB ", True), (b"Lab ", False)])
def test_jpeg_2000_with_a_profile(space, is_read):
    """A box `colr` with a profile of a space, in place of the number of one."""
    data = encoded(PIXELS, "JPEG2000")
    start = data.index(b"colr") - 4
    profile = bytes(16) + space + bytes(108)
    box = struct.pack(">I4sBBB", 11 + len(profile), b"colr", 2, 0, 0) + profile
    header = data.index(b"jp2h") - 4
    longer = len(box) - 15
    size = struct.unpack_from(">I", data, header)[0] + longer
    data = data[:header] + struct.pack(">I", size) + data[header + 4 : start] + box + data[start + 15 :]
    if is_read:
        np.testing.assert_array_equal(decoded(data), PIXELS)
    else:
        assert "has 3 channels that it does not call RGB" in refused(data)
