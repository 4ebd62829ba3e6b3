"""Images side by side, and images and figures as PNG files."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image

from histodistill.hub_cards.pictures import encode_png
from histodistill.training.data.pixels import to_uint8
from histodistill.training.running.files import write_bytes


if TYPE_CHECKING:
    from matplotlib.figure import Figure


def make_grid(images: np.ndarray, columns: int, scale: int = 1, gap: int = 2) -> Image.Image:
    """Lays out images in rows on white.

    Args:
        images: uint8 N×H×W×3.
        columns: Images in a row.
        scale: How many times each image is enlarged, without smoothing.
        gap: Pixels between two images.
    """
    if scale > 1:
        images = images.repeat(scale, axis=1).repeat(scale, axis=2)
    count, height, width, _ = images.shape
    rows = -(-count // columns)
    canvas = np.full((rows * (height + gap) - gap, columns * (width + gap) - gap, 3), 255, np.uint8)
    for i, image in enumerate(images):
        top, left = i // columns * (height + gap), i % columns * (width + gap)
        canvas[top : top + height, left : left + width] = image
    return Image.fromarray(canvas)


def save_grid(images: torch.Tensor, path: str | Path, columns: int, scale: int = 2) -> None:
    """Writes images as one PNG file.

    Args:
        images: float N×3×H×W in [-1, 1].
        path: The file.
        columns: Images in a row.
        scale: How many times each image is enlarged, without smoothing.
    """
    write_bytes(path, png_bytes(make_grid(to_uint8(images), columns, scale)))


def png_bytes(image: Image.Image) -> bytes:
    """The PNG file of an image in RGB, without metadata."""
    return encode_png(np.asarray(image.convert("RGB")))


def base64_png(pixels: np.ndarray, largest_side: int) -> str:
    """An image as a PNG file in base64, to be put into an HTML page.

    Args:
        pixels: uint8 H×W×3.
        largest_side: In pixels; an image with a longer side is shrunk to it.
    """
    image = Image.fromarray(pixels)
    if max(image.size) > largest_side:
        image.thumbnail((largest_side, largest_side), Image.Resampling.LANCZOS)
    return base64.b64encode(png_bytes(image)).decode()


def figure_png(figure: Figure, dpi: int = 130) -> bytes:
    """A matplotlib figure as a PNG file, the same bytes for the same figure."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi, metadata={"Software": None})
    return buffer.getvalue()
