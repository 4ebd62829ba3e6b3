"""Decodes the tiles of a source into the cache, once: at each later start they are found there again.

A source is known again by its files: their names, sizes, times and inodes, and all else that decides pixels. What
must not believe these, such as an audit, has everything decoded once more and compared (`reread`). Decoded tiles are
called by a hash of their pixels, so that the same tiles from another place are kept once.
"""

from __future__ import annotations

import filecmp
import hashlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import PIL
import xxhash

from histodistill.training.data.pixel_source import Decoded, LeftOut, PixelSource
from histodistill.training.data.tile_cache import CACHE_FORMAT, RECORD, TileCache
from histodistill.training.data.tile_store import DAMAGED, PIXELS, StoredTiles
from histodistill.training.running.errors import InputError, param
from histodistill.training.running.files import write_json
from histodistill.training.running.progress import Progress


# The file that tells how far unfinished tiles have come.
_DONE = "done.json"
# Bytes that are written between two records of how far it is: what a killed run loses.
_BYTES_PER_RECORD = 2**26
# Bytes that are hashed at once.
_BYTES_PER_CALL = 2**24


def open_tiles(
    pixels: PixelSource,
    source: str,
    image_size: int | None,
    cache: TileCache,
    *,
    skip_unreadable: bool = False,
    reread: bool = False,
) -> StoredTiles:
    """The tiles of a source from the cache, into which they are decoded where they are not there.

    Decoding shows a progress bar. A run that was killed goes on where it was.

    Args:
        pixels: Where they come from.
        source: What the source is called.
        image_size: Side that tiles are brought to in pixels; by default they stay as they are.
        cache: The cache.
        skip_unreadable: Whether decoding goes on where a tile cannot be read; otherwise the first ends it.
        reread: Whether tiles that are there are compared with what the source now holds.

    Raises:
        InputError: If the source changes meanwhile, holds tiles of several sizes, or none, or cannot be read; or if
            the cache has no room.
    """
    cache.open()
    state = _state_of(pixels, image_size)
    with cache.locked(state):
        found = _find(cache, state)
        if found is not None and reread and not _is_still(pixels, image_size, found):
            # Other sources of the same tiles are decoded again, too: what is kept may be what has changed.
            cache.remove(found.folder)
            found = None
        if found is None:
            if reread:  # what a killed run left may have been changed, too
                shutil.rmtree(cache.unfinished / state, ignore_errors=True)
            found = _decode_all(pixels, source, image_size, cache, state, skip_unreadable)
            if _state_of(pixels, image_size) != state:
                (cache.sources / f"{state}.json").unlink(missing_ok=True)
                raise InputError(f"files of {source} have changed while they were read: run the command again")
        if reread:
            found.forget()
    return found


def _state_of(pixels: PixelSource, image_size: int | None) -> str:
    """A hash of all that decides the pixels, where files are known by name, size, times and inode."""
    settings = [CACHE_FORMAT, PIL.__version__, dict(pixels.settings), image_size, len(pixels)]
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for file in pixels.files():
        try:
            status = os.stat(file)
            known = [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino, status.st_dev]
        except (OSError, ValueError):  # decoding tells of it
            known = []
        digest.update(json.dumps([os.path.abspath(file), *known]).encode())
    return digest.hexdigest()


def _find(cache: TileCache, state: str) -> StoredTiles | None:
    """The tiles that were decoded from a source of this state, if they are still there."""
    try:
        known = json.loads((cache.sources / f"{state}.json").read_text(encoding="utf-8"))
        found = StoredTiles(cache.tiles / str(known["tiles"]), _left_out_of(known["left_out"]))
        os.utime(found.folder / RECORD)
    except DAMAGED:
        return None
    return found


def _is_still(pixels: PixelSource, image_size: int | None, tiles: StoredTiles) -> bool:
    """Whether a source still holds the very tiles that were decoded from it."""
    row = 0
    with Progress(len(pixels), "reading tiles again", "tiles") as progress:
        for batch in pixels.decode(image_size, 0):
            stop = row + len(batch)
            if stop > len(tiles):
                return False
            kept = tiles[row:stop]
            for number, (decoded, before) in enumerate(zip(batch, kept, strict=True), start=row):
                if isinstance(decoded, LeftOut) or number in tiles.left_out:
                    if not isinstance(decoded, LeftOut) or number not in tiles.left_out or before.any():
                        return False
                elif not np.array_equal(decoded, before):
                    return False
            row = stop
            progress.update(len(batch))
    return row == len(tiles)


class TileWriter:
    """Writes tiles one after the other to a folder, and goes on where another was killed.

    Args:
        folder: The folder, which is there.
        file: The file of pixels in it, opened.
        pixels: Where the tiles come from.
        syncing: Puts on disk what is written, while more is decoded.

    Attributes:
        shape: (N, H, W, 3), or None before the first tile.
        done: How many are written.
        left_out: Of these, those that are not there, and are black.
    """

    def __init__(self, folder: Path, file: BinaryIO, pixels: PixelSource, syncing: Executor):
        self.folder = folder
        self.shape: tuple[int, ...] | None = None
        self.done = 0
        self.left_out: dict[int, LeftOut] = {}
        self._file, self._pixels, self._syncing = file, pixels, syncing
        self._on_disk: Future[None] | None = None
        self._digest, self._unsaved = xxhash.xxh3_128(), 0
        self._waiting: list[LeftOut] = []  # before the size of a tile is known
        self._first = 0
        if not self._resume():
            file.truncate(0)

    def take(self, batch: np.ndarray | Sequence[Decoded], cache: TileCache) -> None:
        """Writes the next tiles.

        Args:
            batch: The tiles.
            cache: Where there must be room for all, once their size is known.

        Raises:
            InputError: For a tile of another size than the first, or if there is no room.
        """
        # An array is written at once, and other tiles one by one: to put them together would be one copy more.
        for part in [batch] if isinstance(batch, np.ndarray) else batch:
            if isinstance(part, np.ndarray):
                images = part if part.ndim == 4 else part[None]
                shape = self.shape or self._begin(images, cache)
                if images.shape[1:] != shape[1:]:
                    raise self._other_size(images.shape, shape)
                self._write(images)
                self.done += len(images)
            elif self.shape is None:
                self._waiting.append(part)
            else:
                self._leave_out(part)
        if self._unsaved > _BYTES_PER_RECORD:
            self.save()

    def finish(self) -> str:
        """Records that all tiles are written; returns the hash of them.

        Raises:
            InputError: If there is none, or not as many as were listed.
        """
        if self.shape is None:
            raise self._waiting[0].error if self._waiting else InputError("there are no tiles: give at least one")
        if self.done != len(self._pixels):
            raise InputError(
                f"there are {self.done:,} tiles where {len(self._pixels):,} were listed: run the command again, when "
                "nothing is written there any more"
            )
        self.save()
        os.fsync(self._file.fileno())
        # Not what is told of them: the same tiles may be called otherwise elsewhere.
        self._digest.update(json.dumps([[row, tile.why] for row, tile in sorted(self.left_out.items())]).encode())
        return self._digest.hexdigest()

    def save(self) -> None:
        """Records how far it is. What a power cut takes back again, the hash tells."""
        self._file.flush()
        if self._on_disk is None or self._on_disk.done():
            self._on_disk = self._syncing.submit(os.fsync, self._file.fileno())
        known = {
            "shape": self.shape,
            "done": self.done,
            "hash": self._digest.hexdigest(),
            "left_out": self.left_out_as_json(),
        }
        write_json(self.folder / _DONE, known, private=True)
        self._unsaved = 0

    def left_out_as_json(self) -> list[list[Any]]:
        """Number of each tile that is not there, why, and what to tell of it."""
        return [[row, tile.why, tile.error.marked()] for row, tile in sorted(self.left_out.items())]

    def _resume(self) -> bool:
        """Goes on with what a killed run left, where there is any."""
        try:
            known = json.loads((self.folder / _DONE).read_text(encoding="utf-8"))
            shape, done = tuple(map(int, known["shape"])), int(known["done"])
            left_out = _left_out_of(known["left_out"])
            stored = os.fstat(self._file.fileno()).st_size
            if shape[0] != len(self._pixels) or stored < done * int(np.prod(shape[1:])):
                return False
        except DAMAGED:
            return False
        start = self._write_header(shape)
        end = start + done * int(np.prod(shape[1:]))
        for first in range(start, end, _BYTES_PER_CALL):
            self._digest.update(self._file.read(min(_BYTES_PER_CALL, end - first)))
        if self._file.tell() != end or self._digest.hexdigest() != known["hash"]:
            self.shape, self._digest = None, xxhash.xxh3_128()
            return False
        self._file.truncate()
        self.done, self.left_out = done, left_out
        return True

    def _begin(self, images: np.ndarray, cache: TileCache) -> tuple[int, ...]:
        """Begins with the first tile that is there; returns the shape of all."""
        self._first = len(self._waiting)
        shape = (len(self._pixels), *images.shape[1:])
        cache.make_room(int(np.prod(shape)))
        self._write_header(shape)
        waiting, self._waiting = self._waiting, []
        for tile in waiting:
            self._leave_out(tile)
        return shape

    def _write_header(self, shape: tuple[int, ...]) -> int:
        """Writes the header of the array; returns how long it is."""
        self._file.seek(0)
        self.shape = tuple(map(int, shape))
        header = {"descr": "|u1", "fortran_order": False, "shape": self.shape}
        np.lib.format.write_array_header_1_0(self._file, header)
        self._digest = xxhash.xxh3_128(json.dumps(self.shape).encode())
        return self._file.tell()

    def _write(self, images: bytes | np.ndarray) -> None:
        data = images if isinstance(images, bytes) else np.ascontiguousarray(images).data.cast("B")
        self._file.write(data)
        self._digest.update(data)
        self._unsaved += len(data)

    def _leave_out(self, tile: LeftOut) -> None:
        assert self.shape is not None
        self.left_out[self.done] = tile
        self._write(bytes(int(np.prod(self.shape[1:]))))
        self.done += 1

    def _other_size(self, found: Sequence[int], first: Sequence[int]) -> InputError:
        name, other = self._pixels.name(self.done), self._pixels.name(self._first)
        return InputError(
            f"{name} is {found[2]}x{found[1]} pixels but {other} is {first[2]}x{first[1]}: give "
            f"{param('image_size')} to bring all to one size"
        )


def _left_out_of(known: Sequence[Sequence[Any]]) -> dict[int, LeftOut]:
    """The inverse of `TileWriter.left_out_as_json`."""
    return {row: LeftOut(why, InputError(text)) for row, why, text in known}


def _decode_all(
    pixels: PixelSource,
    source: str,
    image_size: int | None,
    cache: TileCache,
    state: str,
    skip_unreadable: bool,
) -> StoredTiles:
    """Decodes what is not decoded yet, and puts it into its place."""
    folder = cache.unfinished / state
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        (folder / PIXELS).touch(mode=0o600)
        with open(folder / PIXELS, "r+b") as file, ThreadPoolExecutor(1) as syncing:
            writer = TileWriter(folder, file, pixels, syncing)
            with Progress(len(pixels), "decoding tiles", "tiles", initial=writer.done) as progress:
                for batch in pixels.decode(image_size, writer.done):
                    if not skip_unreadable:
                        _refuse_unreadable(batch)
                    writer.take(batch, cache)
                    progress.update(len(batch))
            key = writer.finish()
        return _put_into_place(writer, source, cache, state, key)
    except OSError as error:
        raise InputError(
            f"decoded tiles cannot be written to {folder} ({error.strerror or error}): make room on that disk, or "
            f"give another {param('cache_dir')}, and run the command again, which goes on from here"
        ) from error


def _refuse_unreadable(batch: np.ndarray | Sequence[Decoded]) -> None:
    """Raises for the first tile that cannot be read."""
    for tile in () if isinstance(batch, np.ndarray) else batch:
        if isinstance(tile, LeftOut) and tile.why == "unreadable":
            raise tile.error


def _put_into_place(writer: TileWriter, source: str, cache: TileCache, state: str, key: str) -> StoredTiles:
    """Makes decoded tiles known by the hash of them and by the state of their source."""
    record: Mapping[str, Any] = {
        "format": CACHE_FORMAT,
        "source": source,
        "shape": writer.shape,
    }
    (writer.folder / _DONE).unlink()
    write_json(writer.folder / RECORD, record, private=True)
    with cache.locked(key):
        if _holds_the_same(cache.tiles / key, writer.folder):
            shutil.rmtree(writer.folder, ignore_errors=True)  # the same tiles, from another place
        else:
            shutil.rmtree(cache.tiles / key, ignore_errors=True)
            os.replace(writer.folder, cache.tiles / key)
    known = {"tiles": key, "left_out": writer.left_out_as_json()}
    write_json(cache.sources / f"{state}.json", known, private=True)
    return StoredTiles(cache.tiles / key, writer.left_out)


def _holds_the_same(kept: Path, new: Path) -> bool:
    """Whether tiles that are called by the hash of new ones still are these, bit by bit."""
    try:
        StoredTiles(kept)
        return filecmp.cmp(kept / PIXELS, new / PIXELS, shallow=False)
    except DAMAGED:
        return False
