"""The augmentation of InfoDist's protocol: color_crop_cutout_flip_scale_rotate of DSA.

Differentiable siamese augmentation (Zhao and Bilen, ICML 2021, arXiv:2102.08259), with the strengths that its authors
published. Of the six changes one is drawn for a batch, and each image gets numbers of its own.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch.nn import functional as F

from histodistill.training.data.pixels import to_device


# The brightness is raised by −1/2 to 1/2, the saturation times 0 to 2, the contrast times 1/2 to 3/2.
_BRIGHTNESS, _SATURATION, _CONTRAST = 1.0, 2.0, 0.5
# An image moves by so much of its side, and a square of so much of it is left out.
_CROP, _CUTOUT = 0.125, 0.5
# Sides become so many times as long or as short, at most, and an image turns by so many degrees.
_SCALE, _ANGLE = 1.2, 15.0


def augment(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Changes a batch of images in one of the six ways, drawn at random.

    What comes in from outside, and what is cut out, is 0: grey.

    Args:
        images: float N×3×S×S in [-1, 1], on any device.
        generator: A CPU generator.

    Returns:
        A tensor of the same shape and type; colours may leave the range.
    """
    change = CHANGES[int(torch.randint(len(CHANGES), (), generator=generator))]
    return change(images, generator)


def _uniform(images: torch.Tensor, generator: torch.Generator, low: float, high: float) -> torch.Tensor:
    """A number for each image, on the device of the images: float N×1×1×1."""
    drawn = low + (high - low) * torch.rand(len(images), 1, 1, 1, generator=generator)
    return to_device(drawn, images.device)


def change_colours(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Changes brightness, saturation and contrast, in this order."""
    images = images + _uniform(images, generator, -_BRIGHTNESS / 2, _BRIGHTNESS / 2)
    grey = images.mean(dim=1, keepdim=True)
    images = grey + (images - grey) * _uniform(images, generator, 0, _SATURATION)
    mean = images.mean(dim=(1, 2, 3), keepdim=True)
    return mean + (images - mean) * _uniform(images, generator, 1 - _CONTRAST, 1 + _CONTRAST)


def crop(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Moves each image by up to an eighth of its side along each axis."""
    side = images.shape[-1]
    most = round(side * _CROP)
    first = to_device(torch.randint(0, 2 * most + 1, (len(images), 2), generator=generator), images.device)
    place = torch.arange(side, device=images.device)
    rows, columns = first[:, :1] + place, first[:, 1:] + place
    each = torch.arange(len(images), device=images.device)[:, None, None]
    padded = F.pad(images, [most] * 4)
    # Indexing around the channel axis puts that axis last.
    return padded[each, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2).contiguous()


def cut_out(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Blanks a square of half the side, whose centre lies anywhere, and which may reach beyond the edge."""
    side = images.shape[-1]
    length = round(side * _CUTOUT)
    centre = torch.randint(0, side + 1, (len(images), 2, 1), generator=generator)
    first = to_device(centre - length // 2, images.device)
    place = torch.arange(side, device=images.device)
    inside = (place >= first) & (place < first + length)
    return images * ~(inside[:, 0, :, None] & inside[:, 1, None, :])[:, None]


def flip(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Mirrors each image left to right, or not."""
    return torch.where(_uniform(images, generator, 0, 1) < 0.5, images.flip(3), images)


def scale(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Stretches or shrinks each image along each axis by itself."""
    factors = [_uniform(images, generator, 1 / _SCALE, _SCALE).flatten() for _ in range(2)]
    nothing = torch.zeros_like(factors[0])
    return _mapped(images, [[factors[0], nothing], [nothing, factors[1]]])


def rotate(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Turns each image about its centre."""
    angles = _uniform(images, generator, -_ANGLE, _ANGLE).flatten() * (math.pi / 180)
    return _mapped(images, [[angles.cos(), -angles.sin()], [angles.sin(), angles.cos()]])


def _mapped(images: torch.Tensor, matrix: list[list[torch.Tensor]]) -> torch.Tensor:
    """Images whose point p shows what was at matrix·p, from the centre; a 2×2 matrix of N numbers each."""
    rows = [torch.stack([*row, torch.zeros_like(row[0])], dim=1) for row in matrix]
    grid = F.affine_grid(torch.stack(rows, dim=1).to(images.dtype), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, align_corners=False)


#: The six changes, in the order of the strategy's name.
CHANGES: tuple[Callable[[torch.Tensor, torch.Generator], torch.Tensor], ...] = (
    change_colours,
    crop,
    cut_out,
    flip,
    scale,
    rotate,
)
