"""Slides, as OpenSlide reads them: how large their pixels are, and the squares that tiles show."""

from __future__ import annotations

import math
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from PIL import Image

from histodistill.training.data.limits import check_picture
from histodistill.training.data.slide_places import Scale
from histodistill.training.running.errors import InputError, param, reason_of


# How many times as coarse as asked for a level may be, as those of scanners are not exactly powers of two.
_TOLERANCE = 1.01
# How many times a slide's own pixels may be enlarged: "40x" is 0.2277 to 0.2527 microns, as scanners go.
_MOST_ENLARGED = 1.15
# How much larger one side of a pixel may be than the other.
_MOST_OBLONG = 1.05
# Slides that are open at once, and the bytes of their decoded blocks that OpenSlide keeps for all of them.
_MOST_OPEN, _CACHE_BYTES = 32, 2**27
# How the message about a slide ends that cannot be read.
_DAMAGED = "it may be damaged; replace it, or take its lines out"


@dataclass(frozen=True)
class Region:
    """The square of a level that a tile is made of.

    Attributes:
        corner: x and y of its upper left corner in pixels of level 0.
        level: The level.
        side: Its side in pixels of the level, not always whole.
        is_inside: Whether all of it is on the slide.
    """

    corner: tuple[int, int]
    level: int
    side: float
    is_inside: bool


class Slide:
    """An open slide, which several threads may read from at once.

    Args:
        path: The file.
        cache: An `OpenSlideCache` that it shares with others, or None.

    Attributes:
        size: Width and height in pixels of level 0.
        downsamples: Of each level, pixels of level 0 along one of its pixels.

    Raises:
        InputError: If OpenSlide cannot open it.
    """

    def __init__(self, path: Path, cache: Any = None):
        openslide = import_openslide()
        self.path = path
        try:
            self._slide = openslide.OpenSlide(path)
            if cache is not None:
                self._slide.set_cache(cache)
            self.size: tuple[int, int] = self._slide.dimensions
            self.downsamples: tuple[float, ...] = self._slide.level_downsamples
            self._pixel = _microns(self._slide.properties)
        except openslide.OpenSlideUnsupportedFormatError as error:
            raise InputError(f"{path} is no slide that OpenSlide can open: {_DAMAGED}") from error
        except (openslide.OpenSlideError, OSError, ValueError) as error:
            raise InputError(f"{path} cannot be opened as a slide ({reason_of(error)}): {_DAMAGED}") from error

    def region(self, corner: Sequence[int], size: int, unit: Scale, scale: float, mpp: float | None = None) -> Region:
        """The square that a tile shows.

        Args:
            corner, size, unit, scale: Where it is, see `Places`.
            mpp: Microns along a pixel to which it is brought in place of what `scale` says: then the square keeps its
                centre, and grows or shrinks so that the tile has as many pixels as before.

        Raises:
            InputError: If the slide has no such level, does not say how large its pixels are, has coarser ones than
                asked for, or so few levels that the square would have too many pixels.
        """
        wanted = self._downsample(unit, scale)
        x, y = (float(value) for value in corner)
        if mpp is not None:
            before, wanted = wanted, self._downsample(Scale.MPP, mpp)
            x, y = (value + size * (before - wanted) / 2 for value in (x, y))
        if unit == Scale.LEVEL and mpp is None:
            level, side = int(scale), float(size)
        else:
            level = max(
                (each for each, found in enumerate(self.downsamples) if found <= wanted * _TOLERANCE),
                key=self.downsamples.__getitem__,
                default=0,
            )
            side = size * wanted / self.downsamples[level]
            # Nothing is resized for less than half a pixel in all.
            side = float(size) if abs(side - size) < 0.5 else side
        check_picture(f"what is read of {self.path} for a tile", math.ceil(side), math.ceil(side))
        covered = size * wanted
        is_inside = all(
            # To within one pixel of the tile: levels end where that is nearest to a whole number.
            first >= -wanted and first + covered <= length + wanted
            for first, length in zip((x, y), self.size, strict=True)
        )
        return Region((round(x), round(y)), level, side, is_inside)

    def _downsample(self, unit: Scale, scale: float) -> float:
        """Pixels of level 0 along a pixel of a tile."""
        if unit == Scale.DOWNSAMPLE:
            return scale
        if unit == Scale.LEVEL:
            if not 0 <= scale < len(self.downsamples):
                raise InputError(
                    f"{self.path} has no level {scale:g}: its last is {len(self.downsamples) - 1}; correct the level"
                )
            return self.downsamples[int(scale)]
        if self._pixel is None:
            raise InputError(
                f"{self.path} does not say how large its pixels are: give its places by level, without "
                f"{param('mpp')}, in a manifest of slides of one resolution"
            )
        narrow, wide = sorted(self._pixel)
        if wide > narrow * _MOST_OBLONG:
            raise InputError(
                f"{self.path} has pixels of {self._pixel[0]:g}x{self._pixel[1]:g} microns, which are no squares: give "
                "its places by level"
            )
        own = (narrow + wide) / 2
        if scale * _MOST_ENLARGED < own:
            raise InputError(
                f"{self.path} has {own:.4g} microns a pixel, and cannot be brought to {scale:g}, which is finer: ask "
                f"for {own:.4g} or more, or take its lines out"
            )
        return scale / own

    def read(self, region: Region, size: int) -> np.ndarray:
        """The pixels of a tile: what was not scanned is white; resized with Pillow's LANCZOS.

        Args:
            region: The square.
            size: Pixels along the side of the tile.

        Returns:
            uint8 size×size×3.

        Raises:
            OpenSlideError: If the slide is damaged there; then nothing more can be read from this object.
        """
        side = math.ceil(region.side)
        image = self._slide.read_region(region.corner, region.level, (side, side))
        if image.getchannel("A").getextrema() != (255, 255):
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        image = image.convert("RGB")
        if region.side != size:
            image = image.resize((size, size), Image.Resampling.LANCZOS, box=(0, 0, region.side, region.side))
        return np.asarray(image)


def _microns(properties: Mapping[str, str]) -> tuple[float, float] | None:
    """Width and height of a pixel in microns, where a slide says them."""
    try:
        found = float(properties["openslide.mpp-x"]), float(properties["openslide.mpp-y"])
    except (KeyError, ValueError):
        return None
    return found if all(0 < value < math.inf for value in found) else None


def import_openslide() -> ModuleType:
    """The library.

    Raises:
        InputError: If it, or the part of it that is no Python, is not installed.
    """
    try:
        import openslide
    except (ImportError, OSError) as error:
        raise InputError(
            "slides are read by OpenSlide, which is missing: pip install 'histodistill[slides]'"
        ) from error
    return openslide


def files_of_slide(slide: Path) -> list[Path]:
    """All files that a slide is made of, the one that names it first; those of a folder in alphabetical order."""
    suffix = slide.suffix.lower()
    if suffix == ".mrxs":
        others = slide.with_suffix("")
    elif suffix in (".dcm", ".vms", ".vmu"):
        others = slide.parent
    else:
        return [slide]
    return [slide, *(file for file in sorted(others.glob("*")) if file != slide and file.is_file())]


@dataclass
class _Slot:
    """A slide that was asked for, or why it cannot be opened."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    found: Slide | InputError | None = None


class OpenSlides:
    """Slides that stay open until others were used since.

    Args:
        paths: Their files, by number.
    """

    def __init__(self, paths: Sequence[Path]):
        self._paths = paths
        self._cache = import_openslide().OpenSlideCache(_CACHE_BYTES)
        self._lock = threading.Lock()
        self._slots: OrderedDict[int, _Slot] = OrderedDict()

    def get(self, number: int) -> Slide:
        """The slide with this number.

        Raises:
            InputError: If it cannot be opened.
        """
        with self._lock:
            slot = self._slots.setdefault(number, _Slot())
            self._slots.move_to_end(number)
            if len(self._slots) > _MOST_OPEN:  # it is closed once no thread reads from it any more
                self._slots.popitem(last=False)
        with slot.lock:
            if slot.found is None:
                try:
                    slot.found = Slide(self._paths[number], self._cache)
                except InputError as error:
                    slot.found = error
            if isinstance(slot.found, InputError):
                raise slot.found
            return slot.found

    def read(self, number: int, region: Region, size: int) -> np.ndarray:
        """As `Slide.read`.

        Raises:
            InputError: If the slide is damaged there.
        """
        openslide = import_openslide()
        slide = self.get(number)
        try:
            return slide.read(region, size)
        except openslide.OpenSlideError:
            # After one fault OpenSlide refuses all else of an object, and which other reading came after it is
            # chance: each tile is tried on a new one.
            with self._lock:
                slot = self._slots.get(number)
                if slot is not None and slot.found is slide:
                    del self._slots[number]
            try:
                return Slide(self._paths[number], self._cache).read(region, size)
            except openslide.OpenSlideError as error:
                raise InputError(
                    f"{self._paths[number]} cannot be read at {region.corner[0]}, {region.corner[1]} "
                    f"({reason_of(error)}): {_DAMAGED}"
                ) from error
