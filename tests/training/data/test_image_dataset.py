from __future__ import annotations

import os
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import ClassLabel, Image, List, Value, load_dataset
from PIL import Image as PILImage

from histodistill.hub_cards.table_files import write_table
from histodistill.hub_cards.tables import ImageTable, canonical, round_soft_labels
from histodistill.training.data import image_dataset, limits
from histodistill.training.data.image_dataset import SHARD, read_image_dataset, read_image_table, write_image_dataset
from histodistill.training.data.images import png_bytes
from histodistill.training.running.errors import InputError


NAMES = ["adipose", "glands", "mucus"]


def make(count: int = 7):
    rng = np.random.default_rng(count)
    images = rng.integers(0, 255, (count, 8, 8, 3), dtype=np.uint8)
    columns = {
        "label": np.arange(count) % 3,
        "soft_label": round_soft_labels(rng.dirichlet(np.ones(3), count).astype(np.float32)),
        "seed": rng.permutation(2**20)[:count],
        "modular_centrality": np.arange(count) / 8,
    }
    return images, columns


def make_grey(folder, grey: int, count: int = 6) -> None:
    """A dataset of one colour."""
    images = np.full((count, 8, 8, 3), grey, np.uint8)
    write_image_dataset(folder / "data", images, {"label": np.arange(count) % 3}, NAMES)


def split_in_two(folder) -> None:
    """The dataset in `folder` in two files."""
    table = pq.read_table(folder / "data" / SHARD)
    (folder / "data" / SHARD).unlink()
    for number, rows in enumerate((table.slice(0, 2), table.slice(2))):
        pq.write_table(rows, folder / "data" / f"train-0000{number}-of-00002.parquet")


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
    with pytest.raises(InputError, match=r"cannot be written: row 4: its column soft_label has the sum 1\.01: "):
        write_image_dataset(tmp_path / "data", images, columns, NAMES)
    assert list(tmp_path.iterdir()) == []


def test_load_dataset_opens_the_folder(tmp_path):
    images, columns = make()
    features = write_image_dataset(tmp_path / "data", images, columns, NAMES)
    dataset = load_dataset(str(tmp_path), split="train")
    assert dataset.features == features
    assert dataset.features["image"] == Image()
    assert dataset.features["label"] == ClassLabel(names=NAMES)
    assert dataset.features["seed"] == Value("int64")
    assert dataset.features["soft_label"] == List(Value("float32"), length=3)
    assert dataset.features["modular_centrality"] == Value("float64")
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

    monkeypatch.setattr(image_dataset, "write_bytes", fail)
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


# No folder is a pattern, and no cache answers in place of a file.


@pytest.mark.parametrize(
    "name", ["site[1]", "tiles [20x]", "a*b", "what?", "x::y", "{a,b}", "hf:", "!(x)", "ümläut", "a#b%20c", "~", "**"]
)
def test_a_folder_of_any_name_is_read_itself(tmp_path, name, monkeypatch):
    make_grey(tmp_path / "site1", 10)
    make_grey(tmp_path / "ab", 20)
    make_grey(tmp_path / name, 200)
    monkeypatch.chdir(tmp_path)
    for folder in (tmp_path / name, name):
        assert (read_image_dataset(folder)[0] == 200).all()
    assert (read_image_dataset(tmp_path / "site1")[0] == 10).all()


def test_a_pattern_alone_finds_no_neighbour(tmp_path):
    make_grey(tmp_path / "site1", 10)
    for name in ("site[1]", "site*", "site?", "**"):
        with pytest.raises(InputError, match="holds no image dataset"):
            read_image_dataset(tmp_path / name)


def test_a_file_that_was_replaced_is_seen_and_nothing_is_cached(tmp_path, monkeypatch):
    for name in ("HF_HOME", "HF_DATASETS_CACHE", "XDG_CACHE_HOME", "TMPDIR"):
        monkeypatch.setenv(name, str(tmp_path / "cache"))
    for folder, grey in (("run", 10), ("other", 200)):
        make_grey(tmp_path / folder, grey)
        os.utime(tmp_path / folder / "data" / SHARD, (1_700_000_000, 1_700_000_000))
    assert (read_image_dataset(tmp_path / "run")[0] == 10).all()
    shutil.rmtree(tmp_path / "run")
    shutil.copytree(tmp_path / "other", tmp_path / "run")
    assert (read_image_dataset(tmp_path / "run")[0] == 200).all()
    shutil.copy2(tmp_path / "other" / "data" / SHARD, tmp_path / "run" / "data" / SHARD)
    assert (read_image_dataset(tmp_path / "run")[0] == 200).all()
    assert not (tmp_path / "cache").exists()


# All files of a dataset, and no others.


def test_a_dataset_in_several_files_is_read_whole(tmp_path):
    images, columns = make()
    write_image_dataset(tmp_path / "data", images, columns, NAMES)
    split_in_two(tmp_path)
    found, found_columns, names = read_image_dataset(tmp_path)
    np.testing.assert_array_equal(found, images)
    np.testing.assert_array_equal(found_columns["soft_label"], columns["soft_label"])
    assert names == NAMES


@pytest.mark.parametrize("missing", [0, 1])
def test_a_missing_file_is_noticed(tmp_path, missing):
    write_image_dataset(tmp_path / "data", *make(), NAMES)
    split_in_two(tmp_path)
    (tmp_path / "data" / f"train-0000{missing}-of-00002.parquet").unlink()
    with pytest.raises(InputError, match="does not hold the 2 files that it should, one of each number, but 1"):
        read_image_dataset(tmp_path)


@pytest.mark.parametrize(
    "name",
    [
        "train-00000-of-00002.parquet", "train-00001-of-00001.parquet", "train-00001-of-00003.parquet",
        "train-00000-of-00001 (1).parquet", "train-0-of-1.parquet", "train.parquet", "test-00000-of-00001.parquet",
        "TRAIN-00000-OF-00001.PARQUET", "train-٠٠٠٠٠-of-00001.parquet", "train-00000-of-00001.parquet.parquet",
    ],
)  # fmt: skip
def test_other_files_beside_it_are_refused(tmp_path, name):
    write_image_dataset(tmp_path / "data", *make(), NAMES)
    shutil.copy(tmp_path / "data" / SHARD, tmp_path / "data" / name)
    with pytest.raises(InputError, match=r"is no part of an image dataset|does not hold the"):
        read_image_dataset(tmp_path)


def test_what_a_disk_leaves_beside_it_does_no_harm(tmp_path):
    write_image_dataset(tmp_path / "data", *make(), NAMES)
    for name in (".DS_Store", f"._{SHARD}", "Thumbs.db", "@eaDir/x.parquet"):
        (tmp_path / "data" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "data" / name).write_bytes(b"x")
    assert len(read_image_dataset(tmp_path)[0]) == 7


@pytest.mark.parametrize("change", ["classes", "columns", "size", "seeds"])
def test_files_that_do_not_belong_together_are_refused(tmp_path, change):
    images, columns = make()
    table = ImageTable(images, columns, NAMES)
    other = {
        "classes": ImageTable(images, columns, [*NAMES[:2], "stroma"]),
        "columns": ImageTable(images, {"label": columns["label"]}, NAMES),
        "size": ImageTable(images.repeat(2, axis=1).repeat(2, axis=2), columns, NAMES),
        "seeds": table,
    }[change]
    (tmp_path / "data").mkdir()
    for number, part in enumerate((table, other)):
        (tmp_path / "data" / f"train-0000{number}-of-00002.parquet").write_bytes(write_table(part))
    message = "has a number twice" if change == "seeds" else "its files differ in classes, columns or image size"
    with pytest.raises(InputError, match=rf"cannot be read \(.*{message}.*\): make it again"):
        read_image_dataset(tmp_path)


# What is in a file, and how much.


def test_a_file_in_place_of_a_folder_and_a_folder_in_place_of_a_file(tmp_path):
    (tmp_path / "data").write_bytes(b"")
    with pytest.raises(InputError, match="holds no image dataset"):
        read_image_dataset(tmp_path)
    with pytest.raises(InputError, match="holds no image dataset"):
        read_image_dataset(tmp_path / "data")
    (tmp_path / "run" / "data" / SHARD).mkdir(parents=True)
    with pytest.raises(InputError, match=r"cannot be read \(.+\): make it again"):
        read_image_dataset(tmp_path / "run")
    (tmp_path / "link" / "data").mkdir(parents=True)
    (tmp_path / "link" / "data" / SHARD).symlink_to(tmp_path / "gone")
    with pytest.raises(InputError, match=r"cannot be read \(.+\): make it again"):
        read_image_dataset(tmp_path / "link")


def test_columns_that_nobody_knows_are_refused(tmp_path):
    write_image_dataset(tmp_path / "data", *make(), NAMES)
    file = tmp_path / "data" / SHARD
    table = pq.read_table(file)
    pq.write_table(table.append_column("tiles", table["image"]), file)
    with pytest.raises(InputError, match=r"cannot be read \(it has a column 'tiles': there may be image, label, "):
        read_image_dataset(tmp_path)


def test_a_caller_says_which_columns_there_may_be(tmp_path):
    images, columns = make()
    write_image_dataset(tmp_path / "data", images, {**columns, "site": np.arange(7) % 2}, NAMES, ["a", "b"])
    assert read_image_table(tmp_path).site_names == ["a", "b"]
    with pytest.raises(InputError, match="it has a column 'soft_label': there may be image, label, seed"):
        read_image_table(tmp_path, ("label", "seed"))


def test_what_unpacks_to_too_much_is_refused(tmp_path, monkeypatch):
    images = np.zeros((60, 64, 64, 3), np.uint8)
    write_image_dataset(tmp_path / "data", images, {"label": np.arange(60) % 3}, NAMES)
    monkeypatch.setattr(limits, "_HARMLESS", 1000)
    monkeypatch.setenv(limits.MAX_GROWTH_VARIABLE, "20")
    with pytest.raises(InputError, match="a file may grow 20 times"):
        read_image_dataset(tmp_path)
    monkeypatch.setenv(limits.MAX_GROWTH_VARIABLE, "200")
    assert len(read_image_dataset(tmp_path)[0]) == 60
    monkeypatch.setattr(limits, "_free_memory", lambda: 1000)
    with pytest.raises(InputError, match=r"of memory and 1\.0 kB are free"):
        read_image_dataset(tmp_path)


def test_what_is_written_is_in_the_form_that_is_published(tmp_path):
    images, columns = make()
    columns["soft_label"] = np.random.default_rng(0).dirichlet(np.ones(3), 7).astype(np.float32)
    write_image_dataset(tmp_path / "data", images, columns, NAMES)
    table = read_image_table(tmp_path)
    np.testing.assert_array_equal(table.columns["soft_label"], canonical(table).columns["soft_label"])
    assert (tmp_path / "data" / SHARD).read_bytes() == write_table(table)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no pipes")
@pytest.mark.parametrize("put", [os.mkfifo, lambda path: path.symlink_to("/dev/zero"), lambda path: path.mkdir()])
def test_what_is_no_file_is_not_waited_for(tmp_path, put):
    (tmp_path / "data").mkdir()
    put(tmp_path / "data" / SHARD)
    with pytest.raises(InputError, match=rf"cannot be read \(data/{SHARD} is no file\): make it again"):
        read_image_dataset(tmp_path)
