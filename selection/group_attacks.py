"""Attacks on a patient: what all tiles of a unit say together of whether it was trained on.

Nothing here knows who was trained on, so that a permutation test of these scores is exact (`selection.permutation`).
Scores are one number for each unit, higher for a likelier member.
"""

from __future__ import annotations

import numpy as np
from scipy.stats import rankdata


# Rounds in which the shares of a mixture are fitted.
_ROUNDS = 50
# Images that each unit is taken to have been the source of beforehand: no share reaches 0, where units would tie.
_PRIOR = 0.2
# Values that are held at once, of images by units by directions.
_VALUES_PER_CALL = 2**24


def unit_means(values: np.ndarray, units: np.ndarray) -> np.ndarray:
    """The mean over the tiles of each unit: float64 U or U×K.

    Args:
        values: Real numbers N, or N×K.
        units: int64 N, each number from 0 on.
    """
    columns = np.atleast_2d(np.asarray(values, dtype=np.float64).T)
    sizes = np.bincount(units)
    means = np.stack([np.bincount(units, column) / sizes for column in columns], axis=1)
    return means if values.ndim == 2 else means[:, 0]


def less_of_class(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Scores less the mean of their class, so that a unit is not told by what tissue it has: float64 N."""
    _, classes = np.unique(labels, return_inverse=True)
    return scores - (np.bincount(classes, scores) / np.bincount(classes))[classes]


def unit_extremes(scores: np.ndarray, labels: np.ndarray, units: np.ndarray) -> np.ndarray:
    """How extreme the highest score of each unit is among those of its class, for a unit of so many tiles: float64 U.

    The share of tiles of a class that score as high or less, u, is to the power n what the highest of n tiles exceeds
    by chance, so that units with many tiles do not stand out.

    Args:
        scores: Real numbers N, higher for a likelier member.
        labels: int64 N.
        units: int64 N, each number from 0 on.
    """
    shares = np.empty(len(scores))
    for label in np.unique(labels):
        rows = labels == label
        shares[rows] = (rankdata(scores[rows]) - 0.5) / rows.sum()
    highest = np.zeros(units.max() + 1)
    np.maximum.at(highest, units, shares)
    return np.bincount(units) * np.log(highest)


class Candidates:
    """Units by their looks, and how tiles of each would scatter around these.

    The look of a unit is known from n tiles. By Bayes' rule, with variances of 1 within a unit and s between units
    along each direction, a further tile of it has the mean s / (s + 1/n) times theirs and the variance
    1 + s / (ns + 1).

    Args:
        looks: float64 N×K, of all tiles of the units, see `LookSpace`.
        units: int64 N, each number from 0 on.
        spread: float64 K, the variance between units along each direction.
    """

    def __init__(self, looks: np.ndarray, units: np.ndarray, spread: np.ndarray):
        sizes = np.bincount(units)[:, None]
        self.means = unit_means(looks, units) * spread / (spread + 1 / sizes)
        self.variances = 1 + spread / (sizes * spread + 1)
        self.spread = spread

    def log_ratios(self, looks: np.ndarray) -> np.ndarray:
        """How much likelier each of G looks is for each of U units than for anyone, in logarithms: float64 G×U."""
        anyone = 1 + self.spread
        return self.log_densities(looks) + 0.5 * (np.square(looks) / anyone + np.log(anyone)).sum(axis=1)[:, None]

    def log_densities(self, looks: np.ndarray) -> np.ndarray:
        """Log density of each of G looks by each of U units, up to a constant: float64 G×U."""
        constant = np.log(self.variances).sum(axis=1)
        result = np.empty((len(looks), len(self.means)))
        step = max(1, _VALUES_PER_CALL // self.means.size)
        for start in range(0, len(looks), step):
            apart = looks[start : start + step, None, :] - self.means
            result[start : start + step] = -0.5 * ((np.square(apart) / self.variances).sum(axis=2) + constant)
        return result

    def density_ratio(self, looks: np.ndarray, reference: np.ndarray) -> np.ndarray:
        """DOMIAS by unit: how dense images are around a unit, compared with tiles of others that the attacker has.

        The kernel of the density is how tiles of the unit would scatter. (After van Breugel et al., AISTATS 2023, who
        attack single rows.)

        Args:
            looks: G×K, of the images.
            reference: R×K, of the attacker's own tiles.

        Returns:
            float64 U.
        """
        dense, usual = (_log_mean_exp(self.log_densities(points)) for points in (looks, reference))
        return dense - usual

    def mixture(self, looks: np.ndarray) -> np.ndarray:
        """Which units the images were made of, if each were of one of them or of somebody else: log shares, float64 U.

        Shares of a mixture fitted by expectation and maximisation (Dempster, Laird & Rubin 1977): a unit that is like
        another one is not taken for the source of images which that one explains better.

        Args:
            looks: G×K, of the images.
        """
        ratios = self.log_ratios(looks)
        highest = np.maximum(ratios.max(axis=1, keepdims=True), 0)
        likelihoods = np.column_stack([np.exp(ratios - highest), np.exp(-highest)])
        count = len(self.means)
        shares = np.append(np.full(count, 0.5 / count), 0.5)
        for _ in range(_ROUNDS):
            weights = likelihoods * shares
            weights /= weights.sum(axis=1, keepdims=True)
            shares = weights.sum(axis=0) + _PRIOR
            shares /= shares.sum()
        return np.log(shares[:-1])


def _log_mean_exp(values: np.ndarray) -> np.ndarray:
    highest = values.max(axis=0)
    return highest + np.log(np.exp(values - highest).mean(axis=0))
