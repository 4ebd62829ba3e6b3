"""The tables of image datasets: which columns there are, reading them strictly, and writing them in one way.

A Parquet file has room for much that no reader shows. So a table is published only in the form that `write_table`
gives it, written anew from pixels and numbers: `read_table` takes nothing that this module does not know, and
`write_table` rounds what need not be exact. What `histodistill` writes itself has this form from the start.

A later column is added on purpose: by a line in `COLUMNS`, its name in the kinds of tables that may have it, and its
meaning on the card (`dataset_card`).
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from histodistill.hub_cards.errors import ContentError
from histodistill.hub_cards.names import LONGEST_NAME, fault_of_published_name
from histodistill.hub_cards.parquet_pages import measure_pages
from histodistill.hub_cards.pictures import decode_png, encode_png


if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq


@dataclass(frozen=True)
class Column:
    """What a column beside the images holds.

    Attributes:
        dtype: Of its numbers, as numpy and Arrow call it.
        least, most: The range of its numbers, both included.
        per_class: Whether it has a number for each class in each row.
        names: Of which names its numbers are the indices, `class` or `site`; a ClassLabel of `datasets`.
    """

    dtype: str
    least: float = -np.inf
    most: float = np.inf
    per_class: bool = False
    names: str | None = None


#: Every column that a table may have beside `image`, in the order in which they are written.
COLUMNS = {
    "label": Column("int64", 0, names="class"),
    # With the sum 1.
    "soft_label": Column("float32", 0, per_class=True),
    # Of a generator that reads 32 bits: see `plan_pool` of the training.
    "seed": Column("int64", 0, 2**32 - 1),
    # -1 is an image of no community.
    "community": Column("int64", -1, 2**31 - 1),
    "modular_centrality": Column("float64"),
    "site": Column("int64", 0, names="site"),
}
#: The columns that each kind of table may have. A table always has images and labels.
POOL = ("label", "seed")
DISTILLED = ("label", "soft_label", "seed", "community", "modular_centrality")
MERGED = (*DISTILLED, "site")

#: Significant digits of numbers that are not whole: the bits below them could carry a message. Digits, not decimals,
#: of soft labels too, since a training at a temperature above 1 goes by the small ones: at temperature 4, .0001 counts
#: as a tenth of 1 does. A row's sum changes by at most .0005.
SIGNIFICANT_DIGITS = 4
#: Soft labels below this are 0.
LEAST_SOFT_LABEL = 1e-12
#: How far the sum of a row of soft labels may be from 1 in a table that was not rounded yet.
SUM_TOLERANCE = 1e-3
#: The most names of classes or sites.
MAX_NAMES = 10_000
#: The most bytes that a table may unpack to, unless a caller says otherwise.
MAX_BYTES = 2**32

# Keys in the footer of a Parquet file: of Arrow, of `datasets`, and of its writer. Only the second is looked into, as
# none is written again as it was.
_KEYS = {b"ARROW:schema", b"huggingface", b"content_defined_chunking"}
# What Arrow may note of a field: a number.
_FIELD_KEYS = {b"PARQUET:field_id"}
# Encodings in which a cell takes no more memory than it takes of the file.
_PLAIN = {"PLAIN", "RLE", "BIT_PACKED"}
# Rows that are read at a time, and bytes of pixels that are written into one group of rows, of so many rows at most.
_BATCH, _GROUP_BYTES, _GROUP_ROWS = 256, 2**26, 10_000


@dataclass(frozen=True, repr=False)
class ImageTable:
    """Images and what is known of each.

    Attributes:
        images: uint8 N×S×S×3.
        columns: Name → array of N numbers, or N×C for C classes; see `COLUMNS`. Always with `label`.
        class_names: Names of the labels.
        site_names: Names of the sites, where there is a column `site`.
    """

    images: np.ndarray
    columns: dict[str, np.ndarray]
    class_names: list[str]
    site_names: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.images)


def check_set_size(needed: int) -> None:
    """Sees that a table is not too large to be published.

    Args:
        needed: Bytes that it unpacks to.

    Raises:
        ContentError: If it has more than `MAX_BYTES`.
    """
    if needed > MAX_BYTES:
        raise ContentError(f"it unpacks to {needed:,} bytes: a set to be published may have {MAX_BYTES:,}")


def read_table(
    source: bytes | BinaryIO,
    columns: Sequence[str] = MERGED,
    *,
    is_whole: bool = True,
    check_size: Callable[[int], None] = check_set_size,
) -> ImageTable:
    """Reads a Parquet file that holds an image dataset and nothing else.

    Args:
        source: The file, or its bytes.
        columns: Those that it may have, such as `DISTILLED`; it need not have all, but `label`.
        is_whole: Whether it is all of the dataset, so that every class must have an image.
        check_size: Takes the bytes that the file unpacks to, before it is unpacked, and raises if these are too many.

    Returns:
        The table as it is; only `write_table` rounds.

    Raises:
        ContentError: If it cannot be read, or holds anything else.
    """
    stream = io.BytesIO(source) if isinstance(source, bytes) else source
    with _open(stream) as file:
        names = _check_schema(file, columns)
        images = _read_images(file, _check_pages(stream, file.metadata, check_size), check_size)
        table = ImageTable(
            images,
            {
                name: _read_column(file, name, len(names["class"]))
                for name in COLUMNS
                if name in file.schema_arrow.names
            },
            names["class"],
            names.get("site", []),
        )
    check_table(table, is_whole=is_whole)
    return table


def write_table(table: ImageTable) -> bytes:
    """A table as a Parquet file that `load_dataset` opens; the same table gives the same bytes (with one pyarrow).

    Soft labels and other numbers that are not whole are rounded: see `canonical`.

    Raises:
        ContentError: If the table has other columns or values than it may have.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = canonical(table)
    check_table(table)
    schema = table_schema(table)
    size = table.images[0].size
    step = max(1, min(_GROUP_ROWS, _GROUP_BYTES // size))
    sink = pa.BufferOutputStream()
    options = {
        "compression": {path: "NONE" if path.startswith("image.") else "SNAPPY" for path in _leaves(schema)},
        "use_dictionary": [path for path in _leaves(schema) if not path.startswith("image.")],
        # Least and greatest values would stand in the footer once more.
        "write_statistics": False,
    }
    with pq.ParquetWriter(sink, schema, **options) as writer:
        for first in range(0, len(table), step):
            rows = slice(first, first + step)
            cells = [{"bytes": encode_png(image), "path": None} for image in table.images[rows]]
            arrays = [pa.array(cells, schema.field("image").type)]
            arrays += [_to_arrow(values[rows], schema.field(name).type) for name, values in table.columns.items()]
            writer.write_table(pa.Table.from_arrays(arrays, schema=schema), row_group_size=step)
    return sink.getvalue().to_pybytes()


def canonical(table: ImageTable) -> ImageTable:
    """A table with its columns in order and of the right types, and rounded; what is so already stays as it is."""
    if unknown := table.columns.keys() - COLUMNS.keys():
        raise ContentError(f"there is no column {min(unknown)!r} in an image dataset: leave it out")
    columns = {}
    for name, column in COLUMNS.items():
        if name in table.columns:
            values = np.asarray(table.columns[name])
            if column.per_class:
                values = round_soft_labels(values)
            elif values.dtype.kind == "f":
                values = round_significant(values)
            columns[name] = values.astype(column.dtype, casting="same_kind")
    return replace(table, columns=columns)


def round_soft_labels(soft_labels: np.ndarray) -> np.ndarray:
    """Rounds probabilities to `SIGNIFICANT_DIGITS` digits each; rows that are rounded already stay as they are.

    Args:
        soft_labels: N×C, the sum of a row near 1: all others are divided by it first.

    Returns:
        float32 N×C.
    """
    given = soft_labels.astype(np.float64)
    sums = given.sum(axis=1, keepdims=True)
    near = np.abs(sums - 1) <= SUM_TOLERANCE  # what is no probabilities is left for a check to find
    as_given, scaled = (_round_probabilities(values) for values in (given, given / np.where(near, sums, 1)))
    is_rounded = (as_given == soft_labels).all(axis=1, keepdims=True)
    return np.where(is_rounded, as_given, scaled)


def _round_probabilities(values: np.ndarray) -> np.ndarray:
    rounded = round_significant(values.ravel()).reshape(values.shape)
    rounded[np.abs(rounded) < LEAST_SOFT_LABEL] = 0
    return rounded.astype(np.float32)


def round_significant(values: np.ndarray) -> np.ndarray:
    """Rounds float64 N to `SIGNIFICANT_DIGITS` digits; what is rounded already stays as it is."""
    # By way of text, which alone gives the float64 nearest to a decimal number. 0 is added to make -0 a 0.
    return np.array([float(f"{value:.{SIGNIFICANT_DIGITS}g}") for value in values], dtype=np.float64) + 0.0


def check_table(table: ImageTable, *, is_whole: bool = True) -> None:
    """Sees that a table holds what it may hold.

    Args:
        table: The table.
        is_whole: Whether every class and every site must have an image.

    Raises:
        ContentError: Says what it is that it may not hold.
    """
    images = table.images
    if (
        images.dtype != np.uint8
        or images.ndim != 4
        or not images.size
        or images.shape[1:] != (*images.shape[1:2] * 2, 3)
    ):
        raise ContentError(
            f"its images are {images.dtype} of shape {images.shape}: they must be RGB squares of 8 bits"
        )
    if "label" not in table.columns:
        raise ContentError("it has no column label: every image must have the class that it shows")
    names = {"class": table.class_names, "site": table.site_names}
    for kind, texts in names.items():
        check_names(texts, kind)
    if bool(table.site_names) != ("site" in table.columns):
        raise ContentError("it has names of sites or a column site, and not both: it must have both or none")
    for name, values in table.columns.items():
        _check_values(name, values, table, names, is_whole)
    sites = table.columns.get("site", np.zeros(len(table), np.int64))
    if "seed" in table.columns and len(np.unique(np.stack([sites, table.columns["seed"]]), axis=1)[0]) < len(table):
        raise ContentError("its column seed has a number twice: each image has a seed of its own")


def check_names(names: Sequence[str], kind: str) -> None:
    """Sees that names are plain, see `fault_of_published_name`, and no two alike.

    Args:
        names: Of the classes or the sites.
        kind: `class` or `site`, for messages.

    Raises:
        ContentError: For the first name that is not.
    """
    if len(names) > MAX_NAMES:
        raise ContentError(f"it has {len(names)} names of a {kind}: it may have {MAX_NAMES}")
    for name in names:
        if fault := fault_of_published_name(name):
            raise ContentError(f"its {kind} {ascii(name)[:LONGEST_NAME]} has {fault}: give it a plain name")
    if len(set(names)) < len(names):
        raise ContentError(f"its {kind} {max(names, key=list(names).count)!r} is named twice: name each once")


def table_schema(table: ImageTable) -> pa.Schema:
    """The columns of a table in Arrow's terms, with what `datasets` reads of them."""
    import pyarrow as pa

    names = {"class": table.class_names, "site": table.site_names}
    about = {"info": {"features": {name: _feature(name, names) for name in ("image", *table.columns)}}}
    fields = [(name, _arrow_type(name, len(table.class_names))) for name in ("image", *table.columns)]
    return pa.schema(fields, metadata={"huggingface": json.dumps(about)})


def _arrow_type(name: str, num_classes: int) -> pa.DataType:
    import pyarrow as pa

    if name == "image":
        return pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    column = COLUMNS[name]
    kind = pa.type_for_alias(column.dtype)
    return pa.list_(kind, num_classes) if column.per_class else kind


def _feature(name: str, names: Mapping[str, list[str]]) -> dict[str, Any]:
    """What `datasets` notes of a column."""
    if name == "image":
        return {"_type": "Image"}
    column = COLUMNS[name]
    if column.names:
        return {"names": names[column.names], "_type": "ClassLabel"}
    value = {"dtype": column.dtype, "_type": "Value"}
    return {"feature": value, "length": len(names["class"]), "_type": "List"} if column.per_class else value


def _leaves(schema: pa.Schema) -> list[str]:
    """The columns of numbers and bytes that a Parquet file of this schema has, as it calls them."""
    paths = {"image": ["image.bytes", "image.path"], "soft_label": ["soft_label.list.element"]}
    return [path for name in schema.names for path in paths.get(name, [name])]


def _to_arrow(values: np.ndarray, kind: pa.DataType) -> pa.Array:
    import pyarrow as pa

    if values.ndim == 1:
        return pa.array(values, kind)
    return pa.FixedSizeListArray.from_arrays(pa.array(values.ravel(), kind.value_type), type=kind)


@contextmanager
def _open(stream: BinaryIO) -> Iterator[pq.ParquetFile]:
    """The Parquet file; what goes wrong inside the block while it is read becomes a ContentError."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(stream) as file:
            yield file
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ContentError(f"it is no Parquet file that can be read ({reason})") from error


def _check_schema(file: pq.ParquetFile, allowed: Sequence[str]) -> dict[str, list[str]]:
    """Sees that a file has known columns of the right types, and says nothing else of them.

    Returns:
        The names of the classes, and of the sites where there are any: `class` or `site` → names.
    """
    schema = file.schema_arrow
    about = {**(file.metadata.metadata or {}), **(schema.metadata or {})}
    if unknown := about.keys() - _KEYS:
        raise ContentError(f"its footer has the key {min(unknown)!r}, which is not needed to read it")
    if len(set(schema.names)) < len(schema.names) or not {"image", "label"} <= set(schema.names):
        raise ContentError("its columns are not image, label and others, each once")
    for name in schema.names:
        if name not in ("image", *allowed):
            raise ContentError(f"it has a column {name!r}: there may be image, {', '.join(allowed)}")
    features = _features(about)
    names = {
        kind: features[name]["names"]
        for name, kind in (("label", "class"), ("site", "site"))
        if isinstance(features.get(name), dict) and isinstance(features[name].get("names"), list)
    }
    for kind, texts in names.items():
        check_names(texts, kind)
    if not names.get("class") or features != {name: _feature(name, {"site": [], **names}) for name in schema.names}:
        raise ContentError("what its footer says of its columns (huggingface) is not what they are")
    for found in schema:
        right = _arrow_type(found.name, len(names["class"]))
        if found.type != right:
            raise ContentError(f"its column {found.name} is of the type {found.type} and must be {right}")
        parts = [found, *(found.type.field(place) for place in range(found.type.num_fields))]
        if any((part.metadata or {}).keys() - _FIELD_KEYS for part in parts):
            raise ContentError(f"its column {found.name} has notes, which are not needed to read it")
    return names


def _features(about: Mapping[bytes, bytes]) -> dict[str, Any]:
    """What `datasets` notes of the columns: name → description."""
    try:
        note = json.loads(about.get(b"huggingface", b""))
    except (ValueError, RecursionError):
        note = None
    match note:
        case {"info": {"features": dict(features), **more_info}, **more} if not more_info and not more:
            return features
    raise ContentError("its footer does not say what its columns are (huggingface), or says more")


def _check_pages(stream: BinaryIO, metadata: pq.FileMetaData, check_size: Callable[[int], None]) -> int:
    """Sees what the pages of a file unpack to, whatever its footer says.

    Returns:
        How many rows to read at a time, so that no batch unpacks to very much: encodings other than the plain one
        repeat what they have once in the file, and then each image may be as large as all.
    """
    needed, batch = 0, _BATCH
    groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
    for chunk in (group.column(place) for group in groups for place in range(group.num_columns)):
        try:
            pages = measure_pages(stream, chunk)
        except ValueError as error:
            raise ContentError(f"it is no Parquet file that can be read ({error})") from error
        # A number that is repeated is stored once.
        needed += max(pages.num_bytes, 8 * pages.num_values)
        if chunk.path_in_schema == "image.bytes" and (pages.dictionary or not set(chunk.encodings) <= _PLAIN):
            batch = min(batch, _GROUP_BYTES // max(1, pages.num_bytes))
    check_size(needed)
    if metadata.num_rows < 1 or metadata.num_rows != sum(group.num_rows for group in groups):
        raise ContentError(f"it says that it has {metadata.num_rows} rows, and does not")
    return max(1, batch)


def _read_images(file: pq.ParquetFile, batch_size: int, check_size: Callable[[int], None]) -> np.ndarray:
    """The images, uint8 N×H×W×3."""
    num_rows, images, row = file.metadata.num_rows, None, 0
    for batch in file.iter_batches(batch_size, columns=["image"]):
        cells = batch.column("image")
        data, paths = cells.field("bytes"), cells.field("path")
        if cells.null_count or data.null_count or paths.null_count < len(paths):
            raise ContentError(f"its rows from {row} have a cell without an image, or with a file name")
        for cell in data:
            try:
                image = decode_png(cell.as_py())
            except ContentError as error:
                raise ContentError(f"row {row}: {error}") from error
            if images is None:
                numbers = sum(8 * max(1, field.type.num_fields) for field in file.schema_arrow)
                check_size(num_rows * (image.size + numbers))
                images = np.empty((num_rows, *image.shape), np.uint8)
            if image.shape != images.shape[1:]:
                raise ContentError(f"row {row}: the image is of another size than the first: all must be of one size")
            if row == num_rows:
                raise ContentError(f"it says that it has {num_rows} rows, and has more")
            images[row] = image
            row += 1
    if images is None or row < num_rows:
        raise ContentError(f"it says that it has {num_rows} rows, and has {row}")
    return images


def _read_column(file: pq.ParquetFile, name: str, num_classes: int) -> np.ndarray:
    """A column as an array, N or N×C."""
    column = file.read(columns=[name]).column(name)
    values = column.combine_chunks()
    if COLUMNS[name].per_class:
        values = values.flatten()
    if column.null_count or values.null_count:
        raise ContentError(f"its column {name} has cells without a number")
    array = np.array(values)  # a copy, which may be written to
    return array.reshape(-1, num_classes) if COLUMNS[name].per_class else array


def _check_values(
    name: str, values: np.ndarray, table: ImageTable, names: Mapping[str, list[str]], is_whole: bool
) -> None:
    """Sees that a column has the right shape, type and numbers."""
    if name not in COLUMNS:
        raise ContentError(f"it has a column {name!r}: there may be {', '.join(COLUMNS)}")
    column = COLUMNS[name]
    shape = (len(table), len(table.class_names)) if column.per_class else (len(table),)
    if values.shape != shape or values.dtype != column.dtype:
        raise ContentError(
            f"its column {name} is {values.dtype} of shape {values.shape}: it must be {column.dtype} of shape {shape}"
        )
    most = column.most if column.names is None else len(names[column.names]) - 1
    wrong = ~np.isfinite(values) | (values < column.least) | (values > most)
    if wrong.any():
        row = int(np.argwhere(wrong)[0][0])
        raise ContentError(f"row {row}: its column {name} holds {values[wrong][0]}, which is out of range")
    if is_whole and column.names and (unused := {*range(int(most) + 1)} - {*np.unique(values).tolist()}):
        raise ContentError(f"its {column.names} {names[column.names][min(unused)]!r} has no image: leave the name out")
    if column.per_class:
        sums = values.sum(axis=1, dtype=np.float64)
        if (np.abs(sums - 1) > SUM_TOLERANCE).any():
            row = int(np.abs(sums - 1).argmax())
            raise ContentError(f"row {row}: its column {name} has the sum {sums[row]:.4g}: it must be probabilities")
