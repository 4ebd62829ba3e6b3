"""What an image processor of `transformers` does to tiles, in torch: whole batches, on the device of the model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self

import numpy as np
import torch
from torch.nn import functional as F

from histodistill.selection.streams import stream
from histodistill.training.running.errors import InputError


# Mean and standard deviation of the pixels of ImageNet, in [0, 1], which most models expect where nothing is said.
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
#: The side in pixels of what most models were trained on.
USUAL_SIDE = 224
# The numbers by which Pillow calls the filters that torch has, too.
_FILTERS = {0: "nearest-exact", 2: "bilinear", 3: "bicubic"}
# From this side on `ConvNextImageProcessor` does not crop.
_UNCROPPED = 384
# How far a value may be from the processor's: a level or two of 256, which Pillow rounds to, in units of 1.
_TOLERANCE = 2.5 / 255
# Sides in pixels of the noise that both are tried on: one to enlarge, and one to reduce.
_TRIED = (40, 600)


@dataclass(frozen=True)
class Preprocessing:
    """Resizes, crops and normalises tiles: all that the processors of vision models do to square pictures.

    Attributes:
        side: To which tiles are resized, in pixels; None leaves their size.
        crop: Side of the middle that is then cut out; None leaves all.
        filter: Of the resizing, as torch calls it; always with antialiasing.
        mean, std: What is subtracted, and divided by: of red, green and blue, in units in which a pixel is 0 to 1.

    Raises:
        InputError: For sides or a filter that there cannot be.
    """

    side: int | None = USUAL_SIDE
    crop: int | None = None
    filter: str = "bicubic"
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD

    def __post_init__(self) -> None:
        object.__setattr__(self, "mean", tuple(map(float, self.mean)))
        object.__setattr__(self, "std", tuple(map(float, self.std)))
        fits = (
            self.filter in _FILTERS.values()
            and all(side is None or 1 <= side <= 4096 for side in (self.side, self.crop))
            and len(self.mean) == len(self.std) == 3
            and all(map(math.isfinite, self.mean))
            and all(math.isfinite(value) and value > 0 for value in self.std)
        )
        if not fits:
            raise InputError(f"{self} is no way to prepare tiles: give the folder of a model that is not damaged")

    @classmethod
    def of(cls, processor: Any) -> Self:
        """What an image processor of `transformers` does.

        Raises:
            InputError: For one that does anything else; it is tried on noise.
        """
        name = type(processor).__name__
        found = cls.of_settings(processor, name)
        if not all(found._agrees_with(processor, side) for side in _TRIED):
            raise _unknown_processor(name)
        return found

    @classmethod
    def of_settings(cls, settings: Any, name: str = "an unknown processor") -> Self:
        """What a processor does by its attributes, such as `do_resize`, `size` and `image_mean`.

        Raises:
            InputError: For values that say no such thing.
        """
        try:
            return cls._read(settings)
        except (AttributeError, LookupError, TypeError, ValueError) as error:
            raise _unknown_processor(name) from error

    @classmethod
    def _read(cls, processor: Any) -> Self:
        side = crop = None
        if processor.do_resize:
            side = _side(processor.size)
            share = getattr(processor, "crop_pct", None)
            if share is not None and side < _UNCROPPED:
                side, crop = int(side / share), side
        if getattr(processor, "do_center_crop", None):
            crop = _side(processor.crop_size)
        # A processor that does not rescale normalises bytes.
        scale = processor.rescale_factor * 255 if processor.do_rescale else 255.0
        mean, std = (0.0,) * 3, (1.0,) * 3
        if processor.do_normalize:
            mean, std = processor.image_mean, processor.image_std
        filter = _FILTERS[int(processor.resample)] if side else cls.filter
        return cls(side, crop, filter, _scaled(mean, scale), _scaled(std, scale))

    def _agrees_with(self, processor: Any, side: int) -> bool:
        # Coarse noise as well as fine: a filter rings at the edges of the one, and averages the other.
        draw = stream("tile that a processor is tried on")
        coarse = draw.integers(0, 256, (side // 8, side // 8, 3), dtype=np.uint8).repeat(8, axis=0).repeat(8, axis=1)
        tile = coarse // 2 + draw.integers(0, 128, coarse.shape, dtype=np.uint8)
        theirs = torch.as_tensor(np.asarray(processor(images=tile, return_tensors="np")["pixel_values"]))
        ours = self(torch.from_numpy(tile).permute(2, 0, 1)[None] / 127.5 - 1)
        std = torch.tensor(self.std).view(3, 1, 1)
        return theirs.shape == ours.shape and bool(((theirs - ours) * std).abs().max() <= _TOLERANCE)

    @classmethod
    def from_data(cls, data: dict[str, Any]) -> Self:
        """What `to_data` gave. Raises InputError, or TypeError, for anything else."""
        return cls(**data)

    def to_data(self) -> dict[str, Any]:
        """All of it as JSON can hold it."""
        return asdict(self) | {"mean": list(self.mean), "std": list(self.std)}

    def __call__(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Prepares tiles.

        Args:
            pixel_values: float N×3×S×S in [-1, 1].

        Returns:
            float N×3×T×T, as the model expects them.
        """
        pixels = pixel_values * 0.5 + 0.5
        if self.side is not None and self.side != pixels.shape[-1]:
            pixels = self._resize(pixels, self.side)
        if self.crop is not None and self.crop != pixels.shape[-1]:
            pixels = _middle(pixels, self.crop)
        mean, std = (torch.tensor(values, device=pixels.device).view(3, 1, 1) for values in (self.mean, self.std))
        return (pixels - mean) / std

    def _resize(self, pixels: torch.Tensor, side: int) -> torch.Tensor:
        # Rows and then columns, as Pillow does it, which clips in between what is darker than black, or brighter than
        # white.
        antialias = {} if self.filter == "nearest-exact" else {"antialias": True}
        for size in ((pixels.shape[-2], side), (side, side)):
            pixels = F.interpolate(pixels, size=size, mode=self.filter, **antialias).clamp(0, 1)
        return pixels


def _middle(pixels: torch.Tensor, side: int) -> torch.Tensor:
    """The middle of pictures; smaller ones get a black edge."""
    missing = side - pixels.shape[-1]
    if missing > 0:
        before, after = missing // 2, missing - missing // 2
        return F.pad(pixels, (before, after, before, after))
    start = -missing // 2
    return pixels[..., start : start + side, start : start + side]


def _scaled(values: Sequence[float], scale: float) -> tuple[float, float, float]:
    red, green, blue = (value / scale for value in values)
    return red, green, blue


def _side(size: Any) -> int:
    """The side to which a processor brings square pictures."""
    sides = {size[name] for name in ("height", "width", "shortest_edge") if size.get(name)}
    (side,) = sides
    return int(side)


def _unknown_processor(name: str) -> InputError:
    return InputError(
        f"its tiles are prepared by {name}, which does more than resize, crop and normalise them: give another model"
    )
