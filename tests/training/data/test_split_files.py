"""Which split a file's name says, and shards that are missing or there twice."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

import pytest

from histodistill.training.data.split_files import check_different, check_shards, split_called, splits_by_name
from histodistill.training.running.errors import InputError


@pytest.mark.parametrize(
    ("name", "split"), [("train", "train"), ("Val", "validation"), ("DEV", "validation"), ("testing", "test")]
)
def test_what_splits_may_be_called(name, split):
    assert split_called(name, "here") == split


@pytest.mark.parametrize("name", ["eval", "holdout", "unsupervised", "extra", "train2", "", "te\nst"])
def test_other_splits_are_refused(name):
    with pytest.raises(InputError, match="a split must be called train, validation") as caught:
        split_called(name, "here")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["train.parquet", "val.parquet", "test.parquet"], ["train", "validation", "test"]),
        (["data/train-00000-of-00002.parquet", "data/dev-00000-of-00001.parquet"], ["train", "validation"]),
        (["train/0.parquet", "test/0.parquet"], ["train", "test"]),
        (["default/train/0000.parquet", "default/validation/0000.parquet"], ["train", "validation"]),
        (["split=train/part-0.parquet", "split=test/part-0.parquet"], ["train", "test"]),
        (["TRAIN.parquet", "Testing_Tiles.parquet"], ["train", "test"]),
        (["crc-train-00000-of-00001-abcdef0123456789.parquet", "crc_valid.parquet"], ["train", "validation"]),
        (["train [20x].parquet", "test*.parquet"], ["train", "test"]),
        (["tiles.parquet"], ["train"]),
        (["0000.parquet", "0001.parquet", "0002.parquet"], ["train"]),
    ],
)
def test_names_that_say_the_split(names, expected):
    found = splits_by_name(Path("set"), [PurePosixPath(name) for name in names])
    assert list(found) == expected
    assert sorted(file for files in found.values() for file in files) == sorted(Path("set") / name for name in names)


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["train.parquet", "holdout.parquet"], "set/holdout.parquet does not say to which split it belongs"),
        (["train.parquet", "metadata.parquet"], "set/metadata.parquet does not say"),
        (["train-0.parquet", "eval-0.parquet"], "set/eval-0.parquet does not say"),
        (["data/train-00000-of-00001.parquet", "data/unsupervised-00000-of-00001.parquet"], "data/unsupervised"),
        (["site_a.parquet", "site_b.parquet"], "set/site_a.parquet does not say"),
        (["a/0.parquet", "b/0.parquet"], "set/a/0.parquet does not say"),
        (["train_test.parquet"], "names the splits test and train"),
        (["test/train.parquet"], "names the splits test and train"),
        (["dev/test/0.parquet"], "names the splits test and validation"),
    ],
)
def test_names_that_do_not(names, expected):
    with pytest.raises(InputError) as caught:
        splits_by_name(Path("set"), [PurePosixPath(name) for name in names])
    assert expected in str(caught.value)


@pytest.mark.parametrize(
    "names",
    [
        ["train-00000-of-00002.parquet", "train-00001-of-00002.parquet", "test-00000-of-00001.parquet"],
        ["train-1-of-2.parquet", "train-2-of-2.parquet"],
        ["a/train-0-of-1.parquet", "b/train-0-of-1.parquet"],
        ["train-00000-of-00001-5f0e.parquet", "tiles.parquet", "cohort_of_2019.parquet"],
        ["data-00000-of-00001.arrow"],
    ],
)
def test_shards_that_are_all_there(names):
    check_shards([Path(name) for name in names])


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["train-00000-of-00002.parquet"], "train-00001-of-00002.parquet is missing, and 1 of 2 shards are there"),
        (["train-00001-of-00002.parquet"], "train-00000-of-00002.parquet is missing"),
        (["x-0-of-3.parquet", "x-2-of-3.parquet"], "x-1-of-3.parquet is missing"),
        (["test_1_of_2.parquet"], "test_0_of_2.parquet is missing"),
        (["train-00000-of-00002-5f0e.parquet", "test-0-of-1.parquet"], "train-00001-of-00002-5f0e.parquet is missing"),
        (["data-00001-of-00002.arrow"], "data-00000-of-00002.arrow is missing"),
        (["train-0-of-2.parquet", "train-1-of-3.parquet"], "are shards of different numbers"),
        (["train-0-of-1.parquet", "train-0-of-1 (copy).parquet"], "are one shard"),
        (["train-0-of-1-aaaa.parquet", "train-00-of-1-bbbb.parquet"], "are one shard"),
        (["train-0-of-2.parquet", "train-1-of-2.parquet", "train-7-of-2.parquet"], "has a number beyond"),
    ],
)
def test_shards_that_are_not(names, expected):
    with pytest.raises(InputError) as caught:
        check_shards([Path(name) for name in names])
    assert expected in str(caught.value)


def test_a_copy_of_a_file_is_refused(tmp_path):
    for name, content in (("train.parquet", b"one"), ("test.parquet", b"two"), ("train (1).parquet", b"one")):
        (tmp_path / name).write_bytes(content)
    different = [tmp_path / "train.parquet"], [tmp_path / "test.parquet"]
    check_different(dict(zip(("train", "test"), different, strict=True)))
    for splits in (
        {"train": sorted(tmp_path.glob("train*"))},
        {"train": different[0], "test": [tmp_path / "train (1).parquet"]},
    ):
        with pytest.raises(InputError, match=r"train( \(1\))?.parquet hold the same: keep one"):
            check_different(splits)
