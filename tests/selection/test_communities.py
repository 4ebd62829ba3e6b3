from __future__ import annotations

import subprocess
import sys
import warnings

import numpy as np
import pytest
from scipy.sparse import coo_matrix, csr_matrix

from histodistill.selection import DegenerateGraphWarning, find_communities, knn_graph


def graph_of(links, n_nodes):
    rows, columns, weights = zip(*links, strict=True)
    return csr_matrix((weights, (rows, columns)), shape=(n_nodes, n_nodes), dtype=np.float64)


def two_triangles():
    """Directed cycles 4→5→6→4 and 0→1→2→0, a weak link between them, and node 3 to which nothing links."""
    return graph_of(
        [(4, 5, 1), (5, 6, 1), (6, 4, 1), (0, 1, 2), (1, 2, 2), (2, 0, 2), (2, 4, 0.1), (3, 0, 1)], n_nodes=7
    )


def blobs(seed=0):
    rng = np.random.default_rng(seed)
    centers = 30 * np.eye(4)
    return (np.repeat(centers, [40, 30, 20, 10], axis=0) + rng.normal(size=(100, 4))).astype(np.float32)


def modular_centrality(labels, flow):
    of_module = np.bincount(labels, weights=flow)[labels]
    rest = of_module - flow
    with np.errstate(divide="ignore", invalid="ignore"):
        value = -rest * np.log2(rest / of_module)
    return np.where((rest > 0) & (flow > 0), value, 0.0)


def test_every_node_gets_a_community_numbered_by_flow():
    found = find_communities(two_triangles())
    assert found.module_labels.dtype == np.int64
    assert found.module_labels[[0, 1, 2]].tolist() == [found.module_labels[0]] * 3
    assert found.module_labels[[4, 5, 6]].tolist() == [found.module_labels[4]] * 3
    assert found.module_labels[0] != found.module_labels[4]
    flow_of_modules = np.bincount(found.module_labels, weights=found.flow)
    assert len(flow_of_modules) == found.num_modules
    assert (np.diff(flow_of_modules) <= 0).all()
    assert found.flow.sum() == pytest.approx(1)
    assert found.flow[3] == 0 and found.modular_centrality[3] == 0
    assert found.degenerate is None


def test_communities_of_equal_flow_are_numbered_by_lowest_node():
    links = [(a, b, 1) for ring in ([5, 3, 4], [1, 2, 0]) for a, b in zip(ring, ring[1:] + ring[:1], strict=True)]
    assert find_communities(graph_of(links, 6)).module_labels.tolist() == [0, 0, 0, 1, 1, 1]


def test_pinned_against_infomap():
    """Fails when an infomap release changes the partition or the flow model; the bound in setup.cfg is then to change.

    The nodes of two_triangles are weighted unevenly, so that a transposed or undirected graph shows.
    """
    found = find_communities(two_triangles(), num_trials=3, random_state=4)
    assert found.module_labels.tolist() == [0, 0, 0, 0, 1, 1, 1]
    assert found.codelength == pytest.approx(1.659122985801818, abs=1e-9)
    golden_flow = [0.2144883258, 0.2120180472, 0.2099183104, 0.0, 0.1248779723, 0.1209977616, 0.1176995825]
    np.testing.assert_allclose(found.flow, golden_flow, atol=1e-9)


def test_pinned_against_infomap_on_a_neighbor_graph():
    graph = knn_graph(np.random.default_rng(2).normal(size=(300, 6)), 6)
    found = find_communities(graph)
    assert np.bincount(found.module_labels).tolist() == [
        *(19, 13, 17, 11, 17, 16, 7, 17, 5, 8, 12, 13, 8, 11, 14, 12),
        *(11, 9, 6, 6, 10, 10, 10, 10, 6, 4, 3, 4, 4, 3, 2, 2),
    ]
    assert found.codelength == pytest.approx(5.64773912465561, abs=1e-9)
    most_central = [int(np.argmax(found.modular_centrality * (found.module_labels == m))) for m in range(5)]
    assert most_central == [246, 108, 20, 10, 192]


@pytest.mark.parametrize("n_neighbors", [3, 5, 8])
def test_modular_centrality_is_the_formula_of_the_flows(n_neighbors):
    found = find_communities(knn_graph(blobs(), n_neighbors))
    expected = modular_centrality(found.module_labels, found.flow)
    assert expected.max() > 0
    np.testing.assert_allclose(found.modular_centrality, expected, atol=1e-9)


def test_separated_blobs_are_never_mixed():
    found = find_communities(knn_graph(blobs(), 6))
    blob = np.repeat(np.arange(4), [40, 30, 20, 10])
    for label in range(found.num_modules):
        assert len(np.unique(blob[found.module_labels == label])) == 1


def test_same_seed_same_result_in_any_order_of_links():
    graph = knn_graph(np.random.default_rng(2).normal(size=(300, 6)), 6)
    shuffled = graph.tocoo()
    order = np.random.default_rng(0).permutation(shuffled.nnz)
    shuffled = coo_matrix((shuffled.data[order], (shuffled.row[order], shuffled.col[order])), shape=graph.shape)
    one, two = find_communities(graph, random_state=3), find_communities(shuffled, random_state=3)
    np.testing.assert_array_equal(one.module_labels, two.module_labels)
    np.testing.assert_array_equal(one.modular_centrality, two.modular_centrality)
    assert one.codelength == two.codelength


def test_the_graph_is_not_changed():
    graph = csr_matrix((np.array([1.0, 0.0]), np.array([1, 0]), np.array([0, 1, 2])), shape=(2, 2))
    with pytest.warns(DegenerateGraphWarning):
        find_communities(graph)
    assert graph.nnz == 2


def test_longer_markov_time_gives_fewer_communities():
    graph = knn_graph(np.random.default_rng(2).normal(size=(300, 6)), 6)
    assert find_communities(graph, markov_time=2.0).num_modules < find_communities(graph, markov_time=0.5).num_modules


def test_no_links_is_told():
    with pytest.warns(DegenerateGraphWarning, match="class 3: the graph of 5 nodes has no links.*raise n_neighbors"):
        found = find_communities(csr_matrix((5, 5)), name="class 3")
    assert found.degenerate == "no_links"
    assert found.module_labels.tolist() == [0, 1, 2, 3, 4]
    assert not found.modular_centrality.any()


def test_one_community_is_told():
    with pytest.warns(DegenerateGraphWarning, match="all 12 nodes into one community.*lower n_neighbors"):
        found = find_communities(knn_graph(np.random.default_rng(0).normal(size=(12, 3)), 11))
    assert found.degenerate == "one_module" and found.num_modules == 1


def test_all_alone_is_told():
    graph = knn_graph(np.random.default_rng(0).normal(size=(12, 3)), 3)
    with pytest.warns(DegenerateGraphWarning, match="each of the 12 nodes alone.*raise n_neighbors or markov_time"):
        found = find_communities(graph, markov_time=0.01)
    assert found.degenerate == "all_singletons" and found.num_modules == 12


def test_mostly_alone_is_told():
    links = [(0, 1, 1), (1, 0, 1), (2, 3, 1), (3, 2, 1)]
    with pytest.warns(DegenerateGraphWarning, match="left 6 of 10 nodes alone.*raise n_neighbors or markov_time"):
        found = find_communities(graph_of(links, 10))
    assert found.degenerate == "mostly_singletons" and found.num_modules == 8


def test_one_node_is_no_reason_to_warn():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = find_communities(csr_matrix((1, 1)))
    assert found.module_labels.tolist() == [0] and found.num_modules == 1


@pytest.mark.parametrize(
    ("graph", "options", "message"),
    [
        (np.eye(3), {}, "square scipy sparse matrix"),
        (csr_matrix((2, 3)), {}, "square scipy sparse matrix"),
        (csr_matrix(-np.eye(2)), {}, "finite and at least 0"),
        (csr_matrix(np.full((2, 2), np.nan)), {}, "finite and at least 0"),
        (csr_matrix(np.ones((2, 2))), {"markov_time": 0}, "markov_time=0 is not valid"),
        (csr_matrix(np.ones((2, 2))), {"num_trials": 0}, "num_trials=0 is out of range: it must be at least 1"),
        (csr_matrix(np.ones((2, 2))), {"random_state": -1}, "random_state=-1 is out of range"),
        (csr_matrix(np.ones((2, 2))), {"random_state": 2**32}, "random_state=4294967296 is out of range"),
    ],
)
def test_bad_input_is_refused_in_one_sentence(graph, options, message):
    with pytest.raises(ValueError, match=message):
        find_communities(graph, **options)


FIT = """
import numpy as np
from histodistill.selection import DistillSelector
points = np.random.default_rng(0).normal(size=(300, 8)) + 9 * np.repeat(np.eye(3, 8), 100, axis=0)
print(DistillSelector(n_per_class=3, n_neighbors=6).fit(points, np.zeros(300, int)).selected_indices_.tolist())
"""


def fit_after(imports: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-W", "ignore", "-c", imports + FIT], capture_output=True, text=True)


def test_infomap_and_faiss_in_one_process():
    alone, after_faiss = fit_after(""), fit_after("import faiss, infomap\n")
    assert alone.returncode == after_faiss.returncode == 0
    assert alone.stdout == after_faiss.stdout != ""
    # The other way round, the libraries would kill the process.
    wrong = fit_after("import infomap\n")
    assert wrong.returncode == 1
    assert wrong.stderr.splitlines()[-1] == (
        "ImportError: infomap was imported before faiss, and would crash now: import faiss first, then infomap"
    )


def test_infomap_without_faiss():
    code = (
        "import infomap, sys; from scipy.sparse import eye; from histodistill.selection import find_communities;"
        "found = find_communities(eye(4, k=1) + eye(4, k=-1)); print(found.num_modules, 'faiss' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split()[1] == "False"
