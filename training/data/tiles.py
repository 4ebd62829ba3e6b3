"""Labelled tiles in memory, the checks that every source must pass, and the rule for odd sizes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from histodistill.selection.checks import check_integer
from histodistill.selection.streams import stream
from histodistill.selection.summaries import counted, summarise
from histodistill.training.data.limits import check_memory, check_picture
from histodistill.training.data.names import checked_class_names, fault_of_name
from histodistill.training.running.errors import InputError, one_line, param


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
class Tiles:
    """Labelled images.

    Attributes:
        images: uint8 N×H×W×3, RGB.
        labels: int64 N; other whole numbers are converted.
        soft_labels: A teacher's probabilities, float32 N×C, or None.

    Raises:
        InputError: Another dtype or shape, or not as many labels as images.
    """

    images: np.ndarray
    labels: np.ndarray
    soft_labels: np.ndarray | None = None

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

    def __len__(self) -> int:
        return len(self.images)

    def __repr__(self) -> str:
        soft = "" if self.soft_labels is None else ", with soft labels"
        return f"Tiles({summarise(self.images, self.labels, 'tile')}{soft})"

    def fingerprint(self) -> str:
        """SHA-256 (64 hex digits) of images, labels and soft labels, in their order."""
        digest = hashlib.sha256(json.dumps(list(self.images.shape)).encode())
        self.add_to(digest)
        return digest.hexdigest()

    def add_to(self, digest: hashlib._Hash) -> None:
        """Adds images, labels and soft labels to a hash."""
        digest.update(np.ascontiguousarray(self.images).data)
        digest.update(np.ascontiguousarray(self.labels.astype("<i8")).data)
        if self.soft_labels is not None:
            digest.update(np.ascontiguousarray(self.soft_labels.astype("<f4")).data)

    def subset(self, indices: np.ndarray | Sequence[int]) -> Tiles:
        """The tiles at `indices`, in that order.

        Raises:
            InputError: If there is no memory for the copy.
        """
        indices = np.asarray(indices, dtype=np.int64)
        check_memory(f"a copy of {len(indices):,} tiles", len(indices) * self.images[:1].nbytes)
        soft_labels = None if self.soft_labels is None else self.soft_labels[indices]
        return Tiles(self.images[indices], self.labels[indices], soft_labels)


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
        validation_was_train: Whether the validation split was made of training tiles, since the data has none.
    """

    name: str
    class_names: list[str]
    splits: dict[str, Tiles]
    image_size: int
    license: str | None = None
    attribution: str | None = None
    validation_was_train: bool = False

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
        digest = hashlib.sha256(json.dumps(self.class_names).encode())
        for name in sorted(self.splits):
            tiles = self.splits[name]
            digest.update(json.dumps([name, list(tiles.images.shape)]).encode())
            tiles.add_to(digest)
        return digest.hexdigest()


def make_source(
    name: str,
    class_names: Sequence[str],
    splits: dict[str, Tiles],
    *,
    license: str | None = None,
    attribution: str | None = None,
    hold_out_validation: bool = True,
) -> TileSource:
    """Makes a source: checks the splits against each other, and holds out a validation split where there is none.

    Args:
        name: Short name of the source.
        class_names: The name of each label.
        splits: Tiles by split, "train" among them; they are kept in the order of `SPLITS`.
        license: Licence of the tiles where known.
        attribution: Whom to credit, where known.
        hold_out_validation: Whether a part of train becomes validation where there is no such split.

    Raises:
        InputError: Names that `checked_class_names` refuses, fewer than two classes, a class with no training tile, a
            label that is no class, an empty split, tiles of different size, tiles that are not square, or tiles
            smaller than 8 pixels.
    """
    fault = fault_of_name(name)
    if fault:
        raise InputError(f"the source {one_line(name)!r} has a name with {fault}: name it in letters of UTF-8")
    names = checked_class_names(name, class_names)
    if "train" not in splits:
        raise InputError(f"{name} has no train split: a source needs one")
    if len(names) < 2:
        raise InputError(f"{name} has only one class ({', '.join(names)}): at least 2 are needed")
    height, width = splits["train"].images.shape[1:3]
    for split, tiles in splits.items():
        _check_split(name, split, tiles, (height, width), len(names))
    _check_shape(name, height, width)
    counts = np.bincount(splits["train"].labels, minlength=len(names))
    if not counts.all():
        empty = int(np.argmin(counts))
        raise InputError(
            f"class {names[empty]!r} (label {empty}) of {name} has no training tile: every class needs one; "
            "add tiles or leave the class out"
        )
    make_validation = "validation" not in splits and hold_out_validation
    if make_validation:
        splits = {**splits, **_hold_out(splits["train"])}
    ordered = {split: splits[split] for split in SPLITS if split in splits}
    return TileSource(name, names, ordered, int(height), license, attribution, make_validation)


def _check_split(name: str, split: str, tiles: Tiles, size: tuple[int, int], num_classes: int) -> None:
    """Checks that a split of the source `name` has tiles, of this height and width, and no label that is no class."""
    if not len(tiles):
        raise InputError(f"the {split} split of {name} is empty: it needs at least one tile")
    if tiles.images.shape[1:3] != size:
        found = "x".join(map(str, tiles.images.shape[2:0:-1]))
        raise InputError(
            f"the {split} tiles of {name} are {found} pixels and the train tiles {size[1]}x{size[0]}: give "
            f"{param('image_size')} to bring all to one size"
        )
    low, high = int(tiles.labels.min()), int(tiles.labels.max())
    if low < 0 or high >= num_classes:
        bad = low if low < 0 else high
        raise InputError(
            f"the {split} split of {name} holds the label {bad}: "
            f"labels must be 0 to {num_classes - 1}, one of the {num_classes} classes that train has"
        )


def _check_shape(name: str, height: int, width: int) -> None:
    """Checks that the tiles of a source are square, and not too small."""
    if height != width:
        raise InputError(
            f"the tiles of {name} are {width}x{height} pixels: they must be square; give {param('image_size')} to "
            "resize the shorter side and cut out the centre"
        )
    if height < MIN_IMAGE_SIZE:
        raise InputError(
            f"the tiles of {name} are {width}x{height} pixels: they must be at least {MIN_IMAGE_SIZE}; give a larger "
            f"{param('image_size')} to enlarge them"
        )


def _hold_out(train: Tiles) -> dict[str, Tiles]:
    """Train without the last tenth of each class's tiles, in order, and this tenth as validation.

    A class of two tiles or more gives at least one.

    Tiles of one slide or region mostly lie side by side in file order, so the end of the list is a fairer test than
    a random tenth.
    """
    held = np.zeros(len(train), dtype=bool)
    for label in np.unique(train.labels):
        members = np.flatnonzero(train.labels == label)
        count = min(max(1, (len(members) + 5) // 10), len(members) - 1)
        held[members[len(members) - count :]] = True
    if not held.any():
        raise InputError("there is one training tile per class and no validation split: give at least 2 per class")
    return {"train": train.subset(np.flatnonzero(~held)), "validation": train.subset(np.flatnonzero(held))}


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
        chosen.append(stream("random real tiles of a class", seed, int(label)).permutation(members)[:n_per_class])
    return np.sort(np.concatenate(chosen)) if chosen else np.empty(0, dtype=np.int64)


def hold_out_for_audit(source: TileSource, share: float) -> TileSource:
    """Moves a random `share` of each class's training tiles, at least one of two or more, to the split "held_out".

    The privacy audit asks whether training tiles can be told from tiles that no model has seen. The answer means
    something only where chance alone decided which are which; validation tiles mostly come from other slides. The
    draw is the same every time, so that all stages of a run agree on it.

    Args:
        source: The data, with a train split.
        share: At least 0 and below 1; 0 changes nothing.

    Returns:
        The source with fewer training tiles and the further split.

    Raises:
        InputError: For another share, or where every class has a single tile.
    """
    if not 0 <= share < 1:
        raise InputError(f"{param('audit_share')}={share} is out of range: it must be at least 0 and below 1")
    if share == 0:
        return source
    train = source.split("train")
    held = np.zeros(len(train), dtype=bool)
    for label in np.unique(train.labels):
        members = np.flatnonzero(train.labels == label)
        count = min(max(1, round(share * len(members))), len(members) - 1)
        # Without a purpose in its key, and therefore no stream of those that have one (see `selection.streams`). It
        # keeps its numbers, so that a run made before is audited with the very tiles that its models never saw.
        held[np.random.default_rng(int(label)).permutation(members)[:count]] = True
    if not held.any():
        raise InputError(f"{source.name} has one training tile per class: give more, or an audit_share of 0")
    parts = {"train": train.subset(np.flatnonzero(~held)), HELD_OUT: train.subset(np.flatnonzero(held))}
    return replace(source, splits={**source.splits, **parts})


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


def describe(array: np.ndarray) -> str:
    """Type and shape of an array, for an error message."""
    return f"{array.dtype} of shape {'x'.join(map(str, array.shape)) or 'scalar'}"
