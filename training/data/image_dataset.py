"""Image datasets that `load_dataset` opens: Parquet with PNG images and typed columns."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from datasets import ClassLabel, Dataset, Features, Image, List, Value, load_dataset
from PIL import Image as PILImage

from histodistill.training.data.images import png_bytes
from histodistill.training.data.tiles import check_soft_labels
from histodistill.training.running.errors import InputError
from histodistill.training.running.files import new_folder


def write_image_dataset(
    folder: str | Path, images: np.ndarray, columns: dict[str, np.ndarray], class_names: list[str]
) -> Features:
    """Writes images and further columns as `folder/train-00000-of-00001.parquet`, the folder replaced as a whole.

    Args:
        folder: The `data` folder of a dataset.
        images: uint8 N×H×W×3.
        columns: Arrays of N integers or floats, or N×C floats; `label` becomes a ClassLabel.
        class_names: Names of the labels.

    Returns:
        The features of the dataset.
    """
    features: dict[str, Any] = {"image": Image()}
    for name, values in columns.items():
        if name == "label":
            features[name] = ClassLabel(names=class_names)
        else:
            kind = Value("int64" if np.issubdtype(values.dtype, np.integer) else str(values.dtype))
            features[name] = kind if values.ndim == 1 else List(kind, length=values.shape[1])
    encoded = [{"bytes": png_bytes(PILImage.fromarray(image)), "path": None} for image in images]
    rows = {"image": encoded, **{name: values.tolist() for name, values in columns.items()}}
    dataset = Dataset.from_dict(rows, features=Features(features))
    with new_folder(folder) as new:
        dataset.to_parquet(new / "train-00000-of-00001.parquet")
    return dataset.features


def read_image_dataset(folder: str | Path) -> tuple[np.ndarray, dict[str, np.ndarray], list[str]]:
    """Reads what `write_image_dataset` wrote under `folder/data`.

    Returns:
        Images uint8 N×H×W×3, the other columns as arrays, and the class names.

    Raises:
        InputError: If there is no such dataset, it is damaged, or a row of its soft labels is no probabilities.
    """
    files = sorted(str(file) for file in (Path(folder) / "data").glob("train-*.parquet"))
    if not files:
        raise InputError(f"{folder} holds no image dataset: give a folder with data/train-*.parquet in it")
    try:
        dataset = load_dataset("parquet", data_files=files, split="train")
        images = np.stack([np.asarray(image) for image in dataset["image"]])
        columns = {name: np.asarray(dataset[name]) for name in dataset.column_names if name != "image"}
        class_names = dataset.features["label"].names
    except Exception as error:  # of many kinds: pyarrow's, datasets', Pillow's
        # What datasets raises tells only by its cause what went wrong.
        raise InputError(f"{folder} cannot be read ({error.__cause__ or error}): make it again") from error
    if "soft_label" in columns:
        check_soft_labels(columns["soft_label"], str(folder))
    return images, columns, class_names
