"""One picture from its file to its pixels, with limits."""

from __future__ import annotations

import io
import threading
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
from PIL.ImageFile import ImageFile
from PIL.TiffImagePlugin import TiffImageFile

from histodistill.selection.summaries import counted
from histodistill.training.data.colour_forms import (
    CONVERSIONS,
    DecodingRules,
    FormError,
    as_rgb,
    check_asked,
    conversions_of,
)
from histodistill.training.data.limits import check_picture
from histodistill.training.data.picture_kinds import (
    DAMAGED,
    FORMATS,
    SLIDE_REMEDY,
    is_slide,
    promised_kind,
    why_not_read,
)
from histodistill.training.data.tiles import fit_tile
from histodistill.training.running.errors import InputError, one_line
from histodistill.training.running.notes import tell


# Orientations of EXIF that swap width and height.
_ON_ITS_SIDE = (5, 6, 7, 8)
# What is told of pictures that were decoded: kind → (one, several, what was done). Conversions have their rule.
_PAGES, _UNSAID, _OTHER_NAME = "pages", "unsaid", "other name"
_NOTES = {
    _PAGES: ("picture has more pages than one", "pictures have more pages than one", "the first is taken"),
    _OTHER_NAME: (
        "picture is of another kind than its name says",
        "pictures are of another kind than their names say",
        "read by content",
    ),
    _UNSAID: (
        "JPEG 2000 file does not say what its three channels are",
        "JPEG 2000 files do not say what their three channels are",
        "taken as RGB; look at the colours",
    ),
    **{name: ("picture is converted", "pictures are converted", rule) for name, rule in CONVERSIONS.items()},
}


@dataclass(frozen=True)
class Picture:
    """A picture that was decoded.

    Attributes:
        pixels: uint8 H×W×3.
        notes: What is to be told of it, for `Noted`.
    """

    pixels: np.ndarray
    notes: tuple[str, ...]


class Noted:
    """Counts what is to be told of many pictures, in a line for each kind."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._examples: dict[str, str] = {}

    def add(self, name: str, notes: Iterable[str]) -> None:
        """Takes the notes of a picture of this name."""
        for note in notes:
            self._counts[note] += 1
            self._examples.setdefault(note, name)

    def lines(self) -> list[str]:
        """What there is to tell."""
        return [
            f"{counted(self._counts[note], one, several)} (such as {one_line(self._examples[note])}): {what}"
            for note, (one, several, what) in _NOTES.items()
            if self._counts[note]
        ]

    def tell(self) -> None:
        """Tells it."""
        for line in self.lines():
            tell(line)


def decode_picture(name: str, source: Path | bytes, image_size: int | None, rules: DecodingRules) -> Picture:
    """Decodes one picture: PNG, JPEG, TIFF, BMP, WebP, JPEG 2000 or PPM, known by its content and not by its name.

    It is turned as its EXIF orientation says, as viewers and `datasets` show it. Of a TIFF with several pages the
    first is taken. A palette becomes its colours, and an alpha channel that is opaque everywhere is dropped. A colour
    profile (ICC) or gamma in it is not applied: pixels are taken as they are stored, so tiles of scanners with
    different profiles differ in colour as their files do.

    Args:
        name: What messages call it.
        source: The file or its bytes.
        image_size: Side in pixels that `fit_tile` brings it to; None leaves it as it is.
        rules: What is converted.

    Returns:
        Its pixels, uint8 H×W×3, and what is to be told of it.

    Raises:
        InputError: It cannot be read, has too many pixels, holds several pictures, is a whole slide, is transparent in
            parts, or is not RGB with 8 bits a channel and the rules do not make it so.
    """
    with _opened(name, source) as (image, stream):
        check_picture(name, *image.size)
        notes = _check_pages(name, image)
        try:
            needed = conversions_of(image, stream)
            check_asked(needed, rules)
            ImageOps.exif_transpose(image, in_place=True)
            upright = as_rgb(image, needed)
        except FormError as error:
            raise InputError(f"{name} {error}") from error
        kind = promised_kind(source)
        if kind is not None and kind != FORMATS.get(str(image.format)):
            notes = (*notes, _OTHER_NAME)
        pixels = np.asarray(fit_tile(upright, image_size, name) if image_size else upright)
        return Picture(pixels, (*notes, *needed) if needed else notes)


def mode_of(name: str, source: Path | bytes) -> str:
    """The colour mode of a picture, as Pillow calls it, by its header."""
    with _opened(name, source) as (image, _):
        return image.mode


def size_of(name: str, source: Path | bytes) -> tuple[int, int]:
    """Width and height of a picture in pixels, as viewers show it, by its header."""
    with _opened(name, source) as (image, _):
        # A PNG may have its orientation behind its pixels, and is not searched for it.
        orientation = image.getexif().get(ExifTags.Base.Orientation) if image.format != "PNG" else None
        return image.size[::-1] if orientation in _ON_ITS_SIDE else image.size


def _check_pages(name: str, image: ImageFile) -> tuple[str, ...]:
    """What is to be told of the pages of a picture: of a TIFF the first is the full image of a pyramid.

    Raises:
        InputError: If it holds several pictures in another way.
    """
    if isinstance(image, TiffImageFile):
        return (_PAGES,) if image.is_animated else ()
    pages = getattr(image, "n_frames", 1)
    if pages > 1:
        raise InputError(f"{name} holds {pages} pictures: a tile is one; save each in a file of its own")
    return ()


@contextmanager
def _opened(name: str, source: Path | bytes) -> Iterator[tuple[ImageFile, BinaryIO]]:
    """A picture whose header was read, and its file; what decoders raise becomes one sentence."""
    if is_slide(source):
        raise InputError(f"{name} is called like a whole slide, which is no tile: {SLIDE_REMEDY}")
    try:
        with (
            _own_limits(),
            io.BytesIO(source) if isinstance(source, bytes) else open(source, "rb") as stream,
            Image.open(stream, formats=tuple(FORMATS)) as image,
        ):
            yield image, stream
    except InputError:
        raise
    except UnidentifiedImageError as error:
        raise InputError(f"{name} {why_not_read(source)}") from error
    except OSError as error:
        reason = f" ({error.strerror})" if error.strerror else ""
        raise InputError(f"{name} cannot be read as an image{reason}: {DAMAGED}") from error
    except Exception as error:  # decoders raise errors of many kinds on damaged files
        raise InputError(f"{name} cannot be read as an image: {DAMAGED}") from error


class _OwnLimits:
    """Turns off Pillow's limit on pixels, since `check_picture` stands before each decoding, and its warnings.

    They are about metadata, or about the limit; whatever touches pixels is an error. Both hold for the whole process:
    the first thread that decodes turns them off, and the last turns them on again.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._threads = 0
        self._limit: int | None = None
        self._warnings = warnings.catch_warnings()

    @contextmanager
    def __call__(self) -> Iterator[None]:
        with self._lock:
            if not self._threads:
                self._warnings = warnings.catch_warnings()
                self._warnings.__enter__()
                warnings.filterwarnings("ignore", module=r"PIL\.")
                self._limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
            self._threads += 1
        try:
            yield
        finally:
            with self._lock:
                self._threads -= 1
                if not self._threads:
                    Image.MAX_IMAGE_PIXELS = self._limit
                    self._warnings.__exit__(None, None, None)


_own_limits = _OwnLimits()
