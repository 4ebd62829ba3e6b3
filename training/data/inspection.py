"""What a source was understood to hold: tiles and groups by class and split, and the splits that will be made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from histodistill.selection.near_copies import in_order
from histodistill.training.data.listing import ListedSplit, Listing
from histodistill.training.data.pixel_checks import Duplicates
from histodistill.training.data.source_checks import Labelled
from histodistill.training.data.splits import MADE, plan_held_out, plan_missing_splits
from histodistill.training.data.tiles import HELD_OUT
from histodistill.training.running.findings import Finding


@dataclass(frozen=True)
class SplitCounts:
    """How many tiles and groups a split has.

    Attributes:
        tiles: Tiles of it.
        groups: Groups that these are of; None where nothing is known of groups.
        per_class: Class → its tiles.
        groups_per_class: Class → groups that have a tile of it; None as for `groups`.
    """

    tiles: int
    groups: int | None
    per_class: dict[str, int]
    groups_per_class: dict[str, int] | None


def count_split(class_names: Sequence[str], tiles: Labelled) -> SplitCounts:
    """The counts of a split whose labels are those of classes."""
    labels = tiles.labels[(tiles.labels >= 0) & (tiles.labels < len(class_names))]
    per_class = dict(zip(class_names, np.bincount(labels, minlength=len(class_names)).tolist(), strict=True))
    if tiles.groups is None:
        return SplitCounts(len(tiles), None, per_class, None)
    groups = {name: len(np.unique(tiles.groups[tiles.labels == label])) for label, name in enumerate(class_names)}
    return SplitCounts(len(tiles), len(np.unique(tiles.groups)), per_class, groups)


def tiles_per_group(splits: Mapping[str, Labelled]) -> tuple[int, float, int] | None:
    """The least, median and largest number of tiles of a group, in all splits together; None without groups."""
    names = [tiles.groups for tiles in splits.values() if tiles.groups is not None]
    if not sum(map(len, names)):
        return None
    counts = np.unique(np.concatenate(names), return_counts=True)[1]
    return int(counts.min()), float(np.median(counts)), int(counts.max())


def names_of_groups(splits: Mapping[str, ListedSplit]) -> set[str]:
    """The groups of all splits together."""
    return {name for tiles in splits.values() if tiles.groups is not None for name in np.unique(tiles.groups).tolist()}


def plan_splits(
    listing: Listing, seed: int | None, audit_share: float, units: np.ndarray | None = None
) -> dict[str, ListedSplit]:
    """The splits with which models are trained: those that are there, made of train, and held out.

    Args:
        listing: What there is, "train" among its splits.
        seed: See `Grouping.split_seed`.
        audit_share: Share of the training tiles that is held out, at least 0 and below 1.
        units: int64 N, of the training tiles, see `find_units`; without them near copies are not seen, and where there
            are any the splits come out a little differently.

    Raises:
        InputError: If there are too few tiles or groups.
    """
    train = listing.splits["train"]
    has_groups = train.groups is not None
    if units is None:
        units = in_order(train.groups) if train.groups is not None else np.arange(len(train))
    missing = [split for split in MADE if split not in listing.splits]
    rows = plan_missing_splits(listing.name, missing, train.labels, units, has_groups, seed)
    if audit_share:
        left = rows["train"]
        held = plan_held_out(listing.name, train.labels[left], in_order(units[left]), has_groups, audit_share)
        rows |= {"train": left[~held], HELD_OUT: left[held]}
    return {**listing.splits, **{split: _subset(train, chosen) for split, chosen in rows.items()}}


def _subset(tiles: ListedSplit, rows: np.ndarray) -> ListedSplit:
    groups = None if tiles.groups is None else tiles.groups[rows]
    attributes = {name: values[rows] for name, values in tiles.attributes.items()}
    return replace(tiles, labels=tiles.labels[rows], groups=groups, attributes=attributes)


@dataclass(frozen=True, eq=False)
class Inspection:
    """What `inspect_tiles` found.

    Attributes:
        name: Of the source.
        class_names: The name of each label.
        group_kind: What a group is; None where nothing is known of groups.
        splits: The counts of the splits that are there.
        planned: Those of the splits with which models are trained; None where there can be none.
        sizes: Width and height in pixels → tiles that were seen to have it.
        modes: Colour mode, as Pillow calls it → tiles; None where no tile was decoded.
        duplicates: Near copies among the tiles; None where none were looked for.
        findings: What is as it should be, what is not, and how to mend it.
    """

    name: str
    class_names: list[str]
    group_kind: str | None
    splits: dict[str, SplitCounts]
    planned: dict[str, SplitCounts] | None
    sizes: dict[tuple[int, int], int]
    modes: dict[str, int] | None
    duplicates: Duplicates | None
    findings: tuple[Finding, ...]

    def to_json(self) -> dict[str, Any]:
        """The same as JSON can hold it, without the name of any group."""
        return {
            "classes": self.class_names,
            "splits": {
                split: {"tiles": counts.tiles, "groups": counts.groups, "per_class": counts.per_class}
                for split, counts in self.splits.items()
            },
            "sizes": {f"{width}x{height}": count for (width, height), count in self.sizes.items()},
            "modes": self.modes,
            "duplicates": None if self.duplicates is None else self.duplicates.to_json(),
            "findings": [
                {"level": finding.status.lower(), "what": finding.found, "remedy": finding.mend or None}
                for finding in self.findings
            ],
        }
