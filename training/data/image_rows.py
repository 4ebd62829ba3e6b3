"""From rows with typed columns, as `datasets` writes them, to tiles: which columns are images and labels, and reading
them with limits.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from histodistill.selection.summaries import counted
from histodistill.training.data.arrow_files import Rows
from histodistill.training.data.decoding import Entry, decode_batches
from histodistill.training.data.grouping import Grouping
from histodistill.training.data.limits import check_growth, check_memory
from histodistill.training.data.make_source import make_source
from histodistill.training.data.names import shown, some
from histodistill.training.data.tiles import MIN_IMAGE_SIZE, Tiles, TileSource, check_soft_labels
from histodistill.training.running.errors import InputError, param
from histodistill.training.running.notes import tell, warn


#: What the columns are, by their name: `datasets`' features in the form in which it writes them to JSON.
Features = Mapping[str, Any]


@dataclass(frozen=True)
class Columns:
    """Which columns of some rows are used.

    Attributes:
        image, label: Their names.
        class_names: The name of each label.
        soft_label: Whether there is a column of a teacher's probabilities.
        unused: Names of all other columns.
    """

    image: str
    label: str
    class_names: tuple[str, ...]
    soft_label: bool
    unused: tuple[str, ...]

    @property
    def used(self) -> list[str]:
        """The names of the columns that are read."""
        return [self.image, self.label, *(["soft_label"] if self.soft_label else [])]


def source_of_rows(
    name: str,
    where: str,
    splits: Mapping[str, Sequence[tuple[Rows, Features | None]]],
    *,
    image_size: int | None,
    hold_out_validation: bool,
    grouping: Grouping | None = None,
    license: str | None = None,
) -> TileSource:
    """The source that rows of files with typed columns make.

    Args:
        name: What the source is called.
        where: What messages call it.
        splits: For each split its files in order; with each, what its columns are where that is said beside the file,
            and otherwise None, so that the file's own schema says it.
        image_size: Side that tiles are brought to in pixels; by default they stay as they are.
        hold_out_validation: Whether parts of train become validation and test where there are no such splits.
        grouping: What was said of the groups.
        license: Licence of the tiles where known.

    Raises:
        InputError: Columns, labels, soft labels or images that cannot be used, or that do not fit in memory.
    """
    columns = {split: _columns_of_split(files, f"{where}, split {split}") for split, files in splits.items()}
    first = next(iter(columns.values()))
    for split, found in columns.items():
        if found.class_names != first.class_names:
            raise InputError(f"the {split} split of {where} has other class names: all splits must have the same")
    tiles = {
        split: _read_tiles([rows for rows, _ in files], columns[split], f"{where}, split {split}", image_size)
        for split, files in splits.items()
    }
    _tell_of_unused(where, columns, tiles)
    sizes = {of_split.images.shape[1:3] for of_split in tiles.values()}
    if len(sizes) > 1:
        raise InputError(
            f"the splits of {where} differ in image size: give {param('image_size')} to bring all to one size"
        )
    return make_source(
        name,
        first.class_names,
        tiles,
        license=license,
        hold_out_validation=hold_out_validation,
        grouping=grouping,
    )


def _tell_of_unused(where: str, columns: Mapping[str, Columns], tiles: Mapping[str, Tiles]) -> None:
    """One line about the columns that were left."""
    unused = {column for found in columns.values() for column in found.unused}
    unused |= {
        "soft_label" for split, found in columns.items() if found.soft_label and tiles[split].soft_labels is None
    }
    if unused:
        what = counted(len(unused), "column is", "columns are")
        tell(f"{where}: {what} not used ({some(sorted(unused))})")


def features_of_schema(schema: pa.Schema, where: str) -> Features:
    """What `datasets` wrote about the columns into a file's schema; nothing where it did not.

    Raises:
        InputError: If what is there cannot be understood.
    """
    text = (schema.metadata or {}).get(b"huggingface")
    if text is None:
        return {}
    try:
        features = json.loads(text)["info"]["features"]
        if features is None or isinstance(features, dict):
            return features or {}
    except (KeyError, TypeError, ValueError, RecursionError):
        pass
    raise InputError(f"{where} has a schema whose entry 'huggingface' cannot be understood: save it again")


def _columns_of_split(files: Sequence[tuple[Rows, Features | None]], where: str) -> Columns:
    """The columns of a split's files, which must be the same in all."""
    found: Columns | None = None
    for rows, features in files:
        own = features_of_schema(rows.schema, str(rows.path))
        columns = _find_columns(rows.schema, features or own, where)
        if features and own and _find_columns(rows.schema, own, where).class_names != columns.class_names:
            raise InputError(f"{rows.path} has other class names than are written beside it: correct one of them")
        if found is not None and (columns.used, columns.class_names) != (found.used, found.class_names):
            raise InputError(
                f"{rows.path} has other columns or class names than {files[0][0].path}: all files of a split must "
                "have the same"
            )
        found = found or columns
    assert found is not None  # a split has files
    return found


def _find_columns(schema: pa.Schema, features: Features, where: str) -> Columns:
    """Finds the columns of images and of labels by their type."""
    kinds = {
        "Image": ("image", "cast_column('image', datasets.Image())", _is_image),
        "ClassLabel": ("label", "cast_column('label', datasets.ClassLabel(names=[...]))", pa.types.is_integer),
    }
    chosen: dict[str, str] = {}
    for kind, (usual, remedy, is_stored_so) in kinds.items():
        found = [
            field.name
            for field in schema
            if isinstance(feature := features.get(field.name), dict)
            and feature.get("_type") == kind
            and is_stored_so(field.type)
        ]
        if usual in found:
            found = [usual]
        if len(found) != 1:
            what = f"no column of type {kind}" if not found else f"several columns of type {kind}"
            raise InputError(f"{where} has {what}: it needs one, called {usual!r} if there are more; use {remedy}")
        chosen[kind] = found[0]
    image, label = chosen["Image"], chosen["ClassLabel"]
    names = features[label].get("names")
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise InputError(
            f"{where} has no names for the labels in column {label!r}: cast it to ClassLabel(names=[...])"
        )
    soft_label = "soft_label" in schema.names and _is_list_of_numbers(schema.field("soft_label").type)
    used = {image, label, *(["soft_label"] if soft_label else [])}
    return Columns(image, label, tuple(names), soft_label, tuple(name for name in schema.names if name not in used))


def _is_image(kind: pa.DataType) -> bool:
    """Whether a column can hold images: their bytes, or a struct of bytes and file name."""
    if pa.types.is_struct(kind):
        fields = {field.name: field.type for field in kind}
        is_alone = len(fields) == kind.num_fields
        return is_alone and "bytes" in fields and fields.keys() <= {"bytes", "path"} and _is_bytes(fields["bytes"])
    return _is_bytes(kind)


def _is_bytes(kind: pa.DataType) -> bool:
    """Whether values are bytes of any number."""
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def _is_list_of_numbers(kind: pa.DataType) -> bool:
    """Whether values are lists of numbers."""
    is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    return is_list and (pa.types.is_floating(kind.value_type) or pa.types.is_integer(kind.value_type))


def _read_tiles(files: Sequence[Rows], columns: Columns, where: str, image_size: int | None) -> Tiles:
    """The tiles of one split."""
    count = sum(file.num_rows for file in files)
    if not count:
        raise InputError(f"{where} is empty: a split needs at least one tile")
    # Each row becomes a tile, so that rows which repeat one value do not stay as small as they are stored.
    least = image_size or MIN_IMAGE_SIZE
    _check_size(files, where, count * least * least * 3)
    labels, soft_labels = [], []
    outside: list[Path] = []

    def entries() -> Iterator[list[Entry]]:
        """The images, batch by batch, whose labels are read on the way."""
        start = 0
        for below, batch in _batches(files, columns.used):
            labels.append(_labels(batch.column(columns.label), where, start))
            if columns.soft_label:
                soft_labels.append(_soft_labels(batch.column("soft_label"), len(columns.class_names)))
            names = [columns.class_names[i] if 0 <= i < len(columns.class_names) else "" for i in labels[-1]]
            of_batch = _entries(batch.column(columns.image), where, start, below, names)
            outside.extend(file for _, file in of_batch if isinstance(file, Path) and not _is_below(file, below))
            yield of_batch
            start += batch.num_rows

    images = decode_batches(count, entries(), image_size, functools.partial(_check_size, files, where))
    if outside:
        warn(
            f"{where} holds no images but the names of files: {len(outside):,} are read from folders of images, "
            f"such as {shown(str(outside[0]))}"
        )
    return Tiles(images, np.concatenate(labels), _whole_soft_labels(soft_labels, where))


def _batches(files: Sequence[Rows], columns: list[str]) -> Iterator[tuple[Sequence[Path], pa.RecordBatch]]:
    """The batches of all files, each with the folders below which its images may be."""
    for rows in files:
        for batch in rows.batches(columns):
            yield rows.files_below, batch


def _check_size(files: Sequence[Rows], where: str, unpacked: int) -> None:
    """Sees that tiles of so many bytes fit in memory, and are not very many for their files."""
    check_growth(where, sum(rows.stored for rows in files), unpacked)
    check_memory(where, unpacked)


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


def _entries(column: pa.Array, where: str, start: int, below: Sequence[Path], names: Sequence[str]) -> list[Entry]:
    """The cells of the column of images from row `start` on: what messages call each, and its bytes or its file.

    Data could name any file of whoever reads them. So a file must be below one of the folders `below`, or be a tile of
    a folder of images, in the folder of its class: `to_parquet` of such a folder leaves the names of its files.

    Args:
        column: The cells.
        where: What messages call the data.
        start: Row of the first cell.
        below: Folders of the data's own.
        names: Name of each row's class.
    """
    entries: list[Entry] = []
    for row, (cell, class_name) in enumerate(zip(column.to_pylist(), names, strict=True), start):
        cell = cell if isinstance(cell, dict) else {"bytes": cell}
        name, path = f"{where}, row {row}", cell.get("path")
        if path:
            name = f"{name} ({shown(str(path))})"
        if cell.get("bytes") is not None:
            entries.append((name, cell["bytes"]))
        elif not path:
            raise InputError(f"{name} has no image: every row needs one")
        elif _is_below(Path(path), below) or _is_of_class(Path(path), class_name):
            entries.append((name, Path(path)))
        else:
            raise InputError(
                f"{name} names a file in place of the image: only images that are in the data themselves are read; "
                "embed them before to_parquet, with datasets.table.embed_table_storage, or use save_to_disk"
            )
    return entries


def _is_below(path: Path, folders: Sequence[Path]) -> bool:
    """Whether a file is in one of the folders, wherever links lead."""
    if "\0" in str(path):
        return False
    return any(path.resolve().is_relative_to(folder.resolve()) for folder in folders)


def _is_of_class(path: Path, class_name: str) -> bool:
    """Whether a file is a tile of a folder of images: in the folder that has the name of its class."""
    return "\0" not in str(path) and path.is_absolute() and path.is_file() and path.resolve().parent.name == class_name
