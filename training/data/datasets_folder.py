"""Local folders of `datasets`: Parquet files, and what `save_to_disk` leaves.

The files are read where they are: nothing of them is copied, no cache answers in their place, and nothing that a file
in the folder says leads out of it.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from pydantic import BaseModel, Field, ValidationError

from histodistill.hub_cards.documents import Exact, Known
from histodistill.selection.summaries import counted
from histodistill.training.data.arrow_files import Rows, open_arrow, open_parquet
from histodistill.training.data.folder_card import FolderCard, read_folder_card
from histodistill.training.data.folder_walk import IMAGE_SUFFIXES
from histodistill.training.data.grouping import Grouping
from histodistill.training.data.image_columns import Features, features_of_schema, is_image
from histodistill.training.data.image_rows import open_rows
from histodistill.training.data.names import shown, some
from histodistill.training.data.opened_source import OpenedSource
from histodistill.training.data.reading import AS_USUAL, Reading
from histodistill.training.data.split_files import (
    check_different,
    check_shards,
    is_one_series,
    split_called,
    splits_by_name,
    splits_named,
)
from histodistill.training.data.tiles import SPLIT_ALIASES, SPLITS
from histodistill.training.running.errors import InputError
from histodistill.training.running.notes import tell, warn


# Files by which the layout of `save_to_disk` is known: of a dataset with splits, and of one without.
_SPLITS_FILE, _STATE_FILE = "dataset_dict.json", "state.json"
# What `save_to_disk` writes beside a split's rows.
_INFO_FILE = "dataset_info.json"
# Bytes that one of these files may have.
_MAX_BYTES = 2**24
# How the names of files end that go with data and hold none.
_NO_DATA = (".md", ".txt", ".json", ".yaml", ".yml", ".lock", "")
# Files of a split with what is said of their columns beside them.
_Files = list[tuple[Rows, Features | None]]


class _SavedSplits(Exact):
    """dataset_dict.json."""

    splits: list[str] = Field(min_length=1)


class _SavedFile(Exact):
    """A file of rows in state.json."""

    filename: str


class _SavedState(Known):
    """state.json; how rows are shown, which it says too, changes nothing of them."""

    data_files: list[_SavedFile] = Field(alias="_data_files", min_length=1)
    # Of old versions of datasets: rows that are picked from the files.
    indices_files: list[Any] | None = Field(None, alias="_indices_files", max_length=0)
    indices_data_files: list[Any] | None = Field(None, alias="_indices_data_files", max_length=0)


class _SavedInfo(Known):
    """dataset_info.json, of which only the columns are of use."""

    features: dict[str, Any] | None = None


_Model = TypeVar("_Model", bound=BaseModel)


def is_datasets_folder(path: Path) -> bool:
    """Whether a folder is in `save_to_disk`'s layout or holds Parquet files, at most one level down."""
    if _is_saved(path):
        return True
    files = (file for pattern in ("*", "*/*") for file in path.glob(pattern))
    return any(
        _is_parquet(file.name) and not file.is_dir() and (file.parent == path or _is_users(file.parent.name))
        for file in files
    )


def open_datasets_folder(path: Path, grouping: Grouping, reading: Reading = AS_USUAL) -> OpenedSource:
    """Opens a folder of Parquet files, or one that `save_to_disk` of `datasets` left.

    Columns are found by their type, as `datasets` writes it into the files (for Parquet, README.md may say it
    instead): one of type Image (else the one called `image`) and one of type ClassLabel (else `label`). A column
    `soft_label` with one probability per class is taken along, a column `site` of text or ClassLabel as an attribute,
    and others are told of. Groups are a column that the user names, or a part of the images' file names.

    Which split a Parquet file belongs to, README.md says (`configs` with `data_files`, for files in the folder only),
    or else its path: `train.parquet`, `train/0.parquet`, `data/train-00000-of-00002.parquet`. Splits are those of
    `SPLIT_ALIASES`, in any case of letters. A dataset without splits counts as train.

    Args:
        path: The folder.
        grouping: What was said of the groups.
        reading: What is converted, and whether images that cannot be read are left out.

    Returns:
        The source, named after the folder.

    Raises:
        InputError: A file that cannot be read, is missing or leads out of the folder, a file or split of which it is
            not known what it is, or columns, labels, soft labels or groups that cannot be used.
    """
    parts = _saved_parts(path) if _is_saved(path) else _parquet_parts(path)
    splits: dict[str, _Files] = {}
    called: dict[str, str] = {}
    for part, files in parts.items():
        split = split_called(part, str(path))
        if split in splits:
            raise InputError(f"{path} has two splits for {split} ({called[split]}, {part}): keep one of them")
        splits[split], called[split] = files, part
    if "train" not in splits:
        raise InputError(f"{path} has no train split (found {', '.join(parts)}): name one train")
    return open_rows(path.resolve().name, str(path), splits, grouping, reading=reading)


def holds_images(path: Path) -> bool:
    """Whether a Parquet file holds images, and is no manifest: it has a column of them, or none of paths or slides.

    Raises:
        InputError: If it cannot be read.
    """
    schema = open_parquet(path).schema
    features = features_of_schema(schema, str(path))
    kinds = {feature.get("_type") for feature in features.values() if isinstance(feature, dict)}
    if "Image" in kinds or any(is_image(field.type) for field in schema):
        return True
    return "path" not in schema.names and "slide" not in schema.names


def open_parquet_file(path: Path, grouping: Grouping, reading: Reading = AS_USUAL) -> OpenedSource:
    """Opens a single Parquet file with images, as `open_datasets_folder` would a folder with nothing else in it.

    Returns:
        The source, named after the file.

    Raises:
        InputError: As `open_datasets_folder`; also if by its name the file is another split than train, or one part
            of several.
    """
    file = PurePosixPath(path.name)
    if "train" not in splits_by_name(path.parent, [file]):
        raise InputError(
            f"{path} is the {min(splits_named(file))} split by its name, and a source needs train: give the folder "
            "with all splits, or rename the file if its tiles are for training"
        )
    check_shards([path])
    return open_rows(path.stem, str(path), {"train": [(open_parquet(path), None)]}, grouping, reading=reading)


def _parquet_parts(folder: Path) -> dict[str, _Files]:
    """The Parquet files of each split."""
    found = _files(folder)
    files = [file for file in found if _is_parquet(file.name)]
    card = read_folder_card(folder)
    if card.data_dir:
        files = [file for file in files if file.is_relative_to(card.data_dir)]
        if not files:
            raise InputError(f"{card.path} says that the data are in {card.data_dir}, where no Parquet file is")
    named = card.files_of_splits(files)
    if named is None:
        splits = splits_by_name(folder, files)
        _warn_of_mixtures(folder, splits)
    else:
        splits = {split: [folder / file for file in of_split] for split, of_split in named.items()}
    used = [file for of_split in splits.values() for file in of_split]
    if twice := [file for file, count in Counter(used).items() if count > 1]:
        raise InputError(f"{card.path} puts {twice[0].name} into two splits: correct it")
    _check_links(folder, used, card if named is not None else None)
    check_shards(used)
    check_different(splits)
    others = [file for file in found if folder / file not in {*used}]
    # What a card does not name may be another configuration.
    _tell_of_others(folder, others, {*SPLITS} if named is not None else {*splits})
    parts = {split: [(open_parquet(file), card.features or None) for file in of] for split, of in splits.items()}
    _check_numbers(card, parts)
    return parts


def _warn_of_mixtures(folder: Path, splits: dict[str, list[Path]]) -> None:
    """A warning where the files of a split may be several data sets, or not all of one."""
    for split, files in splits.items():
        if len({file.parent for file in files}) > 1 or not is_one_series(files):
            names = some([file.relative_to(folder).as_posix() for file in files])
            warn(
                f"{folder}: {len(files)} files ({names}) are put together as the {split} split, and are not numbered "
                "as parts of one data set: see that all of them belong to it and none is missing"
            )


def _check_links(folder: Path, files: Sequence[Path], card: FolderCard | None) -> None:
    """Sees that files are there, and tells of those that are links out of the folder.

    A card must not name such files, since whoever wrote it may be somebody else than who has the files.
    """
    root = folder.resolve()
    # A snapshot of the Hugging Face cache is links to files that lie beside it.
    inside = root.parent.parent if root.parent.name == "snapshots" else root
    for file in files:
        if not file.exists():
            raise InputError(f"{file} is a link to a file that is not there: fetch it, or take the link out")
        if not file.is_file():
            raise InputError(f"{file} is no file: take it out")
    outside = [file for file in files if not file.resolve().is_relative_to(inside)]
    if outside and card is not None:
        raise InputError(
            f"{card.path} names {outside[0].name}, a link to a file outside the folder: copy the file into the folder"
        )
    if outside:
        warn(f"{folder}: {counted(len(outside), 'file is a link', 'files are links')} to files outside the folder")


def _tell_of_others(folder: Path, files: Sequence[PurePosixPath], loaded: set[str]) -> None:
    """One line about files of the folder that hold data and are not read; none may be a split that is not loaded."""
    others = [file for file in files if file.suffix.lower() not in _NO_DATA]
    for file in others:
        if missing := splits_named(file) - loaded:
            if file.suffix.lower() in IMAGE_SUFFIXES:
                raise InputError(
                    f"{folder / file} is of the split {min(missing)}, and {folder} also holds Parquet or Arrow files, "
                    "which are read instead: move away either these or the images"
                )
            raise InputError(
                f"{folder / file} is of the split {min(missing)}, and is not read with the others of {folder}: save "
                "all splits in one way, or move it away"
            )
    if others:
        what = counted(len(others), "file is", "files are")
        tell(f"{folder}: {what} not read ({some([file.as_posix() for file in others])})")


def _check_numbers(card: FolderCard, parts: dict[str, _Files]) -> None:
    """Sees that as many rows are there as the card says."""
    numbers = {SPLIT_ALIASES.get(part.lower()): sum(rows.num_rows for rows, _ in of) for part, of in parts.items()}
    for split, expected in card.num_examples.items():
        if expected != (found := numbers.get(SPLIT_ALIASES.get(split.lower()), 0)):
            raise InputError(
                f"{card.path.parent} has {found} rows of the split {shown(split)} and README.md says {expected}: "
                "fetch the files again, or correct README.md"
            )


def _saved_parts(folder: Path) -> dict[str, _Files]:
    """The Arrow files of each split that `save_to_disk` wrote."""
    if not (folder / _SPLITS_FILE).is_file():
        parts = {"train": _saved_files(folder, folder)}
        _tell_of_unsaved(folder, parts)
        return parts
    if (folder / _STATE_FILE).is_file():
        raise InputError(f"{folder} has both {_SPLITS_FILE} and {_STATE_FILE}: keep that of the dataset you mean")
    names = _read(folder / _SPLITS_FILE, _SavedSplits).splits
    for name in names:
        _check_plain(folder / _SPLITS_FILE, name)
        if names.count(name) > 1:
            raise InputError(f"{folder / _SPLITS_FILE} names {shown(name)} twice: save the dataset again")
    for other in _folders(folder):
        if other.name not in names and (other / _STATE_FILE).is_file():
            raise InputError(f"{other} is a split that {_SPLITS_FILE} does not name: add it there or move it away")
    parts = {name: _saved_files(folder / name, folder) for name in names}
    _tell_of_unsaved(folder, parts)
    return parts


def _tell_of_unsaved(folder: Path, parts: dict[str, _Files]) -> None:
    """`_tell_of_others` for a folder in `save_to_disk`'s layout."""
    used = {rows.path for files in parts.values() for rows, _ in files}
    others = [file for file in _files(folder) if folder / file not in used]
    _tell_of_others(folder, others, {SPLIT_ALIASES.get(part.lower(), part) for part in parts})


def _saved_files(folder: Path, root: Path) -> _Files:
    """The Arrow files of one split; `root` is the dataset's folder."""
    state = _read(folder / _STATE_FILE, _SavedState)
    names = [file.filename for file in state.data_files]
    files = []
    for name in names:
        _check_plain(folder / _STATE_FILE, name)
        file = folder / name
        if not file.is_file():
            raise InputError(f"{file} is missing, and {_STATE_FILE} names it: fetch or copy all files of the dataset")
        if not file.resolve().is_relative_to(root.resolve()):
            raise InputError(f"{file} is a link out of the dataset's folder: copy the file into it")
        if names.count(name) > 1:
            raise InputError(f"{folder / _STATE_FILE} names {shown(name)} twice: save the dataset again")
        files.append(file)
    check_shards(files)
    features = _read(folder / _INFO_FILE, _SavedInfo).features
    return [(open_arrow(file), features) for file in files]


def _check_plain(where: Path, name: str) -> None:
    """Sees that a name which a file of the dataset gives is that of something beside it, and no way elsewhere."""
    if not name or name in (".", "..") or any(c in name for c in "/\\:") or not name.isprintable():
        raise InputError(f"{where} names {shown(name)!r}: only names of files and folders beside it are followed")


def _read(path: Path, model: type[_Model]) -> _Model:
    """What a JSON file of `save_to_disk` says."""
    try:
        if path.stat().st_size > _MAX_BYTES:
            reason = "it is too large"
        elif not path.is_file():  # a pipe would be waited for, and a device may never end
            reason = "it is no ordinary file"
        else:
            return model.model_validate(json.loads(path.read_bytes()))
    except ValidationError as error:
        first = error.errors()[0]
        reason = " ".join([*map(str, first["loc"]), first["msg"]])
    except OSError as error:
        reason = error.strerror or str(error)
    except (ValueError, RecursionError):
        reason = "it is no JSON"
    raise InputError(f"{path} cannot be used ({shown(reason)}): save the dataset again with save_to_disk")


def _is_saved(path: Path) -> bool:
    """Whether a folder is in `save_to_disk`'s layout."""
    return any((path / name).is_file() for name in (_SPLITS_FILE, _STATE_FILE))


def _is_parquet(name: str) -> bool:
    """Whether a file is a Parquet file by its name; hidden files are not the user's."""
    return name.lower().endswith(".parquet") and not name.startswith(".")


def _is_users(folder: str) -> bool:
    """Whether a folder is the user's own by its name: not hidden, nor one that a program left."""
    return not folder.startswith((".", "__"))


def _folders(path: Path) -> list[Path]:
    """The user's own folders in a folder, in order of their names."""
    return sorted(child for child in path.iterdir() if child.is_dir() and _is_users(child.name))


def _files(folder: Path) -> list[PurePosixPath]:
    """All files of the user below a folder, relative to it, in order of their paths; linked folders are followed."""
    found = []
    seen: set[str] = set()

    def refuse(error: OSError) -> None:
        raise InputError(
            f"{error.filename} cannot be read ({error.strerror}): change who may read it, or move it away"
        )

    for parent, folders, names in os.walk(folder, onerror=refuse, followlinks=True):
        folders[:] = [name for name in folders if _is_users(name)]
        real = os.path.realpath(parent)
        if real in seen:  # a link to a folder above it
            folders.clear()
            continue
        seen.add(real)
        relative = Path(parent).relative_to(folder)
        found += [PurePosixPath((relative / name).as_posix()) for name in names if not name.startswith(".")]
    return sorted(found)
