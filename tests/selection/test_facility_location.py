"""Facility location against its definition, written naively."""

from __future__ import annotations

import numpy as np
import pytest

from histodistill.selection import FacilityLocationSelector, baselines


def all_distances(images, points):
    images, points = (np.asarray(x, dtype=np.float32).astype(np.float64) for x in (images, points))
    return np.sqrt(np.square(images[:, None, :] - points[None, :, :]).sum(axis=2))


def greedy_by_definition(images, points, n):
    """One after the other the image that leaves the least sum of the distances from points to their nearest chosen."""
    distances = all_distances(images, points)
    chosen = []
    for _ in range(n):
        best, least = None, np.inf
        for image in range(len(images)):
            if image in chosen:
                continue
            total = sum(min(distances[other, point] for other in [*chosen, image]) for point in range(len(points)))
            if total < least - 1e-9:  # of equal ones the first
                best, least = image, total
        chosen.append(best)
    return chosen


def naive_mean_distance(images, points, chosen):
    return np.mean([min(all_distances(images[chosen], points)[:, point]) for point in range(len(points))])


def one_class(images):
    return images, np.zeros(len(images), dtype=int)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_pool_is_covered_as_by_the_definition(seed):
    images = np.random.default_rng(seed).normal(size=(30, 3))
    selector = FacilityLocationSelector(n_per_class=12).fit(*one_class(images))
    expected = greedy_by_definition(images, images, 12)
    assert selector.selected_indices_.tolist() == expected
    assert selector.mean_distance_ == pytest.approx(naive_mean_distance(images, images, expected), rel=1e-6)


def test_images_that_add_nothing_are_taken_by_index():
    images = np.array([[9.0], [5.0], [5.0], [5.0], [0.0]])
    selector = FacilityLocationSelector(n_per_class=5).fit(*one_class(images))
    assert selector.selected_indices_.tolist() == [1, 4, 0, 2, 3]
    assert selector.mean_distance_.tolist() == [0.0]


def test_of_two_images_that_only_serve_each_other_the_first_is_taken():
    rng = np.random.default_rng(0)
    for _ in range(20):
        # Far from all others, each of the last two gains the same: both distances to the first choice, less their own.
        middle = rng.normal(size=(30, 2)) / 100
        pair = [[4, 0], [4, 0]] + rng.uniform(0.05, 0.3, size=(2, 2)) * [[1, 1], [-1, 1]]
        selector = FacilityLocationSelector(n_per_class=2).fit(*one_class(np.concatenate([middle, pair])))
        assert selector.selected_indices_[1] == 30


@pytest.mark.parametrize("outlier", [1e3, 1e9])
def test_the_first_image_is_the_medoid(outlier):
    rng = np.random.default_rng(0)
    images = rng.exponential(size=(200, 5))
    images[50] = outlier  # moves the mean but hardly the medoid
    selector = FacilityLocationSelector(n_per_class=1).fit(*one_class(images))
    assert selector.selected_indices_.tolist() == [int(all_distances(images, images).sum(axis=1).argmin())]


def test_the_choice_of_fewer_is_the_beginning_of_that_of_more():
    images = np.random.default_rng(0).normal(size=(60, 4))
    few, many = (FacilityLocationSelector(n_per_class=n).fit(*one_class(images)) for n in (5, 20))
    np.testing.assert_array_equal(few.selected_indices_, many.selected_indices_[:5])
    assert many.mean_distance_ < few.mean_distance_


def test_each_blob_of_the_pool_gets_an_image():
    rng = np.random.default_rng(0)
    blob = np.repeat(np.arange(4), [40, 30, 20, 10])
    images = 20 * np.eye(4)[blob] + rng.normal(size=(100, 4))
    selector = FacilityLocationSelector(n_per_class=4).fit(*one_class(images))
    assert sorted(blob[selector.selected_indices_]) == [0, 1, 2, 3]


def test_mean_distance_is_told_for_each_class_and_is_less_than_of_any_random_choice():
    rng = np.random.default_rng(0)
    images, labels = rng.normal(size=(120, 4)), rng.permutation(np.repeat([1, 3], 60))
    selector = FacilityLocationSelector(n_per_class=8).fit(images, labels)
    assert selector.mean_distance_.shape == (2,) and selector.mean_distance_.dtype == np.float64
    for place, label in enumerate((1, 3)):
        points = images[labels == label]
        chosen = selector.selected_indices_[8 * place : 8 * place + 8]
        found = selector.mean_distance_[place]
        assert found == pytest.approx(naive_mean_distance(images, points, chosen), rel=1e-6)
        members = np.flatnonzero(labels == label)
        for _ in range(20):
            assert found < naive_mean_distance(images, points, rng.choice(members, size=8, replace=False))


def test_too_many_distances_are_refused_in_one_sentence(monkeypatch):
    monkeypatch.setattr(baselines, "LARGEST_DISTANCE_MATRIX", 100)
    images = np.random.default_rng(0).normal(size=(11, 2))
    selector = FacilityLocationSelector(n_per_class=2).fit(*one_class(images[:10]))  # just small enough
    before = selector.selected_indices_
    message = "class 0 has 11 images, too many for facility location, which holds all their distances, at most 100"
    with pytest.raises(ValueError, match=message) as caught:
        selector.fit(*one_class(images))
    assert "\n" not in str(caught.value)
    assert selector.selected_indices_ is before

    selector.fit(*one_class(images), candidates=np.arange(11) > 0)  # only candidates count
    assert selector.selected_indices_.min() > 0


def test_the_largest_embeddings_that_are_accepted_change_nothing():
    points = np.random.default_rng(0).integers(-9, 10, size=(20, 3)).astype(np.float32)
    labels = np.zeros(20, dtype=int)
    small = FacilityLocationSelector(n_per_class=6).fit(points, labels)
    large = FacilityLocationSelector(n_per_class=6).fit(points * np.float32(2.0**124), labels)
    np.testing.assert_array_equal(large.selected_indices_, small.selected_indices_)
    assert large.mean_distance_[0] == pytest.approx(small.mean_distance_[0] * 2.0**124)


def test_the_least_numbers_are_chosen_from():
    embeddings = np.array([[1e-45], [0], [-1e-45]], np.float32)
    selector = FacilityLocationSelector(n_per_class=1).fit(embeddings, np.zeros(3, np.int64))
    assert len(selector.selected_indices_) == 1 and np.isfinite(selector.mean_distance_).all()
