"""Planted leaks: known copies of real tiles, to see whether the audit finds what it must."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from histodistill.selection.checks import check_integer
from histodistill.selection.image_rows import Images
from histodistill.selection.names import SYMMETRIES
from histodistill.selection.stains import change_stains
from histodistill.selection.streams import stream
from histodistill.selection.views import apply_symmetry, blend, compress_jpeg, crop_and_resize, shift


#: Kind of copy → share of such copies that an audit must find to be believed. Why both a crop and a shift: a shift
#: moves a tile at its own scale, as a common augmentation does, while a crop of 90 % also enlarges it and is harder to
#: find.
MUST_FIND = {
    "exact": 1.0,
    "symmetric": 1.0,
    "jpeg": 1.0,
    "stain": 0.95,
    "crop": 0.95,
    "shift": 0.95,
    "blend": 0.8,
}
#: How far stains move in a planted copy: each is scaled by up to ±20 % and raised by up to ±0.2 in density.
STAIN_STRENGTH = 0.2


@dataclass(frozen=True)
class Planted:
    """Copies of real tiles.

    Attributes:
        images: uint8 P×S×S×3.
        kinds: P names, each one of `MUST_FIND`.
        sources: int64 P, the index of the tile that each is a copy of.
    """

    images: np.ndarray
    kinds: np.ndarray
    sources: np.ndarray


def plant(images: Images, n_per_kind: int, seed: int = 0, usable: np.ndarray | None = None) -> Planted:
    """Makes `n_per_kind` copies of each kind, of tiles drawn at random.

    - `exact`: as it is; `symmetric`: turned or mirrored, never as it is;
    - `jpeg`: compressed at quality 75; `stain`: the amount of each stain changed, see `STAIN_STRENGTH`;
    - `crop`: 90 % of the side cut out anywhere and resized back; `shift`: moved by 1 or 2 pixels along each axis;
    - `blend`: 80 % of the tile and 20 % of another one.

    Args:
        images: uint8 N×S×S×3, the real tiles.
        n_per_kind: At least 1.
        seed: Seed of the draws.
        usable: N bool, which tiles may be copied; all by default.

    Returns:
        The copies, grouped by kind in the order of `MUST_FIND`. No tile is copied twice while there are enough.
    """
    check_integer("n_per_kind", n_per_kind, 1)
    rng = stream("planted copies", seed)
    rows = np.arange(len(images)) if usable is None else np.flatnonzero(usable)
    order = draw_in_turn(rows, n_per_kind * len(MUST_FIND), rng)
    sources = dict(zip(MUST_FIND, order.reshape(len(MUST_FIND), n_per_kind), strict=True))
    copies = [_copies(kind, images, images[chosen], rng) for kind, chosen in sources.items()]
    return Planted(np.concatenate(copies), np.repeat(list(MUST_FIND), n_per_kind), order.astype(np.int64))


def draw_in_turn(rows: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Draws `count` rows, none once more before all have been drawn."""
    return np.concatenate([rng.permutation(rows) for _ in range(-(-count // len(rows)))])[:count]


def _copies(kind: str, images: Images, tiles: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    count, size = len(tiles), tiles.shape[1]
    if kind == "symmetric":
        chosen = rng.integers(1, SYMMETRIES, count)
        return np.stack([apply_symmetry(tile[None], s)[0] for tile, s in zip(tiles, chosen.tolist(), strict=True)])
    if kind == "jpeg":
        return compress_jpeg(tiles)
    if kind == "stain":
        scales, offsets = STAIN_STRENGTH * (2 * rng.random((2, count, 3)) - 1)
        return change_stains(tiles, 1 + scales, offsets)
    if kind == "crop":
        side = round(0.9 * size)
        return crop_and_resize(tiles, side, rng.integers(0, size - side + 1, (count, 2)))
    if kind == "shift":
        steps = rng.choice([-2, -1, 1, 2], size=(count, 2)).tolist()
        return np.concatenate([shift(tile[None], *step) for tile, step in zip(tiles, steps, strict=True)])
    if kind == "blend":
        return blend(tiles, images[rng.integers(0, len(images), count)])
    return tiles.copy()
