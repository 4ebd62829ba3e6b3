"""Checks of input that several modules of the package share; each raises ValueError with one sentence."""

from __future__ import annotations

import math
import numbers
from collections.abc import Collection
from typing import Any

import numpy as np

from histodistill.selection.image_rows import ImageRows, Images


#: Most distances that a selector may hold at once: 4 GiB of float64.
LARGEST_DISTANCE_MATRIX = 2**29


def check_embeddings(embeddings: Any, name: str = "embeddings") -> np.ndarray:
    """`embeddings` as a C-contiguous N×D float32 array, or ValueError that calls them `name`."""
    try:
        array = np.asarray(embeddings)
    except ValueError as error:  # rows of different lengths
        raise ValueError(f"{name} has rows of different lengths: it must be one (N, D) array") from error
    if array.ndim != 2 or 0 in array.shape:
        raise ValueError(f"{name} has shape {array.shape}: it must be (N, D) with at least one row and one column")
    if array.dtype.kind not in "fiu":
        raise ValueError(f"{name} has dtype {array.dtype}: it must hold real numbers, such as float32")
    with np.errstate(over="ignore"):
        array = np.ascontiguousarray(array, dtype=np.float32)
    finite = np.isfinite(array).all(axis=1)
    if not finite.all():
        raise ValueError(
            f"{name} has {int((~finite).sum())} rows with NaN, infinite or too large values, the first at index "
            f"{int(np.argmin(finite))}: remove these images or embed them again"
        )
    return array


def check_labels(labels: Any, n_images: int, name: str = "labels", of: str = "embeddings") -> np.ndarray:
    """`labels` as an int64 array of length `n_images` with values ≥ 0, or ValueError that calls them `name`.

    Args:
        labels: The class of each image.
        n_images: How many there must be.
        name: What the message calls them.
        of: What the message says that there must be one label for each of.
    """
    array = np.asarray(labels)
    _check_length(array, n_images, name, of)
    if array.dtype.kind not in "iu":
        raise ValueError(f"{name} has dtype {array.dtype}: it must hold whole numbers, such as int64")
    array = array.astype(np.int64)
    if array.min() < 0:
        raise ValueError(f"{name} has the value {int(array.min())}: labels must be at least 0")
    return array


def check_groups(groups: Any, n_images: int, name: str = "groups", of: str = "images") -> np.ndarray:
    """`groups` as texts, an array of length `n_images`, or ValueError that calls them `name`.

    Args:
        groups: The group of each image, such as its patient: whole numbers or texts, none of them empty.
        n_images: How many there must be.
        name: What the message calls them.
        of: What the message says that there must be one group for each of.
    """
    array = np.asarray(groups)
    _check_length(array, n_images, name, of, "group")
    if array.dtype.kind not in "OUiu" or any(value is None or value != value for value in array.tolist()):
        raise ValueError(f"{name} has dtype {array.dtype}: it must hold texts or whole numbers, one for each image")
    array = array.astype(np.str_)
    if (array == "").any():
        raise ValueError(f"{name} has an empty text: it must hold the group of each image")
    return array


def _check_length(labels: np.ndarray, n_images: int, name: str, of: str = "embeddings", what: str = "label") -> None:
    if labels.ndim != 1 or len(labels) != n_images:
        raise ValueError(
            f"{name} has shape {labels.shape}: it must be one-dimensional with one {what} for each of the "
            f"{n_images} {of}"
        )


def check_classes(labels: Any, n_images: int) -> np.ndarray:
    """The class of each image, as selectors take them.

    Args:
        labels: N whole numbers ≥ 0, or N texts, also as Python objects, which is how pandas holds them.
        n_images: N.

    Returns:
        N int64, or N of numpy's texts (dtype `<U…`).

    Raises:
        ValueError: For another number of labels, for other values, and for numbers mixed with texts.
    """
    array = np.asarray(labels)
    if array.ndim != 1 or array.dtype.kind not in "OTU":
        return check_labels(array, n_images)
    # Of a list with numbers and texts, numpy alone would make texts of all.
    values = np.asarray(labels, dtype=object)
    others = [index for index, value in enumerate(values) if not isinstance(value, str)]
    if others:
        raise ValueError(
            f"labels has the value {values[others[0]]!r} at index {others[0]}: it must hold whole numbers alone, such "
            "as int64, or texts alone"
        )
    array = values.astype(str)
    _check_length(array, n_images, "labels")
    return array


def check_candidates(candidates: Any, n_images: int) -> np.ndarray:
    """`candidates` as a bool array of length `n_images`, all True for None, or ValueError."""
    if candidates is None:
        return np.ones(n_images, dtype=bool)
    array = np.asarray(candidates)
    if array.shape != (n_images,) or array.dtype != bool:
        raise ValueError(
            f"candidates has shape {array.shape} and dtype {array.dtype}: it must hold one bool for each of the "
            f"{n_images} embeddings"
        )
    return array


def check_integer(
    name: str, value: Any, minimum: int, maximum: int | None = None, *, error: type[ValueError] = ValueError
) -> int:
    """`value` as an int within the bounds, both of them included.

    Args:
        name: What the message calls the value.
        value: Anything; numpy's whole numbers are fine, booleans are not.
        minimum: The least allowed value.
        maximum: The largest one; none by default.
        error: What is raised, for callers with an error of their own.

    Raises:
        ValueError: (or `error`) if `value` is no whole number or out of range.
    """
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, numbers.Integral):
        raise error(f"{name}={value!r} is not valid: it must be a whole number of at least {minimum}")
    number = int(value)
    if number < minimum:
        raise error(f"{name}={value} is out of range: it must be at least {minimum}")
    if maximum is not None and number > maximum:
        raise error(f"{name}={value} is out of range: it must be at most {maximum}")
    return number


def check_positive(name: str, value: Any) -> float:
    """`value` as a finite float above 0, or ValueError naming the option."""
    is_number = isinstance(value, numbers.Real) and not isinstance(value, (bool, np.bool_))
    if not is_number or not math.isfinite(value) or value <= 0:
        raise ValueError(f"{name}={value!r} is not valid: it must be a finite number above 0")
    return float(value)


def check_choice(name: str, value: Any, choices: Collection[str]) -> str:
    """`value` if it is one of `choices`, or ValueError naming them all."""
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"{name}={value!r} is not known: choose one of {', '.join(choices)}")
    return value


def check_share(name: str, value: Any) -> float:
    """`value` as a float from 0 to 1, or ValueError naming the option."""
    is_number = isinstance(value, numbers.Real) and not isinstance(value, (bool, np.bool_))
    if not is_number or not 0 <= value <= 1:
        raise ValueError(f"{name}={value!r} is out of range: it must be 0 to 1")
    return float(value)


def check_images(images: Any, name: str = "images") -> Images:
    """`images` as uint8 N×S×S×3 with at least one image, or ValueError that calls them `name`.

    Images that are not in memory stay where they are; anything else becomes an array.
    """
    try:
        array = images if isinstance(images, ImageRows) else np.asarray(images)
    except ValueError as error:  # images of different sizes
        raise ValueError(f"{name} has images of different sizes: it must be one (N, S, S, 3) array") from error
    if array.ndim != 4 or array.shape[3] != 3 or array.shape[1] != array.shape[2] or 0 in array.shape:
        raise ValueError(f"{name} has shape {array.shape}: it must be (N, S, S, 3), at least one square RGB image")
    if array.dtype != np.uint8:
        raise ValueError(f"{name} has dtype {array.dtype}: it must be uint8, colours from 0 to 255")
    return array
