"""Files and folders that appear whole or not at all."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from histodistill.selection.files import new_file, write_bytes
from histodistill.training.running.errors import InputError, reason_of
from histodistill.training.running.notes import warn


#: `new_file` and `write_bytes` are `selection`'s, which saves selectors so; here they stand beside the others.
__all__ = [
    "format_size",
    "md5_of",
    "new_file",
    "new_files",
    "new_folder",
    "read_json",
    "read_kept",
    "remove",
    "sha256_of",
    "write_bytes",
    "write_json",
    "write_refusal",
    "write_text",
]


def write_refusal(folder: Path) -> OSError | None:
    """Why nothing can be written in a folder; None where it can, or where the folder can be made.

    Args:
        folder: The folder, which need not be there yet. It is not made.
    """
    there = next(each for each in (folder.absolute(), *folder.absolute().parents) if each.exists())
    try:
        with tempfile.TemporaryFile(dir=there):
            return None
    except OSError as error:
        return error


def write_text(path: str | Path, text: str, private: bool = False) -> None:
    """Writes UTF-8 text atomically; bytes of a file's name that are not UTF-8 are escaped.

    Args:
        path, private: See `write_bytes`.
        text: What shall be in it.
    """
    write_bytes(path, text.encode(errors="backslashreplace"), private)


def write_json(path: str | Path, value: Any, private: bool = False) -> None:
    """Writes indented JSON atomically.

    Args:
        path, private: See `write_bytes`.
        value: What shall be in it.

    Raises:
        ValueError: For NaN or infinity, which are not JSON.
    """
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n", private)


def read_json(path: str | Path) -> Any:
    """What a JSON file holds.

    Raises:
        OSError: If it cannot be read.
        InputError: (a ValueError) If it is not JSON in UTF-8, or nested so deeply that nobody can have meant it.
    """
    path = Path(path)
    _check_ordinary(path)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"{path} cannot be read ({reason_of(error)}): delete it and run the command that made it"
        ) from error


def _check_ordinary(path: Path) -> None:
    """Sees that a file is nothing that would be waited for, or never ends; what is missing is none of these."""
    if path.is_fifo() or path.is_char_device():
        raise OSError(errno.EINVAL, "it is no ordinary file", str(path))


def read_kept(path: str | Path) -> Any:
    """What an earlier attempt kept in a JSON file, or None where there is none to go by.

    A file that is damaged, as a power cut leaves it, counts as none, and the user is told.
    """
    try:
        return read_json(path)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        warn(f"{path} is damaged ({getattr(error, 'strerror', None) or 'it is no JSON'}): it is made anew")
        return None


@contextmanager
def new_folder(path: str | Path) -> Iterator[Path]:
    """A temporary folder that takes the place of another when the block ends well, and vanishes otherwise.

    Args:
        path: The other folder, which need not be there.

    Yields:
        The temporary folder, empty and beside it.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        yield temporary
        _put(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _put(new: Path, path: Path) -> None:
    """Moves a file or folder to another place on its disk; what is there goes once the disk has allowed it."""
    if not (new.is_dir() or path.is_dir()) or not os.path.lexists(path):
        os.replace(new, path)
        return
    # A folder takes the place of nothing but an empty one.
    old = path.with_name(f".{path.name}.old.{os.getpid()}.tmp")
    try:
        os.replace(path, old)
        os.replace(new, path)
    finally:
        if not os.path.lexists(path):  # the second was refused, or a signal came between
            os.replace(old, path)
        remove(old)


def remove(path: str | Path) -> None:
    """Deletes what is at a path, if there is anything: a folder with all that is in it, a file, or a link itself."""
    path = Path(path)
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


@contextmanager
def new_files(folder: str | Path) -> Iterator[Path]:
    """A temporary folder whose content moves into another when the block ends well, and vanishes otherwise.

    For libraries that write several files: none of them is ever half there, and whatever else the folder holds stays.

    Args:
        folder: The other folder, made if it is missing.

    Yields:
        The temporary folder, empty and in it.
    """
    folder = Path(folder)
    temporary = folder / f".new.{os.getpid()}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        for entry in sorted(temporary.iterdir()):
            _put(entry, folder / entry.name)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def md5_of(path: Path) -> str:
    """MD5 of a file as 32 hex digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def sha256_of(path: str | Path) -> str:
    """SHA-256 of a file as 64 hex digits.

    Raises:
        OSError: If it cannot be read.
    """
    _check_ordinary(Path(path))
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def format_size(size: int) -> str:
    """Bytes as text, such as 1.2 MB."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= factor:
            return f"{size / factor:.1f} {unit}"
    return f"{size} B"
