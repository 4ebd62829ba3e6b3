"""Which tiles are there more than once: near copies, and tiles that are moved, cropped or stained a little otherwise.

Data sets are augmented before they are split, slides are cut twice, files are saved anew. Such tiles tell no more than
one of them does, and what is known of one is known of the others: so wherever tiles are counted, drawn or held out,
they are one. `near_copies` compares tiles as they lie; here they are laid on each other, see `Comparison`.

A tile is moved if, laid on another as fits best, it shares most of its area with it, and this explains most of its
grey levels, by more than chance. Tiles that overlap by less are two. Not all such pairs are found, since candidates
are those whose coarse pictures are near: of tiles of `crc5_28` that were moved by up to two pixels both ways, cropped
to 90 %, or compressed and stained otherwise, more than nine in ten.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from histodistill.selection.image_rows import Images, rows_of
from histodistill.selection.near_copies import NearCopies, find_near_copies, pairs_of_sets
from histodistill.selection.placements import Comparison
from histodistill.selection.threads import in_threads
from histodistill.selection.views import all_grey_pictures, has_content
from histodistill.selection.windows import (
    SIDE,
    WHOLE,
    Window,
    WindowIndex,
    images_per_call,
    in_all_symmetries,
    placements_of,
    working_density,
)


# Side of the windows of a tile by which it is found, beside all of it, and how far they lie from the middle.
_ZOOM, _MOVE = 0.95, 0.05
_WINDOWS: tuple[Window, ...] = (
    WHOLE,
    *(
        (_ZOOM, (1 - _ZOOM) / 2 + down, (1 - _ZOOM) / 2 + right)
        for down in (-_MOVE, _MOVE)
        for right in (-_MOVE, _MOVE)
    ),
)
# Windows up to which a tile is compared with all of them, coarsely; of more, those in so many cells.
_MOST_EXHAUSTIVE, _CELLS_SEARCHED = 10_000, 16
# Windows that are proposed for each symmetry, tiles that are looked at of these, and the squared distance of coarse
# pictures up to which they are.
_PROPOSALS, _CANDIDATES, _FARTHEST = 16, 8, 28.0
# The score of a placement from which on it is no chance, see `Comparison`: unseen slides hardly reach it.
_LEAST_SCORE = 45.0
# That from which on it is worth to look for a better one nearby.
_LIKELY_SCORE = 8.0
# The least share of grey levels' variance that must be explained, and of either tile that both must show.
_LEAST_EXPLAINED, _LEAST_SHARED = 0.6, 0.7
# Tiles that are looked for at once, which bounds the memory.
_TILES_PER_CALL = 256


def repeated_pairs(sets: Sequence[Images]) -> np.ndarray:
    """Pairs of repeated tiles among the images of several sets, as `near_pairs` gives pairs of near copies.

    Args:
        sets: uint8 N×S×S×3 each, of one size S; a tile is called by its row in all of them, one after the other.

    Returns:
        int64 P×2, rows i < j, sorted.
    """
    return pairs_of_sets(sets, find_repeats)


def find_repeats(images: Images, seen: Callable[[int], object] = lambda count: None) -> NearCopies:
    """The near copies among N tiles, and beside them the pairs that are moved, cropped or stained otherwise.

    Memory grows with some 3 kB a tile, whatever its size.

    Args:
        images: uint8 N×S×S×3.
        seen: Called with how many tiles more have been compared; all are compared twice.
    """
    near = find_near_copies(images, seen=seen)
    rows = np.flatnonzero((near.first == np.arange(len(images))) & has_content(images))
    seen(len(images) - len(rows))
    moved = rows[_moved_pairs(rows_of(images, rows), seen)]
    return NearCopies(near.first, np.unique(np.concatenate([near.pairs, moved]), axis=0))


def _moved_pairs(tiles: Images, seen: Callable[[int], object]) -> np.ndarray:
    """Pairs of N tiles, none of which is there twice, that are moved, cropped or stained: int64 P×2, i < j."""
    found = [np.empty((0, 2), np.int64)]
    if len(tiles) < 2:
        seen(len(tiles))
        return found[0]
    few = np.arange(0, len(tiles), 4)
    index = WindowIndex(tiles, few, _WINDOWS, most_exhaustive=_MOST_EXHAUSTIVE, cells_searched=_CELLS_SEARCHED)
    pictures = all_grey_pictures(tiles, min(tiles.shape[1], SIDE))
    step = min(_TILES_PER_CALL, images_per_call(tiles))
    starts = range(0, len(tiles), step)
    for start, pairs in zip(
        starts, in_threads(partial(_moved_of_few, tiles, index, pictures, step), starts), strict=True
    ):
        found.append(pairs)
        seen(min(step, len(tiles) - start))
    return np.unique(np.sort(np.concatenate(found), axis=1), axis=0)


def _moved_of_few(tiles: Images, index: WindowIndex, pictures: np.ndarray, step: int, start: int) -> np.ndarray:
    """Pairs of one of `step` tiles, from number `start` on, and any other: int64 P×2, in no order."""
    density = working_density(tiles[start : start + step]).mean(axis=3, keepdims=True)
    candidates = index.candidates(in_all_symmetries(density), len(tiles), _PROPOSALS, _CANDIDATES)
    distances, others = candidates[:2]
    own = np.arange(start, start + len(density))
    distances[(distances > _FARTHEST) | (others == own[:, None])] = np.inf
    placements = placements_of(*candidates, pictures.shape[1])
    pairs = np.stack([own[placements["image"]], placements["tile"]], axis=1)
    kept, placements["tile"] = np.unique(placements["tile"], return_inverse=True)
    if not len(kept):
        return pairs
    shown, of_others = (pictures[rows].astype(np.float32) for rows in (own, kept))
    comparison = Comparison(shown, of_others, spans=(1.0,))
    return pairs[_is_moved(comparison, placements)]


def _is_moved(comparison: Comparison, placements: np.ndarray) -> np.ndarray:
    """Which of P placements, laid as fits best, show that a tile is another one moved: bool P."""
    found, independent = np.zeros(len(placements), dtype=bool), comparison.independent(placements)
    rows = np.flatnonzero(comparison.compare(placements, independent).score >= _LIKELY_SCORE)
    if not len(rows):
        return found
    placements, independent = placements[rows], independent[rows]
    placements, likeness = comparison.refine(placements, independent)
    share = comparison.share_on_tile(placements)
    shared = share * np.minimum(1, placements["zoom"] ** 2)
    explained = comparison.explained(likeness.score, independent * share)
    found[rows] = (likeness.score >= _LEAST_SCORE) & (explained >= _LEAST_EXPLAINED) & (shared >= _LEAST_SHARED)
    return found
