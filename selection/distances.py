"""Squared Euclidean distances, most of which come out the same, bit for bit, whatever the number of threads.

The usual ‖x‖² + ‖y‖² − 2x·y is fast but rounds differently with the blocks of the BLAS at hand, and can be negative
between near duplicates. Here differences are taken and squared in float64, and summed by one thread, but for
`squared_distances_by_products`, for those who need all of very many, and may let one thread work.
"""

from __future__ import annotations

import numpy as np


# float64 values held at once by a temporary array: 2 MiB, which stay in the cache.
_CHUNK_VALUES = 2**18
# Pairs whose distances stand for all.
_PAIRS = 200_000


def squared_distances_to(embeddings: np.ndarray, point: np.ndarray) -> np.ndarray:
    """Distances from every row of `embeddings` (N×D float32) to one `point` (D): N float64, ≥ 0, squared."""
    point = np.asarray(point, dtype=np.float64)
    step = max(1, _CHUNK_VALUES // max(1, embeddings.shape[1]))
    squared = np.empty(len(embeddings), dtype=np.float64)
    for start in range(0, len(embeddings), step):
        difference = embeddings[start : start + step] - point
        squared[start : start + step] = np.square(difference).sum(axis=1)
    return squared


def squared_distances_between(embeddings: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Distances between row `rows[i]` and each row `columns[i, j]` of `embeddings`.

    Args:
        embeddings: N×D float32.
        rows: R int64, indices into `embeddings`.
        columns: R×K int64, indices into `embeddings`.

    Returns:
        R×K float64, ≥ 0, squared; symmetric in its two ends to the last bit.
    """
    step = max(1, _CHUNK_VALUES // max(1, columns.shape[1] * embeddings.shape[1]))
    squared = np.empty(columns.shape, dtype=np.float64)
    for start in range(0, len(rows), step):
        block = slice(start, start + step)
        difference = embeddings[columns[block]].astype(np.float64)
        difference -= embeddings[rows[block], None, :]
        squared[block] = np.square(difference, out=difference).sum(axis=2)
    return squared


def squared_distances_by_products(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Distances between all rows of two arrays, rounded by the BLAS at hand: for use with one thread.

    Args:
        one: N×D float64.
        other: M×D float64.

    Returns:
        N×M float64, ≥ 0, squared; right to some 1e-15 of the squared norms of the rows, so move these to about zero.
    """
    squared = one @ other.T
    squared *= -2.0
    squared += np.einsum("ij,ij->i", one, one)[:, None]
    squared += np.einsum("ij,ij->i", other, other)
    return np.maximum(squared, 0.0, out=squared)


def median_squared_distance(embeddings: np.ndarray, rng: np.random.Generator) -> float:
    """The median of the squared distances of pairs of rows; 1 where most are equal.

    Args:
        embeddings: N×D float32.
        rng: Draws 200,000 pairs where there are more.
    """
    count = len(embeddings)
    if count * (count - 1) // 2 <= _PAIRS:
        first, second = np.triu_indices(count, 1)
    else:
        first, second = rng.integers(count, size=(2, _PAIRS))
        first, second = first[first != second], second[first != second]
    squared = squared_distances_between(embeddings, first, second[:, None])
    return float(np.median(squared)) if len(squared) and np.median(squared) > 0 else 1.0


def first_equal_rows(embeddings: np.ndarray) -> np.ndarray:
    """The index of the first row that equals each, N int64: rounding may tell equal rows apart, so one counts."""
    first: dict[bytes, int] = {}
    # Minus zero equals zero.
    return np.array([first.setdefault((row + 0.0).tobytes(), index) for index, row in enumerate(embeddings)])


def cosine_between(embeddings: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Cosine of the angle between row `rows[i]` and each row `columns[i, j]`: R×K float64; 0 for a zero vector."""
    step = max(1, _CHUNK_VALUES // max(1, columns.shape[1] * embeddings.shape[1]))
    norms = np.sqrt(squared_distances_to(embeddings, np.zeros(embeddings.shape[1])))
    norms[norms == 0] = 1.0
    cosine = np.empty(columns.shape, dtype=np.float64)
    for start in range(0, len(rows), step):
        block = slice(start, start + step)
        product = embeddings[columns[block]].astype(np.float64)
        product *= embeddings[rows[block], None, :]
        cosine[block] = product.sum(axis=2) / (norms[rows[block], None] * norms[columns[block]])
    return cosine
