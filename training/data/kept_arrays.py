"""Arrays that a step keeps in a file for a later call, which goes on from them or takes them as they are."""

from __future__ import annotations

import io
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from histodistill.training.running.files import write_bytes
from histodistill.training.running.notes import warn


def read_kept_arrays(file: Path) -> dict[str, np.ndarray]:
    """The arrays that a file holds; none where it is missing, or damaged, of which the user is told."""
    try:
        # np.load leaves a file that it opened itself and finds damaged open.
        with open(file, "rb") as opened, np.load(opened, allow_pickle=False) as kept:
            return dict(kept)
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, EOFError, TypeError, zipfile.BadZipFile, zlib.error):
        warn(f"{file} is damaged: it is made anew")
        return {}


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
