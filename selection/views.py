"""How a copy of a tile may look: turned, mirrored, moved, zoomed in, stained otherwise, compressed, or blended.

Arrays in, arrays out; images are uint8 N×S×S×3 throughout.
"""

from __future__ import annotations

import io
import math
from functools import lru_cache

import numpy as np
from PIL import Image

from histodistill.selection.image_rows import Images, batches


#: JPEG quality of a compressed copy on Pillow's scale of 1 to 95; 75 is what Pillow and many programs take.
JPEG_QUALITY = 75
#: Share of a blended copy that is the tile itself; the rest is another tile.
BLENDED_SHARE = 0.8
#: By how much a real tile is sheared so that it shows no part of any other, however that is turned or zoomed.
SHEAR = 0.8
#: Standard deviation of grey levels (of 255) below which an image shows nothing.
LEAST_CONTENT = 8.0


def apply_symmetry(images: np.ndarray, symmetry: int) -> np.ndarray:
    """Turns N×S×S×C images, of any type, by `symmetry` % 4 quarter turns, and mirrors them where it is 4 or more."""
    turned = np.rot90(images, symmetry % 4, axes=(1, 2))
    return turned[:, :, ::-1] if symmetry >= 4 else turned


def shift(images: np.ndarray, down: int, right: int) -> np.ndarray:
    """Moves images by whole pixels, fewer than the side; what comes in at the edge is the image's reflection."""
    pad = max(abs(down), abs(right))
    padded = np.pad(images, ((0, 0), (pad, pad), (pad, pad), (0, 0)), mode="reflect")
    height, width = images.shape[1:3]
    return padded[:, pad - down : pad - down + height, pad - right : pad - right + width]


def crop_and_resize(images: np.ndarray, side: int, corners: np.ndarray) -> np.ndarray:
    """Cuts `side`×`side` pixels out of each image at corners[i] = (top, left), and resizes them to the old size."""
    size = images.shape[1]
    parts = (image[top : top + side, left : left + side] for image, (top, left) in zip(images, corners, strict=True))
    return np.stack([np.asarray(Image.fromarray(x).resize((size, size), Image.Resampling.BICUBIC)) for x in parts])


def shear(images: np.ndarray, numbers: np.ndarray, amount: float = SHEAR) -> np.ndarray:
    """Shears images about their middle; what comes in at the edges is the image's reflection.

    Args:
        images: uint8 N×S×S×3.
        numbers: int64 N; rows are moved sideways where they are even, and columns downwards where they are odd.
        amount: Pixels by which a row, or column, is moved further than the one before it, from 0 to 1.
    """
    size = images.shape[1]
    pad = math.ceil(amount * size / 2) + 2  # and what the interpolation reads
    # From a place on the sheared image to that on the padded one, which lies where it did in the middle.
    middle = (size - 1) / 2
    sideways = (1, amount, pad - amount * (middle + 0.5), 0, 1, pad)
    downwards = (1, 0, pad, amount, 1, pad - amount * (middle + 0.5))
    padded = np.pad(images, ((0, 0), (pad, pad), (pad, pad), (0, 0)), mode="symmetric")
    return np.stack(
        [
            np.asarray(
                Image.fromarray(image).transform(
                    (size, size),
                    Image.Transform.AFFINE,
                    downwards if number % 2 else sideways,
                    Image.Resampling.BICUBIC,
                )
            )
            for image, number in zip(padded, numbers.tolist(), strict=True)
        ]
    )


def compress_jpeg(images: np.ndarray) -> np.ndarray:
    """What is left of images after JPEG compression at `JPEG_QUALITY`."""
    opened = []
    for image in images:
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, format="JPEG", quality=JPEG_QUALITY)
        opened.append(np.asarray(Image.open(buffer)))
    return np.stack(opened)


def blend(images: np.ndarray, others: np.ndarray, share: float = BLENDED_SHARE) -> np.ndarray:
    """So much of each image and the rest of another one, uint8."""
    return (share * images + (1 - share) * others).round().astype(np.uint8)


def has_content(images: Images) -> np.ndarray:
    """Which images show anything: N bool, False where grey levels vary by less than `LEAST_CONTENT`."""
    return contrasts_of(images) >= LEAST_CONTENT


def contrasts_of(images: Images) -> np.ndarray:
    """`grey_deviations` of all images, which are read in batches: float64 N."""
    return np.concatenate([np.empty(0), *map(grey_deviations, batches(images))])


def grey_deviations(images: np.ndarray) -> np.ndarray:
    """The standard deviation of the grey levels of N images: float64 N, the very same number in every symmetry."""
    grey = images[..., 0].astype(np.int64) + images[..., 1] + images[..., 2]
    sums, squares = grey.sum(axis=(1, 2)), np.square(grey).sum(axis=(1, 2))
    count = images.shape[1] * images.shape[2]
    return np.sqrt(count * squares - sums * sums) / (3 * count)  # whole numbers, until the root is taken


def resample(images: np.ndarray, size: int, scale: float = 1.0, down: float = 0.0, right: float = 0.0) -> np.ndarray:
    """A square window of each image as `size`×`size` pixels, each the mean over the area that it covers.

    Args:
        images: Real numbers N×S×S×C.
        size: Pixels along a side of the result.
        scale: Side of the window, as a share of that of the image.
        down, right: Its upper left corner, as shares of the side; beyond an edge the image is reflected.

    Returns:
        float32 N×size×size×C.
    """
    side = images.shape[1]
    if (size, scale, down, right) == (side, 1.0, 0.0, 0.0):
        return images.astype(np.float32)
    if (scale, down, right) == (1.0, 0.0, 0.0) and images.dtype == np.uint8 and side in (2 * size, 4 * size, 8 * size):
        return _halved(images.astype(np.float32), size)
    count, channels = len(images), images.shape[3]
    rows, columns = window_weights(side, size, scale, down, right)
    # Two plain matrix products take a fraction of the time of one `einsum`.
    halfway = rows @ images.astype(np.float32).reshape(count, side, side * channels)
    halfway = halfway.reshape(count, size, side, channels).transpose(0, 1, 3, 2) @ columns.T
    return np.ascontiguousarray(halfway.transpose(0, 1, 3, 2))


def _halved(images: np.ndarray, size: int) -> np.ndarray:
    """Images float32 N×S×S×C of whole numbers, halved until they have `size` pixels along a side.

    Means of whole numbers over 2×2 pixels are exact, so it is what weights give, in a fraction of the time.
    """
    while images.shape[1] > size:
        images = images[:, ::2] + images[:, 1::2]
        images = (images[:, :, ::2] + images[:, :, 1::2]) * np.float32(0.25)
    return images


def window_weights(side: int, size: int, scale: float, down: float, right: float) -> tuple[np.ndarray, np.ndarray]:
    """The window of `resample` as weights of rows and of columns: float32 size×side each."""
    return _averages(side, size, scale, down), _averages(side, size, scale, right)


def grey_pictures(images: np.ndarray, side: int) -> np.ndarray:
    """The grey levels of images, from 0 to 255, with `side` pixels along a side: float32 N×side×side."""
    return resample(images, side).mean(axis=3)


def all_grey_pictures(images: Images, side: int) -> np.ndarray:
    """`grey_pictures` of all images, which are read in batches: float16, which holds an eighth of a grey level."""
    pictures, start = np.empty((len(images), side, side), np.float16), 0
    for part in batches(images):
        pictures[start : start + len(part)] = grey_pictures(part, side)
        start += len(part)
    return pictures


def resize(pictures: np.ndarray, size: int) -> np.ndarray:
    """Pictures enlarged or reduced smoothly, by cubic interpolation over as many pixels as one of the result covers.

    Args:
        pictures: float32 N×S×S.
        size: Pixels along a side of the result.

    Returns:
        float32 N×size×size.
    """
    if size == pictures.shape[1]:
        return pictures
    weights = _cubic(pictures.shape[1], size)
    return weights @ (pictures @ weights.T)


@lru_cache(maxsize=64)
def _cubic(side: int, size: int) -> np.ndarray:
    """Weights float32 size×side of Keys' cubic (1981, a = −1/2), widened where the result has fewer pixels."""
    spread = max(1.0, side / size)
    centre = (np.arange(size)[:, None] + 0.5) * side / size - 0.5
    # Beyond an edge is its reflection.
    beyond = int(np.ceil(2 * spread)) + 1
    places = np.arange(-beyond, side + beyond)
    distance = np.abs(places - centre) / spread
    near = (1.5 * distance - 2.5) * distance**2 + 1
    far = ((-0.5 * distance + 2.5) * distance - 4) * distance + 2
    values = np.where(distance < 1, near, np.where(distance < 2, far, 0.0))
    inside = np.where(places < 0, -1 - places, np.where(places >= side, 2 * side - 1 - places, places))
    weights = np.zeros((size, side))
    np.add.at(weights.T, inside, values.T)
    return (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)


@lru_cache(maxsize=256)
def _averages(side: int, size: int, scale: float, start: float) -> np.ndarray:
    """Weights float32 size×side with which pixels of a window average those of the image, along one axis."""
    weights = np.zeros((size, side))
    for i in range(size):
        low = (start + scale * i / size) * side
        high = (start + scale * (i + 1) / size) * side
        for j in range(int(np.floor(low)), int(np.ceil(high))):
            inside = j if 0 <= j < side else (-1 - j if j < 0 else 2 * side - 1 - j)
            weights[i, inside] += min(high, j + 1) - max(low, j)
    return (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)
