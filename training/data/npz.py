"""Reads `.npz` files in the layout of MedMNIST; what a file claims is checked before anything of it is unpacked."""

from __future__ import annotations

import re
import zipfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import IO, Any, BinaryIO

import numpy as np

from histodistill.selection.summaries import counted
from histodistill.training.data.group_names import spelled
from histodistill.training.data.limits import check_growth, check_memory
from histodistill.training.data.listing import ListedSplit
from histodistill.training.data.names import some
from histodistill.training.data.split_files import splits_in
from histodistill.training.data.tiles import SPLIT_ALIASES, SPLITS, describe, fit_array
from histodistill.training.running.errors import InputError, one_line, reason_of
from histodistill.training.running.files import format_size
from histodistill.training.running.notes import tell


# The name of an array of a split, as in val_images; of the last two, those of other names than a split's are no
# concern of ours.
_OF_SPLIT = re.compile(r"(?P<split>.+)_(?P<what>images|labels|groups|sites)", re.IGNORECASE)
_OPTIONAL = ("groups", "sites")
# The array with the names of the classes.
_CLASS_NAMES = "class_names"
# Bytes of images that are unpacked at once.
_BYTES_PER_CALL = 2**24


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


@dataclass(frozen=True)
class NpzContent:
    """What a file holds beside pixels.

    Attributes:
        splits: Split → its tiles, without their pixels.
        class_names: The names that the file gives its classes, if it does.
        sizes: Width and height in pixels → tiles that have it.
    """

    splits: dict[str, ListedSplit]
    class_names: list[str] | None
    sizes: Counter[tuple[int, int]]


def list_npz(path: Path) -> NpzContent:
    """Reads what a `.npz` file holds but its images: of these the header alone.

    Splits are pairs of arrays `NAME_images` (uint8 N×H×W×3) and `NAME_labels` (integers N or N×1), where the name is
    one of `SPLIT_ALIASES`, in any case of letters; train is required. Beside them there may be `NAME_groups` and
    `NAME_sites` (text, bytes of UTF-8 or integers, N or N×1): the group of each tile, such as its patient, and its
    attribute `site`. `class_names` is an array of text. One line tells which other arrays the file has.

    Args:
        path: The file.

    Raises:
        InputError: A file that is damaged, encrypted, or would take too much memory; missing arrays, a wrong dtype or
            shape, or arrays that may be a split and are called otherwise.
    """
    with _readable(path), open(path, "rb") as raw, _archive(path, raw) as archive:
        members = _members(path, archive)
        keys = _keys_of_splits(path, members)
        names_key = [_CLASS_NAMES] if _CLASS_NAMES in members else []
        read = [key for of_split in keys.values() for what, key in of_split.items() if what != "images"] + names_key
        used = [*read, *(of_split["images"] for of_split in keys.values())]
        _tell_of_others(path, keys, [key for key in members if key not in used])
        _check_growth(path, [members[key] for key in used])
        check_memory(str(path), sum(members[key].info.file_size for key in read))
        splits = {split: _list_split(path, archive, members, of_split) for split, of_split in keys.items()}
        class_names = _class_names(path, _read(archive, members[_CLASS_NAMES])) if names_key else None
        sizes: Counter[tuple[int, int]] = Counter()
        for of_split in keys.values():
            count, height, width, _ = members[of_split["images"]].shape
            sizes[width, height] += count
    return NpzContent(splits, class_names, sizes)


class NpzPixels:
    """The images of a `.npz` file, which are unpacked a few at a time; see `PixelSource`.

    Args:
        path: The file.
        content: What `list_npz` found in it.
    """

    def __init__(self, path: Path, content: NpzContent):
        self._path = path
        self._counts = {split: len(listed) for split, listed in content.splits.items()}

    @property
    def settings(self) -> dict[str, Any]:
        """Which splits come in which order."""
        return {"kind": "npz", "splits": self._counts}

    def __len__(self) -> int:
        return sum(self._counts.values())

    def name(self, number: int) -> str:
        """What messages call a tile."""
        for split, count in self._counts.items():
            if number < count:
                return f"tile {number} of the {split} tiles of {self._path}"
            number -= count
        raise IndexError(number)

    def files(self) -> list[Path]:
        """The file."""
        return [self._path]

    def decode(self, image_size: int | None, start: int) -> Iterator[np.ndarray]:
        """The tiles from `start` on, as arrays.

        Raises:
            InputError: A file that is damaged or was changed meanwhile.
        """
        with _readable(self._path), open(self._path, "rb") as raw, _archive(self._path, raw) as archive:
            members = _members(self._path, archive)
            keys = _keys_of_splits(self._path, members)
            _check_growth(self._path, [members[key] for of_split in keys.values() for key in of_split.values()])
            for split, count in self._counts.items():
                skipped = min(start, count)
                start -= skipped
                if split not in keys or members[keys[split]["images"]].shape[0] != count:
                    raise InputError(f"{self._path} was changed while it was read: run the command again")
                if skipped < count:
                    for images in _read_rows(archive, members[keys[split]["images"]], skipped):
                        yield fit_array(images, image_size)


def check_keys(path: Path) -> None:
    """Refuses a file without the arrays that `list_npz` needs; reads their headers alone.

    Raises:
        InputError: As `list_npz` does.
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
    except Exception as error:  # zipfile and numpy raise errors of many kinds on damaged files
        raise InputError(
            f"{path} cannot be read as a .npz file ({reason_of(error)}): it may be cut short or damaged; fetch or "
            "save it again"
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
            shape, dtype, _, header = _header(stream)
        claimed = int(np.prod(shape, dtype=object)) * dtype.itemsize
        if dtype.hasobject:
            key = name.removesuffix(".npy")
            if key == _CLASS_NAMES or _role(key):
                raise InputError(
                    f"{path} holds Python objects in {one_line(name)}, which are not loaded: save names as "
                    "numpy.array(names, dtype=str), and images and labels as arrays of whole numbers"
                )
        elif claimed != info.file_size - header:
            held = format_size(max(0, info.file_size - header))
            raise ValueError(f"{name} claims {format_size(claimed)} and holds {held}")
        members[name.removesuffix(".npy")] = _Member(info, shape, dtype)
    return members


def _header(stream: IO[bytes]) -> tuple[tuple[int, ...], np.dtype, bool, int]:
    """Shape and dtype of an array, whether it is in Fortran's order, and how many bytes its header has."""
    version = np.lib.format.read_magic(stream)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, is_fortran, dtype = read(stream)
    return shape, dtype, is_fortran, stream.tell()


def _role(key: str) -> tuple[str, str] | None:
    """What a split is called in the name of an array, and what of it the array holds; None for other arrays."""
    match = _OF_SPLIT.fullmatch(key)
    if match is None:
        return None
    called, what = match["split"].lower(), match["what"].lower()
    return None if what in _OPTIONAL and called not in SPLIT_ALIASES else (called, what)


def _keys_of_splits(path: Path, members: dict[str, _Member]) -> dict[str, dict[str, str]]:
    """Split → the names of its arrays: of images and labels, and of groups and sites where it has them."""
    found: dict[str, dict[str, str]] = {}
    for key in members:
        role = _role(key)
        if role is None:
            continue
        split, what = SPLIT_ALIASES.get(role[0]), role[1]
        if split is None:
            raise InputError(
                f"{path} has an array {one_line(key)!r} of no known split: a split must be called "
                f"{', '.join(SPLIT_ALIASES)}; rename the array or take it out"
            )
        if what in found.setdefault(split, {}):
            raise InputError(f"{path} has both {found[split][what]} and {key}: keep one of them for the {split} split")
        found[split][what] = key
    keys = {}
    for split in SPLITS:
        arrays = found.get(split, {})
        if split != "train" and not arrays.keys() - {*_OPTIONAL}:
            continue
        for what, other in (("images", "labels"), ("labels", "images")):
            if what not in arrays:
                prefix = arrays[other][: -len(other)] if other in arrays else f"{split}_"
                raise InputError(
                    f"{path} has no array {prefix + what!r}: the MedMNIST layout needs train_images and "
                    "train_labels, and for val and test both or neither"
                )
        images, labels = arrays["images"], arrays["labels"]
        if images[: -len("images")].lower() != labels[: -len("labels")].lower():
            raise InputError(f"{path} has {images} and {labels}: give the {split} split one name")
        keys[split] = arrays
    return keys


def _tell_of_others(path: Path, keys: dict[str, dict[str, str]], others: Sequence[str]) -> None:
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


def _check_growth(path: Path, members: Sequence[_Member]) -> None:
    """Sees that arrays are not very many times as large as the file."""
    check_growth(str(path), path.stat().st_size, sum(member.info.file_size for member in members))


def _list_split(
    path: Path, archive: zipfile.ZipFile, members: dict[str, _Member], keys: dict[str, str]
) -> ListedSplit:
    """What is known of one split, whose arrays are called `keys`."""
    images = members[keys["images"]]
    if images.dtype != np.uint8 or len(images.shape) != 4 or images.shape[-1] != 3 or 0 in images.shape[1:]:
        raise InputError(
            f"{keys['images']} in {path} is {describe(images)}: images must be uint8 N x H x W x 3 (RGB); "
            "convert greyscale or RGBA images first"
        )
    count = images.shape[0]
    labels = _flat_labels(_read(archive, members[keys["labels"]]), keys["labels"], count, path)
    names = {
        what: _names(_read(archive, members[keys[what]]), keys[what], count, path, what[:-1])
        for what in _OPTIONAL
        if what in keys
    }
    attributes = {"site": names["sites"]} if "sites" in names else {}
    return ListedSplit(labels, names.get("groups"), attributes)


def _read(archive: zipfile.ZipFile, member: _Member) -> np.ndarray:
    """An array, its rows one after the other in memory."""
    with archive.open(member.info) as stream:
        array = np.lib.format.read_array(stream, allow_pickle=False)
        stream.read()  # at the end the checksum is compared
    return np.ascontiguousarray(array)


def _read_rows(archive: zipfile.ZipFile, member: _Member, start: int) -> Iterator[np.ndarray]:
    """The images of an array N×H×W×3 from the row `start` on, a few at a time."""
    size = int(np.prod(member.shape[1:]))
    step = max(1, _BYTES_PER_CALL // size)
    with archive.open(member.info) as stream:
        _, _, is_fortran, _ = _header(stream)
        if is_fortran:  # the first row ends where the array does
            stream.close()
            yield from (images[None] for images in _read(archive, member)[start:])
            return
        _skip(stream, start * size)
        for first in range(start, member.shape[0], step):
            count = min(step, member.shape[0] - first)
            data = stream.read(count * size)
            if len(data) < count * size:
                raise EOFError("it is cut short")
            yield np.frombuffer(data, np.uint8).reshape(count, *member.shape[1:])
        stream.read()  # at the end the checksum is compared


def _skip(stream: IO[bytes], size: int) -> None:
    """Passes over bytes, which still count for the checksum."""
    while size > 0:
        size -= len(stream.read(min(size, _BYTES_PER_CALL))) or size


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


def _names(names: np.ndarray, key: str, count: int, path: Path, what: str) -> np.ndarray:
    """Names of groups or sites, N or N×1, of `count` images as text N; messages call them `key` in `path`."""
    if names.dtype.kind not in "USiu" or names.ndim not in (1, 2) or names.shape[1:] not in ((), (1,)):
        raise InputError(
            f"{key} in {path} is {describe(names)}: it must be text or whole numbers of shape N or N x 1; save it as "
            "numpy.array(names, dtype=str)"
        )
    names = names.reshape(-1)
    if len(names) != count:
        raise InputError(f"{key} in {path} has {len(names)} names for {count} images: there must be one for each")
    if names.dtype.kind == "S":
        try:
            names = np.char.decode(names, "utf-8")
        except UnicodeDecodeError as error:
            raise InputError(
                f"{key} in {path} holds bytes that are no UTF-8: save it as numpy.array(names, dtype=str)"
            ) from error
    return spelled(names.astype(np.str_).tolist(), lambda row: f"{key} in {path}, row {row}", what)


def _class_names(path: Path, names: np.ndarray) -> list[str]:
    """The names that a file gives its classes."""
    if names.dtype.kind != "U" or names.ndim != 1:
        raise InputError(
            f"class_names in {path} is {describe(names)}: it must be text, one for each class; save it as "
            "numpy.array(names, dtype=str)"
        )
    return [str(name) for name in names]
