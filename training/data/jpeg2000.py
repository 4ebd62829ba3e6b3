"""What the headers of a JPEG 2000 file say of its channels: Pillow does not tell how they are stored."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass


# How a codestream begins: markers SOC and SIZ.
_CODESTREAM = b"\xff\x4f\xff\x51"
# The numbers of colour spaces in a JP2 file. Pillow turns the YCbCr of sRGB, number 18, into RGB.
_COLOUR_SPACES = {16: "RGB", 18: "RGB", 17: "grey", 12: "CMYK"}


@dataclass(frozen=True)
class Channels:
    """How the channels of a JPEG 2000 picture are stored.

    Attributes:
        count: Number of channels.
        bits: Bits of each, where all are whole numbers without a sign and of full size; otherwise None.
        most_bits: Bits of the first.
        colours: "RGB", "grey", "CMYK", "unsaid" where nothing says it, or "other".
    """

    count: int
    bits: int | None
    most_bits: int
    colours: str


def channels_of(content: bytes) -> Channels:
    """Reads the header of the codestream and, in a JP2 file, of its colour space.

    Args:
        content: The file.

    Raises:
        ValueError, KeyError, struct.error: If it is damaged.
    """
    colours = "unsaid"
    if not content.startswith(_CODESTREAM):
        boxes = dict(_boxes(content))
        content = boxes[b"jp2c"]
        header = dict(_boxes(boxes[b"jp2h"]))
        colours = _colours(header.get(b"colr", b"")) if b"pclr" not in header else "other"
    if not content.startswith(_CODESTREAM):
        raise ValueError("no codestream")
    (count,) = struct.unpack_from(">H", content, 40)
    # Of each channel: bits less 1, with the upper bit where numbers have a sign; then its steps across and down.
    each = content[42 : 42 + 3 * count]
    if not count or len(each) < 3 * count:
        raise ValueError("no channels")
    alike = each == (each[:1] + b"\1\1") * count and each[0] < 0x80
    bits = (each[0] & 0x7F) + 1
    if count >= 3 and colours in ("unsaid", "other") and _turns_rgb(content, 42 + 3 * count):
        colours = "RGB"
    return Channels(count, bits if alike else None, bits, colours)


def _colours(colr: bytes) -> str:
    """What the box `colr` of a JP2 file says: a number, or a profile, which has the name of its space in it."""
    if colr[:1] == b"\1" and len(colr) >= 7:
        return _COLOUR_SPACES.get(int.from_bytes(colr[3:7], "big"), "other")
    if colr[:1] in (b"\2", b"\3"):
        return {b"RGB ": "RGB", b"GRAY": "grey", b"CMYK": "CMYK"}.get(colr[3 + 16 : 3 + 20], "other")
    return "other"


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


def _turns_rgb(codestream: bytes, start: int) -> bool:
    """Whether a codestream says, in its segment COD, that its first three channels were turned from RGB.

    Args:
        codestream: The codestream.
        start: Where the first segment after SIZ begins.
    """
    while True:
        marker, length = struct.unpack_from(">HH", codestream, start)
        if marker == 0xFF52:
            return codestream[start + 8] == 1
        start += 2 + length
