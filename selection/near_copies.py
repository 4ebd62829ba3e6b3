"""Which tiles are the same but for small differences: turned, mirrored, saved anew, a little lighter or darker.

Two tiles are near copies if one of the eight symmetries brings the one to within `TOLERANCE` grey levels of the other,
on average over all pixels and channels. Tiles with nothing on them, which would all be near each other, are copies
only where nothing differs; a tile of one colour is no copy of another.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from histodistill.selection.views import LEAST_CONTENT, SYMMETRIES, apply_symmetry


#: Grey levels by which near copies differ at most, on average.
TOLERANCE = 6
# Cells along a side of the coarse grid by which pairs are compared first, symmetry by symmetry or at once.
_CELLS = 6
# Groups of pixels of like rank whose means are compared.
_RANKS = 16
# Tiles whose neighbours are looked for at once, and pairs that are compared pixel by pixel, which bounds the memory.
_TILES_PER_CALL, _PAIRS_PER_CALL = 256, 2048
# Where rounding ends: a bound that is missed by this much may hold.
_HAIR = 1e-3


def near_pairs(sets: Sequence[np.ndarray], tolerance: float = TOLERANCE) -> np.ndarray:
    """Pairs of near copies among the images of several sets.

    All of them, but for tiles that are the same in one of the symmetries: these, of which there may be very many, are
    each paired with the first of each set alone, and with near copies of it. So it is told of each tile in which sets
    it has copies, and which tiles are connected by copies.

    Args:
        sets: uint8 N×S×S×3 each, of one size S; a tile is called by its row in all of them, one after the other.
        tolerance: Grey levels by which a pair differs at most on average, 0 to 255.

    Returns:
        int64 P×2, rows i < j, sorted.
    """
    offsets = np.cumsum([0, *map(len, sets)])
    parts = [
        _summaries(images[start : start + _TILES_PER_CALL])
        for images in sets
        for start in range(0, len(images), _TILES_PER_CALL)
    ]
    found = [np.empty((0, 2), np.int64)]
    if not parts:
        return found[0]
    grids, ranks, contrasts = (np.concatenate(part) for part in zip(*parts, strict=True))
    limits = np.where(contrasts >= LEAST_CONTENT, tolerance, 0.0)
    limits[contrasts == 0] = -1
    same = _same_tiles(sets, offsets, ranks, np.flatnonzero(limits >= 0))
    for others in same.values():
        limits[others[1:]] = -1  # the first stands for them
    for pairs in _candidates(grids, ranks, limits):
        apart = _in_parts(
            lambda one, other: _least(_at(sets, offsets, one), _at(sets, offsets, other), _mean_difference),
            *pairs.T,
        )
        found.append(pairs[apart <= limits[pairs].min(axis=1)])
    return _with_same_tiles(np.concatenate(found), same, offsets)


def connected(pairs: np.ndarray, count: int) -> np.ndarray:
    """The connected components of `count` nodes that P×2 `pairs` make: int64, numbered by their first node."""
    from scipy.sparse import coo_array  # here, since whoever only names tiles has no time for it
    from scipy.sparse.csgraph import connected_components

    graph = coo_array((np.ones(len(pairs), np.int8), (pairs[:, 0], pairs[:, 1])), shape=(count, count))
    return in_order(connected_components(graph, directed=False)[1])


def in_order(codes: np.ndarray) -> np.ndarray:
    """The same partition of N things, numbered from 0 on in the order of their first: int64 N."""
    _, first, inverse = np.unique(codes, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[inverse].astype(np.int64)


def _same_tiles(
    sets: Sequence[np.ndarray], offsets: np.ndarray, ranks: np.ndarray, rows: np.ndarray
) -> dict[int, np.ndarray]:
    """First row → all rows, in order, of tiles that are the same in one of the symmetries, where there are several.

    Args:
        sets, offsets: The images, and the first row of each set.
        ranks: See `_summaries`.
        rows: The tiles that can have copies.
    """
    _, kind, counts = np.unique(ranks[rows], axis=0, return_inverse=True, return_counts=True)
    by_key: dict[bytes, list[int]] = {}
    for row in rows[counts[kind.reshape(-1)] > 1]:
        image = _at(sets, offsets, np.array([row]))
        # The lowest of its views is the same for all that are the same.
        key = min(apply_symmetry(image, symmetry).tobytes() for symmetry in range(SYMMETRIES))
        by_key.setdefault(hashlib.blake2b(key, digest_size=16).digest(), []).append(int(row))
    return {found[0]: np.array(found) for found in by_key.values() if len(found) > 1}


def _with_same_tiles(pairs: np.ndarray, same: Mapping[int, np.ndarray], offsets: np.ndarray) -> np.ndarray:
    """Sorted pairs, with those of tiles for which the first of the same stood.

    Args:
        pairs: int64 P×2, of tiles that are not the same.
        same: See `_same_tiles`.
        offsets: The first row of each set.
    """
    first_of_sets = {}
    for first, rows in same.items():
        _, place = np.unique(np.searchsorted(offsets, rows, side="right"), return_index=True)
        first_of_sets[first] = rows[place]
    found = [pairs]
    for first, rows in same.items():
        found.append(_all_pairs(rows, first_of_sets[first]))
    for one, other in pairs[np.isin(pairs, [*same]).any(axis=1)].tolist():
        for mine, theirs in ((one, other), (other, one)):
            found.append(_all_pairs(same.get(mine, np.array([mine])), first_of_sets.get(theirs, np.array([theirs]))))
    joined = np.sort(np.concatenate(found), axis=1)
    return np.unique(joined[joined[:, 0] < joined[:, 1]], axis=0)


def _all_pairs(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Each of N with each of M: int64 N·M×2."""
    return np.stack(np.meshgrid(first, second, indexing="ij"), axis=-1).reshape(-1, 2)


def _candidates(grids: np.ndarray, ranks: np.ndarray, limits: np.ndarray) -> Iterator[np.ndarray]:
    """Pairs of rows i < j, int64 P×2, among which are all near copies: their summaries differ by no more than that.

    Args:
        grids, ranks: See `_summaries`.
        limits: N, the greatest difference of each tile from a copy; below 0 for one that has none.
    """
    from scipy.spatial.distance import cdist

    rows = np.flatnonzero(limits >= 0)
    orbits = _orbits(grids)
    # In order of lightness, by which a tile has all its copies nearby.
    rows = rows[np.argsort(orbits[rows].sum(axis=1), kind="stable")]
    lightness = orbits[rows].sum(axis=1)
    for start in range(0, len(rows), _TILES_PER_CALL):
        some = rows[start : start + _TILES_PER_CALL]
        reach = lightness[start + len(some) - 1] + limits[some].max() + _HAIR
        others = rows[start : np.searchsorted(lightness, reach, side="right")]
        limit = np.minimum(limits[some][:, None], limits[others]) + _HAIR
        left, right = np.nonzero(np.triu(cdist(orbits[some], orbits[others], "cityblock") <= limit, 1))
        limit, left, right = limit[left, right], some[left], others[right]
        for apart in (
            lambda one, other: np.abs(ranks[one] - ranks[other]).sum(axis=1),
            lambda one, other: _least(grids[one], grids[other], lambda a, b: np.abs(a - b).sum(axis=(1, 2, 3))),
        ):
            near = _in_parts(apart, left, right) <= limit
            limit, left, right = limit[near], left[near], right[near]
        yield np.sort(np.stack([left, right], axis=1), axis=1)


def _summaries(images: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What N images are compared by before their pixels are: grids, ranks, and contrasts.

    The grid is that of the means of cells, float32 N×K×K×3, which turns with the image; ranks are means over pixels of
    like rank in their channel, float32 N×R, which no symmetry changes. Each weighs by its share of all values. The sum
    of absolute differences of two images' grids, or ranks, is at most the mean absolute difference of their values: so
    no pair of near copies is lost. The contrast is the standard deviation of grey levels, float64 N, 0 for one colour.
    """
    count, side = images.shape[:2]
    cells = min(_CELLS - (_CELLS - side) % 2, side)  # as odd as the side, so that cells can mirror each other
    edges = np.linspace(0, side, cells + 1).round().astype(int)
    later = np.arange(cells // 2 + 1)
    edges[cells - later] = side - edges[later]  # cells that mirror each other are of one size
    grids = np.add.reduceat(np.add.reduceat(images.astype(np.float32), edges[:-1], axis=1), edges[:-1], axis=2)
    ordered = np.ascontiguousarray(images.reshape(count, side * side, 3).transpose(0, 2, 1))
    ordered.sort(axis=2)
    starts = np.linspace(0, side * side, min(_RANKS, side * side), endpoint=False).astype(int)
    ranks = np.add.reduceat(ordered, starts, axis=2, dtype=np.float32)
    values = np.float32(3 * side * side)
    contrasts = np.where((images != images[:, :1, :1]).any(axis=(1, 2, 3)), images.mean(axis=3).std(axis=(1, 2)), 0)
    return grids / values, ranks.reshape(count, -1) / values, contrasts


def _orbits(grids: np.ndarray) -> np.ndarray:
    """Sums over the cells of grids N×K×K×3 that symmetries bring to each other, which none changes: float32 N×O."""
    cells = grids.shape[1]
    place = np.minimum(np.arange(cells), cells - 1 - np.arange(cells))
    orbit = np.minimum.outer(place, place) * cells + np.maximum.outer(place, place)
    return np.concatenate([grids[:, orbit == each].sum(axis=1) for each in np.unique(orbit)], axis=1)


def _least(first: np.ndarray, second: np.ndarray, apart: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> np.ndarray:
    """How far P images N×S×S×C are apart from P others in the symmetry that brings each pair nearest: P numbers."""
    views = (apply_symmetry(second, symmetry) for symmetry in range(SYMMETRIES))
    return np.min([apart(first, view) for view in views], axis=0)


def _in_parts(
    apart: Callable[[np.ndarray, np.ndarray], np.ndarray], first: np.ndarray, second: np.ndarray
) -> np.ndarray:
    """`apart` of P and P rows, a part of them at a time."""
    parts = [slice(start, start + _PAIRS_PER_CALL) for start in range(0, len(first), _PAIRS_PER_CALL)]
    return np.concatenate([np.empty(0), *(apart(first[part], second[part]) for part in parts)])


def _mean_difference(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """The mean absolute difference of P pairs of images uint8 P×S×S×3, float64 P."""
    # Of unsigned numbers, the larger less the smaller.
    return (np.maximum(first, second) - np.minimum(first, second)).mean(axis=(1, 2, 3))


def _at(sets: Sequence[np.ndarray], offsets: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """The images at rows of all sets."""
    images = np.empty((len(rows), *sets[0].shape[1:]), np.uint8)
    which = np.searchsorted(offsets, rows, side="right") - 1
    for number, part in enumerate(sets):
        chosen = which == number
        images[chosen] = part[rows[chosen] - offsets[number]]
    return images
