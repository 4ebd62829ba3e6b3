"""What an audit takes: labelled images, with their groups where these are known, and the real tiles by their role."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol

import numpy as np

from histodistill.selection.image_rows import Images, join, rows_of
from histodistill.selection.near_copies import NearCopies, connected
from histodistill.selection.repeats import find_repeats
from histodistill.selection.summaries import summarise


@dataclass(frozen=True, eq=False)
class LabelledImages:
    """Images uint8 N×S×S×3 with their classes, int64 N, and what is known of them.

    Attributes:
        images, labels: The images, in memory or not, and their classes.
        groups: The group of each, such as its patient: text N or None.
        attributes: What else is known of each, such as its site: name → text N.
    """

    images: Images
    labels: np.ndarray
    groups: np.ndarray | None = None
    attributes: Mapping[str, np.ndarray] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, rows: np.ndarray) -> LabelledImages:
        groups = None if self.groups is None else self.groups[rows]
        attributes = {name: values[rows] for name, values in self.attributes.items()}
        return LabelledImages(rows_of(self.images, rows), self.labels[rows], groups, attributes)

    def __repr__(self) -> str:
        return f"LabelledImages({summarise(self.images, self.labels)})"


class HasLabelledImages(Protocol):
    """Anything with images and their labels, such as `LabelledImages`, or the tiles that `load_tiles` gives.

    Where it has `groups`, N of any kind or None, and `attributes`, name → N texts, they count, too.
    """

    @property
    def images(self) -> Images:
        """uint8 N×S×S×3."""

    @property
    def labels(self) -> np.ndarray:
        """N whole numbers."""


@dataclass(frozen=True)
class RealTiles:
    """The real tiles, by what a model saw of them.

    Attributes:
        train: What the models were trained on.
        held_out: A random part of the same tiles that no model has seen; none where nothing was held out.
        validation: Other tiles, that no model was trained on.
        look_up_repeats: Gives what of `all_images` is there more than once, where that was found before.
    """

    train: LabelledImages
    held_out: LabelledImages | None
    validation: LabelledImages
    look_up_repeats: Callable[[], NearCopies] | None = None

    def __len__(self) -> int:
        return sum(len(part) for part in self._parts)

    def __repr__(self) -> str:
        held_out = "nothing held out" if self.held_out is None else f"{len(self.held_out):,} held out"
        train = summarise(self.train.images, self.train.labels, "training tile")
        return f"RealTiles({train}; {held_out}; {len(self.validation):,} for validation)"

    @cached_property
    def all_images(self) -> Images:
        """The images of train, held-out and validation tiles, in this order, uint8 N×S×S×3; none is copied."""
        return join([part.images for part in self._parts])

    @cached_property
    def all_labels(self) -> np.ndarray:
        """Their classes, int64 N."""
        return np.concatenate([part.labels for part in self._parts])

    @cached_property
    def repeats(self) -> NearCopies:
        """What of `all_images` is there more than once; to find it takes seconds for a thousand tiles."""
        return self.look_up_repeats() if self.look_up_repeats else find_repeats(self.all_images)

    @cached_property
    def kinds(self) -> np.ndarray:
        """What is the same tile, a little changed, is of one kind: int64 N, numbered by their first tiles."""
        return connected(self.repeats.pairs_among([np.arange(len(self))]), len(self))

    @cached_property
    def num_different(self) -> int:
        """Training tiles, of which those of one kind count once."""
        return len(np.unique(self.kinds[: len(self.train)]))

    def at(self, rows: np.ndarray) -> LabelledImages:
        """The tiles at these rows of `all_images`, without their groups."""
        return LabelledImages(rows_of(self.all_images, rows), self.all_labels[rows])

    @property
    def _parts(self) -> list[LabelledImages]:
        return [part for part in (self.train, self.held_out, self.validation) if part is not None]
