from __future__ import annotations

import math

import faiss
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from histodistill.selection import WEIGHTINGS, knn_graph, nearest_among, nearest_neighbors


def brute_force(embeddings, k):
    """Neighbours by (distance, index) from all pairwise differences in float64."""
    points = np.asarray(embeddings, dtype=np.float32).astype(np.float64)
    squared = np.square(points[:, None, :] - points[None, :, :]).sum(axis=2)
    np.fill_diagonal(squared, np.inf)
    k = min(k, len(points) - 1)
    index = np.broadcast_to(np.arange(len(points)), squared.shape)
    neighbors = np.lexsort((index, squared), axis=1)[:, :k]
    return neighbors, np.sqrt(np.take_along_axis(squared, neighbors, axis=1))


def clouds():
    rng = np.random.default_rng(0)
    gaussian = rng.normal(size=(120, 8)).astype(np.float32)
    with_outlier = gaussian.copy()
    with_outlier[7] *= 1e9
    duplicates = gaussian[rng.integers(0, 20, size=120)]
    return {
        "gaussian": gaussian,
        "far from the origin": gaussian * np.float32(1e-3) + np.float32(300),
        "outlier": with_outlier,
        "huge": gaussian * np.float32(1e37),
        "tiny": gaussian * np.float32(1e-30),
        "grid full of ties": rng.integers(0, 3, size=(120, 3)).astype(np.float32),
        "duplicates": duplicates,
        "many copies of one": np.concatenate([np.repeat(gaussian[:1], 60, axis=0), gaussian[1:20]]),
        "all the same": np.ones((30, 4), dtype=np.float32),
        "negative zero": np.array([[0.0], [-0.0], [1.0], [0.0]], dtype=np.float32),
        "one dimension": np.arange(50, dtype=np.float32)[::-1, None],
        "two images": gaussian[:2],
    }


@pytest.mark.parametrize("name", clouds())
@pytest.mark.parametrize("k", [1, 7, 200])
def test_neighbors_equal_brute_force(name, k):
    embeddings = clouds()[name]
    neighbors, distances = nearest_neighbors(embeddings, k)
    expected_neighbors, expected_distances = brute_force(embeddings, k)
    np.testing.assert_array_equal(neighbors, expected_neighbors)
    np.testing.assert_array_equal(distances, expected_distances)


@settings(max_examples=25, deadline=None)
@given(
    embeddings=hnp.arrays(
        np.float32,
        st.tuples(st.integers(1, 25), st.integers(1, 4)),
        elements=st.floats(-(2.0**99), 2.0**99, width=32) | st.integers(-2, 2).map(float),
    ),
    k=st.integers(1, 30),
)
def test_neighbors_equal_brute_force_for_any_embeddings(embeddings, k):
    neighbors, distances = nearest_neighbors(embeddings, k)
    expected_neighbors, expected_distances = brute_force(embeddings, k)
    np.testing.assert_array_equal(neighbors, expected_neighbors)
    np.testing.assert_array_equal(distances, expected_distances)


@pytest.mark.parametrize("weighting", WEIGHTINGS)
@pytest.mark.parametrize("name", clouds())
def test_graph_has_exactly_k_positive_links_and_no_self(name, weighting):
    embeddings = clouds()[name]
    graph = knn_graph(embeddings, 5, weighting)
    k = min(5, len(embeddings) - 1)
    assert graph.format == "csr" and graph.shape == (len(embeddings), len(embeddings))
    assert graph.data.dtype == np.float64
    np.testing.assert_array_equal(np.diff(graph.indptr), k)
    assert not graph.diagonal().any()
    assert graph.data.min() > 0 and graph.data.max() <= 1
    for row, expected in enumerate(brute_force(embeddings, k)[0]):
        assert set(graph.indices[graph.indptr[row] : graph.indptr[row + 1]]) == set(expected)


def test_local_gaussian_weights_follow_the_formula():
    embeddings = clouds()["gaussian"]
    neighbors, distances = brute_force(embeddings, 6)
    sigma = distances[:, -1]
    expected = np.exp(-(distances**2) / (sigma[:, None] * sigma[neighbors]))
    graph = knn_graph(embeddings, 6, "local_gaussian")
    np.testing.assert_allclose(graph[np.arange(120)[:, None], neighbors].toarray(), expected, rtol=1e-12)


def test_inverse_distance_weights_are_proportional_to_one_over_distance():
    embeddings = clouds()["gaussian"]
    neighbors, distances = brute_force(embeddings, 6)
    graph = knn_graph(embeddings, 6, "inverse_distance")
    expected = distances.min() / distances
    np.testing.assert_allclose(graph[np.arange(120)[:, None], neighbors].toarray(), expected, rtol=1e-12)


def test_cosine_weights():
    graph = knn_graph([[1.0, 0.0], [1.0, 1.0], [-1.0, 0.5]], 2, "cosine")
    assert graph[0, 1] == pytest.approx(math.sqrt(0.5))
    assert graph[1, 0] == graph[0, 1]
    assert 0 < graph[0, 2] < 1e-20  # a negative cosine


@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_duplicates_are_linked_with_weight_one(weighting):
    embeddings = np.array([[0.0, 0.0], [3.0, 1.0], [0.0, 0.0], [5.0, 9.0]])
    graph = knn_graph(embeddings, 2, weighting)
    assert graph[0, 2] == graph[2, 0] == 1.0


def test_a_zero_scale_does_not_cut_the_links_to_its_image():
    embeddings = np.array([[0.0], [0.0], [0.0], [1.0], [2.0], [4.0]])
    graph = knn_graph(embeddings, 2)
    assert graph[3, 0] > 0.1  # σ of image 0 is 0 and counts as the median of the others


@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_graph_does_not_depend_on_threads(weighting):
    embeddings = np.random.default_rng(1).normal(size=(700, 64)).astype(np.float32)
    threads = faiss.omp_get_max_threads()
    try:
        graphs = []
        for count in (1, 2):
            faiss.omp_set_num_threads(count)
            graphs.append(knn_graph(embeddings, 10, weighting))
    finally:
        faiss.omp_set_num_threads(threads)
    np.testing.assert_array_equal(graphs[0].indices, graphs[1].indices)
    np.testing.assert_array_equal(graphs[0].data, graphs[1].data)


def test_one_image_has_no_links():
    for weighting in WEIGHTINGS:
        assert knn_graph([[1.0, 2.0]], 3, weighting).nnz == 0


@pytest.mark.parametrize(
    ("embeddings", "options", "message"),
    [
        (np.zeros(3), {}, "shape"),
        (np.zeros((0, 3)), {}, "at least one row"),
        (np.array([["a"]]), {}, "dtype"),
        ([[1.0], [1.0, 2.0]], {}, "different lengths"),
        ([[1.0], [math.nan], [math.inf]], {}, "2 rows .* first at index 1"),
        ([[1e300]], {}, "too large"),
        (np.eye(3), {"n_neighbors": 0}, "n_neighbors=0 is out of range: it must be at least 1"),
        (np.eye(3), {"n_neighbors": 2.0}, "n_neighbors=2.0 is not valid"),
        (np.eye(3), {"weighting": "sharp"}, "weighting='sharp' is not known: choose one of local_gaussian"),
    ],
)
def test_bad_input_is_refused_in_one_sentence(embeddings, options, message):
    with pytest.raises(ValueError, match=message):
        knn_graph(embeddings, **options)


def nearest_by_definition(points, queries, k):
    """Points by (distance, index), query by query."""
    indices, distances = [], []
    for query in queries.astype(np.float64):
        squared = np.square(points.astype(np.float64) - query).sum(axis=1)
        nearest = sorted(range(len(points)), key=lambda point, squared=squared: (squared[point], point))[:k]
        indices.append(nearest)
        distances.append(np.sqrt(squared[nearest]))
    return np.array(indices), np.array(distances)


def queries_for(points):
    """As many as faiss searches one by one, or fifty, in no order: some of the points and others between them."""
    rng = np.random.default_rng(3)
    some, others = points[rng.integers(0, len(points), size=(2, 50))]
    between = (some.astype(np.float64) + others) / 2
    return rng.permutation(np.concatenate([some[:25], between[25:].astype(np.float32)]))


def points_among():
    rng = np.random.default_rng(0)
    with_few_copies = np.repeat(clouds()["gaussian"][:20], 6, axis=0)  # fewer than faiss proposes more than asked for
    small_grid = np.stack(np.meshgrid(*[np.arange(6.0)] * 2), axis=-1).reshape(-1, 2)
    names = ("gaussian", "far from the origin", "huge", "tiny", "one dimension", "two images")
    return {name: clouds()[name] for name in names} | {
        "duplicates": rng.permutation(with_few_copies),
        "grid with ties": rng.permutation(small_grid).astype(np.float32),
        "one point": np.array([[3.0, 4.0]], dtype=np.float32),
        "many": rng.normal(size=(3000, 24)).astype(np.float32),
    }


@pytest.mark.parametrize("name", points_among())
@pytest.mark.parametrize("k", [1, 7, 200])
@pytest.mark.parametrize("n_queries", [1, 50])
def test_nearest_among_equals_the_definition(name, k, n_queries):
    points = points_among()[name]
    queries = queries_for(points)[:n_queries]
    indices, distances = nearest_among(points, queries, k)
    assert indices.dtype == np.int64 and distances.dtype == np.float64
    assert indices.shape == distances.shape == (n_queries, min(k, len(points)))
    expected_indices, expected_distances = nearest_by_definition(points, queries, k)
    np.testing.assert_array_equal(indices, expected_indices)
    np.testing.assert_allclose(distances, expected_distances, rtol=1e-12)


@pytest.mark.parametrize("name", ["many copies of one", "all the same", "grid full of ties", "negative zero"])
@pytest.mark.parametrize("k", [1, 7, 200])
def test_nearest_among_gives_the_right_distances_however_many_are_equally_near(name, k):
    points = clouds()[name]
    queries = queries_for(points)
    indices, distances = nearest_among(points, queries, k)
    # To float32: many copies crowd out a point that is nearer by less than that.
    np.testing.assert_allclose(distances, nearest_by_definition(points, queries, k)[1], rtol=1e-6)
    assert all(len(set(row)) == len(row) for row in indices.tolist())
    found = np.linalg.norm(points[indices].astype(np.float64) - queries[:, None], axis=2)
    np.testing.assert_allclose(distances, found, rtol=1e-12)


def test_an_outlier_does_not_change_what_is_nearest_to_other_queries():
    points = clouds()["gaussian"]
    queries = queries_for(points)
    expected = nearest_by_definition(points, queries, 4)[0]
    far = np.full((1, 8), 1e9, dtype=np.float32)
    np.testing.assert_array_equal(nearest_among(points, np.concatenate([queries, far]), 4)[0][:-1], expected)
    np.testing.assert_array_equal(nearest_among(np.concatenate([points, far]), queries, 4)[0], expected)


def test_nearest_among_does_not_depend_on_threads_or_on_the_other_queries():
    rng = np.random.default_rng(1)
    points, queries = (rng.normal(size=(n, 64)).astype(np.float32) for n in (700, 300))
    threads = faiss.omp_get_max_threads()
    try:
        found = []
        for count in (1, 2):
            faiss.omp_set_num_threads(count)
            found.append(nearest_among(points, queries, 5))
    finally:
        faiss.omp_set_num_threads(threads)
    for one, two in zip(*found, strict=True):
        np.testing.assert_array_equal(one, two)
    for row in (0, 123, 299):
        alone = nearest_among(points, queries[row : row + 1], 5)
        np.testing.assert_array_equal(alone[0][0], found[0][0][row])
        np.testing.assert_array_equal(alone[1][0], found[0][1][row])
