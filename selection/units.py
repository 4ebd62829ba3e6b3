"""The units of an audit: what of the real tiles belongs together, and which units are held out at random.

A unit is a patient, or whatever the groups of the tiles are; without groups it is a tile with its near copies. Groups
that have a near copy in common are one unit, since a tile on either side of a split would tell of both.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from histodistill.selection.image_rows import Images
from histodistill.selection.near_copies import connected, in_order
from histodistill.selection.repeats import repeated_pairs


#: Units that are held out at least, where there are enough.
FEWEST_HELD_OUT = 5
# Draws of units that are tried until one leaves each class with a training tile.
_MOST_DRAWS = 1000


def find_units(sets: Sequence[Images], groups: np.ndarray | None = None) -> np.ndarray:
    """The unit of each tile of several sets, one after the other.

    Args:
        sets: uint8 N×S×S×3 each, of one size S.
        groups: The group of each tile, N of any type that NumPy sorts; None where nothing is known of them.

    Returns:
        int64 N, from 0 on in the order of their first tile.
    """
    return units_of_pairs(repeated_pairs(sets), sum(map(len, sets)), groups)


def units_of_pairs(pairs: np.ndarray, count: int, groups: np.ndarray | None = None) -> np.ndarray:
    """The same of `count` tiles of which it is known which are near copies: int64 P×2 `pairs` of rows."""
    if groups is None:
        return connected(pairs, count)
    codes = in_order(groups)
    return connected(codes[pairs], int(codes.max(initial=-1)) + 1)[codes]


def places_in_units(units: np.ndarray) -> np.ndarray:
    """The place of each tile among those of its unit, in their order, from 0: int64 N.

    Args:
        units: int64 N, at least 0.
    """
    sizes, by_unit = np.bincount(units), np.argsort(units, kind="stable")
    places = np.empty(len(units), dtype=np.int64)
    places[by_unit] = np.arange(len(units)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    return places


def evenly_cut(units: np.ndarray, sizes: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Which of some tiles to keep so that no unit is cut shorter than another: bool N.

    Of as many tiles of either kind, a training unit has fewer than a held-out one, since there are more of them. Each
    then keeps all that it has, up to a number that is the same for all, drawn at random.

    Args:
        units: int64 N, the unit of each tile, below U.
        sizes: Whole numbers U, how many tiles each unit has in all, of which these may be some.
        rng: The source of chance.
    """
    counts = np.bincount(units, minlength=len(sizes))
    most = counts[(counts > 0) & (counts < sizes)].min(initial=counts.max(initial=0))
    order = rng.permutation(len(units))
    kept = np.empty(len(units), dtype=bool)
    kept[order] = places_in_units(units[order]) < most
    return kept


def classes_of_units(units: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The class that each unit has most tiles of, the lowest of several: int64, for units 0, 1, ...

    Args:
        units: int64 N, each number from 0 on.
        labels: N whole numbers ≥ 0.
    """
    if not len(units):
        return np.empty(0, np.int64)
    pairs, counts = np.unique(np.stack([units, labels], axis=1), axis=0, return_counts=True)
    order = np.lexsort((pairs[:, 1], -counts, pairs[:, 0]))
    _, first = np.unique(pairs[order, 0], return_index=True)
    return pairs[order[first], 1].astype(np.int64)


def draw_units(classes: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Draws `count` units, each as likely as any other, spread over their classes: bool U.

    A systematic draw: units in random order, class by class, of which every so-manieth is taken. So a permutation test
    that draws them anew in this way draws them as they were drawn.

    Args:
        classes: int64 U, see `classes_of_units`.
        count: 0 to U.
        rng: The source of chance.
    """
    drawn = np.zeros(len(classes), dtype=bool)
    if count:
        order = rng.permutation(len(classes))
        order = order[np.argsort(rng.permutation(classes.max() + 1)[classes[order]], kind="stable")]
        drawn[order[np.floor((rng.random() + np.arange(count)) * len(classes) / count).astype(int)]] = True
    return drawn


def hold_out_units(units: np.ndarray, labels: np.ndarray, share: float, rng: np.random.Generator) -> np.ndarray:
    """Draws whole units at random, about a share of all, so that each class keeps a tile of another: bool N.

    At least `FEWEST_HELD_OUT` are drawn, but then no more than a third: by fewer hardly a leak could be seen.

    Args:
        units: int64 N, each number from 0 on.
        labels: N whole numbers ≥ 0.
        share: Above 0 and below 1.
        rng: The source of chance.

    Raises:
        ValueError: If there is a single unit, or none of many draws leaves each class with a tile.
    """
    classes = classes_of_units(units, labels)
    count = min(max(round(share * len(classes)), min(FEWEST_HELD_OUT, len(classes) // 3), 1), len(classes) - 1)
    if count < 1:
        raise ValueError("there is only one: there must be at least 2, one of which is held out")
    held = _fair_draw(classes, _classes_in_units(units, labels), count, rng)
    if held is None:
        raise ValueError("whichever are held out, a class is left without a training tile")
    return held[units]


def redraw_units(
    units: np.ndarray, labels: np.ndarray, count: int, draws: int, rng: np.random.Generator
) -> np.ndarray:
    """Draws `count` units as `hold_out_units` does, many times: bool D×U, for permutation tests.

    Args:
        units: int64 N, each number from 0 on.
        labels: N whole numbers ≥ 0.
        count: 1 to U.
        draws: D.
        rng: The source of chance.
    """
    classes, present = classes_of_units(units, labels), _classes_in_units(units, labels)
    drawn = np.empty((draws, len(classes)), dtype=bool)
    for row in drawn:
        fair = _fair_draw(classes, present, count, rng)
        # Whoever held out all of a class did not draw as we do: then any draw must do.
        row[:] = draw_units(classes, count, rng) if fair is None else fair
    return drawn


def _classes_in_units(units: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Which classes each unit has tiles of: bool U×C."""
    names, classes = np.unique(labels, return_inverse=True)
    present = np.zeros((units.max(initial=-1) + 1, len(names)), dtype=bool)
    present[units, classes] = True
    return present


def _fair_draw(classes: np.ndarray, present: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray | None:
    """`draw_units` that leaves each class with a tile of another, bool U; None where many draws do not."""
    for _ in range(_MOST_DRAWS):
        held = draw_units(classes, count, rng)
        if present[~held].any(axis=0).all():
            return held
    return None
