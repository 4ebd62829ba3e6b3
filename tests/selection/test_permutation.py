from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from histodistill.selection.permutation import aucs_of_draws, detectable_auc, joint_test, sums_over


def all_draws(count: int, held_out: int) -> np.ndarray:
    rows = [np.isin(np.arange(count), chosen) for chosen in combinations(range(count), held_out)]
    return np.array(rows)


def test_aucs_are_those_of_scikit_learn():
    rng = np.random.default_rng(0)
    scores = rng.integers(0, 6, (30, 3)).astype(float)  # with ties
    draws = np.array([rng.permutation(np.arange(30) < 7) for _ in range(20)])
    expected = [[roc_auc_score(~held, scores[:, k]) for k in range(3)] for held in draws]
    assert np.allclose(aucs_of_draws(scores, draws), expected, atol=1e-12)


def test_sums_do_not_depend_on_parts(monkeypatch):
    rng = np.random.default_rng(0)
    draws, values = rng.random((50, 8)) < 0.5, rng.integers(0, 9, (8, 2))
    whole = sums_over(draws, values)
    monkeypatch.setattr("histodistill.selection.permutation._BYTES_PER_CALL", 7 * 8 * 8)
    assert (sums_over(draws, values) == whole).all()


def test_p_value_is_exact_where_all_draws_are_known():
    """Of the 15 ways to hold out 2 of 6, one other than what was found gives members as high a rank."""
    scores = np.array([6.0, 5.0, 4.0, 3.0, 2.0, 2.0])
    draws = all_draws(6, 2)[::-1]  # the last two held out first
    assert draws[0].tolist() == [False] * 4 + [True] * 2
    test = joint_test(aucs_of_draws(scores[:, None], draws), {"all": [0]}, rate=0.2)
    assert test.p_values == pytest.approx([1 / 15]) and test.adjusted == {"all": pytest.approx(1 / 15)}
    # Held out are the two lowest, or one of them and the next: 1 + 2 draws of 15, at most a fifth.
    assert test.level == pytest.approx(3 / 15)


def test_statistics_are_judged_together():
    """The same statistic twice costs nothing; one of its own makes the other count for less."""
    draws = all_draws(8, 3)[::-1]
    first = aucs_of_draws(np.arange(8.0)[::-1, None], draws)
    other = aucs_of_draws(np.random.default_rng(1).permutation(8.0 * np.arange(8))[:, None], draws)
    twice = joint_test(np.column_stack([first, first]), {"a": [0], "b": [1]}, 0.05)
    assert twice.adjusted == {"a": pytest.approx(1 / 56), "b": pytest.approx(1 / 56)}
    both = joint_test(np.column_stack([first, other]), {"a": [0], "b": [1], "none": []}, 0.05)
    assert both.adjusted["a"] == pytest.approx(2 / 56) and both.adjusted["b"] > both.adjusted["a"]
    assert both.adjusted["none"] == 1


def test_no_more_than_the_nominal_share_fails_by_chance():
    """Each of the rows may be the one that was found: exactly as many fail as the rate allows, or fewer."""
    columns = np.random.default_rng(2).standard_normal((400, 5)).round(1)
    failing = 0
    for row in range(400):
        test = joint_test(np.roll(columns, -row, axis=0), {"all": range(5)}, 0.05)
        failing += test.adjusted["all"] <= 0.05
        assert (test.adjusted["all"] <= 0.05) == (test.p_values.min() <= test.level)
    assert 0.03 * 400 <= failing <= 0.05 * 400


def test_detectable_auc_is_found_as_often_as_it_says():
    members, others, level = 90, 10, 0.02
    auc = detectable_auc(members, others, level)
    assert 0.75 < auc < 0.9
    rng, apart = np.random.default_rng(3), np.sqrt(2) * 1.0364  # normal scores so far apart have an AUC of .85
    draws = np.array([rng.permutation(np.arange(100) >= members) for _ in range(500)])
    limit = np.quantile(aucs_of_draws(np.arange(100.0)[:, None], draws), 1 - level)
    held = np.arange(100) >= members
    scores = rng.standard_normal((100, 400)) + apart * (auc - 0.5) / 0.35 * ~held[:, None]
    found = aucs_of_draws(scores, held[None])[0]
    assert np.mean(found >= limit) == pytest.approx(0.95, abs=0.05)
    assert detectable_auc(45, 55, level) < auc < detectable_auc(95, 5, level)


@pytest.mark.parametrize(("members", "others", "level"), [(90, 1, 0.02), (3, 2, 0.02), (1, 30, 0.02), (90, 10, 0.0)])
def test_with_too_few_units_nothing_can_be_found(members, others, level):
    assert detectable_auc(members, others, level) is None
