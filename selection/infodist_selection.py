"""The selection of InfoDist (Li and Kainz, MICCAI 2024, arXiv:2406.13536): as its code does it, and as it is meant.

For those who compare with it: `DistillSelector` is the same idea with a sparse graph, for use. Both choices here are
of one class, from a dense graph of all distances, whose memory grows with the number of images squared.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
from scipy.sparse import csr_matrix

from histodistill.selection.checks import LARGEST_DISTANCE_MATRIX, check_embeddings, check_integer
from histodistill.selection.communities import Communities, DegenerateGraphWarning, find_communities
from histodistill.selection.distill_selector import round_robin
from histodistill.selection.quotas import community_quotas


#: The published code keeps links of at least this weight, whatever the number of images: 1/N for N = 1,000.
PUBLISHED_THRESHOLD = 0.001
#: Its independent searches of Infomap, of which the best counts.
PUBLISHED_TRIALS = 5


@dataclass(frozen=True)
class InfoDistChoice:
    """What was chosen of one class, and of what graph.

    Attributes:
        chosen: int64, different indices into the images of the class.
        num_links: Links that were not cut.
        num_communities: Communities, of one image or more.
    """

    chosen: np.ndarray
    num_links: int
    num_communities: int


def dense_graph(embeddings: np.ndarray, threshold: float | None = None) -> csr_matrix:
    """The graph of InfoDist: links weighted by a softmax over the inverse distances to all other images.

    Entry (i, j) is exp(1/dᵢⱼ) / Σₖ exp(1/dᵢₖ) over k ≠ i, d the Euclidean distance, and no link where that is below
    the threshold. For duplicates, 1/d is as large as float32 allows. Memory grows with N².

    Args:
        embeddings: N×D float32, finite.
        threshold: Above 0; None for 1/N. InfoDist's threshold of 0.001 is that for the N of 1,000 it was used with;
            for another N nothing or everything might be left.

    Returns:
        N×N float32 in CSR format.
    """
    from sklearn.metrics.pairwise import euclidean_distances

    weights = euclidean_distances(embeddings)
    np.maximum(weights, np.finfo(np.float32).tiny, out=weights)
    np.reciprocal(weights, out=weights)
    np.fill_diagonal(weights, -np.inf)
    weights -= weights.max(axis=1, keepdims=True)
    np.exp(weights, out=weights)
    weights /= weights.sum(axis=1, keepdims=True)
    weights[weights < (1 / len(weights) if threshold is None else threshold)] = 0
    return csr_matrix(weights)


def choose_as_published(embeddings: np.ndarray, n: int, random_state: int = 0) -> InfoDistChoice:
    """The choice that the published code makes: a fixed threshold, communities in the order of their nodes.

    Links below `PUBLISHED_THRESHOLD` are cut, whatever N is, and the communities give their first images by index: see
    `first_nodes`. For N well above 1,000 no link may be left, and then the first n images of the class are chosen.

    Args:
        embeddings: N×D float32, finite, of one class.
        n: Images to choose, 1 to N.
        random_state: Seed of Infomap.

    Returns:
        n images, or fewer.

    Raises:
        ValueError: For embeddings that are not valid or too many, `n` out of range, or a seed below 0.
    """
    found, num_links = _communities_of(embeddings, n, PUBLISHED_THRESHOLD, random_state)
    return InfoDistChoice(first_nodes(found.module_labels, n), num_links, found.num_modules)


def choose_as_meant(embeddings: np.ndarray, n: int, random_state: int = 0) -> InfoDistChoice:
    """The choice that the paper describes: a threshold of 1/N, the most central images of each community.

    Every community has as many places as the others, as far as it has images, and those of highest modular centrality
    take them, equal ones by index.

    Args:
        embeddings, n, random_state: See `choose_as_published`.

    Returns:
        Exactly n images.

    Raises:
        ValueError: As `choose_as_published` does.
    """
    found, num_links = _communities_of(embeddings, n, None, random_state)
    sizes = np.bincount(found.module_labels, minlength=found.num_modules)
    quotas = community_quotas(sizes, n, "uniform")
    chosen = round_robin(found.module_labels, found.modular_centrality, quotas)
    return InfoDistChoice(chosen, num_links, found.num_modules)


def first_nodes(module_labels: np.ndarray, n: int) -> np.ndarray:
    """The nodes that the published code takes of communities, which it neither ranks nor fills up.

    Of M communities in the order of their labels each gives its first ⌈n/M⌉ nodes by index, until there are n. Where
    small communities leave places, the first community alone fills them, with those of its nodes that follow; where M
    divides n, one of these is skipped. What it does not fill stays empty.

    Args:
        module_labels: N int64 in 0 … M − 1, the community of each node.
        n: Places, at least 1.

    Returns:
        At most n int64 indices, all different.
    """
    members = [np.flatnonzero(module_labels == label) for label in range(module_labels.max() + 1)]
    share = -(-n // len(members))
    chosen = np.concatenate([nodes[:share] for nodes in members])[:n]
    following = members[0][n // len(members) + 1 :]
    return np.concatenate([chosen, following[: n - len(chosen)]]).astype(np.int64)


def _communities_of(
    embeddings: np.ndarray, n: int, threshold: float | None, random_state: int
) -> tuple[Communities, int]:
    """The communities of the dense graph, and its number of links."""
    from threadpoolctl import threadpool_limits

    embeddings = check_embeddings(embeddings)
    check_integer("n", n, 1, len(embeddings))
    if len(embeddings) ** 2 > LARGEST_DISTANCE_MATRIX:
        raise ValueError(
            f"{len(embeddings)} images of a class are too many for a dense graph, which holds all their distances, at "
            f"most {LARGEST_DISTANCE_MATRIX}: choose another selector"
        )
    # Sums over several threads are rounded differently from run to run, and links near the threshold come and go.
    with threadpool_limits(limits=1):
        graph = dense_graph(embeddings, threshold)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DegenerateGraphWarning)  # the result has both numbers
        return find_communities(graph, num_trials=PUBLISHED_TRIALS, random_state=random_state), int(graph.nnz)
