"""Decoded tiles, of which a process maps what it looks at, and what was found of them once."""

from __future__ import annotations

import contextlib
import hashlib
import io
import shutil
import tokenize
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np

from histodistill.selection.image_rows import ImageRows, Images, ImageView
from histodistill.selection.near_copies import NearCopies, find_near_copies
from histodistill.selection.repeats import find_repeats
from histodistill.training.data.pixel_source import LeftOut
from histodistill.training.data.tile_cache import read_record
from histodistill.training.running.files import write_bytes, write_text
from histodistill.training.running.progress import Progress


#: The file of pixels in a folder of the cache, an array that `numpy.load` opens.
PIXELS = "images.npy"
#: What damaged files raise.
DAMAGED = (OSError, EOFError, ValueError, LookupError, TypeError, AttributeError, tokenize.TokenError)


class TileStore(ImageRows):
    """The tiles of all splits of a source, whose splits are views of it, and what was found of them once.

    Args:
        images: uint8 N×H×W×3, in memory or mapped.
        left_out: Tiles that are not there, by their number; their rows are black.
    """

    def __init__(self, images: np.ndarray, left_out: Mapping[int, LeftOut] | None = None):
        super().__init__(images.shape)
        self._images = images
        self.left_out = dict(left_out or {})
        self._known: dict[str, str] = {}

    def read(self, rows: np.ndarray) -> np.ndarray:
        """The images at these rows."""
        return self._images[rows]

    def remembered(self, what: str, compute: Callable[[], str]) -> str:
        """What `compute` gives, which is a function of the pixels and of the text `what` alone."""
        if what not in self._known:
            self._known[what] = compute()
        return self._known[what]

    @cached_property
    def repeats(self) -> NearCopies:
        """What is there more than once, of all tiles, which are square; of those that are left out, nothing.

        Tiles that are made in memory are drawings, which nobody has moved or saved anew: only near copies are looked
        for, since that takes a second and would be done in each step.
        """
        return find_near_copies(self)


class StoredTiles(TileStore):
    """Tiles in a folder of the cache.

    Args:
        folder: The folder.
        left_out: See `TileStore`.

    Raises:
        OSError, EOFError, ValueError, LookupError, TypeError: If they are not there, or damaged.
    """

    def __init__(self, folder: Path, left_out: Mapping[int, LeftOut] | None = None):
        record = read_record(folder)
        if record is None:
            raise ValueError(f"{folder} holds no decoded tiles")
        # As a plain array: nobody shall ask it for its file.
        images = np.load(folder / PIXELS, mmap_mode="r", allow_pickle=False).view(np.ndarray)
        if list(images.shape) != record["shape"] or images.dtype != np.uint8:
            raise ValueError(f"{folder} holds other tiles than its record says")
        super().__init__(images, left_out)
        self.folder = folder

    def __reduce__(self) -> tuple[type[StoredTiles], tuple[Path, dict[int, LeftOut]]]:
        return StoredTiles, (self.folder, self.left_out)

    def forget(self) -> None:
        """Takes out what was found of the tiles, so that it is found again."""
        shutil.rmtree(self.folder / "known", ignore_errors=True)
        for file in self.folder.glob("repeats_*.npy"):
            file.unlink(missing_ok=True)

    def remembered(self, what: str, compute: Callable[[], str]) -> str:
        """What `compute` gives, which is kept in the folder."""
        return super().remembered(what, lambda: self._kept(what, compute))

    def _kept(self, what: str, compute: Callable[[], str]) -> str:
        path = self.folder / "known" / f"{hashlib.sha256(what.encode()).hexdigest()}.txt"
        with contextlib.suppress(OSError, ValueError):
            return path.read_text(encoding="utf-8")
        found = compute()
        with contextlib.suppress(OSError):  # it was taken out meanwhile, or the disk is full: next time, then
            write_text(path, found, private=True)
        return found

    @cached_property
    def repeats(self) -> NearCopies:
        """What is there more than once, which is kept in the folder."""
        files = [self.folder / f"repeats_{part}.npy" for part in ("first", "pairs")]
        with contextlib.suppress(*DAMAGED):
            first, pairs = (np.load(file, allow_pickle=False) for file in files)
            if first.shape == (len(self),) and pairs.shape[1:] == (2,):
                return NearCopies(first, pairs)
        with Progress(2 * len(self), "comparing tiles", "tiles") as progress:
            found = find_repeats(self, seen=progress.update)
        with contextlib.suppress(OSError):  # see `_kept`
            for file, array in zip(files, (found.first, found.pairs), strict=True):
                buffer = io.BytesIO()
                np.save(buffer, array, allow_pickle=False)
                write_bytes(file, buffer.getvalue(), private=True)
        return found


def store_of(sets: Sequence[Images]) -> tuple[TileStore, list[np.ndarray]] | None:
    """The one store that all sets are views of, and the rows of each; None where there is none."""
    views = [images for images in sets if isinstance(images, ImageView)]
    if not views or len(views) < len(sets):
        return None
    base = views[0].base
    if not isinstance(base, TileStore) or any(view.base is not base for view in views):
        return None
    return base, [view.rows for view in views]


def folders_of(sets: Sequence[Images]) -> list[Path]:
    """The folders of the cache that images are read from."""
    bases = [images.base if isinstance(images, ImageView) else images for images in sets]
    return sorted({base.folder for base in bases if isinstance(base, StoredTiles)})
