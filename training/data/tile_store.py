"""Decoded tiles on disk, of which a process maps what it looks at: made once from a source, found again at each start.

A source is known again by its files: their names, sizes, times and inodes, and all else that decides pixels. What
must not believe these, such as an audit, has everything decoded once more and compared (`reread`). Decoded tiles are
called by a hash of their pixels, so that the same tiles from another place are kept once.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import PIL

from histodistill.selection.image_rows import ImageRows, Images, ImageView
from histodistill.training.data.pixel_source import Decoded, LeftOut, PixelSource
from histodistill.training.data.tile_cache import CACHE_FORMAT, RECORD, TileCache, read_record
from histodistill.training.running.errors import InputError, param
from histodistill.training.running.files import write_json, write_text
from histodistill.training.running.progress import Progress


# The file of pixels, an array that `numpy.load` opens, and how far an unfinished one has come.
_PIXELS, _DONE = "images.npy", "done.json"
# Bytes that are written between two records of how far it is: what a killed run loses.
_BYTES_PER_RECORD = 2**26
# Bytes that are compared or hashed at once.
_BYTES_PER_CALL = 2**24
# What damaged files raise.
_DAMAGED = (OSError, EOFError, ValueError, LookupError, TypeError)


class TileStore(ImageRows):
    """The tiles of all splits of a source, whose splits are views of it, and what was found of them once.

    Args:
        shape: (N, H, W, 3).
        left_out: Tiles that are not there, by their number; their rows are black.
    """

    def __init__(self, shape: Sequence[int], left_out: Mapping[int, LeftOut] | None = None):
        super().__init__(shape)
        self.left_out = dict(left_out or {})
        self._known: dict[str, str] = {}

    def remembered(self, what: str, compute: Callable[[], str]) -> str:
        """What `compute` gives, which is a function of the pixels and of the text `what` alone."""
        if what not in self._known:
            self._known[what] = compute()
        return self._known[what]


class TilesInMemory(TileStore):
    """Tiles that are an array, such as those that are drawn.

    Args:
        images: uint8 N×H×W×3.
    """

    def __init__(self, images: np.ndarray):
        super().__init__(images.shape)
        self._images = images

    def read(self, rows: np.ndarray) -> np.ndarray:
        """The images at these rows."""
        return self._images[rows]


class StoredTiles(TileStore):
    """Tiles in a folder of the cache.

    Args:
        folder: The folder.

    Raises:
        OSError, EOFError, ValueError, LookupError, TypeError: If they are not there, or damaged.
    """

    def __init__(self, folder: Path):
        record = read_record(folder)
        if record is None:
            raise ValueError(f"{folder} holds no decoded tiles")
        # As a plain array: nobody shall ask it for its file.
        self._images: np.ndarray = np.load(folder / _PIXELS, mmap_mode="r", allow_pickle=False).view(np.ndarray)
        if list(self._images.shape) != record["shape"] or self._images.dtype != np.uint8:
            raise ValueError(f"{folder} holds other tiles than its record says")
        left_out = {row: LeftOut(why, InputError(text)) for row, why, text in record["left_out"]}
        super().__init__(self._images.shape, left_out)
        self.folder = folder

    def __reduce__(self) -> tuple[type[StoredTiles], tuple[Path]]:
        return StoredTiles, (self.folder,)

    def read(self, rows: np.ndarray) -> np.ndarray:
        """The images at these rows."""
        return self._images[rows]

    def remembered(self, what: str, compute: Callable[[], str]) -> str:
        """What `compute` gives, which is kept in the folder."""
        path = self.folder / "known" / f"{hashlib.sha256(what.encode()).hexdigest()}.txt"
        if what not in self._known:
            try:
                self._known[what] = path.read_text(encoding="utf-8")
            except (OSError, ValueError):
                self._known[what] = compute()
                with contextlib.suppress(OSError):  # it was taken out meanwhile, or the disk is full: next time, then
                    write_text(path, self._known[what], private=True)
        return self._known[what]


def store_of(sets: Sequence[Images]) -> tuple[TileStore, list[np.ndarray]] | None:
    """The one store that all sets are views of, and the rows of each; None where there is none."""
    views = [images for images in sets if isinstance(images, ImageView)]
    if not views or len(views) < len(sets):
        return None
    base = views[0].base
    if not isinstance(base, TileStore) or any(view.base is not base for view in views):
        return None
    return base, [view.rows for view in views]


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
            shutil.rmtree(cache.unfinished / state, ignore_errors=True)
            found = None
        if found is None:
            found = _decode_all(pixels, source, image_size, cache, state, skip_unreadable)
            if _state_of(pixels, image_size) != state:
                (cache.sources / f"{state}.json").unlink(missing_ok=True)
                raise InputError(f"files of {source} have changed while they were read: run the command again")
    return found


def _state_of(pixels: PixelSource, image_size: int | None) -> str:
    """A hash of all that decides the pixels, where files are known by name, size, times and inode."""
    settings = [CACHE_FORMAT, PIL.__version__, dict(pixels.settings), image_size, len(pixels)]
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for file in pixels.files():
        try:
            status = os.stat(file)
            known = (status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino, status.st_dev)
        except (OSError, ValueError):  # decoding tells of it
            known = ()
        digest.update(json.dumps([os.path.abspath(file), *known]).encode())
    return digest.hexdigest()


def _find(cache: TileCache, state: str) -> StoredTiles | None:
    """The tiles that were decoded from a source of this state, if they are still there."""
    try:
        key = json.loads((cache.sources / f"{state}.json").read_text(encoding="utf-8"))["tiles"]
        found = StoredTiles(cache.tiles / str(key))
        os.utime(found.folder / RECORD)
    except _DAMAGED:
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


# --- decoding ---


@dataclass
class _Unfinished:
    """Tiles that are being decoded.

    Attributes:
        file: Their pixels so far, after the header of an array.
        shape: (N, H, W, 3), or None before the first.
        start: Bytes of the header.
        done: How many tiles are in it.
        left_out: Of these, those that are not there.
        digest: Hash of the shape and of what is in it.
    """

    file: BinaryIO
    shape: tuple[int, ...] | None
    start: int
    done: int
    left_out: dict[int, LeftOut]
    digest: Any

    def write(self, images: bytes | np.ndarray) -> None:
        """Appends the pixels of tiles."""
        data = memoryview(images) if isinstance(images, bytes) else memoryview(np.ascontiguousarray(images)).cast("B")
        self.file.write(data)
        self.digest.update(data)


def _decode_all(
    pixels: PixelSource, source: str, image_size: int | None, cache: TileCache, state: str, skip_unreadable: bool
) -> StoredTiles:
    """Decodes what is not decoded yet, and puts it into its place."""
    folder = cache.unfinished / state
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        with open(folder / _PIXELS, "r+b" if (folder / _PIXELS).exists() else "x+b") as file:
            begun = _resume(file, folder / _DONE, len(pixels))
            with Progress(len(pixels), "decoding tiles", "tiles", initial=begun.done) as progress:
                _append(pixels, image_size, begun, folder, cache, progress, skip_unreadable)
            _save_progress(begun, folder)
        return _finish(begun, source, cache, state, folder)
    except OSError as error:
        raise InputError(
            f"decoded tiles cannot be written to {folder} ({error.strerror or error}): make room on that disk, or "
            f"give another {param('cache_dir')}, and run the command again, which goes on from here"
        ) from error


def _resume(file: BinaryIO, record: Path, count: int) -> _Unfinished:
    """What a killed run left of `count` tiles, or the beginning."""
    begun = _Unfinished(file, None, 0, 0, {}, hashlib.sha256())
    try:
        known = json.loads(record.read_text(encoding="utf-8"))
        shape, start, done = tuple(known["shape"]), int(known["start"]), int(known["done"])
        left_out = {row: LeftOut(why, InputError(text)) for row, why, text in known["left_out"]}
        if shape[0] != count or os.fstat(file.fileno()).st_size < start + done * int(np.prod(shape[1:])):
            raise ValueError
    except _DAMAGED:
        file.truncate(0)
        return begun
    _begin(begun, shape)
    if begun.start != start:
        file.truncate(0)
        return _Unfinished(file, None, 0, 0, {}, hashlib.sha256())
    for first in range(start, start + done * int(np.prod(shape[1:])), _BYTES_PER_CALL):
        file.seek(first)
        begun.digest.update(file.read(min(_BYTES_PER_CALL, start + done * int(np.prod(shape[1:])) - first)))
    file.truncate(file.tell())
    begun.done, begun.left_out = done, left_out
    return begun


def _begin(begun: _Unfinished, shape: tuple[int, ...]) -> None:
    """Writes the header of the array."""
    begun.file.seek(0)
    np.lib.format.write_array_header_1_0(
        begun.file, {"descr": "|u1", "fortran_order": False, "shape": tuple(map(int, shape))}
    )
    begun.shape, begun.start = tuple(map(int, shape)), begun.file.tell()
    begun.digest = hashlib.sha256(json.dumps(begun.shape).encode())


def _append(
    pixels: PixelSource,
    image_size: int | None,
    begun: _Unfinished,
    folder: Path,
    cache: TileCache,
    progress: Progress,
    skip_unreadable: bool,
) -> None:
    """Decodes the tiles that are left, and appends them."""
    waiting: list[LeftOut] = []  # before the size of a tile is known
    first_name, unsaved = "", 0
    for batch in pixels.decode(image_size, begun.done):
        for part in _runs(batch):
            if isinstance(part, LeftOut) and part.why == "unreadable" and not skip_unreadable:
                raise part.error
            if isinstance(part, np.ndarray):
                number = begun.done + len(waiting)
                if begun.shape is None:
                    cache.make_room(len(pixels) * int(np.prod(part.shape[1:])))
                    _begin(begun, (len(pixels), *part.shape[1:]))
                    first_name = pixels.name(number)
                    _leave_out(begun, waiting)
                    waiting = []
                if part.shape[1:] != begun.shape[1:]:
                    raise _other_size(part.shape, pixels.name(number), begun.shape, first_name or pixels.name(0))
                begun.write(part)
                begun.done += len(part)
            elif begun.shape is None:
                waiting.append(part)
            else:
                _leave_out(begun, [part])
        progress.update(len(batch))
        unsaved += len(batch)
        if begun.shape is not None and unsaved * int(np.prod(begun.shape[1:])) > _BYTES_PER_RECORD:
            _save_progress(begun, folder)
            unsaved = 0
    if begun.shape is None:
        raise waiting[0].error if waiting else InputError("there are no tiles to decode: give at least one")
    if begun.done != len(pixels):
        raise InputError(
            f"there are {begun.done:,} tiles where {len(pixels):,} were listed: run the command again, when nothing "
            "is written there any more"
        )


def _runs(batch: Sequence[Decoded]) -> Iterator[np.ndarray | LeftOut]:
    """The tiles of a batch, as arrays N×H×W×3 of those of one size that follow each other, and those left out."""
    if isinstance(batch, np.ndarray):
        if len(batch):
            yield batch
        return
    run: list[np.ndarray] = []
    for tile in batch:
        if run and (isinstance(tile, LeftOut) or tile.shape != run[0].shape):
            yield np.stack(run)
            run = []
        if isinstance(tile, LeftOut):
            yield tile
        else:
            run.append(tile)
    if run:
        yield np.stack(run)


def _leave_out(begun: _Unfinished, tiles: Sequence[LeftOut]) -> None:
    """Appends black tiles in place of those that are not there."""
    assert begun.shape is not None
    for tile in tiles:
        begun.left_out[begun.done] = tile
        begun.write(bytes(int(np.prod(begun.shape[1:]))))
        begun.done += 1


def _other_size(shape: Sequence[int], name: str, first: Sequence[int], first_name: str) -> InputError:
    return InputError(
        f"{name} is {shape[2]}x{shape[1]} pixels but {first_name} is {first[2]}x{first[1]}: give "
        f"{param('image_size')} to bring all to one size"
    )


def _save_progress(begun: _Unfinished, folder: Path) -> None:
    """Records how far it is, once that is on disk."""
    assert begun.shape is not None
    begun.file.flush()
    os.fsync(begun.file.fileno())
    known = {"shape": begun.shape, "start": begun.start, "done": begun.done, "left_out": _as_json(begun.left_out)}
    write_json(folder / _DONE, known, private=True)


def _as_json(left_out: Mapping[int, LeftOut]) -> list[list[Any]]:
    return [[row, tile.why, tile.error.marked()] for row, tile in sorted(left_out.items())]


def _finish(begun: _Unfinished, source: str, cache: TileCache, state: str, folder: Path) -> StoredTiles:
    """Puts decoded tiles into their place, unless they are there already, and remembers what they came from."""
    begun.digest.update(json.dumps(_as_json(begun.left_out)).encode())
    key = begun.digest.hexdigest()
    (folder / _DONE).unlink()
    record = {
        "format": CACHE_FORMAT,
        "source": source,
        "shape": begun.shape,
        "left_out": _as_json(begun.left_out),
    }
    write_json(folder / RECORD, record, private=True)
    with cache.locked(key):
        try:
            StoredTiles(cache.tiles / key)
            shutil.rmtree(folder, ignore_errors=True)  # the same tiles, from another place
        except _DAMAGED:
            shutil.rmtree(cache.tiles / key, ignore_errors=True)
            os.replace(folder, cache.tiles / key)
    write_json(cache.sources / f"{state}.json", {"tiles": key}, private=True)
    return StoredTiles(cache.tiles / key)
