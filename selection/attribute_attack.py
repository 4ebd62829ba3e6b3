"""Attribute disclosure: does a set tell more of those who were trained on than that they were?

The attacker has one tile of a patient, and wants to know something else of them, such as their site. They look at the
images that are most like the tile, and guess by these. If the set holds the looks of the patients that a model was
trained on, then these guesses gain more for them than for patients that it has not seen.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from histodistill.selection.group_attacks import unit_means
from histodistill.selection.names import ATTRIBUTE_NAMES


#: Least and most values of an attribute that is attacked.
FEWEST_VALUES, MOST_VALUES = 2, 20
# Units that a value must have: of one alone, nobody could learn what it looks like.
_FEWEST_UNITS = 2
# Distances between tiles and images that are held at once.
_PAIRS_PER_CALL = 2**22


def attackable(attributes: Mapping[str, np.ndarray], units: np.ndarray) -> dict[str, np.ndarray]:
    """The attributes that can be attacked, by the name under which they may be told.

    Args:
        attributes: Name → text N, the value of each tile.
        units: int64 N.

    Returns:
        Name → int64 N, values by number. Names that are not among `ATTRIBUTE_NAMES` may be somebody's own, and become
        "attribute 1", "attribute 2" and so on.
    """
    found: dict[str, np.ndarray] = {}
    unknown = sorted(name for name in attributes if name.lower() not in ATTRIBUTE_NAMES)
    for name in sorted(attributes):
        names, codes = np.unique(attributes[name], return_inverse=True)
        pairs = np.unique(np.stack([codes, units], axis=1), axis=0)
        if FEWEST_VALUES <= len(names) <= MOST_VALUES and np.bincount(pairs[:, 0]).min() >= _FEWEST_UNITS:
            told = f"attribute {unknown.index(name) + 1}" if name in unknown else name.lower()
            found[told] = codes.astype(np.int64)
    return found


def attribute_gains(looks: np.ndarray, units: np.ndarray, values: np.ndarray, images: np.ndarray) -> np.ndarray:
    """What the images add to a guess at the value of each unit: float64 U.

    The guess is that of linear discriminants of looks, learned from the tiles of all other units. Its log probability
    of the true value is taken at the mean look of the images around a tile, less that at the look of the tile itself;
    of each unit the mean over its tiles, less that of all units with its values.

    Args:
        looks: float64 N×K, of tiles; tiles of one unit scatter by 1 along each direction.
        units: int64 N, each number from 0 on.
        values: int64 N, each number from 0 on.
        images: float64 G×K, the looks of images.
    """
    around = np.empty_like(looks)
    step = max(1, _PAIRS_PER_CALL // len(images))
    squares = np.square(images).sum(axis=1)
    for start in range(0, len(looks), step):
        exponents = looks[start : start + step] @ images.T - squares / 2
        weights = np.exp(exponents - exponents.max(axis=1, keepdims=True))
        around[start : start + step] = weights @ images / weights.sum(axis=1, keepdims=True)
    gains = _log_probabilities(around, looks, units, values) - _log_probabilities(looks, looks, units, values)
    usual = np.bincount(values, gains) / np.bincount(values)
    return unit_means(gains - usual[values], units)


def _log_probabilities(points: np.ndarray, looks: np.ndarray, units: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Of the true value of each tile, guessed at N points by the looks of tiles of other units: float64 N."""
    count, width = values.max() + 1, looks.shape[1]
    member = np.zeros((len(looks), count))
    member[np.arange(len(looks)), values] = 1
    sizes, sums = member.sum(axis=0), member.T @ looks
    inside = looks - (sums / sizes[:, None])[values]
    precision = np.linalg.inv(inside.T @ inside / len(looks) + 1e-6 * np.eye(width))
    # What each unit has of each value, to leave it out of the means by which it is guessed.
    own_sizes = np.stack([np.bincount(units, column) for column in member.T], axis=1)
    logits = np.empty((len(points), count))
    for value in range(count):
        own = np.stack([np.bincount(units, member[:, value] * column) for column in looks.T], axis=1)
        means = (sums[value] - own) / np.maximum(sizes[value] - own_sizes[:, value], 1)[:, None]
        apart = points - means[units]
        logits[:, value] = -0.5 * np.einsum("nk,kl,nl->n", apart, precision, apart)
    highest = logits.max(axis=1)
    total = highest + np.log(np.exp(logits - highest[:, None]).sum(axis=1))
    return logits[np.arange(len(points)), values] - total
