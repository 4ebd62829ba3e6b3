"""Damage to texts that are still of their kind: JSON documents, tables of text, the header of a README."""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any


#: Changes a case in its folder.
Change = Callable[[Path], object]

#: Name → what stands in place of a value of a JSON document.
VALUES: dict[str, Any] = {
    "null": None,
    "true": True,
    "a negative number": -1,
    "a number of 20 digits": 10**20,
    "a number of 400 digits": 10**400,
    "a fraction": 0.5,
    "1e999": float("inf"),
    "an empty text": "",
    "a long text": "x" * 100_000,
    "a path up": "../../../etc/passwd",
    "an absolute path": "/etc/passwd",
    "a pattern": "*[a-z]?{1,2}",
    "an address": "http://127.0.0.1:9/x",
    "a zero byte": "a\0b",
    "half a character": "\ud800",
    "an escape sequence": "\x1b[2J\r\n\u202e",
    "an empty list": [],
    "a list in a list": [[[1]]],
    "lists of odd lengths": [[1], [1, 2], "x"],
    "an empty object": {},
    "an object with odd keys": {"": {"__class__": "os.system"}, "\0": []},
}
#: Name → a JSON text for the whole document.
TEXTS: dict[str, bytes] = {
    "null": b"null",
    "a number": b"1",
    "a text": b'"x"',
    "a list": b"[1, 2]",
    "an empty object": b"{}",
    "NaN": b"NaN",
    "a byte order mark": b"\xef\xbb\xbf{}",
    "UTF-16": "{}".encode("utf-16"),
    "Latin-1": b'{"a": "\xfc"}',
    "a key twice": b'{"format": 1, "format": 2}',
    "lists 400 deep": b"[" * 400 + b"]" * 400,
    "lists 900 deep": b"[" * 900 + b"]" * 900,
    "objects 900 deep": b'{"a":' * 900 + b"1" + b"}" * 900,
    "lists 990 deep": b"[" * 990 + b"]" * 990,
    "a million digits": b"1" * 10**6,
}
# Values of a document that are changed, at most.
_MOST_PLACES = 5
#: Keys that attributes of an object in Python have, beside those that a document has.
KEYS = ("__class__", "__dict__", "fit", "get_params", "_private_", "x", "")


def places_in(value: Any) -> list[tuple[Any, ...]]:
    """The ways to some values within a JSON document, spread over all of it."""
    paths = list(_all_places_in(value, ()))
    return paths[:: -(-len(paths) // _MOST_PLACES)]


def _all_places_in(value: Any, path: tuple[Any, ...]) -> Iterator[tuple[Any, ...]]:
    if path:
        yield path
    steps = value if isinstance(value, dict) else range(min(2, len(value))) if isinstance(value, list) else ()
    for step in steps:
        yield from _all_places_in(value[step], (*path, step))


def with_value(document: Any, path: tuple[Any, ...], value: Any) -> Any:
    """The document with another value there."""
    changed = json.loads(json.dumps(document))
    target = changed
    for step in path[:-1]:
        target = target[step]
    target[path[-1]] = value
    return changed


def without(document: Any, path: tuple[Any, ...]) -> Any:
    """The document without what is there."""
    changed = json.loads(json.dumps(document))
    target = changed
    for step in path[:-1]:
        target = target[step]
    del target[path[-1]]
    return changed


def sealed_again(document: Any) -> Any:
    """A checkpoint's record with the checksum that it should have."""
    if isinstance(document, dict) and "sha256" in document and "files" in document:
        from histodistill.training.running.stages import fingerprint

        document["sha256"] = fingerprint({name: value for name, value in document.items() if name != "sha256"})
    return document


def of_json(target: str, document: Any) -> Iterator[tuple[str, str, Change]]:
    """Kind, what is changed, and the change, for a JSON document."""

    def written(changed: Any) -> Change:
        return lambda folder: (folder / target).write_text(json.dumps(sealed_again(changed)))

    for path in places_in(document):
        where = ".".join(map(str, path))
        for name, value in VALUES.items():
            yield "a value of another kind", f"{where} is {name}", written(with_value(document, path, value))
        if isinstance(path[-1], str):
            yield "a key left out", where, written(without(document, path))
    for key in KEYS:
        for path in ((), *(path for path in places_in(document) if isinstance(_at(document, path), dict))):
            where = ".".join(map(str, (*path, key)))
            yield "a further key", where, written(with_value(document, (*path, key), "x"))
            yield "a further key", f"{where} with a list", written(with_value(document, (*path, key), ["x"]))
    for name, text in TEXTS.items():
        yield "another document", name, lambda folder, text=text: (folder / target).write_bytes(text)


def _at(document: Any, path: tuple[Any, ...]) -> Any:
    for step in path:
        document = document[step]
    return document


#: Name → a cell of a table.
CELLS: dict[str, str] = {
    "empty": "",
    "NaN": "nan",
    "a fraction": "0.5",
    "a float that is whole": "1.0",
    "one-hot": "0 1",
    "a list": "[0, 1]",
    "a negative number": "-1",
    "a number of 30 digits": "1" * 30,
    "a path up": "../../../etc/passwd",
    "an absolute path": "/etc/passwd",
    "a device": "/dev/zero",
    "a folder": ".",
    "a pattern": "all/*.png",
    "brackets": "all/tile_[0]01.png",
    "an address": "http://127.0.0.1:9/x.png",
    "a name on the Hub": "hf://datasets/a/b",
    "a zero byte": "a\0b",
    "an escape sequence": "\x1b[2J",
    "a line break": "a\nb",
    "a right-to-left mark": "a\u202eb",
    "a very long name": "x" * 300_000,
    "a formula": "=cmd|' /C calc'!A0",
    "markup": "<script>alert(1)</script>",
    "spaces": "   ",
    "letters of two forms": "Dru\u0308se",
}


def of_table(target: str, text: str) -> Iterator[tuple[str, str, Change]]:
    """Kind, what is changed, and the change, for a table of text."""
    separator = "\t" if target.endswith("tsv") else ","
    rows = list(csv.reader(io.StringIO(text), delimiter=separator))

    def written(changed: list[list[str]], **options: Any) -> Change:
        buffer = io.StringIO()
        csv.writer(buffer, delimiter=separator, lineterminator="\n", **options).writerows(changed)
        return lambda folder: (folder / target).write_text(buffer.getvalue())

    for column, called in enumerate(rows[0]):
        for name, cell in CELLS.items():
            changed = [list(row) for row in rows]
            changed[3][column] = cell
            yield "a cell", f"{called} is {name}", written(changed)
        everywhere = [rows[0], *([*row[:column], "same", *row[column + 1 :]] for row in rows[1:])]
        yield "a column that is all the same", called, written(everywhere)
        yield "a column left out", called, written([[*row[:column], *row[column + 1 :]] for row in rows])
        yield "a column twice", called, written([[*row, row[column]] for row in rows])
    label = rows[0].index("label") if "label" in rows[0] else len(rows[0]) - 1
    for name, labels in {
        "floats": ["0.0", "1.0"], "one-based": ["1", "2"], "one-hot": ["1 0", "0 1"], "true and false": ["True",
        "False"],
        "far apart": ["0", "999999999999"], "in two cases": ["Fat", "fat"], "numbers and text": ["0", "gland"],
    }.items():  # fmt: skip
        changed = [rows[0], *([*row[:label], labels[i % 2], *row[label + 1 :]] for i, row in enumerate(rows[1:]))]
        yield "labels of another kind", name, written(changed)
    classes = [rows[0], *([*row[:label], f"class {i}", *row[label + 1 :]] for i, row in enumerate(rows[1:]))]
    yield "labels of another kind", "each tile a class", written(classes)
    yield "rows", "none", written(rows[:1])
    yield "rows", "one", written(rows[:2])
    yield "rows", "each twice", written([*rows, *rows[1:]])
    yield "rows", "one longer", written([*rows, [*rows[1], "more"]])
    yield "rows", "one shorter", written([*rows, rows[1][:1]])
    yield "rows", "a header twice", written([rows[0], *rows])
    yield "rows", "no header", written(rows[1:])
    yield "rows", "a thousand columns", written([[*row, *map(str, range(1000))] for row in rows])
    for name, data in {
        "semicolons": text.replace(separator, ";").encode(), "quotes that do not end": text.replace("fat",
        '"fat', 1).encode(),
        "UTF-16": text.encode("utf-16"), "Latin-1": text.replace("fat", "f\xfct").encode("latin-1"),
        "a byte order mark": text.encode("utf-8-sig"), "old Mac line ends": text.replace("\n", "\r").encode(),
        "only line breaks": b"\n" * 10_000, "only quotes": b'"' * 10_001,
        "only separators": separator.encode() * 10_000,
    }.items():  # fmt: skip
        yield "text of another form", name, lambda folder, data=data: (folder / target).write_bytes(data)


#: Name → the header of a README.md.
HEADERS: dict[str, str] = {
    "a Python object": "configs: !!python/object/apply:os.system ['touch executed']",
    "a Python name": "configs: !!python/name:os.system",
    "aliases that multiply": "".join(
        f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9) if i else ', '.join('x' * 9)}]\n" for i in range(9)
    )
    + "configs: *a8",
    "an alias to itself": "configs: &a [*a]",
    "deep nesting": "configs: " + "[" * 5000 + "]" * 5000,
    "no YAML": "configs: {[",
    "a path up": "configs:\n- config_name: default\n  data_files: ../other/*.parquet",
    "an absolute path": "configs:\n- config_name: default\n  data_files: /etc/*",
    "an address": "configs:\n- config_name: default\n  data_files: http://127.0.0.1:9/x.parquet",
    "a chain of file systems": "configs:\n- config_name: default\n  data_files: zip://x::http://127.0.0.1:9/x.zip",
    "a folder up": "configs:\n- config_name: default\n  data_dir: ..",
    "a pattern that takes long": "configs:\n- config_name: default\n  data_files: " + "*a" * 60,
    "other numbers of rows": "dataset_info:\n  splits:\n  - name: train\n    num_examples: 10000000000",
    "features of another kind": "dataset_info:\n  features: [1, x, {name: label, dtype: {class_label: 3}}]",
    "other class names": "dataset_info: {features: [{name: label, dtype: {class_label: {names: [x]}}}]}",
    "a date": "configs: 2020-01-01",
    "a set": "configs: !!set {a, b}",
    "binary": "configs: !!binary aGVsbG8=",
    "a key twice": "configs: []\nconfigs: {}",
    "a merge": "<<: [1]\nconfigs: []",
}


def of_readme(target: str) -> Iterator[tuple[str, str, Change]]:
    """Kind, what is changed, and the change, for the README.md of a repository."""
    for name, header in HEADERS.items():
        text = f"---\n{header}\n---\nTiles.\n"
        yield "another header", name, lambda folder, text=text: (folder / target).write_text(text)


def of_repository() -> Iterator[tuple[str, str, Change]]:
    """Code that lies beside the data, as the Hub once ran it."""
    code = "import os\nos.system('touch executed')\n"
    names = (
        "set.py",
        "dataset.py",
        "__init__.py",
        "setup.py",
        "sitecustomize.py",
        "conftest.py",
        "histodistill.py",
        "data/data.py",
        "PIL.py",
    )
    for name in names:
        yield "code in a repository", name, lambda folder, name=name: (folder / "set" / name).write_text(code)

    def script(folder: Path) -> None:
        (folder / "set" / "set.py").write_text(code)
        readme = folder / "set" / "README.md"
        readme.write_text("---\nconfigs:\n- config_name: default\n  script: set.py\n  builder: set.py\n---\n")

    yield "code in a repository", "a script that the card names", script


def of_safetensors(target: str, data: bytes, seal: Change) -> Iterator[tuple[str, str, Change]]:
    """Kind, what is changed, and the change, for arrays in safetensors; `seal` mends the checksum beside them."""
    length = int.from_bytes(data[:8], "little")
    header, body = json.loads(data[8 : 8 + length]), data[8 + length :]
    name = next(key for key in header if key != "__metadata__")

    def written(head: bytes, tail: bytes = body, claimed: int | None = None) -> Change:
        def change(folder: Path) -> None:
            size = len(head) if claimed is None else claimed
            (folder / target).write_bytes(size.to_bytes(8, "little") + head + tail)
            seal(folder)

        return change

    def with_entry(**changes: Any) -> Change:
        return written(json.dumps({**header, name: {**header[name], **changes}}).encode())

    begin, end = header[name]["data_offsets"]
    for dtype in ("BF16", "F16", "F8_E4M3", "F8_E5M2", "F4", "I8", "BOOL", "U64", "F64", "C64", "X9", 3, None, []):
        yield "another array", f"dtype {dtype}", with_entry(dtype=dtype)
        yield "another array", f"dtype {dtype}, empty", with_entry(dtype=dtype, shape=[0], data_offsets=[begin, begin])
    for shape in ([], [0], [-1], [2**63], [2**62, 4], [2.5], ["x"], [[1]], None, 1, [1] * 1000):
        yield "another array", f"shape {str(shape)[:20]}", with_entry(shape=shape)
    for offsets in ([0, 2**62], [-1, 5], [end, begin], [begin + 1, end + 1], [begin], None, "x", [0.5, 1]):
        yield "another array", f"offsets {offsets}", with_entry(data_offsets=offsets)
    yield (
        "another array",
        "one more",
        written(
            json.dumps(
                {**header, "more": {"dtype": "U8", "shape": [4], "data_offsets": [len(body), len(body) + 4]}}
            ).encode(),
            body + b"more",
        ),
    )
    for key in ("__class__", "fit", "classes", "_x_", ""):
        entry = {"dtype": "U8", "shape": [4], "data_offsets": [len(body), len(body) + 4]}
        yield (
            "another array",
            f"one called {key!r}",
            written(json.dumps({**header, key: entry}).encode(), body + b"more"),
        )
    yield "another array", "one less", written(json.dumps({k: v for k, v in header.items() if k != name}).encode())
    nan = bytes([0, 0, 248, 127]) * (len(body) // 4) + body[: len(body) % 4]
    yield "another array", "NaN", written(json.dumps(header).encode(), nan)
    for claimed in (0, 1, 2**31, 2**63, 2**64 - 1):
        yield "a header that lies", f"{claimed} bytes", written(json.dumps(header).encode(), claimed=claimed)
    for text, document in TEXTS.items():
        yield "a header that lies", text, written(document)
    for about in ({"format": "pt", "note": "x" * 1000}, {"format": 1}, [], "x", None):
        yield (
            "a header that lies",
            f"metadata {str(about)[:20]}",
            written(json.dumps({**header, "__metadata__": about}).encode()),
        )


def seal_selector(folder: Path) -> None:
    """Writes the checksum of the arrays into a selector's configuration."""
    file = folder / "selector" / "config.json"
    digest = hashlib.sha256((folder / "selector" / "selector.safetensors").read_bytes()).hexdigest()
    file.write_text(json.dumps({**json.loads(file.read_text()), "arrays_sha256": digest}))


def seal_checkpoint(folder: Path) -> None:
    """Writes the checksums of a checkpoint's files into its record."""
    file = folder / "checkpoint-7" / "state.json"
    document = json.loads(file.read_text())
    for name in document["files"]:
        document["files"][name] = hashlib.sha256((file.parent / name).read_bytes()).hexdigest()
    file.write_text(json.dumps(sealed_again(document)))
