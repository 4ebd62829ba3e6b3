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
from histodistill.training.data.reading import AS_USUAL, Reading
from histodistill.training.data.split_files import split_called
from histodistill.training.data.tile_files import open_tile_files
from histodistill.training.data.tiles import SPLIT_ALIASES, SPLITS
from histodistill.training.running.errors import InputError
from histodistill.training.running.notes import tell
from histodistill.training.running.suggestions import did_you_mean


#: Endings of a manifest's name that is text → what stands between its cells, and what that is called.
SEPARATORS = {".csv": (",", "commas"), ".tsv": ("\t", "tabs")}
#: Columns that a manifest of files must have.
OF_FILES = ("path", "label")
# Other names of these → columns that mean the same, of which the first that is there is taken.
_ALSO = {
    "path": ("file_name", "filename", "file", "image", "image_id", "id"),
    "label": ("class",),
}
# Those that a manifest of places on slides must have: one by one, or with a file of them for each slide.
_OF_PLACES, _OF_COORDS = ("slide", "label", "x", "y", "size"), ("slide", "label", "coords")
# Columns that hold numbers, which Parquet may have as such.
_NUMBERS = ("x", "y", "size", "level", "mpp")
# Different values that another column may have to be an attribute, at most.
_MOST_VALUES = 20
# Bytes of memory that a byte of text takes, cut into cells.
_GROWTH = 12


@dataclass(frozen=True)
class Table:
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

    @property
    def is_of_slides(self) -> bool:
        """Whether tiles are places on slides, and not files."""
        return "path" not in self.columns and "path" not in self.others

    def __len__(self) -> int:
        return len(self.columns["label"])

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


def open_manifest(table: Table, grouping: Grouping, reading: Reading = AS_USUAL) -> OpenedSource:
    """Opens a manifest of tiles in files of their own.

    It has the columns `path` and `label`, and may have `split`, `group` and `site`. Relative paths go from the
    manifest's folder. A path may also be called `file_name`, `filename`, `file`, `image`, `image_id` or `id`, and a
    label `class`. Labels are the names of classes, which are kept in sorted order, whole numbers by their value.
    Without a column `split` all tiles are train. Groups are the column that the user names, or a part of the paths, or
    the column `group`. `site`, and each further column with 2 to 20 different values, is an attribute; a note tells
    which columns are not used. Tiles come in the order of the lines.

    Args:
        table: The manifest.
        grouping: What was said of the groups.
        reading: What is converted, and whether files that cannot be read are left out.

    Returns:
        The source, named after the file.

    Raises:
        InputError: Naming the line: an empty cell, a split with an unknown name, a tile that is not there or is there
            twice, or groups that cannot be used.
    """
    check_columns(table, OF_FILES)
    files, stored = files_of(table, "path")
    check_no_repeats(table, files)
    classes, splits, rows, grouping = read_columns(table, grouping, OF_FILES)

    def called(i: int) -> str:
        return f"{table.place(rows[i])} ({shown(table.columns['path'][rows[i]])})"

    return open_tile_files(
        table.path.stem, classes, splits, lambda i: Path(files[rows[i]]), called, lambda: stored, grouping, reading
    )


def check_manifest(path: Path) -> None:
    """Refuses a file that is no manifest by its first line, or, for Parquet, no Parquet file by its first bytes.

    Raises:
        InputError: As `read_table` does.
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
        _check_names(path, _header(path, next(rows, (1, []))[1]))


def _readable(path: Path) -> io.BufferedReader:
    """The file, opened."""
    try:
        return open(path, "rb")
    except FileNotFoundError as error:
        raise InputError(f"{path} is not there: correct the path") from error
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}): change who may read it") from error


def needed_columns(names: Sequence[str]) -> tuple[str, ...]:
    """The columns that a manifest with columns of these names must have: of files, or of places on slides."""
    if "path" in names:
        return OF_FILES
    if "coords" in names:
        return _OF_COORDS
    return _OF_PLACES if "slide" in names or {"x", "y", "size"} <= {*names} else OF_FILES


def _check_names(path: Path, names: Sequence[str]) -> None:
    """Sees that a manifest has the columns that it needs."""
    needed = needed_columns(names)
    for name in needed:
        if name not in names:
            meant = did_you_mean(name, names)
            of_slides = " (or coords in place of x, y and size)" if needed == _OF_PLACES else ""
            raise InputError(
                f"{path} has no column {name}{meant}: a manifest needs the columns {', '.join(needed[:-1])} and "
                f"{needed[-1]}{of_slides}, and this has {some([each for each in names if each]) or 'none with a name'}"
            )


def check_columns(table: Table, needed: Sequence[str]) -> None:
    """Sees that the columns which mean something hold text.

    Raises:
        InputError: If one of them holds something else.
    """
    for name in (*needed, "split", "group", "site"):
        if name in table.others:
            raise InputError(f"column {name} of {table.path} holds something else than text: save it as text")


# --- reading tables ---


def read_table(path: Path) -> Table:
    """Reads a manifest.

    CSV has commas, TSV tabs, both are UTF-8 with or without a byte order mark, and cells may be in double quotes.

    Args:
        path: The file: `.csv`, `.tsv` or `.parquet`.

    Raises:
        InputError: Naming the line: a file that cannot be read, or a column that is missing.
    """
    return _read_parquet(path) if path.suffix.lower() == ".parquet" else _read_text(path)


def _read_text(path: Path) -> Table:
    """The table that a file of text is."""
    with _readable(path) as file:
        check_memory(str(path), os.fstat(file.fileno()).st_size * _GROWTH)
        rows = _rows_of_text(path, file.read())
    names = _header(path, next(rows, (1, []))[1])
    _check_names(path, names)
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
    return Table(path, columns, ["a column without a name"] if "" in names else [], lines)


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
    return _usual_names(names)


def _usual_names(names: Sequence[str]) -> list[str]:
    """Names of columns with `path` and `label` in place of what means the same; places on slides need no path."""
    names = list(names)
    for usual, others in _ALSO.items():
        found = [other for other in others if other in names]
        if usual not in names and found and not (usual == "path" and "slide" in names):
            names[names.index(found[0])] = usual
    return names


def _read_parquet(path: Path) -> Table:
    """The table that a Parquet file is; numbers of type ClassLabel are the names that they stand for."""
    import pyarrow as pa

    from histodistill.training.data.arrow_files import open_parquet
    from histodistill.training.data.image_columns import features_of_schema, names_of_labels
    from histodistill.training.data.text_columns import is_text_column, texts_of_column

    rows = open_parquet(path)
    names = dict(zip(rows.schema.names, _usual_names(rows.schema.names), strict=True))
    _check_names(path, [*names.values()])
    features = features_of_schema(rows.schema, str(path))
    usable = [
        field.name
        for field in rows.schema
        if is_text_column(field.type)
        or pa.types.is_integer(field.type)
        or (field.name in _NUMBERS and pa.types.is_floating(field.type))
    ]
    if not rows.num_rows:
        raise InputError(f"{path} has no row: give one for each tile")
    columns: dict[str, list[str]] = {name: [] for name in usable}
    for batch in rows.batches(usable) if usable else ():
        for name in usable:
            texts = texts_of_column(
                batch.column(name), names_of_labels(features.get(name)), f"column {name} of {path}"
            )
            columns[name] += [text or "" for text in texts]
    others = [usual for name, usual in names.items() if name not in columns]
    return Table(path, {names[name]: cells for name, cells in columns.items()}, others, None)


# --- what the columns say ---


def files_of(table: Table, column: str) -> tuple[list[str], int]:
    """The files that a column names, and the bytes of all.

    Raises:
        InputError: If one of them is not there.
    """
    cells = table.columns[column]
    table.column(column)  # none is empty
    folder = str(table.path.parent)
    files = [os.path.join(folder, cell) for cell in cells]
    known = {file: _size(file) for file in dict.fromkeys(files)}
    sizes = [known[file] for file in files]
    if None in sizes:
        first = sizes.index(None)
        what = counted([*known.values()].count(None), "file that is not there", "files that are not there")
        raise InputError(
            f"{table.place(first)} names {shown(cells[first])}, one of {what}: correct the paths, which go from the "
            "folder of the manifest where they are relative, or fetch the files"
        )
    return files, sum(size for size in known.values() if size is not None)


def check_no_repeats(table: Table, files: Sequence[str]) -> None:
    """Sees that no file is named twice.

    Raises:
        InputError: Naming both lines.
    """
    # Links to folders are followed, so that two ways to one file are seen as such.
    parts = [os.path.split(file) for file in files]
    real = {parent: os.path.realpath(parent) for parent in {parent for parent, _ in parts}}
    seen: dict[tuple[str, str], int] = {}
    for row, (parent, name) in enumerate(parts):
        before = seen.setdefault((real[parent], name), row)
        if before != row:
            raise InputError(
                f"{table.place(row)} names the file of {line_of(table, before)} again "
                f"({shown(table.columns['path'][row])}): keep one of the two, with the label that is right"
            )


def _size(file: str) -> int | None:
    """Bytes of a file; None where there is no file of this name."""
    try:
        status = os.stat(file)
    except (OSError, ValueError):  # such as a name that no file can have
        return None
    return status.st_size if stat.S_ISREG(status.st_mode) else None


def line_of(table: Table, row: int) -> str:
    """A row within a sentence about another."""
    return f"row {row}" if table.lines is None else f"line {table.lines[row]}"


def read_columns(
    table: Table, grouping: Grouping, used: Sequence[str], group: str = "group"
) -> tuple[list[str], dict[str, ListedSplit], np.ndarray, Grouping]:
    """What a manifest says of its rows beside where their pixels are; tells of columns that are not used.

    Args:
        table: The manifest.
        grouping: What was said of the groups.
        used: Columns that have a meaning of their own; the first names the file in whose path groups are searched.
        group: The column with the groups where none was named.

    Returns:
        The names of the classes; split → what is known of its rows; the rows of all splits, one split after the
        other, int64; and what is known of the groups.

    Raises:
        InputError: Naming the line: an empty cell, a split with an unknown name, or groups that cannot be used.
    """
    labels = [class_name(label) for label in table.column("label")]
    classes = _in_order({*labels})
    number = {name: i for i, name in enumerate(classes)}
    listed, grouping = _listed(table, np.array([number[label] for label in labels]), grouping, used, group)
    rows_of = _rows_of_splits(table)
    splits = {
        split: ListedSplit(
            listed.labels[rows],
            None if listed.groups is None else listed.groups[rows],
            {name: values[rows] for name, values in listed.attributes.items()},
        )
        for split, rows in rows_of.items()
    }
    return classes, splits, np.concatenate([*rows_of.values()]), grouping


def _in_order(labels: Set[str]) -> list[str]:
    """The names of classes: sorted, and where all are whole numbers by their value."""
    if all(re.fullmatch(r"-?[0-9]{1,18}", label) for label in labels):
        return sorted(labels, key=lambda label: (int(label), label))
    return sorted(labels)


def _rows_of_splits(table: Table) -> dict[str, np.ndarray]:
    """Split → its rows, int64."""
    cells = [cell.strip() for cell in table.columns.get("split", [])]
    if not any(cells):
        return {"train": np.arange(len(table))}
    cells = table.column("split")
    split_of = {name: SPLIT_ALIASES.get(name.lower()) for name in {*cells}}
    for row, cell in enumerate(cells if None in split_of.values() else ()):
        split_called(cell, table.place(row))
    splits = np.array([split_of[cell] for cell in cells])
    if "train" not in splits:
        raise InputError(f"{table.path} has no tile of the split train: a source needs some")
    return {split: np.flatnonzero(splits == split) for split in SPLITS if split in splits}


def _listed(
    table: Table, labels: np.ndarray, grouping: Grouping, used: Sequence[str], group: str
) -> tuple[ListedSplit, Grouping]:
    """What is known of all rows, and of their groups; tells of columns that are not used."""
    column = _group_column(table, grouping, used, group)
    groups = None
    attributes: dict[str, np.ndarray] = {}
    if column is not None:
        groups = spelled(table.column(column), table.place)
        grouping = with_kind_of(grouping, column)
    elif grouping.pattern is not None:
        paths = [path.replace("\\", "/") for path in table.columns[used[0]]]
        groups, attributes = parts_of_paths(paths, grouping.pattern, str(table.path))
    else:
        grouping = with_hint(grouping, str(table.path), [name for name in table.columns if name not in used])
    unused = list(table.others)
    for name, cells in table.columns.items():
        if name == "site":
            attributes = {name: spelled(table.column(name), table.place, name), **attributes}
        elif name not in (*used, "split", column):
            values = {cell.strip() for cell in cells}
            if _may_be_attribute(name, values) and name not in attributes:
                attributes[name] = spelled(cells, table.place, name)
            else:
                unused.append(name)
    if unused:
        what = counted(len(unused), "column is", "columns are")
        tell(f"{table.path}: {what} not used ({some(unused)})")
    return ListedSplit(labels, groups, attributes), grouping


def _group_column(table: Table, grouping: Grouping, used: Sequence[str], group: str) -> str | None:
    """The column with the groups, if there is one."""
    if grouping.column is None:
        return group if group in table.columns and grouping.pattern is None else None
    asked = grouping.asked
    others = [name for name in table.columns if name not in (*used, "split")]
    if grouping.column in (*used, "split"):
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
