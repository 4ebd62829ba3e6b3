"""Where tiles come from, and how they become what a model takes."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from histodistill.training.errors import InputError
from histodistill.training.tiles import SPLITS, Tiles, TileSource, check_integer, hold_out_for_audit


if TYPE_CHECKING:
    import torch

__all__ = ["SPLITS", "TileSource", "Tiles", "load_tiles", "sample_per_class", "to_model_input", "to_uint8"]

_HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")


def load_tiles(
    source: str | Path,
    *,
    image_size: int | None = None,
    cache_dir: str | Path | None = None,
    download: bool = True,
    hold_out_validation: bool = True,
    audit_share: float = 0.0,
) -> TileSource:
    """Load labelled RGB tiles from any source.

    What `source` is, is decided in this order (only text can be a name; a `Path` always means a file or folder):

    1. `phantom`: the built-in drawings (`histodistill.training.phantom`).
    2. A MedMNIST name: `pathmnist`, `dermamnist`, `retinamnist`, `bloodmnist`, in any case of letters. An
       `image_size` of 28, 64, 128 or 224 takes the file of that size, anything else the 28-pixel file.
       (To mean a folder with one of these names, write `./pathmnist`.)
    3. An existing file: a `.npz` in the MedMNIST layout.
    4. An existing folder with `dataset_dict.json` or `state.json`: `datasets`' `save_to_disk` layout.
    5. An existing folder with `.parquet` files in it or one level down: opened with `datasets.load_dataset`.
    6. Any other existing folder: images in `split/class/*.png` (jpg, jpeg, tif, tiff, bmp, webp).
    7. `user/name`, where no folder `user` exists: a dataset id on the Hub.

    Every source needs a train split. Where there is no validation split, the last tenth of each class's training tiles
    in file order becomes validation (`hold_out_validation=False` leaves it out); where there is no test split, the
    result has none. Odd sizes: with `image_size`, the shorter side is resized to it and the centre is cut out;
    without, all tiles must be of one square size.

    Args:
        source: see above.
        image_size: side of the tiles in pixels, at least 8 (phantom: 16); by default the tiles' own.
        cache_dir: where downloads are kept; by default `MEDMNIST_ROOT` or `~/.medmnist` for MedMNIST, and the
            Hugging Face cache for Hub datasets.
        download: whether a MedMNIST file that is not there may be fetched. (Hub datasets obey `HF_HUB_OFFLINE`.)
        hold_out_validation: see above.
        audit_share: share of the training tiles that becomes the split "held_out": see `hold_out_for_audit`.

    Returns:
        A `TileSource`, with images uint8 N×H×W×3 and labels int64 N in every split.

    Raises:
        InputError: the source is not there or cannot be used; one sentence says why and what to do.
    """
    if image_size is not None:
        check_integer("image_size", image_size, 8)
    found = _load(source, image_size, cache_dir, download, hold_out_validation)
    return hold_out_for_audit(found, audit_share)


def _load(source, image_size, cache_dir, download, hold_out_validation) -> TileSource:
    text = os.fspath(source)
    if isinstance(source, str):
        if text == "phantom":
            from histodistill.training.phantom import phantom_source

            return phantom_source(image_size=image_size or 28)
        from histodistill.training.medmnist import MEDMNIST, load_medmnist

        if text.lower() in MEDMNIST:
            return load_medmnist(text.lower(), image_size=image_size, cache_dir=cache_dir, download=download)

    if not text:
        raise InputError(f"the source is empty: {_what_a_source_is()}")
    path = Path(text).expanduser()
    options = {"image_size": image_size, "hold_out_validation": hold_out_validation}
    if path.is_file():
        if path.suffix.lower() != ".npz":
            raise InputError(f"{path} is neither a folder nor a .npz file: {_what_a_source_is()}")
        from histodistill.training.medmnist import load_npz

        return load_npz(path, **options)
    if path.is_dir():
        from histodistill.training.hub_datasets import is_datasets_folder, load_datasets_folder
        from histodistill.training.image_folder import load_image_folder

        if is_datasets_folder(path):
            return load_datasets_folder(path, **options)
        return load_image_folder(path, **options)
    if isinstance(source, str) and _HUB_ID.fullmatch(text) and not path.parent.is_dir() and path.suffix != ".npz":
        from histodistill.training.hub_datasets import load_hub_dataset

        return load_hub_dataset(text, cache_dir=cache_dir, **options)
    if isinstance(source, str) and "/" not in text and text.lower().removesuffix("3d").endswith("mnist"):
        raise InputError(f"{text} is not a MedMNIST name that can be used: {_what_a_source_is()}")
    raise InputError(f"{text} does not exist: {_what_a_source_is()}")


def sample_per_class(labels: np.ndarray | Sequence[int], n_per_class: int, seed: int) -> np.ndarray:
    """Draw `n_per_class` tiles of each class at random: the real-data baseline.

    A smaller draw with the same seed is part of the larger one.

    Args:
        labels: integers N.
        n_per_class: at least 1.
        seed: at least 0.

    Returns:
        Indices int64, sorted, with no repeats.

    Raises:
        InputError: a class with fewer tiles, or a number out of range.
    """
    check_integer("n_per_class", n_per_class, 1)
    check_integer("seed", seed, 0)
    labels = np.asarray(labels)
    chosen = []
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        if len(members) < n_per_class:
            raise InputError(
                f"n_per_class={n_per_class} is too many: class {label} has only {len(members)} tiles; ask for fewer"
            )
        chosen.append(np.random.default_rng([seed, int(label)]).permutation(members)[:n_per_class])
    return np.sort(np.concatenate(chosen)) if chosen else np.empty(0, dtype=np.int64)


def to_model_input(images: np.ndarray | torch.Tensor) -> torch.Tensor:
    """Images uint8 N×H×W×3 to float32 N×3×H×W in [-1, 1] (`x / 127.5 - 1`), on the same device.

    Raises:
        InputError: another dtype or shape.
    """
    import torch

    if not isinstance(images, torch.Tensor):
        # torch cannot take read-only or negatively strided arrays without a copy or a warning.
        images = torch.from_numpy(np.require(images, requirements=["C", "W"]))
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[-1] != 3:
        raise InputError(f"images are {images.dtype} of shape {tuple(images.shape)}: they must be uint8 N x H x W x 3")
    return images.permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.contiguous_format).div_(127.5).sub_(1)


def to_uint8(pixels: np.ndarray | torch.Tensor) -> np.ndarray:
    """The inverse of `to_model_input`: float N×3×H×W to uint8 N×H×W×3 on the CPU, rounded; what exceeds is clipped.

    Raises:
        InputError: another dtype or shape, or values that are not finite.
    """
    import torch

    pixels = torch.as_tensor(pixels)
    if not pixels.is_floating_point() or pixels.ndim != 4 or pixels.shape[1] != 3:
        raise InputError(f"pixels are {pixels.dtype} of shape {tuple(pixels.shape)}: they must be float N x 3 x H x W")
    if not torch.isfinite(pixels).all():
        raise InputError("pixels hold NaN or infinity: they must be numbers in [-1, 1]")
    scaled = pixels.detach().to(torch.float32).add(1).mul(127.5).round().clamp(0, 255)
    return scaled.to(torch.uint8).permute(0, 2, 3, 1).contiguous().cpu().numpy()


def _what_a_source_is() -> str:
    from histodistill.training.medmnist import MEDMNIST

    return (
        f"a source is phantom, one of {', '.join(MEDMNIST)}, a .npz in the MedMNIST layout, a folder of images "
        "(split/class/*.png), a datasets folder, or a Hub dataset id (user/name)"
    )
