"""The weighted, directed graph of nearest neighbours."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import numpy as np
from scipy.sparse import csr_matrix

from histodistill.selection.checks import check_choice, check_embeddings, check_integer
from histodistill.selection.distances import cosine_between, squared_distances_between
from histodistill.selection.names import WEIGHTINGS


# The largest x for which a weight is exp(−x): beyond it, an outlier would lose its links to rounding.
_LARGEST_EXPONENT = 50.0
# No link is weaker than this, whatever its weighting.
_SMALLEST_WEIGHT = math.exp(-_LARGEST_EXPONENT)

# faiss proposes this many neighbours more than asked for; the exact distances then decide among them.
_EXTRA_CANDIDATES = 8
# Images whose neighbours are looked for in one call of faiss, which bounds the memory for their exact distances.
_QUERIES_PER_CALL = 4096
# Candidates in one such call, of all its images together; where each image has many, there are fewer images.
_CANDIDATES_PER_CALL = 2**22


def knn_graph(embeddings: Any, n_neighbors: int = 15, weighting: str = "local_gaussian") -> csr_matrix:
    """Graph with a link from every image to each of its nearest neighbours.

    Neighbours are nearest in Euclidean distance under every weighting, never the image itself, and equally near ones
    are taken by lower index, exact duplicates included. The weights, all in (0, 1], are

    - `"local_gaussian"`: exp(−d²ᵢⱼ / (σᵢσⱼ)), where σᵢ is the distance from i to the last of its neighbours
      (Zelnik-Manor and Perona, "Self-tuning spectral clustering", NIPS 2004; a σ of 0, which only an image with
      `n_neighbors` exact duplicates has, becomes the median of the others);
    - `"inverse_distance"`: 1/dᵢⱼ in units of the largest, the affinity of InfoDist (arXiv:2406.13536) without its
      dense softmax; duplicates count as being as near as the nearest two images that differ;
    - `"cosine"`: the cosine of the angle between the embeddings; a negative one counts as nearly 0.

    The result is the same for any number of threads. Memory grows with N·D + N·k.

    Args:
        embeddings: N×D real numbers, used as float32.
        n_neighbors: Number k of links from each image, at least 1; N − 1 if there are fewer images.
        weighting: One of `WEIGHTINGS`.

    Returns:
        N×N float64 in CSR format, N·min(k, N−1) links, row i holding the links from image i.

    Raises:
        ValueError: For embeddings that are not N×D and finite, `n_neighbors` below 1 or an unknown weighting.
    """
    check_choice("weighting", weighting, WEIGHTINGS)
    embeddings = check_embeddings(embeddings)
    neighbors, distances = nearest_neighbors(embeddings, n_neighbors)
    n_images, k = neighbors.shape
    if weighting == "local_gaussian":
        weights = _local_gaussian(neighbors, distances)
    elif weighting == "inverse_distance":
        weights = _inverse_distance(distances)
    else:
        weights = cosine_between(embeddings, np.arange(n_images), neighbors)
        weights[distances == 0] = 1.0  # two zero vectors have no angle but are duplicates
    np.clip(weights, _SMALLEST_WEIGHT, 1.0, out=weights)
    row_starts = np.arange(0, n_images * k + 1, max(k, 1)) if k else np.zeros(n_images + 1, dtype=np.int64)
    graph = csr_matrix((weights.ravel(), neighbors.ravel(), row_starts), shape=(n_images, n_images))
    graph.sort_indices()
    return graph


def nearest_neighbors(embeddings: Any, n_neighbors: int) -> tuple[np.ndarray, np.ndarray]:
    """The nearest other images of every image, nearest first, equally near ones by index.

    faiss searches exhaustively in float32; distances are then computed again in float64. Where rounding in float32
    leaves open which candidates are nearest, the search is repeated with more of them, so the answer is exact and does
    not depend on threads or on the BLAS.

    Args:
        embeddings: N×D real numbers, used as float32.
        n_neighbors: Number k of neighbours, at least 1; N − 1 if there are fewer images.

    Returns:
        Indices, N×min(k, N−1) int64, and Euclidean distances, the same shape, float64.

    Raises:
        ValueError: For embeddings that are not N×D and finite, or `n_neighbors` below 1.
    """
    # -0.0 and 0.0 are the same value; adding 0.0 gives them the same bytes, by which duplicates are found.
    embeddings = check_embeddings(embeddings) + np.float32(0.0)
    n_images = len(embeddings)
    k = min(check_integer("n_neighbors", n_neighbors, 1), n_images - 1)
    first, group_of = _groups_of_duplicates(embeddings)
    if len(first) == n_images:
        neighbors, squared = _neighbors_of_distinct(embeddings, k)
    else:
        neighbors, squared = _neighbors_of_distinct(embeddings[first], min(k, len(first) - 1))
        neighbors, squared = _spread_over_duplicates(neighbors, squared, group_of, k)
    return neighbors, np.sqrt(squared)


def nearest_among(points: np.ndarray, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The `k` points nearest to each query, nearest first, equally near ones by index.

    faiss proposes a few more than `k` in float32; their distances are then computed again in float64, so that the
    number of threads plays no part. (Unlike `nearest_neighbors`, it does not search again where more points than
    those few are equally near to the last bit of float32.)

    Args:
        points: N×D float32.
        queries: M×D float32.
        k: At least 1; N if there are fewer points.

    Returns:
        Indices, M×min(k, N) int64, and Euclidean distances, the same shape, float64.
    """
    import faiss

    k = min(k, len(points))
    # float32 loses least near the origin, and a power of two keeps squares in its range without rounding.
    centered, moved = (x - np.median(points, axis=0).astype(np.float64) for x in (points, queries))
    scale = 2.0 ** -float(np.frexp(max(np.abs(centered).max(), np.abs(moved).max()))[1])
    centered, moved = ((x * scale).astype(np.float32) for x in (centered, moved))
    _, proposed = faiss.knn(moved, centered, min(k + _EXTRA_CANDIDATES, len(points)))
    both = np.concatenate([points, queries])
    exact = squared_distances_between(both, len(points) + np.arange(len(queries)), proposed.astype(np.int64))
    order = np.lexsort((proposed, exact), axis=1)[:, :k]
    return (
        np.take_along_axis(proposed, order, axis=1).astype(np.int64),
        np.sqrt(np.take_along_axis(exact, order, axis=1)),
    )


def _groups_of_duplicates(embeddings: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Index of the first member of each group of identical rows, ascending, and the group of each row."""
    as_bytes = embeddings.view(np.dtype((np.void, embeddings.shape[1] * embeddings.itemsize))).ravel()
    _, first, group_of = np.unique(as_bytes, return_index=True, return_inverse=True)
    order = np.argsort(first)
    position = np.empty_like(order)
    position[order] = np.arange(len(order))
    return first[order], position[group_of.ravel()]


def _neighbors_of_distinct(points: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Neighbours (U×k int64) and squared distances (U×k float64) of rows that all differ; k < U."""
    n_points, n_dimensions = points.shape
    neighbors = np.empty((n_points, k), dtype=np.int64)
    squared = np.empty((n_points, k), dtype=np.float64)
    if k == 0:
        return neighbors, squared

    import faiss

    # float32 loses least near the origin. The median rather than the mean: one far outlier must not move it.
    centered = points - np.median(points, axis=0).astype(np.float64)
    # A power of two scales without rounding, and keeps squares within the range of float32.
    scale = 2.0 ** float(np.frexp(np.abs(centered).max())[1])
    centered /= scale
    norms = np.sqrt(np.square(centered).sum(axis=1))
    coarse = centered.astype(np.float32)
    del centered

    unit_roundoff = 2.0**-24
    relative_error = (n_dimensions + 8) * unit_roundoff
    absolute_error = n_dimensions * float(np.finfo(np.float32).tiny)

    open_rows = np.arange(n_points)
    n_candidates = min(k + 1 + _EXTRA_CANDIDATES, n_points)
    while len(open_rows):
        step = max(1, min(_QUERIES_PER_CALL, _CANDIDATES_PER_CALL // n_candidates))
        undecided = []
        for start in range(0, len(open_rows), step):
            rows = open_rows[start : start + step]
            approximate, candidates = faiss.knn(coarse[rows], coarse, n_candidates)
            candidates = candidates.astype(np.int64)
            exact = squared_distances_between(points, rows, candidates)
            exact[candidates == rows[:, None]] = np.inf  # the image itself, wherever it stands
            order = np.lexsort((candidates, exact), axis=1)[:, :k]
            neighbors[rows] = np.take_along_axis(candidates, order, axis=1)
            squared[rows] = np.take_along_axis(exact, order, axis=1)
            if n_candidates < n_points:
                # A point y that was not proposed is at least as far as the last candidate, but for the error of the
                # expansion ‖x‖² + ‖y‖² − 2x·y in float32, at most relative_error·(‖x‖ + ‖y‖)². Only a y with
                # ‖y‖ ≤ ‖x‖ + d can be nearer than d, the distance to the last chosen neighbour.
                last = squared[rows, -1] / scale**2
                error = relative_error * np.square(2 * norms[rows] + np.sqrt(last)) + absolute_error
                undecided.append(rows[approximate[:, -1] - error <= last])
        open_rows = np.concatenate(undecided) if undecided else open_rows[:0]
        n_candidates = min(4 * n_candidates, n_points)
    return neighbors, squared


def _spread_over_duplicates(
    neighbors: np.ndarray, squared: np.ndarray, group_of: np.ndarray, k: int
) -> tuple[np.ndarray, np.ndarray]:
    """From the neighbours of the distinct rows to those of all rows: N×k."""
    n_images, n_groups = len(group_of), len(neighbors)
    by_group = np.argsort(group_of, kind="stable")
    bounds = np.searchsorted(group_of[by_group], np.arange(n_groups + 1))
    # k + 1 members of a group are as many as one image can need.
    members = [by_group[start : min(end, start + k + 1)] for start, end in pairwise(bounds)]
    all_neighbors = np.empty((n_images, k), dtype=np.int64)
    all_squared = np.empty((n_images, k), dtype=np.float64)
    for group in range(n_groups):
        near = [members[group], *(members[other] for other in neighbors[group])]
        distances = np.repeat(np.concatenate([[0.0], squared[group]]), [len(part) for part in near])
        indices = np.concatenate(near)
        order = np.lexsort((indices, distances))[: k + 1]
        indices, distances = indices[order], distances[order]
        for image in by_group[bounds[group] : bounds[group + 1]]:
            others = np.flatnonzero(indices != image)[:k]
            all_neighbors[image] = indices[others]
            all_squared[image] = distances[others]
    return all_neighbors, all_squared


def _local_gaussian(neighbors: np.ndarray, distances: np.ndarray) -> np.ndarray:
    if neighbors.shape[1] == 0:
        return np.empty_like(distances)
    sigma = distances[:, -1].copy()
    positive = sigma > 0
    sigma[~positive] = np.median(sigma[positive]) if positive.any() else 1.0
    exponent = np.square(distances) / (sigma[:, None] * sigma[neighbors])
    return np.exp(-np.minimum(exponent, _LARGEST_EXPONENT))


def _inverse_distance(distances: np.ndarray) -> np.ndarray:
    positive = distances[distances > 0]
    nearest = positive.min() if len(positive) else 1.0
    return nearest / np.maximum(distances, nearest)
