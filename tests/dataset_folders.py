"""Small folders of Parquet files for tests, and what is loaded from them."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from histodistill.training.data.sources import load_tiles
from histodistill.training.running.errors import InputError


CELL = pa.struct({"bytes": pa.binary(), "path": pa.string()})
NAMES = ("gland", "stroma")


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
