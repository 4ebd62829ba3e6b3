"""Makes a source of what a loader read: checks its splits against each other, and makes those that are not there."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from histodistill.training.data.grouping import Grouping
from histodistill.training.data.names import checked_class_names, fault_of_name
from histodistill.training.data.splits import check_groups, make_missing_splits
from histodistill.training.data.tiles import MIN_IMAGE_SIZE, SPLITS, Tiles, TileSource
from histodistill.training.running.errors import InputError, one_line, param


def make_source(
    name: str,
    class_names: Sequence[str],
    splits: dict[str, Tiles],
    *,
    license: str | None = None,
    attribution: str | None = None,
    hold_out_validation: bool = True,
    grouping: Grouping | None = None,
) -> TileSource:
    """Makes a source: checks the splits against each other, and makes validation and test where there are none.

    Args:
        name: Short name of the source.
        class_names: The name of each label.
        splits: Tiles by split, "train" among them; they are kept in the order of `SPLITS`.
        license: Licence of the tiles where known.
        attribution: Whom to credit, where known.
        hold_out_validation: Whether parts of train become validation and test where there are no such splits.
        grouping: What was said of the groups.

    Raises:
        InputError: Names that `checked_class_names` refuses, fewer than two classes, a class with no training tile, a
            label that is no class, an empty split, tiles of different size, tiles that are not square, or tiles
            smaller than 8 pixels; groups that are in two splits, or none where the user said where they are.
    """
    fault = fault_of_name(name)
    if fault:
        raise InputError(f"the source {one_line(name)!r} has a name with {fault}: name it in letters of UTF-8")
    names = checked_class_names(name, class_names)
    if "train" not in splits:
        raise InputError(f"{name} has no train split: a source needs one")
    if len(names) < 2:
        raise InputError(f"{name} has only one class ({', '.join(names)}): at least 2 are needed")
    height, width = splits["train"].images.shape[1:3]
    for split, tiles in splits.items():
        _check_split(name, split, tiles, (height, width), len(names))
    _check_shape(name, height, width)
    counts = np.bincount(splits["train"].labels, minlength=len(names))
    if not counts.all():
        empty = int(np.argmin(counts))
        raise InputError(
            f"class {names[empty]!r} (label {empty}) of {name} has no training tile: every class needs one; "
            "add tiles or leave the class out"
        )
    grouping = grouping or Grouping()
    shared = check_groups(name, splits, grouping)
    made: tuple[str, ...] = ()
    if hold_out_validation:
        splits, made = make_missing_splits(name, splits, grouping.split_seed)
    ordered = {split: splits[split] for split in SPLITS if split in splits}
    kind = None if splits["train"].groups is None else grouping.kind or "group"
    return TileSource(name, names, ordered, int(height), license, attribution, made, kind, shared)


def _check_split(name: str, split: str, tiles: Tiles, size: tuple[int, int], num_classes: int) -> None:
    """Checks that a split of the source `name` has tiles, of this height and width, and no label that is no class."""
    if not len(tiles):
        raise InputError(f"the {split} split of {name} is empty: it needs at least one tile")
    if tiles.images.shape[1:3] != size:
        found = "x".join(map(str, tiles.images.shape[2:0:-1]))
        raise InputError(
            f"the {split} tiles of {name} are {found} pixels and the train tiles {size[1]}x{size[0]}: give "
            f"{param('image_size')} to bring all to one size"
        )
    check_labels(name, split, tiles.labels, num_classes)


def check_labels(name: str, split: str, labels: np.ndarray, num_classes: int) -> None:
    """Sees that each label of a split, int64 N, is that of a class.

    Args:
        name: What the source is called.
        split: What the split is called.
        labels: Of one tile at least.
        num_classes: The number of classes.

    Raises:
        InputError: If one is below 0 or too large.
    """
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= num_classes:
        bad = low if low < 0 else high
        raise InputError(
            f"the {split} split of {name} holds the label {bad}: "
            f"labels must be 0 to {num_classes - 1}, one of the {num_classes} classes that train has"
        )


def _check_shape(name: str, height: int, width: int) -> None:
    """Checks that the tiles of a source are square, and not too small."""
    if height != width:
        raise InputError(
            f"the tiles of {name} are {width}x{height} pixels: they must be square; give {param('image_size')} to "
            "resize the shorter side and cut out the centre"
        )
    if height < MIN_IMAGE_SIZE:
        raise InputError(
            f"the tiles of {name} are {width}x{height} pixels: they must be at least {MIN_IMAGE_SIZE}; give a larger "
            f"{param('image_size')} to enlarge them"
        )
