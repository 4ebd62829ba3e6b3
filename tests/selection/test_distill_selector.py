from __future__ import annotations

import doctest

import numpy as np
import pytest

from histodistill.selection import (
    DegenerateGraphWarning,
    DistillSelector,
    distill_selector,
    find_communities,
    knn_graph,
)


BLOB_SIZES = [40, 30, 20, 10]


def two_classes_of_blobs():
    """Class 0: blobs of 40, 30, 20, 10 images; class 1: four of 25. Returns embeddings, labels and blob of each."""
    rng = np.random.default_rng(0)
    blob = np.repeat(np.arange(8), [*BLOB_SIZES, 25, 25, 25, 25])
    embeddings = (30 * np.eye(8)[blob] + rng.normal(size=(200, 8))).astype(np.float32)
    order = rng.permutation(200)
    return embeddings[order], (blob[order] >= 4).astype(np.int64), blob[order]


def fit_blobs(**params):
    """Communities are then exactly the blobs, largest first: with a Markov time of 1 Infomap splits some of them."""
    embeddings, labels, blob = two_classes_of_blobs()
    selector = DistillSelector(n_per_class=20, n_neighbors=8, markov_time=2.0, **params).fit(embeddings, labels)
    return selector, labels, blob


def test_the_example_in_the_documentation():
    assert doctest.testmod(distill_selector).failed == 0


def test_attributes():
    selector, labels, _ = fit_blobs()
    assert selector.module_labels_.shape == (200,) and selector.module_labels_.dtype == np.int64
    assert selector.modular_centrality_.shape == (200,) and selector.modular_centrality_.dtype == np.float64
    assert selector.codelength_.shape == selector.num_communities_.shape == (2,)
    assert (selector.codelength_ > 0).all()
    for label in (0, 1):
        assert selector.flow_[labels == label].sum() == pytest.approx(1)


def test_community_labels_are_unique_across_classes_and_without_gaps():
    selector, labels, _ = fit_blobs()
    first, second = selector.num_communities_
    assert np.unique(selector.module_labels_[labels == 0]).tolist() == list(range(first))
    assert np.unique(selector.module_labels_[labels == 1]).tolist() == list(range(first, first + second))


def test_separated_blobs_are_chosen_by_their_size():
    selector, _, blob = fit_blobs()
    assert selector.num_communities_.tolist() == [4, 4]
    assert np.bincount(blob[selector.selected_indices_]).tolist() == [8, 6, 4, 2, 5, 5, 5, 5]


def test_separated_blobs_are_chosen_evenly_under_the_uniform_quota():
    selector, _, blob = fit_blobs(quota="uniform")
    assert np.bincount(blob[selector.selected_indices_]).tolist() == [5] * 8


def test_the_first_images_of_a_class_are_one_of_each_community():
    selector, _, _ = fit_blobs()
    of_class_0 = selector.module_labels_[selector.selected_indices_[:20]]
    assert of_class_0[:8].tolist() == [0, 1, 2, 3, 0, 1, 2, 3]
    assert of_class_0[-2:].tolist() == [0, 0]  # only the largest has places left


@pytest.mark.parametrize("quota", ["proportional", "uniform", "sqrt"])
def test_the_most_central_of_each_community_are_chosen_most_central_first(quota):
    selector, _, _ = fit_blobs(quota=quota)
    for community in np.unique(selector.module_labels_):
        members = np.flatnonzero(selector.module_labels_ == community)
        ranked = members[np.lexsort((members, -selector.modular_centrality_[members]))]
        chosen = selector.selected_indices_[selector.module_labels_[selector.selected_indices_] == community]
        np.testing.assert_array_equal(chosen, ranked[: len(chosen)])


def test_parameters_reach_graph_and_infomap():
    embeddings, labels, _ = two_classes_of_blobs()
    params = {"n_neighbors": 4, "weighting": "cosine", "markov_time": 0.8, "num_trials": 2, "random_state": 5}
    selector = DistillSelector(n_per_class=20, **params).fit(embeddings, labels)
    for label in (0, 1):
        rows = labels == label
        found = find_communities(
            knn_graph(embeddings[rows], 4, "cosine"), markov_time=0.8, num_trials=2, random_state=5
        )
        np.testing.assert_array_equal(selector.modular_centrality_[rows], found.modular_centrality)
        assert selector.codelength_[label] == found.codelength


def test_a_single_community_is_told_with_its_class_and_still_gives_exactly_n():
    rng = np.random.default_rng(0)
    with pytest.warns(DegenerateGraphWarning, match="class 7: Infomap put all 30 nodes into one community"):
        selector = DistillSelector(n_per_class=10, n_neighbors=29).fit(rng.normal(size=(30, 4)), np.full(30, 7))
    by_centrality = np.lexsort((np.arange(30), -selector.modular_centrality_))
    np.testing.assert_array_equal(selector.selected_indices_, by_centrality[:10])


def test_images_all_alone_are_told_and_still_give_exactly_n():
    rng = np.random.default_rng(0)
    with pytest.warns(DegenerateGraphWarning, match="class 0: Infomap left each of the 30 nodes alone"):
        selector = DistillSelector(n_per_class=10, n_neighbors=3, markov_time=0.01).fit(
            rng.normal(size=(30, 4)), np.zeros(30, dtype=int)
        )
    assert selector.num_communities_.tolist() == [30]
    assert selector.module_labels_[selector.selected_indices_].tolist() == list(range(10))
