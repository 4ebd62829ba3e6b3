"""Damage that needs no knowledge of a file: to its bytes, and of what lies in its place."""

from __future__ import annotations

import gzip
import io
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np


#: Changes the bytes of a file.
Change = Callable[[bytes, np.random.Generator], bytes]


class _Runs:
    """Would make a file when it is unpickled."""

    def __reduce__(self) -> tuple:
        return os.system, ("touch executed",)


def hostile_pickle(protocol: int = 2) -> bytes:
    """A pickle that runs a command."""
    return pickle.dumps(_Runs(), protocol)


def _zip(data: bytes, name: str = "data") -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, data)
    return buffer.getvalue()


def _flip(data: bytes, rng: np.random.Generator) -> bytes:
    """Eight bits, anywhere."""
    changed = bytearray(data)
    for place in rng.integers(0, len(data), 8):
        changed[place] ^= 1 << int(rng.integers(8))
    return bytes(changed)


def _scramble(data: bytes, rng: np.random.Generator) -> bytes:
    """A stretch of random bytes."""
    length = max(1, len(data) // 20)
    place = int(rng.integers(0, max(1, len(data) - length)))
    return data[:place] + rng.bytes(length) + data[place + length :]


def _insert(data: bytes, rng: np.random.Generator) -> bytes:
    place = int(rng.integers(0, len(data)))
    return data[:place] + rng.bytes(7) + data[place:]


def _remove(data: bytes, rng: np.random.Generator) -> bytes:
    place = int(rng.integers(0, len(data)))
    return data[:place] + data[place + 7 :]


def _number(data: bytes, rng: np.random.Generator) -> bytes:
    """Four bytes near the beginning or the end, where headers and tables of contents are, as an extreme number."""
    changed = bytearray(data)
    near = min(len(data), 300)
    place = int(rng.integers(0, near))
    place = place if rng.integers(2) else max(0, len(data) - 4 - place)
    word = [b"\xff" * 4, b"\xff\xff\xff\x7f", b"\x7f\xff\xff\xff", bytes(4), b"\0\0\0\x80"][int(rng.integers(5))]
    changed[place : place + 4] = word[: max(0, len(data) - place)]
    return bytes(changed)


def _splice(data: bytes, rng: np.random.Generator) -> bytes:
    """A stretch of the file once more, elsewhere in it."""
    length = max(1, len(data) // 10)
    source, place = (int(rng.integers(0, max(1, len(data) - length))) for _ in range(2))
    return data[:place] + data[source : source + length] + data[place + length :]


#: Kind → how the bytes are changed. Those that draw are made several times.
TO_BYTES: dict[str, Change] = {
    "empty": lambda data, rng: b"",
    "one byte": lambda data, rng: data[:1],
    "cut after a tenth": lambda data, rng: data[: len(data) // 10],
    "cut in the middle": lambda data, rng: data[: len(data) // 2],
    "cut near the end": lambda data, rng: data[: len(data) - max(1, len(data) // 20)],
    "last byte missing": lambda data, rng: data[:-1],
    "beginning missing": lambda data, rng: data[4:],
    "beginning of zeros": lambda data, rng: bytes(16) + data[16:],
    "middle of zeros": lambda data, rng: data[: len(data) // 3] + bytes(len(data) // 3) + data[2 * (len(data) // 3) :],
    "end of zeros": lambda data, rng: data[: len(data) // 2] + bytes(len(data) - len(data) // 2),
    "all zeros": lambda data, rng: bytes(len(data)),
    "all ones": lambda data, rng: b"\xff" * len(data),
    "rubbish before": lambda data, rng: rng.bytes(64) + data,
    "rubbish after": lambda data, rng: data + rng.bytes(64),
    "twice": lambda data, rng: data + data,
    "backwards": lambda data, rng: data[::-1],
    "Windows line ends": lambda data, rng: data.replace(b"\n", b"\r\n"),
    "gzip of itself": lambda data, rng: gzip.compress(data, mtime=0),
    "zip of itself": lambda data, rng: _zip(data),
    "pickle": lambda data, rng: hostile_pickle(),
    "zip with a pickle": lambda data, rng: _zip(hostile_pickle(), "archive/data.pkl"),
    "text": lambda data, rng: b"not what its name says\n" * 20,
    "HTML": lambda data, rng: b"<!DOCTYPE html><html><body>404 Not Found</body></html>",
    "pointer of Git LFS": lambda data, rng: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n",
    "code": lambda data, rng: b"import os\nos.system('touch executed')\n",
    "deep nesting": lambda data, rng: b"[" * 100_000 + b"]" * 100_000,
}
#: The same, drawn anew for each number of the case.
DRAWN: dict[str, Change] = {
    "bits flipped": _flip,
    "a stretch of random bytes": _scramble,
    "bytes inserted": _insert,
    "bytes removed": _remove,
    "an extreme number": _number,
    "a stretch copied": _splice,
}


def _in_its_place(put: Callable[[Path], object]) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        path.unlink()
        put(path)

    return change


def _link_elsewhere(path: Path) -> None:
    """A link to the same content elsewhere: it may be followed or not."""
    elsewhere = path.parent / ".elsewhere"
    path.rename(elsewhere)
    path.symlink_to(elsewhere)


#: Kind → what lies in the file's place.
IN_ITS_PLACE: dict[str, Callable[[Path], None]] = {
    "a folder": _in_its_place(Path.mkdir),
    "a pipe": _in_its_place(os.mkfifo),
    "a dead link": _in_its_place(lambda path: path.symlink_to("nowhere")),
    "a link to itself": _in_its_place(lambda path: path.symlink_to(path)),
    "a link to a device": _in_its_place(lambda path: path.symlink_to("/dev/zero")),
    "a link to another folder": _in_its_place(lambda path: path.symlink_to("/etc")),
    "a link to a file elsewhere": _link_elsewhere,
    "nothing": Path.unlink,
}
