"""Which tiles are the same, as they are, turned or mirrored, whatever file or order they come in.

A tile of one colour, such as an empty one, is no copy of another.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from histodistill.selection.copies import tile_keys
from histodistill.training.data.tiles import Tiles


# Pixels along a side of the middle of a tile, by which copies are looked for.
_MIDDLE = 32
# Tiles that are compared at once, which bounds the memory.
_TILES_PER_CALL = 1024


@dataclass(frozen=True, eq=False)
class Digests:
    """Tiles of one split of which each may occur twice.

    Attributes:
        rows: int64 N, their places in the split.
        exact: uint64 N, one number for each different tile.
        any_way: uint64 N, the same number for tiles that are the same but for one of the eight symmetries.
    """

    rows: np.ndarray
    exact: np.ndarray
    any_way: np.ndarray


def tiles_also_in(tiles: Tiles, others: Tiles) -> np.ndarray:
    """Which of N tiles are among others: bool N."""
    found = np.zeros(len(tiles), dtype=bool)
    if tiles.images.shape[1:] == others.images.shape[1:]:
        digests = digests_of_repeats({"tiles": tiles, "others": others})
        found[digests["tiles"].rows] = np.isin(digests["tiles"].any_way, digests["others"].any_way)
    return found


def digests_of_repeats(sets: Mapping[str, Tiles]) -> dict[str, Digests]:
    """Of sets of tiles of one size, by name, the tiles that may occur twice, in the same set or in another."""
    return {name: _digests(tiles, rows) for (name, tiles), rows in _with_equals(sets)}


def _with_equals(sets: Mapping[str, Tiles]) -> Iterator[tuple[tuple[str, Tiles], np.ndarray]]:
    """Each set, with the rows of tiles that may have an equal one: in whose middles the sums of colours agree."""
    sums = [_sums(_middle(tiles.images)) @ np.array([1, 2**21, 2**42], dtype=np.uint64) for tiles in sets.values()]
    _, kind, counts = np.unique(np.concatenate(sums), return_inverse=True, return_counts=True)
    several = np.split(counts[kind] > 1, np.cumsum([len(tiles) for tiles in sets.values()])[:-1])
    for item, of_set in zip(sets.items(), several, strict=True):
        yield item, np.flatnonzero(of_set)


def _digests(tiles: Tiles, rows: np.ndarray) -> Digests:
    """The digests of some tiles, but for those of one colour."""
    parts = []
    for start in range(0, len(rows), _TILES_PER_CALL):
        some = rows[start : start + _TILES_PER_CALL]
        images = tiles.images[some]
        varied = (images != images[:, :1, :1]).any(axis=(1, 2, 3))
        images = images[varied]
        exact = [int.from_bytes(hashlib.blake2b(image, digest_size=8).digest(), "big") for image in images]
        # The middle under all symmetries, and of the rest what no symmetry changes: turning large tiles takes long.
        any_way = tile_keys(_middle(images)) + _sums(images) @ np.array([3, 5**9, 7**17], dtype=np.uint64)
        parts.append((some[varied], np.array(exact, dtype=np.uint64), any_way))
    if not parts:
        return Digests(rows, *np.empty((2, 0), dtype=np.uint64))
    return Digests(*(np.concatenate(part) for part in zip(*parts, strict=True)))


def _middle(images: np.ndarray) -> np.ndarray:
    """What is at most `_MIDDLE` pixels, or one more, around the centre of square images: turning leaves it there."""
    side = images.shape[1]
    margin = max(0, (side - _MIDDLE) // 2)
    return images[:, margin : side - margin, margin : side - margin]


def _sums(images: np.ndarray) -> np.ndarray:
    """Sums of the colours of images N×H×W×3: uint64 N×3."""
    return images.sum(axis=(1, 2), dtype=np.uint64)
