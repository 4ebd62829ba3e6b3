from __future__ import annotations

import numpy as np
import pytest

from histodistill.selection.disguises import DISGUISES, disguise_tiles


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (2, 6, 28, 28, 3), dtype=np.uint8)


@pytest.mark.parametrize("name", DISGUISES)
def test_disguises_keep_size_and_type_and_change_the_tile(images, name):
    tiles, innocent = images
    before = images.copy()
    disguised = DISGUISES[name](tiles, innocent, np.random.default_rng(1))
    assert disguised.shape == tiles.shape and disguised.dtype == np.uint8
    assert (disguised != tiles).any(axis=(1, 2, 3)).all()
    np.testing.assert_array_equal(images, before)
    np.testing.assert_array_equal(disguised, DISGUISES[name](tiles, innocent, np.random.default_rng(1)))


def test_what_they_show(images):
    tiles, innocent = images
    rng = np.random.default_rng(1)
    half = DISGUISES["half of it beside half of an innocent image"](tiles, innocent, rng)
    np.testing.assert_array_equal(half, np.concatenate([tiles[:, :, :14], innocent[:, :, 14:]], axis=2))
    moved = DISGUISES["moved by a half both ways"](tiles, innocent, rng)
    np.testing.assert_array_equal(moved[:, 14:, 14:], tiles[:, :14, :14])
    mosaic = DISGUISES["four whole tiles, each half as large"](tiles, innocent, rng)
    small = tiles.reshape(6, 14, 2, 14, 2, 3).mean(axis=(2, 4))
    np.testing.assert_allclose(mosaic[:, :14, :14], small, atol=0.51)
    pasted = DISGUISES["50 % of the side in an innocent image"](tiles, innocent, rng)
    assert ((pasted != innocent).any(axis=3).sum(axis=(1, 2)) <= 14**2).all()
    flat = DISGUISES["contrast of 7 grey levels"](tiles, innocent, rng)
    np.testing.assert_allclose(flat.mean(axis=3).std(axis=(1, 2)), 7, atol=0.3)
    quadrants = DISGUISES["a quadrant of each of four tiles"](tiles, innocent, rng)
    np.testing.assert_array_equal(quadrants[:, :14, :14], tiles[:, :14, :14])


def test_an_audit_disguises_tiles_in_all_ways_and_none_twice():
    rng = np.random.default_rng(0)
    tiles, others = rng.integers(0, 256, (2, 60, 24, 24, 3)).astype(np.uint8)
    usable = np.arange(60) < 50
    found = disguise_tiles(tiles, others, 2, seed=3, usable=usable)
    assert found.shape == (len(DISGUISES), 2, 24, 24, 3) and found.dtype == np.uint8
    assert (disguise_tiles(tiles, others, 2, seed=3, usable=usable) == found).all()
    assert (disguise_tiles(tiles, others, 2, seed=4, usable=usable) != found).any()
    negatives = 255 - found[list(DISGUISES).index("negative")]
    rows = [int(np.flatnonzero((tiles == tile).all(axis=(1, 2, 3)))[0]) for tile in negatives]
    assert len(set(rows)) == 2 and max(rows) < 50
