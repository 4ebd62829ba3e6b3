"""Folders of pictures laid out as `split/class/*.png`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from histodistill.training.data.decoding import decode_tiles
from histodistill.training.data.tiles import SPLIT_ALIASES, SPLITS, Tiles, TileSource, make_source
from histodistill.training.running.errors import InputError


#: Endings of the names of files that are taken for images, in any case of letters.
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp")
# Folders that programs leave beside the user's own: macOS in archives, and Python.
_NOT_THE_USERS = ("__MACOSX", "__pycache__")


def load_image_folder(path: Path, *, image_size: int | None = None, hold_out_validation: bool = True) -> TileSource:
    """Loads `path/split/class/**/*.png` (jpg, jpeg, tif, tiff, bmp, webp; any case of letters).

    Splits are the folders `train` (required), `validation` (or `val`, `valid`) and `test`, in any case of letters.
    Classes are the folders in `train`, in sorted order; tiles come in sorted order of their path. Names that begin
    with a dot, `__MACOSX` and `__pycache__` are passed over.

    Args:
        path: The folder.
        image_size: Side that tiles are brought to in pixels; by default they stay as they are.
        hold_out_validation: Whether a part of train becomes validation where there is no such split.

    Returns:
        The source, named after the folder.

    Raises:
        InputError: No train folder, another folder beside it, a class without training tiles, a class that train does
            not have, a file that cannot be read, or sizes or modes that differ.
    """
    folders = _split_folders(path)
    class_names = [folder.name for folder in _folders(folders["train"])]
    if not class_names:
        raise InputError(f"{folders['train']} has no class folders: tiles are expected as train/CLASS/*.png")
    files: list[Path] = []
    labels: dict[str, list[int]] = {}
    for split in (s for s in SPLITS if s in folders):
        found, labels[split] = _labelled_files(folders[split], class_names, folders["train"])
        files += found
    images = decode_tiles(len(files), lambda start, stop: [(str(f), f) for f in files[start:stop]], image_size)
    ends = np.cumsum([len(of_split) for of_split in labels.values()])[:-1]
    splits = {
        split: Tiles(part, np.array(of_split, dtype=np.int64))
        for part, (split, of_split) in zip(np.split(images, ends), labels.items(), strict=True)
    }
    return make_source(path.resolve().name, class_names, splits, hold_out_validation=hold_out_validation)


def _split_folders(path: Path) -> dict[str, Path]:
    """Split → its folder in `path`."""
    folders: dict[str, Path] = {}
    others: list[Path] = []
    for child in _folders(path):
        split = SPLIT_ALIASES.get(child.name.lower())
        if split is None:
            others.append(child)
            continue
        if split in folders:
            raise InputError(
                f"{path} has both {folders[split].name} and {child.name}: keep one folder for the {split} split"
            )
        folders[split] = child
    if "train" not in folders:
        what = "is empty" if not any(path.iterdir()) else "has no folder train"
        raise InputError(f"{path} {what}: tiles are expected as {path / 'train' / 'CLASS' / '*.png'}")
    if others:
        raise InputError(
            f"{others[0]} is no split: folders beside {folders['train'].name} must be called validation (or val, "
            "valid) or test; rename it or move it away"
        )
    return folders


def _labelled_files(folder: Path, class_names: list[str], train: Path) -> tuple[list[Path], list[int]]:
    """The image files of a split's folder, class by class, and their labels; `train` is the folder of train."""
    files: list[Path] = []
    labels: list[int] = []
    for of_class in _folders(folder):
        found = _image_files(of_class)
        if of_class.name not in class_names:
            raise InputError(f"{of_class} is a class that train does not have: add {train / of_class.name}")
        if folder == train and not found:
            raise InputError(f"{of_class} holds no image ({', '.join(IMAGE_SUFFIXES)}): every class needs one")
        files += found
        labels += [class_names.index(of_class.name)] * len(found)
    if not labels:
        raise InputError(f"{folder} holds no image ({', '.join(IMAGE_SUFFIXES)}): add some or remove it")
    return files, labels


def _folders(path: Path) -> Sequence[Path]:
    """The user's own folders in `path`, by name."""
    found = (p for p in path.iterdir() if p.is_dir() and not p.name.startswith(".") and p.name not in _NOT_THE_USERS)
    return sorted(found, key=lambda p: p.name)


def _image_files(folder: Path) -> list[Path]:
    """All image files under a folder, by path, but for hidden ones."""
    found = [p for p in folder.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES and p.is_file()]
    found = [p for p in found if not any(part.startswith(".") for part in p.relative_to(folder).parts)]
    return sorted(found, key=lambda p: p.relative_to(folder).as_posix())
