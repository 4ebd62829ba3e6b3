"""Arrays in a few words, for the `repr` of what holds them: nobody wants to read pixels."""

from __future__ import annotations

import numpy as np

from histodistill.selection.image_rows import Images


def summarise(images: Images, labels: np.ndarray, noun: str = "image") -> str:
    """Images in a few words.

    Args:
        images: N×H×W×C of any type.
        labels: N whole numbers, their classes.
        noun: What one of them is called.

    Returns:
        Such as `11,592 tiles of 28×28 px, 5 classes`, with the number of classes that occur.
    """
    size = f" of {images.shape[2]}×{images.shape[1]} px" if len(images) else ""
    return f"{counted(len(images), noun)}{size}, {counted(len(np.unique(labels)), 'class', 'classes')}"


def counted(number: int, noun: str, plural: str | None = None) -> str:
    """A number with its noun: `1 tile`, `1,500 tiles`, or with a `plural` that does not end in s alone."""
    return f"{number:,} {noun if number == 1 else plural or f'{noun}s'}"
