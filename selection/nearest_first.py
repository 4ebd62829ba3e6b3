"""The nearest of the first of many points: among all, or among those in the nearest cells of more."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np


class NearestOfFirst:
    """Points of which the first so many can be searched for the nearest.

    Args:
        count, width: Points, and numbers of each.
        parts: All points in order, float32 M×`width` at a time.
        few: Gives the points by which cells are made, float32.
        most_exhaustive: Points up to which all are compared.
        points_per_cell: Points in a cell, on average.
        cells_searched: Cells whose points a query is compared with: those whose centres are nearest to it.
        most_cells: Cells, at most, however many points there are.

    Cells are those of an inverted file by k-means, and hold the numbers in 16 bits.
    """

    def __init__(
        self,
        count: int,
        width: int,
        parts: Iterable[np.ndarray],
        few: Callable[[], np.ndarray],
        *,
        most_exhaustive: int,
        points_per_cell: int,
        cells_searched: int,
        most_cells: int | None = None,
    ):
        import faiss

        self._points: np.ndarray | None = None
        self._cells_searched = cells_searched
        if count <= most_exhaustive:
            self._points = np.concatenate([np.empty((0, width), np.float32), *parts])
            return
        number = count // points_per_cell
        number = number if most_cells is None else min(number, most_cells)
        self._width = 8 * -(-width // 8)
        self._cells = faiss.IndexIVFScalarQuantizer(
            faiss.IndexFlatL2(self._width), self._width, number, faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_L2, False
        )
        # A few passes of k-means over some of the points: cells need not be the best ones, only small.
        self._cells.cp.niter, self._cells.cp.max_points_per_centroid = 5, 64
        self._cells.cp.min_points_per_centroid = 1
        self._cells.train(self._widened(few()))
        for part in parts:
            self._cells.add(self._widened(part))

    def nearest(self, queries: np.ndarray, k: int, first: int) -> tuple[np.ndarray, np.ndarray]:
        """Squared distances and rows, M×k each, of the nearest of the `first` points; inf and 0 for none."""
        import faiss

        if self._points is not None:
            distances, rows = faiss.knn(queries, self._points[:first], k)
        else:
            # A selector takes its time.
            wanted = faiss.IDSelectorRange(0, first) if first < self._cells.ntotal else None
            options = faiss.SearchParametersIVF(nprobe=self._cells_searched, sel=wanted)  # type: ignore[call-arg]  # SWIG
            distances, rows = self._cells.search(self._widened(queries), k, params=options)
        missing = rows < 0
        return np.where(missing, np.inf, distances), np.where(missing, 0, rows)

    def _widened(self, points: np.ndarray) -> np.ndarray:
        """Points of a multiple of 8 numbers, with zeros at the end: faiss searches these in an eighth of the time."""
        more = self._width - points.shape[1]
        return np.pad(points, ((0, 0), (0, more))) if more else points
