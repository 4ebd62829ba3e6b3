"""Is a part of an image a part of a real tile, however it was turned, moved, enlarged or pasted?

Keypoints of an image are looked for among those of all tiles; a tile that has some like them is laid on the image as
these say, and moved until it fits best; how well it then fits, and that this is no chance, is the score. No other tile
has a part in it, so that it does not matter whether a tile is there several times.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import numpy as np

from histodistill.selection.image_rows import Images
from histodistill.selection.keypoints import (
    NUM_HARMONICS,
    WIDTH,
    Keypoints,
    describe,
    find_keypoints,
    harmonics_at,
    turns_between,
)
from histodistill.selection.names import SYMMETRIES
from histodistill.selection.nearest_first import NearestOfFirst
from histodistill.selection.placements import PLACEMENT, Comparison, outlines
from histodistill.selection.threads import in_threads
from histodistill.selection.views import all_grey_pictures, grey_pictures, resize
from histodistill.selection.whitening import evened
from histodistill.selection.windows import WHOLE, placements_of


# Pixels along a side at which pictures are compared; larger ones are reduced to it.
_SIDE = 32
# Enlargements at which keypoints of tiles are found: small parts have some only where they are enlarged.
_LEVELS = (2.0, 1.0)
# Enlargements of an image whose keypoints are looked for at each level, a quarter of an octave apart: what a tile
# shows may be half as large on the image up to twice as large.
_STEP = 2**0.25
_LEVEL_STEPS = (range(-4, 1), range(-1, 5))
_ENLARGEMENTS = {
    level: tuple(level * _STEP**k for k in steps) for level, steps in zip(_LEVELS, _LEVEL_STEPS, strict=True)
}
_ZOOM_STEPS = range(min(map(min, _LEVEL_STEPS)), 1 + max(map(max, _LEVEL_STEPS)))
# Keypoints of tiles that are found for one of an image; how near the last of them is tells what is near by chance.
_NEIGHBOURS = 20
# Tiles that are laid on an image, and placements of each: those with most votes.
_TILES, _PLACEMENTS = 30, 4
# Placements of an image that are refined, and of these that are strained, too: sides of another ratio, sheared.
_REFINED, _STRAINED = 6, 2
# Keypoints of tiles up to which those of an image are compared with all of them; more are sorted into cells.
_MOST_EXHAUSTIVE = 10_000
# Keypoints in a cell on average, unless there are more cells than these, and cells that are searched.
_POINTS_PER_CELL, _MOST_CELLS, _CELLS_SEARCHED = 256, 8192, 8
# A keypoint of an image, one of a tile that is like it, and how like: 1 for the same, 0 for no more than by chance.
_VOTE = np.dtype(
    [
        ("image", np.int64),
        ("tile", np.int64),
        ("enlargement", np.float64),
        ("level", np.float64),
        ("place", np.int64, 2),
        ("tile_place", np.int64, 2),
        ("weight", np.float64),
    ]
)
# Pictures of tiles whose keypoints are found at once.
_TILES_PER_CALL = 256


class FoundParts(NamedTuple):
    """What was found for N images.

    Attributes:
        score: float64 N, from 0 on, large for a copy: see `Comparison`.
        tile: int64 N, the tile that the score is about.
        box: int64 N×4, where an image shows what the tile does, as far as it lies on the tile: first row, first
            column, height and width in px of pictures of `PartIndex.side`.
        placement: `PLACEMENT` N, how it lies there; of images that nothing was found for, zeros, as their boxes.
    """

    score: np.ndarray
    tile: np.ndarray
    box: np.ndarray
    placement: np.ndarray


class PartIndex:
    """Real tiles, ready to be searched for parts of images.

    Args:
        images: uint8 N×S×S×3, the tiles; they are read a part at a time, and larger ones once more where an image is
            laid on them.
        few: int64 F, those of the tiles by whose keypoints cells are made.

    Attributes:
        side: Pixels along a side of the pictures that are compared until details are.

    Memory: about 100 keypoints of a tile, of 70 bytes each where they are in cells, and a grey picture of 2 kB.
    """

    def __init__(self, images: Images, few: np.ndarray):
        self.side, self._images = min(images.shape[1], _SIDE), images
        # Keypoints are found on pictures of as many pixels as the largest enlargement has. In the end these tell how
        # alike details are, too.
        self._fine_side = min(images.shape[1], round(self.side * max(_LEVELS)))
        self._pictures = fine = all_grey_pictures(images, self._fine_side)
        if self._fine_side != self.side:
            self._pictures = all_grey_pictures(images, self.side)
        self._levels = [_Level(fine, self.side, level, few) for level in _LEVELS]

    def search(self, images: np.ndarray, num_tiles: int, likely: np.ndarray | None = None) -> FoundParts:
        """Looks for images among the first tiles.

        Args:
            images: uint8 N×S×S×3 of the size of the tiles; all are searched for at once, so they should be few.
            num_tiles: At least 1.
            likely: `PLACEMENT`s that are tried, too, in px of pictures of `side`.
        """
        pictures = fine = grey_pictures(images, self.side)
        if self._fine_side != self.side:
            fine = grey_pictures(images, self._fine_side)
        placements = self._proposed(fine, num_tiles)
        if likely is not None:
            placements = np.concatenate([placements, likely])
        return self._best(pictures, fine, placements)

    def _proposed(self, pictures: np.ndarray, num_tiles: int) -> np.ndarray:
        """Placements of images, grey pictures, on tiles that have keypoints like theirs."""
        votes = np.concatenate([level.votes(pictures, self.side, num_tiles) for level in self._levels])
        votes = votes[_with_most_votes(votes)]
        tiles, row = np.unique(votes["tile"], return_inverse=True)
        shown = self._pictures[tiles].astype(np.float32)
        own, other = np.empty((2, len(votes), NUM_HARMONICS), np.complex64)
        for enlargement in np.unique(votes["enlargement"]):
            rows = np.flatnonzero(votes["enlargement"] == enlargement)
            enlarged = resize(pictures, round(self.side * enlargement))
            own[rows], _ = harmonics_at(enlarged, votes["image"][rows], votes["place"][rows])
        for level in _LEVELS:
            rows = np.flatnonzero(votes["level"] == level)
            enlarged = resize(shown, round(self.side * level))
            other[rows], _ = harmonics_at(enlarged, row[rows], votes["tile_place"][rows])
        placements = np.zeros(len(votes), PLACEMENT)
        placements["image"], placements["tile"] = votes["image"], votes["tile"]
        placements["turn"], placements["mirrored"] = turns_between(own, other)
        # Whole pixels are what pictures are enlarged to.
        zooms = [np.round(self.side * votes[name]) / self.side for name in ("enlargement", "level")]
        placements["zoom"] = zooms[0] / zooms[1]
        for name, zoom in zip(("place", "tile_place"), zooms, strict=True):
            at = (votes[name] + 0.5) / zoom[:, None] - 0.5
            prefix = name.removesuffix("place")
            placements[f"{prefix}row"], placements[f"{prefix}column"] = at.T
        return placements

    def _best(self, pictures: np.ndarray, fine: np.ndarray, placements: np.ndarray) -> FoundParts:
        """The best of the placements of each image, refined; `fine` are its pictures with more pixels."""
        count = len(pictures)
        score, tile, box = np.zeros(count), np.zeros(count, np.int64), np.zeros((count, 4), np.int64)
        best_placement = np.zeros(count, PLACEMENT)
        if not len(placements):
            return FoundParts(score, tile, box, best_placement)
        tiles, row = np.unique(placements["tile"], return_inverse=True)
        placements["tile"] = row
        shown = self._pictures[tiles].astype(np.float32)
        comparison = Comparison(evened(pictures), evened(shown))
        independent = comparison.independent(placements)
        first = comparison.compare(placements, independent, step=2).score
        few = _best_of_each(placements["image"], first, _REFINED)
        placements, independent = placements[few], independent[few]
        placements, likeness = comparison.refine(placements, independent)
        few = _best_of_each(placements["image"], likeness.score, _STRAINED)
        strained, of_strained = comparison.refine(placements[few], independent[few], strain=True)
        placements = np.concatenate([placements, strained])
        boxes = comparison.within(placements, np.concatenate([likeness.box, of_strained.box]))
        in_detail = Comparison(pictures, shown).whitened(placements, boxes)
        if self._fine_side != self.side:
            # Only a copy has the details of larger pictures, too; but noise and blur may have hidden these, and not
            # what is left in smaller ones.
            in_detail = np.sqrt(in_detail * self._in_fine_detail(fine, tiles, placements, boxes))
        best = _best_of_each(placements["image"], in_detail, 1)
        placements = placements[best]
        image = placements["image"]
        score[image], tile[image], box[image] = in_detail[best], tiles[placements["tile"]], boxes[best]
        best_placement[image] = placements
        return FoundParts(score, tile, box, best_placement)

    def _in_fine_detail(
        self, fine: np.ndarray, tiles: np.ndarray, placements: np.ndarray, boxes: np.ndarray
    ) -> np.ndarray:
        """`Comparison.whitened` of fine pictures, which have more pixels than `side`: float64 P.

        Args:
            fine: float32 N×f×f, of the images.
            tiles: int64 M, which placements number from 0 on.
            placements, boxes: P of them, in px of pictures of `side`.
        """
        # Few tiles are asked for, which are read once more, so that such pictures of all need not be kept.
        kept, row = np.unique(placements["tile"], return_inverse=True)
        shown = grey_pictures(self._images[tiles[kept]], self._fine_side)
        zoom = self._fine_side / self.side
        placements = placements.copy()
        placements["tile"] = row
        for name in ("row", "column", "tile_row", "tile_column"):
            placements[name] = (placements[name] + 0.5) * zoom - 0.5
        first, last = (np.round(ends * zoom) for ends in (boxes[:, :2], boxes[:, :2] + boxes[:, 2:]))
        boxes = np.concatenate([first, last - first], axis=1).astype(np.int64)
        return Comparison(fine, shown).whitened(placements, boxes)


def matched_parts(images: np.ndarray, tiles: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """Which part of an image is most like a part of one tile, as `PartIndex` finds it.

    Args:
        images, tiles: uint8 N×S×S×3 each, of which each image is compared with the tile of the same number.

    Returns:
        Of each the outlines of the part on image and tile, see `outlines`.
    """
    found = []
    # Whole, in each symmetry, besides what keypoints say.
    symmetries = np.arange(SYMMETRIES)[None]
    whole = np.zeros((1, SYMMETRIES)), np.zeros_like(symmetries), np.full((1, SYMMETRIES, 3), WHOLE), symmetries
    for image, tile in zip(images, tiles, strict=True):
        index = PartIndex(tile[None], np.zeros(1, np.int64))
        part = index.search(image[None], 1, placements_of(*whole, index.side))
        found.append(outlines(part.placement, part.box[0], index.side))
    return found


class _Level:
    """The keypoints of tiles at one enlargement, ready to be searched.

    Args:
        pictures: float16 N×S×S.
        side: What is enlarged has so many pixels along a side.
        level: The enlargement.
        few: int64 F, the tiles by whose keypoints cells are made.
    """

    def __init__(self, pictures: np.ndarray, side: int, level: float, few: np.ndarray):
        self.level, self._size = level, round(side * level)
        starts = range(0, len(pictures), _TILES_PER_CALL)
        found = list(in_threads(partial(self._described, pictures), starts))
        tiles, places, descriptors = zip(*found, strict=True)
        self._tiles, self._places = np.concatenate(tiles), np.concatenate(places)
        self._search = NearestOfFirst(
            len(self._tiles),
            WIDTH,
            (part.astype(np.float32) for part in descriptors),
            lambda: np.concatenate(
                [
                    describe(self._keypoints(pictures[few[start : start + _TILES_PER_CALL]]).harmonics)
                    for start in range(0, len(few), _TILES_PER_CALL)
                ]
            ),
            most_exhaustive=_MOST_EXHAUSTIVE,
            points_per_cell=_POINTS_PER_CELL,
            cells_searched=_CELLS_SEARCHED,
            most_cells=_MOST_CELLS,
        )

    def _described(self, pictures: np.ndarray, start: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Numbers, places and descriptors of the keypoints of some pictures, from number `start` on."""
        found = self._keypoints(pictures[start : start + _TILES_PER_CALL])
        descriptors = describe(found.harmonics).astype(np.float16)
        return (found.picture + start).astype(np.int32), found.place.astype(np.int16), descriptors

    def _keypoints(self, pictures: np.ndarray) -> Keypoints:
        return find_keypoints(resize(pictures.astype(np.float32), self._size))

    def votes(self, pictures: np.ndarray, side: int, num_tiles: int) -> np.ndarray:
        """The `_VOTE`s of keypoints of grey pictures for the first tiles; an enlargement is that of this side."""
        count = int(np.searchsorted(self._tiles, num_tiles))
        votes = []
        for enlargement in _ENLARGEMENTS[self.level] if count else ():
            found = find_keypoints(resize(pictures, round(side * enlargement)))
            if not len(found.picture):
                continue
            distances, rows = self._search.nearest(describe(found.harmonics), min(_NEIGHBOURS, count), count)
            farthest = np.where(np.isfinite(distances), distances, 0).max(axis=1, keepdims=True)
            weight = 1 - distances / np.maximum(farthest, 1e-9)
            keypoint, number = np.nonzero(weight > 0)
            vote = np.empty(len(keypoint), _VOTE)
            row = rows[keypoint, number]
            vote["image"], vote["place"] = found.picture[keypoint], found.place[keypoint]
            vote["tile"], vote["tile_place"] = self._tiles[row], self._places[row]
            vote["enlargement"], vote["level"], vote["weight"] = enlargement, self.level, weight[keypoint, number]
            votes.append(vote)
        return np.concatenate([np.empty(0, _VOTE), *votes])


def _with_most_votes(votes: np.ndarray) -> np.ndarray:
    """The best votes of an image for the tiles that it gives most, in rows.

    Votes for one tile agree on how much it is enlarged where it is no chance, so only those count that do.
    """
    step = np.round(np.log(votes["enlargement"] / votes["level"]) / np.log(_STEP)).astype(np.int64) - min(_ZOOM_STEPS)
    order = np.lexsort((-votes["weight"], votes["tile"], votes["image"]))
    image, tile, step = votes["image"][order], votes["tile"][order], step[order]
    is_first = np.ones(len(order), dtype=bool)
    is_first[1:] = (image[1:] != image[:-1]) | (tile[1:] != tile[:-1])
    starts = np.flatnonzero(is_first)
    pair = np.cumsum(is_first) - 1
    weights = np.bincount(
        pair * len(_ZOOM_STEPS) + step, votes["weight"][order], minlength=len(starts) * len(_ZOOM_STEPS)
    ).reshape(-1, len(_ZOOM_STEPS))
    weights = weights[:, :-1] + weights[:, 1:]
    best = weights.argmax(axis=1)
    kept = np.zeros(len(starts), dtype=bool)
    kept[_best_of_each(image[starts], weights[np.arange(len(starts)), best], _TILES)] = True
    rows = np.flatnonzero(kept[pair] & ((step == best[pair]) | (step == best[pair] + 1)))
    pair = pair[rows]
    return order[rows[np.arange(len(rows)) - np.searchsorted(pair, pair) < _PLACEMENTS]]


def _best_of_each(image: np.ndarray, score: np.ndarray, count: int) -> np.ndarray:
    """Rows of the highest scores of each image, at most so many; of equal ones the first."""
    order = np.lexsort((-score, image))
    ordered = image[order]
    starts = np.searchsorted(ordered, ordered)
    return order[np.arange(len(order)) - starts < count]
