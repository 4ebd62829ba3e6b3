from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import ClassLabel, Image, List, Value, load_dataset
from PIL import Image as PILImage

from histodistill.training.data import image_dataset
from histodistill.training.data.image_dataset import read_image_dataset, write_image_dataset
from histodistill.training.data.images import png_bytes
from histodistill.training.running.errors import InputError


NAMES = ["adipose", "glands", "mucus"]


def make(count: int = 7):
    rng = np.random.default_rng(count)
    images = rng.integers(0, 255, (count, 8, 8, 3), dtype=np.uint8)
    columns = {
        "label": rng.integers(0, 3, count),
        "seed": rng.integers(0, 2**62, count),
        "soft_label": rng.dirichlet(np.ones(3), count).astype(np.float32),
        "centrality": rng.random(count),
    }
    return images, columns


def test_what_is_written_comes_back(tmp_path):
    images, columns = make()
    write_image_dataset(tmp_path / "data", images, columns, NAMES)
    found_images, found, names = read_image_dataset(tmp_path)
    np.testing.assert_array_equal(found_images, images)
    assert found_images.dtype == np.uint8
    assert names == NAMES
    assert list(found) == list(columns)
    for name, values in columns.items():
        np.testing.assert_array_equal(found[name], values)


def test_soft_labels_that_are_no_probabilities_are_refused(tmp_path):
    images, columns = make()
    columns["soft_label"][4] *= 1.01
    write_image_dataset(tmp_path / "data", images, columns, NAMES)
    with pytest.raises(InputError, match=r"holds in column soft_label, row 4, numbers from .* with the sum 1\.01: "):
        read_image_dataset(tmp_path)


def test_load_dataset_opens_the_folder(tmp_path):
    images, columns = make()
    features = write_image_dataset(tmp_path / "data", images, columns, NAMES)
    dataset = load_dataset(str(tmp_path), split="train")
    assert dataset.features == features
    assert dataset.features["image"] == Image()
    assert dataset.features["label"] == ClassLabel(names=NAMES)
    assert dataset.features["seed"] == Value("int64")
    assert dataset.features["soft_label"] == List(Value("float32"), length=3)
    assert dataset.features["centrality"] == Value("float64")
    assert dataset.num_rows == len(images)
    row = dataset[3]
    np.testing.assert_array_equal(np.asarray(row["image"]), images[3])
    assert (row["label"], row["seed"]) == (columns["label"][3], columns["seed"][3])


def test_the_same_input_gives_the_same_file(tmp_path):
    for name in ("a", "b"):
        write_image_dataset(tmp_path / name / "data", *make(), NAMES)
    first, second = (tmp_path / name / "data" / "train-00000-of-00001.parquet" for name in ("a", "b"))
    assert first.read_bytes() == second.read_bytes()


def test_writing_again_replaces_the_dataset(tmp_path):
    write_image_dataset(tmp_path / "data", *make(7), NAMES)
    (tmp_path / "data" / "train-00001-of-00002.parquet").write_bytes(b"left from before")
    images, columns = make(3)
    write_image_dataset(tmp_path / "data", images, columns, NAMES)
    found, _, _ = read_image_dataset(tmp_path)
    np.testing.assert_array_equal(found, images)


def test_a_failure_leaves_the_old_dataset(tmp_path, monkeypatch):
    images, columns = make()
    write_image_dataset(tmp_path / "data", images, columns, NAMES)

    def fail(*_, **__):
        raise OSError("no space left")

    monkeypatch.setattr(image_dataset.Dataset, "to_parquet", fail)
    with pytest.raises(OSError, match="no space left"):
        write_image_dataset(tmp_path / "data", *make(3), NAMES)
    assert [path.name for path in tmp_path.iterdir()] == ["data"]
    np.testing.assert_array_equal(read_image_dataset(tmp_path)[0], images)


@pytest.mark.parametrize("damage", ["no table", "cut off", "no image", "two sizes"])
def test_a_damaged_dataset_is_one_sentence(tmp_path, damage):
    file = tmp_path / "data" / "train-00000-of-00001.parquet"
    write_image_dataset(tmp_path / "data", *make(), NAMES)
    if damage == "no table":
        file.write_bytes(b"nothing")
    elif damage == "cut off":
        file.write_bytes(file.read_bytes()[:-50])
    else:
        png = {"no image": b"nothing", "two sizes": png_bytes(PILImage.new("RGB", (9, 9)))}[damage]
        table = pq.read_table(file)
        images = table["image"].to_pylist()
        images[3]["bytes"] = png
        field = table.field("image")
        pq.write_table(table.set_column(0, field, pa.array(images, field.type)), file)
    with pytest.raises(InputError, match=r"cannot be read \(.+\): make it again$") as error:
        read_image_dataset(tmp_path)
    assert str(error.value).startswith(str(tmp_path)) and "\n" not in str(error.value)


def test_a_folder_without_a_dataset(tmp_path):
    with pytest.raises(InputError, match=r"holds no image dataset: give a folder with data/train-\*.parquet in it"):
        read_image_dataset(tmp_path)
