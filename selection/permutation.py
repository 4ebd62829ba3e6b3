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


# Bytes of draws that are multiplied at once, which bounds the memory.
_BYTES_PER_CALL = 2**27


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
    size = max(1, _BYTES_PER_CALL // (8 * max(1, draws.shape[1])))
    parts = [slice(start, start + size) for start in range(0, len(draws), size)]
    return np.concatenate([draws[part].astype(np.float64) @ values for part in parts])


def redraw_within(held_out: np.ndarray, classes: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Who was held out, and then draws of it with as many units of each class: bool (1 + count)×U.

    Args:
        held_out: bool U.
        classes: Whole numbers U.
        count: Draws.
        rng: The source of chance.
    """
    draws = np.repeat(np.asarray(held_out)[None], 1 + count, axis=0)
    members = [np.flatnonzero(classes == label) for label in np.unique(classes)]
    for drawn in draws[1:]:
        for rows in members:
            drawn[rows] = rng.permutation(held_out[rows])
    return draws


def shares_of_draws(nearest: np.ndarray, tiles: np.ndarray, draws: np.ndarray) -> np.ndarray:
    """Of each draw, the share of images that are nearest to a training unit, as if as many tiles had been held out.

    There are more training tiles than held-out ones, so an image whose nearest tile is a held-out one counts as many
    times as there are training tiles for each held-out tile. (To compare with draws of equal size instead would lose
    most of the power: a draw rarely holds the very tile that was copied.)

    Args:
        nearest: int64 G, the unit that each image is nearest to, or −1 where it is nearest to a tile of none.
        tiles: Tiles of each unit, whole numbers U.
        draws: bool D×U, who was held out.

    Returns:
        float64 D, 0.5 by chance; 0 where no image is nearest to a unit.
    """
    nearest = nearest[nearest >= 0]
    counts = np.bincount(nearest, minlength=len(tiles))
    near, held = sums_over(draws, np.stack([counts, tiles], axis=1)).T
    near_training = len(nearest) - near
    return near_training / np.maximum(1e-12, near_training + (tiles.sum() - held) / np.maximum(1, held) * near)


def aucs_of_draws(scores: np.ndarray, held_out: np.ndarray) -> np.ndarray:
    """AUC of each of K attacks for each of D draws of who was held out: float64 D×K.

    Args:
        scores: Real numbers U×K, higher for a likelier member.
        held_out: bool D×U; where a row is all True or all False, the AUC is 0.5.
    """
    ranks = rankdata(scores, axis=0)
    count = held_out.sum(axis=1)[:, None]
    others = len(scores) - count
    # Mann and Whitney's U of the held-out units, from the sum of their ranks: pairs in which they are above.
    above = sums_over(held_out, ranks) - count * (count + 1) / 2
    pairs = count * others
    return np.where(pairs > 0, 1 - above / np.maximum(1, pairs), 0.5)


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


def highest_test(statistics: np.ndarray) -> float:
    """Judges many statistics by the one that lies highest above its draws, in their standard deviations.

    (Westfall & Young 1993, single-step max-T.) Unlike by `joint_test`, few draws can tell of very many statistics, if
    these have tails much alike.

    Args:
        statistics: Real numbers D×K, high for a leak: what was found, and then what draws gave.

    Returns:
        The probability that any of them is as high by chance; 1 where there is none.
    """
    spread = statistics.std(axis=0)
    told = statistics[:, spread > 0]
    if not told.shape[1]:
        return 1.0
    highest = ((told - told.mean(axis=0)) / told.std(axis=0)).max(axis=1)
    # Rounding must not tell draws apart that are the same.
    return float((highest >= highest[0] - 1e-9).mean())


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
