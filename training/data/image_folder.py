"""Folders of pictures laid out as `split/class/*.png`, or as `class/*.png`."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

import numpy as np

from histodistill.selection.summaries import counted
from histodistill.training.data.folder_walk import IMAGE_SUFFIXES, FolderWalk
from histodistill.training.data.group_names import parts_of_paths
from histodistill.training.data.grouping import Grouping
from histodistill.training.data.listing import ListedSplit
from histodistill.training.data.names import class_name
from histodistill.training.data.opened_source import OpenedSource
from histodistill.training.data.reading import AS_USUAL, Reading
from histodistill.training.data.split_files import names_of
from histodistill.training.data.tile_files import open_tile_files
from histodistill.training.data.tiles import SPLIT_ALIASES, SPLITS
from histodistill.training.running.errors import InputError, param
from histodistill.training.running.notes import tell
from histodistill.training.running.suggestions import did_you_mean


def open_image_folder(path: Path, grouping: Grouping, reading: Reading = AS_USUAL) -> OpenedSource:
    """Opens `path/split/class/**/*.png` or `path/class/**/*.png`, and images of the other formats that are decoded.

    Splits are the folders `train` (required), `validation` and `test`, or what `SPLIT_ALIASES` has for them, in any
    case of letters. Where there is no such folder, the folders are classes, and all tiles are train. Classes are the
    folders in `train`, in sorted order of their names; a name is one class in all its Unicode spellings. Tiles come in
    sorted order of their path. Links are followed. Names that begin with a dot, and folders of systems and storages
    (`@eaDir`, `__MACOSX`), are passed over. So are, beside the folders of splits, images and folders without any. A
    note tells what was left out and why.

    Groups and attributes are named parts of the files' paths in the folder, such as `train/gland/P1_007.png`.

    Args:
        path: The folder.
        grouping: What was said of the groups.
        reading: What is converted, and whether images that are empty, were not fetched or cannot be read are left out.

    Returns:
        The source, named after the folder.

    Raises:
        InputError: No folder of classes, another folder beside the splits, a split that is not unpacked, a class
            without training tiles, a class that train does not have, or an image that cannot be used: in no class
            folder, not fetched, or empty. A pattern that does not fit all paths, or a column, which a folder does not
            have.
    """
    if grouping.column is not None:
        raise InputError(
            f"{path} is a folder of images, which has no columns for {grouping.asked}: give "
            f"{param('group_pattern')}, which finds groups in paths, or as {param('labels')} a table with the columns "
            "path, label and group"
        )
    walk = FolderWalk(path, reading.skip_unreadable)
    folders = _split_folders(walk)
    by_split = {split: _images_by_class(walk, below, images) for split, (_, below, images) in folders.items()}
    walk.check()
    if account := walk.account():
        tell(account)
    classes = _check_classes({split: folder for split, (folder, _, _) in folders.items()}, by_split)
    if folders["train"][0] == path:
        tell(f"{path} has no folders of splits: its folders are {counted(len(classes), 'class', 'classes')}")
    splits = {split: _listed(path, of_split, classes, grouping) for split, of_split in by_split.items()}
    files = [file for of_split in by_split.values() for file in _in_order(of_split, classes)]
    return open_tile_files(
        path.resolve().name,
        classes,
        splits,
        file=files.__getitem__,
        called=lambda i: str(files[i]),
        stored=lambda: sum(file.stat().st_size for file in files),
        grouping=grouping,
        reading=reading,
    )


def _in_order(by_class: dict[str, list[Path]], classes: list[str]) -> list[Path]:
    """The images of a split, class after class."""
    return [file for name in classes for file in by_class.get(name, [])]


def _listed(root: Path, by_class: dict[str, list[Path]], classes: list[str], grouping: Grouping) -> ListedSplit:
    """What is known of the images of a split, in the order of `_in_order`."""
    labels = np.repeat(np.arange(len(classes)), [len(by_class.get(name, [])) for name in classes])
    if grouping.pattern is None:
        return ListedSplit(labels)
    # As `relative_to` of each, in a quarter of the time: there may be very many.
    above = root.as_posix().rstrip("/") + "/"
    paths = [file.as_posix().removeprefix(above) for file in _in_order(by_class, classes)]
    return ListedSplit(labels, *parts_of_paths(paths, grouping.pattern, str(root)))


def check_splits(path: Path) -> None:
    """Refuses a folder without the folders that `open_image_folder` needs; looks into few of them.

    Raises:
        InputError: As `open_image_folder` does.
    """
    _split_folders(FolderWalk(path))


def has_split_folders(path: Path) -> bool:
    """Whether a folder of images has a folder of training tiles, with folders of classes in it."""
    walk = FolderWalk(path)
    train = [folder for folder in walk.folders(path)[0] if SPLIT_ALIASES.get(folder.name.lower()) == "train"]
    return any(walk.folders(folder)[0] for folder in train)


def _split_folders(walk: FolderWalk) -> dict[str, tuple[Path, list[Path], list[Path]]]:
    """Split → its folder, the folders of classes in it, and the images beside these."""
    path = walk.root
    below, images = walk.folders(path)
    folders: dict[str, Path] = {}
    others: list[Path] = []
    is_split = [folder.name.lower() in SPLIT_ALIASES for folder in below]
    if any(is_split):
        walk.leave_out(images)
    for child in below:
        split = SPLIT_ALIASES.get(child.name.lower())
        if split is None:
            if not walk.passed_over(child):
                others.append(child)
        elif split in folders:
            raise InputError(
                f"{path} has both {folders[split].name} and {child.name}: keep one folder for the {split} split"
            )
        else:
            folders[split] = child
    if not folders and others:
        _check_no_data_sets(path, others)
        walk.refuse_packed({*SPLITS})
        return {"train": (path, others, images)}
    if "train" not in folders:
        walk.check()
        what = "is empty" if not any(path.iterdir()) else "has no folder train" if folders else "has no class folders"
        raise InputError(
            f"{path} {what}: tiles are expected as {path / 'train' / 'CLASS' / '*.png'}, or without splits as "
            f"{path / 'CLASS' / '*.png'}; or give a table of their classes as {param('labels')}"
        )
    if others:
        raise InputError(
            f"{others[0]} is no split: folders beside {folders['train'].name} must be called "
            f"{names_of('validation')} or {names_of('test')}; rename it or move it away"
        )
    walk.refuse_packed({split for split in SPLITS if split not in folders})
    return {split: (folder, *walk.folders(folder)) for split, folder in folders.items()}


def _check_no_data_sets(path: Path, folders: list[Path]) -> None:
    """Sees that what are to be folders of classes are not data sets, with splits of their own."""
    for folder in folders:
        with suppress(OSError):  # which is told of when its images are listed
            for child in (folder / name for name in sorted(os.listdir(folder)) if name.lower() in SPLIT_ALIASES):
                raise InputError(
                    f"{child} is called like a split, so that {folder} is no folder of a class: give the one folder "
                    f"that holds the splits, or rename {child}"
                )


def _images_by_class(walk: FolderWalk, below: list[Path], images: list[Path]) -> dict[str, list[Path]]:
    """Name of a class → its images; folders whose names are one class are put together.

    Args:
        walk: Keeps account.
        below: The folders of classes of a split.
        images: The images beside them.
    """
    by_class: dict[str, list[Path]] = {}
    if images and not below:
        folder = images[0].parent
        raise InputError(f"{folder} has no class folders: tiles are expected as {folder.name}/CLASS/*.png")
    walk.refuse_beside_classes(images)
    for of_class in below:
        name = class_name(of_class.name)
        if name in by_class:
            walk.put_together(of_class)
        by_class.setdefault(name, []).extend(walk.images(of_class))
    return by_class


def _check_classes(folders: dict[str, Path], by_split: dict[str, dict[str, list[Path]]]) -> list[str]:
    """The classes of train, by name; sees that each has a tile, and that other splits have tiles, and no other class.

    Args:
        folders: Split → its folder, for messages.
        by_split: Split → class → images.
    """
    train = folders["train"]
    classes = sorted(by_split["train"])
    if not classes:
        raise InputError(f"{train} has no class folders: tiles are expected as train/CLASS/*.png")
    for name, files in by_split["train"].items():
        if not files:
            raise InputError(f"{train / name} holds no image ({', '.join(IMAGE_SUFFIXES)}): every class needs one")
    for split, by_class in by_split.items():
        unknown = sorted(set(by_class) - set(classes))
        if unknown:
            meant = did_you_mean(unknown[0], classes)
            raise InputError(
                f"{folders[split] / unknown[0]} is a class that train does not have{meant}: "
                f"add {train / unknown[0]}, or give it one of the names there ({', '.join(classes)})"
            )
        if not any(by_class.values()):
            raise InputError(f"{folders[split]} holds no image ({', '.join(IMAGE_SUFFIXES)}): add some or remove it")
    return classes
