"""Reads the files of a part of a run, each of them once: what is hashed, checked and uploaded are the same bytes."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from io import BufferedReader
from pathlib import Path

from histodistill.hub_cards.errors import ContentError


#: The file of a model's weights.
WEIGHTS = "diffusion_pytorch_model.safetensors"


@dataclass(frozen=True)
class PartRules:
    """The files that a part of a run may hold. In patterns, `*` does not stand for `/`.

    Attributes:
        published: What goes up, after it was checked.
        records: What is not published, but says what the cards tell.
        working: What the stage keeps for itself; nobody looks into it.
        working_folders: The same for whole folders.
    """

    published: tuple[str, ...]
    records: tuple[str, ...] = ()
    working: tuple[str, ...] = ()
    working_folders: tuple[str, ...] = ()


#: Part of a run → the files it may hold. Any other file is refused: nobody knows what it carries.
PARTS = {
    "pipeline": PartRules(
        published=(
            "model_index.json",
            "pipeline.py",
            "scheduler/scheduler_config.json",
            # Variants of the weights (fp16, ema) are none of them: the audit attacks those that load by default.
            *(f"{part}/{file}" for part in ("unet", "vae") for file in ("config.json", WEIGHTS)),
        ),
        records=("stage.json",),
        working=("history.json",),
        working_folders=("checkpoints", "progress"),
    ),
    "selector": PartRules(
        published=("config.json", "selector.safetensors"),
        working=("community_map.png", "community_tiles.png"),
    ),
    "distilled": PartRules(
        published=("data/train-00000-of-00001.parquet",),
        records=("stage.json",),
        # Whoever reads audit.json sees whether it is about the other files.
        working=("README.md", "audit.json"),
    ),
}
#: The most bytes that a file may have, by its ending; no other file is read.
LARGEST_FILES = {".json": 2**22, ".md": 2**22, ".py": 2**20, ".parquet": 2**32, ".safetensors": 2**34}
# By what a step claims the folder that it writes to (`training.running.claims.LOCK`).
_LOCK = ".histodistill.lock"
# Characters of a name in a message, at most.
_SHOWN_LENGTH = 80


def matches(name: str, patterns: Iterable[str]) -> bool:
    """Whether a path with `/` matches one of the patterns, in which `*` does not stand for `/`."""
    return any(name.count("/") == pattern.count("/") and fnmatchcase(name, pattern) for pattern in patterns)


def shown(name: object) -> str:
    """A name from outside on one line of a message, without characters that a terminal would obey."""
    text = "".join(letter if letter.isprintable() else "?" for letter in str(name))
    return text if len(text) <= _SHOWN_LENGTH else f"{text[: _SHOWN_LENGTH - 1]}…"


def audited_names(folder: str | Path, part: str | None = None) -> list[str]:
    """Paths, relative and sorted, of the files of a part that a verdict is about.

    Args:
        folder: Of the part.
        part: A key of `PARTS`; by default the folder's name.

    Raises:
        ContentError: For a file that the part may not hold, a link, or anything else that is no file.
    """
    folder = Path(folder)
    rules = PARTS[part or folder.name]
    names = []
    for entry, name in _walk(folder, "", rules.working_folders):
        if entry.is_symlink():
            raise ContentError(f"{folder}/{shown(name)} is a link: put the file itself there, or delete the link")
        if matches(name, rules.working):
            continue
        if entry.name == _LOCK:
            raise ContentError(
                f"{folder} is being worked on, as {shown(name)} says: wait until that has ended, or run the same "
                "command again where it was killed"
            )
        if not matches(name, (*rules.published, *rules.records)):
            raise ContentError(
                f"{folder}/{shown(name)} is no file of a {part or folder.name}, so nobody knows what it holds: move "
                "it out of the run, or delete it"
            )
        names.append(name)
    return sorted(names)


def _walk(folder: Path, prefix: str, ignored: tuple[str, ...]) -> Iterator[tuple[os.DirEntry[str], str]]:
    """All that is no folder below a folder, hidden files as well, with its path relative to where the walk began."""
    try:
        with os.scandir(folder / prefix) as entries:
            found = sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        raise ContentError(f"{folder}/{shown(prefix)} cannot be read ({error.strerror}): mend this first") from error
    for entry in found:
        name = f"{prefix}{entry.name}"
        if not entry.is_dir(follow_symlinks=False):
            yield entry, name
        elif name not in ignored:
            yield from _walk(folder, f"{name}/", ignored)


def read_part(folder: str | Path, part: str | None = None) -> dict[str, bytes]:
    """The files of a part that a verdict is about: path relative to the folder → content.

    Args:
        folder: Of the part.
        part: A key of `PARTS`; by default the folder's name.

    Raises:
        ContentError: As for `audited_names`, for a file that is too large or cannot be read, and without a record of
            the stage.
    """
    files = {name: read_file(Path(folder) / name) for name in audited_names(folder, part)}
    for name in PARTS[part or Path(folder).name].records:
        if name not in files:
            raise ContentError(f"{folder} has no {name}: make it anew")
    return files


def read_file(path: str | Path) -> bytes:
    """The content of a file, which is opened once.

    Raises:
        ContentError: If it is a link, no ordinary file, larger than `LARGEST_FILES` allows, or cannot be read.
    """
    path = Path(path)
    most = LARGEST_FILES.get(path.suffix, 0)
    with _open(path) as file:
        size = os.fstat(file.fileno()).st_size
        # Memory is taken for as many bytes as are asked for.
        data = file.read(min(size, most) + 1)
    if len(data) > most:
        raise ContentError(f"{path} has more than the {most:,} bytes that such a file may have: make it anew")
    if len(data) != size:
        raise ContentError(f"{path} was changed while it was read: see that nothing writes to it, and run it again")
    return data


@contextmanager
def _open(path: Path) -> Iterator[BufferedReader]:
    """An ordinary file; what goes wrong inside the block while it is read becomes a ContentError, too."""
    # Neither follows a link at the end of the path, nor waits for somebody who writes to a pipe.
    flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    try:
        with open(os.open(path, flags), "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise ContentError(f"{path} is no ordinary file: put one there")
            yield file
    except OSError as error:
        if path.is_symlink():
            raise ContentError(f"{path} is a link: put the file itself there") from error
        raise ContentError(f"{path} cannot be read ({error.strerror}): mend this first") from error


def hash_contents(files: Mapping[str, bytes]) -> dict[str, str]:
    """SHA-256, as 64 hex digits, of each content."""
    return {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}


def hash_files(folder: str | Path, names: Iterable[str]) -> dict[str, str]:
    """The same of files as they are now, read piece by piece.

    Args:
        folder: Where they are.
        names: Their paths relative to it.

    Raises:
        ContentError: For a link, what is no ordinary file, or cannot be read.
    """
    hashes = {}
    for name in names:
        with _open(Path(folder) / name) as file:
            hashes[name] = hashlib.file_digest(file, "sha256").hexdigest()
    return hashes


def hash_part(folder: str | Path, part: str | None = None) -> dict[str, str]:
    """The same of the files of a part.

    Raises:
        ContentError: As for `audited_names` and `hash_files`.
    """
    return hash_files(folder, audited_names(folder, part))
