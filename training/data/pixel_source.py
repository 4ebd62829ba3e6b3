"""Where the pixels of a source's tiles come from, before they are in the cache or in memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np

from histodistill.training.running.errors import InputError


#: Why a tile is left out: its picture cannot be read or used, it lies outside its slide, or it is on bare glass.
Why = Literal["unreadable", "outside", "glass"]


@dataclass(frozen=True)
class LeftOut:
    """A tile of which there are no pixels.

    Attributes:
        why: What it is left out for. Those that are unreadable are an error, unless the user said to skip them.
        error: What to tell of it, in one sentence.
    """

    why: Why
    error: InputError


#: What comes of a tile: its pixels, uint8 H×W×3, or nothing.
Decoded = np.ndarray | LeftOut


class PixelSource(Protocol):
    """The tiles of all splits of a source, one split after the other, numbered from 0 on.

    What it yields is decided by the contents of `files()`, and by `settings`; so it need not be decoded again where
    these are known.
    """

    @property
    def settings(self) -> Mapping[str, Any]:
        """What decides the pixels beside the files, as JSON can hold it, such as where on a slide each tile is."""

    def __len__(self) -> int:
        """Number of tiles."""

    def name(self, number: int) -> str:
        """What messages call a tile."""

    def files(self) -> Sequence[Path]:
        """All files that pixels come from, each once, in an order of their own."""

    def decode(self, image_size: int | None, start: int) -> Iterator[np.ndarray | Sequence[Decoded]]:
        """The tiles from the number `start` on, in order, in batches of any number; as an array, where all are there.

        Args:
            image_size: Side that `fit_tile` brings them to in pixels; by default each stays as it is.
            start: The first tile; those before it are not needed.

        Raises:
            InputError: If nothing more can be read at all, such as from a file that is cut short.
        """
