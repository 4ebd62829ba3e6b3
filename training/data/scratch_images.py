"""Images that are needed again and again for a while: in memory where they are few, otherwise in a scratch file."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from histodistill.selection.image_rows import Images, ImageView, batches, rows_of
from histodistill.training.data.tile_store import TileStore


#: Images that take no more bytes than these are held in memory: more parts would gain nothing.
FEW_BYTES = 2**26


def decode_once(images: Images, folder: str | Path | None = None) -> Images:
    """Images that a training asks for again and again, unpacked once; those that are unpacked already, as they are.

    Args:
        images: uint8 N×H×W×3.
        folder: See `keep_images`.
    """
    base = images.base if isinstance(images, ImageView) else images
    if isinstance(base, np.ndarray | TileStore):
        return images
    if not isinstance(images, ImageView):
        return keep_images(batches(images), images.shape, folder)
    # In the order in which they are stored, so that no part of a file is read twice.
    rows, places = np.unique(images.rows, return_inverse=True)
    stored = rows_of(images.base, rows)
    return rows_of(keep_images(batches(stored), stored.shape, folder), places)


def keep_images(parts: Iterable[np.ndarray], shape: Sequence[int], folder: str | Path | None = None) -> np.ndarray:
    """Images that come part by part, as one array.

    More than a few go into a file without a name, which nobody else can open, and which the system removes when the
    array is no longer used, even where the process was killed. Its pages are in memory only while there is room.

    Args:
        parts: uint8 M×H×W×3 each.
        shape: (N, H, W, 3), of all parts together.
        folder: Of the file, where there must be room for all images; the system's for temporary files by default.

    Returns:
        uint8 N×H×W×3, which cannot be written to where it is a file.

    Raises:
        OSError: If there is no room.
    """
    if np.prod(shape, dtype=np.int64) <= FEW_BYTES:
        return np.concatenate(list(parts))
    # Written rather than mapped from the start: a full disk refuses a write, and kills who fills a mapped page.
    with tempfile.TemporaryFile(dir=folder) as file:
        for part in parts:
            file.write(np.ascontiguousarray(part).data)
        file.flush()
        return np.asarray(np.memmap(file, np.uint8, mode="r", shape=tuple(shape)))
