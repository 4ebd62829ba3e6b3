"""What may be done to a real tile so that a search does not see it in an image, though a person does.

More than the kinds that an audit plants and must find, see `planting`: these tell how far it sees.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from PIL import Image
from scipy.ndimage import gaussian_filter, rotate

from histodistill.selection.image_rows import Images
from histodistill.selection.planting import draw_in_turn
from histodistill.selection.streams import stream
from histodistill.selection.views import blend, crop_and_resize, has_content, resample, shear, shift


#: Takes tiles, as many innocent images and a generator, uint8 N×S×S×3 each, and gives images that show the tiles.
Disguise = Callable[[np.ndarray, np.ndarray, np.random.Generator], np.ndarray]


def _as_bytes(images: np.ndarray) -> np.ndarray:
    return np.clip(np.round(images), 0, 255).astype(np.uint8)


def _turned(least: float, most: float) -> Disguise:
    """Turned by an angle in degrees, either way; what comes in at the edges is the tile's reflection."""

    def disguise(tiles: np.ndarray, _: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        angles = rng.uniform(least, most, len(tiles)) * rng.choice([-1, 1], len(tiles))
        turned = [
            rotate(tile.astype(float), angle, axes=(0, 1), reshape=False, order=3, mode="reflect")
            for tile, angle in zip(tiles, angles.tolist(), strict=True)
        ]
        return _as_bytes(np.stack(turned))

    return disguise


def _cropped(share: float) -> Disguise:
    """A part with this share of the side, anywhere, as large as the tile."""

    def disguise(tiles: np.ndarray, _: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        size = tiles.shape[1]
        side = round(share * size)
        return crop_and_resize(tiles, side, rng.integers(0, size - side + 1, (len(tiles), 2)))

    return disguise


def _smaller(tiles: np.ndarray, _: np.ndarray, __: np.random.Generator) -> np.ndarray:
    size = tiles.shape[1]
    side = round(0.8 * size)
    before, after = (size - side) // 2, size - side - (size - side) // 2
    small = np.stack(
        [np.asarray(Image.fromarray(tile).resize((side, side), Image.Resampling.LANCZOS)) for tile in tiles]
    )
    return np.pad(small, ((0, 0), (before, after), (before, after), (0, 0)), mode="reflect")


def _moved(down: float, right: float) -> Disguise:
    """Moved by shares of the side; what comes in at the edge is the tile's reflection."""

    def disguise(tiles: np.ndarray, _: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        size = tiles.shape[1]
        return shift(tiles, round(down * size), round(right * size))

    return disguise


def _half(tiles: np.ndarray, innocent: np.ndarray, _: np.random.Generator) -> np.ndarray:
    joined, half = innocent.copy(), tiles.shape[1] // 2
    joined[:, :, :half] = tiles[:, :, :half]
    return joined


def _quadrants(tiles: np.ndarray, _: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    joined, half = tiles.copy(), tiles.shape[1] // 2
    for rows in (slice(0, half), slice(half, None)):
        for columns in (slice(0, half), slice(half, None)):
            if (rows.start, columns.start) != (0, 0):
                joined[:, rows, columns] = tiles[rng.permutation(len(tiles)), rows, columns]
    return joined


def _mosaic(tiles: np.ndarray, _: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    half = tiles.shape[1] // 2
    small, joined = _as_bytes(resample(tiles, half)), tiles.copy()
    for row in (0, half):
        for column in (0, half):
            order = np.arange(len(tiles)) if row == column == 0 else rng.permutation(len(tiles))
            joined[:, row : row + half, column : column + half] = small[order]
    return joined


def _pasted(share: float) -> Disguise:
    """A square part with this share of the side, from anywhere to anywhere in an innocent image."""

    def disguise(tiles: np.ndarray, innocent: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        joined, size = innocent.copy(), tiles.shape[1]
        side = round(share * size)
        for image, tile in zip(joined, tiles, strict=True):
            row, column, top, left = rng.integers(0, size - side + 1, 4)
            image[row : row + side, column : column + side] = tile[top : top + side, left : left + side]
        return joined

    return disguise


def _without_contrast(tiles: np.ndarray, _: np.ndarray, __: np.random.Generator) -> np.ndarray:
    mean = tiles.mean(axis=(1, 2, 3), keepdims=True)
    deviation = tiles.mean(axis=3).std(axis=(1, 2))[:, None, None, None]
    return _as_bytes((tiles - mean) * np.minimum(1, 7 / np.maximum(deviation, 1e-9)) + mean)


def _negative(tiles: np.ndarray, _: np.ndarray, __: np.random.Generator) -> np.ndarray:
    return 255 - tiles


def _with_channels_swapped(tiles: np.ndarray, _: np.ndarray, __: np.random.Generator) -> np.ndarray:
    return np.ascontiguousarray(tiles[..., [2, 0, 1]])


def _blurred(tiles: np.ndarray, _: np.ndarray, __: np.random.Generator) -> np.ndarray:
    return _as_bytes(gaussian_filter(tiles.astype(float), (0, 2, 2, 0), mode="reflect"))


def _noisy(tiles: np.ndarray, _: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return _as_bytes(tiles + rng.normal(0, 40, tiles.shape))


def _blended(share: float) -> Disguise:
    """So much of the tile, and the rest an innocent image."""

    def disguise(tiles: np.ndarray, innocent: np.ndarray, _: np.random.Generator) -> np.ndarray:
        return blend(tiles, innocent, share)

    return disguise


#: What is done to a tile → how. Blur and noise are in px and grey levels, all else in shares of the side.
DISGUISES: dict[str, Disguise] = {
    "turned by 10 to 45 degrees": _turned(10, 45),
    "80 % of the side": _cropped(0.8),
    "70 % of the side": _cropped(0.7),
    "60 % of the side": _cropped(0.6),
    "50 % of the side": _cropped(0.5),
    "zoomed out to 80 %": _smaller,
    "moved by a tenth": _moved(0.0, 0.1),
    "moved by a tenth both ways": _moved(0.1, 0.1),
    "moved by a quarter": _moved(0.0, 0.25),
    "moved by a half": _moved(0.0, 0.5),
    "moved by a half both ways": _moved(0.5, 0.5),
    "half of it beside half of an innocent image": _half,
    "a quadrant of each of four tiles": _quadrants,
    "four whole tiles, each half as large": _mosaic,
    "75 % of the side in an innocent image": _pasted(0.75),
    "50 % of the side in an innocent image": _pasted(0.5),
    "contrast of 7 grey levels": _without_contrast,
    "negative": _negative,
    "channels swapped": _with_channels_swapped,
    "blurred by 2 px": _blurred,
    "noise of 40 grey levels": _noisy,
    "60 % of it over 40 % of an innocent image": _blended(0.6),
    "half of it over half of an innocent image": _blended(0.5),
}


def disguise_tiles(
    tiles: Images, others: Images, count: int, seed: int = 0, usable: np.ndarray | None = None
) -> np.ndarray:
    """Disguises tiles in all ways, to see which of them a search sees through.

    Args:
        tiles: uint8 N×S×S×3.
        others: uint8 M×S×S×3, further tiles, of which some show something: what tiles are pasted into. They are
            sheared first, since some may show a part of a tile, see `CopyIndex.search`.
        count: Tiles that are disguised in each way, at least 1.
        seed: Seed of the draws.
        usable: bool N, which tiles may be disguised; all by default.

    Returns:
        uint8 K×count×S×S×3, by the K `DISGUISES` in their order. No tile is disguised twice while there are enough.
    """
    rng = stream("disguised tiles of an audit", seed)
    innocent = np.flatnonzero(has_content(others))
    order = draw_in_turn(
        np.arange(len(tiles)) if usable is None else np.flatnonzero(usable), len(DISGUISES) * count, rng
    )
    disguised = []
    for disguise, chosen in zip(DISGUISES.values(), order.reshape(-1, count), strict=True):
        into = shear(others[rng.choice(innocent, count)], np.arange(count))
        disguised.append(disguise(tiles[chosen], into, rng))
    return np.stack(disguised)
