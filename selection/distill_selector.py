"""Selection by communities of the nearest-neighbour graph and modular centrality."""

from __future__ import annotations

from typing import Any, Self

import numpy as np

from histodistill.selection.base import ClassSelection, ClasswiseSelector
from histodistill.selection.checks import check_choice, check_classes, check_integer, check_positive
from histodistill.selection.communities import find_communities
from histodistill.selection.graph import knn_graph
from histodistill.selection.names import QUOTA_RULES, RANKINGS, WEIGHTINGS
from histodistill.selection.quotas import community_quotas


class DistillSelector(ClasswiseSelector):
    """Chooses the most central images of the communities of each class.

    For each class by itself: the directed graph of nearest neighbours (`knn_graph`), its communities by Infomap
    (`find_communities`), the places shared among the communities (`community_quotas`), and in each community the
    images of highest modular centrality, equal ones by lower index. The idea is InfoDist's (arXiv:2406.13536), here
    with a sparse graph, nodes that are really ranked, and exact quotas.

    The rank order within a class goes round the communities, from the one with the most flow on: first the most
    central image of each, then the second of each that has a second place, and so on. So the first images of a class
    are already spread over its communities.

    Args:
        n_per_class: Images to choose of each class, at least 1.
        n_neighbors: Links from each image, at least 1; one less than the images of the class if there are fewer.
        weighting: `"local_gaussian"`, `"inverse_distance"` or `"cosine"`, see `knn_graph`.
        markov_time: Above 0; larger gives fewer, larger communities.
        num_trials: Infomap's independent searches, at least 1.
        quota: `"proportional"` to the size of a community, `"uniform"`, or by its square root `"sqrt"`.
        ranking: Which images of a community are chosen: those of highest `"modular_centrality"`, as in the paper, or
            `"random"` ones, so that the communities are strata of a random choice.
        random_state: Whole number from 0 to 2³¹ − 1.

    Attributes:
        selected_indices_: int64, `n_per_class` × number of classes; grouped by class in ascending order, within a
            class in rank order.
        module_labels_: N int64, the community of every candidate, chosen or not; −1 for the others. Communities are
            numbered through all classes: those of the first class are 0 … num_communities_[0] − 1 by descending flow,
            those of the next class follow, and so on. So a community belongs to one class.
        modular_centrality_: N float64 ≥ 0, see `Communities`; comparable within a class.
        flow_: N float64 ≥ 0, sums to 1 in each class whose graph has links.
        codelength_: float64 per class, bits per step of the partition.
        num_communities_: int64 per class.
        classes_: int64 or texts, the labels that occur, ascending.
        n_features_in_: D, the width of the embeddings.

    Warns:
        DegenerateGraphWarning: In `fit`, for a class without links, whose images are mostly alone, or with only one
            community. The choice is still exactly `n_per_class`.

    Examples:
        >>> import numpy as np
        >>> rng = np.random.default_rng(0)
        >>> blobs = np.repeat(np.eye(4), 30, axis=0) * 20 + rng.normal(size=(120, 4))
        >>> selector = DistillSelector(n_per_class=8, n_neighbors=12).fit(blobs, np.zeros(120, dtype=int))
        >>> np.bincount(selector.selected_indices_ // 30).tolist()
        [2, 2, 2, 2]
    """

    def __init__(
        self,
        n_per_class: int = 100,
        n_neighbors: int = 15,
        weighting: str = "local_gaussian",
        markov_time: float = 1.0,
        num_trials: int = 5,
        quota: str = "proportional",
        ranking: str = "modular_centrality",
        random_state: int = 0,
    ):
        super().__init__(n_per_class=n_per_class, random_state=random_state)
        self.n_neighbors = n_neighbors
        self.weighting = weighting
        self.markov_time = markov_time
        self.num_trials = num_trials
        self.quota = quota
        self.ranking = ranking

    def fit(self, embeddings: Any, labels: Any, **options: Any) -> Self:
        """Chooses the images; see `BaseSelector.fit` for the arguments and errors."""
        super().fit(embeddings, labels, **options)
        first_community = np.cumsum(self.num_communities_) - self.num_communities_
        found = self.module_labels_ >= 0
        _, place = np.unique(check_classes(labels, len(found)), return_inverse=True)
        self.module_labels_[found] += first_community[place[found]]
        return self

    def check_params(self) -> None:
        super().check_params()
        check_integer("n_neighbors", self.n_neighbors, 1)
        check_choice("weighting", self.weighting, WEIGHTINGS)
        check_positive("markov_time", self.markov_time)
        check_integer("num_trials", self.num_trials, 1)
        check_choice("quota", self.quota, QUOTA_RULES)
        check_choice("ranking", self.ranking, RANKINGS)

    def _select_class(self, embeddings: np.ndarray, rng: np.random.Generator, name: str) -> ClassSelection:
        found = find_communities(
            knn_graph(embeddings, self.n_neighbors, self.weighting),
            markov_time=self.markov_time,
            num_trials=self.num_trials,
            random_state=self.random_state,
            name=name,
        )
        sizes = np.bincount(found.module_labels, minlength=found.num_modules)
        quotas = community_quotas(sizes, self.n_per_class, self.quota)
        score = rng.random(len(embeddings)) if self.ranking == "random" else found.modular_centrality
        return ClassSelection(
            ranked=round_robin(found.module_labels, score, quotas),
            per_image={
                "module_labels": found.module_labels,
                "modular_centrality": found.modular_centrality,
                "flow": found.flow,
            },
            per_class={"codelength": found.codelength, "num_communities": found.num_modules},
        )


def round_robin(module_labels: np.ndarray, score: np.ndarray, quotas: np.ndarray) -> np.ndarray:
    """The first `quotas[m]` nodes of each community by score, ordered by place in it, then by its label.

    Args:
        module_labels: N int64, the community of each node.
        score: N real numbers, higher is better; equal ones are taken by lower index.
        quotas: M int64, the places of each community, none above its size.

    Returns:
        int64, as many indices of nodes as there are places.
    """
    by_community = np.lexsort((np.arange(len(module_labels)), -score, module_labels))
    sizes = np.bincount(module_labels, minlength=len(quotas))
    starts = np.cumsum(sizes) - sizes
    label = module_labels[by_community]
    place = np.arange(len(label)) - starts[label]
    kept = place < quotas[label]
    order = np.lexsort((label[kept], place[kept]))
    return by_community[kept][order]
