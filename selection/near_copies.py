"""Which tiles are the same but for small differences: turned, mirrored, saved anew, a little lighter or darker.

Two tiles are near copies if one of the eight symmetries brings the one to within `TOLERANCE` grey levels of the other,
on average over all pixels and channels. Tiles with nothing on them, which would all be near each other, are copies
only where nothing differs; a tile of one colour is no copy of another.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from histodistill.selection.image_rows import Images, batches, join, rows_of
from histodistill.selection.names import SYMMETRIES
from histodistill.selection.views import LEAST_CONTENT, apply_symmetry, grey_deviations


#: Grey levels by which near copies differ at most, on average.
TOLERANCE = 6
# Cells along a side of the coarse grid by which pairs are compared first, symmetry by symmetry or at once.
_CELLS = 6
# Groups of pixels of like rank whose means are compared.
_RANKS = 16
# Tiles whose neighbours are looked for at once, and tiles among which they are, which bounds the memory.
_TILES_PER_CALL, _OTHERS_PER_CALL = 256, 4096
# Pairs whose summaries are compared at once, and bytes of images that are, likewise.
_PAIRS_PER_CALL, _BYTES_PER_CALL = 2048, 2**23
# Where rounding ends: a bound that is missed by this much may hold.
_HAIR = 1e-3


@dataclass(frozen=True, eq=False)
class NearCopies:
    """The near copies among N tiles; `find_near_copies` finds them, and any parts of the tiles have theirs of it.

    Attributes:
        first: int64 N, the first of the tiles that are the same as this one in one of the symmetries: itself, where
            there is none before it.
        pairs: int64 P×2, rows i < j of such first tiles that are near copies.
    """

    first: np.ndarray
    pairs: np.ndarray

    def at(self, rows: np.ndarray) -> NearCopies:
        """The near copies among some of the tiles, without looking at them once more.

        Args:
            rows: int64 M, none twice; a tile is called by its place in them.
        """
        kinds, firsts, kind = np.unique(self.first[rows], return_index=True, return_inverse=True)
        place = np.full(len(self.first), -1)
        place[kinds] = firsts
        pairs = place[self.pairs]
        pairs = np.sort(pairs[(pairs >= 0).all(axis=1)], axis=1)
        return NearCopies(firsts[kind], np.unique(pairs, axis=0))

    def pairs_among(self, sets: Sequence[np.ndarray]) -> np.ndarray:
        """What `near_pairs` gives for some of the tiles, without looking at them once more.

        Args:
            sets: int64 M each, rows of the tiles; none is in two sets, or twice in one.

        Returns:
            int64 Q×2, i < j, sorted; a tile is called by its place in all sets, one after the other.
        """
        among = self.at(np.concatenate([np.empty(0, np.int64), *sets]))
        set_of = np.repeat(np.arange(len(sets)), [len(each) for each in sets])
        # Kinds of tiles, and in `order` the places of all that are of the first kind, of the second, and so on.
        kinds, kind, counts = np.unique(among.first, return_inverse=True, return_counts=True)
        order, starts = np.argsort(kind, kind="stable"), np.cumsum(counts) - counts
        pairs = np.searchsorted(kinds, among.pairs)
        # Most kinds are of a single tile.
        single = (counts == 1)[pairs].all(axis=1)
        found = [order[starts[pairs[single]]]]
        same = np.repeat(np.flatnonzero(counts > 1), 2).reshape(-1, 2)
        for one, other in np.concatenate([same, pairs[~single]]).tolist():
            mine, theirs = (order[starts[each] : starts[each] + counts[each]] for each in (one, other))
            found += [
                _all_pairs(mine, _first_of_sets(theirs, set_of)),
                _all_pairs(theirs, _first_of_sets(mine, set_of)),
            ]
        joined = np.sort(np.concatenate(found), axis=1)
        return np.unique(joined[joined[:, 0] < joined[:, 1]], axis=0)


def near_pairs(sets: Sequence[Images], tolerance: float = TOLERANCE) -> np.ndarray:
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
    return pairs_of_sets(sets, lambda images: find_near_copies(images, tolerance))


def pairs_of_sets(sets: Sequence[Images], find: Callable[[Images], NearCopies]) -> np.ndarray:
    """What `near_pairs` gives for several sets, of the copies that `find` finds among all their images."""
    if not sum(map(len, sets)):
        return np.empty((0, 2), np.int64)
    ends = np.cumsum([len(images) for images in sets])
    return find(join(sets)).pairs_among(np.split(np.arange(ends[-1]), ends[:-1]))


def find_near_copies(
    images: Images, tolerance: float = TOLERANCE, seen: Callable[[int], object] = lambda count: None
) -> NearCopies:
    """The near copies among N tiles.

    Memory grows with about 1,300 bytes a tile, whatever its size.

    Args:
        images: uint8 N×S×S×3.
        tolerance: Grey levels by which a pair differs at most on average, 0 to 255.
        seen: Called with how many tiles more have been compared, until these are all N.
    """
    grids, ranks, contrasts = _summaries(images)
    first = _first_of_same(images, ranks, np.flatnonzero(contrasts > 0))
    found = [np.empty((0, 2), np.int64)]
    if tolerance > 0:
        # A tile with nothing on it has no copies but those that are the same.
        rows = np.flatnonzero((contrasts >= LEAST_CONTENT) & (first == np.arange(len(first))))
        seen(len(images) - len(rows))
        for pairs, symmetries in _candidates(grids, ranks, rows, tolerance, seen):
            found.append(pairs[_differences(images, pairs, symmetries) <= tolerance])
    return NearCopies(first, np.unique(np.sort(np.concatenate(found), axis=1), axis=0))


def tile_keys(images: Images) -> np.ndarray:
    """One number for each of N images, the same for images that are the same but for one of the eight symmetries.

    Args:
        images: uint8 N×S×S×3.

    Returns:
        uint64 N.
    """
    keys = []
    for part in batches(images):
        views = [np.ascontiguousarray(apply_symmetry(part, symmetry)) for symmetry in range(SYMMETRIES)]
        for i in range(len(part)):
            # The lowest of its views is the same for all that are the same.
            lowest = min(view[i].tobytes() for view in views)
            keys.append(int.from_bytes(hashlib.blake2b(lowest, digest_size=8).digest(), "big"))
    return np.array(keys, dtype=np.uint64)


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


def _first_of_same(images: Images, ranks: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """`NearCopies.first` of N images.

    Args:
        images: The images.
        ranks: See `_summaries`.
        rows: The tiles that can have copies.
    """
    first = np.arange(len(images))
    # Only tiles of the very same ranks, hardly any of most, can be the same.
    _, kind, counts = np.unique(ranks[rows], axis=0, return_inverse=True, return_counts=True)
    rows = rows[counts[kind.reshape(-1)] > 1]
    _, place, kind = np.unique(tile_keys(rows_of(images, rows)), return_index=True, return_inverse=True)
    first[rows] = rows[place[kind]]
    return first


def _first_of_sets(places: np.ndarray, set_of: np.ndarray) -> np.ndarray:
    """The first of each set among some places, which are sorted."""
    return places[np.unique(set_of[places], return_index=True)[1]]


def _all_pairs(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Each of N with each of M: int64 N·M×2."""
    return np.stack(np.meshgrid(first, second, indexing="ij"), axis=-1).reshape(-1, 2)


def _candidates(
    grids: np.ndarray, ranks: np.ndarray, rows: np.ndarray, tolerance: float, seen: Callable[[int], object]
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Pairs of rows, int64 P×2, each with a symmetry of the second, int64 P, in which they may be near copies.

    Among them are all near copies: their summaries differ by no more than their pixels.

    Args:
        grids, ranks: See `_summaries`.
        rows: The tiles that are compared.
        tolerance: The greatest difference of near copies.
        seen: See `find_near_copies`.
    """
    from scipy.spatial.distance import cdist

    limit = tolerance + _HAIR
    orbits, sorted_orbits = _orbits(grids)
    # In order of lightness, by which a tile has all its copies nearby.
    rows = rows[np.argsort(orbits[rows].sum(axis=1), kind="stable")]
    lightness = orbits[rows].sum(axis=1)
    for start in range(0, len(rows), _TILES_PER_CALL):
        some = rows[start : start + _TILES_PER_CALL]
        end = int(np.searchsorted(lightness, lightness[start + len(some) - 1] + limit, side="right"))
        for place in range(start, end, _OTHERS_PER_CALL):
            others = rows[place : min(end, place + _OTHERS_PER_CALL)]
            near = cdist(orbits[some], orbits[others], "cityblock") <= limit
            left, right = np.nonzero(np.triu(near, start + 1 - place))  # each pair once
            pairs = np.stack([some[left], others[right]], axis=1)
            found = [
                _near_symmetries(grids, (ranks, sorted_orbits), pairs[part : part + _PAIRS_PER_CALL], limit)
                for part in range(0, len(pairs), _PAIRS_PER_CALL)
            ]
            if found:
                yield np.concatenate([near for near, _ in found]), np.concatenate([each for _, each in found])
        seen(len(some))


def _near_symmetries(
    grids: np.ndarray, invariants: Sequence[np.ndarray], pairs: np.ndarray, limit: float
) -> tuple[np.ndarray, np.ndarray]:
    """Of pairs P×2 those that `_candidates` gives: near by what no symmetry changes, and by grids in a symmetry."""
    for summary in invariants:
        pairs = pairs[np.abs(summary[pairs[:, 0]] - summary[pairs[:, 1]]).sum(axis=1) <= limit]
    own, others = grids[pairs[:, 0]], grids[pairs[:, 1]]
    views = (apply_symmetry(others, symmetry) for symmetry in range(SYMMETRIES))
    symmetries, places = np.nonzero([np.abs(own - view).sum(axis=(1, 2, 3)) <= limit for view in views])
    return pairs[places], symmetries


def _summaries(images: Images) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
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
    starts = np.linspace(0, side * side, min(_RANKS, side * side), endpoint=False).astype(int)
    values = np.float32(3 * side * side)
    grids = np.empty((count, cells, cells, 3), np.float32)
    ranks = np.empty((count, 3 * len(starts)), np.float32)
    contrasts = np.empty(count)
    start = 0
    for part in batches(images, min(_TILES_PER_CALL, _images_per_call(images))):
        rows = slice(start, start + len(part))
        start += len(part)
        summed = np.add.reduceat(np.add.reduceat(part.astype(np.float32), edges[:-1], axis=1), edges[:-1], axis=2)
        grids[rows] = summed / values
        ordered = np.ascontiguousarray(part.reshape(len(part), side * side, 3).transpose(0, 2, 1))
        ordered.sort(axis=2, kind="stable")  # which counts small numbers, and takes a fraction of the time
        summed = np.add.reduceat(ordered, starts, axis=2, dtype=np.float32)
        ranks[rows] = summed.reshape(len(part), -1) / values
        varies = (part != part[:, :1, :1]).any(axis=(1, 2, 3))
        contrasts[rows] = np.where(varies, grey_deviations(part), 0)
    return grids, ranks, contrasts


def _orbits(grids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What no symmetry changes of grids N×K×K×3: of the cells that symmetries bring to each other, sums and order.

    Returns:
        The sums, float32 N×O, and the same cells in order of their values, float32 N×K·K·3. The differences of both
        bound that of two grids in any symmetry.
    """
    cells = grids.shape[1]
    place = np.minimum(np.arange(cells), cells - 1 - np.arange(cells))
    orbit = np.minimum.outer(place, place) * cells + np.maximum.outer(place, place)
    groups = [grids[:, orbit == each] for each in np.unique(orbit)]
    sums = np.concatenate([group.sum(axis=1) for group in groups], axis=1)
    return sums, np.concatenate([np.sort(group, axis=1).reshape(len(grids), -1) for group in groups], axis=1)


def _differences(images: Images, pairs: np.ndarray, symmetries: np.ndarray) -> np.ndarray:
    """The mean absolute difference of pixels of P pairs, the second of each in one of the symmetries: float64 P."""
    apart = np.empty(len(pairs))
    step = _images_per_call(images)
    for symmetry in np.unique(symmetries).tolist():
        places = np.flatnonzero(symmetries == symmetry)
        for start in range(0, len(places), step):
            some = places[start : start + step]
            first, second = images[pairs[some, 0]], apply_symmetry(images[pairs[some, 1]], symmetry)
            # Of unsigned numbers, the larger less the smaller.
            apart[some] = (np.maximum(first, second) - np.minimum(first, second)).mean(axis=(1, 2, 3))
    return apart


def _images_per_call(images: Images) -> int:
    """How many of the images are looked at, at once."""
    return max(1, _BYTES_PER_CALL // int(np.prod(images.shape[1:])))
