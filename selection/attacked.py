"""Who is attacked: the units whose membership is asked for, and what the attacker has of their own.

A unit is what the groups of the tiles are, such as a patient; without groups it is a tile with its near copies. Of a
tile that is there several times, a little changed, the first is attacked alone: if images were compared with all of
them, they would look nearer to training tiles where only these are there several times.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from histodistill.selection.near_copies import connected, in_order
from histodistill.selection.real_tiles import LabelledImages, RealTiles
from histodistill.selection.streams import stream
from histodistill.selection.units import classes_of_units, units_of_pairs


# Validation tiles of groups that are not attacked, at least: a density takes two tiles, and so does the control.
_FEWEST_FOREIGN = 8


@dataclass(frozen=True)
class Attacked:
    """The tiles that are attacked, by unit. Rows are those of `RealTiles.all_images`.

    Attributes:
        rows: int64 N, training tiles first.
        labels: int64 N.
        units: int64 N, from 0 on in the order of their first tile.
        is_held_out: bool U, which units no model has seen.
        classes: int64 U, the class of which each unit has most tiles.
        attributes: What else is known of the tiles: name → text N.
        by_group: Whether units are groups of tiles.
        num_left_out: Tiles that no model has seen, and yet a near copy of which was trained on: they are no
            non-members, and not attacked.
        reference: Rows of the tiles that the attacker has of their own.
        control: Rows of tiles that are tried in place of the synthetic images.
        units_of_training: int64 T, the unit of each training tile, attacked or not.
        groups_of_validation: int64 M, of each of `reference` and then `control` its group; each tile its own where
            nothing is known of them.
    """

    rows: np.ndarray
    labels: np.ndarray
    units: np.ndarray
    is_held_out: np.ndarray
    classes: np.ndarray
    attributes: dict[str, np.ndarray]
    by_group: bool
    num_left_out: int
    reference: np.ndarray
    control: np.ndarray
    units_of_training: np.ndarray
    groups_of_validation: np.ndarray

    @property
    def tile_is_held_out(self) -> np.ndarray:
        """Which tiles no model has seen: bool N."""
        return self.is_held_out[self.units]

    @property
    def numbers(self) -> tuple[int, int]:
        """Units that were trained on, and units that were not."""
        held_out = int(self.is_held_out.sum())
        return len(self.is_held_out) - held_out, held_out


def find_attacked(real: RealTiles, seed: int) -> Attacked:
    """Who is attacked, and by what.

    Validation tiles, in random order, are the attacker's own and the control's, and where nothing was held out,
    non-members too. Those of groups that are attacked play no part.

    Args:
        real: The real tiles. Groups count where training tiles have them.
        seed: Seed of the roles of validation tiles.

    Raises:
        ValueError: If a group is trained on and held out, if only some of these tiles have groups, or if no two tiles
            are left that are near copies of no training tile.
    """
    train, held_out, validation = real.train, real.held_out, real.validation
    start = len(real) - len(validation)
    by_group = train.groups is not None
    if held_out is not None and (held_out.groups is None) == by_group:
        raise ValueError("of train and held_out only one has groups: give both theirs, or neither")
    if held_out is None and validation.groups is None:
        by_group = False
    order = stream("roles of validation tiles in attacks", seed).permutation(len(validation))
    own = validation.groups if by_group else None
    if by_group:
        known = _names(train)
        if held_out is not None:
            if both := known & _names(held_out):
                raise ValueError(
                    f"{len(both)} groups are in train and in held_out: give each to one of them, or nobody knows "
                    "what a model has seen of it"
                )
            known |= _names(held_out)
        if own is not None:
            order = order[~np.isin(own.astype(str), sorted(known))[order]]
        if len(order) < _FEWEST_FOREIGN:
            raise ValueError(
                f"{len(order)} validation tiles are of groups that are neither trained on nor held out: it must be at "
                f"least {_FEWEST_FOREIGN}, for an attacker knows others"
            )
    parts = _split(order, own, 2 if held_out is not None else 4)
    if held_out is not None:
        others, (reference, control) = np.arange(len(train), start), parts
    else:
        others, reference, control = start + np.concatenate(parts[:2]), parts[2], parts[3]
    groups = None
    if by_group:
        of_others = held_out.groups if held_out is not None else own[others - start]  # type: ignore[index]
        groups = np.concatenate([np.asarray(train.groups).astype(str), np.asarray(of_others).astype(str)])
    rows = np.concatenate([np.arange(len(train)), others])
    pairs = real.repeats.pairs_among([rows])
    kinds, units = connected(pairs, len(rows)), units_of_pairs(pairs, len(rows), groups)
    is_other = np.arange(len(rows)) >= len(train)
    is_left_out = is_other & np.isin(units, units[~is_other])
    kept = ~is_left_out
    kept[np.setdiff1d(np.arange(len(rows)), np.unique(kinds, return_index=True)[1])] = False
    # Each unit keeps its first tile, and so its number.
    units_of_training, rows, units = units[~is_other], rows[kept], units[kept]
    if (num_others := int(is_other[kept].sum())) < 2:
        raise ValueError(
            f"{num_others} tiles that no model has seen are left that are no near copies of training tiles: it must "
            "be at least 2"
        )
    labels = real.all_labels[rows]
    is_held_out = np.zeros(units.max() + 1, dtype=bool)
    is_held_out[units] = is_other[kept]
    mine = np.concatenate([reference, control])
    return Attacked(
        rows=rows,
        labels=labels,
        units=units,
        is_held_out=is_held_out,
        classes=classes_of_units(units, labels),
        attributes={name: values[kept] for name, values in _attributes(real, others).items()},
        by_group=by_group,
        num_left_out=int(is_left_out.sum()),
        reference=start + reference,
        control=start + control,
        units_of_training=units_of_training,
        groups_of_validation=in_order(mine if own is None else own[mine]),
    )


def _names(part: LabelledImages) -> set[str]:
    """Its groups, each once."""
    return set() if part.groups is None else set(np.unique(part.groups.astype(str)).tolist())


def _attributes(real: RealTiles, others: np.ndarray) -> dict[str, np.ndarray]:
    """The attributes that training tiles and those at the rows `others` have in common."""
    train, part = real.train, real.held_out or real.validation
    # Where nothing was held out, the rows of some validation tiles; otherwise those of all that were.
    rows = others - len(train)
    return {
        name: np.concatenate([values, part.attributes[name][rows]])
        for name, values in train.attributes.items()
        if name in part.attributes
    }


def _split(order: np.ndarray, groups: np.ndarray | None, parts: int) -> list[np.ndarray]:
    """Rows of validation tiles in `parts` parts, each with whole groups where these are known and enough."""
    count = 0 if groups is None else len(np.unique(groups[order]))
    if groups is None or count < parts:
        return np.array_split(order, parts)
    first = in_order(groups[order])  # groups in random order, since the rows are
    bounds = np.linspace(0, count, parts + 1).round().astype(int)
    return [order[(first >= low) & (first < high)] for low, high in pairwise(bounds)]
