"""Arrays that a step keeps in a file for a later call, which goes on from them or takes them as they are."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np

from histodistill.training.data.limits import check_growth
from histodistill.training.running.errors import InputError
from histodistill.training.running.files import write_bytes
from histodistill.training.running.notes import warn


def read_kept_arrays(file: Path, names: Collection[str] | None = None) -> dict[str, np.ndarray]:
    """The arrays that a file holds; none where it is missing, or damaged, of which the user is told.

    Args:
        file: As `write_arrays` leaves it.
        names: Of the arrays that it must hold, and no others; None for any.
    """
    try:
        return read_arrays(file, names)
    except FileNotFoundError:
        return {}
    except InputError:
        warn(f"{file} is damaged: it is made anew")
        return {}


def read_arrays(file: Path, names: Collection[str] | None = None) -> dict[str, np.ndarray]:
    """The arrays that a file holds.

    Args:
        file: As `write_arrays` leaves it.
        names: Of the arrays that it must hold, and no others; None for any.

    Raises:
        FileNotFoundError: If it is missing.
        InputError: If it is damaged.
    """
    try:
        arrays = _read(file)
    except FileNotFoundError:
        raise
    except Exception as error:  # zipfile and numpy raise errors of many kinds on damaged files
        raise _damaged(file) from error
    if names is not None and arrays.keys() != set(names):
        raise _damaged(file)
    return arrays


def _read(file: Path) -> dict[str, np.ndarray]:
    if file.exists() and not file.is_file():  # a pipe would be waited for
        raise ValueError("it is no ordinary file")
    # np.load leaves a file that it opened itself and finds damaged open.
    with open(file, "rb") as opened:
        with zipfile.ZipFile(opened) as archive:
            check_growth(str(file), file.stat().st_size, sum(info.file_size for info in archive.infolist()))
        opened.seek(0)
        with np.load(opened, allow_pickle=False) as kept:
            arrays = dict(kept)
    if not all(isinstance(array, np.ndarray) for array in arrays.values()):  # as np.load gives what is no array
        raise ValueError("it holds something else than arrays")
    return arrays


def _damaged(file: Path) -> InputError:
    return InputError(f"{file} is damaged: delete it, and the command that made it makes it anew")


def write_arrays(file: Path, **arrays: Any) -> None:
    """Writes arrays of numbers or text as an .npz file, atomically; its folder must be there.

    An array of objects is a `TypeError`: it would be pickled.
    """
    for name, array in arrays.items():  # numpy before 2.2 takes savez's allow_pickle for an array of that name.
        if np.asarray(array).dtype.hasobject:
            raise TypeError(f"{name} holds objects: give numbers or text")
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    write_bytes(file, buffer.getvalue())
