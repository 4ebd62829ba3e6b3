"""What may be chosen at all: images of the pool that a classifier recognises, and those that are near to real tiles.

`recognised` goes by the probabilities of a classifier trained on real tiles, `typical` by embeddings, which
`histodistill select` takes from an untrained network unless told otherwise.
Each filter returns truth values that any selector takes as `candidates`; combine them with `&`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from histodistill.selection.checks import check_embeddings, check_integer, check_labels, check_share
from histodistill.selection.graph import nearest_among, nearest_neighbors


def recognised(probabilities: Any, labels: Any, min_probability: float = 0.5) -> np.ndarray:
    """Which images a classifier takes for their own class with at least a certain probability.

    Args:
        probabilities: N×C real numbers in [0, 1], rows that sum to 1: what the classifier says of each image.
        labels: N whole numbers in [0, C), the class that each image was made as.
        min_probability: 0 to 1; 0 lets all pass.

    Returns:
        N bool.

    Raises:
        ValueError: For arrays that do not fit, or a `min_probability` outside [0, 1].
    """
    return own_probability(probabilities, labels) >= np.float32(check_share("min_probability", min_probability))


def own_probability(probabilities: Any, labels: Any) -> np.ndarray:
    """The probability of each image's own class: N float32. Arguments and errors are those of `recognised`."""
    probabilities = check_embeddings(probabilities, name="probabilities")
    labels = check_labels(labels, len(probabilities))
    if labels.max() >= probabilities.shape[1]:
        raise ValueError(
            f"labels has the value {labels.max()}, but probabilities has {probabilities.shape[1]} columns: there must "
            "be one for each class"
        )
    return probabilities[np.arange(len(labels)), labels]


def typical(
    embeddings: Any,
    labels: Any,
    real_embeddings: Any,
    real_labels: Any,
    share: float = 0.95,
    n_neighbors: int = 5,
) -> np.ndarray:
    """Which images lie as near to the real tiles of their class as that `share` of these lie to each other.

    The measure is the distance to the `n_neighbors`-th nearest real tile of the class, the detector of outliers of
    Sun et al. (ICML 2022); for a real tile, the tile itself is left out.

    Args:
        embeddings: N×D real numbers.
        labels: N whole numbers ≥ 0.
        real_embeddings: M×D, real tiles embedded by the same model.
        real_labels: M whole numbers, with every class of `labels`.
        share: 0 to 1; 1 lets pass what is as near as the loneliest real tile.
        n_neighbors: At least 1; fewer where a class has fewer real tiles. A class with a single one lets all pass.

    Returns:
        N bool.

    Raises:
        ValueError: For arrays that do not fit, a class without real tiles, or a number out of range.
    """
    check_share("share", share)
    check_integer("n_neighbors", n_neighbors, 1)
    embeddings = check_embeddings(embeddings)
    labels = check_labels(labels, len(embeddings))
    real_embeddings = check_embeddings(real_embeddings, name="real_embeddings")
    real_labels = check_labels(real_labels, len(real_embeddings), name="real_labels")
    if embeddings.shape[1] != real_embeddings.shape[1]:
        raise ValueError(
            f"real_embeddings has {real_embeddings.shape[1]} columns and embeddings {embeddings.shape[1]}: embed both "
            "with one model"
        )
    passes = np.ones(len(labels), dtype=bool)
    for label in np.unique(labels):
        real = real_embeddings[real_labels == label]
        if len(real) == 0:
            raise ValueError(f"class {label} has no real tile: give real tiles of every class of the pool")
        k = min(n_neighbors, len(real) - 1)
        if k == 0:
            continue
        rows = np.flatnonzero(labels == label)
        limit = np.quantile(nearest_neighbors(real, k)[1][:, -1], share)
        passes[rows] = nearest_among(real, embeddings[rows], k)[1][:, -1] <= limit
    return passes


def at_least(candidates: np.ndarray, scores: np.ndarray, labels: np.ndarray, n_per_class: int) -> np.ndarray:
    """Candidates, and where a class has fewer than `n_per_class`, those of its other images that score highest.

    Args:
        candidates: N bool.
        scores: N real numbers, higher is better; equal ones are taken by lower index.
        labels: N whole numbers, the classes.
        n_per_class: At least 1.

    Returns:
        N bool, with `n_per_class` candidates or more in each class that has so many images, and all of any other.
    """
    filled, scores = candidates.copy(), np.asarray(scores, dtype=np.float64)
    for label in np.unique(labels):
        others = np.flatnonzero((labels == label) & ~candidates)
        missing = max(0, n_per_class - int(candidates[labels == label].sum()))
        filled[others[np.argsort(-scores[others], kind="stable")[:missing]]] = True
    return filled
