"""Tiles that are a file each."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from histodistill.training.data.decoding import Entry, count_modes, count_sizes, decode_tiles
from histodistill.training.data.grouping import Grouping
from histodistill.training.data.listing import ListedSplit, spread
from histodistill.training.data.opened_source import OpenedSource
from histodistill.training.data.tiles import Tiles


def open_tile_files(
    name: str,
    class_names: Sequence[str],
    splits: dict[str, ListedSplit],
    entry: Callable[[int], Entry],
    stored: Callable[[], int],
    grouping: Grouping,
) -> OpenedSource:
    """The source that files of pictures make.

    Args:
        name: What the source is called.
        class_names: The name of each label.
        splits: What is known of the tiles of each split.
        entry: `entry(i)` gives what messages call the tile with this number, and its file. They count on from split to
            split.
        stored: `stored()` gives the bytes of all files.
        grouping: What was said of the groups.
    """

    count = sum(map(len, splits.values()))

    def read(image_size: int | None) -> dict[str, Tiles]:
        images = decode_tiles(count, lambda start, stop: [entry(i) for i in range(start, stop)], image_size)
        parts = np.split(images, np.cumsum([len(split) for split in splits.values()])[:-1])
        return {key: split.with_images(part) for part, (key, split) in zip(parts, splits.items(), strict=True)}

    return OpenedSource(
        name,
        class_names,
        splits,
        read,
        sizes=lambda: count_sizes(map(entry, spread(count).tolist())),
        stored=stored,
        grouping=grouping,
        modes=lambda: count_modes(map(entry, range(count))),
    )
