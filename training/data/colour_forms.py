"""How a picture stores its colours, and how it becomes RGB with 8 bits a channel.

Taken as it is, is what is RGB of 8 bits without any loss: also a palette, and an alpha channel that is opaque
everywhere. Greys, 16 bits and CMYK are converted where the user asks for it, by a rule that is told. All else is
refused. Pillow opens more, and shows less of it than is there: of 16 bits the upper 8, of five channels three.
"""

from __future__ import annotations

import io
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
from PIL import Image
from PIL.ImageFile import ImageFile
from PIL.TiffImagePlugin import TiffImageFile

from histodistill.training.data.jpeg2000 import channels_of
from histodistill.training.running.errors import InputError, param


#: Conversions that are made only if asked for → their rule, as it is told.
CONVERSIONS = {
    "grey": "the one channel of grey becomes red, green and blue alike",
    "16bit": "of each channel's 16 bits the upper 8 are kept, so that 0 to 65,535 becomes 0 to 255",
    "cmyk": "red is (255 - cyan) x (255 - black) / 255, green and blue alike, without a colour profile",
}
# What needs each of them.
_NEEDS = {"grey": "grey, of one channel", "16bit": "16 bits a channel", "cmyk": "CMYK"}
# Colour modes of Pillow that are grey, and that are colours, with alpha or without.
_GREY, _RGB = ("1", "L", "LA", "I;16", "I;16B", "I;16L"), ("RGB", "RGBA", "P", "PA")
# Modes of a TIFF → its samples, and what its tag 262 may say of them.
_TIFF_FORMS: dict[str, tuple[int, tuple[int, ...]]] = {
    "1": (1, (0, 1)),
    "L": (1, (0, 1)),
    "LA": (2, (0, 1)),
    "I;16": (1, (0, 1)),
    "I;16B": (1, (0, 1)),
    "P": (1, (3,)),
    "PA": (2, (3,)),
    "RGB": (3, (2, 6)),  # RGB, or YCbCr, as which JPEG stores it
    "RGBA": (4, (2,)),
    "CMYK": (4, (5,)),
}
# How pixels of a mode may be stored, as Pillow calls it, in PNG, JPEG, BMP and PPM. A fourth byte X means nothing.
_STORED = {
    "RGB": ("RGB", "BGR", "BGRX", "XBGR", "RGB;16B"),
    "RGBA": ("RGBA", "BGRA", "ABGR", "RGBA;16B", "LA;16B"),
    "CMYK": ("CMYK", "CMYK;I"),
}
# 16 bits whose brightest channel is below this, of 255, hold no more than 14 bits, and would become nearly black.
_DARKEST = 64


class FormError(Exception):
    """A picture's colours cannot be used; what is said of it, as the rest of a sentence that begins with its name."""


@dataclass(frozen=True)
class DecodingRules:
    """What is done to pictures that are not RGB with 8 bits a channel.

    Attributes:
        convert: The conversions that the user asks for, of `CONVERSIONS`; kept in their order there, each once.

    Raises:
        InputError: An unknown one.
    """

    convert: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in self.convert:
            if name not in CONVERSIONS:
                raise InputError(
                    f"{param('convert')}={name} is unknown: it must be one of {', '.join(CONVERSIONS)}, or several"
                )
        object.__setattr__(self, "convert", tuple(name for name in CONVERSIONS if name in self.convert))

    def json(self) -> dict[str, Any]:
        """All that decides what pixels become, as JSON can hold it."""
        return {"convert": list(self.convert)}


#: What is done where nothing was said.
NO_RULES = DecodingRules()


def conversions_of(image: ImageFile, stream: BinaryIO) -> set[str]:
    """What must be done to a picture that was opened, but not decoded, before it is RGB with 8 bits a channel.

    Args:
        image: The picture.
        stream: The file that it is in.

    Returns:
        Some of `CONVERSIONS`; "unsaid", where nothing says that three channels are RGB.

    Raises:
        FormError: If it cannot be used.
    """
    if image.mode == "CMYK":
        needed = {"cmyk"}
    elif image.mode in (*_GREY, *_RGB):
        needed = {"grey"} if image.mode in _GREY else set()
    else:
        raise _refused(f"has the colour mode {image.mode}")
    if isinstance(image, TiffImageFile):
        needed |= _of_tiff(image)
    elif image.format == "JPEG2000":
        needed |= _of_jpeg2000(image, stream)
    elif image.format != "WEBP":  # which has no other form
        needed |= _of_raw(image, stream)
    if "16bit" in needed and "transparency" in image.info:
        raise _refused("has 16 bits a channel and a colour that stands for transparency")
    return needed


def check_asked(needed: Collection[str], rules: DecodingRules) -> None:
    """Sees that all conversions that a picture needs were asked for.

    Raises:
        FormError: Naming those that were not.
    """
    missing = [name for name in CONVERSIONS if name in needed and name not in rules.convert]
    if missing:
        raise FormError(
            f"is {' and of '.join(_NEEDS[name] for name in missing)}: tiles must be RGB with 8 bits a channel; give "
            f"{param('convert')} with {' and '.join(missing)} ("
            f"{'; '.join(CONVERSIONS[name] for name in missing)}), or take it out if it is no tile"
        )


def as_rgb(image: Image.Image, needed: Collection[str]) -> Image.Image:
    """A decoded picture as RGB with 8 bits a channel.

    Args:
        image: The picture.
        needed: What `conversions_of` said of it.

    Raises:
        FormError: If parts of it are transparent, or its 16 bits hold fewer.
    """
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        if np.asarray(image.getchannel("A")).min() < 255:
            raise FormError(
                "is transparent in parts: a tile has no ground to shine through; put it on one, as with Pillow's "
                "Image.alpha_composite, or take it out if it is no tile"
            )
    if image.mode != "RGB":
        image = image.convert("RGB")
    if "16bit" in needed:
        brightest = int(np.asarray(image).max())
        if brightest < _DARKEST:
            raise FormError(
                f"has 16 bits a channel and no value above {256 * brightest + 255:,}, so that it seems to hold fewer "
                "bits and would become nearly black: bring its values to 0 to 255 and save it with 8 bits, or take it "
                "out if it is no tile"
            )
    return image


def _refused(fault: str) -> FormError:
    return FormError(f"{fault}: tiles must be RGB with 8 bits a channel; convert it, or take it out if it is no tile")


def _bits(bits: int) -> set[str]:
    """What a picture needs whose channels have so many bits."""
    if bits not in (8, 16):
        raise _refused(f"has {bits} bits a channel")
    return {"16bit"} if bits == 16 else set()


def _of_tiff(image: TiffImageFile) -> set[str]:
    """What a TIFF needs, by its tags."""
    tags = image.tag_v2
    bits, samples = set(tags.get(258, (1,))), tags.get(277, 1)
    if image.is_animated and image.mode in _GREY:
        raise _refused("holds several pages of grey, as microscopes store the channels or planes of one picture")
    if tags.get(254, 0) & 1:
        raise _refused("has a smaller copy of another page as its first page")
    if len(bits) > 1:
        raise _refused("has channels that are not stored alike")
    # Greys and palettes may have fewer bits, which Pillow brings to 8 without loss.
    needed = set() if image.mode in ("1", "L", "P") and max(bits) < 8 else _bits(max(bits))
    if needed and tags.get(284, 1) != 1:  # Pillow takes their low bytes for pixels
        raise _refused("has 16 bits a channel, and each channel apart")
    expected, spaces = _TIFF_FORMS.get(image.mode, (0, ()))
    if samples != expected or (338 in tags and image.mode not in ("LA", "PA", "RGBA")):
        raise _refused(f"has {samples} channels")
    if tags.get(262, 0 if image.mode in _GREY else None) not in spaces:
        raise _refused("has another colour space")
    if set(tags.get(339, (1,))) != {1}:
        raise _refused("has numbers that are not whole, or have a sign")
    return needed


def _of_jpeg2000(image: ImageFile, stream: BinaryIO) -> set[str]:
    """What a JPEG 2000 file needs, by its headers."""
    stream.seek(0)
    channels = channels_of(stream.read())
    if channels.bits is None:
        raise _refused("has channels that are not stored alike")
    needed = _bits(channels.bits)
    if channels.count in (1, 2) and channels.colours in ("grey", "unsaid"):
        return needed
    if channels.count == 4 and channels.colours == "CMYK" and image.mode == "CMYK":
        return needed
    if channels.count not in (3, 4) or channels.colours not in ("RGB", "unsaid") or image.mode not in _RGB:
        # They may be YCbCr, as in some files of slide scanners, and would be shown in wrong colours.
        raise _refused(f"has {channels.count} channels that it does not call RGB")
    # Viewers show a bare codestream that says nothing as RGB.
    return needed | ({"unsaid"} if channels.colours == "unsaid" else set())


def _of_raw(image: ImageFile, stream: BinaryIO) -> set[str]:
    """What a PNG, JPEG, BMP or PPM needs, by how Pillow will read it."""
    codec, _, offset, arguments = image.tile[0]
    stored = arguments if isinstance(arguments, str) else str(next(iter(arguments or ("",))))
    if image.format == "PPM":
        if codec != "raw":  # Pillow scales the values by itself
            raise _refused("has another greatest value than 255, or its values as text")
        if stream.seek(0, io.SEEK_END) > offset + len(image.getbands()) * image.width * image.height:
            raise _refused("has more in it than one picture")
    if stored not in _STORED.get(image.mode, (stored,)):
        raise _refused(f"has its pixels in the form {stored}")
    needed = {"16bit"} if "16B" in stored else set()
    return needed | ({"grey"} if stored.startswith("LA") else set())
