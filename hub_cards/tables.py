"""The tables of image datasets: which columns there are, what they may hold, and how numbers are rounded.

A later column is added on purpose: by a line in `COLUMNS`, its name in the kinds of tables that may have it, and its
meaning on the card (`dataset_card`). `table_files` reads and writes the files.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from histodistill.hub_cards.errors import ContentError
from histodistill.hub_cards.names import LONGEST_NAME, fault_of_published_name


@dataclass(frozen=True)
class Column:
    """What a column beside the images holds.

    Attributes:
        dtype: Of its numbers, as numpy and Arrow call it.
        least, most: The range of its numbers, both included.
        per_class: Whether it has a number for each class in each row.
        per_view: Whether it has so many numbers for each fixed view of the image but the first, V of them.
        names: Of which names its numbers are the indices, `class` or `site`; a ClassLabel of `datasets`.
    """

    dtype: str
    least: float = -np.inf
    most: float = np.inf
    per_class: bool = False
    per_view: bool = False
    names: str | None = None


#: Every column that a table may have beside `image`, in the order in which they are written.
COLUMNS = {
    "label": Column("int64", 0, names="class"),
    # With the sum 1.
    "soft_label": Column("float32", 0, per_class=True),
    # Codes of probabilities, see `decode_soft_label_views`: 8 bits for each class of a view, and no others.
    "soft_label_views": Column("uint8", 0, 255, per_view=True),
    # Of a generator that reads 32 bits: see `plan_pool` of the training.
    "seed": Column("int64", 0, 2**32 - 1),
    # -1 is an image of no community.
    "community": Column("int64", -1, 2**31 - 1),
    "modular_centrality": Column("float64"),
    # Of the images of a class, of one site: 1 to their number, each once.
    "rank": Column("int64", 1, 2**31 - 1),
    "site": Column("int64", 0, names="site"),
}
#: The columns that each kind of table may have. A table always has images and labels.
POOL = ("label", "seed")
DISTILLED = ("label", "soft_label", "soft_label_views", "seed", "community", "modular_centrality", "rank")
MERGED = (*DISTILLED, "site")

#: Significant digits of numbers that are not whole: the bits below them could carry a message. Digits, not decimals,
#: of soft labels too, since a training at a temperature above 1 goes by the small ones: at temperature 4, .0001 counts
#: as a tenth of 1 does. A row's sum changes by at most .0005.
SIGNIFICANT_DIGITS = 4
#: Soft labels below this are 0.
LEAST_SOFT_LABEL = 1e-12
#: The most views of an image that soft labels may be of, the image as it is included.
MAX_VIEWS = 16
# Codes of soft labels for a factor of 2: neighbouring ones are a factor of 2^(1/8) apart.
_CODES_PER_OCTAVE = 8
#: How far the sum of a row of soft labels may be from 1 in a table that was not rounded yet.
SUM_TOLERANCE = 1e-3
#: The most names of classes or sites.
MAX_NAMES = 10_000


@dataclass(frozen=True, repr=False)
class ImageTable:
    """Images and what is known of each.

    Attributes:
        images: uint8 N×S×S×3: an array, or what is used alike and reads them when they are asked for (`images[rows]`
            is an array).
        columns: Name → array of N numbers, or N×C for C classes, or N×V×C for so many views beside; see `COLUMNS`.
            Always with `label`.
        class_names: Names of the labels.
        site_names: Names of the sites, where there is a column `site`.
    """

    images: Any
    columns: dict[str, np.ndarray]
    class_names: list[str]
    site_names: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.images)


def canonical(table: ImageTable) -> ImageTable:
    """A table with its columns in order and of the right types, and rounded; what is so already stays as it is."""
    if unknown := table.columns.keys() - COLUMNS.keys():
        raise ContentError(f"there is no column {min(unknown)!r} in an image dataset: leave it out")
    columns = {}
    for name, column in COLUMNS.items():
        if name in table.columns:
            values = np.asarray(table.columns[name])
            if column.per_class:
                values = round_soft_labels(values)
            elif values.dtype.kind == "f":
                values = round_significant(values)
            columns[name] = values.astype(column.dtype, casting="same_kind")
    return replace(table, columns=columns)


def round_soft_labels(soft_labels: np.ndarray) -> np.ndarray:
    """Rounds probabilities to `SIGNIFICANT_DIGITS` digits each; rows that are rounded already stay as they are.

    Args:
        soft_labels: N×C, the sum of a row near 1: all others are divided by it first.

    Returns:
        float32 N×C.
    """
    given = soft_labels.astype(np.float64)
    sums = given.sum(axis=1, keepdims=True)
    near = np.abs(sums - 1) <= SUM_TOLERANCE  # what is no probabilities is left for a check to find
    as_given, scaled = (_round_probabilities(values) for values in (given, given / np.where(near, sums, 1)))
    is_rounded = (as_given == soft_labels).all(axis=1, keepdims=True)
    return np.where(is_rounded, as_given, scaled)


def _round_probabilities(values: np.ndarray) -> np.ndarray:
    rounded = round_significant(values.ravel()).reshape(values.shape)
    rounded[np.abs(rounded) < LEAST_SOFT_LABEL] = 0
    return rounded.astype(np.float32)


def encode_soft_label_views(probabilities: np.ndarray) -> np.ndarray:
    """Probabilities as codes of 8 bits, evenly spaced in their logarithm: code q stands for 2^(−q / 8).

    A training at a temperature above 1 goes by the small ones, so it is the logarithm that is rounded: a probability
    is off by a factor of at most 2^(1/16), which is 4.4 %. All below 2.5e-10, the last code, become that.

    Args:
        probabilities: Real numbers, at least 0, of any shape.

    Returns:
        uint8 of that shape.
    """
    with np.errstate(divide="ignore"):
        codes = -_CODES_PER_OCTAVE * np.log2(probabilities.astype(np.float64))
    return np.clip(np.rint(codes), 0, 255).astype(np.uint8)


def decode_soft_label_views(codes: np.ndarray) -> np.ndarray:
    """The probabilities that codes of `encode_soft_label_views` stand for.

    Args:
        codes: uint8, the last axis being the classes.

    Returns:
        float32 of that shape, with sums of 1 along the last axis.
    """
    values = _values_of(codes)
    return (values / values.sum(axis=-1, keepdims=True)).astype(np.float32)


def are_label_codes(codes: np.ndarray) -> np.ndarray:
    """Which codes stand for probabilities: bool of their shape without the last axis.

    What they stand for has the sum 1 but for rounding: in other sums there would be room for a message.
    """
    sums, factor = _values_of(codes).sum(axis=-1), 2 ** (0.5 / _CODES_PER_OCTAVE)
    return (sums >= (1 - SUM_TOLERANCE) / factor) & (sums <= (1 + SUM_TOLERANCE) * factor)


def _values_of(codes: np.ndarray) -> np.ndarray:
    return 2 ** (-codes.astype(np.float64) / _CODES_PER_OCTAVE)


def round_significant(values: np.ndarray) -> np.ndarray:
    """Rounds float64 N to `SIGNIFICANT_DIGITS` digits; what is rounded already stays as it is."""
    # By way of text, which alone gives the float64 nearest to a decimal number. 0 is added to make -0 a 0.
    return np.array([float(f"{value:.{SIGNIFICANT_DIGITS}g}") for value in values], dtype=np.float64) + 0.0


def check_table(table: ImageTable, *, is_whole: bool = True) -> None:
    """Sees that a table holds what it may hold.

    Args:
        table: The table.
        is_whole: Whether every class and every site must have an image.

    Raises:
        ContentError: Says what it is that it may not hold.
    """
    images = table.images
    if (
        images.dtype != np.uint8
        or images.ndim != 4
        or 0 in images.shape
        or images.shape[1:] != (*images.shape[1:2] * 2, 3)
    ):
        raise ContentError(
            f"its images are {images.dtype} of shape {images.shape}: they must be RGB squares of 8 bits"
        )
    if "label" not in table.columns:
        raise ContentError("it has no column label: every image must have the class that it shows")
    names = {"class": table.class_names, "site": table.site_names}
    for kind, texts in names.items():
        check_names(texts, kind)
    if "soft_label_views" in table.columns:
        _check_views(table.columns)
    if bool(table.site_names) != ("site" in table.columns):
        raise ContentError("it has names of sites or a column site, and not both: it must have both or none")
    for name, values in table.columns.items():
        _check_values(name, values, table, names, is_whole)
    sites = table.columns.get("site", np.zeros(len(table), np.int64))
    if "seed" in table.columns and len(np.unique(np.stack([sites, table.columns["seed"]]), axis=1)[0]) < len(table):
        raise ContentError("its column seed has a number twice: each image has a seed of its own")
    if "rank" in table.columns and is_whole:
        _check_ranks(table.columns["rank"], table.columns["label"], sites)


def _check_views(columns: Mapping[str, np.ndarray]) -> None:
    """Sees that views of which there are soft labels can be made again: a class and a rank tell which they are."""
    for name in ("soft_label", "rank"):
        if name not in columns:
            raise ContentError(f"it has a column soft_label_views and no column {name}, without which it says nothing")
    if "site" in columns:
        raise ContentError("it has a column soft_label_views, and its images are of several sites: leave it out")


def _check_ranks(ranks: np.ndarray, labels: np.ndarray, sites: np.ndarray) -> None:
    """Sees that the ranks of the images of a class, of one site, are 1 to their number, and so say nothing else."""
    order = np.lexsort((ranks, labels, sites))
    starts = np.diff(np.stack([sites, labels])[:, order], prepend=-1).any(axis=0)
    rows = np.arange(len(ranks))
    expected = rows - np.maximum.accumulate(np.where(starts, rows, 0)) + 1
    wrong = order[ranks[order] != expected]
    if len(wrong):
        row = int(wrong[0])
        raise ContentError(
            f"row {row}: its column rank holds {ranks[row]}: those of a class must be the numbers from 1 on, each once"
        )


def check_names(names: Sequence[str], kind: str) -> None:
    """Sees that names are plain, see `fault_of_published_name`, and no two alike.

    Args:
        names: Of the classes or the sites.
        kind: `class` or `site`, for messages.

    Raises:
        ContentError: For the first name that is not.
    """
    if len(names) > MAX_NAMES:
        raise ContentError(f"it has {len(names)} names of a {kind}: it may have {MAX_NAMES}")
    for name in names:
        if fault := fault_of_published_name(name):
            raise ContentError(f"its {kind} {ascii(name)[:LONGEST_NAME]} has {fault}: give it a plain name")
    if len(set(names)) < len(names):
        raise ContentError(f"its {kind} {max(names, key=list(names).count)!r} is named twice: name each once")


def _check_values(
    name: str, values: np.ndarray, table: ImageTable, names: Mapping[str, list[str]], is_whole: bool
) -> None:
    """Sees that a column has the right shape, type and numbers."""
    if name not in COLUMNS:
        raise ContentError(f"it has a column {name!r}: there may be {', '.join(COLUMNS)}")
    column = COLUMNS[name]
    shape: tuple[int, ...] = (len(table), len(table.class_names)) if column.per_class else (len(table),)
    if column.per_view:
        num_views = min(max(1, values.shape[1]), MAX_VIEWS - 1) if values.ndim == 3 else 1
        shape = (len(table), num_views, len(table.class_names))
    if values.shape != shape or values.dtype != column.dtype:
        raise ContentError(
            f"its column {name} is {values.dtype} of shape {values.shape}: it must be {column.dtype} of shape {shape}"
        )
    most = column.most if column.names is None else len(names[column.names]) - 1
    wrong = ~np.isfinite(values) | (values < column.least) | (values > most)
    if wrong.any():
        row = int(np.argwhere(wrong)[0][0])
        raise ContentError(f"row {row}: its column {name} holds {values[wrong][0]}, which is out of range")
    if is_whole and column.names and (unused := {*range(int(most) + 1)} - {*np.unique(values).tolist()}):
        raise ContentError(f"its {column.names} {names[column.names][min(unused)]!r} has no image: leave the name out")
    if column.per_class:
        sums = values.sum(axis=1, dtype=np.float64)
        if (np.abs(sums - 1) > SUM_TOLERANCE).any():
            row = int(np.abs(sums - 1).argmax())
            raise ContentError(f"row {row}: its column {name} has the sum {sums[row]:.4g}: it must be probabilities")
    if column.per_view and not (is_right := are_label_codes(values)).all():
        row, view = (int(place) for place in np.argwhere(~is_right)[0])
        raise ContentError(f"row {row}: its column {name} holds no probabilities of view {view + 1}")
