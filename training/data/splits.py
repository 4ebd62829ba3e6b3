"""Splits of tiles that never divide what belongs together: a group, or a tile and its near copies."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from histodistill.selection.streams import stream
from histodistill.selection.units import classes_of_units, hold_out_units
from histodistill.training.data.tile_copies import units_of
from histodistill.training.data.tiles import HELD_OUT, Tiles, TileSource
from histodistill.training.running.errors import InputError, param


# A split that is made takes one of so many parts of train.
_PARTS = 10
#: The splits that can be made, in order.
MADE = ("validation", "test")
# Ways to put groups into parts that are tried until one leaves each class with a training tile.
_MOST_TRIES = 20


def make_missing_splits(
    name: str, splits: Mapping[str, Tiles], seed: int | None = None
) -> tuple[dict[str, Tiles], tuple[str, ...]]:
    """Makes validation and test of a tenth of the training tiles each, where there are no such splits.

    Whole groups go to a split, with about a tenth of each class (scikit-learn's `StratifiedGroupKFold`). Without
    groups a tile goes with its near copies, and each class gives the last of its tiles in file order: tiles of one
    slide or region mostly lie side by side there, so that this is a fairer test than a random tenth. With a seed it
    is a random tenth.

    There is no test split where a class has too few tiles, or groups, for one.

    Args:
        name: What the source is called.
        splits: Its tiles by split, "train" among them.
        seed: Seed of what is random.

    Returns:
        All splits, and the names of those that were made.

    Raises:
        InputError: If there are too few tiles, or groups, for a validation split.
    """
    made = tuple(split for split in MADE if split not in splits)
    if not made:
        return dict(splits), ()
    train = splits["train"]
    units = units_of(train)
    rows = plan_missing_splits(name, made, train.labels, units, train.groups is not None, seed)
    if rows.keys() == {"train"}:
        return dict(splits), ()
    parts = {split: train.subset(chosen) for split, chosen in rows.items()}
    return {**splits, **parts}, tuple(split for split in made if split in rows)


def plan_missing_splits(
    name: str, missing: Sequence[str], labels: np.ndarray, units: np.ndarray, has_groups: bool, seed: int | None = None
) -> dict[str, np.ndarray]:
    """Which training tiles `make_missing_splits` puts where.

    Args:
        name: What the source is called.
        missing: Those of `MADE` that are to be made, in order.
        labels: int64 N, of the training tiles.
        units: int64 N, each number from 0 on: what stays together.
        has_groups: Whether units are groups, and not single tiles with their near copies.
        seed: Seed of what is random.

    Returns:
        Each split that can be made, and "train", with its rows: int64, in order.

    Raises:
        InputError: As for `make_missing_splits`.
    """
    rows: dict[str, np.ndarray] = {}
    left, sizes = np.arange(len(labels)), np.bincount(labels)
    for split in missing:
        if has_groups:
            taken = _part_of_groups(units, labels, split, seed or 0)
        else:
            taken = _last_of_each_class(units, labels, sizes, split, seed)
        if taken is None and split == "validation":
            what = "groups" if has_groups else "tiles"
            raise InputError(
                f"{name} has no validation split and too few {what} to make one: give at least 2 {what} per class"
            )
        if taken is not None:
            rows[split], left, labels = left[taken], left[~taken], labels[~taken]
            units = np.unique(units[~taken], return_inverse=True)[1]
    return {**rows, "train": left}


def hold_out_for_audit(source: TileSource, share: float) -> TileSource:
    """Moves a random `share` of the training tiles to the split "held_out": whole groups, or tiles with their copies.

    The privacy audit asks whether training tiles can be told from tiles that no model has seen. The answer means
    something only where chance alone decided which are which; validation tiles mostly come from other slides. The
    draw is the same every time, so that all stages of a run agree on it.

    With groups it is about that share of them, and at least five or, of few, a third. Without, it is that share of
    each class's tiles, at least one of two or more, and near copies stay together.

    Args:
        source: The data, with a train split.
        share: At least 0 and below 1; 0 changes nothing.

    Returns:
        The source with fewer training tiles and the further split.

    Raises:
        InputError: For another share, or where there are too few tiles or groups.
    """
    if not 0 <= share < 1:
        raise InputError(f"{param('audit_share')}={share} is out of range: it must be at least 0 and below 1")
    if share == 0:
        return source
    train = source.split("train")
    units = units_of(train)
    held = plan_held_out(source.name, train.labels, units, train.groups is not None, share)
    parts = {"train": train.subset(np.flatnonzero(~held)), HELD_OUT: train.subset(np.flatnonzero(held))}
    return replace(source, splits={**source.splits, **parts})


def plan_held_out(name: str, labels: np.ndarray, units: np.ndarray, has_groups: bool, share: float) -> np.ndarray:
    """Which training tiles `hold_out_for_audit` keeps from the models: bool N.

    Args:
        name: What the source is called.
        labels, units, has_groups: As for `plan_missing_splits`.
        share: Above 0 and below 1.

    Raises:
        InputError: As for `hold_out_for_audit`.
    """
    if not has_groups:
        held = _random_of_each_class(units, labels, share)
        if not held.any():
            raise InputError(f"{name} has one training tile per class: give more, or an audit_share of 0")
        return held
    try:
        return hold_out_units(units, labels, share, stream("groups that are held out for the audit"))
    except ValueError as error:
        raise InputError(
            f"groups of {name} cannot be held out for the audit ({error}): give {param('audit_share')} 0"
        ) from error


def _last_of_each_class(
    units: np.ndarray, labels: np.ndarray, sizes: np.ndarray, split: str, seed: int | None
) -> np.ndarray | None:
    """A tenth of each class's tiles, with their near copies: bool N.

    Args:
        units: int64 N, from 0 on.
        labels: int64 N.
        sizes: Tiles of each class of which a tenth is taken: some may be taken already.
        split: What they become.
        seed: Of a random tenth; None takes the last tiles.

    Returns:
        None for a validation split where no class has two tiles, and for a test split where a class has none to give.
    """
    taken = np.zeros(len(labels), dtype=bool)
    rows_of_unit = np.split(np.argsort(units, kind="stable"), np.cumsum(np.bincount(units))[:-1])
    left = np.bincount(labels)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        order = members[::-1]
        if seed is not None:
            rng = stream("tiles of a split that is made", seed, MADE.index(split), int(label))
            order = rng.permutation(members)
        count = min(max(1, (int(sizes[label]) + _PARTS // 2) // _PARTS), len(members) - 1)
        enough = len(members) - count
        for row in order:
            if left[label] <= enough:
                break
            rows = rows_of_unit[units[row]]
            after = left - np.bincount(labels[rows], minlength=len(left))
            # A near copy may be of another class, and its last tile.
            if not taken[row] and (after[np.unique(labels[rows])] > 0).all():
                taken[rows], left = True, after
        if split == "test" and left[label] == len(members):
            return None
    return taken if taken.any() else None


def _leaves_none(taken: np.ndarray, labels: np.ndarray) -> bool:
    """Whether a class would have no tile left."""
    return len(np.unique(labels[~taken])) < len(np.unique(labels))


def _part_of_groups(units: np.ndarray, labels: np.ndarray, split: str, seed: int) -> np.ndarray | None:
    """Whole units with about a tenth of each class: bool N; None where a class would be left without a tile."""
    from sklearn.model_selection import StratifiedGroupKFold

    # scikit-learn wants no more parts than the largest class has tiles, and warns of smaller classes, as is right for
    # cross-validation: here only one part is taken.
    parts = min(_PARTS, len(np.unique(units)), int(np.bincount(labels).max()))
    if parts < 2:
        return None
    shares = np.bincount(labels) / parts
    best, least = None, np.inf
    for number in range(_MOST_TRIES):
        rng = stream("groups of a split that is made", seed, MADE.index(split), number)
        folds = StratifiedGroupKFold(parts, shuffle=True, random_state=int(rng.integers(2**31)))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            # Units are numbered anew: the shuffle of older versions leaves groups of like classes where they were.
            numbers = rng.permutation(int(units.max()) + 1)
            found = [rows for _, rows in folds.split(labels, labels, numbers[units])]
        for rows in found:
            taken = np.zeros(len(labels), dtype=bool)
            taken[rows] = True
            if not len(rows) or _leaves_none(taken, labels):
                continue
            counts = np.bincount(labels[rows], minlength=len(shares))
            # A class that is missing weighs more than any other fault.
            fault = np.abs(counts - shares).sum() / shares.sum() + 10 * (counts[shares > 0] == 0).sum()
            if fault < least:
                best, least = taken, fault
        if least < 1:
            break
    return best


def _random_of_each_class(units: np.ndarray, labels: np.ndarray, share: float) -> np.ndarray:
    """A random share of the units of each class, but for one of them: bool N."""
    classes = classes_of_units(units, labels)
    held = np.zeros(len(classes), dtype=bool)
    for label in np.unique(classes):
        members = np.flatnonzero(classes == label)
        count = min(max(1, round(share * len(members))), len(members) - 1)
        # Without a purpose in its key, and therefore no stream of those that have one (see `selection.streams`). It
        # keeps its numbers, so that tiles without near copies are held out as they always were.
        held[np.random.default_rng(int(label)).permutation(members)[:count]] = True
    taken = held[units]
    # Of a class whose tiles are all near copies of another's, none may be left.
    for label in np.setdiff1d(labels, labels[~taken]):
        held[units[labels == label]] = False
    return held[units]
