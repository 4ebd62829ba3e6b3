"""What no source may be like, and what is wrong with its groups: seen before tiles are decoded, and again after.

`make_source` refuses by these checks what it was given, and `histodistill inspect` tells what it would refuse. They
take tiles as they are listed, or loaded.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from typing import Protocol

import numpy as np

from histodistill.selection.summaries import counted
from histodistill.training.data.grouping import Grouping
from histodistill.training.data.tiles import MIN_IMAGE_SIZE
from histodistill.training.running.errors import one_line, param
from histodistill.training.running.findings import FAIL, WARN, Finding


#: What findings are about, as their lines begin.
CLASSES, SPLITS, GROUPS, SIZES = "classes", "splits", "groups", "sizes"


class Labelled(Protocol):
    """The tiles of a split: those of `Tiles`, or of a `ListedSplit`."""

    @property
    def labels(self) -> np.ndarray:
        """int64 N."""

    @property
    def groups(self) -> np.ndarray | None:
        """Text N, or None."""

    def __len__(self) -> int: ...


def check_labels(name: str, class_names: Sequence[str], splits: Mapping[str, Labelled]) -> Iterator[Finding]:
    """What is wrong with the classes and splits of a source, if anything.

    Args:
        name: What the source is called.
        class_names: The name of each label.
        splits: Its tiles, by split.
    """
    if "train" not in splits:
        yield Finding(SPLITS, FAIL, f"{name} has no train split", "a source needs one")
        return
    if len(class_names) < 2:
        yield Finding(CLASSES, FAIL, f"{name} has only one class ({', '.join(class_names)})", "at least 2 are needed")
    num_classes = len(class_names)
    for split, tiles in splits.items():
        if not len(tiles):
            yield Finding(SPLITS, FAIL, f"the {split} split of {name} is empty", "it needs at least one tile")
            continue
        low, high = int(tiles.labels.min()), int(tiles.labels.max())
        if low < 0 or high >= num_classes:
            yield Finding(
                CLASSES,
                FAIL,
                f"the {split} split of {name} holds the label {low if low < 0 else high}",
                f"labels must be 0 to {num_classes - 1}, one of the {num_classes} classes that train has",
            )
    missing = np.setdiff1d(np.arange(num_classes), splits["train"].labels)
    if len(missing) and len(splits["train"]):
        first = int(missing[0])
        others = f", nor have {counted(len(missing) - 1, 'other class', 'other classes')}" if len(missing) > 1 else ""
        yield Finding(
            CLASSES,
            FAIL,
            f"class {class_names[first]!r} (label {first}) of {name} has no training tile{others}",
            "every class needs one; add tiles or leave the class out",
        )


def check_shape(name: str, width: int, height: int) -> Iterator[Finding]:
    """What is wrong with the size of all tiles of a source, in pixels, if anything."""
    if height != width:
        yield Finding(
            SIZES,
            FAIL,
            f"the tiles of {name} are {width}x{height} pixels",
            f"they must be square; give {param('image_size')} to resize the shorter side and cut out the centre",
        )
    elif height < MIN_IMAGE_SIZE:
        yield Finding(
            SIZES,
            FAIL,
            f"the tiles of {name} are {width}x{height} pixels",
            f"they must be at least {MIN_IMAGE_SIZE}; give a larger {param('image_size')} to enlarge them",
        )


def check_groups(name: str, splits: Mapping[str, Labelled], grouping: Grouping) -> Iterator[Finding]:
    """What is wrong with the groups of a source, if anything.

    Args:
        name: What the source is called.
        splits: Its tiles, by split, "train" among them.
        grouping: What was said of the groups.
    """
    if splits["train"].groups is None:
        if grouping.was_asked_for:
            yield Finding(GROUPS, FAIL, f"{name} has no groups by {grouping.asked}", "leave it out")
        elif grouping.kind is not None:
            yield Finding(
                GROUPS,
                FAIL,
                f"{param('group_kind')}={grouping.kind} is given and {name} has no groups",
                f"say where they are with {param('group_column')}, {param('group_pattern')} or arrays such as "
                "train_groups",
            )
    with_groups = [split for split, tiles in splits.items() if tiles.groups is not None]
    for split in splits if with_groups else ():
        if split not in with_groups:
            yield Finding(
                GROUPS,
                WARN,
                f"the {split} split of {name} has no groups",
                "whether groups of other splits are in it is not known",
            )
    for (first, second), names in groups_in_two(splits).items():
        told = f"{counted(len(names), 'group is', 'groups are')} in both {first} and {second} of {name}"
        ways_out = (
            f"give each group to one split, or give {param('allow_shared_groups')}, which cards and reports then say"
        )
        end = "cards and reports say so" if grouping.allow_shared else ways_out
        mend = f"what is measured on them looks better than it is; {end}"
        with_name = f"{told} (such as {one_line(names[0])!r}): {mend}"
        yield Finding(GROUPS, WARN if grouping.allow_shared else FAIL, told, mend, with_name)


def groups_in_two(splits: Mapping[str, Labelled]) -> dict[tuple[str, str], list[str]]:
    """The names of groups that two splits have in common, by these splits, of those that have any."""
    names = {split: np.unique(tiles.groups) for split, tiles in splits.items() if tiles.groups is not None}
    both = {pair: np.intersect1d(names[pair[0]], names[pair[1]]).tolist() for pair in combinations(names, 2)}
    return {pair: shared for pair, shared in both.items() if shared}
