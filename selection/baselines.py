"""The plain selectors of the literature that others are measured by, under the same contract."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import numpy as np

from histodistill.selection.base import ClassSelection, ClasswiseSelector
from histodistill.selection.checks import LARGEST_DISTANCE_MATRIX
from histodistill.selection.distances import squared_distances_to


if TYPE_CHECKING:
    from sklearn.cluster import KMeans


class RandomSelector(ClasswiseSelector):
    """Chooses at random, every set of `n_per_class` images of a class being equally likely.

    Parameters and attributes are those of `BaseSelector`; the rank order is random too.
    """

    def _select_class(self, embeddings: np.ndarray, rng: np.random.Generator, name: str) -> ClassSelection:
        return ClassSelection(ranked=rng.permutation(len(embeddings))[: self.n_per_class])


class KMeansSelector(ClasswiseSelector):
    """Chooses the images nearest to the `n_per_class` centroids of k-means.

    Centroids choose in the order of their cluster's size, largest first, each the nearest image that is not chosen
    yet; this is the rank order. Lloyd's algorithm from one k-means++ start, run in one thread, because sums over
    several are rounded differently from run to run.

    Parameters and attributes are those of `BaseSelector`.
    """

    def _select_class(self, embeddings: np.ndarray, rng: np.random.Generator, name: str) -> ClassSelection:
        kmeans = fit_kmeans(embeddings, self.n_per_class, rng)
        sizes = np.bincount(kmeans.labels_, minlength=self.n_per_class)
        free = np.ones(len(embeddings), dtype=bool)
        ranked = []
        for cluster in np.argsort(-sizes, kind="stable"):
            distances = squared_distances_to(embeddings, kmeans.cluster_centers_[cluster])
            nearest = int(np.argmin(np.where(free, distances, np.inf)))
            free[nearest] = False
            ranked.append(nearest)
        return ClassSelection(ranked=np.array(ranked))


def fit_kmeans(embeddings: np.ndarray, n_clusters: int, rng: np.random.Generator) -> KMeans:
    """Lloyd's algorithm from one k-means++ start, in one thread: see `KMeansSelector`.

    Args:
        embeddings: n×D float32.
        n_clusters: At most n.
        rng: Draws the start.

    Returns:
        The fitted estimator of scikit-learn, with `cluster_centers_` n_clusters×D float64 and `labels_` n.
    """
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning
    from threadpoolctl import threadpool_limits

    kmeans = KMeans(n_clusters=n_clusters, n_init=1, random_state=int(rng.integers(2**31)))
    with threadpool_limits(limits=1), warnings.catch_warnings():
        # Duplicates can leave fewer clusters than centroids; the next nearest images then fill the places.
        warnings.simplefilter("ignore", ConvergenceWarning)
        return kmeans.fit(embeddings.astype(np.float64))


class HerdingSelector(ClasswiseSelector):
    """Chooses greedily so that the mean of the chosen embeddings stays nearest to the mean of the class.

    Herding (Welling, ICML 2009) in the form of iCaRL (Rebuffi et al., CVPR 2017, alg. 4). The rank order is that of
    choosing.

    Parameters and attributes are those of `BaseSelector`; `random_state` has no effect, the method uses no chance.
    """

    def _select_class(self, embeddings: np.ndarray, rng: np.random.Generator, name: str) -> ClassSelection:
        mean = embeddings.mean(axis=0, dtype=np.float64)
        chosen_sum = np.zeros_like(mean)
        free = np.ones(len(embeddings), dtype=bool)
        ranked = []
        for count in range(1, self.n_per_class + 1):
            # ‖mean − (chosen_sum + x) / count‖ is least where x is nearest to count·mean − chosen_sum.
            distances = squared_distances_to(embeddings, count * mean - chosen_sum)
            nearest = int(np.argmin(np.where(free, distances, np.inf)))
            free[nearest] = False
            chosen_sum += embeddings[nearest]
            ranked.append(nearest)
        return ClassSelection(ranked=np.array(ranked))


class KCenterSelector(ClasswiseSelector):
    """Chooses greedily the image farthest from all those chosen so far.

    Farthest-first traversal (Gonzalez, 1985), the core-set of Sener and Savarese (ICLR 2018): the largest distance
    from an image to the nearest chosen one is at most twice the least possible. It starts with the image nearest to
    the mean of the class. The rank order is that of choosing.

    Parameters and attributes are those of `BaseSelector`; `random_state` has no effect, the method uses no chance.
    """

    def _select_class(self, embeddings: np.ndarray, rng: np.random.Generator, name: str) -> ClassSelection:
        latest = int(np.argmin(squared_distances_to(embeddings, embeddings.mean(axis=0, dtype=np.float64))))
        ranked = [latest]
        to_chosen = np.full(len(embeddings), np.inf)
        while len(ranked) < self.n_per_class:
            np.minimum(to_chosen, squared_distances_to(embeddings, embeddings[latest]), out=to_chosen)
            to_chosen[ranked] = -1.0  # below any distance, also when only duplicates are left
            latest = int(np.argmax(to_chosen))
            ranked.append(latest)
        return ClassSelection(ranked=np.array(ranked))


class FacilityLocationSelector(ClasswiseSelector):
    """Chooses greedily so that every image is, on average, near to a chosen one.

    The sum over all images of the distance to the nearest chosen one is made small (k-medoids, or facility location
    with the similarity "largest distance minus distance"); the greedy choice has at least 1 − 1/e of the best possible
    gain (Nemhauser, Wolsey and Fisher, 1978). The rank order is that of choosing. Time and memory grow with the number
    of images squared.

    Parameters and attributes are those of `BaseSelector`, `random_state` having no effect, and

        mean_distance_: float64 per class, from an image to its nearest chosen one.
    """

    def _select_class(self, embeddings: np.ndarray, rng: np.random.Generator, name: str) -> ClassSelection:
        if len(embeddings) ** 2 > LARGEST_DISTANCE_MATRIX:
            raise ValueError(
                f"{name} has {len(embeddings)} images, too many for facility location, which holds all their "
                f"distances, at most {LARGEST_DISTANCE_MATRIX}: choose another selector"
            )
        # A power of two changes no digit, and keeps all within float32, whose largest it is of the least numbers.
        scale = np.float32(2.0 ** min(127, 2 - int(np.frexp(np.abs(embeddings).max())[1])))
        distances = np.empty((len(embeddings), len(embeddings)), dtype=np.float32)
        for row, image in zip(distances, embeddings, strict=True):
            row[:] = np.sqrt(squared_distances_to(embeddings, image)) * scale
        # In float64, or gains that are equal would be rounded apart.
        to_chosen = distances.max(axis=0).astype(np.float64)
        free = np.ones(len(embeddings), dtype=bool)
        ranked = []
        for _ in range(self.n_per_class):
            gains = np.array([np.maximum(to_chosen - row, 0).sum() for row in distances])
            best = int(np.argmax(np.where(free, gains, -1.0)))
            free[best] = False
            ranked.append(best)
            np.minimum(to_chosen, distances[best], out=to_chosen)
        return ClassSelection(ranked=np.array(ranked), per_class={"mean_distance": float(to_chosen.mean() / scale)})
