"""What only the pixels of tiles tell: which are copies of others, and which show nothing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np

from histodistill.selection.image_rows import Images
from histodistill.selection.names import SYMMETRIES
from histodistill.selection.near_copies import connected
from histodistill.selection.summaries import counted
from histodistill.selection.views import apply_symmetry, has_content
from histodistill.training.data.tiles import Tiles
from histodistill.training.running.findings import PASS, WARN, Finding


#: What findings are about, as their lines begin.
COPIES, CONTENT = "copies", "content"
# Share of the tiles of a split from which on it is told that they have copies in it, or show nothing.
_MANY = 0.01
# Pairs of tiles that are compared at once, which bounds the memory.
_PAIRS_PER_CALL = 2048


@dataclass(frozen=True)
class Duplicates:
    """Near copies among the tiles of a source, see `selection.repeats`: turned, saved anew, moved, cropped.

    Attributes:
        within: Split → tiles that could be left out of it, and one of each of its near copies would still be there.
        across: First and second split → tiles of the second with a near copy in the first.
        exact: First and second split → those of them that are the same but for being turned or mirrored.
        several_labels: Tiles with a near copy of another class.
    """

    within: dict[str, int]
    across: dict[tuple[str, str], int]
    exact: dict[tuple[str, str], int]
    several_labels: int

    def to_json(self) -> dict[str, Any]:
        """The same as JSON can hold it."""
        across = [
            {"splits": list(pair), "tiles": count, "exact": self.exact[pair]} for pair, count in self.across.items()
        ]
        return {"within": self.within, "across": across, "several_labels": self.several_labels}


def count_duplicates(splits: Mapping[str, Tiles], pairs: np.ndarray) -> Duplicates:
    """The numbers of near copies among the tiles of all splits, which are of one size.

    Args:
        splits: The tiles of each split.
        pairs: What `repeated_pairs` finds among their images, split after split.
    """
    images = [tiles.images for tiles in splits.values()]
    labels = np.concatenate([tiles.labels for tiles in splits.values()])
    starts = np.cumsum([0, *map(len, images)])
    split_of = np.searchsorted(starts, pairs, side="right") - 1
    within, across, exact = {}, {}, {}
    for number, (name, tiles) in enumerate(splits.items()):
        own = pairs[(split_of == number).all(axis=1)] - starts[number]
        within[name] = len(tiles) - len(np.unique(connected(own, len(tiles))))
    for (first, one), (second, other) in combinations(enumerate(splits), 2):
        shared = pairs[(split_of[:, 0] == first) & (split_of[:, 1] == second)]
        same = shared[_is_same(splits[one].images, splits[other].images, *(shared - starts[[first, second]]).T)]
        across[one, other], exact[one, other] = len(np.unique(shared[:, 1])), len(np.unique(same[:, 1]))
    several = np.unique(pairs[labels[pairs[:, 0]] != labels[pairs[:, 1]]])
    return Duplicates(within, across, exact, len(several))


def _is_same(first: Images, second: Images, rows: np.ndarray, other_rows: np.ndarray) -> np.ndarray:
    """Which of P pairs of images, by their rows, are the same in one of the symmetries: bool P."""
    found = np.zeros(len(rows), dtype=bool)
    for start in range(0, len(rows), _PAIRS_PER_CALL):
        part = slice(start, start + _PAIRS_PER_CALL)
        one, other = first[rows[part]], second[other_rows[part]]
        views = (apply_symmetry(other, symmetry) for symmetry in range(SYMMETRIES))
        found[part] = np.any([(one == view).all(axis=(1, 2, 3)) for view in views], axis=0)
    return found


def look_at_pixels(splits: Mapping[str, Tiles], duplicates: Duplicates) -> Iterator[Finding]:
    """What is wrong with the tiles themselves, if anything.

    Args:
        splits: The tiles of each split.
        duplicates: Those among them.
    """
    yield from _look_across(splits, duplicates)
    for split, copies in duplicates.within.items():
        count = len(splits[split])
        told = f"{copies:,} of {counted(count, f'{split} tile')} are near copies of another one in it"
        if copies > _MANY * count:
            mend = "they make classes look larger and more alike than they are; keep one of each"
            yield Finding(COPIES, WARN, told, mend)
        else:
            yield Finding(COPIES, PASS, told)
    if duplicates.several_labels:
        yield Finding(
            COPIES,
            WARN,
            f"{counted(duplicates.several_labels, 'tile has a near copy', 'tiles have a near copy')} of another class",
            "keep each with the label that is right",
        )
    for split, tiles in splits.items():
        yield _look_at_content(split, tiles)


def _look_across(splits: Mapping[str, Tiles], duplicates: Duplicates) -> Iterator[Finding]:
    for (first, second), copies in duplicates.across.items():
        if copies:
            yield Finding(
                COPIES,
                WARN,
                f"{copies:,} of {counted(len(splits[second]), f'{second} tile')} are near copies of {first} tiles, "
                f"{duplicates.exact[first, second]:,} of them the same but for being turned or mirrored",
                "what is measured on them looks better than it is; take them out of one of the two splits",
            )
    if len(splits) > 1 and not any(duplicates.across.values()):
        yield Finding(COPIES, PASS, "no two splits share a tile, turned, moved or a little changed")


def _look_at_content(split: str, tiles: Tiles) -> Finding:
    empty = len(tiles) - int(has_content(tiles.images).sum())
    told = f"{empty:,} of {counted(len(tiles), f'{split} tile')} show next to nothing"
    if empty <= _MANY * len(tiles):
        return Finding(CONTENT, PASS, told)
    return Finding(CONTENT, WARN, told, "leave them out, unless a class is of such tiles")
