"""Tiles that are a file each."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np

from histodistill.training.data.decoding import Entry, count_sizes, decode_tiles
from histodistill.training.data.grouping import Grouping
from histodistill.training.data.listing import ListedSplit, spread
from histodistill.training.data.opened_source import OpenedSource
from histodistill.training.data.tiles import Tiles


def open_tile_files(
    name: str,
    class_names: Sequence[str],
    splits: dict[str, ListedSplit],
    files: Sequence[Entry],
    grouping: Grouping,
) -> OpenedSource:
    """The source that files of pictures make.

    Args:
        name: What the source is called.
        class_names: The name of each label.
        splits: What is known of the tiles of each split.
        files: All tiles' files, split after split, each with what messages call it.
        grouping: What was said of the groups.
    """

    def read(image_size: int | None) -> dict[str, Tiles]:
        images = decode_tiles(len(files), lambda start, stop: list(files[start:stop]), image_size)
        parts = np.split(images, np.cumsum([len(split) for split in splits.values()])[:-1])
        return {key: split.with_images(part) for part, (key, split) in zip(parts, splits.items(), strict=True)}

    return OpenedSource(
        name,
        class_names,
        splits,
        read,
        sizes=lambda: count_sizes(files[i] for i in spread(len(files))),
        stored=lambda: sum(os.stat(file).st_size for _, file in files if not isinstance(file, bytes)),
        grouping=grouping,
    )
