from __future__ import annotations

import numpy as np
import pytest
from threadpoolctl import threadpool_limits

from histodistill.selection.communities import find_communities
from histodistill.selection.infodist_selection import (
    choose_as_meant,
    choose_as_published,
    dense_graph,
    first_nodes,
)


def blobs(size: int = 15) -> np.ndarray:
    """Four groups of points far from each other, one after the other; within one, distances are about 0.2."""
    rng = np.random.default_rng(0)
    centres = np.repeat(100 * np.eye(4, 16), size, axis=0)
    return (centres + 0.035 * rng.standard_normal(centres.shape)).astype(np.float32)


def communities(*sizes: int) -> np.ndarray:
    """Labels of communities of these sizes, whose nodes take turns."""
    left, labels = list(sizes), []
    while any(left):
        for label, count in enumerate(left):
            if count:
                labels.append(label)
                left[label] -= 1
    return np.array(labels)


def test_the_threshold_cuts_links():
    # As in `test_benchmark`: the first row is e² and e^(2/3) over their sum, 0.791 and 0.209, and 1/3 cuts the second.
    points = np.array([[0.0], [0.5], [1.5]], dtype=np.float32)
    assert np.count_nonzero(dense_graph(points).toarray()[0]) == 1
    assert np.count_nonzero(dense_graph(points, 0.2).toarray()[0]) == 2
    assert np.count_nonzero(dense_graph(points, 0.8).toarray()[0]) == 0


# As published.


def test_of_twice_as_many_images_the_published_threshold_leaves_no_link():
    points = np.random.default_rng(0).standard_normal((2000, 64)).astype(np.float32)
    found = choose_as_published(points, 100)
    assert (found.num_links, found.num_communities) == (0, 2000)
    # All are alone, and the first hundred are taken, whatever they are.
    assert found.chosen.tolist() == list(range(100))


def test_of_few_images_it_leaves_all_links():
    points = np.random.default_rng(0).standard_normal((60, 4)).astype(np.float32) * 50
    found = choose_as_published(points, 7)
    assert (found.num_links, found.num_communities) == (60 * 59, 1)
    assert found.chosen.tolist() == list(range(7))


def test_communities_give_their_first_nodes_by_index():
    # Of another group a weight is about 1 / (14·exp(1/0.2)), below 0.001.
    found = choose_as_published(blobs(), 8)
    assert found.num_communities == 4
    assert sorted(found.chosen.tolist()) == [0, 1, 15, 16, 30, 31, 45, 46]


@pytest.mark.parametrize(
    ("sizes", "n", "expected"),
    [
        # 10/3 is taken for four, so that the last has two.
        ((20, 20, 20), 10, [4, 4, 2]),
        ((20, 20), 10, [5, 5]),
        # More communities than places: one of each of the first.
        ((5, 4, 3, 2, 1), 3, [1, 1, 1, 0, 0]),
        # What a small community leaves comes of the first one alone.
        ((10, 1, 10), 10, [5, 1, 4]),
        ((10, 10, 1, 10), 8, [3, 2, 1, 2]),
        # It has no more, and places stay empty.
        ((3, 1, 1, 1), 8, [2, 1, 1, 1]),
        ((4,), 4, [4]),
    ],
)
def test_published_places(sizes, n, expected):
    labels = communities(*sizes)
    chosen = first_nodes(labels, n)
    assert len(set(chosen.tolist())) == len(chosen) == sum(expected) <= n
    assert np.bincount(labels[chosen], minlength=len(sizes)).tolist() == expected


def test_leftovers_skip_a_node_where_the_division_is_exact():
    def of_the_first(*sizes: int, n: int) -> list[int]:
        labels = communities(*sizes)
        chosen = first_nodes(labels, n)
        return np.searchsorted(np.flatnonzero(labels == 0), chosen[labels[chosen] == 0]).tolist()

    assert of_the_first(10, 10, 1, 10, n=8) == [0, 1, 3]  # 8/4
    assert of_the_first(10, 1, 10, n=10) == [0, 1, 2, 3, 4]  # 10/3


# As meant.


def test_each_community_gives_its_most_central_images():
    points = blobs()
    found = choose_as_meant(points, 8)
    assert (found.num_communities, len(found.chosen)) == (4, 8)
    centrality = find_communities(dense_graph(points), num_trials=5).modular_centrality
    for blob in range(4):
        rows = np.arange(15 * blob, 15 * (blob + 1))
        best = rows[np.argsort(-centrality[rows], kind="stable")[:2]]
        assert [row for row in found.chosen if row in rows] == best.tolist()


@pytest.mark.parametrize("n", [1, 7, 40, 60])
def test_it_chooses_exactly_as_many_as_asked_for(n):
    points = blobs()
    chosen = choose_as_meant(points, n).chosen
    assert len(set(chosen.tolist())) == len(chosen) == n
    counts = np.bincount(chosen // 15, minlength=4)
    assert counts.max() - counts.min() <= 1


def test_its_threshold_scales_with_the_number_of_images():
    points = np.random.default_rng(1).standard_normal((300, 8)).astype(np.float32)
    assert 0 < choose_as_meant(points, 3).num_links < 300 * 299
    # That of the code is far below 1/300 and cuts nothing.
    assert choose_as_published(points, 3).num_links == 300 * 299


# Both.


@pytest.mark.parametrize("choose", [choose_as_published, choose_as_meant])
def test_threads_and_repeats_change_nothing(choose):
    points = blobs()
    found = []
    for threads in (1, 2):
        with threadpool_limits(limits=threads):
            found.append(choose(points, 9, random_state=3))
    assert found[0].chosen.tolist() == found[1].chosen.tolist()


@pytest.mark.parametrize("choose", [choose_as_published, choose_as_meant])
def test_what_is_out_of_range_is_refused(choose):
    points = blobs()
    with pytest.raises(ValueError, match="n=61 is out of range: it must be at most 60"):
        choose(points, 61)
    with pytest.raises(ValueError, match="n=0 is out of range: it must be at least 1"):
        choose(points, 0)
    with pytest.raises(ValueError, match="random_state=-1 is out of range"):
        choose(points, 3, random_state=-1)
    with pytest.raises(ValueError, match="30000 images of a class are too many for a dense graph"):
        choose(np.zeros((30_000, 1), dtype=np.float32), 3)
