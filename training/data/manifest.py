"""Manifests: a table with the path and the label of each tile, as CSV, TSV or Parquet."""

from __future__ import annotations

import csv
import io
import os
import re
import stat
from collections import Counter
from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from histodistill.hub_cards.names import fault_of_published_name
from histodistill.selection.summaries import counted
from histodistill.training.data.group_names import (
    LONGEST,
    kind_called,
    parts_of_paths,
    spelled,
    with_hint,
    with_kind_of,
)
from histodistill.training.data.grouping import Grouping
from histodistill.training.data.limits import check_memory
from histodistill.training.data.listing import ListedSplit
from histodistill.training.data.names import class_name, shown, some
from histodistill.training.data.opened_source import OpenedSource
from histodistill.training.data.split_files import split_called
from histodistill.training.data.tile_files import open_tile_files
from histodistill.training.data.tiles import SPLIT_ALIASES, SPLITS
from histodistill.training.running.errors import InputError
from histodistill.training.running.notes import tell
from histodistill.training.running.suggestions import did_you_mean


#: Endings of a manifest's name that is text → what stands between its cells, and what that is called.
SEPARATORS = {".csv": (",", "commas"), ".tsv": ("\t", "tabs")}
# Columns that a manifest must have, and those that mean something where it has them.
_REQUIRED, _OPTIONAL = ("path", "label"), ("split", "group", "site")
# Different values that another column may have to be an attribute, at most.
_MOST_VALUES = 20
# Bytes of memory that a byte of text takes, cut into cells.
_GROWTH = 12


@dataclass(frozen=True)
class _Table:
    """The cells of a manifest.

    Attributes:
        path: The file.
        columns: Name → cells of text, of each column that has only such.
        others: Names of the other columns.
        lines: The number of each row's first line, the header's being 1; None for a file without lines.
    """

    path: Path
    columns: dict[str, list[str]]
    others: list[str]
    lines: list[int] | None

    def place(self, row: int) -> str:
        """What messages call a row."""
        return f"{self.path}, row {row}" if self.lines is None else f"{self.path}, line {self.lines[row]}"

    def column(self, name: str) -> list[str]:
        """The cells of a column, none of which may be empty; around them there is no space."""
        cells = [cell.strip() for cell in self.columns[name]]
        if "" in cells:
            raise InputError(
                f"{self.place(cells.index(''))} has an empty cell in column {name}: fill it, or take the line out"
            )
        return cells


def open_manifest(path: Path, grouping: Grouping) -> OpenedSource:
    """Opens a manifest, a table of tiles in files of their own.

    It has the columns `path` and `label`, and may have `split`, `group` and `site`. Relative paths go from the
    manifest's folder. Labels are the names of classes, which are kept in sorted order, whole numbers by their value.
    Without a column `split` all tiles are train. Groups are the column that the user names, or a part of the paths, or
    the column `group`. `site`, and each further column with 2 to 20 different values, is an attribute; a note tells
    which columns are not used. Tiles come in the order of the lines.

    CSV has commas, TSV tabs, both are UTF-8 with or without a byte order mark, and cells may be in double quotes.

    Args:
        path: The file: `.csv`, `.tsv` or `.parquet`.
        grouping: What was said of the groups.

    Returns:
        The source, named after the file.

    Raises:
        InputError: Naming the line: a file that cannot be read, a missing column, an empty cell, a split with an
            unknown name, a tile that is not there or is there twice, or groups that cannot be used.
    """
    table = _read_parquet(path) if path.suffix.lower() == ".parquet" else _read_text(path)
    for name in (*_REQUIRED, *_OPTIONAL):
        if name in table.others:
            raise InputError(f"column {name} of {path} holds something else than text: save it as text")
    files, stored = _files(table)
    labels = [class_name(label) for label in table.column("label")]
    classes = _in_order({*labels})
    number = {name: i for i, name in enumerate(classes)}
    all_tiles, grouping = _listed(table, np.array([number[label] for label in labels]), grouping)
    rows_of = _rows_of_splits(table)
    splits = {
        split: ListedSplit(
            all_tiles.labels[rows],
            None if all_tiles.groups is None else all_tiles.groups[rows],
            {name: values[rows] for name, values in all_tiles.attributes.items()},
        )
        for split, rows in rows_of.items()
    }
    rows = np.concatenate([*rows_of.values()])

    def called(i: int) -> str:
        return f"{table.place(rows[i])} ({shown(table.columns['path'][rows[i]])})"

    return open_tile_files(
        path.stem, classes, splits, lambda i: Path(files[rows[i]]), called, lambda: stored, grouping
    )


def check_manifest(path: Path) -> None:
    """Refuses a file that is no manifest by its first line, or, for Parquet, no Parquet file by its first bytes.

    Raises:
        InputError: As `open_manifest` does.
    """
    with _readable(path) as file:
        if path.suffix.lower() not in SEPARATORS:
            if file.read(4) != b"PAR1":
                raise InputError(f"{path} is no Parquet file: it may be cut short or damaged; fetch or save it again")
            return
        line = next((line for line in file if line.strip()), b"")
        if line.count(b'"') % 2:  # a cell goes on in the next line
            return
        rows = _rows_of_text(path, line)
        _check_columns(path, _header(path, next(rows, (1, []))[1]))


def _readable(path: Path) -> io.BufferedReader:
    """The file, opened."""
    try:
        return open(path, "rb")
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}): change who may read it") from error


def _check_columns(path: Path, names: Sequence[str]) -> None:
    """Sees that a manifest has the columns that it needs."""
    for name in _REQUIRED:
        if name not in names:
            meant = did_you_mean(name, names)
            raise InputError(
                f"{path} has no column {name}{meant}: a manifest needs the columns path and label, and this has "
                f"{some([each for each in names if each]) or 'none with a name'}"
            )


# --- reading tables ---


def _read_text(path: Path) -> _Table:
    """The table that a file of text is."""
    with _readable(path) as file:
        check_memory(str(path), os.fstat(file.fileno()).st_size * _GROWTH)
        rows = _rows_of_text(path, file.read())
    names = _header(path, next(rows, (1, []))[1])
    _check_columns(path, names)
    lines, cells = [], []
    for line, row in rows:
        if len(row) != len(names):
            found = counted(len(row), "cell")
            raise InputError(
                f"{path}, line {line} has {found} and the header {len(names)}: give each line as many; a cell with a "
                f"{'comma' if path.suffix.lower() == '.csv' else 'tab'} in it stands in double quotes"
            )
        lines.append(line)
        cells.append(row)
    if not lines:
        raise InputError(f"{path} has no line below its header: give one for each tile")
    columns = {name: list(column) for name, column in zip(names, zip(*cells, strict=True), strict=True) if name}
    return _Table(path, columns, ["a column without a name"] if "" in names else [], lines)


def _rows_of_text(path: Path, data: bytes) -> Iterator[tuple[int, list[str]]]:
    """The number of the first line, and the cells, of each row of a file of text that is not empty."""
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise InputError(f"{path}, line {line} is no UTF-8: save it as UTF-8 (in Excel as 'CSV UTF-8')") from error
    rows = csv.reader(io.StringIO(text, newline=""), delimiter=SEPARATORS[path.suffix.lower()][0], strict=True)
    line = 1
    try:
        for row in rows:
            if row:
                yield line, row
            line = rows.line_num + 1
    except csv.Error as error:
        raise InputError(
            f"{path}, line {line} cannot be read as {path.suffix[1:].upper()} ({error}): put double quotes around "
            "the whole of a cell, and write one within it twice"
        ) from error


def _header(path: Path, cells: Sequence[str]) -> list[str]:
    """The names of the columns; a column without a name, as pandas leaves of its index, is `""`."""
    names = [cell.strip() for cell in cells]
    if len(names) == 1 and names[0] != "path":
        separator, called = SEPARATORS[path.suffix.lower()]
        for other, other_called in ((";", "semicolons"), (",", "commas"), ("\t", "tabs"), ("|", "bars")):
            if other != separator and other in names[0]:
                raise InputError(
                    f"{path} has {other_called} between its cells, and a {path.suffix} file has {called}: save it so"
                )
    for name, count in Counter(names).items():
        if name and count > 1:
            raise InputError(f"{path} has two columns called {shown(name)}: keep one of them")
    return names


def _read_parquet(path: Path) -> _Table:
    """The table that a Parquet file is; numbers of type ClassLabel are the names that they stand for."""
    import pyarrow as pa

    from histodistill.training.data.arrow_files import open_parquet
    from histodistill.training.data.image_columns import features_of_schema, names_of_labels
    from histodistill.training.data.text_columns import is_text_column, texts_of_column

    rows = open_parquet(path)
    _check_columns(path, rows.schema.names)
    features = features_of_schema(rows.schema, str(path))
    usable = [field.name for field in rows.schema if is_text_column(field.type) or pa.types.is_integer(field.type)]
    if not rows.num_rows:
        raise InputError(f"{path} has no row: give one for each tile")
    columns: dict[str, list[str]] = {name: [] for name in usable}
    for batch in rows.batches(usable) if usable else ():
        for name in usable:
            texts = texts_of_column(
                batch.column(name), names_of_labels(features.get(name)), f"column {name} of {path}"
            )
            columns[name] += [text or "" for text in texts]
    return _Table(path, columns, [name for name in rows.schema.names if name not in columns], None)


# --- what the columns say ---


def _files(table: _Table) -> tuple[list[str], int]:
    """The file of each tile, and the bytes of all; sees that all are there, each once."""
    cells = table.columns["path"]
    table.column("path")  # none is empty
    folder = str(table.path.parent)
    files = [os.path.join(folder, cell) for cell in cells]
    sizes = [_size(file) for file in files]
    if None in sizes:
        first = sizes.index(None)
        what = counted(sizes.count(None), "file that is not there", "files that are not there")
        raise InputError(
            f"{table.place(first)} names {shown(cells[first])}, one of {what}: correct the paths, which go from the "
            "folder of the manifest where they are relative, or fetch the files"
        )
    # Links to folders are followed, so that two ways to one file are seen as such.
    parts = [os.path.split(file) for file in files]
    real = {parent: os.path.realpath(parent) for parent in {parent for parent, _ in parts}}
    seen: dict[tuple[str, str], int] = {}
    for row, (parent, name) in enumerate(parts):
        before = seen.setdefault((real[parent], name), row)
        if before != row:
            raise InputError(
                f"{table.place(row)} names the file of {_line(table, before)} again ({shown(cells[row])}): keep one "
                "of the two, with the label that is right"
            )
    return files, sum(size for size in sizes if size is not None)


def _size(file: str) -> int | None:
    """Bytes of a file; None where there is no file of this name."""
    try:
        status = os.stat(file)
    except (OSError, ValueError):  # such as a name that no file can have
        return None
    return status.st_size if stat.S_ISREG(status.st_mode) else None


def _line(table: _Table, row: int) -> str:
    """A row within a sentence about another."""
    return f"row {row}" if table.lines is None else f"line {table.lines[row]}"


def _in_order(labels: Set[str]) -> list[str]:
    """The names of classes: sorted, and where all are whole numbers by their value."""
    if all(re.fullmatch(r"-?[0-9]{1,18}", label) for label in labels):
        return sorted(labels, key=lambda label: (int(label), label))
    return sorted(labels)


def _rows_of_splits(table: _Table) -> dict[str, np.ndarray]:
    """Split → its rows, int64."""
    cells = [cell.strip() for cell in table.columns.get("split", [])]
    if not any(cells):
        return {"train": np.arange(len(table.columns["path"]))}
    cells = table.column("split")
    split_of = {name: SPLIT_ALIASES.get(name.lower()) for name in {*cells}}
    for row, cell in enumerate(cells if None in split_of.values() else ()):
        split_called(cell, table.place(row))
    splits = np.array([split_of[cell] for cell in cells])
    if "train" not in splits:
        raise InputError(f"{table.path} has no tile of the split train: a source needs some")
    return {split: np.flatnonzero(splits == split) for split in SPLITS if split in splits}


def _listed(table: _Table, labels: np.ndarray, grouping: Grouping) -> tuple[ListedSplit, Grouping]:
    """What is known of all tiles, and of their groups; tells of columns that are not used."""
    column = _group_column(table, grouping)
    groups = None
    attributes: dict[str, np.ndarray] = {}
    if column is not None:
        groups = spelled(table.column(column), table.place)
        grouping = with_kind_of(grouping, column)
    elif grouping.pattern is not None:
        paths = [path.replace("\\", "/") for path in table.columns["path"]]
        groups, attributes = parts_of_paths(paths, grouping.pattern, str(table.path))
    else:
        grouping = with_hint(grouping, str(table.path), [*table.columns])
    unused = list(table.others)
    for name, cells in table.columns.items():
        if name == "site":
            attributes = {name: spelled(table.column(name), table.place, name), **attributes}
        elif name not in (*_REQUIRED, "split", column):
            values = {cell.strip() for cell in cells}
            if _may_be_attribute(name, values) and name not in attributes:
                attributes[name] = spelled(cells, table.place, name)
            else:
                unused.append(name)
    if unused:
        what = counted(len(unused), "column is", "columns are")
        tell(f"{table.path}: {what} not used ({some(unused)})")
    return ListedSplit(labels, groups, attributes), grouping


def _group_column(table: _Table, grouping: Grouping) -> str | None:
    """The column with the groups, if there is one."""
    if grouping.column is None:
        return "group" if "group" in table.columns and grouping.pattern is None else None
    asked = grouping.asked
    others = [name for name in table.columns if name not in (*_REQUIRED, "split")]
    if grouping.column in (*_REQUIRED, "split"):
        raise InputError(f"{asked} is the column of each tile's {grouping.column}: name the one with its group")
    if grouping.column in table.others:
        raise InputError(f"{asked} of {table.path} holds neither text nor whole numbers: save it as text")
    if grouping.column not in others:
        meant = did_you_mean(grouping.column, others)
        raise InputError(f"{asked} is no column of {table.path}{meant}: it has {some(others) or 'no other column'}")
    return grouping.column


def _may_be_attribute(name: str, values: Set[str]) -> bool:
    """Whether a column of no known name holds an attribute: few values, and none of them empty or long."""
    is_named = fault_of_published_name(name) is None and kind_called(name) in (None, "site")
    return is_named and 2 <= len(values) <= _MOST_VALUES and all(0 < len(value) <= LONGEST for value in values)
