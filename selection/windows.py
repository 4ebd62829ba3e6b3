"""Which tiles an image may be a copy of, as far as coarse pictures of it and of windows of the tiles tell."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from histodistill.selection.image_rows import Images, batches, rows_of
from histodistill.selection.names import SYMMETRIES
from histodistill.selection.nearest_first import NearestOfFirst
from histodistill.selection.placements import PLACEMENT
from histodistill.selection.stains import optical_density
from histodistill.selection.views import apply_symmetry, resample


#: A window of an image: its side, and how far down and to the right its upper left corner is, as shares of the image.
Window = tuple[float, float, float]
#: All of an image.
WHOLE: Window = (1.0, 0.0, 0.0)
#: Pixels along a side at which images are compared; larger images are reduced to it, which takes less time.
SIDE = 32

# Fields along a side of the coarse picture of a window, by which candidates are found.
_COARSE_SIDE = 7
# Windows in a cell, on average.
_WINDOWS_PER_CELL = 256
# Contrast (standard deviation of optical density) that is added to that of a coarse picture before dividing by it, so
# that the noise of an empty window is not blown up.
_LEAST_CONTRAST = 0.02
# Tiles whose windows are made at once, which bounds the memory.
_TILES_PER_CALL = 4096
# Bytes of images that are turned or resampled at once, likewise.
_BYTES_PER_CALL = 2**22


class WindowIndex:
    """Windows of tiles, searched by their coarse pictures.

    Args:
        images: uint8 N×S×S×3, the tiles; they are read a part at a time.
        few: int64 F, those of the tiles by whose windows cells are made.
        windows: The windows of each tile.
        most_exhaustive: Windows of all tiles up to which an image is compared with all of them.
        cells_searched: Cells, of 256 windows on average, that are searched for an image where there are more.
    """

    def __init__(
        self,
        images: Images,
        few: np.ndarray,
        windows: Sequence[Window],
        *,
        most_exhaustive: int,
        cells_searched: int,
    ):
        self._windows = np.array(windows)
        # They are numbered by tile, so that those of the first tiles are the first.
        self._search = NearestOfFirst(
            len(images) * len(windows),
            _COARSE_SIDE**2,
            (
                self._coarse(rows_of(images, np.arange(start, min(len(images), start + _TILES_PER_CALL))))
                for start in range(0, len(images), _TILES_PER_CALL)
            ),
            lambda: self._coarse(rows_of(images, few)),
            most_exhaustive=most_exhaustive,
            points_per_cell=_WINDOWS_PER_CELL,
            cells_searched=cells_searched,
        )

    def candidates(
        self, turned: np.ndarray, num_tiles: int, proposals: int, most: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Which tiles M images may be copies of.

        Args:
            turned: 8×M×s×s×3, the images' `working_density` in all symmetries.
            num_tiles: Of these first tiles.
            proposals: Windows that are proposed for each symmetry: those whose coarse pictures are nearest.
            most: Tiles of an image, at most.

        Returns:
            M×K each: squared coarse distances (infinite where there are fewer candidates), tiles, their windows
            (M×K×3), and the symmetries of the image that they were found by.
        """
        count = num_tiles * len(self._windows)
        k = min(proposals, count)
        found = [self._search.nearest(_coarse(view, WHOLE), k, count) for view in turned]
        distances = np.concatenate([f[0] for f in found], axis=1)
        places = np.concatenate([f[1] for f in found], axis=1)
        symmetries = np.broadcast_to(np.repeat(np.arange(SYMMETRIES), k), places.shape)
        tiles, windows = np.divmod(places, len(self._windows))
        # A tile counts once, in its best view.
        order = np.lexsort((distances, tiles), axis=1)
        distances, tiles, windows, symmetries = _in_order(order, distances, tiles, windows, symmetries)
        again = np.zeros(tiles.shape, dtype=bool)
        again[:, 1:] = tiles[:, 1:] == tiles[:, :-1]
        distances = np.where(again, np.inf, distances)
        order = np.argsort(distances, axis=1, kind="stable")[:, :most]
        distances, tiles, windows, symmetries = _in_order(order, distances, tiles, windows, symmetries)
        return distances, tiles, self._windows[windows], symmetries

    def _coarse(self, images: Images) -> np.ndarray:
        """`_coarse` of all windows of N tiles, tile by tile: float32 W·N×49."""
        coarse = np.empty((len(images), len(self._windows), _COARSE_SIDE**2), np.float32)
        start = 0
        for part in batches(images, images_per_call(images)):
            density = working_density(part)
            for number, window in enumerate(self._windows.tolist()):
                coarse[start : start + len(part), number] = _coarse(density, window)
            start += len(part)
        return coarse.reshape(-1, _COARSE_SIDE**2)


def placements_of(
    distances: np.ndarray, tiles: np.ndarray, windows: np.ndarray, symmetries: np.ndarray, side: int
) -> np.ndarray:
    """What `WindowIndex.candidates` finds, M×K each, as placements in px of pictures with `side` px along a side."""
    image, number = np.nonzero(np.isfinite(distances))
    scale, down, right = windows[image, number].T
    symmetry = symmetries[image, number]
    placements = np.zeros(len(image), PLACEMENT)
    placements["image"], placements["tile"] = image, tiles[image, number]
    placements["row"] = placements["column"] = (side - 1) / 2
    placements["tile_row"], placements["tile_column"] = ((start + scale / 2) * side - 0.5 for start in (down, right))
    # Columns reversed are rows reversed and half a turn.
    placements["mirrored"] = symmetry >= 4
    placements["turn"] = (symmetry + 2 * (symmetry >= 4)) % 4 * (np.pi / 2)
    placements["zoom"] = scale
    return placements


def working_density(images: Images) -> np.ndarray:
    """Optical density of images of at most `SIDE` pixels along a side, float32 N×s×s×3."""
    side = min(images.shape[1], SIDE)
    density = np.empty((len(images), side, side, 3), np.float32)
    start = 0
    for part in batches(images, images_per_call(images)):
        density[start : start + len(part)] = optical_density(resample(part, side))
        start += len(part)
    return density


def in_all_symmetries(density: np.ndarray) -> np.ndarray:
    """N×s×s×3 in each of the eight symmetries: 8×N×s×s×3."""
    return np.stack([apply_symmetry(density, symmetry) for symmetry in range(SYMMETRIES)])


def images_per_call(images: Images) -> int:
    """How many images are turned or resampled at once."""
    return max(1, _BYTES_PER_CALL // int(np.prod(images.shape[1:])))


def _in_order(order: np.ndarray, *arrays: np.ndarray) -> list[np.ndarray]:
    """Arrays M×L, each row in the order M×K of its columns."""
    return [np.take_along_axis(array, order, axis=1) for array in arrays]


def _coarse(density: np.ndarray, window: Window) -> np.ndarray:
    """What candidates are found by: the window's mean density in 7×7 fields, without its mean and its contrast."""
    fields = resample(density.mean(axis=3, keepdims=True), _COARSE_SIDE, *window).reshape(len(density), -1)
    fields -= fields.mean(axis=1, keepdims=True)
    return fields / (np.sqrt(np.square(fields).mean(axis=1, keepdims=True)) + np.float32(_LEAST_CONTRAST))
