"""Attacks on a patient: what all tiles of a unit say together of whether it was trained on.

Nothing here knows who was trained on, so that a permutation test of these scores is exact (`selection.permutation`).
Scores are one number for each unit, higher for a likelier member.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from scipy.stats import rankdata


# Rounds in which the shares of a mixture are fitted.
_ROUNDS = 50
# Images that each unit is taken to have been the source of beforehand: no share reaches 0, where units would tie.
_PRIOR = 0.2
# Values that are held at once, of images by units by directions.
_VALUES_PER_CALL = 2**22


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

    def likeliest(self, looks: np.ndarray) -> np.ndarray:
        """The unit of whose tiles each of G looks is likeliest: int64 G."""
        found = [np.empty(0, np.int64), *(densities.argmax(axis=1) for _, densities in self._log_densities(looks))]
        return np.concatenate(found)

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
        return self._log_mean_density(looks) - self._log_mean_density(reference)

    def mixture(self, looks: np.ndarray) -> np.ndarray:
        """Which units the images were made of, if each were of one of them or of somebody else: log shares, float64 U.

        Shares of a mixture fitted by expectation and maximisation (Dempster, Laird & Rubin 1977): a unit that is like
        another one is not taken for the source of images which that one explains better. Takes 8 bytes for each image
        and unit.

        Args:
            looks: G×K, of the images.
        """
        likelihoods, count = self.likelihoods(looks), len(self.means)
        shares = np.append(np.full(count, 0.5 / count), 0.5)
        step = self._step
        for _ in range(_ROUNDS):
            sums = np.zeros(count + 1)
            for start in range(0, len(looks), step):
                weights = likelihoods[start : start + step] * shares
                weights /= weights.sum(axis=1, keepdims=True)
                sums = _add_rows(sums, weights)
            shares = sums + _PRIOR
            shares /= shares.sum()
        return np.log(shares[:-1])

    @property
    def _step(self) -> int:
        """Looks that are compared with all units at once."""
        return max(1, _VALUES_PER_CALL // self.means.size)

    def _log_densities(self, looks: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
        """Log density of looks by each of U units, up to a constant, float64 N×U, of some rows after the others."""
        constant = np.log(self.variances).sum(axis=1)
        for start in range(0, len(looks), self._step):
            rows = slice(start, start + self._step)
            apart = looks[rows, None, :] - self.means
            yield rows, -0.5 * ((np.square(apart, out=apart) / self.variances).sum(axis=2) + constant)

    def _log_mean_density(self, looks: np.ndarray) -> np.ndarray:
        """The logarithm of the mean density of N looks by each unit: float64 U."""
        highest = np.full(len(self.means), -np.inf)
        for _, densities in self._log_densities(looks):
            np.maximum(highest, densities.max(axis=0), out=highest)
        sums = np.zeros(len(self.means))
        for _, densities in self._log_densities(looks):
            sums = _add_rows(sums, np.exp(densities - highest))
        return highest + np.log(sums / len(looks))

    def likelihoods(self, looks: np.ndarray) -> np.ndarray:
        """How likely each of G looks is for each of U units and then for anyone, up to a factor: float64 G×(U+1)."""
        anyone = 1 + self.spread
        likelihoods = np.empty((len(looks), len(self.means) + 1))
        for rows, densities in self._log_densities(looks):
            ratios = densities + 0.5 * (np.square(looks[rows]) / anyone + np.log(anyone)).sum(axis=1)[:, None]
            highest = np.maximum(ratios.max(axis=1, keepdims=True), 0)
            likelihoods[rows] = np.column_stack([np.exp(ratios - highest), np.exp(-highest)])
        return likelihoods


def _add_rows(sums: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Sums U, and all rows of N×U values added to them one after the other, as in one sum of all rows."""
    return np.concatenate([sums[None], values]).sum(axis=0)
