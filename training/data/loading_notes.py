"""What a user is told of the tiles that were loaded: how many there are, and which of them occur twice."""

from __future__ import annotations

from itertools import combinations

import numpy as np

from histodistill.selection.summaries import counted
from histodistill.training.data.tile_copies import pairs_of_copies
from histodistill.training.data.tiles import HELD_OUT, TileSource
from histodistill.training.running.notes import is_step_of_distill, tell, warn


# Classes whose tiles are counted one by one in a line.
_CLASSES_SHOWN = 12


def tell_of_tiles(source: TileSource) -> None:
    """Tells in one line how many tiles of each class there are in each split, and warns of tiles that occur twice.

    Which tiles count as the same, `selection.repeats` says. A step of `distill`, which told it already, does not
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
    """One sentence for each two splits with near copies in common, and one for those of train with several labels.

    Tiles that are held out for the audit count as train, of which they are.
    """
    parts = list(source.splits.values())
    pairs = pairs_of_copies(parts)
    starts = np.cumsum([0, *map(len, parts)])
    of_part = np.searchsorted(starts, pairs, side="right") - 1
    called = np.array(["train" if name == HELD_OUT else name for name in source.splits])[of_part]
    is_equal = np.array(
        [
            np.array_equal(*(parts[part].images[row - starts[part]] for part, row in zip(*pair, strict=True)))
            for pair in zip(of_part, pairs, strict=True)
        ],
        dtype=bool,
    )
    sentences = []
    given = [name for name in source.splits if name != HELD_OUT]
    for first, second in combinations(given, 2):
        between = (called == [first, second]).all(axis=1) | (called == [second, first]).all(axis=1)
        if not between.any():
            continue
        mine = called == second
        same = len(np.unique(pairs[mine & between[:, None]]))
        changed = same - len(np.unique(pairs[mine & (between & is_equal)[:, None]]))
        count = sum(len(tiles) for name, tiles in source.splits.items() if name == second)
        sentences.append(
            f"{same:,} of {counted(count, f'{second} tile')} of {source.name} are {first} tiles too, {changed:,} of "
            "them turned, mirrored, moved or a little changed: what is measured on them looks better than it is; take "
            "them out of one of the two splits"
        )
    labels = np.concatenate([tiles.labels for tiles in parts])[pairs]
    several = np.flatnonzero((called == "train").all(axis=1) & (labels[:, 0] != labels[:, 1]))
    if len(several):
        shown = [repr(source.class_names[label]) for label in sorted(labels[several[0]].tolist())]
        sentences.append(
            f"{len(np.unique(pairs[several])):,} train tiles of {source.name} occur with several labels, as they are, "
            f"turned, moved or a little changed (such as one with {' and '.join(shown)}): keep each with the label "
            "that is right"
        )
    return sentences
