"""Which tiles of one set are in another, whatever file or order they come in."""

from __future__ import annotations

import numpy as np

from histodistill.selection.copies import tile_keys
from histodistill.training.data.tiles import Tiles


# Tiles that are looked at together.
_TILES_PER_CALL = 1024


def tiles_also_in(tiles: Tiles, others: Tiles) -> np.ndarray:
    """Which of N tiles are among others as they are, turned or mirrored: bool N.

    A tile of one colour, such as an empty one, is no copy of another.
    """
    if tiles.images.shape[1:] != others.images.shape[1:]:
        return np.zeros(len(tiles), dtype=bool)
    sums, of_others = _sums(tiles.images), _sums(others.images)
    # Turning takes long, and what it does not change tells most tiles apart.
    candidates = np.flatnonzero(np.isin(sums, of_others))
    keys = _keys(others.images[np.isin(of_others, sums)])
    found = np.zeros(len(tiles), dtype=bool)
    found[candidates] = np.isin(_keys(tiles.images[candidates]), keys[keys > 0])
    return found


def _sums(images: np.ndarray) -> np.ndarray:
    """One number for each image, uint64 N, made of the sums of its colours."""
    weights = np.array([1, 2**21, 2**42], dtype=np.uint64)
    parts = range(0, len(images), _TILES_PER_CALL)
    sums = [images[first : first + _TILES_PER_CALL].sum(axis=(1, 2), dtype=np.uint64) @ weights for first in parts]
    return np.concatenate([np.empty(0, dtype=np.uint64), *sums])


def _keys(images: np.ndarray) -> np.ndarray:
    """`tile_keys`, and 0 for images of one colour."""
    varied = (images != images[:, :1, :1]).any(axis=(1, 2, 3))
    return np.where(varied, tile_keys(images), 0)
