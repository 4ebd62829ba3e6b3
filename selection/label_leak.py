"""Do the soft labels of a set tell more of the tiles that their teacher was trained on than its images do?

Soft labels come from a classifier that has seen the real tiles. Whatever they give away goes by way of what is learned
from them, so two attackers are compared, who have learned from the same images: one by labels, and one by soft labels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.stats import rankdata

from histodistill.selection.membership import Interval
from histodistill.selection.near_copies import in_order
from histodistill.selection.streams import stream


# Draws of the bootstrap.
_DRAWS = 1000


@dataclass(frozen=True)
class LabelLeak:
    """How well two attackers tell members from non-members, each as the area under the ROC curve; 0.5 is guessing.

    Attributes:
        by_labels: Of one who has learned from the images and their labels.
        by_soft_labels: Of one who has learned from the images and their soft labels.
        difference: The second minus the first, of −1 to 1: what is due to the soft labels.
    """

    by_labels: Interval
    by_soft_labels: Interval
    difference: Interval


def measure_label_leak(
    members: np.ndarray,
    non_members: np.ndarray,
    member_groups: np.ndarray | None = None,
    non_member_groups: np.ndarray | None = None,
    confidence: float = 0.95,
    seed: int = 0,
) -> LabelLeak:
    """Compares two attackers on the same tiles.

    Intervals are percentiles of a bootstrap of 1,000 draws, which draws members and non-members with what both
    attackers say of them; where there are groups, it draws whole groups.

    Args:
        members: N×2 real numbers, the scores of members by labels and by soft labels: higher for a likelier member.
        non_members: M×2.
        member_groups, non_member_groups: The group of each, of any kind; None for tiles that stand for themselves.
        confidence: Confidence of the intervals, 0 to 1.
        seed: Seed of the bootstrap.

    Raises:
        ValueError: For scores that are not finite, or of fewer than two groups or tiles of either kind.
    """
    kinds = []
    for scores, groups in ((members, member_groups), (non_members, non_member_groups)):
        if scores.ndim != 2 or scores.shape[1] != 2 or not np.isfinite(scores).all():
            raise ValueError(f"scores have shape {scores.shape}: they must be finite numbers of two attackers, N×2")
        codes = np.arange(len(scores)) if groups is None else in_order(groups)
        units = np.split(np.argsort(codes, kind="stable"), np.cumsum(np.bincount(codes))[:-1]) if len(codes) else []
        if len(units) < 2:
            raise ValueError(f"there are {len(units)} tiles or groups of a kind: an attack is measured on two or more")
        kinds.append((scores, units))
    rng = stream("bootstrap of the attack on soft labels", seed)
    drawn = np.empty((_DRAWS, 2))
    for draw in range(_DRAWS):
        rows = [np.concatenate([units[i] for i in rng.integers(0, len(units), len(units))]) for _, units in kinds]
        drawn[draw] = _areas(*(scores[chosen] for (scores, _), chosen in zip(kinds, rows, strict=True)))
    found = _areas(members, non_members)
    values, draws = [*found, found[1] - found[0]], [*drawn.T, drawn[:, 1] - drawn[:, 0]]
    return LabelLeak(*(_interval(*pair, confidence) for pair in zip(values, draws, strict=True)))


def _areas(members: np.ndarray, non_members: np.ndarray) -> np.ndarray:
    """The area under the ROC curve of each column of scores; ties count half."""
    ranks = rankdata(np.concatenate([members, non_members]), axis=0)[: len(members)]
    return (ranks.mean(axis=0) - (len(members) + 1) / 2) / len(non_members)


def _interval(value: float, draws: np.ndarray, confidence: float) -> Interval:
    low, high = np.quantile(draws, [0.5 - confidence / 2, 0.5 + confidence / 2])
    return Interval(float(value), float(min(low, value)), float(max(high, value)))
