"""What a user is told of the tiles that were loaded: how many there are, and which of them occur twice."""

from __future__ import annotations

from itertools import combinations

import numpy as np

from histodistill.selection.summaries import counted
from histodistill.training.data.same_tiles import digests_of_repeats
from histodistill.training.data.tiles import HELD_OUT, TileSource
from histodistill.training.running.notes import tell, warn


# Classes whose tiles are counted one by one in a line.
_CLASSES_SHOWN = 12


def tell_of_tiles(source: TileSource) -> None:
    """Tells in one line how many tiles of each class there are in each split, and warns of tiles that occur twice.

    Tiles are the same if one is the other as it is, turned or mirrored. A tile of one colour, such as an empty one, is
    no copy of another.
    """
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
    """One sentence for each two splits with tiles in common, and one for tiles that train has with several labels."""
    digests = digests_of_repeats(source.splits)
    sentences = []
    for first, second in combinations(source.splits, 2):
        same = np.isin(digests[second].any_way, digests[first].any_way).sum()
        turned = same - np.isin(digests[second].exact, digests[first].exact).sum()
        if same:
            sentences.append(
                f"{same:,} of {counted(len(source.splits[second]), f'{second} tile')} of {source.name} are {first} "
                f"tiles too, {turned:,} of them turned or mirrored: what is measured on them looks better than it is; "
                "take them out of one of the two splits"
            )
    labels = source.splits["train"].labels[digests["train"].rows]
    pairs = np.unique(np.stack([digests["train"].any_way, labels.astype(np.uint64)], axis=1), axis=0)
    keys, counts = np.unique(pairs[:, 0], return_counts=True)
    several = keys[counts > 1]
    if len(several):
        tiles = np.isin(digests["train"].any_way, several).sum()
        names = [repr(source.class_names[int(label)]) for label in pairs[pairs[:, 0] == several[0], 1]]
        sentences.append(
            f"{tiles:,} train tiles of {source.name} occur with several labels, as they are or turned (such as one "
            f"with {' and '.join(names)}): keep each with the label that is right"
        )
    return sentences
