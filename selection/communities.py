"""Communities of a directed graph, and how central each node is in its own, by Infomap."""

from __future__ import annotations

import sys
import warnings
from dataclasses import dataclass
from types import ModuleType

import numpy as np
from scipy.sparse import csr_matrix, issparse

from histodistill.selection.checks import check_integer, check_positive


#: `random_state` must not exceed this: infomap's seed is an unsigned 32-bit number.
LARGEST_RANDOM_STATE = 2**31 - 1


class DegenerateGraphWarning(UserWarning):
    """The communities say nothing about the structure of the graph; the message says what to change."""


@dataclass(frozen=True)
class Communities:
    """What `find_communities` found in a graph of N nodes.

    Attributes:
        module_labels: N int64 in 0 … num_modules − 1, numbered by descending flow of the community, equal flows by
            its lowest node.
        flow: N float64 ≥ 0, the share of a random walker's steps that end in each node. It is 0 for a node to which
            nothing links.
        modular_centrality: N float64 ≥ 0, −(pₘ − pᵤ)·log₂((pₘ − pᵤ) / pₘ) with pᵤ the flow of the node and pₘ that of
            its community; 0 for a node alone in its community.
        codelength: Bits per step of the two-level map equation (Rosvall and Bergstrom, PNAS 2008), lower is better.
        num_modules: Number of communities.
        degenerate: None, or which degenerate result this is: `"no_links"`, `"all_singletons"`, `"mostly_singletons"`
            (more than half of the nodes are alone) or `"one_module"`.
    """

    module_labels: np.ndarray
    flow: np.ndarray
    modular_centrality: np.ndarray
    codelength: float
    num_modules: int
    degenerate: str | None


def find_communities(
    graph: csr_matrix,
    markov_time: float = 1.0,
    num_trials: int = 5,
    random_state: int = 0,
    name: str = "the graph",
) -> Communities:
    """Two-level partition of a weighted, directed graph by Infomap.

    Infomap runs in one thread with seed `random_state` + 1, so the same graph gives the same partition whatever the
    number of threads. Every node gets a community; a node to which nothing links carries no flow and may be alone.

    Args:
        graph: N×N sparse, entry (i, j) the weight ≥ 0 of the link from i to j; zeros are no links.
        markov_time: Above 0; larger gives fewer, larger communities.
        num_trials: Independent searches, of which the one with the shortest code is kept; at least 1.
        random_state: At least 0.
        name: What messages call the graph, for instance `"class 3"`.

    Returns:
        `Communities`.

    Raises:
        ValueError: For a graph that is not sparse, square, finite and ≥ 0, or an argument out of range.
        ImportError: If infomap was imported before faiss, see `_import_infomap`.

    Warns:
        DegenerateGraphWarning: When `Communities.degenerate` is not None.
    """
    check_positive("markov_time", markov_time)
    check_integer("num_trials", num_trials, 1)
    check_integer("random_state", random_state, 0, LARGEST_RANDOM_STATE)
    graph = _check_graph(graph)
    n_nodes = graph.shape[0]

    if graph.nnz == 0:
        result = Communities(
            module_labels=np.arange(n_nodes, dtype=np.int64),
            flow=np.zeros(n_nodes),
            modular_centrality=np.zeros(n_nodes),
            codelength=0.0,
            num_modules=n_nodes,
            degenerate="no_links" if n_nodes > 1 else None,
        )
    else:
        result = _run_infomap(graph, float(markov_time), int(num_trials), int(random_state))
    if result.degenerate is not None:
        warnings.warn(_advice(result, name), DegenerateGraphWarning, stacklevel=2)
    return result


def _check_graph(graph: csr_matrix) -> csr_matrix:
    if not issparse(graph) or graph.ndim != 2 or graph.shape[0] != graph.shape[1] or graph.shape[0] == 0:
        raise ValueError("graph is not valid: it must be a square scipy sparse matrix with at least one node")
    graph = csr_matrix(graph, dtype=np.float64, copy=True)
    # One canonical order of the links: Infomap's search depends on it, the caller's result must not.
    graph.sum_duplicates()
    graph.eliminate_zeros()
    if not np.isfinite(graph.data).all() or (graph.data < 0).any():
        raise ValueError("graph is not valid: its weights must be finite and at least 0")
    return graph


def _run_infomap(graph: csr_matrix, markov_time: float, num_trials: int, random_state: int) -> Communities:
    Network = _import_infomap().Network
    n_nodes = graph.shape[0]
    links = graph.tocoo()
    network = Network()
    network.add_nodes(range(n_nodes))  # also those without a link
    network.add_links(np.column_stack([links.row, links.col, links.data]).astype(np.float64))
    found = network.run(
        two_level=True,
        directed=True,
        markov_time=markov_time,
        num_trials=num_trials,
        seed=random_state + 1,
    )
    module_ids = np.empty(n_nodes, dtype=np.int64)
    flow = np.empty(n_nodes, dtype=np.float64)
    centrality = np.empty(n_nodes, dtype=np.float64)
    for node in found.nodes(states=True):
        module_ids[node.node_id] = node.module_id
        flow[node.node_id] = node.flow
        centrality[node.node_id] = node.modular_centrality

    _, lowest_node, labels = np.unique(module_ids, return_index=True, return_inverse=True)
    order = np.lexsort((lowest_node, -np.bincount(labels, weights=flow)))
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    labels = rank[labels]
    return Communities(
        module_labels=labels.astype(np.int64),
        flow=flow,
        modular_centrality=centrality,
        codelength=float(found.codelength),
        num_modules=len(order),
        degenerate=_degeneracy(labels),
    )


def _import_infomap() -> ModuleType:
    """Imports infomap after faiss, and refuses to go on where it was done the other way round.

    Both are made with SWIG and share one table of types. Where faiss comes second, iterating over a result of infomap
    ends in faiss's code and kills the process (faiss-cpu 1.15 with infomap 2.16).
    """
    if "infomap" not in sys.modules:
        import faiss  # noqa: F401
    import infomap

    order = list(sys.modules)
    if "faiss" in order and order.index("infomap") < order.index("faiss"):
        raise ImportError("infomap was imported before faiss, and would crash now: import faiss first, then infomap")
    return infomap


def _degeneracy(labels: np.ndarray) -> str | None:
    """What `Communities.degenerate` says of these communities of the nodes."""
    sizes = np.bincount(labels)
    alone = int((sizes == 1).sum())
    if len(sizes) == 1:
        return "one_module"
    if alone == len(labels):
        return "all_singletons"
    if 2 * alone > len(labels):
        return "mostly_singletons"
    return None


def _advice(found: Communities, name: str) -> str:
    """What a warning says of a degenerate result, and what to change."""
    n_nodes = len(found.module_labels)
    alone = int((np.bincount(found.module_labels) == 1).sum())
    return {
        "no_links": f"{name}: the graph of {n_nodes} nodes has no links, so nothing ranks them: raise n_neighbors",
        "all_singletons": f"{name}: Infomap left each of the {n_nodes} nodes alone, so there are no communities to "
        "choose from: raise n_neighbors or markov_time",
        "mostly_singletons": f"{name}: Infomap left {alone} of {n_nodes} nodes alone, so the communities cover less "
        "than half of them: raise n_neighbors or markov_time",
        "one_module": f"{name}: Infomap put all {n_nodes} nodes into one community, so they are ranked by modular "
        "centrality alone and not spread: lower n_neighbors or markov_time",
    }[str(found.degenerate)]
