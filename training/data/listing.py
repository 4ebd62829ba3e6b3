"""What a source holds, without its pixels: enough to see in seconds whether it was understood, however many tiles."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

from histodistill.selection.image_rows import Images
from histodistill.training.data.tiles import LabelViews, Tiles
from histodistill.training.running.findings import Finding


#: Tiles whose headers are read to see their sizes, at most.
LOOKED_AT = 200


@dataclass(frozen=True, eq=False)
class ListedSplit:
    """The tiles of one split, as they are known without being decoded.

    Attributes:
        labels: int64 N, the class of each tile.
        groups: Text N, or None where the split has none.
        attributes: What else is known of each tile, such as its site: name → text N.
        soft_labels: A teacher's probabilities, float32 N×C, or None.
        label_views: Those of further views of each tile, or None.
    """

    labels: np.ndarray
    groups: np.ndarray | None = None
    attributes: Mapping[str, np.ndarray] = field(default_factory=dict)
    soft_labels: np.ndarray | None = None
    label_views: LabelViews | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def with_images(self, images: Images) -> Tiles:
        """The tiles with their pixels, uint8 N×H×W×3."""
        return Tiles(images, self.labels, self.soft_labels, self.groups, self.attributes, self.label_views)


@dataclass(frozen=True, eq=False)
class Listing:
    """What a source holds; its splits are those that were given.

    Attributes:
        name: As `TileSource.name`.
        class_names: The name of each label.
        splits: Split → its tiles.
        sizes: Width and height in pixels → tiles that were seen to have it, by their headers; of large sources a
            sample of the tiles, spread evenly.
        bytes_on_disk: Of the files that hold the tiles; 0 for tiles that are drawn.
        is_sample: Whether `sizes` are those of a sample.
        group_kind: What a group is, one of `GROUP_KINDS`; None where the tiles have no groups.
        hint: See `Grouping`.
        count_modes: `count_modes()` reads the headers of all tiles, and gives colour mode, as Pillow calls it → tiles.
    """

    name: str
    class_names: list[str]
    splits: dict[str, ListedSplit]
    sizes: dict[tuple[int, int], int]
    bytes_on_disk: int
    is_sample: bool = False
    group_kind: str | None = None
    hint: Finding | None = None
    count_modes: Callable[[], Mapping[str, int]] = dict


def spread(count: int, most: int = LOOKED_AT) -> np.ndarray:
    """At most `most` of `count` indices, spread evenly: int64, ascending."""
    return np.unique(np.linspace(0, max(0, count - 1), min(count, most)).astype(np.int64))
