"""What a user is told of the tiles that were loaded: how many there are, and which of them occur twice."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from histodistill.selection.copies import tile_keys
from histodistill.selection.summaries import counted
from histodistill.training.data.tiles import HELD_OUT, Tiles, TileSource
from histodistill.training.running.notes import tell, warn


# Classes whose tiles are counted one by one in a line.
_CLASSES_SHOWN = 12
# Pixels along a side of the middle of a tile, by which copies are looked for.
_MIDDLE = 32
# Tiles that are compared at once, which bounds the memory.
_TILES_PER_CALL = 1024


def tell_of_tiles(source: TileSource) -> None:
    """Tells in one line how many tiles of each class there are in each split, and warns of tiles that occur twice.

    Tiles are the same if one is the other as it is, turned or mirrored. A tile of one colour, such as an empty one, is
    no copy of another.
    """
    tell(tiles_in_one_line(source))
    for warning in warnings_of_copies(source):
        warn(warning)


def tiles_in_one_line(source: TileSource) -> str:
    """Such as `tiles of phantom, 28x28 px: train 6 (adipose 3, glands 3), test 2 (adipose 1, glands 1)`."""
    splits = []
    for name, tiles in source.splits.items():
        counts = np.bincount(tiles.labels, minlength=len(source.class_names))
        shown = [f"{c} {n:,}" for c, n in zip(source.class_names[:_CLASSES_SHOWN], counts, strict=False)]
        if len(counts) > _CLASSES_SHOWN:
            rest = counts[_CLASSES_SHOWN:]
            least, most = f"{rest.min():,}", f"{rest.max():,}"
            each = least if least == most else f"{least} to {most}"
            shown.append(f"and {each} of each of {counted(len(rest), 'more class', 'more classes')}")
        if name == "validation" and source.validation_was_train:
            shown[-1] += "; the last tenth of each class of train, for there is no such split"
        called = "held out for the audit" if name == HELD_OUT else name
        splits.append(f"{called} {len(tiles):,} ({', '.join(shown)})")
    missing = [f"no {name}" for name in ("validation", "test") if name not in source.splits]
    size = f"{source.image_size}x{source.image_size} px"
    return f"tiles of {source.name}, {size}: {', '.join(splits + missing)}"


@dataclass(frozen=True, eq=False)
class _Digests:
    """Tiles of one split of which each may occur twice.

    Attributes:
        rows: int64 N, their places in the split.
        exact: uint64 N, one number for each different tile.
        any_way: uint64 N, the same number for tiles that are the same but for one of the eight symmetries.
    """

    rows: np.ndarray
    exact: np.ndarray
    any_way: np.ndarray


def warnings_of_copies(source: TileSource) -> list[str]:
    """One sentence for each two splits with tiles in common, and one for tiles that train has with several labels."""
    digests = {name: _digests(tiles, rows) for (name, tiles), rows in _with_equals(source.splits)}
    sentences = []
    for first, second in combinations(source.splits, 2):
        same = np.isin(digests[second].any_way, digests[first].any_way).sum()
        turned = same - np.isin(digests[second].exact, digests[first].exact).sum()
        if same:
            sentences.append(
                f"{same:,} of {counted(len(source.splits[second]), f'{second} tile')} of {source.name} are {first} "
                f"tiles too, {turned:,} of them turned or mirrored: what is measured on them looks better than it is; "
                "take them out of one of the two splits"
            )
    labels = source.splits["train"].labels[digests["train"].rows]
    pairs = np.unique(np.stack([digests["train"].any_way, labels.astype(np.uint64)], axis=1), axis=0)
    keys, counts = np.unique(pairs[:, 0], return_counts=True)
    several = keys[counts > 1]
    if len(several):
        tiles = np.isin(digests["train"].any_way, several).sum()
        names = [repr(source.class_names[int(label)]) for label in pairs[pairs[:, 0] == several[0], 1]]
        sentences.append(
            f"{tiles:,} train tiles of {source.name} occur with several labels, as they are or turned (such as one "
            f"with {' and '.join(names)}): keep each with the label that is right"
        )
    return sentences


def _with_equals(splits: dict[str, Tiles]) -> Iterator[tuple[tuple[str, Tiles], np.ndarray]]:
    """Each split, with the rows of tiles that may have an equal one: in whose middles the sums of colours agree."""
    sums = [_sums(_middle(tiles.images)) @ np.array([1, 2**21, 2**42], dtype=np.uint64) for tiles in splits.values()]
    _, kind, counts = np.unique(np.concatenate(sums), return_inverse=True, return_counts=True)
    several = np.split(counts[kind] > 1, np.cumsum([len(tiles) for tiles in splits.values()])[:-1])
    for split, of_split in zip(splits.items(), several, strict=True):
        yield split, np.flatnonzero(of_split)


def _digests(tiles: Tiles, rows: np.ndarray) -> _Digests:
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
        return _Digests(rows, *np.empty((2, 0), dtype=np.uint64))
    return _Digests(*(np.concatenate(part) for part in zip(*parts, strict=True)))


def _middle(images: np.ndarray) -> np.ndarray:
    """What is at most `_MIDDLE` pixels, or one more, around the centre of square images: turning leaves it there."""
    side = images.shape[1]
    margin = max(0, (side - _MIDDLE) // 2)
    return images[:, margin : side - margin, margin : side - margin]


def _sums(images: np.ndarray) -> np.ndarray:
    """Sums of the colours of images N×H×W×3: uint64 N×3."""
    return images.sum(axis=(1, 2), dtype=np.uint64)
