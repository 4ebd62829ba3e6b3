"""Tiles that are a file each."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from histodistill.training.data.colour_forms import DecodingRules
from histodistill.training.data.decoding import count_modes, count_sizes, decode_stream
from histodistill.training.data.grouping import Grouping
from histodistill.training.data.listing import ListedSplit, spread
from histodistill.training.data.opened_source import OpenedSource
from histodistill.training.data.pictures import Noted
from histodistill.training.data.pixel_source import Decoded
from histodistill.training.data.reading import AS_USUAL, Reading


# Pictures of a batch that is handed to the decoder.
_BATCH = 256


class FilePixels:
    """Pictures that are a file each; see `PixelSource`.

    Args:
        count: Number of pictures.
        file: `file(i)` gives the file with this number.
        name: `name(i)` gives what messages call it.
        rules: What is converted.
    """

    def __init__(self, count: int, file: Callable[[int], Path], name: Callable[[int], str], rules: DecodingRules):
        self._count, self._file, self.name, self._rules = count, file, name, rules

    @property
    def settings(self) -> dict[str, Any]:
        """What is converted."""
        return {"kind": "files", **self._rules.json()}

    def __len__(self) -> int:
        return self._count

    def files(self) -> list[Path]:
        """Their files."""
        return [self._file(number) for number in range(self._count)]

    def decode(self, image_size: int | None, start: int) -> Iterator[Sequence[Decoded]]:
        """The pictures from `start` on."""
        batches = (
            [(self.name(i), self._file(i)) for i in range(first, min(first + _BATCH, self._count))]
            for first in range(start, self._count, _BATCH)
        )
        noted = Noted()
        yield from decode_stream(batches, image_size, self._rules, noted)
        noted.tell()


def open_tile_files(
    name: str,
    class_names: Sequence[str],
    splits: dict[str, ListedSplit],
    file: Callable[[int], Path],
    called: Callable[[int], str],
    stored: Callable[[], int],
    grouping: Grouping,
    reading: Reading = AS_USUAL,
) -> OpenedSource:
    """The source that files of pictures make.

    Args:
        name: What the source is called.
        class_names: The name of each label.
        splits: What is known of the tiles of each split.
        file: `file(i)` gives the file of the tile with this number. They count on from split to split.
        called: `called(i)` gives what messages call it.
        stored: `stored()` gives the bytes of all files.
        grouping: What was said of the groups.
        reading: What is converted, and whether files that cannot be read are left out.
    """
    count = sum(map(len, splits.values()))
    return OpenedSource(
        name,
        class_names,
        splits,
        FilePixels(count, file, called, reading.rules),
        sizes=lambda: count_sizes(((called(i), file(i)) for i in spread(count).tolist()), reading.skip_unreadable),
        stored=stored,
        grouping=grouping,
        modes=lambda: count_modes(((called(i), file(i)) for i in range(count)), reading.skip_unreadable),
    )
