"""Which tiles of one set are in another, as they are, turned or mirrored."""

from __future__ import annotations

import numpy as np

from histodistill.selection.near_copies import near_pairs
from histodistill.training.data.tiles import Tiles


def tiles_also_in(tiles: Tiles, others: Tiles) -> np.ndarray:
    """Which of N tiles are among others: bool N. A tile of one colour is no copy of another."""
    found = np.zeros(len(tiles), dtype=bool)
    if tiles.images.shape[1:] == others.images.shape[1:]:
        first, second = near_pairs([tiles.images, others.images], tolerance=0).T
        found[first[(first < len(tiles)) & (second >= len(tiles))]] = True
    return found
