"""Files that appear whole or not at all."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


def write_bytes(path: str | Path, data: bytes, private: bool = False) -> None:
    """Writes a file at once; see `new_file`.

    Args:
        path, private: As there.
        data: What shall be in it.

    Raises:
        OSError: As there.
    """
    with new_file(path, private) as file:
        file.write(data)


@contextmanager
def new_file(path: str | Path, private: bool = False) -> Iterator[BinaryIO]:
    """A file that is written under a temporary name beside its own, and renamed into place when the block ends well.

    Whoever reads `path` meanwhile finds the old file or the new one, never a part of it. Folders that are missing are
    made.

    Args:
        path: The file, replaced if it is there.
        private: Whether its owner alone may read it, at no moment anybody else; others may as the system has it.

    Yields:
        The file, to be written.

    Raises:
        OSError: If the file cannot be written, which it names; what was at `path` is then still there, and nothing
            beside it.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # A name that no other process or thread uses, so that two writers cannot mix their bytes.
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    try:
        # Made anew ("x") and with the permissions of any other file, which `tempfile` would not give it.
        with open(temporary, "xb", opener=_open_private if private else None) as file:
            yield file
        os.replace(temporary, path)
    except OSError as error:
        # What is said of a full disk names no file, and the temporary one says nothing to the user.
        if error.errno is not None and error.filename in (None, str(temporary)):
            error.filename = str(path)
        raise
    finally:
        temporary.unlink(missing_ok=True)


def _open_private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)
