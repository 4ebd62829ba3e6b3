"""Images that are read when they are asked for, so that no more of them is in memory than is looked at.

What takes images takes an array, uint8 N×H×W×3, or one of these, which is used alike: `images[rows]` reads these rows
as an array. What goes through all of them does so in batches, see `batches`; `np.asarray` would read them all.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np


class ImageRows(ABC):
    """Images uint8 N×H×W×3 that are somewhere else than in memory.

    Args:
        shape: (N, H, W, 3).
    """

    dtype = np.dtype(np.uint8)
    ndim = 4

    def __init__(self, shape: Sequence[int]):
        count, height, width, channels = map(int, shape)
        self.shape = (count, height, width, channels)

    @abstractmethod
    def read(self, rows: np.ndarray) -> np.ndarray:
        """The images at these rows, int64 M with each in [0, N), in this order: a new array uint8 M×H×W×3.

        Several threads may ask at a time.
        """

    @property
    def nbytes(self) -> int:
        """Bytes that all of them take in memory."""
        return int(np.prod(self.shape, dtype=np.int64))

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: Any) -> np.ndarray:
        """Reads rows, given as for an array: a number, a slice, or numbers or truth values N, and parts of each."""
        rows, *parts = rows if isinstance(rows, tuple) else (rows,)
        chosen = _numbers(rows, len(self))
        images = self.read(np.atleast_1d(chosen))[(slice(None), *parts)]
        return images if chosen.ndim else images[0]

    def __iter__(self) -> Iterator[np.ndarray]:
        for batch in batches(self):
            yield from batch

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        if copy is False:
            raise ValueError("images that are not in memory cannot be had as an array without a copy")
        images = self[:]
        return images if dtype is None else images.astype(dtype)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({'×'.join(map(str, self.shape))})"


def _numbers(rows: Any, count: int) -> np.ndarray:
    """The numbers of rows as NumPy understands them, int64 of any shape; what is out of range is refused.

    Slices and numbers, which batches are asked for by, take as long as they are, whatever the count.
    """
    if isinstance(rows, slice):
        return np.arange(*rows.indices(count))
    numbers = np.asarray(rows)
    if numbers.dtype.kind not in "iu":  # truth values, or nothing at all
        return np.arange(count)[rows]
    numbers = numbers.astype(np.int64)
    if numbers.size and not (-count <= numbers.min() and numbers.max() < count):
        raise IndexError(f"rows {numbers.min()} to {numbers.max()} were asked for, and there are {count}")
    return np.where(numbers < 0, numbers + count, numbers)


#: What can be taken as images, uint8 N×H×W×3.
Images = np.ndarray | ImageRows

# Bytes of a batch of images that is read at once, where nothing else is asked for.
_BATCH_BYTES = 2**24


class ImageView(ImageRows):
    """Some rows of other images; see `rows_of`.

    Attributes:
        base: The images, no view themselves.
        rows: int64 N, the rows of them.
    """

    def __init__(self, base: Images, rows: np.ndarray):
        super().__init__((len(rows), *base.shape[1:]))
        self.base, self.rows = base, rows

    def read(self, rows: np.ndarray) -> np.ndarray:
        """The images at these rows."""
        return np.asarray(self.base[self.rows[rows]])


class JoinedImages(ImageRows):
    """The images of several sets, one after the other; see `join`.

    Attributes:
        parts: The sets, of one size.
    """

    def __init__(self, parts: Sequence[Images]):
        shapes = {part.shape[1:] for part in parts}
        if len(shapes) != 1:
            raise ValueError(f"images of {len(shapes)} sizes cannot be joined: they must be of one size")
        self.parts = tuple(parts)
        self._starts = np.cumsum([0, *map(len, parts)])
        super().__init__((int(self._starts[-1]), *shapes.pop()))

    def read(self, rows: np.ndarray) -> np.ndarray:
        """The images at these rows."""
        images = np.empty((len(rows), *self.shape[1:]), np.uint8)
        which = np.searchsorted(self._starts, rows, side="right") - 1
        for number in np.unique(which):
            chosen = which == number
            images[chosen] = self.parts[number][rows[chosen] - self._starts[number]]
        return images


def rows_of(images: Images, rows: np.ndarray | Sequence[int]) -> ImageView:
    """A view of some of the images, of which nothing is read or copied.

    Args:
        images: uint8 N×H×W×3, or a view of such.
        rows: M numbers in [0, N), or N truth values.
    """
    rows = np.asarray(rows)
    if rows.dtype == bool:
        rows = np.flatnonzero(rows)
    rows = rows.astype(np.int64)
    if isinstance(images, ImageView):
        return ImageView(images.base, images.rows[rows])
    return ImageView(images, rows)


def join(parts: Sequence[Images]) -> Images:
    """The images of several sets of one size, one after the other, of which nothing is read or copied."""
    return parts[0] if len(parts) == 1 else JoinedImages(parts)


def batches(images: Images, size: int | None = None) -> Iterator[np.ndarray]:
    """All images in order, as arrays of at most `size` of them; by default of about 16 MB."""
    if size is None:
        size = max(1, _BATCH_BYTES // max(1, int(np.prod(images.shape[1:]))))
    for start in range(0, len(images), size):
        yield images[start : start + size]
