"""Makes a source of what a loader read: checks its splits against each other, and makes those that are not there."""

from __future__ import annotations

from collections.abc import Sequence

from histodistill.training.data.grouping import Grouping
from histodistill.training.data.names import checked_class_names, fault_of_name
from histodistill.training.data.source_checks import check_groups, check_labels, check_shape, groups_in_two
from histodistill.training.data.splits import make_missing_splits
from histodistill.training.data.tiles import SPLITS, Tiles, TileSource
from histodistill.training.running.errors import InputError, one_line, param
from histodistill.training.running.findings import settle


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
    settle(check_labels(name, names, splits))
    height, width = splits["train"].images.shape[1:3]
    for split, tiles in splits.items():
        if tiles.images.shape[1:3] != (height, width):
            found = "x".join(map(str, tiles.images.shape[2:0:-1]))
            raise InputError(
                f"the {split} tiles of {name} are {found} pixels and the train tiles {width}x{height}: give "
                f"{param('image_size')} to bring all to one size"
            )
    settle(check_shape(name, width, height))
    grouping = grouping or Grouping()
    settle(check_groups(name, splits, grouping))
    shared = {group for groups in groups_in_two(splits).values() for group in groups}
    made: tuple[str, ...] = ()
    if hold_out_validation:
        splits, made = make_missing_splits(name, splits, grouping.split_seed)
    ordered = {split: splits[split] for split in SPLITS if split in splits}
    kind = None if splits["train"].groups is None else grouping.kind or "group"
    return TileSource(name, names, ordered, int(height), license, attribution, made, kind, len(shared))
