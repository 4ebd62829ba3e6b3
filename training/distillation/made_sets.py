"""Files in a table's folder that keep sets of images which are made for its rows, and pictures of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from histodistill.training.data.images import make_grid, png_bytes
from histodistill.training.running.files import write_bytes


# Of each class, in the picture of a set.
_SHOWN = 10


def made_set_file(folder: Path, kind: str, tiles: str, n_per_class: int, seed: int) -> Path:
    """The file that keeps the images of a set.

    Args:
        folder: Of the table.
        kind: The folder in it, of all that are made alike.
        tiles: What the row calls them, as part of a file's name.
        n_per_class, seed: Of the set.
    """
    return folder / kind / f"{tiles}-{n_per_class}-{seed}.npz"


def write_picture(file: Path, images: np.ndarray, n_per_class: int) -> None:
    """Writes a picture of some images of each class beside the file of a set, a class in each row.

    Args:
        file: Of the set; its folder must be there.
        images: uint8 N×S×S×3, class by class.
        n_per_class: Images of each class.
    """
    shown = images.reshape(-1, n_per_class, *images.shape[1:])[:, :_SHOWN].reshape(-1, *images.shape[1:])
    write_bytes(file.with_suffix(".png"), png_bytes(make_grid(shown, min(_SHOWN, n_per_class), scale=2)))
