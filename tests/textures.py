"""Tiles that a program makes, for tests of what is alike."""

from __future__ import annotations

import numpy as np
from scipy.ndimage import gaussian_filter


def textures(count: int, seed: int, size: int = 28) -> np.ndarray:
    """Textures of fine and of coarse spots, uint8 N×S×S×3."""
    rng = np.random.default_rng(seed)
    noise = rng.normal(size=(2, count, size, size, 3))
    fine, coarse = (gaussian_filter(x, (0, w, w, 0)) for x, w in zip(noise, (1.2, 3.0), strict=True))
    mixed = fine / fine.std() + coarse / coarse.std()
    return np.clip(140 + 30 * mixed.mean(axis=3, keepdims=True) + 10 * mixed, 0, 255).round().astype(np.uint8)
