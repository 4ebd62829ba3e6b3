"""Damage to `.npz` files that are still archives: members, headers of arrays, and arrays that are no tiles."""

from __future__ import annotations

import io
import struct
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from hostile.damage import hostile_pickle
from hostile.documents import Change


def npy(array: Any, **options: Any) -> bytes:
    """An array as a file."""
    buffer = io.BytesIO()
    np.save(buffer, array, **options)
    return buffer.getvalue()


def header(text: str, version: tuple[int, int] = (1, 0)) -> bytes:
    """The beginning of an array's file, with any text as its header."""
    data = text.encode("utf-8", "surrogatepass")
    data += b" " * (-(len(data) + 11) % 64) + b"\n"
    return b"\x93NUMPY" + bytes(version) + struct.pack("<H" if version == (1, 0) else "<I", len(data)) + data


def claims(shape: Any, descr: str = "'|u1'") -> bytes:
    """The same of an array of this shape."""
    return header(f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}")


def zipped(members: Mapping[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    """An archive."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, data in members.items():
            archive.writestr(zipfile.ZipInfo(name), data, method)
    return buffer.getvalue()


#: Name → the header of an array, none of which numpy writes.
HEADERS: dict[str, str] = {
    "empty": "",
    "no dictionary": "1",
    "a list": "[]",
    "no shape": "{'descr': '|u1', 'fortran_order': False}",
    "a further key": "{'descr': '|u1', 'fortran_order': False, 'shape': (1,), 'x': 1}",
    "a call": "__import__('os').system('touch executed')",
    "a call as the type": "{'descr': __import__('os').system('touch executed'), 'fortran_order': False, 'shape': ()}",
    "half a dictionary": "{'descr': '|u1', 'shape': (1,",
    "a tab too many": "{'descr': '|u1',\n\t'fortran_order': False,\n  'shape': (1,)}",
    "deep nesting": "(" * 2000 + ")" * 2000,
    "deep operators": "-" * 5000 + "1",
    "a very long header": "{'descr': '|u1', 'fortran_order': False, 'shape': (" + "1," * 20_000 + ")}",
    "a zero byte": "{'descr': '\0'}",
    "no order": "{'descr': '|u1', 'fortran_order': 2, 'shape': (1,)}",
    "a shape of text": "{'descr': '|u1', 'fortran_order': False, 'shape': ('a',)}",
    "a shape of fractions": "{'descr': '|u1', 'fortran_order': False, 'shape': (1.5,)}",
    "a negative shape": "{'descr': '|u1', 'fortran_order': False, 'shape': (-4, 8, 8, -3)}",
    "a shape of 100 sides": "{'descr': '|u1', 'fortran_order': False, 'shape': (" + "1," * 100 + ")}",
    "a shape of truth": "{'descr': '|u1', 'fortran_order': False, 'shape': (True, False)}",
    "a huge shape": "{'descr': '|u1', 'fortran_order': False, 'shape': (" + "9" * 4000 + ",)}",
}
#: Name → what stands for the type of an array in its header.
DESCRIPTIONS: dict[str, str] = {
    "none": "None",
    "a number": "3",
    "an empty text": "''",
    "an empty list": "[]",
    "an unknown type": "'<q9'",
    "objects": "'|O'",
    "objects in fields": "[('a', '|O')]",
    "no bytes": "'|V0'",
    "many bytes": "'|V2000000000'",
    "more bytes than there are": "'<U2000000000'",
    "a list of text": "['x']",
    "a list of a number": "[1]",
    "a field of one": "[('a',)]",
    "a field of four": "[('a', '<u1', 1, 2)]",
    "a field with a title": "[(('t', 'a'), '<u1')]",
    "a field with half a title": "[(('t',), '<u1')]",
    "fields of one name": "[('a', '<u1'), ('a', '<u1')]",
    "a field with an odd shape": "[('a', '<u1', 'x')]",
    "a field with a negative shape": "[('a', '<u1', (-1,))]",
    "fields in fields": "[('a', [('b', [('c', '<u1')])])]",
    "a tuple": "('<u1', (3,))",
    "a tuple of one": "('<u1',)",
    "an empty tuple": "()",
    "a dictionary": "{'names': ['a'], 'formats': ['<u1'], 'offsets': [10**9]}",
    "a date": "'<M8[ns]'",
    "bytes": "b'|u1'",
    "a text with a comma": "'u1,u1'",
    "half a character": "'\ud800'",
    "deep lists": "[" * 60 + "'x'" + "]" * 60,
}
#: Name → a member's name.
NAMES = (
    "../tile.npy",
    "/tmp/tile.npy",
    "a/b.npy",
    "C:\\x.npy",
    "..",
    ".npy",
    "\x1b[2J.npy",
    "x" * 60_000 + ".npy",
    "train_images",
    "tile.pkl",
)


def _bomb(path: Path, name: str, head: bytes, size: int, others: Mapping[str, bytes]) -> None:
    """An archive in which one member is a header and very many zeros."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for other, data in others.items():
            archive.writestr(other, data)
        with archive.open(name, "w", force_zip64=True) as member:
            member.write(head)
            zeros = bytes(2**24)
            for start in range(0, size, len(zeros)):
                member.write(zeros[: size - start])


def of_archive(target: str, array: str, others: Mapping[str, np.ndarray]) -> Iterator[tuple[str, str, Change]]:
    """Kind, what is changed, and the change, for an archive of arrays, in which `array` is the one to be changed."""
    members = {f"{name}.npy": npy(value) for name, value in others.items()}
    changed = f"{array}.npy"

    def written(content: Mapping[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> Change:
        return lambda folder: (folder / target).write_bytes(zipped(content, method))

    def edited(edit: Callable[[bytearray], object]) -> Change:
        def change(folder: Path) -> None:
            data = bytearray((folder / target).read_bytes())
            edit(data)
            (folder / target).write_bytes(data)

        return change

    for name, text in HEADERS.items():
        for version in ((1, 0), (2, 0), (3, 0)) if len(text) < 60_000 else ((2, 0),):
            yield (
                "a header that lies",
                f"{name}, version {version[0]}",
                written({**members, changed: header(text, version) + bytes(64)}),
            )
    for version in ((0, 0), (4, 0), (255, 255)):
        text = "{'descr': '|u1', 'fortran_order': False, 'shape': (64,)}"
        yield (
            "a header that lies",
            f"version {version}",
            written({**members, changed: header(text, version) + bytes(64)}),
        )
    for name, description in DESCRIPTIONS.items():
        yield "an array's type", name, written({**members, changed: claims((4,), description) + bytes(64)})
    for shape in ((10**6, 1000, 1000, 3), (2**62, 4), (2**31, 2**31, 2**31), (0,), (), (0, 2**62)):
        yield "a claim of much", f"{shape}", written({**members, changed: claims(shape)})
    yield "pickle", "as the member", written({**members, changed: hostile_pickle()})
    yield "pickle", "as an array of objects", written({**members, changed: claims((1,), "'|O'") + hostile_pickle(4)})
    yield "pickle", "beside the arrays", written({**members, "data.pkl": hostile_pickle()})
    yield "pickle", "under the name of an array", written({**members, "more.npy": hostile_pickle()})
    yield "pickle", "in place of the archive", lambda folder: (folder / target).write_bytes(hostile_pickle())
    for name in NAMES:
        yield "a member's name", name[:20], written({**members, name: npy(np.zeros(3))})
    for method, called in ((zipfile.ZIP_STORED, "stored"), (zipfile.ZIP_BZIP2, "bzip2"), (zipfile.ZIP_LZMA, "LZMA")):
        yield "another archive", called, written(members, method)
    yield "another archive", "no member", written({})
    yield "another archive", "10,000 members", written({**members, **{f"x{i}.npy": npy(0) for i in range(10_000)}})
    yield "another archive", "one array", lambda folder: (folder / target).write_bytes(npy(np.zeros(3)))
    yield (
        "another archive",
        "one array that claims much",
        lambda folder: (folder / target).write_bytes(claims((2**40,))),
    )
    yield (
        "another archive",
        "one array of objects",
        lambda folder: (folder / target).write_bytes(claims((1,), "'|O'") + hostile_pickle(4)),
    )
    for offset, called in ((6, "encrypted"), (8, "an unknown method")):

        def mark(data: bytearray, offset: int = offset) -> None:
            for signature, further in ((b"PK\3\4", 0), (b"PK\1\2", 2)):
                place = data.find(signature)
                while place >= 0:
                    data[place + offset + further] |= 1 if offset == 6 else 0x5B
                    place = data.find(signature, place + 4)

        yield "another archive", called, edited(mark)
    for field, called in ((20, "packed"), (24, "unpacked"), (28, "length of a name"), (42, "place")):

        def lie(data: bytearray, field: int = field) -> None:
            place = data.find(b"PK\1\2")
            data[place + field : place + field + 2] = b"\xff\x7f"

        yield "a table of contents that lies", called, edited(lie)
    yield (
        "a bomb",
        "3 GB of zeros",
        lambda folder: _bomb(
            folder / target,
            changed,
            claims((3 * 2**30,)),
            3 * 2**30,
            {k: v for k, v in members.items() if k != changed},
        ),
    )
    yield (
        "a bomb",
        "1 GB of zeros beside the arrays",
        lambda folder: _bomb(folder / target, "more.npy", claims((2**30,)), 2**30, members),
    )
    yield (
        "a bomb",
        "1 GB of zeros under a short header",
        lambda folder: _bomb(
            folder / target, changed, claims((3,)), 2**30, {k: v for k, v in members.items() if k != changed}
        ),
    )
    for kind in ("f4", "?", "c8", "S3", "M8[s]", ">u2", "i1", "f2", "U2"):
        value = np.zeros(np.asarray(others[array]).shape, kind)
        yield "an array of another kind", kind, written({**members, changed: npy(value)})
    yield (
        "an array of another kind",
        "Fortran's order",
        written({**members, changed: npy(np.asfortranarray(others[array]))}),
    )


def of_tiles(target: str, content: Mapping[str, np.ndarray]) -> Iterator[tuple[str, str, Change]]:
    """The same for arrays that are no tiles, or no labels of tiles."""
    count = len(content["train_labels"])

    def written(**changes: Any) -> Change:
        arrays = {name: value for name, value in {**content, **changes}.items() if value is not None}
        return lambda folder: (folder / target).write_bytes(zipped({f"{n}.npy": npy(v) for n, v in arrays.items()}))

    eye = np.eye(2, dtype=np.uint8)
    labels: dict[str, Any] = {
        "floats": np.arange(count) % 2.0, "NaN": np.full(count, np.nan), "one-hot": eye[np.arange(count) % 2],
        "one-hot of floats": eye[np.arange(count) % 2].astype(np.float32), "one-based": np.arange(count) % 2 + 1,
        "text": np.array(["fat", "gland"] * (count // 2)), "bytes": np.array([b"fat", b"gland"] * (count // 2)),
        "true and false": np.arange(count) % 2 == 0, "negative": np.arange(count) - 1,
        "too large": np.full(count, 2**64 - 1, np.uint64),
        "one class": np.zeros(count, int), "an empty class": np.arange(count) % 2 * 2,
        "one too few": np.arange(count - 1) % 2,
        "none": np.zeros(0, int), "scalar": np.int64(1), "N x 1 x 1": np.zeros((count, 1, 1), int),
        "complex": np.zeros(count, complex),
        "dates": np.zeros(count, "M8[D]"), "fields": np.zeros(count, [("a", "u1"), ("b", "u1")]),
        "one above all": np.arange(count) * 10**6,
    }  # fmt: skip
    for name, value in labels.items():
        yield "labels of another kind", name, written(train_labels=value)
    images = content["train_images"]
    for name, value in {
        "grey": images[..., 0], "grey with a channel": images[..., :1], "alpha": np.repeat(images[..., :1], 4, 3),
        "floats": images / 255.0,
        "NaN": np.full(images.shape, np.nan, np.float32), "16 bits": images.astype(np.uint16),
        "1x1": images[:, :1, :1], "channels first": images.transpose(0, 3, 1, 2),
        "no height": images[:, :0], "none": images[:0], "oblong": images[:, :5],
        "one long row": np.zeros((count, 1, 100_000, 3), np.uint8),
        "wide": np.zeros((count, 2, 20_000, 3), np.uint8),
        "another size than others": np.zeros((count, 9, 9, 3), np.uint8), "text": np.array(["x"] * count),
    }.items():  # fmt: skip
        yield "tiles of another kind", name, written(train_images=value)
    many = np.arange(10_000)
    tiny = np.random.default_rng(0).integers(0, 256, (10_000, 8, 8, 3), dtype=np.uint8)
    alone = {name: None for name in content if not name.startswith("train")}
    yield "very many classes", "10,000, one tile each", written(**alone, train_images=tiny, train_labels=many)
    yield "very many classes", "10,000 names", written(class_names=np.array([f"c{i}" for i in range(10_000)]))
    yield "very many classes", "a label of 2 billion", written(train_labels=np.array([0, 2**31] * (count // 2)))
    for name, value in {
        "twice the same": ["a", "a"], "empty": ["", "b"], "long": ["x" * 10**5, "b"], "markup": ["<script>", "b"],
        "escape": ["\x1b[2J", "b"],
        "numbers": [1, 2], "floats": [0.5, 1.5], "nested": [["a", "b"]], "half a character": ["\ud800", "b"],
        "two forms": ["Dr\xfcse", "Dru\u0308se"],
        "paths": ["../a", "/b"], "zero bytes": ["a\0", "a"],
    }.items():  # fmt: skip
        yield "names of classes", name, written(class_names=np.array(value))
    for name, value in {
        "NaN": np.full(count, np.nan), "too few": np.array(["a"]), "long": np.array(["x" * 10**5] * count),
        "objects of text": np.zeros((count, 2), "U3"),
        "in two splits": np.array(["p"] * count),
    }.items():  # fmt: skip
        more = {"test_groups": np.array(["p"] * len(content["test_labels"]))} if name == "in two splits" else {}
        yield "groups of another kind", name, written(train_groups=value, **more)
