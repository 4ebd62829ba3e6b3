"""Tiles from Hugging Face `datasets`: local folders and Hub ids."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from histodistill.training.data.decoding import decode_tiles
from histodistill.training.data.tiles import SPLIT_ALIASES, Tiles, TileSource, check_soft_labels, make_source
from histodistill.training.running.errors import InputError, param


if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict

# Where Parquet files are looked for in a folder: in it, and one level down.
_PARQUET = ("*.parquet", "*/*.parquet")
# Files by which the layout of `save_to_disk` is known: of a dataset with splits, and of one without.
_SAVED = ("dataset_dict.json", "state.json")


def is_datasets_folder(path: Path) -> bool:
    """Whether a folder is in `save_to_disk`'s layout or holds Parquet files, at most one level down."""
    return any((path / name).is_file() for name in _SAVED) or any(any(path.glob(pattern)) for pattern in _PARQUET)


def load_datasets_folder(path: Path, *, image_size: int | None = None, hold_out_validation: bool = True) -> TileSource:
    """Loads a folder that `datasets` can open: `save_to_disk`'s layout, or Parquet files.

    Columns are found by their type: one of type Image (else the one called `image`) and one of type ClassLabel (else
    `label`). A column `soft_label` with one probability per class is taken along. A dataset without splits counts as
    train; splits are those that `load_image_folder` knows, in any case of letters, and others are passed over.

    Args:
        path: The folder.
        image_size: Side that tiles are brought to in pixels; by default they stay as they are.
        hold_out_validation: Whether a part of train becomes validation where there is no such split.

    Returns:
        The source, named after the folder.

    Raises:
        InputError: A folder that cannot be opened, or columns, labels, soft labels or images that cannot be used.
    """
    from datasets import load_dataset, load_from_disk

    # Opening Parquet files leaves a copy in the cache; private tiles should not be left there.
    with tempfile.TemporaryDirectory(prefix="histodistill-", ignore_cleanup_errors=True) as scratch:
        try:
            saved = any((path / name).is_file() for name in _SAVED)
            data = load_from_disk(str(path)) if saved else load_dataset(str(path), cache_dir=scratch)
        except Exception as error:  # of many kinds: pyarrow's, fsspec's, datasets'
            raise InputError(f"{path} cannot be opened with datasets ({_reason(error)}): save it again") from error
        return _source(path.resolve().name, str(path), data, image_size, hold_out_validation)


def load_hub_dataset(
    repo_id: str,
    *,
    image_size: int | None = None,
    cache_dir: str | Path | None = None,
    hold_out_validation: bool = True,
) -> TileSource:
    """Loads a dataset of the Hub by its id `user/name`, from the Hugging Face cache when it is there.

    Args:
        repo_id: The id, `user/name`.
        image_size: Side that tiles are brought to in pixels; by default they stay as they are.
        cache_dir: Where downloads are kept; the Hugging Face cache by default.
        hold_out_validation: Whether a part of train becomes validation where there is no such split.

    Returns:
        The source, named by the id.

    Raises:
        InputError: As for `load_datasets_folder`; also when there is neither a network nor a cached copy.
    """
    from datasets import load_dataset

    try:
        data = load_dataset(repo_id, cache_dir=None if cache_dir is None else os.fspath(cache_dir))
    except Exception as error:  # of many kinds: HTTP, cache, builder
        raise InputError(
            f"{repo_id} is no local folder and cannot be loaded from the Hub ({_reason(error)}): check the name, "
            "the network, and for a private dataset `hf auth login`"
        ) from error
    license = next((d.info.license for d in data.values() if d.info.license), None)
    return _source(repo_id, repo_id, data, image_size, hold_out_validation, license)


def _source(
    name: str,
    where: str,
    data: Dataset | DatasetDict,
    image_size: int | None,
    hold_out_validation: bool,
    license: str | None = None,
) -> TileSource:
    """The source of a dataset that was opened; messages say that it is from `where`."""
    parts = data if isinstance(data, dict) else {"train": data}
    splits: dict[str, Tiles] = {}
    class_names: list[str] = []
    for part, rows in parts.items():
        split = SPLIT_ALIASES.get(str(part).lower())
        if split is None:
            continue
        if split in splits:
            raise InputError(f"{where} has two splits for {split} ({', '.join(map(str, parts))}): keep one of them")
        image_column, label_column = _columns(rows, where)
        names = list(rows.features[label_column].names)
        if class_names and names != class_names:
            raise InputError(f"the {part} split of {where} has other class names: all splits must have the same")
        class_names = names
        splits[split] = _tiles(rows, image_column, label_column, f"{where}, split {part}", image_size)
    if "train" not in splits:
        raise InputError(f"{where} has no train split (found {', '.join(map(str, parts)) or 'none'}): name one train")
    sizes = {tiles.images.shape[1:3] for tiles in splits.values()}
    if len(sizes) > 1:
        raise InputError(
            f"the splits of {where} differ in image size: give {param('image_size')} to bring all to one size"
        )
    return make_source(name, class_names, splits, license=license or None, hold_out_validation=hold_out_validation)


def _columns(rows: Dataset, where: str) -> tuple[str, str]:
    """The names of the columns of images and of labels."""
    from datasets import ClassLabel, Image

    chosen = []
    for kind, usual, remedy in (
        (Image, "image", "cast_column('image', datasets.Image())"),
        (ClassLabel, "label", "cast_column('label', datasets.ClassLabel(names=[...]))"),
    ):
        found = [column for column, feature in rows.features.items() if isinstance(feature, kind)]
        if usual in found:
            found = [usual]
        if len(found) != 1:
            what = f"no column of type {kind.__name__}" if not found else f"several columns of type {kind.__name__}"
            raise InputError(f"{where} has {what}: it needs one, called {usual!r} if there are more; use {remedy}")
        chosen += found
    return chosen[0], chosen[1]


def _tiles(rows: Dataset, image_column: str, label_column: str, where: str, image_size: int | None) -> Tiles:
    """The tiles of one split."""
    from datasets import Image

    if not len(rows):
        raise InputError(f"{where} is empty: a split needs at least one tile")
    labels = rows.with_format("arrow")[:][label_column].to_pylist()
    if None in labels:
        raise InputError(f"{where} has no label in row {labels.index(None)}: every tile needs one")
    encoded = rows.select_columns([image_column]).cast_column(image_column, Image(decode=False))

    def entries(start: int, stop: int) -> list[tuple[str, Path | bytes]]:
        cells = encoded[start:stop][image_column]
        return [_entry(f"{where}, row {i}", cell or {}) for i, cell in enumerate(cells, start)]

    images = decode_tiles(len(rows), entries, image_size)
    soft_labels = _soft_labels(rows, rows.features[label_column].num_classes)
    if soft_labels is not None:
        check_soft_labels(soft_labels, where)
    return Tiles(images, np.array(labels, dtype=np.int64), soft_labels)


def _soft_labels(rows: Dataset, num_classes: int) -> np.ndarray | None:
    """The column `soft_label` as float32 N×C; None where there is none, or one that means something else."""
    if "soft_label" not in rows.column_names:
        return None
    try:
        soft_labels = np.array(rows.with_format("arrow")[:]["soft_label"].to_pylist(), dtype=np.float32)
    except (TypeError, ValueError):  # rows of different lengths, or of something else than numbers
        return None
    return soft_labels if soft_labels.shape == (len(rows), num_classes) and np.isfinite(soft_labels).all() else None


def _entry(name: str, cell: dict[str, Any]) -> tuple[str, Path | bytes]:
    """What `decode_tiles` takes for one cell of the image column: its name, and its bytes or its file."""
    if cell.get("path"):
        name = f"{name} ({cell['path']})"
    if cell.get("bytes") is not None:
        return name, cell["bytes"]
    if cell.get("path") and Path(cell["path"]).is_file():
        return name, Path(cell["path"])
    raise InputError(f"{name} has no image: every row needs one")


def _reason(error: Exception) -> str:
    """The message of another library's error in one line of at most 160 characters."""
    text = " ".join(str(error).split()).rstrip(".:")
    return (text[:157] + "..." if len(text) > 160 else text) or type(error).__name__
