"""Tiles of which there are no pixels: which of them are an error, and what a user is told of the others."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from histodistill.selection.summaries import counted
from histodistill.training.data.listing import ListedSplit
from histodistill.training.data.names import some
from histodistill.training.data.pixel_source import LeftOut, Why
from histodistill.training.data.reading import Reading
from histodistill.training.running.errors import InputError, param
from histodistill.training.running.notes import is_step_of_distill, tell, warn


#: What is said of tiles that are left out.
SAID: dict[Why, str] = {
    "unreadable": "cannot be read",
    "outside": "lie outside their slide",
    "glass": "show bare glass",
}
# Tiles that cannot be read which are listed one by one.
_MOST_LISTED = 20


def check_left_out(name: str, left_out: Mapping[int, LeftOut], count: int, reading: Reading) -> None:
    """Refuses tiles that cannot be read, unless a user wants them to be left out and they are few.

    Args:
        name: What the source is called.
        left_out: Number of a tile → why it is not there.
        count: Number of all tiles.
        reading: What was said of them.

    Raises:
        InputError: Tells of the first.
    """
    unreadable = [tile for tile in left_out.values() if tile.why == "unreadable"]
    if not unreadable:
        return
    if not reading.skip_unreadable:
        raise unreadable[0].error
    if len(unreadable) > reading.max_unreadable * count:
        raise InputError(
            f"{len(unreadable):,} of {count:,} tiles of {name} cannot be read, more than {param('max_unreadable')}="
            f"{reading.max_unreadable:g} of them: mend them, or give more; the first: {unreadable[0].error.marked()}"
        ) from unreadable[0].error


def tell_of_left_out(
    name: str, class_names: Sequence[str], splits: Mapping[str, ListedSplit], left_out: Mapping[int, LeftOut]
) -> None:
    """Tells how many tiles of each class are left out and why, and lists those that cannot be read.

    Args:
        name: What the source is called.
        class_names: The name of each label.
        splits: All tiles of each split, which are numbered one split after the other.
        left_out: Number of a tile → why it is not there.
    """
    if not left_out or is_step_of_distill():
        return
    labels = np.concatenate([split.labels for split in splits.values()])
    for why, said in SAID.items():
        rows = [row for row, tile in sorted(left_out.items()) if tile.why == why]
        if not rows:
            continue
        by_class = Counter(labels[rows].tolist())
        classes = some([f"{class_names[label]} {number:,}" for label, number in sorted(by_class.items())])
        line = f"{len(rows):,} of {counted(len(labels), 'tile')} of {name} {said} and are left out ({classes})"
        if why != "unreadable":
            tell(line)
            continue
        warn(line)
        tell_each([left_out[row] for row in rows])


def tell_each(tiles: Sequence[LeftOut]) -> None:
    """Lists tiles that are left out, but no more than people read."""
    for tile in tiles[:_MOST_LISTED]:
        tell(f"left out: {tile.error.for_command_line()}")
    if len(tiles) > _MOST_LISTED:
        tell(f"left out: {len(tiles) - _MOST_LISTED:,} more")
