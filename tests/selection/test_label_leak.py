from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from histodistill.selection.label_leak import measure_label_leak


def scores(count: int, seed: int, *, more: float = 0.0) -> np.ndarray:
    """Scores of two attackers, who say much the same of a tile; to the second one members look so much likelier."""
    rng = np.random.default_rng(seed)
    common = rng.normal(size=(count, 1))
    return (common + 0.3 * rng.normal(size=(count, 2)) + [0, more]).round(2)  # with ties


def test_areas_are_those_of_scikit_learn():
    members, others = scores(80, 0, more=0.5), scores(50, 1)
    leak, truth = measure_label_leak(members, others), [1] * 80 + [0] * 50
    expected = [roc_auc_score(truth, np.concatenate([members[:, i], others[:, i]])) for i in range(2)]
    assert [leak.by_labels.value, leak.by_soft_labels.value] == pytest.approx(expected)
    assert leak.difference.value == pytest.approx(expected[1] - expected[0])
    for interval in vars(leak).values():
        assert interval.low < interval.value < interval.high


def test_what_soft_labels_give_away_is_seen_and_nothing_else():
    leak = measure_label_leak(scores(300, 0, more=0.3), scores(300, 1))
    assert leak.difference.low > 0
    # Of tiles that both attackers tell alike, they give away nothing more.
    both = scores(300, 0) + 1.0
    leak = measure_label_leak(both, scores(300, 1))
    assert leak.by_labels.low > 0.5 and leak.difference.covers(0)
    # What both say of a tile goes together, so their difference is known better than either.
    assert leak.difference.high - leak.difference.low < leak.by_labels.high - leak.by_labels.low


def test_tiles_of_a_group_are_drawn_together():
    members, others = (np.repeat(scores(12, seed), 25, axis=0) for seed in (0, 1))
    groups = [np.repeat(np.char.add(name, np.arange(12).astype(str)), 25) for name in ("a", "b")]
    alone, grouped = measure_label_leak(members, others), measure_label_leak(members, others, *groups)
    assert grouped.by_labels.value == alone.by_labels.value
    width = grouped.by_labels.high - grouped.by_labels.low
    assert width > 3 * (alone.by_labels.high - alone.by_labels.low)
    # As wide as if each group had one tile.
    single = measure_label_leak(members[::25], others[::25]).by_labels
    assert width == pytest.approx(single.high - single.low, rel=0.15)


def test_the_seed_decides():
    given = scores(30, 0), scores(30, 1)
    assert measure_label_leak(*given) == measure_label_leak(*given)
    assert measure_label_leak(*given, seed=1).difference != measure_label_leak(*given).difference


@pytest.mark.parametrize(
    ("members", "message"),
    [
        (np.full((3, 2), np.nan), r"scores have shape \(3, 2\): they must be finite"),
        (np.zeros((3, 1)), r"scores have shape \(3, 1\)"),
        (np.zeros((1, 2)), "there are 1 tiles or groups of a kind"),
        (np.zeros((0, 2)), "there are 0 tiles or groups of a kind"),
    ],
)
def test_scores_that_tell_nothing_are_refused(members, message):
    with pytest.raises(ValueError, match=message):
        measure_label_leak(members, scores(5, 0))
    with pytest.raises(ValueError, match="there are 1 tiles or groups"):
        measure_label_leak(scores(5, 0), scores(5, 1), np.zeros(5), np.arange(5))
