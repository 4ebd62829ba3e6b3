"""The images of a dataset in Parquet files, unpacked when they are asked for."""

from __future__ import annotations

import functools
import threading
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from histodistill.hub_cards.errors import ContentError
from histodistill.hub_cards.table_files import ImageGroup, TableFile
from histodistill.hub_cards.tables import MERGED
from histodistill.selection.image_rows import ImageRows
from histodistill.training.running.errors import InputError


# Groups of rows that are kept as they are stored, of 64 MB each where we wrote them: one is enough for images that are
# read in their order.
_GROUPS_KEPT = 1


class StoredImages(ImageRows):
    """The images of a dataset; each is unpacked, and checked, whenever it is asked for.

    The files stay open, so that they are those that were checked first, whatever takes their place meanwhile. Several
    threads may ask at a time.

    Args:
        folder: Of the dataset, for messages.
        files: Its files, which must be `in_groups`, of one image size.

    Raises:
        InputError: While reading, for an image that is damaged or none.
    """

    def __init__(self, folder: str | Path, files: Sequence[TableFile]):
        super().__init__((sum(map(len, files)), *files[0].table.images.shape[1:]))
        self._folder, self._lock = folder, threading.Lock()
        # Of each group of rows: its file, its number there, and its first row among all.
        self._groups = [(file, number) for file in files for number in range(len(file.first_rows) - 1)]
        before = np.cumsum([0, *map(len, files)])
        self._starts = np.concatenate(
            [start + file.first_rows[:-1] for start, file in zip(before, files, strict=False)]
        )
        self._read_group: Callable[[int], ImageGroup] = functools.lru_cache(_GROUPS_KEPT)(
            functools.partial(_read_group, self._groups)
        )

    def read(self, rows: np.ndarray) -> np.ndarray:
        """The images at these rows."""
        images = np.empty((len(rows), *self.shape[1:]), np.uint8)
        # A group without rows starts where the next one does, and has no part in this.
        groups = np.searchsorted(self._starts, rows, side="right") - 1
        try:
            with self._lock:
                for number in np.unique(groups):
                    group = self._read_group(int(number))
                    file, own_number = self._groups[number]
                    shift = int(file.first_rows[own_number] - self._starts[number])
                    for place in np.flatnonzero(groups == number):
                        images[place] = group.decode(int(rows[place]) + shift)
        except (ContentError, OSError) as error:
            raise InputError(f"{self._folder} cannot be read ({error}): make it again") from error
        return images


def _read_group(groups: Sequence[tuple[TableFile, int]], number: int) -> ImageGroup:
    file, own_number = groups[number]
    return file.read_group(own_number)


def open_table_file(
    path: Path, check_size: Callable[[int], None], columns: Sequence[str] = MERGED, *, is_whole: bool = True
) -> TableFile:
    """A file of a dataset, which is open as long as it is used.

    Args:
        path: The file.
        check_size, columns, is_whole: See `TableFile`.

    Raises:
        ContentError: If it is damaged or holds anything else.
        OSError: If it cannot be opened.
    """
    stream = open(path, "rb")  # noqa: SIM115 - it is closed with the last user of the table
    try:
        file = TableFile(stream, columns, is_whole=is_whole, check_size=check_size)
    except BaseException:
        stream.close()
        raise
    weakref.finalize(file, stream.close)
    return file
