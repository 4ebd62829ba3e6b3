"""Arrays that a step keeps in a file for a later call, which goes on from them or takes them as they are."""

from __future__ import annotations

import io
import zipfile
import zlib
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np

from histodistill.training.running.files import write_bytes
from histodistill.training.running.notes import warn


def read_kept_arrays(file: Path, names: Collection[str] | None = None) -> dict[str, np.ndarray]:
    """The arrays that a file holds; none where it is missing, or damaged, of which the user is told.

    Args:
        file: As `write_arrays` leaves it.
        names: Of the arrays that it must hold, and no others; None for any.
    """
    try:
        # np.load leaves a file that it opened itself and finds damaged open.
        with open(file, "rb") as opened, np.load(opened, allow_pickle=False) as kept:
            arrays: dict[str, np.ndarray] | None = dict(kept)
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, EOFError, TypeError, zipfile.BadZipFile, zlib.error):
        arrays = None
    if arrays is None or (names is not None and arrays.keys() != set(names)):
        warn(f"{file} is damaged: it is made anew")
        return {}
    return arrays


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
