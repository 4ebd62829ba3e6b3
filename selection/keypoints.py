"""Keypoints of grey pictures, described so that turning, mirroring or inverting the picture changes nothing.

A copy of a part of a tile holds the part's keypoints, wherever it lies and however it is turned. So keypoints tell
which tile it may be of, and where and how it lies there, without trying every window, angle and place.

Keypoints are extrema of the Laplacian of a Gaussian (Lindeberg 1998). What is around one is a few circular harmonics:
on rings about it, the Fourier coefficients along the angle. Turning a picture turns their phases and mirroring it
conjugates them, so magnitudes, and products of the same order on neighbouring rings, stay as they are, but for a sign.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from scipy.ndimage import gaussian_filter


# Rings about a keypoint: radius in px, and the highest order of a harmonic that so few pixels can hold.
_RINGS = ((1.6, 2), (3.1, 4), (4.6, 5), (6.0, 6))
# Standard deviation in px of a ring's profile.
_RING_WIDTH = 0.75
# Pixels from a keypoint to the edge of what is looked at; keypoints are at least so far from the picture's edge.
REACH = 7
# Standard deviation in px of the Gaussian whose Laplacian's extrema are keypoints.
_BLOB = 1.6
# Standard deviation of grey levels around a keypoint below which it is noise, and what is added before dividing by it.
_LEAST_DEVIATION, _SOFTENING = 2.0, 2.0
# Patches around keypoints that are read at once, which bounds the memory.
_PATCHES_PER_CALL = 2**14
# Angles that are tried for the turn between two keypoints.
_ANGLES = np.arange(60) * (2 * np.pi / 60)

_NAMES = tuple((ring, order) for ring, (_, highest) in enumerate(_RINGS) for order in range(highest + 1))
_ORDERS = np.array([order for _, order in _NAMES])
# Pairs of harmonics of the same order on neighbouring rings.
_PAIRS = np.array(
    [
        (place, _NAMES.index((ring + 1, order)))
        for place, (ring, order) in enumerate(_NAMES)
        if (ring + 1, order) in _NAMES
    ]
)
#: Harmonics around a place, and numbers of a descriptor.
NUM_HARMONICS = len(_NAMES)
WIDTH = len(_NAMES) + len(_PAIRS)


class Keypoints(NamedTuple):
    """Keypoints of some pictures, picture by picture.

    Attributes:
        picture: int64 P.
        place: int64 P×2, row and column.
        harmonics: complex64 P×C: see `harmonics_at`.
    """

    picture: np.ndarray
    place: np.ndarray
    harmonics: np.ndarray


def find_keypoints(pictures: np.ndarray) -> Keypoints:
    """The keypoints of grey pictures, but those too near to an edge or with nothing but noise around them.

    Args:
        pictures: float32 N×s×s, grey levels from 0 to 255.
    """
    side = pictures.shape[1]
    if side <= 2 * REACH:
        return Keypoints(np.empty(0, np.int64), np.empty((0, 2), np.int64), np.empty((0, NUM_HARMONICS), np.complex64))
    widths = (0, _BLOB, _BLOB)
    response = gaussian_filter(pictures, widths, order=(0, 2, 0)) + gaussian_filter(pictures, widths, order=(0, 0, 2))
    # A pixel more along each edge, since an extremum is one among its eight neighbours.
    near = response[:, REACH - 1 : side - REACH + 1, REACH - 1 : side - REACH + 1]
    middle = near[:, 1:-1, 1:-1]
    around = [
        near[:, row : row + side - 2 * REACH, column : column + side - 2 * REACH]
        for row in range(3)
        for column in range(3)
    ]
    highest, lowest = np.maximum.reduce(around), np.minimum.reduce(around)
    is_extremum = ((middle > 0) & (middle == highest)) | ((middle < 0) & (middle == lowest))
    picture, *place = np.nonzero(is_extremum)
    places = np.stack(place, axis=1) + REACH
    harmonics, deviations = harmonics_at(pictures, picture, places)
    kept = deviations >= _LEAST_DEVIATION
    return Keypoints(picture[kept], places[kept], harmonics[kept])


def harmonics_at(pictures: np.ndarray, picture: np.ndarray, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The circular harmonics around places in pictures.

    Args:
        pictures: float32 N×s×s.
        picture: int64 P, which of them.
        places: int64 P×2, row and column, at least `REACH` from each edge.

    Returns:
        complex64 P×C, those of the rings one after the other, over the deviation of grey levels around the place; and
        float32 P, that deviation.
    """
    patches = sliding_window_view(pictures, (2 * REACH + 1, 2 * REACH + 1), axis=(1, 2))
    kernels, weights, planes = _kernels()
    harmonics = np.empty((len(picture), NUM_HARMONICS), np.complex64)
    deviations = np.empty(len(picture), np.float32)
    for start in range(0, len(picture), _PATCHES_PER_CALL):
        rows = slice(start, start + _PATCHES_PER_CALL)
        row, column = places[rows].T - REACH
        patch = patches[picture[rows], row, column].reshape(-1, len(weights))
        # Without the plane that fits best, so that light and shade over the whole picture are in no harmonic.
        patch = patch - ((patch * weights) @ planes) @ planes.T
        deviations[rows] = np.sqrt((patch * patch) @ weights)
        parts = (patch @ kernels).reshape(len(patch), 2, -1)
        harmonics[rows] = parts[:, 0] - 1j * parts[:, 1]
    harmonics /= (deviations + _SOFTENING)[:, None]
    return harmonics, deviations


def describe(harmonics: np.ndarray) -> np.ndarray:
    """Descriptors of keypoints by their harmonics, P×C: float32 P×`WIDTH`."""
    first, second = harmonics[:, _PAIRS[:, 0]], harmonics[:, _PAIRS[:, 1]]
    alike = (first * second.conj()).real
    # Square roots bring products to the scale of magnitudes.
    return np.concatenate([np.abs(harmonics), np.sign(alike) * np.sqrt(np.abs(alike))], axis=1)


def turns_between(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """How what is around keypoints came from what is around others.

    Args:
        first, second: complex64 P×C, harmonics.

    Returns:
        float64 P, the angles in radians by which `second`, after mirroring where that is so, is to be turned to be
        `first`, from the direction of columns to that of rows; and bool P, whether it is to be mirrored before, its
        rows reversed.
    """
    phases = np.exp(1j * _ORDERS[:, None] * _ANGLES).astype(np.complex64)
    turned, mirrored = ((first * other) @ phases for other in (second.conj(), second))
    # A picture and its negative have opposite signs.
    best = np.argmax(np.abs(np.concatenate([turned.real, mirrored.real], axis=1)), axis=1)
    return _ANGLES[best % len(_ANGLES)], best >= len(_ANGLES)


@lru_cache(maxsize=1)
def _kernels() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Real parts and, after these, imaginary parts of the harmonics of a patch; the weights of its pixels; and P×3,
    planes over it that are orthonormal by these weights."""
    rows, columns = np.mgrid[-REACH : REACH + 1, -REACH : REACH + 1].reshape(2, -1).astype(float)
    radius, angle = np.hypot(rows, columns), np.arctan2(rows, columns)
    kernels = []
    for ring, order in _NAMES:
        profile = np.exp(-0.5 * ((radius - _RINGS[ring][0]) / _RING_WIDTH) ** 2)
        if order:
            profile[radius == 0] = 0  # the middle lies in no direction
        kernels.append(profile / profile.sum() * np.exp(1j * order * angle))
    outer = _RINGS[-1][0]
    weights = np.exp(-0.5 * (radius / (0.7 * outer)) ** 2) * (radius <= outer + _RING_WIDTH)
    stacked = np.concatenate([np.real(kernels), np.imag(kernels)])
    weights /= weights.sum()
    planes = np.stack([np.ones_like(rows), rows / np.sqrt(weights @ rows**2), columns / np.sqrt(weights @ columns**2)])
    return tuple(np.ascontiguousarray(x, dtype=np.float32) for x in (stacked.T, weights, planes.T))  # type: ignore[return-value]
