from __future__ import annotations

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter
from scipy.spatial.distance import cdist

from histodistill.selection import copies, windows
from histodistill.selection.copies import (
    CopyIndex,
    CopyScores,
    calibrate,
    embed_all,
    nearest_under_views,
    pixel_embedding,
    project,
    views_of,
)
from histodistill.selection.image_rows import rows_of
from histodistill.selection.planting import MUST_FIND, plant
from histodistill.selection.views import apply_symmetry


def textures(count: int, seed: int, size: int = 24) -> np.ndarray:
    """Images with patches of two stains at random places, as different from each other as tiles are."""
    rng = np.random.default_rng(seed)
    fields = gaussian_filter(rng.standard_normal((count, size, size, 2)), (0, 2, 2, 0), mode="wrap")
    amounts = np.clip(0.35 + fields / fields.std() * 0.2, 0, None)
    stains = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11]])
    noise = rng.standard_normal((count, size, size, 3)) * 2
    return (255 * np.exp(-(amounts @ stains)) + noise).clip(0, 255).round().astype(np.uint8)


@pytest.fixture(scope="module")
def real() -> np.ndarray:
    return textures(300, 0)


@pytest.fixture(scope="module")
def index(real) -> CopyIndex:
    return CopyIndex(real, {"mean": lambda images: images.mean(axis=(1, 2))})


@pytest.fixture(scope="module")
def limits(index):
    return calibrate(index.search(textures(150, 1)))


def test_planted_copies_are_found_and_others_are_not(real, index, limits):
    planted = plant(real, 20, seed=2)
    scores = index.search(planted.images)
    found = limits.is_copy(scores)
    for kind, least in MUST_FIND.items():
        mine = planted.kinds == kind
        assert found[mine].mean() >= least, kind
        assert (scores.nearest["structure"][mine] == planted.sources[mine]).mean() >= least, kind
    assert limits.is_copy(index.search(textures(100, 3))).mean() <= 0.04
    assert limits.guaranteed and limits.false_alarms <= 0.03


def test_scores_do_not_depend_on_what_is_searched_for_beside(real, index):
    images = np.concatenate([real[:3], textures(5, 4)])
    together, alone = index.search(images), index.search(images[4:5])
    for name, values in together.values.items():
        assert values[4] == pytest.approx(alone.values[name][0], rel=1e-4)
        assert (values[:3] < 0.03).all()
    for nearest in together.nearest.values():
        assert nearest[:3].tolist() == [0, 1, 2]


def test_first_tiles_alone_are_searched(real, index):
    images = np.concatenate([real[[5, 250]], textures(10, 6)])
    few, alone = index.search(images, num_tiles=100), CopyIndex(real[:100], {"mean": index.spaces["mean"]})
    expected = alone.search(images)
    for name, values in expected.values.items():
        np.testing.assert_allclose(few.values[name], values, rtol=1e-4, atol=1e-6)
        np.testing.assert_array_equal(few.nearest[name], expected.nearest[name])
    assert few.nearest["structure"][0] == 5 and few.values["structure"][1] > 0.5


def test_copies_are_found_among_the_nearest_cells_alone(real, index, limits, monkeypatch):
    """As among more than 7,000 tiles: here 4,200 windows in 65 cells, of which 8 are searched."""
    monkeypatch.setattr(copies, "_MOST_EXHAUSTIVE", 1000)
    monkeypatch.setattr(windows, "_WINDOWS_PER_CELL", 64)
    monkeypatch.setattr(copies, "_CELLS_SEARCHED", 8)
    by_cells = CopyIndex(real)
    planted = plant(real, 20, seed=2)
    values = {}
    for name, searched, first in (("cells", by_cells, None), ("all", index, None), ("first", by_cells, 30)):
        scores = searched.search(planted.images, num_tiles=first)
        values[name] = scores.values["structure"]
        if first:
            assert scores.nearest["structure"].max() < first
        else:
            assert (scores.nearest["structure"] == planted.sources).mean() >= 0.99
    assert (values["cells"] < 0.5).mean() >= (values["all"] < 0.5).mean() - 0.01
    mine = planted.sources < 30
    assert (values["first"][mine] < 0.5).mean() >= 0.9 and (values["first"][~mine] < 0.5).mean() <= 0.05
    # Exhaustive search is another way to the same.
    others = textures(30, 3)
    assert np.median(by_cells.search(others).values["structure"]) == pytest.approx(
        np.median(index.search(others).values["structure"]), abs=0.05
    )


def test_views_that_are_given_are_used(real, index):
    images = textures(4, 5)
    views = {name: views_of(images, embed) for name, embed in index.spaces.items()}
    given, own = index.search(images, views), index.search(images)
    for name in own.values:
        np.testing.assert_array_equal(given.values[name], own.values[name])
    rolled = index.search(images, {name: np.roll(value, 1, axis=1) for name, value in views.items()})
    for name in views:
        np.testing.assert_array_equal(rolled.values[name], np.roll(own.values[name], 1))


def test_order_of_tiles_decides_nothing(real, monkeypatch):
    monkeypatch.setattr(copies, "_MOST_EXHAUSTIVE", 1000)
    monkeypatch.setattr(windows, "_WINDOWS_PER_CELL", 64)
    monkeypatch.setattr(copies, "_CELLS_SEARCHED", 4)
    order = np.random.default_rng(0).permutation(len(real))
    images = np.concatenate([real[:5], textures(40, 7)])
    one, other = CopyIndex(real).search(images), CopyIndex(real[order]).search(images)
    np.testing.assert_allclose(one.values["structure"], other.values["structure"], rtol=1e-5)
    np.testing.assert_array_equal(one.nearest["structure"], order[other.nearest["structure"]])


def scores_of(structure) -> CopyScores:
    structure = np.asarray(structure, dtype=np.float64)
    return CopyScores({"structure": structure}, {"structure": np.zeros(len(structure), dtype=np.int64)})


def test_limit_is_the_rank_that_keeps_false_alarms_down():
    held_out = np.random.default_rng(0).permutation(np.linspace(0.2, 1, 399))
    limits = calibrate(scores_of(held_out), 0.01)
    # ⌊0.01 · 400⌋ = 4: three of the tiles lie below the limit.
    assert limits.is_copy(scores_of(held_out)).sum() == 3
    assert limits.guaranteed and limits.num_held_out == 399 and limits.false_alarms == pytest.approx(0.01, abs=0.004)
    few = calibrate(scores_of(held_out[:60]), 0.01)
    assert not few.guaranteed and few.is_copy(scores_of(held_out[:60])).sum() == 0


def test_share_of_false_alarms_on_new_tiles():
    rng = np.random.default_rng(1)
    shares = []
    for _ in range(40):
        limits = calibrate(scores_of(rng.uniform(0.2, 1, 199)), 0.05)
        shares.append(limits.is_copy(scores_of(rng.uniform(0.2, 1, 2000))).mean())
    assert np.mean(shares) == pytest.approx(0.05, abs=0.008)


def test_held_out_tiles_that_are_the_same_tile_set_no_limit(real, index):
    held_out = textures(60, 6)
    twice = np.concatenate([held_out, apply_symmetry(real[:9], 5)])
    with_them, without = calibrate(index.search(twice)), calibrate(index.search(held_out))
    assert (with_them.num_same, with_them.num_held_out) == (9, 60)
    assert with_them.limit == pytest.approx(without.limit, rel=1e-3)
    with pytest.raises(ValueError, match="0 validation tiles show something and are no copies of other real tiles"):
        calibrate(index.search(real[:5]))


def test_nearest_under_views_against_all_distances():
    rng = np.random.default_rng(0)
    views, points = rng.standard_normal((3, 20, 5)).astype(np.float32), rng.standard_normal((30, 5)).astype(np.float32)
    every = np.min([cdist(view, points) for view in views], axis=0)
    indices, distances = nearest_under_views(views, points, 7)
    np.testing.assert_array_equal(indices, np.argsort(every, axis=1)[:, :7])
    np.testing.assert_allclose(distances, np.sort(every, axis=1)[:, :7], rtol=1e-3, atol=1e-3)
    assert nearest_under_views(views, points[:4], 7)[0].shape == (20, 4)


def test_projection_nearly_keeps_distances():
    embeddings = np.random.default_rng(0).standard_normal((40, 2000)).astype(np.float32)
    assert project(embeddings[:, :100]).shape == (40, 100)
    small = project(np.concatenate([embeddings, embeddings[:1]]))
    assert small.shape == (41, 256)
    np.testing.assert_allclose(small[0], small[40], atol=1e-4)
    ratio = cdist(small[:20], small[20:40]) / cdist(embeddings[:20], embeddings[20:])
    assert ratio.min() > 0.8 and ratio.max() < 1.2


@pytest.mark.parametrize(("width", "at_once"), [(20, 7), (300, 7), (300, 100)])
def test_all_are_embedded_as_each_is(monkeypatch, width, at_once):
    images = textures(60, 0, size=8)
    matrix = np.random.default_rng(0).standard_normal((192, width)).astype(np.float32)
    sizes = []

    def embed(part: np.ndarray) -> np.ndarray:
        sizes.append(len(part))
        return pixel_embedding(part) @ matrix

    monkeypatch.setattr(copies, "_EMBEDDED_PER_CALL", at_once)
    monkeypatch.setattr(copies, "_PROJECTED_BYTES", 20 * 4 * width)
    for given in (images, rows_of(images, np.arange(60))):
        points = embed_all(given, embed, symmetry=3)
        expected = project(pixel_embedding(np.ascontiguousarray(apply_symmetry(images, 3))) @ matrix)
        np.testing.assert_allclose(points, expected, rtol=1e-4, atol=1e-4)
    assert sum(sizes) == 120 and max(sizes) == min(at_once, 60)
    assert embed_all(images[:0], embed).shape == (0, min(width, 256))


def test_points_are_those_of_the_tiles_also_where_some_are_there_twice(real):
    images = np.concatenate([real[:4], real[1:2, ::-1], real[4:8], real[2:3]])
    index = CopyIndex(images)
    rows = np.array([9, 4, 0, 1, 7])
    np.testing.assert_array_equal(index.points_at("pixels", rows), project(pixel_embedding(images))[rows])


def test_views_are_the_symmetries():
    images = textures(3, 0, size=8)
    views = views_of(images, pixel_embedding)
    assert views.shape == (8, 3, 192)
    np.testing.assert_allclose(views[0], images.reshape(3, -1) / 255, rtol=1e-6)
    np.testing.assert_allclose(views[5], apply_symmetry(images, 5).reshape(3, -1) / 255, rtol=1e-6)


def test_images_with_nothing_on_them_are_no_copies(real, limits):
    empty = np.full((3, 24, 24, 3), 230, np.uint8)
    index = CopyIndex(np.concatenate([real, empty]))
    scores = index.search(np.concatenate([empty, real[:1]]))
    assert np.isinf(scores.values["structure"]).tolist() == [True, True, True, False]
    both = CopyIndex(real).search(np.concatenate([textures(60, 6), empty]))
    assert calibrate(both).num_held_out == 60
    assert calibrate(both).is_copy(scores).tolist() == [False, False, False, True]


def test_nearest_tile_is_that_of_the_score_that_tells(limits):
    values = {
        "structure": np.array([0.5, 0.9, 0.9]),
        "parts": np.array([0.9, 0.9, 1e-9]),
        "pixels": np.array([0.9, 0.2, 0.9]),
        "mean": np.array([0.9, 0.9, 0.9]),
    }
    nearest = {name: np.array([1, 2, 3]) + 3 * number for number, name in enumerate(values)}
    assert limits.nearest(CopyScores(values, nearest)).tolist() == [1, 8, 6]
