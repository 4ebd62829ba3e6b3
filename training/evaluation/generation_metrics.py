"""How near generated images come to real ones, measured on embeddings of both.

The Fréchet and the kernel distance are those of torchmetrics, fed with embeddings of any model in place of
Inception's. Precision, recall, density and coverage compare neighbourhoods.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
import torch
from sklearn.metrics.pairwise import euclidean_distances
from sklearn.utils import gen_batches

from histodistill.selection.streams import torch_seed
from histodistill.training.running.errors import InputError
from histodistill.training.running.options import require


# Distances that are held in memory at a time: 256 MiB of float64.
_BLOCK = 2**25


@dataclass(frozen=True)
class Neighbourhoods:
    """Precision and recall of Kynkäänniemi et al. 2019, density and coverage of Naeem et al. 2020.

    The neighbourhood of a point is the open ball around it that reaches to its k-th nearest neighbour of its own kind.

    Attributes:
        precision: Share of the generated points that lie in the neighbourhood of some real point, 0 to 1.
        recall: Share of the real points that lie in the neighbourhood of some generated point, 0 to 1.
        density: In how many real neighbourhoods a generated point lies on average, over k; at least 0, about 1 where
            both are distributed alike.
        coverage: Share of the real points with a generated point in their neighbourhood, 0 to 1.
    """

    precision: float
    recall: float
    density: float
    coverage: float


def frechet_distance(real: np.ndarray, generated: np.ndarray) -> float:
    """Fréchet distance of two Gaussians fitted to embeddings (the FID of Heusel et al. 2017, arXiv:1706.08500).

    It falls as more images are used: compare only figures of equal numbers of images.

    Args:
        real, generated: float N×D and M×D, N and M at least 2.

    Returns:
        At least 0; 0 where mean and covariance agree.

    Raises:
        InputError: For arrays of other shapes.
    """
    from torchmetrics.image.fid import FrechetInceptionDistance

    real, generated = _checked(real, generated, at_least=2)
    metric = FrechetInceptionDistance(feature=_as_they_are(real))
    # In float64, as the eigenvalues of large covariances need it.
    metric.update(torch.from_numpy(real).double(), real=True)
    metric.update(torch.from_numpy(generated).double(), real=False)
    # Rounding can leave a little less than nothing.
    return max(0.0, float(metric.compute()))


def kernel_distance(
    real: np.ndarray, generated: np.ndarray, *, subset_size: int = 1000, num_subsets: int = 100, seed: int = 0
) -> float:
    """Squared maximum mean discrepancy with the kernel (xᵀy / D + 1)³ (the KID of Bińkowski et al. 2018).

    Its expectation does not depend on the number of images (arXiv:1801.01401), so it may be a little below 0.

    Args:
        real, generated: float N×D and M×D.
        subset_size: Images of each kind per estimate; fewer where there are not as many.
        num_subsets: Estimates that are averaged; one where each subset would be the whole of both sets.
        seed: Of the choice of subsets.

    Raises:
        InputError: For arrays of other shapes.
    """
    from torchmetrics.image.kid import KernelInceptionDistance

    real, generated = _checked(real, generated, at_least=2)
    subset_size = min(subset_size, len(real), len(generated))
    if subset_size == len(real) == len(generated):
        num_subsets = 1
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Metric `Kernel Inception Distance` will save all extracted features")
        metric = KernelInceptionDistance(feature=_as_they_are(real), subsets=num_subsets, subset_size=subset_size)
    metric.update(torch.from_numpy(real).double(), real=True)
    metric.update(torch.from_numpy(generated).double(), real=False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(torch_seed("subsets of the kernel distance", seed))
        return float(metric.compute()[0])


def neighbourhoods(real: np.ndarray, generated: np.ndarray, n_neighbors: int = 5) -> Neighbourhoods:
    """Precision, recall, density and coverage; distances are Euclidean and held a block of rows at a time.

    Args:
        real, generated: float N×D and M×D, N and M above `n_neighbors`.
        n_neighbors: k, of which the radius of a neighbourhood is made.

    Raises:
        InputError: For arrays of other shapes, or too few rows.
    """
    require(n_neighbors >= 1, "n_neighbors", n_neighbors, "it must be at least 1")
    real, generated = _checked(real, generated, at_least=n_neighbors + 1)
    # Near the origin squared distances lose the fewest digits to rounding; what is left of that must not decide
    # whether a copy lies in a neighbourhood, so distances that differ by less count as equal.
    centre = real.mean(axis=0, dtype=np.float64)
    real, generated = real - centre, generated - centre
    tolerance = 1e-10 * max(np.square(points).sum(axis=1).max() for points in (real, generated))
    real_reach = _squared_radii(real, n_neighbors) - tolerance
    generated_reach = _squared_radii(generated, n_neighbors) - tolerance
    num_real_around = np.zeros(len(generated), np.int64)
    covered, recalled = np.zeros(len(real), bool), np.zeros(len(real), bool)
    for rows in gen_batches(len(generated), max(1, _BLOCK // len(real))):
        distances = euclidean_distances(generated[rows], real, squared=True)
        in_real = distances < real_reach
        num_real_around[rows] = in_real.sum(axis=1)
        covered |= in_real.any(axis=0)
        recalled |= (distances < generated_reach[rows, None]).any(axis=0)
    return Neighbourhoods(
        precision=float((num_real_around > 0).mean()),
        recall=float(recalled.mean()),
        density=float(num_real_around.mean() / n_neighbors),
        coverage=float(covered.mean()),
    )


def _squared_radii(points: np.ndarray, n_neighbors: int) -> np.ndarray:
    radii = np.empty(len(points))
    for rows in gen_batches(len(points), max(1, _BLOCK // len(points))):
        distances = euclidean_distances(points[rows], points, squared=True)
        # A point is no neighbour of its own.
        distances[np.arange(len(distances)), np.arange(rows.start, rows.start + len(distances))] = np.inf
        radii[rows] = np.partition(distances, n_neighbors - 1, axis=1)[:, n_neighbors - 1]
    return radii


def _as_they_are(embeddings: np.ndarray) -> torch.nn.Module:
    module = torch.nn.Identity()
    module.num_features = embeddings.shape[1]
    return module


def _checked(real: np.ndarray, generated: np.ndarray, at_least: int) -> tuple[np.ndarray, np.ndarray]:
    real, generated = np.ascontiguousarray(real), np.ascontiguousarray(generated)
    if real.ndim != 2 or generated.ndim != 2 or real.shape[1] != generated.shape[1]:
        raise InputError(f"embeddings are {real.shape} and {generated.shape}: they must be N×D and M×D")
    for name, array in (("real", real), ("generated", generated)):
        if len(array) < at_least:
            raise InputError(f"there are {len(array)} {name} embeddings: at least {at_least} are needed")
        if not np.isfinite(array).all():
            raise InputError(f"{name} embeddings hold values that are not finite: embed with another model")
    return real, generated
