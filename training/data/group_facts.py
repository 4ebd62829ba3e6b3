"""How many groups the tiles of a source are of, in numbers that may be told: no name of a group is among them."""

from __future__ import annotations

from typing import Any

import numpy as np

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
    if train.groups is None:
        return None
    held_out = source.splits.get(HELD_OUT)
    _, sizes = np.unique(train.groups, return_counts=True)
    return {
        "kind": source.group_kind,
        "train": len(sizes),
        "held_out": 0 if held_out is None or held_out.groups is None else len(np.unique(held_out.groups)),
        "per_class": {
            name: len(np.unique(train.groups[train.labels == label])) for label, name in enumerate(source.class_names)
        },
        "least_tiles": int(sizes.min()),
        "median_tiles": float(np.median(sizes)),
        "shared": source.shared_groups,
        "made": list(source.made),
    }
