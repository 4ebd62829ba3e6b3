"""Latents of tiles in the cache: made once, a block of tiles at a time, by as many processes as there are.

They lie in one array that is mapped, so that memory does not grow with their number. Whoever wants latents that are
not there helps to make them: each process takes the next block that nobody is at work on, and waits in the end for
those of others. Blocks are the same whoever makes them. What is done when all are killed is not done again.

The numbers are of 16 bits, of whatever type their maker rounds to; here they are bits.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from filelock import FileLock, Timeout

from histodistill.training.data.tile_cache import CACHE_FORMAT, LATENTS_RECORD, TileCache, read_record
from histodistill.training.data.tile_store import DAMAGED
from histodistill.training.running.errors import InputError, param
from histodistill.training.running.files import write_json
from histodistill.training.running.progress import Progress


# The array of latents in its folder, and that of the errors of each block, which tells what is done.
_LATENTS, _BLOCKS = "latents.npy", "blocks.npy"


@dataclass(frozen=True)
class LatentsPlan:
    """Which latents are wanted.

    Attributes:
        key: A hash of all that decides them.
        source: The name of the source of the tiles, for people.
        image_size: Side of the tiles in pixels.
        shape: (tiles, views of each, channels, height, width).
        dtype: Type of the numbers, "float16" or "bfloat16".
        tiles_per_block: Tiles whose latents are made at a time.
        what: What they are called: "latents", or "features" of a classifier, which are kept in the same way.
    """

    key: str
    source: str
    image_size: int
    shape: tuple[int, int, int, int, int]
    dtype: str
    tiles_per_block: int
    what: str = "latents"

    @property
    def num_views(self) -> int:
        """Views of all tiles."""
        return self.shape[0] * self.shape[1]

    @property
    def nbytes(self) -> int:
        """Bytes that they take."""
        return 2 * int(np.prod(self.shape, dtype=np.int64))


class Block(NamedTuple):
    """Latents of some tiles.

    Attributes:
        bits: int16 tiles×views×C×h×w, the bits of the rounded numbers.
        largest: The largest error of rounding, finite.
        squares: The sum of the squares of all errors.
    """

    bits: np.ndarray
    largest: float
    squares: float


class StoredLatents:
    """Latents in a folder of the cache, of which a process maps what it looks at.

    Args:
        folder: The folder.

    Attributes:
        folder: The folder.
        largest_error, rms_error: Of rounding, in units of the latents.

    Raises:
        OSError, EOFError, ValueError, LookupError, TypeError: If they are not there, or damaged.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        record = read_record(folder, LATENTS_RECORD)
        if record is None:
            raise ValueError(f"{folder} holds no latents")
        # As a plain array: nobody shall ask it for its file.
        bits = np.load(folder / _LATENTS, mmap_mode="r", allow_pickle=False).view(np.ndarray)
        if list(bits.shape) != record["shape"] or bits.dtype != np.int16:
            raise ValueError(f"{folder} holds other latents than its record says")
        self.largest_error, self.rms_error = float(record["largest_error"]), float(record["rms_error"])
        self._views = bits.shape[1]
        self._rows = bits.reshape(-1, *bits.shape[2:])

    def read(self, tiles: np.ndarray, views: np.ndarray) -> np.ndarray:
        """The bits of the latents of views of tiles, int16 M×C×h×w, a new array.

        Args:
            tiles, views: int64 M, the numbers of each.
        """
        return self._rows[tiles * self._views + views]


def find_latents(cache: TileCache, plan: LatentsPlan) -> StoredLatents | None:
    """The latents, if they are in the cache."""
    try:
        found = StoredLatents(cache.latents / plan.key)
        os.utime(cache.latents / plan.key / LATENTS_RECORD)
    except DAMAGED:
        return None
    return found


def open_latents(
    cache: TileCache,
    plan: LatentsPlan,
    make_block: Callable[[int, int], Block],
    *,
    keep: Collection[Path] = (),
    is_shown: bool = True,
) -> StoredLatents:
    """The latents from the cache; what is not there is made.

    Several processes may call it at once, and share the work. Making shows a progress bar. What was killed goes on
    where it was.

    Args:
        cache: The cache.
        plan: Which ones.
        make_block: Makes those of the tiles from a first one up to another; called for whole blocks, as the plan has
            them.
        keep: Folders in the cache that are not taken out to make room.
        is_shown: Whether this process shows how far it is.

    Raises:
        NoRoomError: If the cache or its disk has no room.
        InputError: If the cache cannot be written.
    """
    cache.open()
    work = _Unfinished(cache, plan)
    try:
        with cache.locked(work.name):
            if (found := find_latents(cache, plan)) is not None:
                return found
            work.open(keep)
        work.make_blocks(make_block, is_shown)
        with cache.locked(work.name):
            found = find_latents(cache, plan) or work.put_into_place()
            work.forget_locks()
            return found
    except OSError as error:
        raise InputError(
            f"{plan.what} cannot be written to {work.folder} ({error.strerror or error}): make room on that disk, or "
            f"give another {param('cache_dir')}"
        ) from error


class _Unfinished:
    """Latents that are being made.

    Args:
        cache: Where.
        plan: Which ones.
    """

    def __init__(self, cache: TileCache, plan: LatentsPlan):
        self.cache, self.plan = cache, plan
        self.name = f"latents-{plan.key}"
        self.folder = cache.unfinished / self.name
        self.num_blocks = -(-plan.shape[0] // plan.tiles_per_block)
        # Of each block the largest error and the sum of squared ones, mapped; NaN where it is not done.
        self._blocks = np.full((self.num_blocks, 2), np.nan)

    def open(self, keep: Collection[Path]) -> None:
        """Opens the files, and makes them where they are not there, or damaged."""
        try:
            self._map()
        except DAMAGED:
            self.cache.make_room(self.plan.nbytes, f"{self.plan.what} of these tiles take {{}}", keep)
            shutil.rmtree(self.folder, ignore_errors=True)
            self.folder.mkdir(mode=0o700)
            (self.folder / _LATENTS).touch(mode=0o600)
            np.lib.format.open_memmap(self.folder / _LATENTS, mode="w+", dtype=np.int16, shape=self.plan.shape)
            (self.folder / _BLOCKS).touch(mode=0o600)
            blocks = np.lib.format.open_memmap(
                self.folder / _BLOCKS, mode="w+", dtype=np.float64, shape=self._blocks.shape
            )
            blocks[:] = np.nan
            blocks.flush()
            self._map()

    def _map(self) -> None:
        latents = np.load(self.folder / _LATENTS, mmap_mode="r", allow_pickle=False)
        blocks = np.load(self.folder / _BLOCKS, mmap_mode="r+", allow_pickle=False)
        if latents.shape != self.plan.shape or blocks.shape != self._blocks.shape:
            raise ValueError(f"{self.folder} holds other latents")
        self._offset = latents.offset
        self._blocks = blocks

    def make_blocks(self, make_block: Callable[[int, int], Block], is_shown: bool) -> None:
        """Makes all blocks that nobody else makes, and waits for the others."""
        with Progress(
            self.plan.shape[0], "encoding tiles", "tiles", initial=self._done(), enabled=is_shown
        ) as progress:
            shown = self._done()
            for waits in (False, True):
                for number in range(self.num_blocks):
                    self._make(number, make_block, waits)
                    done = self._done()
                    progress.update(done - shown)
                    shown = done

    def _make(self, number: int, make_block: Callable[[int, int], Block], waits: bool) -> None:
        """Makes a block that is not done, unless somebody else is at it and it is not to be waited for."""
        lock = FileLock(self.cache.unfinished / f"{self.name}-{number}.lock", timeout=-1 if waits else 0, mode=0o600)
        if self._is_done(number):
            return
        with suppress(Timeout), lock:
            if self._is_done(number):
                return
            first = number * self.plan.tiles_per_block
            stop = min(first + self.plan.tiles_per_block, self.plan.shape[0])
            block = make_block(first, stop)
            assert block.bits.dtype == np.int16 and block.bits.shape == (stop - first, *self.plan.shape[1:])
            with open(self.folder / _LATENTS, "r+b") as file:
                file.seek(self._offset + first * (self.plan.nbytes // self.plan.shape[0]))
                file.write(np.ascontiguousarray(block.bits).data)
                file.flush()
                os.fsync(file.fileno())  # what is called done must outlast a power cut
            self._blocks[number] = block.largest, block.squares

    def _is_done(self, number: int) -> bool:
        return not np.isnan(self._blocks[number]).any()

    def _done(self) -> int:
        """Tiles whose latents are made."""
        blocks = int(np.count_nonzero(~np.isnan(self._blocks).any(axis=1)))
        return min(blocks * self.plan.tiles_per_block, self.plan.shape[0])

    def put_into_place(self) -> StoredLatents:
        """Makes finished latents known by their key."""
        record = {
            "format": CACHE_FORMAT,
            "source": self.plan.source,
            "what": self.plan.what,
            "image_size": self.plan.image_size,
            "shape": self.plan.shape,
            "dtype": self.plan.dtype,
            "largest_error": float(self._blocks[:, 0].max()),
            "rms_error": float(np.sqrt(self._blocks[:, 1].sum() / np.prod(self.plan.shape, dtype=np.float64))),
        }
        write_json(self.folder / LATENTS_RECORD, record, private=True)
        place = self.cache.latents / self.plan.key
        shutil.rmtree(place, ignore_errors=True)  # what is there is damaged
        os.replace(self.folder, place)
        (place / _BLOCKS).unlink()
        return StoredLatents(place)

    def forget_locks(self) -> None:
        """Removes the locks of blocks, which nobody needs any more."""
        for lock in self.cache.unfinished.glob(f"{self.name}-*.lock"):
            lock.unlink(missing_ok=True)
