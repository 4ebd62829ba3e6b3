"""Permutation tests: who was held out is drawn anew many times, and many statistics are judged by one test.

A statistic that no attacker had to know the members for has, if nothing leaks, the same distribution whoever was held
out. So its value for those who were is one of many that were as likely, and its rank among these is an exact p-value.
(Phipson & Smyth, "Permutation p-values should never be zero", Stat. Appl. Genet. Mol. Biol. 9, 2010.)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from scipy.stats import rankdata


# Draws that are multiplied at once, which bounds the memory.
_DRAWS_PER_CALL = 1024


@dataclass(frozen=True)
class JointTest:
    """Many statistics judged together, so that the more there are the more each must show.

    Attributes:
        p_values: P-value of each of K statistics on its own, float64 K.
        adjusted: Name of a family of them → the probability that any of all K is as extreme by chance as the most
            extreme of the family (Westfall & Young 1993, single-step min-p).
        level: P-value that a statistic on its own must not exceed, for the nominal rate over all of them; 0 where no
            p-value is that small.
    """

    p_values: np.ndarray
    adjusted: dict[str, float]
    level: float


def sums_over(draws: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Sums of U×K values over the units of each of D draws (bool D×U): float64 D×K."""
    parts = [slice(start, start + _DRAWS_PER_CALL) for start in range(0, len(draws), _DRAWS_PER_CALL)]
    return np.concatenate([draws[part].astype(np.float64) @ values for part in parts])


def aucs_of_draws(scores: np.ndarray, held_out: np.ndarray) -> np.ndarray:
    """AUC of each of K attacks for each of D draws of who was held out: float64 D×K.

    Args:
        scores: Real numbers U×K, higher for a likelier member.
        held_out: bool D×U, of which each row has some True and some False.
    """
    ranks = rankdata(scores, axis=0)
    count = held_out.sum(axis=1)[:, None]
    others = len(scores) - count
    # Mann and Whitney's U of the held-out units, from the sum of their ranks: pairs in which they are above.
    above = sums_over(held_out, ranks) - count * (count + 1) / 2
    return 1 - above / (count * others)


def joint_test(statistics: np.ndarray, families: Mapping[str, Sequence[int]], rate: float) -> JointTest:
    """Judges statistics together: of the first row by all rows, of which each was as likely if nothing leaks.

    Statistics are brought to one scale by their ranks (min-p), so that one with a long tail does not spoil the others.

    Args:
        statistics: Real numbers D×K, high for a leak: what was found, and then what draws gave.
        families: Name → columns whose adjusted p-value is wanted.
        rate: Nominal rate of all K together, between 0 and 1.
    """
    count, width = statistics.shape
    p_values = np.empty(statistics.shape)
    for column in range(width):
        ordered = np.sort(statistics[:, column])
        p_values[:, column] = (count - np.searchsorted(ordered, statistics[:, column], side="left")) / count
    least = np.sort(p_values.min(axis=1))
    adjusted = {
        name: float(np.searchsorted(least, p_values[0, list(columns)].min(initial=1.0), side="right")) / count
        for name, columns in families.items()
    }
    # The highest value that no more than the nominal share of rows reach; ties go together.
    allowed = int(rate * count)
    below = least[least < least[allowed]] if allowed < count else least
    return JointTest(p_values[0], adjusted, float(below[-1]) if len(below) else 0.0)


def detectable_auc(members: int, non_members: int, level: float, power: float = 0.95) -> float | None:
    """The least AUC of an attack that a test finds with the probability `power`.

    By the normal approximation: under chance the AUC has the variance (n + m + 1) / 12nm (Mann & Whitney 1947), and
    for an attack that tells something that of Hanley & McNeil (Radiology 143, 1982).

    Args:
        members: n, at least 1.
        non_members: m, at least 1.
        level: P-value that is found, see `JointTest`.
        power: Above 0 and below 1.

    Returns:
        Above 0.5 and at most 1, or None where not even the perfect attack would be found.
    """
    if level <= 0 or min(members, non_members) < 2:
        return None
    by_chance = np.sqrt((members + non_members + 1) / (12 * members * non_members))
    limit = 0.5 + NormalDist().inv_cdf(1 - level) * by_chance
    if limit > 1:
        return None
    aucs = np.linspace(0.5, 1, 5001)
    first, second = aucs / (2 - aucs), 2 * aucs**2 / (1 + aucs)
    variance = aucs * (1 - aucs) + (members - 1) * (first - aucs**2) + (non_members - 1) * (second - aucs**2)
    found = aucs - NormalDist().inv_cdf(power) * np.sqrt(np.maximum(variance, 0) / (members * non_members)) >= limit
    return float(aucs[np.argmax(found)]) if found.any() else None
