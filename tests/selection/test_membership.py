from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score
from sklearn.neighbors import KernelDensity

from histodistill.selection.membership import (
    Interval,
    Overfitting,
    advantage,
    binomial_interval,
    density_ratio_scores,
    distance_scores,
    measure_attack,
    measure_overfitting,
)
from histodistill.selection.permutation import redraw_within
from histodistill.selection.streams import stream


def test_auc_is_that_of_scikit_learn():
    rng = np.random.default_rng(0)
    members, others = rng.integers(0, 9, 70), rng.integers(0, 8, 50)  # with ties
    expected = roc_auc_score(np.repeat([1, 0], [70, 50]), np.concatenate([members, others]))
    assert measure_attack(members, others).auc.value == pytest.approx(expected)


def test_interval_of_the_auc_covers_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(1)
    covered = [
        measure_attack(rng.standard_normal(60), rng.standard_normal(40), 0.9).auc.covers(0.5) for _ in range(100)
    ]
    assert 0.8 <= np.mean(covered) <= 0.98


def test_interval_of_the_auc_holds_for_few_non_members():
    rng = np.random.default_rng(2)
    missed = [not measure_attack(rng.standard_normal(60), rng.standard_normal(6)).auc.covers(0.5) for _ in range(300)]
    assert np.mean(missed) < 0.075  # by a normal distribution it would be 0.09


def test_interval_of_the_auc_where_nothing_overlaps_is_a_point():
    auc = measure_attack([2.0, 3.0, 4.0], [0.0, 1.0]).auc
    assert (auc.low, auc.value, auc.high) == (1.0, 1.0, 1.0)


def test_true_positives():
    others = np.arange(1000.0)
    members = np.array([1500.0] * 30 + [995.0] * 20 + [10.0] * 50)
    attack = measure_attack(members, others)
    assert attack.true_positives[0.01].value == 0.5  # above 989, the eleventh from above
    assert attack.true_positives[0.001].value == 0.3
    assert attack.true_positives[0.01].low < 0.5 < attack.true_positives[0.01].high
    assert measure_attack(members, others[:200]).true_positives[0.001] is None


def test_scores_that_do_not_fit():
    with pytest.raises(ValueError, match="they must be two or more finite numbers"):
        measure_attack([1.0], [1.0, 2.0])
    with pytest.raises(ValueError, match="they must be two or more finite numbers"):
        measure_attack([1.0, np.nan], [1.0, 2.0])


def test_attacks_tell_members_that_were_copied_and_only_those():
    rng = np.random.default_rng(2)
    members, others, reference, control = (
        rng.standard_normal((n, 3)).astype(np.float32) for n in (200, 200, 400, 200)
    )
    copied = members + 0.05 * rng.standard_normal(members.shape).astype(np.float32)
    for synthetic, tells in ((copied, True), (control, False)):
        for scores in (
            [distance_scores(synthetic[None], tiles) for tiles in (members, others)],
            [density_ratio_scores(synthetic, reference, tiles) for tiles in (members, others)],
        ):
            auc = measure_attack(*scores).auc
            assert (auc.low > 0.5) == tells


def test_distance_is_to_the_nearest_view():
    views = np.array([[[0.0, 0.0]], [[4.0, 0.0]]], dtype=np.float32)
    np.testing.assert_allclose(distance_scores(views, np.array([[3.0, 0.0], [0.0, 2.0]], np.float32)), [-1, -2])


def test_density_ratio_is_that_of_kernel_estimates():
    rng = np.random.default_rng(3)
    reference, synthetic, tiles = (
        rng.standard_normal((50, 1)),
        2 + 0.5 * rng.standard_normal((80, 1)),
        np.zeros((3, 1)),
    )
    tiles[:, 0] = [0, 1.5, 2.5]

    def log_density(points):
        estimate = KernelDensity(bandwidth=points.std() * len(points) ** -0.2).fit(points)
        return estimate.score_samples(tiles)

    expected = log_density(synthetic) - log_density(reference)
    np.testing.assert_allclose(density_ratio_scores(synthetic, reference, tiles), expected, rtol=1e-5)


def nearest(synthetic: np.ndarray, real: np.ndarray) -> np.ndarray:
    return np.argmin(np.linalg.norm(synthetic[:, None] - real[None], axis=2), axis=1)


def overfitting(
    nearest: np.ndarray, held_out: np.ndarray, labels: np.ndarray, confidence: float = 0.95
) -> Overfitting:
    draws = redraw_within(held_out, labels, 1000, stream("shuffled membership"))
    return measure_overfitting(nearest, np.ones(len(held_out), int), draws, confidence)


def test_overfitting_is_at_chance_for_independent_images_and_found_for_copies():
    rng = np.random.default_rng(4)
    real = rng.standard_normal((330, 4))
    held_out = np.zeros(330, dtype=bool)
    held_out[::11] = True
    labels = np.arange(330) % 3
    independent = overfitting(nearest(rng.standard_normal((300, 4)), real), held_out, labels)
    assert independent.share.covers(0.5) and independent.p_value > 0.02
    copied = overfitting(nearest(real[~held_out][:150] + 0.01, real), held_out, labels)
    assert copied.share.value == 1 and copied.share.low > 0.6 and copied.p_value < 0.01
    # Copies of held-out tiles are the opposite.
    assert overfitting(nearest(real[held_out], real), held_out, labels).share.high < 0.5


def test_interval_of_overfitting_covers_chance_as_often_as_it_says():
    rng = np.random.default_rng(5)
    covered = []
    for _ in range(60):
        real, held_out = rng.standard_normal((220, 2)), rng.permutation(np.arange(220) < 40)
        found = overfitting(nearest(rng.standard_normal((150, 2)), real), held_out, np.zeros(220, int), 0.9)
        covered.append(found.share.covers(0.5))
    assert 0.78 <= np.mean(covered) <= 0.99


def test_shares():
    wilson = binomial_interval(3, 20)
    assert (wilson.value, wilson.low, wilson.high) == pytest.approx((0.15, 0.0524, 0.3604), abs=1e-4)
    assert binomial_interval(0, 50).low == 0 and binomial_interval(50, 50).high == 1
    assert binomial_interval(0, 0) == Interval(0.0, 0.0, 1.0)
    assert advantage(0.6, 0.5) == pytest.approx(0.2)
    assert advantage(0.4, 0.5) == 0 and advantage(1, 1) == 0
