"""Reads `.npz` files in the layout of MedMNIST; what a file claims is checked before anything of it is unpacked."""

from __future__ import annotations

import re
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import IO, BinaryIO

import numpy as np

from histodistill.selection.summaries import counted
from histodistill.training.data.limits import check_growth, check_memory
from histodistill.training.data.names import some
from histodistill.training.data.split_files import splits_in
from histodistill.training.data.tiles import SPLIT_ALIASES, SPLITS, Tiles, describe, fit_array
from histodistill.training.running.errors import InputError, one_line
from histodistill.training.running.files import format_size
from histodistill.training.running.notes import tell


# What reading a damaged archive may raise. RuntimeError comes from an encrypted archive, NotImplementedError from one
# that is packed in a way of which Python knows nothing.
_UNREADABLE = (
    OSError,
    EOFError,
    ValueError,
    KeyError,
    MemoryError,
    OverflowError,
    RuntimeError,
    NotImplementedError,
    zipfile.BadZipFile,
    zlib.error,
)
# The name of an array of a split, as in val_images.
_OF_SPLIT = re.compile(r"(?P<split>.+)_(?P<what>images|labels)", re.IGNORECASE)
# The array with the names of the classes.
_CLASS_NAMES = "class_names"


@dataclass(frozen=True)
class _Member:
    """An array in the archive, by its header.

    Attributes:
        info: Its entry in the archive's table of contents.
        shape, dtype: Of the array.
    """

    info: zipfile.ZipInfo
    shape: tuple[int, ...]
    dtype: np.dtype


def read_npz(path: Path, image_size: int | None = None) -> tuple[dict[str, Tiles], list[str] | None]:
    """Reads the splits of a `.npz` file, and the names of its classes if it has them.

    Splits are pairs of arrays `NAME_images` (uint8 N×H×W×3) and `NAME_labels` (integers N or N×1), where the name is
    one of `SPLIT_ALIASES`, in any case of letters; train is required. `class_names` is an array of text. One line
    tells which other arrays the file has.

    Args:
        path: The file.
        image_size: Side that tiles are brought to in pixels; by default they stay as they are.

    Returns:
        Split → its tiles, and the class names.

    Raises:
        InputError: A file that is damaged, encrypted, or would take too much memory; missing arrays, a wrong dtype or
            shape, or arrays that may be a split and are called otherwise.
    """
    with _readable(path), open(path, "rb") as raw, _archive(path, raw) as archive:
        members = _members(path, archive)
        keys = _keys_of_splits(path, members)
        used = [key for pair in keys.values() for key in pair]
        names_key = [_CLASS_NAMES] if _CLASS_NAMES in members else []
        _tell_of_others(path, keys, [key for key in members if key not in used + names_key])
        _check_sizes(path, [members[key] for key in used + names_key], image_size)
        splits = {split: _read_split(path, archive, members, pair, image_size) for split, pair in keys.items()}
        class_names = _class_names(path, _read(archive, members[_CLASS_NAMES])) if names_key else None
    return splits, class_names


def check_keys(path: Path) -> None:
    """Refuses a file without the arrays that `read_npz` needs; reads their headers alone.

    Raises:
        InputError: As `read_npz` does.
    """
    with _readable(path), open(path, "rb") as raw, _archive(path, raw) as archive:
        _keys_of_splits(path, _members(path, archive))


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Turns what a damaged archive raises into one sentence."""
    try:
        yield
    except InputError:
        raise
    except _UNREADABLE as error:
        reason = " ".join(str(error).split()).rstrip(".") or type(error).__name__
        raise InputError(
            f"{path} cannot be read as a .npz file ({reason}): it may be cut short or damaged; fetch or save it again"
        ) from error


def _archive(path: Path, raw: BinaryIO) -> zipfile.ZipFile:
    """The archive that a file is."""
    if raw.read(6) == np.lib.format.MAGIC_PREFIX:
        raise InputError(f"{path} holds a single array: the MedMNIST layout is a .npz of several")
    return zipfile.ZipFile(raw)


def _members(path: Path, archive: zipfile.ZipFile) -> dict[str, _Member]:
    """The arrays of an archive by name, of which only the headers are read."""
    names = Counter(info.filename for info in archive.infolist())
    twice, count = max(names.items(), key=lambda item: item[1], default=("", 0))
    if count > 1:
        raise InputError(f"{path} holds two files called {one_line(twice)}: save it again with numpy.savez")
    members = {}
    for info in archive.infolist():
        name = info.filename
        if PurePath(name).name != name or "\\" in name or not name.endswith(".npy"):
            raise InputError(f"{path} holds {one_line(name)}, which is no array: save it again with numpy.savez")
        with archive.open(info) as stream:
            shape, dtype, header = _header(stream)
        claimed = int(np.prod(shape, dtype=object)) * dtype.itemsize
        if dtype.hasobject:
            if info.filename == f"{_CLASS_NAMES}.npy" or _OF_SPLIT.fullmatch(name.removesuffix(".npy")):
                raise InputError(
                    f"{path} holds Python objects in {one_line(name)}, which are not loaded: save names as "
                    "numpy.array(names, dtype=str), and images and labels as arrays of whole numbers"
                )
        elif claimed != info.file_size - header:
            held = format_size(max(0, info.file_size - header))
            raise ValueError(f"{name} claims {format_size(claimed)} and holds {held}")
        members[name.removesuffix(".npy")] = _Member(info, shape, dtype)
    return members


def _header(stream: IO[bytes]) -> tuple[tuple[int, ...], np.dtype, int]:
    """Shape and dtype of an array, and how many bytes its header has."""
    version = np.lib.format.read_magic(stream)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(stream)
    return shape, dtype, stream.tell()


def _keys_of_splits(path: Path, members: dict[str, _Member]) -> dict[str, tuple[str, str]]:
    """Split → the names of its arrays of images and labels."""
    found: dict[str, dict[str, str]] = {}
    for key in members:
        match = _OF_SPLIT.fullmatch(key)
        if match is None:
            continue
        split, what = SPLIT_ALIASES.get(match["split"].lower()), match["what"].lower()
        if split is None:
            raise InputError(
                f"{path} has an array {one_line(key)!r} of no known split: a split must be called "
                f"{', '.join(SPLIT_ALIASES)}; rename the array or take it out"
            )
        if what in found.setdefault(split, {}):
            raise InputError(f"{path} has both {found[split][what]} and {key}: keep one of them for the {split} split")
        found[split][what] = key
    keys = {}
    for split in (split for split in SPLITS if split in found or split == "train"):
        pair = found.get(split, {})
        for what, other in (("images", "labels"), ("labels", "images")):
            if what not in pair:
                prefix = pair[other][: -len(other)] if other in pair else f"{split}_"
                raise InputError(
                    f"{path} has no array {prefix + what!r}: the MedMNIST layout needs train_images and "
                    "train_labels, and for val and test both or neither"
                )
        if pair["images"][: -len("images")].lower() != pair["labels"][: -len("labels")].lower():
            raise InputError(f"{path} has {pair['images']} and {pair['labels']}: give the {split} split one name")
        keys[split] = (pair["images"], pair["labels"])
    return keys


def _tell_of_others(path: Path, keys: dict[str, tuple[str, str]], others: Sequence[str]) -> None:
    """One line about arrays that are not used; none of them may be a split that is not loaded."""
    for key in others:
        split = next(iter(splits_in(key)), None)
        if split is not None and split not in keys:
            raise InputError(
                f"{path} has an array {one_line(key)!r} and no {split} split: call its arrays {split}_images and "
                f"{split}_labels, or take it out"
            )
    if others:
        what = counted(len(others), "array is", "arrays are")
        tell(f"{path}: {what} not used ({some(others)})")


def _check_sizes(path: Path, members: Sequence[_Member], image_size: int | None) -> None:
    """Sees that what is read fits in memory and is not very many times as large as the file."""
    sizes = [member.info.file_size for member in members]
    check_growth(str(path), path.stat().st_size, sum(sizes))
    if image_size is None:
        check_memory(str(path), sum(sizes))
    else:  # one split at a time is there as it was, beside all as they become
        count = sum(member.shape[0] for member in members if len(member.shape) == 4)
        check_memory(str(path), max(sizes) + count * image_size**2 * 3)


def _read_split(
    path: Path, archive: zipfile.ZipFile, members: dict[str, _Member], keys: tuple[str, str], image_size: int | None
) -> Tiles:
    """The tiles of one split, whose arrays of images and labels are called `keys`."""
    images_key, labels_key = keys
    images, labels = (_read(archive, members[key]) for key in keys)
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3 or 0 in images.shape[1:]:
        raise InputError(
            f"{images_key} in {path} is {describe(images)}: images must be uint8 N x H x W x 3 (RGB); "
            "convert greyscale or RGBA images first"
        )
    flat = _flat_labels(labels, labels_key, len(images), path)
    return Tiles(fit_array(images, image_size), flat)


def _read(archive: zipfile.ZipFile, member: _Member) -> np.ndarray:
    """An array, its rows one after the other in memory."""
    with archive.open(member.info) as stream:
        array = np.lib.format.read_array(stream, allow_pickle=False)
        stream.read()  # at the end the checksum is compared
    return np.ascontiguousarray(array)


def _flat_labels(labels: np.ndarray, key: str, count: int, path: Path) -> np.ndarray:
    """Labels N or N×1 of `count` images as int64 N; messages call them `key` in `path`."""
    if labels.ndim == 2 and labels.shape[1] > 1:
        raise InputError(f"{key} in {path} is {describe(labels)}: each tile must have one label, not several")
    if labels.dtype.kind not in "iu" or labels.ndim not in (1, 2):
        raise InputError(f"{key} in {path} is {describe(labels)}: labels must be whole numbers of shape N or N x 1")
    labels = labels.reshape(-1)
    if len(labels) != count:
        raise InputError(f"{key} in {path} has {len(labels)} labels for {count} images: there must be one for each")
    if not count:
        raise InputError(f"{key} in {path} is empty: a split needs at least one tile")
    if labels.min() < 0 or labels.max() > np.iinfo(np.int64).max:
        bad = int(labels.min() if labels.min() < 0 else labels.max())
        raise InputError(f"{key} in {path} holds {bad}: labels must be 0 to number of classes - 1")
    return labels.astype(np.int64)


def _class_names(path: Path, names: np.ndarray) -> list[str]:
    """The names that a file gives its classes."""
    if names.dtype.kind != "U" or names.ndim != 1:
        raise InputError(
            f"class_names in {path} is {describe(names)}: it must be text, one for each class; save it as "
            "numpy.array(names, dtype=str)"
        )
    return [str(name) for name in names]
