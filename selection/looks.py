"""The look of a tile: what tells patients apart, whatever their tiles show.

A patient's tiles share a stain, a scanner and the size of nuclei, and hardly a pixel. So a set of images may give a
patient away that it has no tile of. Looks are found in three steps: features of each tile that are the same in all
eight symmetries, less what its class has of them; the directions in which patients differ most, compared with tiles of
one patient (linear discriminants); and distances in units of how tiles of one patient scatter.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.linalg import eigh
from scipy.ndimage import gaussian_filter
from sklearn.covariance import ledoit_wolf

from histodistill.selection.image_rows import Images, batches
from histodistill.selection.stains import STAIN_VECTORS, optical_density
from histodistill.selection.views import resample


#: Directions of a look, at most.
LOOK_COLUMNS = 12
# Pixels along a side at which looks are taken; larger tiles are reduced to it.
_SIDE = 64
# Leading directions of each embedding that are features of a look.
_EMBEDDING_COLUMNS = 8
# Pixels, the standard deviations of Gaussians between which the energy of detail is measured, by half octaves.
_SCALES = (0.6, 0.85, 1.2, 1.7, 2.4, 3.4)
# Tiles whose features are computed at once, at most, and bytes of them: which bounds the memory.
_TILES_PER_CALL, _BYTES_PER_CALL = 512, 2**20
# Rows of embeddings that are computed with at once. As many as this, since the last bit of a sum depends on it: so it
# changes only for larger sets.
_ROWS_PER_CALL = 2**15
# Optical density that is added before a logarithm, so that empty tiles do not stand out.
_LEAST_DENSITY = 0.02
# Standard deviations of its class at which a feature ends.
_FARTHEST = 4.0
# Tiles of a class whose mean is known well enough to be taken out.
_FEWEST_OF_CLASS = 2


def look_features(images: Images) -> np.ndarray:
    """Features of colour, stain and texture, the same for a tile that is turned or mirrored: float64 N×F.

    Args:
        images: uint8 N×S×S×3.
    """
    at_once = max(1, min(_TILES_PER_CALL, _BYTES_PER_CALL // int(np.prod(images.shape[1:]))))
    return np.concatenate([_features_of_part(part) for part in batches(images, at_once)])


@dataclass(frozen=True)
class LookSpace:
    """Where looks are compared: made of all real tiles, whoever of them was held out.

    Attributes:
        axes: Embedding → mean and leading directions, by which its features are taken.
        means: Class → mean and deviation of its features, float64 2×F; −1 for classes that have too few tiles.
        directions: float64 F×K, scaled so that tiles of one patient scatter by 1 along each.
        spread: float64 K, the variance between patients along each direction: above 0, in that unit.
    """

    axes: dict[str, tuple[np.ndarray, np.ndarray]]
    means: dict[int, np.ndarray]
    directions: np.ndarray
    spread: np.ndarray

    @classmethod
    def fit(
        cls, images: Images, embedded: dict[str, np.ndarray], labels: np.ndarray, groups: np.ndarray
    ) -> tuple[LookSpace, np.ndarray]:
        """The space of N real tiles, and their looks N×K.

        Args:
            images: uint8 N×S×S×3.
            embedded: Embedding → N×D.
            labels: int64 N.
            groups: int64 N, from 0 on.
        """
        axes = {name: _leading(points) for name, points in embedded.items()}
        features = _with_embeddings(look_features(images), embedded, axes)
        means = {-1: _moments(features)}
        for label in np.unique(labels).tolist():
            if (labels == label).sum() >= _FEWEST_OF_CLASS:
                means[label] = _moments(features[labels == label])
        residuals = _residuals(features, labels, means)
        directions, spread = _discriminants(residuals, groups)
        return cls(axes, means, directions, spread), residuals @ directions

    def of(self, images: Images, embedded: dict[str, np.ndarray], labels: np.ndarray) -> np.ndarray:
        """The looks of M images, M×K.

        Args:
            images: uint8 M×S×S×3.
            embedded: Embedding → M×D.
            labels: int64 M.
        """
        features = _with_embeddings(look_features(images), embedded, self.axes)
        return _residuals(features, labels, self.means) @ self.directions


def _features_of_part(images: np.ndarray) -> np.ndarray:
    side = min(images.shape[1], _SIDE)
    density = optical_density(resample(images, side))
    count = len(density)
    pixels = density.reshape(count, -1, 3)
    total = np.sort(pixels, axis=1)
    places = (np.array([0.05, 0.25, 0.5, 0.75, 0.95]) * (total.shape[1] - 1)).round().astype(int)
    levels = np.log(total[:, places] + _LEAST_DENSITY).reshape(count, -1)
    centred = pixels - pixels.mean(axis=1, keepdims=True)
    covariance = np.einsum("npc,npd->ncd", centred, centred) / pixels.shape[1]
    deviations = np.sqrt(np.einsum("ncc->nc", covariance)) + _LEAST_DENSITY
    slopes = [covariance[:, c, 1] / (covariance[:, 1, 1] + _LEAST_DENSITY**2) for c in (0, 2)]
    # The colours of the darkest tenth, mostly nuclei, and of the middle, mostly what eosin stains.
    order = np.argsort(pixels.sum(axis=2), axis=1)
    tints = []
    for low, high in ((0.9, 1.0), (0.4, 0.6)):
        chosen = order[:, int(low * order.shape[1]) : max(int(high * order.shape[1]), int(low * order.shape[1]) + 1)]
        means = np.log(np.take_along_axis(pixels, chosen[:, :, None], axis=1).mean(axis=1) + _LEAST_DENSITY)
        tints += [means[:, 0] - means[:, 1], means[:, 2] - means[:, 1]]
    stains = density @ np.linalg.inv(STAIN_VECTORS / np.linalg.norm(STAIN_VECTORS, axis=1, keepdims=True))
    return np.column_stack(
        [levels, np.log(pixels.mean(axis=1) + _LEAST_DENSITY), np.log(deviations), *slopes, *tints]
        + [_detail(stains[..., stain]) for stain in (0, 1)]
    ).astype(np.float64)


def _detail(planes: np.ndarray) -> np.ndarray:
    """Log energy of detail of N×S×S planes at each of `_SCALES`, fine to coarse: N×L."""
    energies, finer = [], planes
    for scale in _SCALES:
        coarser = gaussian_filter(planes, (0, scale, scale), mode="reflect")
        energies.append(np.log(np.square(finer - coarser).mean(axis=(1, 2)) + _LEAST_DENSITY**2))
        finer = coarser
    return np.stack(energies, axis=1)


def _leading(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The mean of N×D points and their directions of most variance, D×K."""
    mean = points.mean(axis=0)
    scatter = np.zeros((points.shape[1], points.shape[1]))
    for part in _row_parts(points):
        centred = (part - mean).astype(np.float64)
        scatter += centred.T @ centred
    _, axes = np.linalg.eigh(scatter)
    return mean, axes[:, ::-1][:, :_EMBEDDING_COLUMNS]


def _row_parts(points: np.ndarray) -> list[np.ndarray]:
    """Views of N×D points, few rows each."""
    return [points[start : start + _ROWS_PER_CALL] for start in range(0, len(points), _ROWS_PER_CALL)]


def _with_embeddings(
    features: np.ndarray, embedded: dict[str, np.ndarray], axes: dict[str, tuple[np.ndarray, np.ndarray]]
) -> np.ndarray:
    leading = [
        np.concatenate([(part - mean) @ along for part in _row_parts(embedded[name])])
        for name, (mean, along) in axes.items()
    ]
    return np.column_stack([features, *leading])


def _moments(features: np.ndarray) -> np.ndarray:
    return np.stack([features.mean(axis=0), features.std(axis=0) + 1e-9])


def _residuals(features: np.ndarray, labels: np.ndarray, means: dict[int, np.ndarray]) -> np.ndarray:
    """Features less the mean of their class, in its standard deviations."""
    result = np.empty_like(features)
    for label in np.unique(labels).tolist():
        mean, deviation = means.get(label, means[-1])
        result[labels == label] = (features[labels == label] - mean) / deviation
    return np.clip(result, -_FARTHEST, _FARTHEST)


def _discriminants(residuals: np.ndarray, groups: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Directions in which groups differ most, F×K, and the variance between groups along each, in units of within."""
    count, width = residuals.shape
    sizes = np.bincount(groups)
    means = np.stack([np.bincount(groups, column) for column in residuals.T], axis=1) / sizes[:, None]
    free = count - len(sizes)
    inside = residuals - means[groups]
    if free < 1 or len(sizes) < 2:  # each tile a group of its own, or all of them one: nothing tells groups apart
        inside, free, between = residuals - residuals.mean(axis=0), count, np.eye(width)
        sizes = np.ones(1, dtype=np.int64)
    else:
        between = np.cov(means.T)
    # Ledoit & Wolf (J. Multivariate Analysis 88, 2004) say how far it must be shrunk for so few tiles.
    within = ledoit_wolf(inside, assume_centered=True)[0] * count / free
    ratios, directions = eigh(between, within)
    ratios, directions = ratios[::-1], directions[:, ::-1]
    # Means of groups scatter by chance alone, too; beyond this edge (Marchenko & Pastur 1967) they differ.
    noise = float(np.mean(1 / sizes))
    edge = noise * (1 + np.sqrt(width / max(1, len(sizes) - 1))) ** 2
    kept = int(np.clip((ratios > edge).sum(), min(2, width), LOOK_COLUMNS))
    return directions[:, :kept], np.maximum(ratios[:kept] - noise, 0.05)
