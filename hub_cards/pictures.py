"""The pictures of an image dataset: PNG files of 8-bit RGB pixels, and nothing else in them.

A PNG file has room for much that no viewer shows: text, dates, thumbnails, the low bytes of 16-bit pixels, rows below
the last one. So a picture is taken apart strictly, into pixels, and what is published is encoded anew from these.
"""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
from PIL import Image

from histodistill.hub_cards.errors import ContentError


#: The most pixels of one picture: 4096 x 4096.
MAX_PIXELS = 2**24

# The bytes that every PNG file begins with.
_BEGINNING = b"\x89PNG\r\n\x1a\n"
# What the header says after width and height: 8 bits, RGB, the only compression and filtering there are, no interlace.
_RGB_8_BIT = bytes([8, 2, 0, 0, 0])
_RULE = "it must be a PNG file of 8-bit RGB pixels and nothing else"


def decode_png(data: bytes) -> np.ndarray:
    """The pixels of a PNG file that holds nothing else.

    Args:
        data: The file: header, pixel data and end, each with the right checksum, and nothing between or after them. It
            is never unpacked to more than the pixels that its header says, which are at most `MAX_PIXELS`.

    Returns:
        uint8 H×W×3.

    Raises:
        ContentError: If it is no such file.
    """
    width, height, packed = _take_apart(data)
    if not 1 <= width * height <= MAX_PIXELS:
        raise ContentError(f"the image has {width}x{height} pixels: it may have 1 to {MAX_PIXELS:,}")
    # Each row is one byte for its filter and three for each pixel.
    size = height * (1 + 3 * width)
    unpacker = zlib.decompressobj()
    try:
        # One byte more than allowed tells a stream that goes on; its end must be reached, and be the end of the data.
        found = len(unpacker.decompress(packed, size + 1))
    except zlib.error as error:
        raise ContentError(f"the image cannot be unpacked ({error}): {_RULE}") from error
    if found != size or not unpacker.eof or unpacker.unused_data:
        raise ContentError(f"the image does not hold the pixels that its header says, or holds more: {_RULE}")
    try:
        with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
            return np.asarray(image)
    except (OSError, SyntaxError, ValueError) as error:  # such as a filter that there is not
        raise ContentError(f"the image cannot be decoded ({error}): {_RULE}") from error


def encode_png(image: np.ndarray) -> bytes:
    """The PNG file of an image: header, pixel data and end. The same pixels give the same bytes.

    Args:
        image: uint8 H×W×3.
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"an image must be uint8 H x W x 3 and is {image.dtype} of shape {image.shape}")
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def _take_apart(data: bytes) -> tuple[int, int, bytes]:
    """Width, height and packed rows of a PNG file that has no other parts. Raises ContentError for any other."""
    if not data.startswith(_BEGINNING):
        raise ContentError(f"the image is no PNG file: {_RULE}")
    place, kind, header, packed = len(_BEGINNING), b"", b"", []
    while kind != b"IEND":
        if place + 12 > len(data):
            raise ContentError(f"the image is cut off: {_RULE}")
        length, kind = struct.unpack_from(">I4s", data, place)
        body, checksum = data[place + 8 : place + 8 + length], data[place + 8 + length : place + 12 + length]
        if len(checksum) < 4 or struct.unpack(">I", checksum)[0] != zlib.crc32(body, zlib.crc32(kind)):
            raise ContentError(f"the image has a part with a wrong checksum, or is cut off: {_RULE}")
        if kind == b"IHDR" and not header and len(body) == 13:
            header = body
        elif kind == b"IDAT" and header:
            packed.append(body)
        elif kind != b"IEND" or not header or body:
            raise ContentError(f"the image has a part {kind.decode('ascii', 'replace')!r} that is not pixels: {_RULE}")
        place += 12 + length
    if place < len(data):
        raise ContentError(f"the image has something after its end: {_RULE}")
    if header[8:] != _RGB_8_BIT:
        raise ContentError(f"the image is of another kind (bits, colour type, …: {[*header[8:]]}): {_RULE}")
    width, height = struct.unpack(">II", header[:8])
    return width, height, b"".join(packed)
