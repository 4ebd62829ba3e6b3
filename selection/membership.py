"""Do synthetic images tell which real tiles a model was trained on?

Members are training tiles, non-members are held-out ones; both should come from one random draw, or else what differs
between them is not only membership. Scores are higher for a likelier member.
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
from scipy.special import stdtrit
from scipy.stats import rankdata

from histodistill.selection.checks import check_embeddings, check_integer, check_share
from histodistill.selection.copies import nearest_under_views
from histodistill.selection.permutation import shares_of_draws
from histodistill.selection.streams import stream


#: False positive rates at which an attack's true positive rate is told.
FALSE_POSITIVE_RATES = (0.01, 0.001)
# Directions of most variance in which densities are estimated: more would need more images than there are.
_DENSITY_COLUMNS = 8
# Pairs of a query and a point whose exponents are held at once: 32 MiB of float64.
_PAIRS_PER_CALL = 2**22
# Rows of embeddings that are projected at once. As many as this, since the last bit of a product of matrices depends
# on it: so it changes only for larger sets.
_ROWS_PER_CALL = 2**15


@dataclass(frozen=True)
class Interval:
    """An estimate with its confidence interval.

    Attributes:
        value: The estimate.
        low: Lower end of the interval.
        high: Upper end.
    """

    value: float
    low: float
    high: float

    def covers(self, value: float) -> bool:
        """Whether the interval holds `value`."""
        return self.low <= value <= self.high


@dataclass(frozen=True)
class Attack:
    """How well an attacker tells members from non-members.

    Attributes:
        auc: Area under the ROC curve; 0.5 is guessing.
        true_positives: False positive rate → share of members that are told at it, or None where there are too few
            non-members to know that rate.
    """

    auc: Interval
    true_positives: dict[float, Interval | None]


@dataclass(frozen=True)
class Overfitting:
    """Whether synthetic images lie nearer to training tiles than to held-out ones.

    Attributes:
        share: Share of images whose nearest real tile is a training tile, as if there were as many held-out ones; 0.5
            is chance, 1 is for a model that draws nothing but what it has seen.
        p_value: Probability of a share as high or higher if training and held-out tiles were drawn alike.
    """

    share: Interval
    p_value: float


def measure_attack(members: Any, non_members: Any, confidence: float = 0.95, seed: int = 0) -> Attack:
    """Figures of an attack from its scores.

    The interval of the AUC has DeLong's error (Biometrics 44, 1988), and the t-distribution of Brunner and Munzel
    (Biometrical Journal 42, 2000), so that it holds for few of either, too; those of the true positive rates are
    percentiles of 300 bootstrap draws of members and non-members.

    Args:
        members: N real numbers, the scores of members.
        non_members: M real numbers.
        confidence: Confidence of the intervals, 0 to 1.
        seed: Seed of the bootstrap.

    Raises:
        ValueError: For scores that are not finite, or fewer than two of either.
    """
    members, non_members = (_check_scores(scores) for scores in (members, non_members))
    check_share("confidence", confidence)
    value, error, freedom = _auc_with_error(members, non_members)
    deviation = float(stdtrit(freedom, 0.5 + confidence / 2)) * error
    auc = Interval(value, max(0.0, value - deviation), min(1.0, value + deviation))
    return Attack(auc, _true_positives(members, non_members, confidence, seed))


def distance_scores(views: np.ndarray, tiles: np.ndarray) -> np.ndarray:
    """The distance attack: a tile is a member if a synthetic image is near to it.

    Args:
        views: V×G×D float32, the G synthetic images in V views.
        tiles: N×D float32.

    Returns:
        N float64: minus the distance to the nearest view of an image.
    """
    return -nearest_under_views(tiles[None], views.reshape(-1, views.shape[2]), 1)[1][:, 0]


def density_ratio_scores(synthetic: np.ndarray, reference: np.ndarray, tiles: np.ndarray) -> np.ndarray:
    """The attack of DOMIAS: a tile is a member if synthetic images are denser around it than real ones are.

    (van Breugel et al., "Membership inference attacks against synthetic data through overfitting detection", AISTATS
    2023.) Both densities are kernel estimates with Scott's bandwidth, along the eight directions in which the
    reference varies most.

    Args:
        synthetic: G×D real numbers.
        reference: R×D, real tiles that the attacker has and that no model was trained on, at least 2.
        tiles: N×D.

    Returns:
        N float64: log density among synthetic images minus that among the reference.
    """
    synthetic, reference, tiles = map(check_embeddings, (synthetic, reference, tiles))
    reference = reference.astype(np.float64)
    mean = reference.mean(axis=0)
    _, spread, axes = np.linalg.svd(reference - mean, full_matrices=False)
    count = max(1, min(_DENSITY_COLUMNS, int((spread > 1e-6 * max(spread[0], 1e-12)).sum())))
    scale = np.maximum(spread[:count], 1e-12) / np.sqrt(max(1, len(reference) - 1))
    synthetic, reference, tiles = (
        np.concatenate(
            [
                (points[start : start + _ROWS_PER_CALL] - mean) @ axes[:count].T / scale
                for start in range(0, len(points), _ROWS_PER_CALL)
            ]
        )
        for points in (synthetic, reference, tiles)
    )
    return _log_density(synthetic, tiles) - _log_density(reference, tiles)


def measure_overfitting(
    nearest: np.ndarray, tiles: np.ndarray, draws: np.ndarray, confidence: float = 0.95
) -> Overfitting:
    """Whether synthetic images are nearer to training than to held-out tiles than chance allows: `shares_of_draws`.

    What chance allows is measured by drawing anew who was held out: synthetic images near to the same tile then go
    together, as they do in truth.

    Args:
        nearest, tiles: See `shares_of_draws`.
        draws: bool D×U, who was held out, and then draws of it, such as `redraw_within` gives.
        confidence: Confidence of the interval, 0 to 1.
    """
    shares = shares_of_draws(nearest, tiles, draws)
    share, drawn = float(shares[0]), shares[1:]
    # The spread of the draws around chance is taken for that of the share around the truth.
    low, high = np.quantile(drawn, [0.5 - confidence / 2, 0.5 + confidence / 2]) - 0.5
    interval = Interval(share, float(max(0.0, min(share, share - high))), float(min(1.0, max(share, share - low))))
    return Overfitting(interval, float((shares >= share).mean()))


def binomial_interval(successes: int, trials: int) -> Interval:
    """A share of independent trials with its 95 % interval after Wilson (1927); nothing is known of no trials."""
    if trials == 0:
        return Interval(0.0, 0.0, 1.0)
    z = NormalDist().inv_cdf(0.975)
    share = successes / trials
    middle = (share + z**2 / (2 * trials)) / (1 + z**2 / trials)
    half = z / (1 + z**2 / trials) * np.sqrt(share * (1 - share) / trials + z**2 / (4 * trials**2))
    low, high = float(max(0.0, middle - half)), float(min(1.0, middle + half))
    return Interval(share, 0.0 if successes == 0 else low, 1.0 if successes == trials else high)


def advantage(main: float, control: float) -> float:
    """What of the success of an attack is due to the synthetic data, as anonymeter counts it.

    (Giomi et al., PoPETs 2023.) The rate `main` on training tiles beyond the rate `control` on held-out ones, over
    all that was left to gain: 0 for none, 1 for all.
    """
    return max(0.0, (main - control) / (1 - control)) if control < 1 else 0.0


def _auc_with_error(members: np.ndarray, non_members: np.ndarray) -> tuple[float, float, float]:
    """The AUC, its standard error, and Satterthwaite's degrees of freedom of that."""
    n, m = len(members), len(non_members)
    ranks = rankdata(np.concatenate([members, non_members]))
    above = (ranks[:n] - rankdata(members)) / m  # of each member, the share of non-members below it
    below = 1 - (ranks[n:] - rankdata(non_members)) / n
    of_members, of_others = float(above.var(ddof=1) / n), float(below.var(ddof=1) / m)
    variance = of_members + of_others
    freedom = float(min(n, m) - 1)
    if variance > 0:
        freedom = variance**2 / (of_members**2 / (n - 1) + of_others**2 / (m - 1))
    return float(above.mean()), variance**0.5, freedom


def _true_positives(
    members: np.ndarray, non_members: np.ndarray, confidence: float, seed: int
) -> dict[float, Interval | None]:
    rng = stream("bootstrap of an attack", seed)
    rates = [rate for rate in FALSE_POSITIVE_RATES if rate * len(non_members) >= 1]
    found: dict[float, Interval | None] = dict.fromkeys(FALSE_POSITIVE_RATES)
    if not rates:
        return found
    values = _rates_of(members, non_members, rates)
    draws = np.array(
        [
            _rates_of(rng.choice(members, len(members)), rng.choice(non_members, len(non_members)), rates)
            for _ in range(300)
        ]
    )
    for i, rate in enumerate(rates):
        low, high = np.quantile(draws[:, i], [0.5 - confidence / 2, 0.5 + confidence / 2])
        found[rate] = Interval(values[i], min(float(low), values[i]), max(float(high), values[i]))
    return found


def _rates_of(members: np.ndarray, non_members: np.ndarray, rates: list[float]) -> list[float]:
    """True positive rates where the highest-scoring ⌊rate · M⌋ non-members, and no more, are taken for members."""
    descending = np.sort(non_members)[::-1]
    return [
        float((members > descending[min(int(rate * len(descending)), len(descending) - 1)]).mean()) for rate in rates
    ]


def _log_density(points: np.ndarray, queries: np.ndarray) -> np.ndarray:
    """Log density, up to a constant that depends on the number of columns alone, N float64."""
    count, width = points.shape
    bandwidth = check_integer("points", count, 1) ** (-1 / (width + 4))  # Scott's rule
    deviation = np.maximum(points.std(axis=0), 1e-6) * bandwidth
    points, queries = points / deviation, queries / deviation
    squares = np.square(points).sum(axis=1)
    result = np.empty(len(queries))
    step = max(1, _PAIRS_PER_CALL // count)
    for start in range(0, len(queries), step):
        part = queries[start : start + step]
        exponents = part @ points.T - squares / 2 - np.square(part).sum(axis=1, keepdims=True) / 2
        highest = exponents.max(axis=1)
        result[start : start + step] = highest + np.log(np.exp(exponents - highest[:, None]).sum(axis=1))
    return result - np.log(count) - np.log(deviation).sum()


def _check_scores(scores: Any) -> np.ndarray:
    array = np.asarray(scores, dtype=np.float64)
    if array.ndim != 1 or len(array) < 2 or not np.isfinite(array).all():
        raise ValueError(f"scores have shape {array.shape}: they must be two or more finite numbers in one dimension")
    return array
