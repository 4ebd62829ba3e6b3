"""What a user is told of the tiles that were loaded: how many there are, and which of them occur twice."""

from __future__ import annotations

from itertools import combinations

import numpy as np

from histodistill.selection.near_copies import near_pairs
from histodistill.selection.summaries import counted
from histodistill.training.data.tiles import HELD_OUT, TileSource
from histodistill.training.running.notes import is_step_of_distill, tell, warn


# Classes whose tiles are counted one by one in a line.
_CLASSES_SHOWN = 12


def tell_of_tiles(source: TileSource) -> None:
    """Tells in one line how many tiles of each class there are in each split, and warns of tiles that occur twice.

    Which tiles count as the same, `selection.near_copies` says. A step of `distill`, which told it already, does not
    look for them.
    """
    if is_step_of_distill():
        return
    tell(tiles_in_one_line(source))
    for warning in warnings_of_copies(source):
        warn(warning)


def tiles_in_one_line(source: TileSource) -> str:
    """Such as `tiles of phantom, 28x28 px: train 6 (adipose 3, glands 3), test 2 (adipose 1, glands 1)`."""
    splits = []
    for name, tiles in source.splits.items():
        counts = np.bincount(tiles.labels, minlength=len(source.class_names))
        shown = [f"{c} {n:,}" for c, n in zip(source.class_names[:_CLASSES_SHOWN], counts, strict=False)]
        if len(counts) > _CLASSES_SHOWN:
            rest = counts[_CLASSES_SHOWN:]
            least, most = f"{rest.min():,}", f"{rest.max():,}"
            each = least if least == most else f"{least} to {most}"
            shown.append(f"and {each} of each of {counted(len(rest), 'more class', 'more classes')}")
        if name in source.made:
            shown[-1] += "; a tenth of train, for there is no such split"
        called = "held out for the audit" if name == HELD_OUT else name
        splits.append(f"{called} {len(tiles):,} ({', '.join(shown)})")
    missing = [f"no {name}" for name in ("validation", "test") if name not in source.splits]
    size = f"{source.image_size}x{source.image_size} px"
    return f"tiles of {source.name}, {size}: {', '.join(splits + missing)}"


def warnings_of_copies(source: TileSource) -> list[str]:
    """One sentence for each two splits with near copies in common, and one for those of train with several labels."""
    names, splits = list(source.splits), list(source.splits.values())
    pairs = near_pairs([tiles.images for tiles in splits])
    starts = np.cumsum([0, *map(len, splits)])
    of_split = np.searchsorted(starts, pairs, side="right") - 1
    sentences = []
    for first, second in combinations(range(len(splits)), 2):
        between = pairs[(of_split[:, 0] == first) & (of_split[:, 1] == second)] - starts[[first, second]]
        if not len(between):
            continue
        same = len(np.unique(between[:, 1]))
        exact = between[_are_equal(splits[first].images, splits[second].images, between), 1]
        sentences.append(
            f"{same:,} of {counted(len(splits[second]), f'{names[second]} tile')} of {source.name} are {names[first]} "
            f"tiles too, {same - len(np.unique(exact)):,} of them turned, mirrored or a little changed: what is "
            "measured on them looks better than it is; take them out of one of the two splits"
        )
    within = pairs[(of_split == names.index("train")).all(axis=1)] - starts[names.index("train")]
    labels = source.splits["train"].labels
    several = within[labels[within[:, 0]] != labels[within[:, 1]]]
    if len(several):
        shown = [repr(source.class_names[label]) for label in sorted(labels[several[0]].tolist())]
        sentences.append(
            f"{len(np.unique(several)):,} train tiles of {source.name} occur with several labels, as they are, turned "
            f"or a little changed (such as one with {' and '.join(shown)}): keep each with the label that is right"
        )
    return sentences


def _are_equal(first: np.ndarray, second: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    """Which of P×2 pairs of rows of two sets of images are the same in every pixel, bool P."""
    return np.array([np.array_equal(first[one], second[other]) for one, other in pairs], dtype=bool)
