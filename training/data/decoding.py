"""From the file of a picture to its pixels: the one place where pictures that users give are decoded.

Taken is what is known to be RGB with 8 bits a channel, one picture in a file; all else is refused by one sentence.
Pillow opens more than that, and shows less of it than is there: of 16 bits the upper 8, of several pages the first.
"""

from __future__ import annotations

import io
import os
import struct
import threading
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
from PIL.ImageFile import ImageFile
from PIL.TiffImagePlugin import TiffImageFile

from histodistill.training.data.limits import check_picture
from histodistill.training.data.pixel_source import LeftOut
from histodistill.training.data.tiles import fit_tile
from histodistill.training.running.errors import InputError


# Pictures that are decoded between two looks for a bad one.
_BATCH = 256
# Threads that decode pictures, at most.
_MOST_THREADS = 8
# Pillow's limit on pixels and Python's filters of warnings hold for the whole process: one thread at a time sets them.
_PILLOW = threading.RLock()

# How files of pictures begin, and what they are called. The first of them are read, see `_FORMATS`.
_SIGNATURES: tuple[tuple[int, bytes, str], ...] = (
    (0, b"\x89PNG\r\n\x1a\n", "PNG"),
    (0, b"\xff\xd8\xff", "JPEG"),
    (0, b"II*\0", "TIFF"),
    (0, b"MM\0*", "TIFF"),
    (0, b"II+\0", "TIFF"),
    (0, b"MM\0+", "TIFF"),
    (0, b"BM", "BMP"),
    (8, b"WEBPVP8", "WebP"),
    (0, b"\0\0\0\x0cjP  \r\n\x87\n", "JPEG 2000"),
    (0, b"\xff\x4f\xff\x51", "JPEG 2000"),
    (0, b"P6\n", "PPM"),
    (0, b"GIF8", "GIF"),
    (0, b"8BPS", "Photoshop"),
    (0, b"\xff\x0a", "JPEG XL"),
    (0, b"\0\0\0\x0cJXL \r\n\x87\n", "JPEG XL"),
    (0, b"v/1\x01", "OpenEXR"),
    (0, b"ZISRAWFILE", "CZI"),
    (0, b"II\xbc", "JPEG XR"),
    (4, b"ftypavi", "AVIF"),
    (4, b"ftyphei", "HEIF"),
    (4, b"ftyphev", "HEIF"),
    (4, b"ftypmif", "HEIF"),
    (128, b"DICM", "DICOM"),
)
# How a JPEG 2000 codestream begins: markers SOC and SIZ.
_CODESTREAM = b"\xff\x4f\xff\x51"
# Formats that are read, as Pillow calls them → as `_SIGNATURES` does. Pillow tries no other decoder, so that none of
# the rarely tested ones, nor Ghostscript, is ever run on a file.
_FORMATS = {
    "PNG": "PNG",
    "JPEG": "JPEG",
    "TIFF": "TIFF",
    "BMP": "BMP",
    "WEBP": "WebP",
    "JPEG2000": "JPEG 2000",
    "PPM": "PPM",
}
# Colour modes of 8 bits that Pillow turns into RGB as viewers show them.
_CONVERTED = ("1", "L", "P", "RGBA", "CMYK", "YCbCr")
# Orientations of EXIF that swap width and height.
_ON_ITS_SIDE = (5, 6, 7, 8)
# The end of a message about a file that cannot be decoded.
_DAMAGED = "it may be damaged; replace it or take it out"
#: Bytes from the start of a file that `kind_of_picture` goes by.
SIGNATURE_BYTES = max(offset + len(signature) for offset, signature, _ in _SIGNATURES)


def kind_of_picture(head: bytes) -> str | None:
    """What kind of picture a file holds, by its first bytes; None if it seems to hold none.

    Args:
        head: The first `SIGNATURE_BYTES` bytes of the file, or all of a shorter one.
    """
    kind = next((kind for at, signature, kind in _SIGNATURES if head[at : at + len(signature)] == signature), None)
    # Text may begin with the two letters of BMP; four bytes that are 0 in each BMP come later.
    return None if kind == "BMP" and head[6:10] != bytes(4) else kind


def decode_image(name: str, source: Path | bytes, image_size: int | None = None) -> np.ndarray:
    """Decodes one picture: PNG, JPEG, TIFF, BMP, WebP, JPEG 2000 or PPM, known by its content and not by its name.

    It is turned as its EXIF orientation says, as viewers and `datasets` show it. A colour profile (ICC) or gamma in
    it is not applied: pixels are taken as they are stored, so tiles of scanners with different profiles differ in
    colour as their files do.

    Args:
        name: What messages call it.
        source: The file or its bytes.
        image_size: Side in pixels that `fit_tile` brings it to; by default it stays as it is.

    Returns:
        uint8 H×W×3.

    Raises:
        InputError: It cannot be read, has too many pixels, holds several pictures, or is not RGB with 8 bits a
            channel.
    """
    with _own_limits():
        return _decode(name, source, image_size)


#: A picture to decode: what messages call it, and its file or bytes.
Entry = tuple[str, Path | bytes]


def decode_stream(
    batches: Iterable[Sequence[Entry]], image_size: int | None = None
) -> Iterator[list[np.ndarray | LeftOut]]:
    """Decodes pictures in several threads, as `decode_image` does each.

    Args:
        batches: The pictures, in batches of any number, of which a few are asked for in advance.
        image_size: Side in pixels; by default pictures stay as they are.

    Yields:
        For each batch its pictures, uint8 H×W×3, with a `LeftOut` in place of one that cannot be used.
    """

    def decode(entry: Entry) -> np.ndarray | LeftOut:
        try:
            return _decode(entry[0], entry[1], image_size)
        except InputError as error:
            return LeftOut("unreadable", error)

    with _own_limits(), ThreadPoolExecutor(min(_MOST_THREADS, os.cpu_count() or 1)) as pool:
        for batch in batches:
            yield list(pool.map(decode, batch))


def count_sizes(entries: Iterable[Entry]) -> Counter[tuple[int, int]]:
    """How many pictures there are of each size, by their headers: nothing is decoded.

    Args:
        entries: The pictures.

    Returns:
        Width and height in pixels, as viewers show it → pictures.

    Raises:
        InputError: Naming the first that cannot be read.
    """
    with _own_limits():
        return Counter(_size(name, source) for name, source in entries)


def count_modes(entries: Iterable[Entry]) -> Counter[str]:
    """How many pictures there are of each colour mode, as Pillow calls it, by their headers: `{"RGB": 98, "L": 2}`.

    Args:
        entries: The pictures.

    Raises:
        InputError: Naming the first that cannot be read.
    """
    with _own_limits():
        return Counter(_mode(name, source) for name, source in entries)


def _mode(name: str, source: Path | bytes) -> str:
    """The colour mode of a picture, within `_own_limits`."""
    with _opened(name, source) as (image, _):
        return image.mode


def _size(name: str, source: Path | bytes) -> tuple[int, int]:
    """Width and height of a picture, within `_own_limits`."""
    with _opened(name, source) as (image, _):
        # A PNG may have its orientation behind its pixels, and is not searched for it.
        orientation = image.getexif().get(ExifTags.Base.Orientation) if image.format != "PNG" else None
        return image.size[::-1] if orientation in _ON_ITS_SIDE else image.size


@contextmanager
def _own_limits() -> Iterator[None]:
    """Turns off Pillow's limit on pixels, since `check_picture` stands before each decoding, and its warnings.

    They are about metadata, or about the limit; whatever touches pixels is an error.
    """
    with _PILLOW, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = limit


def _decode(name: str, source: Path | bytes, image_size: int | None) -> np.ndarray:
    """`decode_image`, within `_own_limits`."""
    with _opened(name, source) as (image, stream):
        check_picture(name, *image.size)
        pages = getattr(image, "n_frames", 1)
        if pages > 1:
            raise InputError(f"{name} holds {pages} pictures: a tile is one; save each in a file of its own")
        fault = _fault(image, stream)
        if fault:
            how = ", as with Pillow's image.convert('RGB')," if image.mode in _CONVERTED else ""
            raise InputError(
                f"{name} has {fault}: tiles must be RGB with 8 bits a channel; convert it{how} or take it out if "
                "it is no tile"
            )
        upright = ImageOps.exif_transpose(image)
        return np.asarray(fit_tile(upright, image_size, name) if image_size else upright)


@contextmanager
def _opened(name: str, source: Path | bytes) -> Iterator[tuple[ImageFile, BinaryIO]]:
    """A picture whose header was read, and its bytes; what decoders raise becomes one sentence."""
    try:
        with (
            io.BytesIO(source) if isinstance(source, bytes) else open(source, "rb") as stream,
            Image.open(stream, formats=tuple(_FORMATS)) as image,
        ):
            yield image, stream
    except InputError:
        raise
    except UnidentifiedImageError as error:
        raise InputError(f"{name} {_not_known(source)}") from error
    except OSError as error:
        reason = f" ({error.strerror})" if error.strerror else ""
        raise InputError(f"{name} cannot be read as an image{reason}: {_DAMAGED}") from error
    except Exception as error:  # decoders raise errors of many kinds on damaged files
        raise InputError(f"{name} cannot be read as an image: {_DAMAGED}") from error


def _not_known(source: Path | bytes) -> str:
    """Why Pillow did not know a picture, as the rest of a sentence that begins with its name."""
    if isinstance(source, bytes):
        head = source[:SIGNATURE_BYTES]
    else:
        with open(source, "rb") as stream:
            head = stream.read(SIGNATURE_BYTES)
    kind = kind_of_picture(head)
    if kind is None:
        return f"cannot be read as an image: {_DAMAGED}"
    if kind in _FORMATS.values():
        return f"cannot be read as a {kind} of RGB with 8 bits a channel: convert it, or replace it if it is damaged"
    return f"holds an image of the kind {kind}, which is not read: save it as PNG"


def _fault(image: ImageFile, stream: BinaryIO) -> str | None:
    """What keeps a picture that was opened, but not decoded, from being RGB with 8 bits a channel; None if it is."""
    if image.mode != "RGB":
        return f"the colour mode {image.mode}"
    if "transparency" in image.info:
        return "a colour that stands for transparency"
    if isinstance(image, TiffImageFile):
        return _tiff_fault(image)
    if image.format == "JPEG2000":
        return _jpeg2000_fault(stream)
    if image.format == "WEBP":  # has no other form
        return None
    codec, _, offset, arguments = image.tile[0]
    stored = arguments if isinstance(arguments, str) else (arguments or ("",))[0]
    if image.format == "PPM":
        if codec != "raw":  # Pillow scales the values by itself
            return "another greatest value than 255, or its values as text"
        if stream.seek(0, io.SEEK_END) > offset + 3 * image.width * image.height:
            return "more in it than one picture"
    # What a channel is stored as: BMP has blue first.
    if stored == ("BGR" if image.format == "BMP" else "RGB"):
        return None
    return "16 bits a channel" if "16B" in stored else f"its pixels in the form {stored}"


def _tiff_fault(image: TiffImageFile) -> str | None:
    """`_fault` of a TIFF, by its tags."""
    tags = image.tag_v2
    bits, samples = tags.get(258, (1,)), tags.get(277, 1)
    if set(bits) != {8}:
        return f"{max(bits)} bits a channel"
    if samples != 3 or 338 in tags:
        return f"{samples} channels"
    if tags.get(262) not in (2, 6):  # RGB, or YCbCr, as which JPEG stores it
        return "another colour space"
    return "numbers that are not whole" if set(tags.get(339, (1,))) != {1} else None


def _jpeg2000_fault(stream: BinaryIO) -> str | None:
    """`_fault` of a JPEG 2000 file, by the header of its codestream and, in a JP2 file, its colour space."""
    stream.seek(0)
    content = stream.read()
    colour_space = b""
    if not content.startswith(_CODESTREAM):
        boxes = dict(_boxes(content))
        content = boxes[b"jp2c"]
        colour_space = next((colr for kind, colr in _boxes(boxes[b"jp2h"]) if kind == b"colr"), b"")
    if not content.startswith(_CODESTREAM):
        raise ValueError("no codestream")
    # Of each channel: bits less 1, with the upper bit where numbers have a sign; then its steps across and down.
    channels = content[42:51]
    if content[40:42] != b"\0\x03" or channels != b"\x07\x01\x01" * 3:
        bits = (channels[0] & 0x7F) + 1
        return f"{bits} bits a channel" if bits != 8 else "channels that are not stored alike"
    # Three channels are RGB where the colour space is sRGB, or where the codestream turns them into YCbCr by itself.
    # Else they may be YCbCr, as in some files of slide scanners, and would be shown in wrong colours.
    if colour_space[:1] + colour_space[3:7] == b"\x01\0\0\0\x10" or _turns_rgb(content):
        return None
    return "three channels that it does not call RGB"


def _boxes(content: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Kind and content of each box in those of a JP2 file."""
    start = 0
    while start < len(content):
        length, kind = struct.unpack_from(">I4s", content, start)
        header = 8
        if length == 1:
            header, length = 16, struct.unpack_from(">Q", content, start + 8)[0]
        end = start + length if length else len(content)
        if end < start + header:
            raise ValueError("a box that is shorter than its header")
        yield kind, content[start + header : end]
        start = end


def _turns_rgb(codestream: bytes) -> bool:
    """Whether a JPEG 2000 codestream says, in its segment COD, that its first three channels were turned from RGB."""
    start = 51  # after SIZ of three channels
    while True:
        marker, length = struct.unpack_from(">HH", codestream, start)
        if marker == 0xFF52:
            return codestream[start + 8] == 1
        start += 2 + length
