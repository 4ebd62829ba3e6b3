"""A source between being found and being loaded: all is known of it but the pixels.

What every kind of source is opened as, so that listing a source and loading it are one and the same reading.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from histodistill.selection.image_rows import rows_of
from histodistill.training.data.grouping import Grouping
from histodistill.training.data.left_out import check_left_out, tell_of_left_out
from histodistill.training.data.listing import ListedSplit, Listing
from histodistill.training.data.make_source import make_source
from histodistill.training.data.names import checked_class_names
from histodistill.training.data.pixel_source import PixelSource
from histodistill.training.data.reading import Reading
from histodistill.training.data.storing import open_tiles
from histodistill.training.data.tile_cache import TileCache
from histodistill.training.data.tile_store import TileStore
from histodistill.training.data.tiles import SPLITS, TileSource
from histodistill.training.running.notes import tell


@dataclass(frozen=True, eq=False)
class OpenedSource:
    """A source of which all is known but the pixels: what is listed of it, and where its pixels are.

    Attributes:
        name: As `TileSource.name`.
        class_names: The name of each label.
        splits: Split → its tiles, without their pixels.
        pixels: The tiles of all splits, one split after the other: in memory, or somewhere to be decoded from.
        sizes: `sizes()` gives width and height in pixels → tiles that have it, of all or of a sample.
        stored: `stored()` gives the bytes on disk.
        grouping: What was said of the groups, and what the source itself says.
        license, attribution: As for `TileSource`.
        modes: `modes()` gives colour mode, as Pillow calls it → tiles that have it; None where all are RGB.
    """

    name: str
    class_names: Sequence[str]
    splits: dict[str, ListedSplit]
    pixels: PixelSource | TileStore
    sizes: Callable[[], Mapping[tuple[int, int], int]]
    stored: Callable[[], int]
    grouping: Grouping
    license: str | None = None
    attribution: str | None = None
    modes: Callable[[], Mapping[str, int]] | None = None

    def load(self, image_size: int | None, hold_out_validation: bool, reading: Reading) -> TileSource:
        """Makes a source of the tiles, see `make_source`; those that are not in the cache are decoded into it."""
        if self.grouping.hint is not None:
            tell(self.grouping.hint.for_command_line().sentence())
        store: TileStore
        if isinstance(self.pixels, TileStore):
            store = self.pixels
        else:
            cache = TileCache(reading.cache_dir)
            store = open_tiles(
                self.pixels,
                self.name,
                image_size,
                cache,
                skip_unreadable=reading.skip_unreadable,
                reread=reading.reread,
            )
        check_left_out(self.name, store.left_out, len(store), reading)
        splits, first = {}, 0
        is_there = np.ones(len(store), dtype=bool)
        is_there[[*store.left_out]] = False
        for split, listed in self.splits.items():
            rows = np.arange(first, first + len(listed))
            first += len(listed)
            tiles = listed.with_images(rows_of(store, rows))
            splits[split] = tiles if is_there[rows].all() else tiles.subset(np.flatnonzero(is_there[rows]))
        tell_of_left_out(self.name, self.class_names, self.splits, store.left_out)
        return make_source(
            self.name,
            self.class_names,
            splits,
            license=self.license,
            attribution=self.attribution,
            hold_out_validation=hold_out_validation,
            grouping=self.grouping,
        )

    def listing(self) -> Listing:
        """What there is to be read.

        Labels and groups are not checked: see `source_checks`.

        Raises:
            InputError: Names of classes that cannot be used, or a tile whose size cannot be seen.
        """
        names = checked_class_names(self.name, self.class_names)
        sizes = dict(self.sizes())
        splits = {split: self.splits[split] for split in SPLITS if split in self.splits}
        has_groups = any(tiles.groups is not None for tiles in splits.values())
        kind = self.grouping.kind or "group" if has_groups else None
        count = sum(map(len, splits.values()))
        is_sample = sum(sizes.values()) < count
        modes = self.modes or (lambda: {"RGB": count})
        return Listing(self.name, names, splits, sizes, self.stored(), is_sample, kind, self.grouping.hint, modes)


def opened_in_memory(source: TileSource, grouping: Grouping) -> OpenedSource:
    """A source that is made in memory, of one size."""
    return OpenedSource(
        source.name,
        source.class_names,
        {split: ListedSplit(tiles.labels, tiles.groups, tiles.attributes) for split, tiles in source.splits.items()},
        TileStore(np.concatenate([tiles.images for tiles in source.splits.values()])),
        sizes=lambda: {(source.image_size, source.image_size): sum(map(len, source.splits.values()))},
        stored=lambda: 0,
        grouping=grouping if source.group_kind is None else grouping.usual(source.group_kind),
        license=source.license,
        attribution=source.attribution,
    )
