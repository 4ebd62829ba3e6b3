"""The files of image datasets: Parquet, read strictly, and written in one way.

A Parquet file has room for much that no reader shows. So a table is published only in the form that `write_table`
gives it, written anew from pixels and numbers: `read_table` takes nothing that `tables` does not know, and
`write_table` rounds what need not be exact. What `histodistill` writes itself has this form from the start.

A table of more images than should be in memory is written by `write_rows`, which asks for them group by group, and
read by `TableFile`.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

import numpy as np

from histodistill.hub_cards.errors import ContentError
from histodistill.hub_cards.parquet_pages import measure_pages
from histodistill.hub_cards.part_files import shown
from histodistill.hub_cards.pictures import decode_png, encode_png
from histodistill.hub_cards.tables import COLUMNS, MAX_VIEWS, MERGED, ImageTable, canonical, check_names, check_table


if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq


#: The most bytes that a table may unpack to, unless a caller says otherwise.
MAX_BYTES = 2**32

# Keys in the footer of a Parquet file: of Arrow, of `datasets`, and of its writer. Only the second is looked into, as
# none is written again as it was.
_KEYS = {b"ARROW:schema", b"huggingface", b"content_defined_chunking"}
# What Arrow may note of a field: a number.
_FIELD_KEYS = {b"PARQUET:field_id"}
# Encodings in which a cell takes no more memory than it takes of the file.
_PLAIN = {"PLAIN", "RLE", "BIT_PACKED"}
# Characters of a column's name that a message shows, at most.
_SHOWN = 80
# Rows that are read at a time, and bytes of pixels that are written into one group of rows, of so many rows at most.
_BATCH, _GROUP_BYTES, _GROUP_ROWS = 256, 2**26, 10_000


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
    with _refusals(), _open(stream) as file:
        names = _check_schema(file, columns)
        images = _read_images(file, _check_pages(stream, file.metadata, check_size).batch, check_size)
        table = ImageTable(images, _read_columns(file, len(names["class"])), names["class"], names.get("site", []))
    check_table(table, is_whole=is_whole)
    return table


class TableFile:
    """A Parquet file that holds an image dataset and nothing else, of which images are read when they are asked for.

    The file must stay open. All of it is checked as `read_table` does it, but what is in a group of rows when this is
    read.

    Args:
        stream: The file.
        columns: Those that it may have.
        is_whole: Whether it is all of the dataset, so that every class must have an image.
        check_size: As for `read_table`.

    Attributes:
        table: What it holds, but for the pixels: the images have the right shape, are all black, and take no memory.
        in_groups: Whether each group of rows takes no more memory than it takes of the file. Otherwise no group can be
            read, and the file must be read whole, by `read_table`; ours are not so.
        first_rows: int64 G + 1, the first row of each group, and how many rows there are.

    Raises:
        ContentError: If it cannot be read, or holds anything else.
    """

    def __init__(
        self,
        stream: BinaryIO,
        columns: Sequence[str] = MERGED,
        *,
        is_whole: bool = True,
        check_size: Callable[[int], None] = check_set_size,
    ):
        with _refusals():
            self._file = file = _open(stream)
            names = _check_schema(file, columns)
            pages = _check_pages(stream, file.metadata, check_size)
            self.in_groups = pages.in_groups
            counts = [file.metadata.row_group(number).num_rows for number in range(file.metadata.num_row_groups)]
            self.first_rows = np.cumsum([0, *counts])
            image = _decode(next(_read_cells(file, 1))[0], 0)
            check_size(len(self) * (image.size + _number_bytes(file)))
            images = np.broadcast_to(np.uint8(0), (len(self), *image.shape))
            self.table = ImageTable(
                images, _read_columns(file, len(names["class"])), names["class"], names.get("site", [])
            )
        check_table(self.table, is_whole=is_whole)

    def __len__(self) -> int:
        return int(self.first_rows[-1])

    def read_group(self, number: int) -> ImageGroup:
        """The images of a group of rows, as they are stored.

        Raises:
            ContentError: If it cannot be read.
        """
        first, end = (int(row) for row in self.first_rows[number : number + 2])
        with _refusals():
            cells = self._file.read_row_group(number, columns=["image"]).column("image")
        if len(cells) != end - first:
            raise ContentError(f"it says that a group of it has {end - first} rows, and it has {len(cells)}")
        return ImageGroup([cell for chunk in cells.chunks for cell in _cells_of(chunk, first)], first, self.table)


class ImageGroup:
    """Some rows of a table with the images as they are stored; see `TableFile.read_group`."""

    def __init__(self, cells: Sequence[pa.BinaryScalar], first_row: int, table: ImageTable):
        self._cells, self._first_row, self._shape = cells, first_row, table.images.shape[1:]

    def decode(self, row: int) -> np.ndarray:
        """An image of the file, uint8 S×S×3.

        Args:
            row: Of the file.

        Raises:
            ContentError: If it is no such image.
        """
        return _checked(_decode(self._cells[row - self._first_row], row), row, self._shape)


def write_table(table: ImageTable) -> bytes:
    """A table as a Parquet file that `load_dataset` opens; the same table gives the same bytes (with one pyarrow).

    Soft labels and other numbers that are not whole are rounded: see `canonical`.

    Raises:
        ContentError: If the table has other columns or values than it may have.
    """
    sink = io.BytesIO()
    write_rows(sink, table)
    return sink.getvalue()


def write_rows(sink: BinaryIO, table: ImageTable, *, is_whole: bool = True) -> None:
    """Writes what `write_table` gives, group of rows by group of rows: only the images of one are asked for at a time.

    Args:
        sink: The file.
        table: The table, or rows of one.
        is_whole: Whether these are all rows, so that every class must have an image.

    Raises:
        ContentError: If the table has other columns or values than it may have.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = canonical(table)
    check_table(table, is_whole=is_whole)
    schema = table_schema(table)
    size = int(np.prod(table.images.shape[1:]))
    step = max(1, min(_GROUP_ROWS, _GROUP_BYTES // size))
    options = {
        "compression": {path: "NONE" if path.startswith("image.") else "SNAPPY" for path in _leaves(schema)},
        "use_dictionary": [path for path in _leaves(schema) if not path.startswith("image.")],
        # Least and greatest values would stand in the footer once more.
        "write_statistics": False,
    }
    # Packing takes most of the time, and lets other threads work meanwhile.
    with pq.ParquetWriter(sink, schema, **options) as writer, ThreadPoolExecutor() as threads:
        for first in range(0, len(table), step):
            rows = slice(first, first + step)
            packed = threads.map(encode_png, table.images[rows])
            arrays = [pa.array([{"bytes": data, "path": None} for data in packed], schema.field("image").type)]
            arrays += [_to_arrow(values[rows], schema.field(name).type) for name, values in table.columns.items()]
            writer.write_table(pa.Table.from_arrays(arrays, schema=schema), row_group_size=step)


def table_schema(table: ImageTable) -> pa.Schema:
    """The columns of a table in Arrow's terms, with what `datasets` reads of them."""
    import pyarrow as pa

    names = {"class": table.class_names, "site": table.site_names}
    num_views = table.columns["soft_label_views"].shape[1] if "soft_label_views" in table.columns else 0
    about = {"info": {"features": {name: _feature(name, names, num_views) for name in ("image", *table.columns)}}}
    fields = [(name, _arrow_type(name, len(table.class_names), num_views)) for name in ("image", *table.columns)]
    return pa.schema(fields, metadata={"huggingface": json.dumps(about)})


def _arrow_type(name: str, num_classes: int, num_views: int) -> pa.DataType:
    import pyarrow as pa

    if name == "image":
        return pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    kind, length = pa.type_for_alias(COLUMNS[name].dtype), _length(name, num_classes, num_views)
    return pa.list_(kind, length) if length else kind


def _length(name: str, num_classes: int, num_views: int) -> int:
    """Numbers in a cell of a column; 0 where it holds one, and no list."""
    column = COLUMNS[name]
    return num_views * num_classes if column.per_view else num_classes if column.per_class else 0


def _feature(name: str, names: Mapping[str, list[str]], num_views: int) -> dict[str, Any]:
    """What `datasets` notes of a column."""
    if name == "image":
        return {"_type": "Image"}
    column = COLUMNS[name]
    if column.names:
        return {"names": names[column.names], "_type": "ClassLabel"}
    value = {"dtype": column.dtype, "_type": "Value"}
    length = _length(name, len(names["class"]), num_views)
    return {"feature": value, "length": length, "_type": "List"} if length else value


def _leaves(schema: pa.Schema) -> list[str]:
    """The columns of numbers and bytes that a Parquet file of this schema has, as it calls them."""
    import pyarrow as pa

    paths = {"image": ["image.bytes", "image.path"]}
    paths |= {
        field.name: [f"{field.name}.list.element"] for field in schema if pa.types.is_fixed_size_list(field.type)
    }
    return [path for name in schema.names for path in paths.get(name, [name])]


def _to_arrow(values: np.ndarray, kind: pa.DataType) -> pa.Array:
    import pyarrow as pa

    if values.ndim == 1:
        return pa.array(values, kind)
    return pa.FixedSizeListArray.from_arrays(pa.array(values.ravel(), kind.value_type), type=kind)


def _open(stream: BinaryIO) -> pq.ParquetFile:
    import pyarrow.parquet as pq

    # Otherwise it keeps what it has read last as long as it is open.
    return pq.ParquetFile(stream, pre_buffer=False)


@contextmanager
def _refusals() -> Iterator[None]:
    """What goes wrong inside the block while a file is read becomes a ContentError."""
    import pyarrow as pa

    try:
        yield
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ContentError(f"it is no Parquet file that can be read ({shown(reason)})") from error


def _check_schema(file: pq.ParquetFile, allowed: Sequence[str]) -> dict[str, list[str]]:
    """Sees that a file has known columns of the right types, and says nothing else of them.

    Returns:
        The names of the classes, and of the sites where there are any: `class` or `site` → names.
    """
    schema = file.schema_arrow
    about = {**(file.metadata.metadata or {}), **(schema.metadata or {})}
    if unknown := about.keys() - _KEYS:
        raise ContentError(f"its footer has the key {shown(min(unknown))}, which is not needed to read it")
    if len(set(schema.names)) < len(schema.names) or not {"image", "label"} <= set(schema.names):
        raise ContentError("its columns are not image, label and others, each once")
    for name in schema.names:
        if name not in ("image", *allowed):
            raise ContentError(f"it has a column {name[:_SHOWN]!r}: there may be image, {', '.join(allowed)}")
    features = _features(about)
    names = {
        kind: features[name]["names"]
        for name, kind in (("label", "class"), ("site", "site"))
        if isinstance(features.get(name), dict) and isinstance(features[name].get("names"), list)
    }
    for kind, texts in names.items():
        check_names(texts, kind)
    num_views = _num_views(schema, len(names.get("class", ())))
    if not names.get("class") or features != {
        name: _feature(name, {"site": [], **names}, num_views) for name in schema.names
    }:
        raise ContentError("what its footer says of its columns (huggingface) is not what they are")
    for found in schema:
        right = _arrow_type(found.name, len(names["class"]), num_views)
        if found.type != right:
            raise ContentError(f"its column {found.name} is of the type {found.type} and must be {right}")
        parts = [found, *(found.type.field(place) for place in range(found.type.num_fields))]
        if any((part.metadata or {}).keys() - _FIELD_KEYS for part in parts):
            raise ContentError(f"its column {found.name} has notes, which are not needed to read it")
    return names


def _num_views(schema: pa.Schema, num_classes: int) -> int:
    """Of how many further views a file has soft labels, where its column of them is of a right type.

    Otherwise it is a number of which that column is of another type.
    """
    length = 0
    if "soft_label_views" in schema.names:
        length = getattr(schema.field("soft_label_views").type, "list_size", 0)
    return min(max(1, length // max(1, num_classes)), MAX_VIEWS - 1)


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


class _Pages(NamedTuple):
    """How a file may be read so that nothing unpacks to very much.

    Encodings other than the plain one repeat what they have once in the file, and then each image may be as large as
    all.

    Attributes:
        batch: So many rows at a time.
        in_groups: Whether it may be a group at a time, since all images have the plain encoding.
    """

    batch: int
    in_groups: bool


def _check_pages(stream: BinaryIO, metadata: pq.FileMetaData, check_size: Callable[[int], None]) -> _Pages:
    """Sees what the pages of a file unpack to, whatever its footer says."""
    needed, batch, in_groups = 0, _BATCH, True
    groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
    for chunk in (group.column(place) for group in groups for place in range(group.num_columns)):
        try:
            pages = measure_pages(stream, chunk)
        except ValueError as error:
            raise ContentError(f"it is no Parquet file that can be read ({error})") from error
        # A number that is repeated is stored once.
        needed += max(pages.num_bytes, 8 * pages.num_values)
        if chunk.path_in_schema == "image.bytes" and (pages.dictionary or not set(chunk.encodings) <= _PLAIN):
            batch, in_groups = min(batch, _GROUP_BYTES // max(1, pages.num_bytes)), False
    check_size(needed)
    if metadata.num_rows < 1 or metadata.num_rows != sum(group.num_rows for group in groups):
        raise ContentError(f"it says that it has {metadata.num_rows} rows, and does not")
    return _Pages(max(1, batch), in_groups)


def _read_images(file: pq.ParquetFile, batch_size: int, check_size: Callable[[int], None]) -> np.ndarray:
    """The images, uint8 N×H×W×3."""
    num_rows, images, row = file.metadata.num_rows, None, 0
    for cells in _read_cells(file, batch_size):
        for cell in cells:
            image = _decode(cell, row)
            if images is None:
                check_size(num_rows * (image.size + _number_bytes(file)))
                images = np.empty((num_rows, *image.shape), np.uint8)
            if row == num_rows:
                raise ContentError(f"it says that it has {num_rows} rows, and has more")
            images[row] = _checked(image, row, images.shape[1:])
            row += 1
    if images is None or row < num_rows:
        raise ContentError(f"it says that it has {num_rows} rows, and has {row}")
    return images


def _number_bytes(file: pq.ParquetFile) -> int:
    """What the numbers of a row take in memory."""
    return sum(8 * max(1, field.type.num_fields) for field in file.schema_arrow)


def _read_cells(file: pq.ParquetFile, batch_size: int) -> Iterator[pa.BinaryArray]:
    """The images of all rows as they are stored, so many at a time."""
    row = 0
    for batch in file.iter_batches(batch_size, columns=["image"]):
        yield _cells_of(batch.column("image"), row)
        row += len(batch)


def _cells_of(cells: pa.StructArray, row: int) -> pa.BinaryArray:
    """The images of some rows from `row` on, as they are stored."""
    data, paths = cells.field("bytes"), cells.field("path")
    if cells.null_count or data.null_count or paths.null_count < len(paths):
        raise ContentError(f"its rows from {row} have a cell without an image, or with a file name")
    return data


def _decode(cell: pa.BinaryScalar, row: int) -> np.ndarray:
    try:
        return decode_png(cell.as_py())
    except ContentError as error:
        raise ContentError(f"row {row}: {error}") from error


def _checked(image: np.ndarray, row: int, shape: tuple[int, ...]) -> np.ndarray:
    if image.shape != shape:
        raise ContentError(f"row {row}: the image is of another size than the first: all must be of one size")
    return image


def _read_columns(file: pq.ParquetFile, num_classes: int) -> dict[str, np.ndarray]:
    """The columns beside the images, in the order of `COLUMNS`."""
    names = set(file.schema_arrow.names)
    return {name: _read_column(file, name, num_classes) for name in COLUMNS if name in names}


def _read_column(file: pq.ParquetFile, name: str, num_classes: int) -> np.ndarray:
    """A column as an array, N, N×C or N×V×C."""
    column = file.read(columns=[name]).column(name)
    values = column.combine_chunks()
    if COLUMNS[name].per_class or COLUMNS[name].per_view:
        values = values.flatten()
    if column.null_count or values.null_count:
        raise ContentError(f"its column {name} has cells without a number")
    array = np.array(values)  # a copy, which may be written to
    if COLUMNS[name].per_view:
        return array.reshape(len(column), -1, num_classes)
    return array.reshape(-1, num_classes) if COLUMNS[name].per_class else array
