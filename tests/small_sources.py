"""Small sources of tiles of every kind for tests, and what is loaded from them."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from histodistill.training.data.phantom import phantom_source
from histodistill.training.data.sources import load_tiles
from histodistill.training.running.errors import InputError


CELL = pa.struct({"bytes": pa.binary(), "path": pa.string()})
NAMES = ("gland", "stroma")
#: Tiles of each class in each split, for `image_folder`.
TWO_CLASSES = {"train/fat": 4, "train/gland": 4, "val/fat": 1, "val/gland": 2, "test/fat": 2, "test/gland": 1}


def tiles(n: int, size: int = 10, classes: int = 2, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Tiles of noise, and their labels."""
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (n, size, size, 3), dtype=np.uint8), np.arange(n) % classes


def image_folder(root: Path, counts: dict[str, int], size: int = 10, suffix: str = "png") -> Path:
    """`counts` maps "split/class" to a number of tiles; tile i of the folder is filled with the grey level i."""
    for folder, count in counts.items():
        (root / folder).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            Image.new("RGB", (size, size), (i, i, i)).save(root / folder / f"tile_{i:03}.{suffix}")
    return root


def arrays(size: int = 28, classes: int = 2, per_class: int = 2) -> dict[str, np.ndarray]:
    """The arrays of a file in the layout of MedMNIST."""
    rng = np.random.default_rng(size)
    result = {}
    for prefix in ("train", "val", "test"):
        labels = np.repeat(np.arange(classes, dtype=np.uint8), per_class)
        result[f"{prefix}_images"] = rng.integers(0, 256, (len(labels), size, size, 3), dtype=np.uint8)
        result[f"{prefix}_labels"] = labels[:, None]
    return result


def patients_npz(path: Path, seed: int) -> Path:
    """Writes 16-pixel drawings of eight patients in training, 15 tiles each, two in validation and two for testing."""
    source = phantom_source(image_size=16, seed=seed, sizes={"train": 24, "validation": 8, "test": 4})
    content = {"class_names": np.array(source.class_names)}
    for split, prefix in (("train", "train"), ("validation", "val"), ("test", "test")):
        tiles = source.split(split)
        content |= {f"{prefix}_{part}": getattr(tiles, part) for part in ("images", "labels", "groups")}
    np.savez(path, **content)
    return path


def packed(content: dict[str, np.ndarray]) -> bytes:
    """The `.npz` file of some arrays."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **content)
    return buffer.getvalue()


def png(grey: int = 0, size: int = 8) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (size, size), (grey, grey, grey)).save(buffer, "PNG")
    return buffer.getvalue()


def table(count: int = 4, grey: int = 0, cells: list | None = None, names: tuple = NAMES, **columns) -> pa.Table:
    """Rows as `datasets` writes them; row i is filled with the grey level `grey` + i."""
    features = {"image": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": names}}
    cells = cells or [{"bytes": png(grey + i), "path": None} for i in range(count)]
    rows = pa.table({"image": pa.array(cells, CELL), "label": pa.array([i % 2 for i in range(len(cells))]), **columns})
    return rows.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})


def parquet(path: Path, *args, codec: str = "snappy", **kwargs) -> Path:
    """Writes `table` of the same arguments."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table(*args, **kwargs), path, compression=codec)
    return path


def greys(folder: Path, split: str = "train") -> list[int]:
    """The grey level of each tile of a split."""
    return load_tiles(folder, hold_out_validation=False).split(split).images[:, 0, 0, 0].tolist()


def refused(source: object, **options: object) -> str:
    """The one sentence with which a source is refused."""
    with pytest.raises(InputError) as caught:
        load_tiles(source, **options)
    message = str(caught.value)
    assert message and "\n" not in message
    return message
