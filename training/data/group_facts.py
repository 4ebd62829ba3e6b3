"""How many groups the tiles of a source are of, in numbers that may be told: no name of a group is among them."""

from __future__ import annotations

from typing import Any

from histodistill.training.data.inspection import count_split, tiles_per_group
from histodistill.training.data.tiles import HELD_OUT, TileSource


def group_facts(source: TileSource) -> dict[str, Any] | None:
    """What run.json and cards say of the groups of the training tiles; None where they have none.

    Args:
        source: The tiles, without those that were held out for the audit in "train".

    Returns:
        `kind`; `train` and `held_out`, numbers of groups; `per_class`, groups with training tiles of each class;
        `least_tiles` and `median_tiles` of a training group; `shared`, groups that are in several given splits; and
        `made`, the splits that were made of training tiles, by group.
    """
    train = source.split("train")
    counts, sizes = count_split(source.class_names, train), tiles_per_group({"train": train})
    if sizes is None:
        return None
    least, median, _ = sizes
    held_out = source.splits.get(HELD_OUT)
    return {
        "kind": source.group_kind,
        "train": counts.groups,
        "held_out": (held_out and count_split(source.class_names, held_out).groups) or 0,
        "per_class": counts.groups_per_class,
        "least_tiles": least,
        "median_tiles": median,
        "shared": source.shared_groups,
        "made": list(source.made),
    }
