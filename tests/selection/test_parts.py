from __future__ import annotations

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter, rotate
from textures import textures

from histodistill.selection.parts import PartIndex, matched_parts
from histodistill.selection.placements import PLACEMENT, Comparison
from histodistill.selection.views import crop_and_resize, grey_pictures


# What no independent tile of these reaches.
LEAST = 140


@pytest.fixture(scope="module")
def real() -> np.ndarray:
    return textures(300, 0)


@pytest.fixture(scope="module")
def index(real) -> PartIndex:
    return PartIndex(real, np.arange(0, len(real), 4))


def _turned(x: np.ndarray, innocent: np.ndarray) -> np.ndarray:
    turned = [rotate(tile.astype(float), 20, axes=(0, 1), reshape=False, order=3, mode="reflect") for tile in x]
    return np.clip(np.round(turned), 0, 255).astype(np.uint8)


def _half(x: np.ndarray, innocent: np.ndarray) -> np.ndarray:
    joined = innocent.copy()
    joined[:, :, 14:] = x[:, :, :14]
    return joined


def _cropped(x: np.ndarray, innocent: np.ndarray) -> np.ndarray:
    return crop_and_resize(x, 18, np.random.default_rng(0).integers(0, 11, (len(x), 2)))


def _mosaic(x: np.ndarray, innocent: np.ndarray) -> np.ndarray:
    joined = innocent.copy()
    joined[:, 14:, :14] = np.round(x.reshape(-1, 14, 2, 14, 2, 3).mean(axis=(2, 4)))
    return joined


def _blurred(x: np.ndarray, innocent: np.ndarray) -> np.ndarray:
    return np.round(gaussian_filter(x.astype(float), (0, 0.8, 0.8, 0))).astype(np.uint8)


def _darker_outwards(x: np.ndarray, innocent: np.ndarray) -> np.ndarray:
    light = 1 - 0.04 * np.hypot(*(np.mgrid[:28, :28] - 13.5))
    return np.round(x * light[..., None]).astype(np.uint8)


def _with_a_hole(x: np.ndarray, innocent: np.ndarray) -> np.ndarray:
    holed = x.copy()
    holed[:, 2:14, 9:21] = 0
    return holed


@pytest.mark.parametrize(
    "disguise",
    [
        lambda x, _: x,
        lambda x, _: x[:, ::-1],
        lambda x, _: 255 - x,
        _turned,
        _half,
        _cropped,
        _mosaic,
        _blurred,
        _darker_outwards,
        _with_a_hole,
    ],
    ids=["as it is", "mirrored", "negative", "turned", "half", "cropped", "in a corner", "blurred", "shade", "hole"],
)
def test_disguised_tiles_are_found(real, index, disguise):
    found = index.search(disguise(real[:40], textures(40, 2)), len(real))
    right = found.tile == np.arange(40)
    assert right.mean() >= 0.9 and (found.score[right] > LEAST).mean() >= 0.9


def test_independent_tiles_are_not(index):
    found = index.search(textures(100, 1), 300)
    assert (found.score >= 0).all() and (found.score > LEAST).mean() <= 0.01


def test_box_says_where(real, index):
    images = textures(20, 2)
    images[:, :, 14:] = real[:20, :, 14:]
    found = index.search(images, len(real))
    assert (found.box == [0, 14, 28, 14]).all(axis=1).mean() >= 0.8


def test_only_the_first_tiles_are_searched(real, index):
    found = index.search(real[100:140], 100)
    assert found.tile.max() < 100 and found.score.max() < 2 * LEAST
    assert (index.search(real[100:140], 140).tile == np.arange(100, 140)).all()


def test_an_image_is_searched_for_as_if_alone(real, index):
    images = np.concatenate([_turned(real[:40], real[:40]), textures(30, 3)])
    together = index.search(images, len(real))
    for rows in (np.array([0]), np.array([69, 3, 50])):
        alone = index.search(images[rows], len(real))
        assert (alone.tile == together.tile[rows]).all() and (alone.box == together.box[rows]).all()
        np.testing.assert_allclose(alone.score, together.score[rows], rtol=1e-4)


def test_order_of_the_tiles_decides_nothing(real, index):
    order = np.random.default_rng(0).permutation(len(real))
    other = PartIndex(real[order], np.argsort(order)[::4])
    images = _cropped(real[:30], real)
    found, expected = other.search(images, len(real)), index.search(images, len(real))
    assert (order[found.tile] == expected.tile).mean() >= 0.9
    np.testing.assert_allclose(found.score, expected.score, rtol=0.3)


def test_images_without_keypoints(real, index):
    flat = np.full((3, 28, 28, 3), 200, np.uint8)
    found = index.search(np.concatenate([flat, real[:1]]), len(real))
    assert found.score[:3].tolist() == [0, 0, 0] and found.score[3] > LEAST
    assert len(index.search(flat[:0], len(real)).score) == 0
    empty = PartIndex(flat, np.array([0]))
    assert empty.search(real[:2], 3).score.tolist() == [0, 0]


def test_likely_placements_are_tried(real):
    # So noisy that no keypoint is left: only who knows how it lies sees it.
    noisy = np.clip(real[:5] + np.random.default_rng(0).normal(0, 60, real[:5].shape), 0, 255).astype(np.uint8)
    index = PartIndex(real, np.arange(0, len(real), 4))
    likely = np.zeros(5, PLACEMENT)
    likely["image"] = likely["tile"] = np.arange(5)
    for name in ("row", "column", "tile_row", "tile_column"):
        likely[name] = 13.5
    likely["zoom"] = 1
    given = likely.copy()
    found = index.search(noisy, len(real), likely)
    assert (found.tile == np.arange(5)).all()
    assert (found.score >= index.search(noisy, len(real)).score * (1 - 1e-4)).all()
    assert (likely == given).all()


def test_larger_tiles_are_searched_at_32_pixels():
    large = np.repeat(np.repeat(textures(40, 5, 32), 2, axis=1), 2, axis=2)
    index = PartIndex(large, np.arange(0, 40, 4))
    assert index.side == 32
    found = index.search(large[:10, ::-1], 40)
    assert (found.tile == np.arange(10)).all() and found.score.min() > LEAST


@pytest.mark.parametrize("side", [48, 64])
def test_details_of_larger_tiles_count(side):
    """Of a patch with half of the side, pasted into another image."""
    rng = np.random.default_rng(0)
    large, images, half = textures(60, 5, side), textures(10, 6, side), side // 2
    # Grain, of which nothing is left at 32 pixels.
    large, images = (np.clip(x + rng.normal(0, 6, x.shape), 0, 255).round().astype(np.uint8) for x in (large, images))
    index = PartIndex(large, np.arange(0, 60, 4))
    innocent = index.search(images, 60).score
    images[:, 5 : 5 + half, side // 3 : side // 3 + half] = large[:10, half - 2 : 2 * half - 2, 3 : 3 + half]
    found = index.search(images, 60)
    assert (found.tile == np.arange(10)).mean() >= 0.9
    coarse = Comparison(grey_pictures(images, 32), grey_pictures(large, 32)).whitened(found.placement, found.box)
    assert np.median(found.score) > 1.4 * np.median(coarse) and np.median(found.score) > 4 * innocent.max()


def test_parts_of_pairs_are_outlined(real):
    images, other = textures(3, 2), real[:3]
    images[0, :, :14] = other[0, :, 14:]
    images[1] = 255 - other[1][::-1]
    (image, tile), (whole, of_whole), nothing = matched_parts(images, other)
    assert np.allclose([image.min(axis=0), image.max(axis=0)], [[0, 0], [1, 0.5]], atol=0.08)
    np.testing.assert_allclose(tile, image + np.array([0, 0.5]), atol=0.03)
    np.testing.assert_allclose(of_whole, np.array([1, 0]) + whole * [-1, 1], atol=0.03)
    assert np.ptp(whole, axis=0).min() > 0.95
    assert all(part.shape[1] == 2 for part in nothing)


def test_box_ends_where_the_tile_does(real, index):
    found = index.search(np.roll(real[:20], 10, axis=1), len(real))
    mine = found.tile == np.arange(20)
    # The first rows came in at the edge.
    assert mine.mean() >= 0.9 and (found.box[mine, 0] >= 8).mean() >= 0.8
