"""Damage to tables and to files of coordinates that are still of their kind."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from hostile.damage import hostile_pickle
from hostile.documents import CELLS, TEXTS, VALUES, Change, places_in, with_value
from hostile.places import encoded, noise


def _notes(rows: pa.Table, about: Any) -> pa.Table:
    text = about if isinstance(about, bytes) else json.dumps(about).encode()
    return rows.replace_schema_metadata({b"huggingface": text})


def of_images(rows: pa.Table, write: Callable[[pa.Table], Change]) -> Iterator[tuple[str, str, Change]]:
    """Kind, what is changed, and the change, for a table with a column of images; `write` puts one into place."""
    about = json.loads(rows.schema.metadata[b"huggingface"])
    for path in places_in(about):
        where = ".".join(map(str, path))
        for name, value in VALUES.items():
            yield "notes that lie", f"{where} is {name}", write(_notes(rows, with_value(about, path, value)))
    for name, text in TEXTS.items():
        yield "notes that lie", name, write(_notes(rows, text))
    yield "notes that lie", "none", write(rows.replace_schema_metadata({}))
    yield "notes that lie", "pandas", write(rows.replace_schema_metadata({**rows.schema.metadata, b"pandas": b"{"}))

    image = rows.schema.get_field_index("image")
    kind = rows.schema.field("image").type

    def with_cell(cell: Any) -> Change:
        cells = rows["image"].to_pylist()
        cells[2] = cell
        return write(rows.set_column(image, "image", pa.array(cells, kind)))

    for name, path in CELLS.items():
        yield "a cell that names a file", name, with_cell({"bytes": None, "path": path})
    for name, data in {
        "no bytes": b"", "text": b"text", "a pickle": hostile_pickle(), "zeros": bytes(1000),
        "a JPEG": encoded(noise(), "jpg"),
        "another size": encoded(noise(0, 9)), "half": rows["image"][2]["bytes"].as_py()[:40],
        "a TIFF": encoded(noise(), "tif"),
    }.items():  # fmt: skip
        yield "a cell of another kind", name, with_cell({"bytes": data, "path": None})
    yield "a cell of another kind", "null", with_cell(None)
    yield "a cell of another kind", "both null", with_cell({"bytes": None, "path": None})
    label = rows.schema.get_field_index("label")
    count = len(rows)
    for name, values in {
        "floats": pa.array([0.0, 1.0] * (count // 2) + [0.0] * (count % 2)), "NaN": pa.array([float("nan")] * count),
        "text": pa.array(["fat"] * count),
        "true and false": pa.array([True] * count), "negative": pa.array([-1] * count),
        "too large": pa.array([2**63 + 1] * count, pa.uint64()),
        "one-based": pa.array([1 + i % 2 for i in range(count)]), "one-hot": pa.array([[1, 0]] * count),
        "null": pa.array([None] * count, pa.int64()),
        "one null": pa.array([None] + [0] * (count - 1), pa.int64()),
        "dates": pa.array([0] * count, pa.timestamp("ns")), "decimals": pa.array([0] * count, pa.decimal128(9)),
        "bytes": pa.array([b"0"] * count), "8 bits": pa.array([i % 2 for i in range(count)], pa.int8()),
        "a dictionary": pa.array(["fat"] * count).dictionary_encode(),
        "a list": pa.array([[0]] * count), "an object": pa.array([{"a": 1}] * count),
        "one class": pa.array([0] * count), "2 billion": pa.array([2**31] * count),
    }.items():  # fmt: skip
        yield "labels of another kind", name, write(rows.set_column(label, "label", values))
    for name, values in {
        "NaN": [[float("nan")] * 2] * count, "infinite": [[float("inf"), 0.0]] * count,
        "negative": [[-1.0, 2.0]] * count, "too short": [[1.0]] * count,
        "of odd lengths": [[0.5, 0.5], [1.0]] * (count // 2) + [[1.0]] * (count % 2), "null": [None] * count,
        "empty": [[]] * count,
    }.items():  # fmt: skip
        if "soft_label" not in rows.schema.names:
            yield (
                "soft labels of another kind",
                name,
                write(rows.append_column("soft_label", pa.array(values, pa.list_(pa.float32())))),
            )
    yield "columns", "none", write(pa.table({}))
    yield "columns", "no rows", write(rows.slice(0, 0))
    yield "columns", "one row", write(rows.slice(0, 1))
    yield "columns", "no images", write(rows.drop_columns(["image"]))
    yield "columns", "no labels", write(rows.drop_columns(["label"]))
    yield "columns", "labels twice", write(rows.append_column("label", rows["label"]))
    yield "columns", "images twice", write(rows.append_column("image", rows["image"]))
    yield "columns", "two of images", write(rows.append_column("picture", rows["image"]))
    yield "columns", "2,000 more", write(_with_columns(rows, 2000))
    for name in ("\x1b[2J", "a\0b", "", "../x", "x" * 10_000, "__class__", "image.bytes"):
        yield "columns", f"one called {name[:20]!a}", write(rows.append_column(name, pa.array([0] * count)))
    nested = pa.array([0] * count)
    for _ in range(60):
        nested = pa.StructArray.from_arrays([nested], ["x"])
    yield "columns", "60 deep", write(rows.append_column("deep", nested))
    extension = pa.field(
        "more",
        pa.binary(),
        metadata={"ARROW:extension:name": "arrow.py_extension_type", "ARROW:extension:metadata": hostile_pickle(0)},
    )
    schema = pa.schema([*rows.schema, extension], rows.schema.metadata)
    yield (
        "pickle",
        "as a type of pyarrow",
        write(pa.Table.from_arrays([*rows.columns, pa.array([b""] * count)], schema=schema)),
    )


def _with_columns(rows: pa.Table, number: int) -> pa.Table:
    extra = {f"c{i}": pa.array([i] * len(rows)) for i in range(number)}
    columns = dict(zip(rows.schema.names, rows.columns, strict=True)) | extra
    return pa.table(columns).replace_schema_metadata(rows.schema.metadata)


def of_parquet(target: str, rows: pa.Table) -> Iterator[tuple[str, str, Change]]:
    """The same for a Parquet file, and how it is packed."""

    def write(changed: pa.Table, **options: Any) -> Change:
        return lambda folder: pq.write_table(changed, folder / target, **options)

    yield from of_images(rows, write)
    for codec in ("none", "snappy", "gzip", "brotli", "lz4", "zstd"):
        yield "another packing", codec, write(rows, compression=codec)
    yield "another packing", "pages of version 2", write(rows, data_page_version="2.0")
    yield "another packing", "no dictionary", write(rows, use_dictionary=False)
    yield "another packing", "a group a row", write(rows, row_group_size=1)
    yield "another packing", "checksums", write(rows, write_page_checksum=True)
    kind = rows.schema.field("image").type
    large = encoded(noise(0, 700))

    def repeated(count: int, data: bytes, **options: Any) -> Change:
        def change(folder: Path) -> None:
            cells = pa.array([{"bytes": data, "path": None}] * count, kind)
            pq.write_table(_like(rows, cells), folder / target, **options)

        return change

    yield "a bomb", "a large picture in 1,000 rows", repeated(1000, large)
    yield "a bomb", "a flat picture of 30 MB in 20 rows", repeated(20, encoded(noise(0, 1).resize((3200, 3200))))
    yield "a bomb", "a cell of 300 MB of zeros", repeated(2, bytes(3 * 10**8), compression="zstd")

    def equal(folder: Path) -> None:
        schema = pa.schema([("label", pa.int64())], rows.schema.metadata)
        batch = pa.table({"label": np.zeros(10**7, np.int64)}).cast(schema)
        with pq.ParquetWriter(folder / target, schema) as writer:
            for _ in range(10):
                writer.write_table(batch, row_group_size=10**7)

    yield "a bomb", "100 million equal labels", equal


def _like(rows: pa.Table, cells: pa.Array) -> pa.Table:
    """A table with these images, and labels."""
    columns = {
        name: rows[name].take(pa.array(np.arange(len(cells)) % len(rows)))
        for name in rows.schema.names
        if name != "image"
    }
    table = pa.table({"image": cells, **columns})
    return table.cast(pa.schema([rows.schema.field(name) for name in table.schema.names])).replace_schema_metadata(
        rows.schema.metadata
    )


def of_arrow(target: str, rows: pa.Table) -> Iterator[tuple[str, str, Change]]:
    """The same for an Arrow stream."""

    def write(changed: pa.Table, compression: str | None = None) -> Change:
        def change(folder: Path) -> None:
            with pa.ipc.new_stream(
                folder / target, changed.schema, options=pa.ipc.IpcWriteOptions(compression=compression)
            ) as writer:
                writer.write_table(changed)

        return change

    yield from of_images(rows, write)
    for codec in ("lz4", "zstd"):
        yield "another packing", codec, write(rows, codec)

    def as_file(folder: Path) -> None:
        with pa.ipc.new_file(folder / target, rows.schema) as writer:
            writer.write_table(rows)

    yield "another packing", "a file and no stream", as_file

    def schema_only(folder: Path) -> None:
        pa.ipc.new_stream(folder / target, rows.schema).close()

    yield "another packing", "a schema alone", schema_only
    data = io.BytesIO()
    with pa.ipc.new_stream(data, rows.schema) as writer:
        writer.write_table(rows)
    content = data.getvalue()
    # Offsets, lengths and vectors of the messages are 32 and 64 bits wide, at places that are divided by 4.
    rng = np.random.default_rng(0)
    for number in range(120):
        changed = bytearray(content)
        place = int(rng.integers(0, min(len(content), 4000) // 4)) * 4
        changed[place : place + 4] = [
            b"\xff\xff\xff\x7f",
            b"\xff\xff\xff\xff",
            b"\0\0\0\x40",
            b"\x01\0\0\0",
            bytes(4),
        ][number % 5]
        yield "offsets that lie", f"number {number}", lambda folder, c=bytes(changed): (folder / target).write_bytes(c)


def of_coords(target: str) -> Iterator[tuple[str, str, Change]]:
    """Kind, what is changed, and the change, for a file of coordinates in HDF5."""
    import h5py
    from slides import write_clam, write_trident

    corners = [(10 * i, 5 * i) for i in range(12)]

    def edit(change: Callable[[Any], object]) -> Change:
        def edited(folder: Path) -> None:
            with h5py.File(folder / target, "a") as file:
                change(file)

        return edited

    def with_coords(**options: Any) -> Change:
        def change(file: Any) -> None:
            attributes = dict(file["coords"].attrs)
            del file["coords"]
            file.create_dataset("coords", **options).attrs.update(attributes)

        return edit(change)

    def plain(values: Any) -> Change:
        return with_coords(data=values)

    for name, values in {
        "floats": np.array(corners, float), "NaN": np.full((12, 2), np.nan), "infinite": np.full((12, 2), np.inf),
        "text": np.array([b"a"] * 12),
        "three of a tile": np.zeros((12, 3), int), "flat": np.zeros(24, int), "none": np.zeros((0, 2), int),
        "scalar": 3, "negative": -np.array(corners) - 10**6,
        "huge": np.full((12, 2), 2**62), "unsigned": np.full((12, 2), 2**63, np.uint64),
        "all the same": np.zeros((12, 2), int), "complex": np.zeros((12, 2), complex),
        "fields": np.zeros(12, [("x", "i4"), ("y", "i4")]), "true and false": np.zeros((12, 2), bool),
        "outside": np.array(corners) + 10_000,
    }.items():  # fmt: skip
        yield "coordinates of another kind", name, plain(values)
    yield "a claim of much", "2^40 places", with_coords(shape=(2**40, 2), dtype="i8", chunks=(1024, 2))
    yield "a claim of much", "2^62 places", with_coords(shape=(2**60, 2), dtype="i8", chunks=(1024, 2))
    yield (
        "a bomb",
        "800 MB of zeros",
        with_coords(shape=(5 * 10**7, 2), dtype="i8", chunks=(10**6, 2), compression="gzip", fillvalue=0),
    )
    for name in ("patch_size", "patch_level"):
        for called, value in {
            "negative": -1, "0": 0, "a fraction": 0.5, "NaN": np.nan, "infinite": np.inf, "text": "x",
            "a list": [1, 2], "huge": 2**62, "10^30": 1e30,
            "objects": np.array([b"x"] * 3), "empty": h5py.Empty("f"), "a reference": None,
        }.items():  # fmt: skip

            def change(file: Any, name: str = name, value: Any = value) -> None:
                file["coords"].attrs[name] = file.ref if value is None else value

            yield "attributes that lie", f"{name} is {called}", edit(change)

        def leave_out(file: Any, name: str = name) -> None:
            del file["coords"].attrs[name]

        yield "attributes that lie", f"no {name}", edit(leave_out)
    for called, link in {
        "a file elsewhere": h5py.ExternalLink("/etc/passwd", "/coords"),
        "the other slide's": h5py.ExternalLink("b.h5", "/coords"), "itself": h5py.SoftLink("/coords"),
        "nothing": h5py.SoftLink("/nothing"),
    }.items():  # fmt: skip

        def point(file: Any, link: Any = link) -> None:
            del file["coords"]
            file["coords"] = link

        yield "a link in a file", called, edit(point)
    outside = os.path.abspath("/etc/passwd")
    yield "a link in a file", "bytes elsewhere", with_coords(shape=(12, 2), dtype="i8", external=[(outside, 0, 192)])
    layout = h5py.VirtualLayout(shape=(12, 2), dtype="i8")
    layout[:] = h5py.VirtualSource("b.h5", "coords", shape=(12, 2))

    def virtual(file: Any) -> None:
        attributes = dict(file["coords"].attrs)
        del file["coords"]
        file.create_virtual_dataset("coords", layout).attrs.update(attributes)

    yield "a link in a file", "a virtual data set", edit(virtual)

    def group(file: Any) -> None:
        del file["coords"]
        file.create_group("coords")

    yield "coordinates of another kind", "a group", edit(group)
    yield (
        "coordinates of another kind",
        "Python objects",
        with_coords(shape=(12, 2), dtype=h5py.special_dtype(ref=h5py.Reference)),
    )
    yield "coordinates of another kind", "TRIDENT's", lambda folder: write_trident(folder / target, corners)
    for called, value in {
        "another slide": "b",
        "a path": "../../b",
        "long": "x" * 10_000,
        "bytes": b"\xff",
        "a number": 3,
    }.items():
        yield (
            "attributes that lie",
            f"name is {called}",
            lambda folder, v=value: write_clam(folder / target, corners, name=v),
        )
