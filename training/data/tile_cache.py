"""The folder of this machine's user in which decoded tiles are kept: where it is, how large it may be, what is in it.

It holds pixels of real tiles, and latents that they can be made from again. So only its owner may read it, and it is
never the cache of a library that others look into. `storing` writes tiles into it, and `tile_store` reads them;
`latent_store` does both with latents.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import time
from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from platformdirs import user_cache_path

from histodistill.training.running.errors import InputError, param
from histodistill.training.running.files import format_size, write_text


#: Variable of the environment with the cache's folder where no option names one.
CACHE_VARIABLE = "HISTODISTILL_CACHE"
#: Variable of the environment with the most that it may hold, and what holds without it.
LIMIT_VARIABLE, LIMIT = "HISTODISTILL_CACHE_LIMIT", "100 GB"
#: The files that describe decoded tiles and latents, which are written last.
RECORD, LATENTS_RECORD = "tiles.json", "latents.json"
#: The format of such a file, and of all that stands beside it.
CACHE_FORMAT = 1
# How a cache is known to be one, also to programs that back up files (https://bford.info/cachedir/).
_TAG, _TAG_TEXT = "CACHEDIR.TAG", "Signature: 8a477f597d28d172789f06886806bc55\n# Decoded tiles of histodistill\n"
_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
# Age in seconds from which on unfinished tiles, which nobody is decoding, are taken for left behind.
_LEFT_BEHIND = 7 * 86400


class NoRoomError(InputError):
    """What does not fit into the cache, or on its disk."""


@dataclass(frozen=True)
class CachedTiles:
    """Decoded tiles in the cache, or latents of tiles.

    Attributes:
        folder: Where they are.
        source: The name of the source that they were decoded from first, for people.
        count, side: Number of tiles, and their side in pixels.
        size: Bytes on disk.
        used: When they were last used, in seconds since 1970.
        what: "tiles", or what is kept of them: "latents" or "features".
    """

    folder: Path
    source: str
    count: int
    side: int
    size: int
    used: float
    what: str = "tiles"


class TileCache:
    """The cache in one folder.

    Args:
        folder: Where it is; by default `$HISTODISTILL_CACHE`, or else the place for caches of this system's users.
    """

    def __init__(self, folder: str | Path | None = None):
        given = folder or os.environ.get(CACHE_VARIABLE)
        self.folder = (
            Path(given).expanduser().absolute() if given else user_cache_path("histodistill", appauthor=False)
        )

    @property
    def tiles(self) -> Path:
        """Decoded tiles, a folder each, called by a hash of their pixels."""
        return self.folder / "tiles"

    @property
    def latents(self) -> Path:
        """Latents of tiles, a folder each, called by a hash of all that decides them."""
        return self.folder / "latents"

    @property
    def sources(self) -> Path:
        """Files called by the state of a source, with the hash of the tiles that were decoded from it."""
        return self.folder / "sources"

    @property
    def unfinished(self) -> Path:
        """Tiles that are being decoded and latents that are being made, a folder each."""
        return self.folder / "unfinished"

    def open(self) -> None:
        """Makes the folder, for its owner alone.

        Raises:
            InputError: If it cannot be made, or is somebody else's or holds something else.
        """
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            own = [folder.name for folder in (self.tiles, self.latents, self.sources, self.unfinished)]
            if not self._is_tagged():
                # Another process may be just here, too: the tag is what it writes first. Without it, folders that are
                # called like those of a cache are somebody's own.
                others = any(name[0] != "." for name in os.listdir(self.folder))
                if others and not self._is_tagged():
                    raise InputError(
                        f"{self.folder} is no cache of tiles, and holds something else: give {param('cache_dir')} a "
                        "folder of its own"
                    )
                write_text(self.folder / _TAG, _TAG_TEXT, private=True)
            for name in own:
                (self.folder / name).mkdir(mode=0o700, exist_ok=True)
            status = self.folder.stat()
            if hasattr(os, "getuid") and status.st_uid == os.getuid() and status.st_mode & 0o077:
                self.folder.chmod(0o700)
        except OSError as error:
            raise InputError(
                f"tiles cannot be kept in {self.folder} ({error.strerror}): give another {param('cache_dir')}, a "
                "folder that only you can read"
            ) from error

    @contextmanager
    def locked(self, name: str) -> Iterator[None]:
        """One process at a time is inside, on this machine, of all that give this name."""
        lock = FileLock(self.unfinished / f"{name}.lock", mode=0o600)
        with lock:
            yield

    def entries(self) -> list[CachedTiles]:
        """What is in it, last used first."""
        folders = [*_folders(self.tiles), *_folders(self.latents)]
        found = [entry for folder in folders if (entry := _read_entry(folder))]
        return sorted(found, key=lambda entry: -entry.used)

    def make_room(
        self, needed: int, what: str = "these tiles take {} when they are decoded", keep: Collection[Path] = ()
    ) -> None:
        """Takes out what was not used for longest, until so many bytes more are within the limit.

        Args:
            needed: The bytes.
            what: What messages say of them.
            keep: Folders of what is not taken out for them.

        Raises:
            NoRoomError: If they are above the limit, alone or together with what is kept, or the disk has not as much.
        """
        limit = limit_of_cache()
        entries = self.entries()
        needed_with_kept = needed + sum(entry.size for entry in entries if entry.folder in keep)
        if needed_with_kept > limit:
            beside = f" beside the {format_size(needed_with_kept - needed)} that are read with them" if keep else ""
            raise NoRoomError(
                f"{what.format(format_size(needed))}{beside}, and the cache of tiles may hold "
                f"{format_size(limit)}: set {LIMIT_VARIABLE} to more"
            )
        self._remove_left_behind()
        total = sum(entry.size for entry in entries) + size_of(self.unfinished)
        entries = [entry for entry in entries if entry.folder not in keep]
        while entries and total + needed > limit:
            oldest = entries.pop()
            self.remove(oldest.folder)
            total -= oldest.size
        free = shutil.disk_usage(self.folder).free
        if needed > free:
            raise NoRoomError(
                f"{what.format(format_size(needed))}, and {format_size(free)} are free in {self.folder}: make room, "
                f"or give a {param('cache_dir')} on a larger disk"
            )

    def remove(self, folder: Path) -> None:
        """Takes tiles or latents out; a process that has them open keeps them."""
        for record in (RECORD, LATENTS_RECORD):
            (folder / record).unlink(missing_ok=True)  # first, so that nobody opens what is half there
        shutil.rmtree(folder, ignore_errors=True)

    def clear(self) -> int:
        """Takes all out but what is being decoded or made now; returns how many bytes that were."""
        before = size_of(self.folder)
        for folder in (*_folders(self.tiles), *_folders(self.latents)):
            self.remove(folder)
        for file in self.sources.glob("*.json"):
            file.unlink(missing_ok=True)
        for folder in _folders(self.unfinished):
            self._remove_unfinished(folder)
        return before - size_of(self.folder)

    def _is_tagged(self) -> bool:
        """Whether the folder says that it is a cache of tiles, and not of another program."""
        try:
            return (self.folder / _TAG).read_bytes() == _TAG_TEXT.encode()
        except FileNotFoundError:
            return False

    def _remove_left_behind(self) -> None:
        """Takes out what was left behind unfinished."""
        for folder in _folders(self.unfinished):
            with suppress(OSError):  # it has just gone
                if time.time() - folder.stat().st_mtime > _LEFT_BEHIND:
                    self._remove_unfinished(folder)

    def _remove_unfinished(self, folder: Path) -> None:
        """Takes out what is unfinished, unless a process works on it: it has a lock of it, or of a part of it."""
        with suppress(Timeout, OSError), ExitStack() as locks:
            for lock in (self.unfinished / f"{folder.name}.lock", *self.unfinished.glob(f"{folder.name}-*.lock")):
                locks.enter_context(FileLock(lock, timeout=0, mode=0o600))
            shutil.rmtree(folder, ignore_errors=True)


def limit_of_cache() -> int:
    """Bytes that the cache may hold.

    Raises:
        InputError: If the environment says something else than a size.
    """
    text = os.environ.get(LIMIT_VARIABLE) or LIMIT
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]?)b?\s*", text, re.IGNORECASE)
    if match is None:
        raise InputError(f"{LIMIT_VARIABLE}={text} is no size: write it as in 50 GB")
    return int(float(match[1]) * _UNITS[match[2].lower()])


def size_of(folder: Path) -> int:
    """Bytes on disk of a folder with all that is in it."""
    size = 0
    for place, _, names in os.walk(folder):
        for name in names:
            try:
                status = os.lstat(os.path.join(place, name))
            except OSError:  # it has just gone
                continue
            # Of a file with gaps, what is there.
            size += min(status.st_size, getattr(status, "st_blocks", status.st_size) * 512)
    return size


def read_record(folder: Path, name: str = RECORD) -> dict[str, Any] | None:
    """What the record of decoded tiles or latents says, or None where it is not there, damaged or of another format.

    Args:
        folder: Where they are.
        name: Of the record.
    """
    try:
        record = json.loads((folder / name).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return record if isinstance(record, dict) and record.get("format") == CACHE_FORMAT else None


def _read_entry(folder: Path) -> CachedTiles | None:
    """Decoded tiles or latents, as a list shows them."""
    for what, name in (("tiles", RECORD), ("latents", LATENTS_RECORD)):
        record = read_record(folder, name)
        if record is None:
            continue
        try:
            count, side = record["shape"][:2] if what == "tiles" else (record["shape"][0], record["image_size"])
            used = (folder / name).stat().st_mtime
            # Features lie among the latents, and are the only other thing that a record can name.
            what = "features" if what == "latents" and record.get("what") == "features" else what
            return CachedTiles(folder, str(record["source"]), int(count), int(side), size_of(folder), used, what)
        except (OSError, LookupError, TypeError, ValueError):
            return None
    return None


def _folders(parent: Path) -> list[Path]:
    """The folders in a folder; none where there is none."""
    try:
        return [Path(entry.path) for entry in os.scandir(parent) if entry.is_dir(follow_symlinks=False)]
    except OSError:
        return []
