"""What may be chosen at all."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from histodistill.selection import RandomSelector, at_least, recognised, typical
from histodistill.selection.filters import own_probability


PROBABILITIES = np.array([[0.75, 0.25, 0.0], [0.5, 0.25, 0.25], [0.0, 0.0, 1.0], [1.0, 0.0, 0.0], [0.25, 0.5, 0.25]])
LABELS = np.array([0, 0, 2, 1, 1])


def test_own_probability_is_that_of_the_class_the_image_was_made_as():
    own = own_probability(PROBABILITIES, LABELS)
    assert own.dtype == np.float32
    assert own.tolist() == [0.75, 0.5, 1.0, 0.0, 0.5]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [True, True, True, False, True]),  # 0.5 itself passes
        ({"min_probability": 0}, [True, True, True, True, True]),
        ({"min_probability": 0.51}, [True, False, True, False, False]),
        ({"min_probability": 1}, [False, False, True, False, False]),
    ],
)
def test_recognised(options, expected):
    passes = recognised(PROBABILITIES, LABELS, **options)
    assert passes.dtype == bool
    assert passes.tolist() == expected
    assert recognised(PROBABILITIES.tolist(), LABELS.tolist(), **options).tolist() == expected


@pytest.mark.parametrize(
    ("probabilities", "labels", "options", "message"),
    [
        (np.eye(3), [0, 1, 3], {}, "labels has the value 3, but probabilities has 3 columns: there must be one for"),
        (np.eye(3), [0, 1], {}, "labels has shape"),
        (np.eye(3), [0, 1, -1], {}, "labels has the value -1"),
        (np.eye(3), [0.0, 1.0, 2.0], {}, "labels has dtype float64"),
        (np.ones(3), [0, 1, 2], {}, r"probabilities has shape \(3,\)"),
        (np.full((3, 3), np.nan), [0, 1, 2], {}, "probabilities has 3 rows with NaN"),
        (np.eye(3), [0, 1, 2], {"min_probability": 1.01}, "min_probability=1.01 is out of range: it must be 0 to 1"),
        (np.eye(3), [0, 1, 2], {"min_probability": -0.5}, "min_probability=-0.5 is out of range"),
        (np.eye(3), [0, 1, 2], {"min_probability": float("nan")}, "min_probability=nan is out of range"),
        (np.eye(3), [0, 1, 2], {"min_probability": True}, "min_probability=True is out of range"),
    ],
)
def test_bad_probabilities_are_refused_in_one_sentence(probabilities, labels, options, message):
    with pytest.raises(ValueError, match=message) as caught:
        recognised(probabilities, labels, **options)
    assert "\n" not in str(caught.value)


# Real tiles at 0, 1 and 3: the nearest other one is at distance 1, 1 and 2, the second nearest at 3, 2 and 3.
@pytest.mark.parametrize(
    ("share", "n_neighbors", "inside", "outside"),
    [
        (1, 1, [-2, 0, 2, 5], [-2.01, 5.01]),
        (0, 1, [-1, 2, 4], [-1.01, 4.01]),
        (0.75, 1, [-1.5, 4.5], [-1.51, 4.51]),  # between 1 and 2: the quantile is 1.5
        (1, 2, [-2, 0, 3, 4], [-2.01, 4.01]),
        (0, 2, [-1, 2, 3 - 2**-20], [-1.01, 3.01]),
        (1, 5, [-2, 4], [-2.01, 4.01]),  # there are only two others
    ],
)
def test_typical_by_hand(share, n_neighbors, inside, outside):
    embeddings = np.array([*inside, *outside], dtype=np.float64)[:, None]
    passes = typical(
        embeddings, [0] * len(embeddings), [[0.0], [1.0], [3.0]], [0, 0, 0], share=share, n_neighbors=n_neighbors
    )
    assert passes.dtype == bool
    assert passes.tolist() == [True] * len(inside) + [False] * len(outside)


def test_typical_goes_by_the_tiles_of_the_own_class_alone():
    real, real_labels = np.array([[0.0], [10.0], [1.0], [14.0]]), [3, 5, 3, 5]
    embeddings = [[2.0], [2.0], [10.0], [10.0], [7.0], [5.9]]
    passes = typical(embeddings, [3, 5, 3, 5, 5, 5], real, real_labels, share=1, n_neighbors=1)
    assert passes.tolist() == [True, False, False, True, True, False]


def test_a_class_with_a_single_real_tile_lets_all_pass():
    passes = typical([[0.0], [1e6], [5.0]], [0, 0, 1], [[0.0], [0.0], [1.0]], [0, 1, 1], share=0.5)
    assert passes.tolist() == [True, True, False]


def test_real_tiles_that_are_all_the_same_let_only_their_like_pass():
    assert typical([[1.0], [1.5]], [0, 0], np.ones((9, 1)), [0] * 9).tolist() == [True, False]


def sample(seed=0):
    """Real tiles of two classes, images from the same distributions, and images far from them."""
    rng = np.random.default_rng(seed)
    centre = np.array([[0.0] * 4, [30.0] * 4])
    real_labels, labels = rng.permutation(np.repeat([0, 1], 500)), rng.permutation(np.repeat([0, 1], 1000))
    real = centre[real_labels] + rng.normal(size=(1000, 4)) * np.array([1, 8])[real_labels, None]
    like = centre[labels] + rng.normal(size=(2000, 4)) * np.array([1, 8])[labels, None]
    directions = rng.normal(size=(100, 4))
    far = 500 * directions / np.linalg.norm(directions, axis=1, keepdims=True)
    return real, real_labels, like, labels, far


@pytest.mark.parametrize("share", [0.5, 0.9])
@pytest.mark.parametrize("n_neighbors", [1, 5])
def test_about_that_share_of_images_like_the_real_tiles_passes_in_each_class(share, n_neighbors):
    real, real_labels, like, labels, _ = sample()
    passes = typical(like, labels, real, real_labels, share=share, n_neighbors=n_neighbors)
    standard_error = np.sqrt(share * (1 - share) * (1 / 500 + 1 / 1000))
    for label in (0, 1):
        assert passes[labels == label].mean() == pytest.approx(share, abs=3 * standard_error)


@pytest.mark.parametrize("share", [0, 0.5, 0.9, 1])
def test_far_outliers_never_pass(share):
    real, real_labels, like, labels, far = sample()
    both, of_both = np.concatenate([like, far]), np.concatenate([labels, np.arange(100) % 2])
    passes = typical(both, of_both, real, real_labels, share=share)
    assert not passes[2000:].any()
    # Nor do they change what is said of the others.
    np.testing.assert_array_equal(passes[:2000], typical(like, labels, real, real_labels, share=share))


def test_a_larger_share_lets_pass_what_a_smaller_one_did_and_the_order_of_tiles_does_not_matter():
    real, real_labels, like, labels, _ = sample()
    passes = [typical(like, labels, real, real_labels, share=share) for share in (0.2, 0.6, 0.95, 1)]
    for smaller, larger in pairwise(passes):
        assert (smaller <= larger).all() and smaller.sum() < larger.sum()
    order = np.random.default_rng(1).permutation(len(real))
    np.testing.assert_array_equal(typical(like, labels, real[order], real_labels[order], share=0.6), passes[1])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"share": 1.5}, "share=1.5 is out of range: it must be 0 to 1"),
        ({"share": -0.1}, "share=-0.1 is out of range"),
        ({"share": None}, "share=None is out of range"),
        ({"n_neighbors": 0}, "n_neighbors=0 is out of range: it must be at least 1"),
        ({"n_neighbors": 1.5}, "n_neighbors=1.5 is not valid"),
        ({"labels": [0, 2]}, "class 2 has no real tile: give real tiles of every class of the pool"),
        ({"labels": [0]}, "labels has shape"),
        ({"real_labels": [0, 1]}, r"real_labels has shape \(2,\): .* each of the 3 embeddings"),
        ({"real_embeddings": np.zeros((3, 3))}, "real_embeddings has 3 columns and embeddings 2: embed both with one"),
        ({"real_embeddings": np.full((3, 2), np.inf)}, "real_embeddings has 3 rows with NaN, infinite"),
        ({"embeddings": np.full((2, 2), np.inf)}, "embeddings has 2 rows with NaN, infinite"),
    ],
)
def test_bad_input_of_typical_is_refused_in_one_sentence(change, message):
    arguments = {
        "embeddings": np.eye(2),
        "labels": [0, 1],
        "real_embeddings": np.ones((3, 2)),
        "real_labels": [0, 1, 1],
    }
    with pytest.raises(ValueError, match=message) as caught:
        typical(**{**arguments, **change})
    assert "\n" not in str(caught.value)


def test_at_least_fills_up_by_score_and_equal_ones_by_index():
    labels = np.array([0, 1, 0, 0, 1, 0, 0, 2, 1, 2])
    candidates = np.array([0, 1, 0, 1, 0, 0, 0, 0, 1, 1], dtype=bool)
    scores = np.array([0.2, 0.0, 0.7, 0.1, 0.9, 0.7, 0.7, 0.0, 0.3, 0.5])
    expected = {
        1: [1, 3, 8, 9],
        2: [1, 2, 3, 7, 8, 9],  # class 0 gets the first of three equal ones, class 2 is whole
        3: [1, 2, 3, 4, 5, 7, 8, 9],
        5: [0, 1, 2, 3, 4, 5, 6, 7, 8, 9],
        100: [0, 1, 2, 3, 4, 5, 6, 7, 8, 9],
    }
    before = candidates.copy()
    for n_per_class, rows in expected.items():
        filled = at_least(candidates, scores, labels, n_per_class)
        assert filled.dtype == bool
        assert np.flatnonzero(filled).tolist() == rows
    np.testing.assert_array_equal(candidates, before)


def test_at_least_leaves_classes_with_enough_as_they_are():
    rng = np.random.default_rng(0)
    labels, candidates = rng.integers(0, 4, size=400), rng.random(400) < 0.5
    np.testing.assert_array_equal(at_least(candidates, rng.random(400), labels, 20), candidates)


def test_filters_together_let_a_selector_choose():
    real, real_labels, like, labels, far = sample()
    embeddings = np.concatenate([like[:60], far[:40]])
    labels = np.concatenate([labels[:60], np.arange(40) % 2])
    own = np.random.default_rng(0).random(100)
    probabilities = np.where(np.eye(2, dtype=bool)[labels], own[:, None], 1 - own[:, None])
    candidates = recognised(probabilities, labels) & typical(embeddings, labels, real, real_labels)
    n_per_class = 30
    assert np.bincount(labels[candidates]).max() < n_per_class
    selector = RandomSelector(n_per_class=n_per_class)
    with pytest.raises(ValueError, match="candidates among its"):
        selector.fit(embeddings, labels, candidates=candidates)
    filled = at_least(candidates, own_probability(probabilities, labels), labels, n_per_class)
    selected = selector.fit(embeddings, labels, candidates=filled).selected_indices_
    assert np.isin(np.flatnonzero(candidates), selected).all()
