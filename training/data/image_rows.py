"""From rows with typed columns, as `datasets` writes them, to tiles, read with limits."""

from __future__ import annotations

import functools
import os
import secrets
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from histodistill.hub_cards.tables import are_label_codes
from histodistill.selection.summaries import counted
from histodistill.training.data.arrow_files import Rows
from histodistill.training.data.colour_forms import DecodingRules
from histodistill.training.data.decoding import Entry, count_modes, count_sizes, decode_stream
from histodistill.training.data.group_names import (
    LONGEST,
    parts_of_paths,
    spelled,
    with_hint,
    with_kind_of,
)
from histodistill.training.data.grouping import Grouping
from histodistill.training.data.image_columns import Columns, Features, NameColumn, columns_of_split
from histodistill.training.data.limits import check_growth, check_memory
from histodistill.training.data.listing import LOOKED_AT, ListedSplit
from histodistill.training.data.names import shown, some
from histodistill.training.data.opened_source import OpenedSource
from histodistill.training.data.pictures import Noted
from histodistill.training.data.pixel_source import Decoded
from histodistill.training.data.reading import AS_USUAL, Reading
from histodistill.training.data.text_columns import texts_of_column
from histodistill.training.data.tiles import MIN_IMAGE_SIZE, LabelViews, check_soft_labels
from histodistill.training.running.errors import InputError, param
from histodistill.training.running.notes import tell, warn


# Bytes of memory that labels and names of a row take, about.
_BYTES_PER_ROW = 64


def open_rows(
    name: str,
    where: str,
    splits: Mapping[str, Sequence[tuple[Rows, Features | None]]],
    grouping: Grouping,
    license: str | None = None,
    reading: Reading = AS_USUAL,
) -> OpenedSource:
    """The source that rows of files with typed columns make.

    Args:
        name: What the source is called.
        where: What messages call it.
        splits: For each split its files in order; with each, what its columns are where that is said beside the file,
            and otherwise None, so that the file's own schema says it.
        grouping: What was said of the groups.
        license: Licence of the tiles where known.
        reading: What is converted, and whether images that cannot be read are left out.

    Raises:
        InputError: Columns, labels, soft labels or groups that cannot be used, or that do not fit in memory.
    """
    columns = {}
    for split, files in splits.items():
        # Where other splits have no such column, nothing is known of their groups, which is told.
        column = grouping.column if split == "train" or _has(files, grouping.column) else None
        columns[split] = columns_of_split(files, f"{where}, split {split}", column)
    first = next(iter(columns.values()))
    for split, found in columns.items():
        if found.class_names != first.class_names:
            raise InputError(f"the {split} split of {where} has other class names: all splits must have the same")
    parts = {
        split: _Part(tuple(rows for rows, _ in files), columns[split], f"{where}, split {split}")
        for split, files in splits.items()
    }
    listed = {split: part.list_tiles(grouping.pattern) for split, part in parts.items()}
    _tell_of_unused(where, listed.values())
    if not grouping.was_asked_for:
        grouping = with_hint(grouping, where, first.unused)

    total, skip = sum(len(of_split.tiles) for of_split in listed.values()), reading.skip_unreadable
    return OpenedSource(
        name,
        first.class_names,
        {split: of_split.tiles for split, of_split in listed.items()},
        RowPixels([(part, listed[split]) for split, part in parts.items()], reading.rules),
        sizes=lambda: sum((part.sizes(listed[split], total, skip) for split, part in parts.items()), Counter()),
        stored=lambda: sum(rows.stored for part in parts.values() for rows in part.files),
        grouping=grouping if grouping.column is None else with_kind_of(grouping, grouping.column),
        license=license,
        modes=lambda: sum((part.modes(listed[split], skip) for split, part in parts.items()), Counter()),
    )


def _has(files: Sequence[tuple[Rows, Features | None]], column: str | None) -> bool:
    """Whether a file has this column."""
    return any(column in rows.schema.names for rows, _ in files)


def _tell_of_unused(where: str, listed: Iterable[_Listed]) -> None:
    """One line about the columns that were left."""
    unused = {column for of_split in listed for column in of_split.unused}
    if unused:
        what = counted(len(unused), "column is", "columns are")
        tell(f"{where}: {what} not used ({some(sorted(unused))})")


@dataclass(frozen=True)
class _Listed:
    """What was read of a split before its images.

    Attributes:
        tiles: Labels, groups, attributes and soft labels.
        unused: Names of the columns that were left.
    """

    tiles: ListedSplit
    unused: Sequence[str]


class _Names:
    """Collects the names in a column.

    Args:
        column: The column; None collects nothing.
        where: What messages call the data.
    """

    def __init__(self, column: NameColumn | None, where: str):
        self._column = column
        self._where = f"column {column.column} of {where}" if column else where
        self._names: list[str | None] = []

    def add(self, batch: pa.RecordBatch) -> None:
        """Takes the names of the next rows."""
        if self._column is not None:
            cells = batch.column(self._column.column)
            self._names += texts_of_column(cells, self._column.stands_for, self._where)

    def of_all(self) -> np.ndarray | None:
        """The groups that these names are, text N; None without a column.

        Raises:
            InputError: If a row has none.
        """
        if self._column is None:
            return None
        # No name and an empty one are the same.
        return spelled([name or "" for name in self._names], lambda row: f"{self._where}, row {row}")

    def where_all_have_one(self) -> np.ndarray | None:
        """The sites that these names are, text N; None without a column, or where a row has none or a long text."""
        names = [name for name in self._names if name is not None and 0 < len(name.strip()) <= LONGEST]
        return spelled(names, str, "site") if self._column is not None and len(names) == len(self._names) else None


class RowPixels:
    """Images in the rows of files, of several splits; see `PixelSource`.

    Args:
        parts: Each split, with what was read of it.
        rules: What is converted.
    """

    def __init__(self, parts: Sequence[tuple[_Part, _Listed]], rules: DecodingRules):
        self._parts, self._rules = parts, rules

    @functools.cached_property
    def settings(self) -> dict[str, Any]:
        """Of each split the column of images, and how many there are; and what is converted."""
        splits = [[part.columns.image, len(listed.tiles)] for part, listed in self._parts]
        # Rows that are in no file are never taken for those of another time.
        once = any(not rows.stored_in for part, _ in self._parts for rows in part.files)
        return {
            "kind": "rows",
            "splits": splits,
            "once": secrets.token_hex() if once else None,
            **self._rules.json(),
        }

    def __len__(self) -> int:
        return sum(len(listed.tiles) for _, listed in self._parts)

    def name(self, number: int) -> str:
        """What messages call a tile."""
        for part, listed in self._parts:
            if number < len(listed.tiles):
                return f"{part.where}, row {number}"
            number -= len(listed.tiles)
        raise IndexError(number)

    def files(self) -> list[Path]:
        """The files of all splits, and those that their rows may name."""
        of_data = {file: None for part, _ in self._parts for rows in part.files for file in rows.stored_in}
        return [*of_data, *(file for part, _ in self._parts for file in part.named_files())]

    def decode(self, image_size: int | None, start: int) -> Iterator[Sequence[Decoded]]:
        """The images from `start` on."""
        noted = Noted()
        for part, listed in self._parts:
            part.check_size(image_size)
            skipped = min(start, len(listed.tiles))
            start -= skipped
            if skipped < len(listed.tiles):
                outside: list[Path] = []
                for batch in decode_stream(part.entries(listed, skipped, outside), image_size, self._rules, noted):
                    part.check_size(next((len(tile) for tile in batch if isinstance(tile, np.ndarray)), None))
                    yield batch
                part.tell_of_files(outside)
        noted.tell()


@dataclass(frozen=True)
class _Part:
    """One split of the data.

    Attributes:
        files: Its files, in order.
        columns: The columns that are used.
        where: What messages call it.
    """

    files: Sequence[Rows]
    columns: Columns
    where: str

    def list_tiles(self, pattern: str | None) -> _Listed:
        """Reads all columns but that of the images; `pattern` finds groups in the names of their files."""
        columns, where = self.columns, self.where
        self._check_count()
        labels, soft_labels, label_views = [], [], []
        groups, sites = _Names(columns.group, where), _Names(columns.site, where)
        start = 0
        for _, batch in _batches(self.files, columns.listed):
            labels.append(_labels(batch.column(columns.label), where, start))
            if columns.soft_label:
                soft_labels.append(_soft_labels(batch.column("soft_label"), len(columns.class_names)))
            if columns.views:
                codes, ranks = batch.column("soft_label_views"), batch.column("rank")
                label_views.append(_label_views(codes, ranks, len(columns.class_names)))
            groups.add(batch)
            sites.add(batch)
            start += batch.num_rows
        soft = _whole_soft_labels(soft_labels, where)
        views = None if soft is None else _whole_label_views(label_views)
        attributes = {} if (of_sites := sites.where_all_have_one()) is None else {"site": of_sites}
        of_groups = groups.of_all()
        if pattern is not None:
            of_groups, parts = parts_of_paths(self._paths(), pattern, where)
            attributes |= parts
        unused = [
            *columns.unused,
            *(["site"] if columns.site is not None and of_sites is None else []),
            *(["soft_label"] if columns.soft_label and soft is None else []),
            *(["soft_label_views", "rank"] if columns.views and views is None else []),
        ]
        return _Listed(ListedSplit(np.concatenate(labels), of_groups, attributes, soft, views), unused)

    def entries(self, listed: _Listed, start: int, outside: list[Path]) -> Iterator[list[Entry]]:
        """The images from a row on: what messages call each, and its bytes or its file, batch by batch.

        Args:
            listed: With the label of each row.
            start: The first row.
            outside: Takes the files that are in no folder of the data's own.
        """
        first = 0
        for below, batch in _batches(self.files, [self.columns.image]):
            skipped = min(max(0, start - first), batch.num_rows)
            rows = range(first + skipped, first + batch.num_rows)
            first += batch.num_rows
            if rows:
                entries = self._entries(batch.column(self.columns.image).slice(skipped), rows, below, listed)
                outside += [file for _, file in entries if isinstance(file, Path) and not _is_below(file, below)]
                yield entries

    def tell_of_files(self, outside: Sequence[Path]) -> None:
        """Warns of files that are in no folder of the data's own."""
        if outside:
            warn(
                f"{self.where} holds no images but the names of files: {len(outside):,} are read from folders of "
                f"images, such as {shown(str(outside[0]))}"
            )

    def check_size(self, size: int | None) -> None:
        """Sees that its tiles, of this side in pixels, are not very many times as large as the files."""
        count = sum(file.num_rows for file in self.files)
        check_growth(self.where, sum(rows.stored for rows in self.files), count * (size or MIN_IMAGE_SIZE) ** 2 * 3)

    def named_files(self) -> list[Path]:
        """The files that rows may name in place of an image."""
        column = self.columns.image
        kind = self.files[0].schema.field(column).type
        if not pa.types.is_struct(kind) or "path" not in {field.name for field in kind}:
            return []
        found: dict[str, None] = {}
        for _, batch in _batches(self.files, [f"{column}.path"]):
            found.update(dict.fromkeys(pc.struct_field(batch.column(column), "path").to_pylist()))
        return [Path(path) for path in found if path and "\0" not in path and os.path.isabs(path)]

    def sizes(self, listed: _Listed, total: int, skip_unreadable: bool) -> Counter[tuple[int, int]]:
        """Sizes of a sample of the images, by their headers: of its share in all `total` tiles of the source."""
        sizes: Counter[tuple[int, int]] = Counter()
        start = 0
        for file in self.files:
            most = -(-LOOKED_AT * file.num_rows // total)
            for rows, cells in file.sample(self.columns.image, most) if most else ():
                entries = self._entries(cells, [start + row for row in rows], file.files_below, listed)
                sizes += count_sizes(entries, skip_unreadable)
            start += file.num_rows
        return sizes

    def modes(self, listed: _Listed, skip_unreadable: bool) -> Counter[str]:
        """Colour modes of all images, by their headers."""
        modes: Counter[str] = Counter()
        start = 0
        for below, batch in _batches(self.files, [self.columns.image]):
            rows = range(start, start + batch.num_rows)
            entries = self._entries(batch.column(self.columns.image), rows, below, listed)
            modes += count_modes(entries, skip_unreadable)
            start += batch.num_rows
        return modes

    def _check_count(self) -> None:
        """Sees that there are tiles, and no more than the files can hold and the memory can list."""
        count = sum(file.num_rows for file in self.files)
        if not count:
            raise InputError(f"{self.where} is empty: a split needs at least one tile")
        # Each row becomes a tile, so that rows which repeat one value do not stay as small as they are stored.
        self.check_size(None)
        check_memory(self.where, count * _BYTES_PER_ROW)

    def _paths(self) -> list[str]:
        """The name of each image's file."""
        column = self.columns.image
        remedy = f"give {param('group_column')}, or leave out {param('group_pattern')}"
        kind = self.files[0].schema.field(column).type
        if not pa.types.is_struct(kind) or "path" not in {field.name for field in kind}:
            raise InputError(
                f"{self.where} has no names of files in which {param('group_pattern')} could be: {remedy}"
            )
        paths: list[str | None] = []
        for _, batch in _batches(self.files, [f"{column}.path"]):
            paths += texts_of_column(pc.struct_field(batch.column(column), "path"), None, f"{column} of {self.where}")
        if None in paths:
            raise InputError(
                f"{self.where} has an image without the name of a file in row {paths.index(None)}: {remedy}"
            )
        return [path.replace("\\", "/") for path in paths if path is not None]

    def _entries(self, cells: pa.Array, rows: Sequence[int], below: Sequence[Path], listed: _Listed) -> list[Entry]:
        """Some cells of the column of images: what messages call each, and its bytes or its file.

        Data could name any file of whoever reads them. So a file must be below one of the folders `below`, or be a
        tile of a folder of images, in the folder of its class: `to_parquet` of such a folder leaves the names of its
        files.

        Args:
            cells: The cells.
            rows: Their rows.
            below: Folders of the data's own.
            listed: With the label of each row.
        """
        entries: list[Entry] = []
        names = self.columns.class_names
        for row, cell in zip(rows, cells.to_pylist(), strict=True):
            cell = cell if isinstance(cell, dict) else {"bytes": cell}
            name, path, label = f"{self.where}, row {row}", cell.get("path"), int(listed.tiles.labels[row])
            if path:
                name = f"{name} ({shown(str(path))})"
            if cell.get("bytes") is not None:
                entries.append((name, cell["bytes"]))
            elif not path:
                raise InputError(f"{name} has no image: every row needs one")
            elif _is_below(Path(path), below) or _is_of_class(Path(path), names[label] if label < len(names) else ""):
                entries.append((name, Path(path)))
            else:
                raise InputError(
                    f"{name} names a file in place of the image: only images that are in the data themselves are "
                    "read; embed them before to_parquet, with datasets.table.embed_table_storage, or use save_to_disk"
                )
        return entries


def _batches(files: Sequence[Rows], columns: list[str]) -> Iterator[tuple[Sequence[Path], pa.RecordBatch]]:
    """The batches of all files, each with the folders below which its images may be."""
    for rows in files:
        for batch in rows.batches(columns):
            yield rows.files_below, batch


def _labels(column: pa.Array, where: str, start: int) -> np.ndarray:
    """The labels of the rows from `start` on, int64."""
    if column.null_count:
        row = start + pc.index(column.is_null(), True).as_py()
        raise InputError(f"{where} has no label in row {row}: every tile needs one")
    try:
        return column.cast(pa.int64()).to_numpy(zero_copy_only=False)
    except pa.ArrowInvalid as error:
        raise InputError(
            f"{where} has a label that is too large: labels must be 0 to number of classes - 1"
        ) from error


def _soft_labels(column: pa.Array, num_classes: int) -> np.ndarray | None:
    """Soft labels as float32 N×C; None where they mean something else."""
    values = column.flatten()
    if (
        column.null_count
        or values.null_count
        or pc.any(pc.not_equal(pc.list_value_length(column), num_classes)).as_py()
    ):
        return None
    soft_labels = values.to_numpy(zero_copy_only=False).astype(np.float32).reshape(len(column), num_classes)
    return soft_labels if np.isfinite(soft_labels).all() else None


def _whole_soft_labels(parts: list[np.ndarray | None], where: str) -> np.ndarray | None:
    """The soft labels of all rows, None where there are none or some mean something else."""
    usable = [part for part in parts if part is not None]
    if not usable or len(usable) < len(parts):
        return None
    soft_labels = np.concatenate(usable)
    check_soft_labels(soft_labels, where)
    return soft_labels


def _label_views(column: pa.Array, ranks: pa.Array, num_classes: int) -> LabelViews | None:
    """Soft labels of views; None where they mean something else."""
    values, lengths = column.flatten(), pc.unique(pc.list_value_length(column)).to_pylist()
    if column.null_count or values.null_count or ranks.null_count or len(lengths) != 1:
        return None
    if lengths[0] == 0 or lengths[0] % num_classes:
        return None
    codes = values.to_numpy(zero_copy_only=False).reshape(len(column), -1, num_classes)
    if not are_label_codes(codes).all():
        return None
    return LabelViews(codes, ranks.to_numpy(zero_copy_only=False).astype(np.int64))


def _whole_label_views(parts: list[LabelViews | None]) -> LabelViews | None:
    """The soft labels of views of all rows, None where there are none or some mean something else."""
    usable = [part for part in parts if part is not None]
    if not usable or len(usable) < len(parts) or len({part.codes.shape[1] for part in usable}) > 1:
        return None
    return LabelViews(np.concatenate([part.codes for part in usable]), np.concatenate([part.ranks for part in usable]))


def _is_below(path: Path, folders: Sequence[Path]) -> bool:
    """Whether a file is in one of the folders, wherever links lead."""
    if "\0" in str(path):
        return False
    return any(path.resolve().is_relative_to(folder.resolve()) for folder in folders)


def _is_of_class(path: Path, class_name: str) -> bool:
    """Whether a file is a tile of a folder of images: in the folder that has the name of its class."""
    return "\0" not in str(path) and path.is_absolute() and path.is_file() and path.resolve().parent.name == class_name
