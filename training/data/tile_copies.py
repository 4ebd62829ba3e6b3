"""Near copies among the tiles of a source, which are searched for once, whatever splits are made of them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from histodistill.selection.repeats import repeated_pairs
from histodistill.selection.units import units_of_pairs
from histodistill.training.data.tile_store import store_of
from histodistill.training.data.tiles import Tiles


def pairs_of_copies(parts: Sequence[Tiles]) -> np.ndarray:
    """Pairs of near copies among the tiles of several parts, as `repeated_pairs` gives them: int64 P×2."""
    sets = [tiles.images for tiles in parts]
    found = store_of(sets)
    if found is None:
        return repeated_pairs(sets)
    store, rows = found
    every = np.concatenate(rows)
    return store.repeats.pairs_among(rows) if len(np.unique(every)) == len(every) else repeated_pairs(sets)


def units_of(tiles: Tiles) -> np.ndarray:
    """What of some tiles belongs together, see `selection.units`: int64 N."""
    return units_of_pairs(pairs_of_copies([tiles]), len(tiles), tiles.groups)
