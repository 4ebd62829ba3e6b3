"""Image datasets of a run, the pool and the distilled set: Parquet with PNG images and columns of numbers.

`load_dataset` opens them. They are read here directly, so that a folder's name is never a pattern, and so that no copy
of their images stays in a cache of this machine or comes out of it in their place.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from histodistill.hub_cards.errors import ContentError
from histodistill.hub_cards.tables import MERGED, ImageTable, check_table, read_table, table_schema, write_table
from histodistill.training.data.limits import check_growth, check_memory
from histodistill.training.running.errors import InputError
from histodistill.training.running.files import new_folder, write_bytes


if TYPE_CHECKING:
    from datasets import Features


#: The one file that `write_image_dataset` writes.
SHARD = "train-00000-of-00001.parquet"
# A dataset in several files, as later versions may write it: its number, and how many there are.
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


def _join(tables: Sequence[ImageTable]) -> ImageTable:
    """The rows of all files of a dataset. Raises ContentError if these differ in more than their rows."""
    first, *others = tables
    if not others:
        return first
    for other in others:
        if (
            (other.class_names, other.site_names, other.columns.keys(), other.images.shape[1:])
            != (first.class_names, first.site_names, first.columns.keys(), first.images.shape[1:])
        ):  # fmt: skip
            raise ContentError("its files differ in classes, columns or image size")
    columns = {name: np.concatenate([table.columns[name] for table in tables]) for name in first.columns}
    joined = replace(first, images=np.concatenate([table.images for table in tables]), columns=columns)
    check_table(joined)
    return joined
