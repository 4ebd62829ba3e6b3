"""What kind of file a picture is in, by its first bytes and not by its name, and what to say of one that is none."""

from __future__ import annotations

import string
from pathlib import Path


# How files of pictures begin, and what they are called. The first of them are read, see `FORMATS`.
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
#: Formats that are read, as Pillow calls them → as `kind_of_picture` does. Pillow tries no other decoder, so that none
#: of the rarely tested ones, nor Ghostscript, is ever run on a file.
FORMATS = {
    "PNG": "PNG",
    "JPEG": "JPEG",
    "TIFF": "TIFF",
    "BMP": "BMP",
    "WEBP": "WebP",
    "JPEG2000": "JPEG 2000",
    "PPM": "PPM",
}
#: Endings of the names of files that are taken for pictures, in any case of letters → the kind that they promise.
SUFFIXES = {
    ".png": "PNG", ".apng": "PNG",
    ".jpg": "JPEG", ".jpeg": "JPEG", ".jpe": "JPEG", ".jfif": "JPEG",
    ".tif": "TIFF", ".tiff": "TIFF",
    ".bmp": "BMP",
    ".webp": "WebP",
    ".jp2": "JPEG 2000", ".j2k": "JPEG 2000", ".jpc": "JPEG 2000", ".j2c": "JPEG 2000", ".jpf": "JPEG 2000",
    ".jpx": "JPEG 2000",
    ".ppm": "PPM", ".pnm": "PPM",
}  # fmt: skip
#: Endings of whole slides, which are not read as one picture even where their content could be.
SLIDE_SUFFIXES = (
    ".svs", ".svslide", ".ndpi", ".mrxs", ".scn", ".bif", ".vms", ".vmu", ".vsi", ".czi", ".zvi", ".qptiff",
    ".isyntax",
)  # fmt: skip
#: What to do with a slide, as part of a sentence.
SLIDE_REMEDY = "name places on slides in a manifest (columns slide, x, y, size and label)"
#: Bytes from the start of a file that `kind_of_picture` goes by.
SIGNATURE_BYTES = max(offset + len(signature) for offset, signature, _ in _SIGNATURES)

# A file that stands for content which was not fetched is text of at most so many bytes, and begins like this → what it
# is called, and what fetches it.
_PLACEHOLDER_BYTES = 1024
_GIT_LFS, _GIT_ANNEX = ("a Git LFS pointer", "git lfs pull"), ("a git-annex pointer", "git annex get")
_PLACEHOLDERS = (
    (b"version https://git-lfs", _GIT_LFS),
    (b"/annex/objects/", _GIT_ANNEX),
    (b".git/annex/objects/", _GIT_ANNEX),
    (b"../.git/annex/objects/", _GIT_ANNEX),
)
# How other files begin that come under a picture's name, and what to say of them.
_NO_PICTURES = (
    (b"PK\3\4", "a zip archive: unpack it"),
    (b"\x1f\x8b", "a gzip archive: unpack it"),
    (b"7z\xbc\xaf", "a 7z archive: unpack it"),
    (b"Rar!", "a rar archive: unpack it"),
    (b"\x89HDF", "HDF5: save each tile as PNG"),
    (b"\x93NUMPY", "an array of NumPy: save it as PNG"),
    (b"%PDF", "PDF: save it as PNG"),
    (b"%!PS", "PostScript: save it as PNG"),
)
_DICOM = "holds DICOM, which is not read: save each of its frames as PNG"
# The end of a message about a file that cannot be decoded.
DAMAGED = "it may be damaged; replace it or take it out"


def kind_of_picture(head: bytes) -> str | None:
    """What kind of picture a file holds, by its first bytes; None if it seems to hold none.

    Args:
        head: The first `SIGNATURE_BYTES` bytes of the file, or all of a shorter one.
    """
    kind = next((kind for at, signature, kind in _SIGNATURES if head[at : at + len(signature)] == signature), None)
    # Text may begin with the two letters of BMP; four bytes that are 0 in each BMP come later.
    return None if kind == "BMP" and head[6:10] != bytes(4) else kind


def placeholder(head: bytes, size: int) -> tuple[str, str] | None:
    """What stands in place of content that was not fetched, and the command that fetches it; None for all else.

    Args:
        head: The first bytes of the file, at least 32.
        size: Bytes that it has.
    """
    if size > _PLACEHOLDER_BYTES:
        return None
    return next((called for start, called in _PLACEHOLDERS if head.startswith(start)), None)


def is_slide(source: Path | bytes) -> bool:
    """Whether a file is called as whole slides are."""
    return isinstance(source, Path) and source.suffix.lower() in SLIDE_SUFFIXES


def promised_kind(source: Path | bytes) -> str | None:
    """The kind of picture that a file's name promises; None if it promises none that is read."""
    return SUFFIXES.get(source.suffix.lower()) if isinstance(source, Path) else None


def why_not_read(source: Path | bytes) -> str:
    """Why Pillow did not know a picture, and what to do, as the rest of a sentence that begins with its name.

    Args:
        source: The file or its bytes.

    Raises:
        OSError: If the file cannot be read.
    """
    if isinstance(source, bytes):
        head, size = source[:SIGNATURE_BYTES], len(source)
    else:
        with open(source, "rb") as stream:
            head, size = stream.read(SIGNATURE_BYTES), source.stat().st_size
    if not size:
        return "cannot be read as an image: it is empty; fetch or copy it again, or take it out"
    if pointer := placeholder(head, size):
        return f"cannot be read as an image: it is {pointer[0]}; fetch what it stands for with `{pointer[1]}`"
    kind = kind_of_picture(head)
    if kind == "DICOM":
        return _DICOM
    if kind in FORMATS.values():
        return f"cannot be read as a {kind} of RGB with 8 bits a channel: convert it, or replace it if it is damaged"
    if kind is not None:
        return f"holds an image of the kind {kind}, which is not read: save it as PNG"
    for start, what in _NO_PICTURES:
        if head.startswith(start):
            return f"cannot be read as an image: it holds {what}, or take it out"
    if head.lstrip()[:5].lower() in (b"<html", b"<!doc", b"<?xml"):
        return (
            "cannot be read as an image: it holds a page of HTML or XML, as a download that failed leaves it; fetch "
            "it again, or take it out"
        )
    if not head.translate(None, string.printable.encode()):
        return "cannot be read as an image: it holds text; fetch the picture again, or take it out"
    return f"cannot be read as an image: {DAMAGED}"
