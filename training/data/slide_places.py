"""Where on slides tiles are: squares, by their corner, their side, and what their pixels are pixels of."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

import numpy as np


class Scale(IntEnum):
    """What says how large the pixels of a tile are."""

    LEVEL = 0
    """They are those of a level of the slide, by its number."""
    MPP = 1
    """Microns along one of them."""
    DOWNSAMPLE = 2
    """Pixels of level 0 along one of them."""


@dataclass(frozen=True, eq=False)
class Places:
    """Where N tiles are.

    Attributes:
        corners: int64 N×2, x and y of the upper left corner in pixels of level 0.
        sizes: int64 N, pixels along a side of the tile.
        scales: float64 N, of each tile what its unit says: the level, microns, or pixels of level 0 along a pixel.
        units: uint8 N, a `Scale` each.
        slides: int64 N, the number of the slide.
    """

    corners: np.ndarray
    sizes: np.ndarray
    scales: np.ndarray
    units: np.ndarray
    slides: np.ndarray

    def __len__(self) -> int:
        return len(self.corners)

    @classmethod
    def alike(cls, corners: np.ndarray, size: int, scale: float, unit: Scale) -> Places:
        """Places on one slide, number 0, that are of one size."""
        count = len(corners)
        sizes, scales = np.full(count, size, np.int64), np.full(count, scale, np.float64)
        return cls(corners, sizes, scales, np.full(count, unit, np.uint8), np.zeros(count, np.int64))

    @classmethod
    def joined(cls, parts: Sequence[tuple[int, Places]]) -> Places:
        """Places on slides of these numbers, one slide after the other."""
        slides = np.concatenate([np.full(len(part), slide, np.int64) for slide, part in parts])
        names = ("corners", "sizes", "scales", "units")
        corners, sizes, scales, units = (np.concatenate([getattr(part, name) for _, part in parts]) for name in names)
        return cls(corners, sizes, scales, units, slides)

    def subset(self, rows: np.ndarray) -> Places:
        """The places at these rows."""
        return Places(self.corners[rows], self.sizes[rows], self.scales[rows], self.units[rows], self.slides[rows])

    def repeated(self) -> tuple[int, int] | None:
        """Two rows that are the same place, or None."""
        columns = (*self.corners.T, self.sizes, self.scales, self.units, self.slides)
        order = np.lexsort(columns)
        same = np.all([column[order][1:] == column[order][:-1] for column in columns], axis=0)
        if not same.any():
            return None
        # Rows that are alike stand in their order: the sort is stable.
        later = int(order[1:][same].min())
        position = int(np.flatnonzero(order == later)[0])
        return int(order[position - 1]), later

    def digest(self) -> str:
        """SHA-256 (64 hex digits) of all of it."""
        digest = hashlib.sha256()
        for values, kind in (
            (self.corners, "<i8"),
            (self.sizes, "<i8"),
            (self.scales, "<f8"),
            (self.units, "u1"),
            (self.slides, "<i8"),
        ):
            digest.update(np.ascontiguousarray(values.astype(kind)).data)
        return digest.hexdigest()
