"""Image datasets of a run, the pool and the distilled set: Parquet with PNG images and columns of numbers.

`load_dataset` opens them. They are read here directly, so that a folder's name is never a pattern, and so that no copy
of their images stays in a cache of this machine or comes out of it in their place: what is read is what files hold.
`read_image_dataset` reads a dataset whole, and `open_image_table` leaves the images of a large one in the files, from
which each is unpacked when it is asked for.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from histodistill.hub_cards.errors import ContentError
from histodistill.hub_cards.table_files import TableFile, read_table, table_schema, write_table
from histodistill.hub_cards.tables import MERGED, ImageTable, check_table
from histodistill.selection.image_rows import Images
from histodistill.training.data.limits import check_growth, check_memory
from histodistill.training.data.scratch_images import FEW_BYTES
from histodistill.training.data.stored_images import StoredImages, open_table_file
from histodistill.training.running.errors import InputError
from histodistill.training.running.files import new_folder, write_bytes


if TYPE_CHECKING:
    from datasets import Features


def shard_name(number: int, total: int) -> str:
    """What a file of a dataset is called: the one of this number, from 0, of so many."""
    return f"train-{number:05d}-of-{total:05d}.parquet"


#: The one file that `write_image_dataset` writes.
SHARD = shard_name(0, 1)
# The name of a file: its number, and how many there are.
_SHARD = re.compile(r"train-(\d{5})-of-(\d{5})\.parquet", re.ASCII)


def write_image_dataset(
    folder: str | Path,
    images: np.ndarray,
    columns: dict[str, np.ndarray],
    class_names: list[str],
    site_names: Sequence[str] = (),
) -> Features:
    """Writes images and further columns as `folder/train-00000-of-00001.parquet`, the folder replaced as a whole.

    The file is in the form in which such a set is published: see `hub_cards.tables`.

    Args:
        folder: The `data` folder of a dataset.
        images: uint8 N×S×S×3.
        columns: Name → N integers or floats, or N×C floats, of `hub_cards.tables.COLUMNS`; with `label`. Numbers that
            are not whole are rounded.
        class_names: Names of the labels, of which each has an image.
        site_names: Names of the sites, where there is a column `site`.

    Returns:
        The features of the dataset.

    Raises:
        InputError: For other columns, or numbers out of range.
    """
    table = ImageTable(images, columns, list(class_names), list(site_names))
    try:
        data = write_table(table)
    except ContentError as error:
        raise InputError(f"{folder} cannot be written: {error}") from error
    with new_folder(folder) as new:
        write_bytes(new / SHARD, data)
    return dataset_features(table)


def read_image_dataset(folder: str | Path) -> tuple[np.ndarray, dict[str, np.ndarray], list[str]]:
    """Reads what `write_image_dataset` wrote under `folder/data`.

    Returns:
        Images uint8 N×S×S×3, the other columns as arrays, and the class names.

    Raises:
        InputError: If there is no such dataset, a file of it is missing, or it is damaged or holds anything else.
    """
    table = read_image_table(folder)
    return table.images, table.columns, table.class_names


def read_image_table(folder: str | Path, columns: Sequence[str] = MERGED) -> ImageTable:
    """As `read_image_dataset`, with the names of the sites where it has these.

    Args:
        folder: The folder that holds `data`.
        columns: Those that it may have, beside images.

    Raises:
        InputError: If there is no such dataset, a file of it is missing, or it is damaged or holds anything else.
    """
    files = require_shards(folder)
    try:
        return read_shards(files, columns)
    except (ContentError, OSError) as error:
        raise InputError(f"{folder} cannot be read ({error}): make it again") from error


def open_image_table(folder: str | Path, columns: Sequence[str] = MERGED) -> ImageTable:
    """As `read_image_table`, but images that are more than a few stay in the files until they are asked for.

    Args:
        folder: The folder that holds `data`.
        columns: Those that it may have, beside images.

    Returns:
        The table. Its images are an array, or `StoredImages`, which are used alike and raise `InputError` where what
        is read is damaged.

    Raises:
        InputError: If there is no such dataset, a file of it is missing, or it is damaged or holds anything else, but
            for the images themselves.
    """
    paths = require_shards(folder)
    try:
        files = [open_shard(path, columns, is_whole=len(paths) == 1) for path in paths]
        if not all(file.in_groups for file in files):  # of another writer
            return read_shards(paths, columns)
        table = _join([file.table for file in files], StoredImages(folder, files))
    except (ContentError, OSError) as error:
        raise InputError(f"{folder} cannot be read ({error}): make it again") from error
    return replace(table, images=table.images[:]) if table.images.nbytes <= FEW_BYTES else table


def open_shard(path: Path, columns: Sequence[str] = MERGED, *, is_whole: bool = False) -> TableFile:
    """A file of a dataset, of which only the images are not read.

    Args:
        path: The file.
        columns: Those that it may have, beside images.
        is_whole: Whether it is all of the dataset.

    Raises:
        ContentError: If it is damaged or holds anything else.
        InputError: If it unpacks to very many times its size.
        OSError: If it cannot be opened.
    """
    stored = path.stat().st_size
    return open_table_file(path, lambda needed: check_growth(str(path), stored, needed), columns, is_whole=is_whole)


def read_shards(files: Sequence[Path], columns: Sequence[str] = MERGED) -> ImageTable:
    """The rows of all files of a dataset, as `find_shards` finds these.

    Raises:
        ContentError: If a file is damaged or holds anything else, or they do not belong together.
        InputError: If they unpack to too much.
        OSError: If one cannot be opened.
    """
    return _join([_read_shard(file, columns, is_whole=len(files) == 1) for file in files])


def require_shards(folder: str | Path) -> list[Path]:
    """The Parquet files of the dataset in `folder`, in order.

    Raises:
        InputError: If there is no such dataset, or as `find_shards` does.
    """
    if files := find_shards(folder):
        return files
    raise InputError(f"{folder} holds no image dataset: give a folder with data/train-*.parquet in it")


def find_shards(folder: str | Path) -> list[Path]:
    """The Parquet files of the dataset in `folder`, in order; none where there is no dataset.

    Raises:
        InputError: If one of them is missing, or if there are others beside them.
    """
    data = Path(folder) / "data"
    try:
        names = sorted(path.name for path in data.iterdir() if path.name[0] != ".")
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise InputError(f"{data} cannot be read ({error}): make it readable, or make the set again") from error
    names = [name for name in names if name.lower().endswith(".parquet")]
    matches = [_SHARD.fullmatch(name) for name in names]
    for name, match in zip(names, matches, strict=True):
        if match is None:
            raise InputError(f"{data / name} is no part of an image dataset: move it elsewhere, or make the set again")
    numbers = [(int(match[1]), int(match[2])) for match in matches if match]
    total = max((count for _, count in numbers), default=0)
    if numbers != [(number, total) for number in range(total)]:
        raise InputError(
            f"{data} does not hold the {total} files that it should, one of each number, but {len(names)} "
            f"({', '.join(names[:3])}{', …' if len(names) > 3 else ''}): copy the missing ones, or make the set again"
        )
    for name in names:
        if not (data / name).is_file():  # a pipe would be waited for
            raise InputError(f"{folder} cannot be read (data/{name} is no file): make it again")
    return [data / name for name in names]


def dataset_features(table: ImageTable) -> Features:
    """The columns of a table in the terms of `datasets`, for its card."""
    from datasets import Features

    return Features.from_arrow_schema(table_schema(table))


def _read_shard(path: Path, columns: Sequence[str], *, is_whole: bool) -> ImageTable:
    stored = path.stat().st_size

    def check_size(needed: int) -> None:
        check_growth(str(path), stored, needed)
        check_memory(str(path), needed)

    with open(path, "rb") as file:
        return read_table(file, columns, is_whole=is_whole, check_size=check_size)


def _join(tables: Sequence[ImageTable], images: Images | None = None) -> ImageTable:
    """The rows of all files of a dataset.

    Args:
        tables: Of each file.
        images: Of all of them; by default those of the tables.

    Raises:
        ContentError: If these differ in more than their rows.
    """
    first, *others = tables
    for other in others:
        if (
            (other.class_names, other.site_names, _shapes(other), other.images.shape[1:])
            != (first.class_names, first.site_names, _shapes(first), first.images.shape[1:])
        ):  # fmt: skip
            raise ContentError("its files differ in classes, columns or image size")
    if images is None:
        images = np.concatenate([table.images for table in tables]) if others else first.images
    if not others:
        return replace(first, images=images)
    columns = {name: np.concatenate([table.columns[name] for table in tables]) for name in first.columns}
    joined = replace(first, images=images, columns=columns)
    check_table(joined)
    return joined


def _shapes(table: ImageTable) -> dict[str, tuple[int, ...]]:
    """What a row has in each column: column → the shape of its numbers."""
    return {name: values.shape[1:] for name, values in table.columns.items()}
