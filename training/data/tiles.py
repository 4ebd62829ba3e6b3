"""Labelled tiles in memory, the checks that every source must pass, and the rule for odd sizes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from PIL import Image

from histodistill.selection.checks import check_integer
from histodistill.selection.image_rows import Images, batches, rows_of
from histodistill.selection.near_copies import in_order
from histodistill.selection.streams import stream
from histodistill.selection.summaries import counted, summarise
from histodistill.training.data.limits import check_memory, check_picture
from histodistill.training.data.tile_store import store_of
from histodistill.training.running.errors import InputError, param


#: The splits that a source can have, in the order in which they are kept.
SPLITS = ("train", "validation", "test")
#: What a split may be called, in lower case → the split. Names that some use for one split and others for another,
#: such as `eval`, `development` or `holdout`, are not among them.
SPLIT_ALIASES = {
    "train": "train",
    "training": "train",
    "validation": "validation",
    "val": "validation",
    "valid": "validation",
    "dev": "validation",
    "test": "test",
    "testing": "test",
}
#: The split that `hold_out_for_audit` makes.
HELD_OUT = "held_out"
#: Least side of a tile in pixels: the convolutional classifier halves it three times.
MIN_IMAGE_SIZE = 8
# How far the sum of a tile's soft labels may be from 1; a softmax in float32 keeps nearer to it by far.
_SUM_TOLERANCE = 1e-3
# Classes that the `repr` of a source names; of more, the rest is left out.
_NAMES_SHOWN = 10


@dataclass(frozen=True, eq=False)
class LabelViews:
    """A teacher's probabilities of fixed views of images, beside those of the images as they are.

    Attributes:
        codes: uint8 N×V×C, of the views from 1 on: see `hub_cards.tables.decode_soft_label_views`.
        ranks: int64 N, the place of each image among those of its class, from 1: with the class it tells what the
            views are, see `selection.fixed_views`.
    """

    codes: np.ndarray
    ranks: np.ndarray

    def subset(self, indices: np.ndarray) -> LabelViews:
        """Those of the images at `indices`."""
        return LabelViews(self.codes[indices], self.ranks[indices])


@dataclass(frozen=True, eq=False)
class Tiles:
    """Labelled images.

    Attributes:
        images: uint8 N×H×W×3, RGB: an array, or a view of images that are read when they are asked for, which is used
            alike (`images[rows]` is an array).
        labels: int64 N; other whole numbers are converted.
        soft_labels: A teacher's probabilities, float32 N×C, or None.
        groups: The name of each tile's group, such as its patient: text N, or None where none are known.
        attributes: What else is known of each tile, such as its site: name → text N.
        label_views: Soft labels of further views of each tile, or None.

    Raises:
        InputError: Another dtype or shape, not as many labels as images, or a tile without a group where others have
            one.
    """

    images: Images
    labels: np.ndarray
    soft_labels: np.ndarray | None = None
    groups: np.ndarray | None = None
    attributes: Mapping[str, np.ndarray] = field(default_factory=dict)
    label_views: LabelViews | None = None

    def __post_init__(self) -> None:
        if self.images.dtype != np.uint8 or self.images.ndim != 4 or self.images.shape[-1] != 3:
            raise InputError(f"images are {describe(self.images)}: they must be uint8 N x H x W x 3 RGB")
        if self.labels.ndim != 1 or len(self.labels) != len(self.images):
            raise InputError(f"labels are {describe(self.labels)}: there must be one for each of {len(self)} images")
        object.__setattr__(self, "labels", self.labels.astype(np.int64))
        if self.soft_labels is not None:
            if self.soft_labels.ndim != 2 or len(self.soft_labels) != len(self.images):
                found = describe(self.soft_labels)
                raise InputError(f"soft labels are {found}: there must be one row for each of {len(self)} images")
            object.__setattr__(self, "soft_labels", self.soft_labels.astype(np.float32))
        if self.groups is not None:
            object.__setattr__(self, "groups", _checked_groups(self.groups, len(self)))

    def __len__(self) -> int:
        return len(self.images)

    def __repr__(self) -> str:
        soft = "" if self.soft_labels is None else ", with soft labels"
        groups = "" if self.groups is None else f", {counted(len(np.unique(self.groups)), 'group')}"
        return f"Tiles({summarise(self.images, self.labels, 'tile')}{groups}{soft})"

    def fingerprint(self) -> str:
        """SHA-256 (64 hex digits) of images, labels, soft labels, and which groups belong together, in their order."""
        stored = store_of([self.images])
        if stored is None:
            return self._hash()
        digest = hashlib.sha256(stored[1][0].astype("<i8").data)
        self.add_to(digest, pixels=False)
        return stored[0].remembered(f"tiles {digest.hexdigest()}", self._hash)

    def _hash(self) -> str:
        digest = hashlib.sha256(json.dumps(list(self.images.shape)).encode())
        self.add_to(digest)
        return digest.hexdigest()

    def add_to(self, digest: hashlib._Hash, *, pixels: bool = True) -> None:
        """Adds images, labels and soft labels to a hash, and of groups and attributes which tiles share one.

        Names are left out: a hash of few possible names would tell which it was made of.

        Args:
            digest: The hash.
            pixels: Whether images are added, too.
        """
        for batch in batches(self.images) if pixels else ():
            digest.update(np.ascontiguousarray(batch).data)
        digest.update(np.ascontiguousarray(self.labels.astype("<i8")).data)
        if self.soft_labels is not None:
            digest.update(np.ascontiguousarray(self.soft_labels.astype("<f4")).data)
        if self.label_views is not None:
            digest.update(np.ascontiguousarray(self.label_views.codes).data)
            digest.update(np.ascontiguousarray(self.label_views.ranks.astype("<i8")).data)
        for values in (self.groups, *(self.attributes[name] for name in sorted(self.attributes))):
            if values is not None:
                digest.update(in_order(values).astype("<i8").data)

    def subset(self, indices: np.ndarray | Sequence[int]) -> Tiles:
        """The tiles at `indices`, in that order; their images are a view, of which none is copied."""
        indices = np.asarray(indices, dtype=np.int64)
        soft_labels = None if self.soft_labels is None else self.soft_labels[indices]
        groups = None if self.groups is None else self.groups[indices]
        attributes = {name: values[indices] for name, values in self.attributes.items()}
        views = None if self.label_views is None else self.label_views.subset(indices)
        return Tiles(rows_of(self.images, indices), self.labels[indices], soft_labels, groups, attributes, views)


@dataclass(frozen=True, eq=False)
class TileSource:
    """A data set: its splits, its classes, and whom to credit. The rest of the program knows no more of the data.

    Attributes:
        name: Short name of the source, such as `pathmnist` or the name of the folder.
        class_names: The name of each label; the index is the label.
        splits: `Tiles` by name: "train", mostly "validation", often "test", and "held_out" where training tiles were
            kept from all models for the privacy audit.
        image_size: Side of every tile in pixels.
        license: Licence of the tiles where known.
        attribution: Whom to credit, where known.
        made: The splits that were made of training tiles, since the data has none.
        group_kind: What a group is, one of `GROUP_KINDS`; None where the tiles have no groups.
        shared_groups: Groups that are in several given splits, where this was allowed.
    """

    name: str
    class_names: list[str]
    splits: dict[str, Tiles]
    image_size: int
    license: str | None = None
    attribution: str | None = None
    made: tuple[str, ...] = ()
    group_kind: str | None = None
    shared_groups: int = 0

    def __repr__(self) -> str:
        splits = ", ".join(f"{name} {len(tiles):,}" for name, tiles in self.splits.items())
        names = [*self.class_names[:_NAMES_SHOWN], *(["…"] if len(self.class_names) > _NAMES_SHOWN else [])]
        classes = f"{counted(len(self.class_names), 'class', 'classes')} ({', '.join(names)})"
        return f"TileSource({self.name!r}, {self.image_size}×{self.image_size} px, tiles: {splits}; {classes})"

    def split(self, name: str) -> Tiles:
        """The tiles of one split.

        Raises:
            InputError: The source has no such split.
        """
        if name not in self.splits:
            raise InputError(f"{self.name} has no {name!r} split: it has {', '.join(self.splits)}")
        return self.splits[name]

    def fingerprint(self) -> str:
        """SHA-256 (64 hex digits) of class names, images, labels and soft labels, to see whether inputs changed."""
        stored = store_of([tiles.images for tiles in self.splits.values()])
        return self._hash() if stored is None else stored[0].remembered(self._all_but_pixels(stored[1]), self._hash)

    def _all_but_pixels(self, rows: Sequence[np.ndarray]) -> str:
        """A text that, with the pixels of a store of which the splits are these `rows`, decides the fingerprint."""
        digest = hashlib.sha256(json.dumps([self.class_names, *self.splits]).encode())
        for tiles, of_split in zip(self.splits.values(), rows, strict=True):
            digest.update(of_split.astype("<i8").data)
            tiles.add_to(digest, pixels=False)
        return f"fingerprint {digest.hexdigest()}"

    def _hash(self) -> str:
        digest = hashlib.sha256(json.dumps(self.class_names).encode())
        for name in sorted(self.splits):
            tiles = self.splits[name]
            digest.update(json.dumps([name, list(tiles.images.shape)]).encode())
            tiles.add_to(digest)
        return digest.hexdigest()


def sample_per_class(labels: np.ndarray | Sequence[int], n_per_class: int, seed: int) -> np.ndarray:
    """Draws `n_per_class` tiles of each class at random: the real-data baseline.

    A smaller draw with the same seed is part of the larger one.

    Args:
        labels: Whole numbers N, the class of each tile.
        n_per_class: Tiles to draw of each class, at least 1.
        seed: At least 0.

    Returns:
        Indices int64, `n_per_class` × number of classes, sorted, with no repeats.

    Raises:
        InputError: A class with fewer tiles, or a number out of range.
    """
    check_integer(param("n_per_class"), n_per_class, 1, error=InputError)
    check_integer(param("seed"), seed, 0, error=InputError)
    labels = np.asarray(labels)
    chosen = []
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        if len(members) < n_per_class:
            raise InputError(
                f"{param('n_per_class')}={n_per_class} is too many: class {label} has only {len(members)} tiles; ask "
                "for fewer"
            )
        chosen.append(_in_random_order(members, label, seed)[:n_per_class])
    return np.sort(np.concatenate(chosen)) if chosen else np.empty(0, dtype=np.int64)


def sample_as_many(labels: np.ndarray, others: np.ndarray, seed: int) -> np.ndarray:
    """Draws of each class at random as many tiles as there are among others, or all where these are fewer.

    They are the tiles that `sample_per_class` draws with the same seed.

    Args:
        labels: Whole numbers N, the class of each tile.
        others: Whole numbers M, at least one, the class of each of the others.
        seed: At least 0.

    Returns:
        Indices int64, sorted, with no repeats.
    """
    chosen = [
        _in_random_order(np.flatnonzero(labels == label), label, seed)[:count]
        for label, count in zip(*np.unique(others, return_counts=True), strict=True)
    ]
    return np.sort(np.concatenate(chosen))


def _in_random_order(members: np.ndarray, label: int, seed: int) -> np.ndarray:
    """The tiles of a class, int64, as they are drawn one after the other."""
    return stream("random real tiles of a class", seed, int(label)).permutation(members)


def fit_tile(image: Image.Image, size: int, name: str = "an image") -> Image.Image:
    """Brings an RGB image to `size`×`size`: the shorter side is resized to `size`, then the centre is cut out.

    Pillow's LANCZOS when shrinking, BICUBIC when enlarging. An image of that size already is returned as it is.

    Args:
        image: Of mode RGB.
        size: Side in pixels.
        name: What messages call the image.

    Raises:
        InputError: If the resized image has too many pixels, since the given one is a long strip.
    """
    width, height = image.size
    if (width, height) == (size, size):
        return image
    short = min(width, height)
    if short != size:
        resample = Image.Resampling.LANCZOS if short > size else Image.Resampling.BICUBIC
        width, height = (max(size, round(side * size / short)) for side in (width, height))
        check_picture(f"{name}, resized with {param('image_size')}={size},", width, height)
        image = image.resize((width, height), resample)
    left, top = (width - size) // 2, (height - size) // 2
    return image.crop((left, top, left + size, top + size))


def fit_array(images: np.ndarray, size: int | None) -> np.ndarray:
    """`fit_tile` for images uint8 N×H×W×3; `size=None` keeps them."""
    if size is None or images.shape[1:3] == (size, size):
        return images
    check_memory(f"the array of {len(images):,} tiles of {size}x{size} pixels", len(images) * size * size * 3)
    out = np.empty((len(images), size, size, 3), dtype=np.uint8)
    for i, image in enumerate(images):
        out[i] = np.asarray(fit_tile(Image.fromarray(image), size))
    return out


def check_soft_labels(soft_labels: np.ndarray, where: str) -> None:
    """Checks that each row of N×C finite numbers is probabilities; the error names `where`, column and row.

    Args:
        soft_labels: Real numbers N×C, finite.
        where: The name of the file or folder that they come from.

    Raises:
        InputError: If a row holds a number below 0, or its sum is not 1 to within 0.001.
    """
    sums = soft_labels.sum(axis=1, dtype=np.float64)
    wrong = np.flatnonzero((soft_labels < 0).any(axis=1) | (np.abs(sums - 1) > _SUM_TOLERANCE))
    if len(wrong):
        row = int(wrong[0])
        raise InputError(
            f"{where} holds in column soft_label, row {row}, numbers from {soft_labels[row].min():.4g} with the sum "
            f"{sums[row]:.4g}: a row must be probabilities, at least 0 and with the sum 1; save them so, or leave the "
            "column out"
        )


def _checked_groups(groups: np.ndarray, count: int) -> np.ndarray:
    """Groups as text, of which each of `count` tiles has one."""
    if groups.shape != (count,):
        raise InputError(f"groups are {describe(groups)}: there must be one for each of {count} tiles")
    groups = groups.astype(np.str_)
    if (groups == "").any():
        row = int(np.argmax(groups == ""))
        raise InputError(f"tile {row} has no group: give each tile one, or none of them any")
    return groups


class _Described(Protocol):
    """What has the type and the shape of an array."""

    @property
    def dtype(self) -> np.dtype: ...

    @property
    def shape(self) -> tuple[int, ...]: ...


def describe(array: _Described) -> str:
    """Type and shape of an array, or of its header, for an error message."""
    return f"{array.dtype} of shape {'x'.join(map(str, array.shape)) or 'scalar'}"
