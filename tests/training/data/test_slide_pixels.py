"""Tiles of slides: the level and the square that is read, what is left out, and slides that are damaged."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest

from histodistill.training.data import slide_file
from histodistill.training.data.pixel_source import LeftOut
from histodistill.training.data.slide_places import Places, Scale
from histodistill.training.running.errors import InputError


pytest.importorskip("openslide", reason="needs histodistill[slides]")
slides = pytest.importorskip("slides")

from histodistill.training.data.slide_file import Slide, files_of_slide  # noqa: E402
from histodistill.training.data.slide_pixels import SlidePixels, is_glass  # noqa: E402


PIXELS = slides.tissue(600, 520)


@pytest.fixture(scope="module")
def path(tmp_path_factory) -> Path:
    """A slide of three levels, of 0.25 microns a pixel."""
    half = slides.halved(PIXELS)
    return slides.write_slide(
        tmp_path_factory.mktemp("slide") / "a.tif", [PIXELS, half, slides.halved(half)], (0.248, 0.252)
    )


def pixels_of(path: Path | list[Path], places: Places, mpp: float | None = None) -> SlidePixels:
    paths = path if isinstance(path, list) else [path]
    return SlidePixels(paths, places, lambda i: f"tile {i}", mpp)


def at(corners, size: int = 32, scale: float = 0, unit: Scale = Scale.LEVEL) -> Places:
    return Places.alike(np.array(corners, dtype=np.int64).reshape(-1, 2), size, scale, unit)


def decoded(pixels: SlidePixels, image_size: int | None = None, start: int = 0) -> list:
    return [tile for batch in pixels.decode(image_size, start) for tile in batch]


# --- which level, which square ---


@pytest.mark.parametrize(
    ("mpp", "level", "side"),
    [
        (0.25, 0, 32),
        (0.22, 0, 32 * 0.22 / 0.25),  # a little finer than the slide is
        (0.49, 0, 32 * 0.49 / 0.25),
        (0.4975, 1, 32),  # as good as level 1: less than half a pixel away in all
        (0.5, 1, 32),
        (0.75, 1, 48),
        (1.0, 2, 32),
        (4.0, 2, 128),
    ],
)
def test_the_coarsest_level_that_is_fine_enough(path, mpp, level, side):
    region = Slide(path).region((8, 12), 32, Scale.MPP, mpp)
    assert (region.corner, region.level) == ((8, 12), level) and region.side == pytest.approx(side)


def test_a_level_by_its_number_is_read_as_it_is(path):
    assert Slide(path).region((8, 12), 50, Scale.LEVEL, 2) == slide_file.Region((8, 12), 2, 50.0, True)


@pytest.mark.parametrize(("unit", "scale"), [(Scale.LEVEL, 0), (Scale.MPP, 0.25), (Scale.DOWNSAMPLE, 1.0)])
def test_another_resolution_keeps_the_centre_and_the_pixels(path, unit, scale):
    region = Slide(path).region((100, 200), 32, unit, scale, mpp=0.5)
    assert (region.corner, region.level, region.side) == ((84, 184), 1, 32.0)


@pytest.mark.parametrize(
    ("corner", "unit", "scale", "is_inside"),
    [
        ((0, 0), Scale.LEVEL, 0, True),
        ((568, 488), Scale.LEVEL, 0, True),
        ((570, 488), Scale.LEVEL, 0, False),
        ((568, 490), Scale.LEVEL, 0, False),
        ((-2, 0), Scale.LEVEL, 0, False),
        ((536, 456), Scale.LEVEL, 1, True),
        ((540, 456), Scale.LEVEL, 1, False),
        ((540, 456), Scale.MPP, 0.5, False),
    ],
)
def test_all_of_a_tile_is_on_its_slide(path, corner, unit, scale, is_inside):
    assert Slide(path).region(corner, 32, unit, scale).is_inside == is_inside


@pytest.mark.parametrize(
    ("unit", "scale", "size", "what"),
    [
        (Scale.LEVEL, 3, 32, "has no level 3: its last is 2"),
        (Scale.MPP, 0.2, 32, "has 0.25 microns a pixel, and cannot be brought to 0.2"),
        (Scale.MPP, 300.0, 32, "what is read of .* is 9601x9601 pixels"),
        (Scale.DOWNSAMPLE, 1e6, 32, "pixels: a tile may have at most"),
    ],
)
def test_squares_that_cannot_be_read(path, unit, scale, size, what):
    with pytest.raises(InputError, match=what):
        Slide(path).region((0, 0), size, unit, scale)


@pytest.mark.parametrize(
    ("mpp", "what"), [(None, "does not say how large its pixels are"), ((0.2, 0.3), "which are no squares")]
)
def test_pixels_of_no_known_size(tmp_path, mpp, what):
    slide = Slide(slides.write_slide(tmp_path / "a.tif", [PIXELS[:64, :64]], mpp))
    with pytest.raises(InputError, match=what):
        slide.region((0, 0), 8, Scale.MPP, 0.5)
    with pytest.raises(InputError, match=what):
        slide.region((0, 0), 8, Scale.LEVEL, 0, mpp=0.5)
    assert slide.region((0, 0), 8, Scale.LEVEL, 0).is_inside


# --- pixels ---


def test_resizing_shows_the_square_and_nothing_else(tmp_path):
    # A square that is dark, on light ground: 40 pixels that become 16.
    pixels = np.full((128, 128, 3), 210, np.uint8)
    pixels[20:60, 30:70] = 80
    path = slides.write_slide(tmp_path / "a.tif", [pixels], (0.25, 0.25))
    (tile,) = decoded(pixels_of(path, at([(30, 20)], 16, 0.625, Scale.MPP)))
    assert tile.shape == (16, 16, 3) and (np.abs(tile.astype(int) - 80) <= 1).all()


def test_what_was_not_scanned_is_white(tmp_path):
    path = slides.write_slide(tmp_path / "a.tif", [PIXELS[:128, :128]], missing=[1])
    (tile,) = decoded(pixels_of(path, at([(48, 0)], 32)))
    assert (tile[:, 16:] == 255).all()
    np.testing.assert_array_equal(tile[:, :16], PIXELS[:32, 48:64])


def test_tiles_come_in_order_from_any_start_on(path, monkeypatch):
    monkeypatch.setattr("histodistill.training.data.slide_pixels._BATCH", 5)
    rng = np.random.default_rng(0)
    corners = rng.integers(0, 480, (23, 2))
    places = Places.joined([(i % 2, at(corner)) for i, corner in enumerate(corners)])
    pixels = pixels_of([path, path], places)
    for start in (0, 3, 20, 23):
        tiles = decoded(pixels, start=start)
        assert len(tiles) == 23 - start
        for tile, (x, y) in zip(tiles, corners[start:], strict=True):
            np.testing.assert_array_equal(tile, PIXELS[y : y + 32, x : x + 32])
    assert [tile.shape for tile in decoded(pixels, image_size=16, start=20)] == [(16, 16, 3)] * 3


def test_what_lies_outside_or_on_glass_is_left_out(tmp_path):
    pixels = PIXELS[:128, :128].copy()
    pixels[:64, :64] = 243
    path = slides.write_slide(tmp_path / "a.tif", [pixels])
    tiles = decoded(pixels_of(path, at([(0, 0), (64, 0), (100, 0), (20, 40)])))
    assert [tile.why if isinstance(tile, LeftOut) else tile.shape for tile in tiles] == [
        "glass",
        (32, 32, 3),
        "outside",
        (32, 32, 3),
    ]
    assert "tile 0 shows no tissue" in str(tiles[0].error) and "tile 2 is not" in str(tiles[2].error)


def test_glass():
    rng = np.random.default_rng(0)
    tinted = np.array([236, 228, 234]) + rng.integers(-4, 5, (64, 64, 1))
    assert is_glass(tinted.astype(np.uint8))
    fat = tinted.copy()
    fat[::32] = (225, 195, 215)  # walls of fat cells: 3 % of the pixels, pale
    assert not is_glass(fat.astype(np.uint8))
    speck = tinted.copy()
    speck[:6, :6] = 60
    assert is_glass(speck.astype(np.uint8))
    assert not is_glass(np.zeros((8, 8, 3), np.uint8))  # a dark field


# --- slides that are damaged ---


def test_a_damaged_block_spoils_no_other_tile(tmp_path):
    # OpenSlide looks at all of the last level when it opens a slide, and at nothing of the others.
    levels = [PIXELS[:256, :256], slides.halved(PIXELS[:256, :256])]
    path = slides.write_slide(tmp_path / "a.tif", levels, damaged=[5])
    corners = [(x, y) for y in range(0, 256, 32) for x in range(0, 256, 32)]
    for _ in range(3):  # threads come in another order each time
        tiles = decoded(pixels_of(path, at(corners)))
        for (x, y), tile in zip(corners, tiles, strict=True):
            if x // 64 + y // 64 * 4 == 5:
                assert tile.why == "unreadable" and f"cannot be read at {x}, {y}" in str(tile.error)
            else:
                np.testing.assert_array_equal(tile, PIXELS[y : y + 32, x : x + 32])


def test_a_slide_that_cannot_be_opened_spoils_no_other(tmp_path, path):
    (tmp_path / "b.tif").write_bytes(b"no slide")
    places = Places.joined([(0, at([(0, 0)])), (1, at([(0, 0), (9, 9)])), (0, at([(50, 50)]))])
    pixels = pixels_of([path, tmp_path / "b.tif"], places)
    tiles = decoded(pixels)
    assert [isinstance(tile, LeftOut) for tile in tiles] == [False, True, True, False]
    assert tiles[1].why == "unreadable" and "b.tif is no slide" in str(tiles[1].error)
    with pytest.raises(InputError, match=r"b\.tif is no slide"):
        pixels.sizes()


def test_few_slides_are_open_at_once_and_each_is_opened_once(path, monkeypatch):
    opened = []

    class Counted(Slide):
        def __init__(self, path, cache=None):
            opened.append(path)
            super().__init__(path, cache)

    monkeypatch.setattr(slide_file, "Slide", Counted)
    monkeypatch.setattr(slide_file, "_MOST_OPEN", 2)
    pool = slide_file.OpenSlides([path] * 4)
    threads = [threading.Thread(target=pool.get, args=(0,)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(opened) == 1
    for number in (1, 2, 3):
        pool.get(number)
    pool.get(3)
    assert len(opened) == 4
    pool.get(0)
    assert len(opened) == 5


# --- what the tiles are known by ---


def test_settings_tell_places_apart(path):
    base = at([(0, 0), (5, 5)])
    digests = {
        str(pixels_of(path, places, mpp).settings)
        for places, mpp in (
            (base, None),
            (base, 0.5),
            (at([(0, 0), (5, 6)]), None),
            (at([(0, 0), (5, 5)], 33), None),
            (at([(0, 0), (5, 5)], 32, 1), None),
            (at([(0, 0), (5, 5)], 32, 0, Scale.DOWNSAMPLE), None),
            (Places.joined([(0, at([(0, 0)])), (1, at([(5, 5)]))]), None),
        )
    }
    assert len(digests) == 7
    assert pixels_of(path, base).settings == pixels_of(path, at([(0, 0), (5, 5)])).settings


def test_files_of_a_slide(tmp_path):
    (tmp_path / "a").mkdir()
    names = ("a.mrxs", "a/Slidedat.ini", "a/Data0000.dat", "b.svs", "c.dcm", "d.dcm")
    for name in names:
        (tmp_path / name).touch()
    assert [file.name for file in files_of_slide(tmp_path / "a.mrxs")] == ["a.mrxs", "Data0000.dat", "Slidedat.ini"]
    assert files_of_slide(tmp_path / "b.svs") == [tmp_path / "b.svs"]
    assert {"c.dcm", "d.dcm"} <= {file.name for file in files_of_slide(tmp_path / "c.dcm")}


def test_without_the_library_there_is_one_sentence(path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "openslide", None)
    with pytest.raises(InputError, match=r"pip install 'histodistill\[slides\]'"):
        decoded(pixels_of(path, at([(0, 0)])))
