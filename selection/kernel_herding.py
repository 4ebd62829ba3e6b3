"""Kernel herding: images chosen so that they are distributed as all are; also of classes with very many images."""

from __future__ import annotations

import numpy as np
from threadpoolctl import threadpool_limits

from histodistill.selection.base import ClassSelection, ClasswiseSelector
from histodistill.selection.distances import (
    first_equal_rows,
    median_squared_distance,
    squared_distances_by_products,
    squared_distances_to,
)


# Images of a class up to which the kernel's width is the median of all distances: 512 MiB of float64.
_MOST_FOR_MEDIAN = 2**13
# Images of a class up to which the mean of the kernel is taken over all of them; of more, over so many.
_MOST_KNOWN = 20_000
# Images that are told apart in one block where a class is screened.
_SCREENED_AT_ONCE = 10_000
# float64 values of the kernel held at once.
_BLOCK_VALUES = 2**23


class KernelHerdingSelector(ClasswiseSelector):
    """Chooses greedily so that the chosen images are distributed as all images of the class are.

    Kernel herding (Chen, Welling and Smola, UAI 2010): each image in turn is the one that makes the maximum mean
    discrepancy between the chosen images and all of them smallest, under k(x, y) = exp(−‖x − y‖² / m), with m the
    median of ‖x − y‖² over all pairs. Dense regions get many images and thin ones few, and no two near each other
    before all else is served. The rank order is that of choosing, so the first images of a class are by themselves a
    good choice of fewer.

    Time grows with the number of images squared, up to 20,000 of a class; of more, what all of them are like is
    estimated from 20,000, and time grows with their number. Above 8,192 images, m is the median over pairs drawn at
    random. Memory is that of 8,192² distances at most.

    Parameters and attributes are those of `BaseSelector`; `random_state` has an effect on classes of more than 8,192
    images alone, since with fewer the method uses no chance.
    """

    def _select_class(self, embeddings: np.ndarray, rng: np.random.Generator, name: str) -> ClassSelection:
        return ClassSelection(ranked=herd(embeddings, self.n_per_class, rng))


def screen(embeddings: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Images that are distributed as all are, chosen by kernel herding block by block.

    Args:
        embeddings: n×D float32.
        count: How many to choose, at most n.
        rng: Deals the images out to blocks.

    Returns:
        `count` different indices in 0 … n − 1, int64, ascending.
    """
    blocks = np.array_split(rng.permutation(len(embeddings)), -(-len(embeddings) // _SCREENED_AT_ONCE))
    # As many of each block, but for what is left over.
    shares = [count * (number + 1) // len(blocks) - count * number // len(blocks) for number in range(len(blocks))]
    chosen = [np.sort(rows)[herd(embeddings[np.sort(rows)], n, rng)] for rows, n in zip(blocks, shares, strict=True)]
    return np.sort(np.concatenate(chosen))


def herd(embeddings: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Kernel herding among images: see `KernelHerdingSelector`.

    Args:
        embeddings: n×D float32, finite.
        count: How many to choose, at most n.
        rng: Used where there are more than 8,192 images.

    Returns:
        `count` different indices in 0 … n − 1, int64, in the order of choosing.
    """
    # Sums over several threads are rounded differently from run to run.
    with threadpool_limits(limits=1):
        scale = _scale(embeddings, rng)
        attraction = _attraction(embeddings, scale, rng)
    # Rounding differs between equal images, of which the first is to be taken.
    first_equal = first_equal_rows(embeddings)
    np.maximum.at(attraction, first_equal, attraction)
    attraction = attraction[first_equal]
    repulsion = np.zeros(len(embeddings))
    free = np.ones(len(embeddings), dtype=bool)
    ranked = np.empty(count, dtype=np.int64)
    for number in range(count):
        ranked[number] = best = np.argmax(np.where(free, attraction - repulsion / (number + 1), -np.inf))
        free[best] = False
        repulsion += np.exp(squared_distances_to(embeddings, embeddings[best]) / -scale)
    return ranked


def _scale(embeddings: np.ndarray, rng: np.random.Generator) -> float:
    """The median of squared distances, those from images to themselves included; 1 where it is 0."""
    if len(embeddings) > _MOST_FOR_MEDIAN:
        return median_squared_distance(embeddings, rng)
    # Sorted in place, since a copy would take as much again.
    centred = embeddings - embeddings.mean(axis=0, dtype=np.float64)
    distances = squared_distances_by_products(centred, centred)
    return float(np.median(distances, overwrite_input=True)) or 1.0


def _attraction(embeddings: np.ndarray, scale: float, rng: np.random.Generator) -> np.ndarray:
    """The mean of the kernel between each image and all of them, n float64."""
    known = embeddings
    if len(embeddings) > _MOST_KNOWN:
        known = embeddings[np.sort(rng.choice(len(embeddings), _MOST_KNOWN, replace=False))]
    # Distances do not change where all is moved, and digits are not lost on where all is.
    mean = embeddings.mean(axis=0, dtype=np.float64)
    known = known - mean
    attraction = np.empty(len(embeddings))
    step = max(1, _BLOCK_VALUES // len(known))
    for start in range(0, len(embeddings), step):
        block = slice(start, start + step)
        kernel = squared_distances_by_products(embeddings[block] - mean, known)
        kernel /= -scale
        attraction[block] = np.exp(kernel, out=kernel).mean(axis=1)
    return attraction
