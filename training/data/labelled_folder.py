"""Folders of pictures whose classes stand in a table, in the folder or beside it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath

from histodistill.selection.summaries import counted
from histodistill.training.data.folder_walk import FolderWalk
from histodistill.training.data.grouping import Grouping
from histodistill.training.data.manifest import (
    OF_FILES,
    Table,
    check_columns,
    check_manifest,
    check_no_repeats,
    read_columns,
    read_table,
)
from histodistill.training.data.names import shown
from histodistill.training.data.opened_source import OpenedSource
from histodistill.training.data.reading import AS_USUAL, Reading
from histodistill.training.data.tile_files import open_tile_files
from histodistill.training.data.tiles import SPLIT_ALIASES
from histodistill.training.running.errors import InputError, param
from histodistill.training.running.notes import tell


#: What a table of labels in a folder is called.
TABLES = ("labels.csv", "labels.tsv", "metadata.csv", "metadata.tsv")


def table_in(folder: Path) -> Path | None:
    """The table of labels that lies in a folder; None where there is none.

    Raises:
        InputError: If there are several.
    """
    found = []
    for name in TABLES:
        table = folder / name
        if table.is_file():
            try:
                check_manifest(table)
            except InputError:  # a table of something else
                continue
            found.append(table)
    if len(found) > 1:
        raise InputError(
            f"{folder} has both {found[0].name} and {found[1].name}: say with {param('labels')} which of them has the "
            "labels"
        )
    return found[0] if found else None


def open_labelled_folder(
    folder: Path,
    table: Path,
    grouping: Grouping,
    reading: Reading = AS_USUAL,
) -> OpenedSource:
    """Opens the pictures in a folder, in whatever folders below it, whose classes a table says.

    The table is a manifest, see `open_manifest`, whose paths go from the folder. The name of a file is enough where
    only one in the folder is called so, with its suffix or without. Where the table has no column `split` and all
    pictures lie in folders of splits, such as `train/` and `test/`, these are the splits. Pictures that the table does
    not name are told of.

    Args:
        folder: The folder.
        table: The table: `.csv`, `.tsv` or `.parquet`.
        grouping: What was said of the groups.
        reading: What is converted, and whether pictures that are empty, were not fetched or cannot be read are left
            out.

    Returns:
        The source, named after the folder.

    Raises:
        InputError: As `open_manifest`; a picture that the table names is not there, or several are called so.
    """
    if not table.is_file():
        raise InputError(f"{param('labels')}={table} is no file: name the table with the columns path and label")
    walk = FolderWalk(folder, reading.skip_unreadable)
    images = walk.images(folder)
    walk.check()
    read = read_table(table)
    if read.is_of_slides:
        raise InputError(f"{table} names places on slides, and no pictures in {folder}: give it as the source itself")
    check_columns(read, OF_FILES)
    paths = _paths_of(read, folder, images)
    columns = {**read.columns, "path": paths}
    if "split" not in columns and (above := _splits_above(paths)):
        columns["split"] = above
    read = replace(read, columns=columns)
    files = [folder / path for path in paths]
    check_no_repeats(read, [str(file) for file in files])
    named = {*files}
    walk.leave_unnamed([image for image in images if image not in named])
    tell(f"{folder}: labels are those of {table.name}")
    if account := walk.account():
        tell(account)
    classes, splits, rows, grouping = read_columns(read, grouping, OF_FILES)
    return open_tile_files(
        folder.resolve().name,
        classes,
        splits,
        file=lambda i: files[rows[i]],
        called=lambda i: str(files[rows[i]]),
        stored=lambda: sum(file.stat().st_size for file in files),
        grouping=grouping,
        reading=reading,
    )


def _splits_above(paths: Sequence[str]) -> list[str] | None:
    """The folder of a split that each picture is in; None where not all are in such folders."""
    parts = [path.split("/") for path in paths]
    if all(len(path) > 1 and path[0].lower() in SPLIT_ALIASES for path in parts):
        return [path[0] for path in parts]
    return None


def _paths_of(table: Table, folder: Path, images: Sequence[Path]) -> list[str]:
    """For each row of a table the path of its picture in the folder."""
    found = _by_names([image.relative_to(folder).as_posix() for image in images])
    cells = [cell.replace("\\", "/").removeprefix("./") for cell in table.column("path")]
    missing = [row for row, cell in enumerate(cells) if cell not in found]
    if missing:
        what = counted(len(missing), "picture that is not there", "pictures that are not there")
        raise InputError(
            f"{table.place(missing[0])} names {shown(table.columns['path'][missing[0]])}, one of {what}: correct the "
            f"paths, which go from {folder}, or fetch the files"
        )
    for row, cell in enumerate(cells):
        if len(found[cell]) > 1:
            raise InputError(
                f"{table.place(row)} names {shown(cell)}, and {folder} has several of this name, such as "
                f"{' and '.join(map(shown, found[cell][:2]))}: give their paths from the folder"
            )
    return [found[cell][0] for cell in cells]


def _by_names(paths: Sequence[str]) -> dict[str, list[str]]:
    """What a table may call pictures → their paths: by path, else by path without suffix, name, or name without it."""
    found: dict[str, list[str]] = {}
    shorter: dict[str, list[str]] = {}
    for path in paths:
        found[path] = [path]
        pure = PurePosixPath(path)
        for name in {str(pure.with_suffix("")), pure.name, pure.stem}:
            shorter.setdefault(name, []).append(path)
    return shorter | found
