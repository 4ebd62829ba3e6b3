from __future__ import annotations

import numpy as np
import pytest

from histodistill.selection.nearest_first import NearestOfFirst


def search(points: np.ndarray, most_exhaustive: int, most_cells: int | None = None) -> NearestOfFirst:
    return NearestOfFirst(
        len(points),
        points.shape[1],
        np.array_split(points, 7),
        lambda: points[::2],
        most_exhaustive=most_exhaustive,
        points_per_cell=50,
        cells_searched=3,
        most_cells=most_cells,
    )


@pytest.mark.parametrize("most_exhaustive", [0, 10_000])
@pytest.mark.parametrize("first", [300, 2000])
@pytest.mark.parametrize("width", [8, 11])
def test_nearest_of_the_first(most_exhaustive, first, width):
    rng = np.random.default_rng(0)
    points = rng.normal(size=(2000, width)).astype(np.float32)
    wanted = rng.permutation(300)[:40]
    queries = points[wanted] + rng.normal(0, 0.01, (40, width)).astype(np.float32)
    distances, rows = search(points, most_exhaustive).nearest(queries, 5, first)
    assert rows[:, 0].tolist() == wanted.tolist()
    assert rows.max() < first and (np.diff(distances, axis=1) >= 0).all()
    expected = np.square(queries - points[wanted]).sum(axis=1)
    np.testing.assert_allclose(distances[:, 0], expected, atol=2e-2)  # cells hold 16 bits


@pytest.mark.parametrize("most_exhaustive", [0, 400])
@pytest.mark.parametrize("first", [0, 2])
def test_there_may_be_fewer_than_are_asked_for(most_exhaustive, first):
    points = np.arange(400, dtype=np.float32)[:, None] * np.float32([1.0, 0.0])
    distances, rows = search(points, most_exhaustive).nearest(np.zeros((1, 2), np.float32), 5, first)
    assert rows[0].tolist() == [0, 1][:first] + [0] * (5 - first)
    assert np.isinf(distances[0]).tolist() == [False] * first + [True] * (5 - first)


def test_cells_find_what_all_points_give():
    # Groups of points far apart, so that the nearest are in few cells.
    rng = np.random.default_rng(1)
    middles = 20 * rng.normal(size=(20, 8))
    points = (middles[rng.integers(0, 20, 1500)] + rng.normal(size=(1500, 8))).astype(np.float32)
    queries = points[:50] + np.float32(0.1)
    for first in (400, 1500):
        (apart, rows), (expected, right) = (search(points, most).nearest(queries, 3, first) for most in (0, 1500))
        assert (rows == right).mean() > 0.95
        np.testing.assert_allclose(apart[rows == right], expected[rows == right], rtol=0.05, atol=0.05)


def test_all_points_are_searched_where_there_are_few():
    points = np.random.default_rng(0).normal(size=(100, 4)).astype(np.float32)
    distances, rows = search(points, 100).nearest(points, 1, 100)
    assert rows[:, 0].tolist() == list(range(100)) and distances.max() < 1e-5


def test_cells_may_be_limited():
    points = np.random.default_rng(0).normal(size=(2000, 4)).astype(np.float32)
    assert search(points, 0, most_cells=3)._cells.nlist == 3
    assert search(points, 0)._cells.nlist == 40
