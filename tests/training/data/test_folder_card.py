"""README.md of a local dataset: which files it names, and that they are in the folder."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml
from small_sources import greys, parquet, refused, table

from histodistill.training.data.sources import load_tiles


def card(folder: Path, **header) -> Path:
    (folder / "README.md").write_text(f"---\n{yaml.safe_dump(header)}---\n# Tiles\n")
    return folder


def configured(folder: Path, **paths: str | list[str]) -> Path:
    files = [{"split": split, "path": path} for split, path in paths.items()]
    return card(folder, configs=[{"config_name": "default", "data_files": files}])


@pytest.fixture
def folder(tmp_path):
    for i, name in enumerate(("part/alpha-0", "part/alpha-1", "part/beta", "deep/er/gamma", "odd[1]")):
        parquet(tmp_path / "set" / f"{name}.parquet", grey=10 * i)
    return tmp_path / "set"


@pytest.mark.parametrize(
    ("paths", "train", "test"),
    [
        ({"train": "part/alpha-*", "test": "part/beta.parquet"}, [0, 10], [20]),
        ({"train": "part/alpha-?.parquet", "test": "./deep/**"}, [0, 10], [30]),
        ({"train": ["part/beta.parquet", "part/alpha-[1-9].parquet"], "test": "**/gamma.parquet"}, [20, 10], [30]),
        ({"train": "odd[1].parquet", "test": "part/**/beta.parquet"}, [40], [20]),
        ({"train": "*/*.parquet", "test": "deep/*/*.parquet"}, [0, 10, 20], [30]),
    ],
)
def test_files_that_it_names(folder, paths, train, test):
    configured(folder, **paths)
    assert greys(folder)[::4] == train and greys(folder, "test")[::4] == test


def test_what_it_does_not_name_is_told(folder, capsys):
    configured(folder, train="part/alpha-*", dev="part/beta.parquet")
    assert sorted(load_tiles(folder, hold_out_validation=False).splits) == ["train", "validation"]
    assert "2 files are not read (deep/er/gamma.parquet, odd[1].parquet)" in capsys.readouterr().err


@pytest.mark.parametrize(
    "path",
    [
        "../secret/*.parquet",
        "part/../../secret/x.parquet",
        "/etc/*.parquet",
        "~/x.parquet",
        "http://127.0.0.1:9/x.parquet",
        "hf://datasets/a/b/x.parquet",
        "file:///etc/x.parquet",
        "zip://x.parquet::part/beta.parquet",
        "c:/x.parquet",
        "C:x.parquet",
        "..\\secret\\x.parquet",
        "\\\\server\\share\\x.parquet",
    ],
)
@pytest.mark.parametrize("key", ["data_files", "data_dir"])
def test_it_never_leads_out_of_the_folder(folder, path, key):
    parquet(folder.parent / "secret" / "x.parquet", grey=77)
    card(folder, configs=[{"config_name": "default", key: path}])
    assert "README.md names " in refused(folder) and "which may be outside the folder" in refused(folder)


def test_it_names_no_link_out_of_the_folder(folder):
    secret = parquet(folder.parent / "secret" / "x.parquet", grey=77)
    (folder / "part" / "alpha-2.parquet").symlink_to(secret)
    configured(folder, train="part/alpha-*")
    assert "README.md names alpha-2.parquet, a link to a file outside the folder" in refused(folder)


def test_a_snapshot_of_the_hub_cache_is_read(tmp_path):
    blob = parquet(tmp_path / "datasets--a--b" / "blobs" / "0123", grey=7)
    snapshot = tmp_path / "datasets--a--b" / "snapshots" / "main"
    (snapshot / "data").mkdir(parents=True)
    (snapshot / "data" / "train-00000-of-00001.parquet").symlink_to(blob)
    configured(snapshot, train="data/train-*")
    assert greys(snapshot)[0] == 7


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ({"configs": [{"config_name": "a"}, {"config_name": "b"}]}, "several configurations (a, b)"),
        ({"configs": [{"data_files": "x"}]}, "cannot be understood"),
        ({"configs": "default"}, "cannot be understood"),
        ({"configs": [{"config_name": "a", "data_files": {"train": "x"}}]}, "cannot be understood"),
        ({"configs": [{"config_name": "a", "data_files": "none-*"}]}, "train is in none-*, and no Parquet file"),
        ({"configs": [{"config_name": "a", "data_dir": "none"}]}, "the data are in none, where no Parquet file is"),
        ({"configs": [{"config_name": "a", "data_files": [{"split": "eval", "path": "part/*"}]}]}, "a split 'eval'"),
        ({"dataset_info": {"features": "image"}}, "cannot be understood"),
        ({"dataset_info": {"features": [{"name": "label", "dtype": {"class_label": {}}}]}}, "cannot be understood"),
        ({"dataset_info": {"splits": [{"name": "train", "num_examples": "4"}]}}, "cannot be understood"),
    ],
)
def test_headers_that_are_refused(folder, header, expected):
    card(folder, **header)
    assert expected in refused(folder)


@pytest.mark.parametrize(
    "text", ["---\n{\n---\n", "---\n- a\n---\n", "---\na: &a [*a]\nconfigs: *a\n---\n", "---\n'" + "[" * 5000]
)
def test_headers_that_are_damaged(folder, text):
    for path in ("part/beta", "deep/er/gamma", "odd[1]"):
        (folder / f"{path}.parquet").unlink()
    (folder / "README.md").write_text(text)
    if text.count("---") > 1:
        assert "README.md has a header that cannot be understood" in refused(folder)
    else:
        assert len(greys(folder)) == 8


def test_one_file_in_two_splits(folder):
    configured(folder, train="part/*", test="part/beta.parquet")
    assert "puts beta.parquet into two splits" in refused(folder)


@pytest.mark.parametrize("mark", ["default", "name"])
def test_the_default_configuration_is_loaded(folder, mark):
    one = {"config_name": "a", "data_files": "part/beta.parquet"}
    other = {"config_name": "b", "data_files": "deep/**"}
    other |= {"default": True} if mark == "default" else {"config_name": "default"}
    card(folder, configs=[one, other])
    assert greys(folder)[0] == 30


def test_columns_that_only_the_card_names(tmp_path):
    pq.write_table(table().replace_schema_metadata(None), tmp_path / "train.parquet")
    assert "no column of type Image" in refused(tmp_path)
    names = {"class_label": {"names": {"0": "gland", "1": "stroma"}}}
    features = [{"name": "image", "dtype": "image"}, {"name": "label", "dtype": names}]
    card(tmp_path, dataset_info={"features": features})
    assert load_tiles(tmp_path).class_names == ["gland", "stroma"]
    names["class_label"]["names"] = {"0": "gland", "2": "stroma"}
    card(tmp_path, dataset_info={"features": features})
    assert "cannot be understood" in refused(tmp_path)


def test_a_card_and_files_that_name_classes_otherwise(tmp_path):
    parquet(tmp_path / "train.parquet")
    names = {"class_label": {"names": ["stroma", "gland"]}}
    features = [{"name": "image", "dtype": "image"}, {"name": "label", "dtype": names}]
    card(tmp_path, dataset_info={"features": features})
    assert "has other class names than are written beside it" in refused(tmp_path)


@pytest.mark.parametrize("split", ["train", "validation"])
def test_as_many_rows_as_the_card_says(tmp_path, split):
    parquet(tmp_path / "train.parquet")
    card(tmp_path, dataset_info={"splits": [{"name": "train", "num_examples": 4}]})
    assert len(greys(tmp_path)) == 4
    card(tmp_path, dataset_info={"splits": [{"name": split, "num_examples": 9}]})
    assert f"rows of the split {split} and README.md says 9" in refused(tmp_path)
