from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from histodistill.training.evaluation.generation_metrics import frechet_distance, kernel_distance, neighbourhoods
from histodistill.training.evaluation.pool_figures import CANDIDATES, DISTANCES
from histodistill.training.evaluation.pool_quality import (
    compare_with_validation,
    draw_equal,
    measure_distances,
)


# Equal numbers of each class.


label_sets = st.lists(st.lists(st.integers(0, 3), max_size=25), min_size=1, max_size=3)


@given(sets=label_sets, seed=st.integers(0, 2**32))
@settings(max_examples=60, deadline=None)
def test_every_set_gives_as_many_of_a_class_as_the_smallest_has(sets, seed):
    sets = [np.array(labels, np.int64) for labels in sets]
    drawn = draw_equal(sets, 4, seed)
    assert len(drawn) == len(sets)
    for labels, rows_by_class in zip(sets, drawn, strict=True):
        assert len(rows_by_class) == 4
        for label, rows in enumerate(rows_by_class):
            assert len(rows) == min(np.sum(other == label) for other in sets)
            assert len(set(rows.tolist())) == len(rows)
            assert (labels[rows] == label).all()


def test_draw_depends_on_the_seed_alone():
    sets = [np.repeat([0, 1], 50), np.repeat([0, 1], 20)]
    first, again, other = (draw_equal(sets, 2, seed) for seed in (5, 5, 6))
    for label in (0, 1):
        assert np.array_equal(first[0][label], again[0][label])
        assert set(first[0][label]) != set(other[0][label])
        # Drawn from everywhere, not the first ones.
        assert first[0][label].max() > 50 * label + 25
        # Of the smallest set, all.
        assert set(first[1][label]) == set(np.flatnonzero(sets[1] == label))


# Distances.


def labelled(counts: list[int], seed: int, shift: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Embeddings float32 N×3 with so many of each class, and their labels."""
    labels = np.repeat(np.arange(len(counts)), counts)
    points = np.random.default_rng(seed).standard_normal((len(labels), 3)) + 4 * labels[:, None] + shift
    return points.astype(np.float32), labels


def compare(n_neighbors: int = 2, **sets: tuple[np.ndarray, np.ndarray]) -> list[dict]:
    embeddings, labels = ({name: pair[i] for name, pair in sets.items()} for i in (0, 1))
    names = [f"class {i}" for i in range(1 + max(int(of_set.max()) for of_set in labels.values()))]
    records = compare_with_validation(embeddings, labels, names, n_neighbors)
    assert [record["class"] for record in records] == [None, *names]
    assert all(list(record) == ["class", "num_images", "pool", "real_train"] for record in records)
    return records


def test_distances_are_those_of_the_measures():
    real, generated = labelled([20], 0)[0], labelled([20], 1, shift=0.5)[0]
    assert measure_distances(real, generated, 4) == {
        "frechet_distance": frechet_distance(real, generated),
        "kernel_distance": kernel_distance(real, generated),
        **vars(neighbourhoods(real, generated, 4)),
    }
    assert list(measure_distances(real, generated, 4)) == list(DISTANCES)
    assert measure_distances(real, generated, 19)["coverage"] > 0
    assert measure_distances(real, generated, 20) == dict.fromkeys(DISTANCES)


def test_the_same_tiles_have_no_distance():
    points = labelled([12, 8], 0)
    for record in compare(validation=points, pool=points, real_train=points):
        for name in CANDIDATES:
            assert record[name]["frechet_distance"] == pytest.approx(0, abs=1e-5)
            assert (record[name]["precision"], record[name]["recall"], record[name]["coverage"]) == (1, 1, 1)


def test_the_pool_is_measured_apart_from_real_tiles():
    points, labels = labelled([10, 10], 0)
    records = compare(validation=(points, labels), pool=(points + np.float32(3), labels), real_train=(points, labels))
    for record in records:
        assert record["real_train"]["frechet_distance"] == pytest.approx(0, abs=1e-5)
        assert record["pool"]["frechet_distance"] == pytest.approx(27, rel=1e-4)  # 3² in each of 3 dimensions


def test_each_class_is_compared_with_itself():
    # Classes lie 4 √3 apart; the pool has them the wrong way round, so together it has no distance.
    points, labels = labelled([10, 10], 0)
    records = compare(validation=(points, labels), pool=(points, 1 - labels), real_train=(points, labels))
    assert records[0]["pool"]["frechet_distance"] == pytest.approx(0, abs=1e-4)
    assert all(record["pool"]["frechet_distance"] > 30 for record in records[1:])
    assert all(record["pool"]["coverage"] == 0 for record in records[1:])


def test_class_with_too_few_tiles_is_not_measured():
    # What counts is the set that has the fewest: none of class 1, two of class 2, three of class 0.
    records = compare(
        validation=labelled([3, 5, 5], 0), pool=labelled([9, 0, 9], 1), real_train=labelled([9, 9, 2], 2)
    )
    assert [record["num_images"] for record in records] == [5, 3, 0, 2]
    assert records[0]["pool"]["coverage"] is not None and records[1]["pool"]["coverage"] is not None
    for record in records[2:]:
        assert record["pool"] == record["real_train"] == dict.fromkeys(DISTANCES)
    json.dumps(records, allow_nan=False)
