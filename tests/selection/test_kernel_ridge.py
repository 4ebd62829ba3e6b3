"""Tests of `selection/kernel_ridge.py`."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from sklearn.kernel_ridge import KernelRidge

from histodistill.selection import KernelRidgeSelector, RandomSelector, kernel_ridge


def pool(seed=0, per_class=60, n_classes=3, width=8):
    """Classes that overlap, each of a few groups."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(n_classes), per_class)
    embeddings = rng.normal(size=(len(labels), width))
    embeddings += 2 * rng.normal(size=(n_classes, 4, width))[labels, rng.integers(0, 4, size=len(labels))]
    return embeddings.astype(np.float32), labels


def errors(embeddings, labels, chosen, ridge=0.01):
    """What scikit-learn's kernel ridge regression errs by for each image, trained on those chosen."""
    values = embeddings.astype(np.float64)
    squared = np.square(values[:, None] - values[None]).sum(axis=2)
    gamma = 1 / np.median(squared[np.triu_indices(len(values), 1)])
    classes = np.unique(labels)
    targets = (labels[:, None] == classes).astype(float)
    targets -= targets.mean(axis=0)
    model = KernelRidge(alpha=ridge, kernel="rbf", gamma=gamma).fit(values[chosen], targets[chosen])
    return np.square(model.predict(values) - targets).sum(axis=1)


@pytest.mark.parametrize("sweeps", [0, 1, 3])
@pytest.mark.parametrize("ridge", [0.01, 1.0])
def test_the_error_is_that_of_scikit_learn(sweeps, ridge):
    embeddings, labels = pool()
    selector = KernelRidgeSelector(n_per_class=12, sweeps=sweeps, ridge=ridge).fit(embeddings, labels)
    expected = errors(embeddings, labels, selector.selected_indices_, ridge)
    np.testing.assert_allclose(
        selector.error_, [expected[labels == label].mean() for label in range(3)], rtol=1e-4, atol=1e-6
    )


def test_each_image_is_the_one_that_lowers_the_error_most():
    embeddings, labels = pool(per_class=20)
    chosen = KernelRidgeSelector(n_per_class=4, sweeps=0).fit(embeddings, labels).selected_indices_.reshape(3, 4)
    so_far: list[int] = []
    for place, label in product(range(4), range(3)):  # one of each class in turn
        free = np.setdiff1d(np.flatnonzero(labels == label), so_far)
        reached = [errors(embeddings, labels, [*so_far, image]).sum() for image in free]
        assert chosen[label, place] == free[np.argmin(reached)]
        so_far.append(int(chosen[label, place]))


def test_no_exchange_of_one_image_lowers_the_error_further():
    embeddings, labels = pool(per_class=15)
    selector = KernelRidgeSelector(n_per_class=2, sweeps=50).fit(embeddings, labels)
    chosen = selector.selected_indices_
    least = errors(embeddings, labels, chosen).sum()
    # The first of each class came in an earlier stage.
    for place in (1, 3, 5):
        for other in np.setdiff1d(np.flatnonzero(labels == labels[chosen[place]]), chosen):
            exchanged = chosen.copy()
            exchanged[place] = other
            assert errors(embeddings, labels, exchanged).sum() >= least * (1 - 1e-5)


def test_it_is_far_better_than_chance_and_exchanges_do_no_harm():
    embeddings, labels = pool(per_class=150)

    def error(selector):
        return errors(embeddings, labels, selector.fit(embeddings, labels).selected_indices_).sum()

    by_sweeps = [error(KernelRidgeSelector(n_per_class=10, sweeps=sweeps)) for sweeps in (0, 2)]
    by_chance = [error(RandomSelector(n_per_class=10, random_state=seed)) for seed in range(5)]
    assert max(by_sweeps) < 0.8 * min(by_chance)


@pytest.mark.parametrize("fewer", [1, 2, 5, 10, 20])
def test_the_first_of_each_class_are_the_choice_of_fewer(fewer):
    embeddings, labels = pool(per_class=80)
    many = KernelRidgeSelector(n_per_class=25).fit(embeddings, labels).selected_indices_.reshape(3, 25)
    few = KernelRidgeSelector(n_per_class=fewer).fit(embeddings, labels).selected_indices_.reshape(3, fewer)
    np.testing.assert_array_equal(many[:, :fewer], few)


def test_it_looks_across_classes():
    embeddings, labels = pool()
    together = KernelRidgeSelector(n_per_class=5).fit(embeddings, labels).selected_indices_[:5]
    two = labels < 2
    alone = KernelRidgeSelector(n_per_class=5).fit(embeddings[two], labels[two]).selected_indices_[:5]
    assert set(together) != set(alone)


def test_of_many_images_some_are_to_be_predicted():
    embeddings, labels = pool(per_class=200)
    one, two = (
        KernelRidgeSelector(n_per_class=5, n_targets=60, random_state=seed).fit(embeddings, labels) for seed in (0, 1)
    )
    assert set(one.selected_indices_) != set(two.selected_indices_)
    by_chance = errors(embeddings, labels, RandomSelector(n_per_class=5).fit(embeddings, labels).selected_indices_)
    assert errors(embeddings, labels, one.selected_indices_).sum() < by_chance.sum()


def test_of_very_many_images_some_are_looked_at():
    embeddings, labels = pool(per_class=200)
    # Ten times as many as are chosen, and 200: the latter is all.
    some, every = (
        KernelRidgeSelector(n_per_class=5, max_candidates=most).fit(embeddings, labels) for most in (1, 200)
    )
    assert set(some.selected_indices_) != set(every.selected_indices_)
    by_chance = errors(embeddings, labels, RandomSelector(n_per_class=5).fit(embeddings, labels).selected_indices_)
    found = [errors(embeddings, labels, selector.selected_indices_).sum() for selector in (some, every)]
    assert found[0] < 0.9 * by_chance.sum() and found[1] <= found[0]


def test_scale_and_place_of_the_embeddings_do_not_matter():
    embeddings, labels = pool()
    one = KernelRidgeSelector(n_per_class=5).fit(embeddings, labels)
    other = KernelRidgeSelector(n_per_class=5).fit(embeddings * np.float32(2.0**90), labels)
    np.testing.assert_array_equal(one.selected_indices_, other.selected_indices_)
    moved = KernelRidgeSelector(n_per_class=5).fit(embeddings + 100, labels)
    np.testing.assert_allclose(one.error_, moved.error_, rtol=0.02)


def test_an_exchange_that_rounding_made_worse_is_taken_back(monkeypatch):
    embeddings, labels = pool()
    classes = labels.astype(np.int64)
    choice = kernel_ridge._Choice(embeddings, classes, np.arange(len(labels)), 0.01, 1.0, np.random.default_rng(0))
    for _ in range(5):
        for label in range(3):
            choice.add(label)
    before, error = list(choice.chosen), choice.error()
    # Whatever is tried seems better than it is.
    best = choice._best
    monkeypatch.setattr(
        choice, "_best", lambda label, without: (choice.members[label].stop - 1 - len(choice.chosen) % 7, 0.0)
    )
    assert choice.exchange(0) is False
    assert choice.chosen == before
    assert choice.error() == pytest.approx(error, rel=1e-6)
    monkeypatch.setattr(choice, "_best", best)
    assert choice.exchange(0) is True
    assert choice.error() < error


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"ridge": 0}, "ridge=0 is not valid: it must be a finite number above 0"),
        ({"width": -1.0}, "width=-1.0 is not valid"),
        ({"n_targets": 0}, "n_targets=0 is out of range: it must be at least 1"),
        ({"max_candidates": 0}, "max_candidates=0 is out of range: it must be at least 1"),
        ({"sweeps": -1}, "sweeps=-1 is out of range: it must be at least 0"),
        ({"sweeps": 1.5}, "sweeps=1.5 is not valid"),
    ],
)
def test_its_options_are_checked(params, message):
    with pytest.raises(ValueError, match=message):
        KernelRidgeSelector(n_per_class=1, **params).fit(*pool())
