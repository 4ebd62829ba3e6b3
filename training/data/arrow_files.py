"""Parquet files and Arrow streams as `datasets` writes them: opened with limits, read a few rows at a time.

Nothing of a file is unpacked before its size is known, and nothing is copied to a cache: what is read is what the file
holds now.
"""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet as pq

from histodistill.hub_cards.parquet_pages import measure_pages
from histodistill.training.data.limits import check_growth, check_memory
from histodistill.training.data.listing import spread
from histodistill.training.running.errors import InputError, one_line


# Rows of a batch, and about how many bytes they have, at most.
_BATCH, _BATCH_BYTES = 256, 2**24
# Row groups of which a sample has the first rows, at most.
_GROUPS_OF_SAMPLE = 20
# Bytes that are read from a Parquet file at a time.
_BUFFER = 2**20
# The largest page that Parquet can hold.
_MAX_PAGE = 2**31
# How a file begins that stands for one that Git LFS has not fetched.
_POINTER = b"version https://git-lfs"


@dataclass(frozen=True)
class Rows:
    """The rows of a file, which are read when they are asked for.

    Attributes:
        path: The file.
        schema: Its columns.
        num_rows: Number of its rows.
        stored: Bytes of the file.
        batches: `batches(columns)` reads these columns, in batches of a few rows, in order. A field of a column, such
            as `image.path`, can be asked for, and comes in that column, perhaps with its other fields.
        sample: `sample(column, count)` reads about so many cells of a column, spread over the rows: parts of it, each
            with the numbers of its rows.
        stored_in: The files that the rows are in; none where they are in memory.
        files_below: Folders below which a row may name the file of its image; none for data that somebody gives.
    """

    path: Path
    schema: pa.Schema
    num_rows: int
    stored: int
    batches: Callable[[list[str]], Iterator[pa.RecordBatch]]
    sample: Callable[[str, int], Iterator[tuple[Sequence[int], pa.Array]]]
    stored_in: tuple[Path, ...]
    files_below: tuple[Path, ...] = ()


def open_parquet(path: Path) -> Rows:
    """Opens a Parquet file; only its table of contents is read.

    Raises:
        InputError: If it is no Parquet file, damaged or encrypted.
    """
    with _readable(path, "a Parquet file"), _parquet(path) as file:
        metadata, schema = file.metadata, file.schema_arrow
        _check_names(path, schema)
    return Rows(
        path,
        schema,
        metadata.num_rows,
        path.stat().st_size,
        lambda columns: _parquet_batches(path, metadata, columns),
        lambda column, count: _parquet_sample(path, metadata, column, count),
        (path,),
    )


def open_arrow(path: Path) -> Rows:
    """Opens an Arrow stream, the format of `save_to_disk`; the columns' values are not read.

    Raises:
        InputError: If it is no Arrow stream, damaged, or compressed.
    """
    num_rows = 0
    with _readable(path, "an Arrow file"), pa.memory_map(str(path)) as source:
        messages = pa.ipc.MessageReader.open_stream(source)
        schema = pa.ipc.read_schema(messages.read_next_message())
        for message in _record_batches(path, messages):
            num_rows += pa.ipc.read_record_batch(message, schema).num_rows
        _check_names(path, schema)
    return Rows(
        path,
        schema,
        num_rows,
        path.stat().st_size,
        lambda columns: _arrow_batches(path, schema, num_rows, columns),
        lambda column, count: _arrow_sample(path, schema, num_rows, column, count),
        (path,),
    )


def _parquet(path: Path) -> pq.ParquetFile:
    """A Parquet file, opened so that a page at a time is in memory; by default it would be a whole column."""
    return pq.ParquetFile(path, pre_buffer=False, buffer_size=_BUFFER)


def _parquet_batches(path: Path, metadata: pq.FileMetaData, columns: list[str]) -> Iterator[pa.RecordBatch]:
    """The batches of a Parquet file."""
    batch_rows = _checked_batch_rows(path, metadata, columns)
    read = 0
    with _readable(path, "a Parquet file"), _parquet(path) as file:
        for batch in file.iter_batches(batch_rows, columns=columns, use_threads=False):
            read += batch.num_rows
            if read > metadata.num_rows:
                break
            yield batch
    _check_count(path, read, metadata.num_rows)


def _parquet_sample(
    path: Path, metadata: pq.FileMetaData, column: str, count: int
) -> Iterator[tuple[Sequence[int], pa.Array]]:
    """Some cells of a column: the first of some row groups, since no others can be read without those before them."""
    batch_rows = _checked_batch_rows(path, metadata, [column])
    starts = np.cumsum([0, *(metadata.row_group(i).num_rows for i in range(metadata.num_row_groups))])
    groups = spread(metadata.num_row_groups, min(count, _GROUPS_OF_SAMPLE)).tolist()
    with _readable(path, "a Parquet file"), _parquet(path) as file:
        for group in groups:
            rows = min(batch_rows, -(-count // len(groups)))
            for batch in file.iter_batches(rows, row_groups=[group], columns=[column], use_threads=False):
                yield range(starts[group], starts[group] + batch.num_rows), batch.column(0)
                break


def _checked_batch_rows(path: Path, metadata: pq.FileMetaData, columns: list[str]) -> int:
    """Sees what the columns of a Parquet file unpack to, and says how many rows to read at a time."""
    size, largest, of_row = 0, 0, 1
    with _readable(path, "a Parquet file"), open(path, "rb") as stream:
        for group in (metadata.row_group(i) for i in range(metadata.num_row_groups)):
            for chunk in (group.column(i) for i in range(group.num_columns)):
                if not any(f"{chunk.path_in_schema}.".startswith(f"{column}.") for column in columns):
                    continue
                pages = measure_pages(stream, chunk)
                # Numbers that repeat are stored as one, and have 8 bytes each when they are read.
                unpacked = max(pages.num_bytes, 8 * pages.num_values)
                size, largest = size + unpacked, max(largest, unpacked)
                # Bytes that repeat are stored once, in a dictionary, and may be as large as that in every row.
                repeated = pages.dictionary if chunk.physical_type == "BYTE_ARRAY" else 0
                of_row = max(of_row, repeated, unpacked // max(1, group.num_rows))
    check_growth(str(path), path.stat().st_size, size)
    check_memory(f"a column of {path}", min(largest, _MAX_PAGE))
    return _rows_of_batch(of_row)


def _arrow_batches(path: Path, schema: pa.Schema, num_rows: int, columns: list[str]) -> Iterator[pa.RecordBatch]:
    """The batches of an Arrow stream."""
    read = 0
    with _readable(path, "an Arrow file"), pa.memory_map(str(path)) as source:
        messages = pa.ipc.MessageReader.open_stream(source)
        messages.read_next_message()  # the schema
        for message in _record_batches(path, messages):
            whole = pa.ipc.read_record_batch(message, schema).select(whole_columns(schema, columns))
            # Offsets that point outside their column would otherwise be followed.
            whole.validate(full=True)
            read += whole.num_rows
            rows = _rows_of_batch(whole.nbytes // max(1, whole.num_rows))
            for start in range(0, whole.num_rows, rows):
                yield whole.slice(start, rows)
    _check_count(path, read, num_rows)


def _arrow_sample(
    path: Path, schema: pa.Schema, num_rows: int, column: str, count: int
) -> Iterator[tuple[Sequence[int], pa.Array]]:
    """Some cells of a column of an Arrow stream, of which no others are read."""
    wanted = spread(num_rows, count)
    start = 0
    for batch in _arrow_batches(path, schema, num_rows, [column]):
        rows = wanted[(wanted >= start) & (wanted < start + batch.num_rows)]
        yield rows.tolist(), batch.column(0).take(pa.array(rows - start))
        start += batch.num_rows


def whole_columns(schema: pa.Schema, columns: Sequence[str]) -> list[str]:
    """The columns of a schema that these are, or are fields of."""
    return [name if name in schema.names else name.partition(".")[0] for name in columns]


def _rows_of_batch(of_row: int) -> int:
    """Rows that are read at a time where each has this many bytes."""
    return min(_BATCH, max(1, _BATCH_BYTES // max(1, of_row)))


def _record_batches(path: Path, messages: pa.ipc.MessageReader) -> Iterator[pa.ipc.Message]:
    """The record batches of an Arrow stream whose schema has been read, none of which is compressed."""
    for message in messages:
        if message.type != "record batch":
            raise InputError(f"{path} holds a {message.type}, which datasets does not write: save it again")
        if _is_compressed(message):
            raise InputError(f"{path} is compressed inside, which datasets does not do: save it again without")
        yield message


def _is_compressed(message: pa.ipc.Message) -> bool:
    """Whether the buffers of a record batch are compressed, so that reading them may take any amount of memory.

    pyarrow does not tell, so it is read from the message itself, a FlatBuffers table (format/Message.fbs of Arrow).
    """
    data = memoryview(message.metadata)

    def field(table: int, index: int) -> int | None:
        """Where a field of a table is, None where it is left out."""
        vtable = table - struct.unpack_from("<i", data, table)[0]
        if 4 + 2 * index >= struct.unpack_from("<H", data, vtable)[0]:
            return None
        offset = struct.unpack_from("<H", data, vtable + 4 + 2 * index)[0]
        return table + offset if offset else None

    header = field(struct.unpack_from("<I", data, 0)[0], 2)
    assert header is not None  # pyarrow has read that it is a record batch
    return field(header + struct.unpack_from("<I", data, header)[0], 3) is not None


def _check_names(path: Path, schema: pa.Schema) -> None:
    """Sees that no two columns have one name; names are text only once they are asked for."""
    twice, count = max(Counter(schema.names).items(), key=lambda item: item[1], default=("", 0))
    if count > 1:
        raise InputError(f"{path} has two columns called {twice!r}: keep one of them")


def _check_count(path: Path, found: int, expected: int) -> None:
    """Sees that as many rows came as the file announced."""
    if found != expected:
        raise InputError(
            f"{path} holds {found} rows and announces {expected}: it is damaged, or was changed meanwhile"
        )


@contextmanager
def _readable(path: Path, what: str) -> Iterator[None]:
    """Turns what pyarrow raises while a file is read into one sentence; it is called `what`."""
    try:
        yield
    except (InputError, GeneratorExit):
        raise
    except Exception as error:  # of many kinds: pyarrow's, the system's, Python's
        try:
            with open(path, "rb") as file:
                if file.read(len(_POINTER)) == _POINTER:
                    raise InputError(f"{path} stands for a file that Git LFS has not fetched: run git lfs pull")
        except OSError:
            pass
        raise InputError(
            f"{path} cannot be read as {what} ({reason(error)}): it may be cut short or damaged; fetch or save it "
            "again"
        ) from error


def reason(error: Exception) -> str:
    """The message of another library's error in one line of at most 160 characters."""
    text = one_line(" ".join(str(error).split()).rstrip(".:"))
    return (text[:157] + "..." if len(text) > 160 else text) or type(error).__name__
