"""Near copies among the tiles of a source, which are searched for once, whatever splits are made of them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from histodistill.selection.repeats import repeated_pairs
from histodistill.selection.units import units_of_pairs
from histodistill.training.data.tile_store import TileStore, store_of
from histodistill.training.data.tiles import Tiles


def in_one_store(parts: Sequence[Tiles]) -> tuple[TileStore, list[np.ndarray]] | None:
    """The store that all tiles of several parts are in, and the rows of each; None where some are not, or twice."""
    found = store_of([tiles.images for tiles in parts])
    if found is not None:
        every = np.concatenate(found[1])
        if len(np.unique(every)) == len(every):
            return found
    return None


def pairs_of_copies(parts: Sequence[Tiles]) -> np.ndarray:
    """Pairs of near copies among the tiles of several parts, as `repeated_pairs` gives them: int64 P×2."""
    found = in_one_store(parts)
    if found is None:
        return repeated_pairs([tiles.images for tiles in parts])
    store, rows = found
    return store.repeats.pairs_among(rows)


def units_of(tiles: Tiles) -> np.ndarray:
    """What of some tiles belongs together, see `selection.units`: int64 N."""
    return units_of_pairs(pairs_of_copies([tiles]), len(tiles), tiles.groups)
