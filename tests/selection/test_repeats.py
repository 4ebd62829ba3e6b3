"""Tiles that are there more than once, a little changed: found, counted as one, and no others."""

from __future__ import annotations

import numpy as np
import pytest
from textures import textures

from histodistill.selection import repeats, windows
from histodistill.selection.attacked import find_attacked
from histodistill.selection.near_copies import near_pairs
from histodistill.selection.real_tiles import LabelledImages, RealTiles
from histodistill.selection.repeats import find_repeats, repeated_pairs
from histodistill.selection.stains import change_stains
from histodistill.selection.units import find_units
from histodistill.selection.views import apply_symmetry, compress_jpeg, crop_and_resize, shift


@pytest.fixture(scope="module")
def real() -> np.ndarray:
    return textures(150, 0)


def _stained(images: np.ndarray) -> np.ndarray:
    changes = 0.2 * (2 * np.random.default_rng(0).random((2, len(images), 3)) - 1)
    return change_stains(images, 1 + changes[0], changes[1])


def _cropped(images: np.ndarray) -> np.ndarray:
    side = round(0.9 * images.shape[1])
    corners = np.random.default_rng(1).integers(0, images.shape[1] - side + 1, (len(images), 2))
    return crop_and_resize(images, side, corners)


@pytest.mark.parametrize(
    "change",
    [
        lambda x: shift(x, 2, -2),
        lambda x: np.ascontiguousarray(apply_symmetry(shift(x, -1, 2), 5)),
        _cropped,
        lambda x: _stained(compress_jpeg(x)),
        lambda x: compress_jpeg(shift(_stained(x), 1, 1)),
    ],
    ids=["moved", "moved and turned", "cropped", "stained", "all of it"],
)
def test_changed_tiles_are_found_and_no_others(real, change):
    changed = change(real[:40])
    pairs = repeated_pairs([real, changed])
    assert (pairs[:, 1] - pairs[:, 0] == 150).all()  # each with its own alone
    assert len(pairs) >= 34 and len(near_pairs([real, changed])) < 20


def test_larger_tiles_are_reduced_and_found():
    large = textures(30, 1, 64)
    pairs = repeated_pairs([large, _cropped(large[:20])])
    assert (pairs[:, 1] - pairs[:, 0] == 30).all() and len(pairs) >= 19


def test_they_are_found_in_cells(real, monkeypatch):
    monkeypatch.setattr(repeats, "_MOST_EXHAUSTIVE", 100)
    monkeypatch.setattr(windows, "_WINDOWS_PER_CELL", 32)
    monkeypatch.setattr(repeats, "_CELLS_SEARCHED", 8)
    pairs = repeated_pairs([real, shift(real[:40], 1, 2)])
    assert (pairs[:, 1] - pairs[:, 0] == 150).all() and len(pairs) >= 38


def test_neighbours_and_halves_are_two(real):
    moved, halves = shift(real[:40], 0, 14), real[:40].copy()
    halves[:, :, 14:] = textures(40, 2)[:, :, 14:]
    assert not len(repeated_pairs([real, moved])) and not len(repeated_pairs([real, halves]))


@pytest.mark.parametrize("count", [1, 2])
def test_few_tiles_and_empty_ones_have_none(count):
    flat = np.full((count, 28, 28, 3), 230, np.uint8)
    for images in (flat, textures(3, 3)[:count]):
        seen: list[int] = []
        assert not len(find_repeats(images, seen.append).pairs) and sum(seen) == 2 * count


def real_tiles(train: np.ndarray, held_out: np.ndarray, validation: np.ndarray) -> RealTiles:
    return RealTiles(*(LabelledImages(each, np.arange(len(each)) % 2) for each in (train, held_out, validation)))


def test_a_tile_that_is_there_thrice_is_attacked_once(real):
    train, held_out = real[:60], np.concatenate([real[60:80], shift(real[:3], 2, 1)])
    thrice = np.concatenate([train, shift(train, 1, 1), shift(train, -1, 0)])
    attacked = find_attacked(real_tiles(thrice, held_out, real[100:]), seed=0)
    # Held-out tiles that are a training tile once more are no non-members.
    assert attacked.numbers == (60, 20) and attacked.num_left_out == 3
    assert attacked.rows.tolist() == [*range(60), *range(180, 200)]
    np.testing.assert_array_equal(attacked.units_of_training, np.tile(np.arange(60), 3))


def test_kinds_are_units_without_groups(real):
    everything = real_tiles(np.concatenate([real[:50], shift(real[:9], 2, 1)]), real[50:60], real[60:])
    np.testing.assert_array_equal(everything.kinds, find_units([everything.all_images]))
    assert len(np.unique(everything.kinds)) == 150
