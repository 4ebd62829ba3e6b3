"""What the pages of a Parquet file unpack to, by their own headers.

The table of contents at the end of a file says it too, and may say anything: pyarrow reserves what the header of a
page asks for. A header is a struct in Thrift's compact protocol (`PageHeader` in parquet.thrift), which pyarrow does
not show.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any


if TYPE_CHECKING:
    import pyarrow.parquet as pq


# Bytes that the header of a page may have; it holds the least and the greatest value of the page, too.
_MAX_HEADER = 2**20
# Structs in structs that a header has.
_MAX_DEPTH = 8
# Fields of PageHeader: sizes of the page, and what is said of a page of data in both versions, or of a dictionary.
_UNPACKED, _STORED, _DATA, _DICTIONARY, _DATA_V2 = 2, 3, 5, 7, 8
# The field with the number of values in each of the last three.
_NUM_VALUES = 1


@dataclass(frozen=True)
class Unpacked:
    """What the pages of a column chunk unpack to.

    Attributes:
        num_bytes: Of all pages.
        num_values: Of all pages of data.
        dictionary: Bytes of the dictionary, 0 if there is none.
    """

    num_bytes: int
    num_values: int
    dictionary: int


def measure_pages(stream: IO[bytes], chunk: pq.ColumnChunkMetaData) -> Unpacked:
    """Goes through the pages of a column chunk without unpacking any.

    Args:
        stream: The file.
        chunk: What the table of contents says of the chunk.

    Raises:
        ValueError: If the headers are damaged.
    """
    starts = [chunk.data_page_offset, *([chunk.dictionary_page_offset] if chunk.has_dictionary_page else [])]
    position = min(start for start in starts if start)
    end = position + chunk.total_compressed_size
    num_bytes = num_values = dictionary = 0
    while position < end:
        stream.seek(position)
        header, length = _Reader(stream).struct()
        unpacked, stored = _count(header, _UNPACKED), _count(header, _STORED)
        num_bytes += unpacked
        if _DICTIONARY in header:
            dictionary = max(dictionary, unpacked)
        elif page := header.get(_DATA, header.get(_DATA_V2)):
            num_values += _count(page, _NUM_VALUES)
        position += length + stored
    return Unpacked(num_bytes, num_values, dictionary)


def _count(fields: Any, number: int) -> int:
    """A field of a struct that says how many there are of something."""
    value = fields.get(number) if isinstance(fields, dict) else None
    if type(value) is not int or value < 0:
        raise ValueError("a page that does not say how large it is")
    return value


class _Reader:
    """Reads one struct of Thrift's compact protocol."""

    def __init__(self, stream: IO[bytes]):
        self._stream = stream
        self._read = 0

    def struct(self, depth: int = 0) -> tuple[dict[int, Any], int]:
        """The numbers and structs of a struct by field, and the bytes that have been read up to its end."""
        if depth > _MAX_DEPTH:
            raise ValueError("a header of a page that is nested too deeply")
        fields: dict[int, Any] = {}
        number = 0
        while head := self._bytes(1)[0]:
            number = number + (head >> 4) if head >> 4 else self._integer()
            fields[number] = self._value(head & 15, depth)
        return fields, self._read

    def _value(self, kind: int, depth: int) -> Any:
        """A value of this kind; of text and lists, which are of no use here, None."""
        if kind in (1, 2):  # true and false, which are the kind itself
            return kind == 1
        if kind == 3:
            return self._bytes(1)[0]
        if kind in (4, 5, 6):
            return self._integer()
        if kind == 7:
            return self._bytes(8)
        if kind == 8:
            self._bytes(self._unsigned())
            return None
        if kind == 12:
            return self.struct(depth + 1)[0]
        raise ValueError("a header of a page with a field of a kind that none has")

    def _integer(self) -> int:
        """A number with its sign in the lowest bit."""
        number = self._unsigned()
        return number >> 1 ^ -(number & 1)

    def _unsigned(self) -> int:
        """A number of 7 bits in each byte."""
        number = shift = 0
        while True:
            byte = self._bytes(1)[0]
            number |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return number
            if shift > 63:
                raise ValueError("a header of a page with a number that is too large")

    def _bytes(self, count: int) -> bytes:
        """The next bytes."""
        self._read += count
        if self._read > _MAX_HEADER:
            raise ValueError("a header of a page that is too long")
        data = self._stream.read(count)
        if len(data) < count:
            raise ValueError("a header of a page that is cut short")
        return data
