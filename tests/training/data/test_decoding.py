"""Decoding pictures, one or many: formats, pages, orientation, sizes, and what is told."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from PIL import Image
from small_pictures import PIXELS, decode_image, encoded, refused, tiff

from histodistill.training.data import limits
from histodistill.training.data.colour_forms import DecodingRules
from histodistill.training.data.decoding import decode_each, decode_stream
from histodistill.training.data.pictures import Noted
from histodistill.training.data.pixel_source import LeftOut
from histodistill.training.running.errors import InputError


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


def test_planes_of_colour_are_put_together():
    np.testing.assert_array_equal(decode_image("it", tiff(planar=2)), PIXELS)
    np.testing.assert_array_equal(decode_image("it", tiff()), PIXELS)


@pytest.mark.parametrize("kind", LOSSLESS)
def test_files_cut_short_are_refused(kind):
    form, options = LOSSLESS[kind]
    data = encoded(np.random.default_rng(1).integers(0, 256, (60, 60, 3), dtype=np.uint8), form, **options)
    for share in (0.02, 0.3, 0.6, 0.9):
        assert "cannot be read" in refused(data[: int(share * len(data))])


# --- several pictures in a file ---


def several(form: str, pages: list[Image.Image] | None = None, **options: object) -> bytes:
    """A file of several pictures, the first of which is `PIXELS`; by default of three of one size."""
    first, *others = pages or [Image.fromarray(np.roll(PIXELS, i, axis=0)) for i in range(3)]
    return encoded(first, form, save_all=True, append_images=others, **options)


@pytest.mark.parametrize("compression", [None, "tiff_lzw"])
def test_of_the_pages_of_a_tiff_the_first_is_taken(compression):
    pyramid = [Image.fromarray(PIXELS), Image.fromarray(PIXELS).resize((6, 5)), Image.fromarray(PIXELS).resize((3, 2))]
    for data in (several("TIFF", compression=compression), several("TIFF", pyramid, compression=compression)):
        np.testing.assert_array_equal(decode_image("it", data), PIXELS)


def test_pages_of_grey_are_channels_of_one_picture():
    message = refused(several("TIFF", [Image.new("L", (12, 10), grey) for grey in range(3)]), "it", "grey")
    assert message.startswith("it holds several pages of grey, as microscopes store the channels or planes of one")


@pytest.mark.parametrize("form", ["PNG", "WEBP", "MPO"])
def test_several_pictures_are_refused_with_their_number(form):
    message = refused(several(form))
    assert message == "it holds 3 pictures: a tile is one; save each in a file of its own"


def test_one_ppm_after_another_is_refused():
    assert "more in it than one picture" in refused(encoded(PIXELS, "PPM") * 2)


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


# --- many ---


def grey_entries(count: int, bad: int | None = None) -> list[tuple[str, bytes]]:
    """Pictures of grey levels 0, 1, ..., but for one that is none."""
    pictures = [encoded(np.full((8, 8, 3), i % 256, np.uint8), "PNG") for i in range(count)]
    return [(f"tile {i}", b"text" if i == bad else picture) for i, picture in enumerate(pictures)]


def test_a_stream_keeps_batches_and_order_and_goes_on_after_what_cannot_be_used():
    entries = grey_entries(40, bad=7)
    batches = [entries[:5], [], entries[5:6], entries[6:39], entries[39:]]
    found = list(decode_stream(iter(batches)))
    assert [len(batch) for batch in found] == [5, 1, 33, 1]
    tiles = [tile for batch in found for tile in batch]
    assert isinstance(tiles[7], LeftOut) and tiles[7].why == "unreadable"
    assert str(tiles[7].error).startswith("tile 7 cannot be read as an image: it holds text")
    assert [int(tile[0, 0, 0]) for i, tile in enumerate(tiles) if i != 7] == [i for i in range(40) if i != 7]


@pytest.mark.parametrize(("side", "least", "most"), [(8, 100, 520), (1500, 8, 60)])
def test_a_stream_works_ahead_by_number_and_bytes(side, least, most):
    data = encoded(np.zeros((side, side, 3), np.uint8), "BMP")
    asked = []

    def entries():
        for i in range(600):
            asked.append(i)
            yield "it", data

    stream = decode_each(entries())
    for _ in range(4):
        next(stream)
    assert least <= len(asked) <= most
    stream.close()
    assert len(asked) <= most


def test_an_error_of_what_gives_the_pictures_comes_through():
    def entries():
        yield from grey_entries(3)
        raise InputError("row 3 has no image")

    with pytest.raises(InputError, match="row 3"):
        list(decode_each(entries()))


def test_pillows_limit_and_warnings_are_as_before_once_a_stream_is_left(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 20)
    filters = list(warnings.filters)
    stream = decode_each(grey_entries(50))
    assert next(stream).shape == (8, 8, 3)
    stream.close()
    assert Image.MAX_IMAGE_PIXELS == 20 and warnings.filters == filters


def test_what_was_done_is_told_with_number_and_rule(tmp_path, capsys):
    (tmp_path / "a.png").write_bytes(encoded(PIXELS, "BMP"))
    (tmp_path / "b.png").write_bytes(encoded(PIXELS[..., 0], "PNG"))
    pages = several("TIFF")
    bare = encoded(PIXELS, "JPEG2000", no_jp2=True)
    entries = [("a.png", tmp_path / "a.png"), ("b.png", tmp_path / "b.png"), ("c", pages), ("d", pages), ("e", bare)]
    noted = Noted()
    assert len(list(decode_each(entries, rules=DecodingRules(("grey",)), noted=noted))) == 5
    assert noted.lines() == [
        "2 pictures have more pages than one (such as c): the first is taken",
        "1 picture is of another kind than its name says (such as a.png): read by content",
        "1 JPEG 2000 file does not say what its three channels are (such as e): taken as RGB; look at the colours",
        "1 picture is converted (such as b.png): the one channel of grey becomes red, green and blue alike",
    ]
    noted.tell()
    assert capsys.readouterr().err.splitlines() == noted.lines()
