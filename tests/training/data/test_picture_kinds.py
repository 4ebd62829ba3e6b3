"""What is said of files that hold no picture that is read, whatever they are called."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import pytest
from small_pictures import PIXELS, encoded, refused


def written(tmp_path: Path, content: bytes, name: str = "tile.png") -> Path:
    path = tmp_path / name
    path.write_bytes(content)
    return path


def archive() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr("tile.png", encoded(PIXELS, "PNG"))
    return buffer.getvalue()


NO_PICTURES = {
    "empty": (b"", "it is empty; fetch or copy it again"),
    "git lfs": (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:c957d4f9\nsize 652\n",
        "it is a Git LFS pointer; fetch what it stands for with `git lfs pull`",
    ),
    "git-annex": (
        b"/annex/objects/SHA256E-s3--abc.png\n",
        "it is a git-annex pointer; fetch what it stands for with `git annex get`",
    ),
    "html": (b"<!DOCTYPE html>\n<html><h1>403 Forbidden</h1></html>", "it holds a page of HTML or XML, as a download"),
    "svg": (b'<?xml version="1.0"?><svg/>', "it holds a page of HTML or XML"),
    "text": (b"not an image", "it holds text; fetch the picture again"),
    "zip": (archive(), "it holds a zip archive: unpack it"),
    "gzip": (b"\x1f\x8b\x08\0" + bytes(30), "it holds a gzip archive: unpack it"),
    "hdf5": (b"\x89HDF\r\n\x1a\n" + bytes(90), "it holds HDF5: save each tile as PNG"),
    "pdf": (encoded(PIXELS, "PDF"), "it holds PDF: save it as PNG"),
    "postscript": (encoded(PIXELS, "EPS"), "it holds PostScript: save it as PNG"),
    "zeros": (bytes(500), "it may be damaged; replace it or take it out"),
}


@pytest.mark.parametrize("kind", NO_PICTURES)
def test_what_is_no_picture_has_its_own_sentence(tmp_path, kind):
    content, expected = NO_PICTURES[kind]
    path = written(tmp_path, content)
    for message in (refused(path, str(path)), refused(content)):
        assert f" cannot be read as an image: {expected}" in message


def test_a_long_text_that_begins_as_a_pointer_is_text():
    assert "it holds text" in refused(b"version https://git-lfs" + b"\n" * 2000)


@pytest.mark.parametrize("form", ["PCX", "TGA", "SGI", "ICO", "DIB"])
def test_pillows_other_decoders_are_never_run(form, tmp_path):
    path = written(tmp_path, encoded(PIXELS, form))
    assert (
        refused(path, str(path)) == f"{path} cannot be read as an image: it may be damaged; replace it or take it out"
    )


@pytest.mark.parametrize(
    ("head", "kind"),
    [
        (b"GIF89a", "GIF"),
        (b"8BPS\0\1", "Photoshop"),
        (bytes(128) + b"DICM", "DICOM"),
        (b"\0\0\0 ftypavif", "AVIF"),
        (b"\0\0\0 ftypheic", "HEIF"),
        (b"II+\0\x08\0\0\0", "TIFF"),
    ],
)
def test_kinds_that_are_not_read_are_named(head, kind):
    message = refused(head.ljust(200, b"\0"))
    assert f" {kind}" in message
    assert {"TIFF": "convert it", "DICOM": "save each of its frames as PNG"}.get(kind, "save it as PNG") in message


@pytest.mark.parametrize("name", ["a.svs", "b.NDPI", "c.mrxs"])
def test_slides_are_pointed_to_manifests(tmp_path, name):
    path = written(tmp_path, encoded(PIXELS, "TIFF"), name)
    assert refused(path, name) == (
        f"{name} is called like a whole slide, which is no tile: name places on slides in a manifest (columns "
        "slide, x, y, size and label)"
    )


@pytest.mark.parametrize("content", [b"BM", b"P6\n", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n"])
def test_what_is_only_the_beginning_of_a_picture(content):
    assert "cannot be read" in refused(content)


def test_a_file_that_is_not_there(tmp_path):
    assert "(No such file or directory)" in refused(tmp_path / "a.png", str(tmp_path / "a.png"))
    assert "(Is a directory)" in refused(tmp_path, str(tmp_path))
