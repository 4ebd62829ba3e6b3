"""Datasets of the Hub, which `datasets` loads; nothing is fetched here."""

from __future__ import annotations

from pathlib import Path

import datasets
import numpy as np
import pytest
from small_sources import png, refused, table

from histodistill.training.data.sources import list_tiles, load_tiles


@pytest.fixture
def asked() -> list[tuple[str | None, str | None]]:
    """The configuration and revision of each call of `load_dataset`."""
    return []


@pytest.fixture
def hub(monkeypatch, asked):
    """Splits by name, which `load_dataset` gives; or what it raises."""
    splits: dict[str, datasets.Dataset] = {}

    def load_dataset(name, config, revision, cache_dir):
        asked.append((config, revision))
        if "error" in splits:
            raise splits["error"]
        return datasets.DatasetDict(splits)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return splits


@pytest.mark.parametrize("name", ["eval", "holdout", "unsupervised", "CRC_VAL_HE_7K"])
def test_splits_of_no_known_name_are_told(hub, capsys, name):
    hub |= {"train": datasets.Dataset(table(8)), "dev": datasets.Dataset(table(4)), name: datasets.Dataset(table(2))}
    source = load_tiles("someone/tiles", hold_out_validation=False)
    assert {split: len(tiles) for split, tiles in source.splits.items()} == {"train": 8, "validation": 4}
    expected = f"warning: someone/tiles: splits not called train, validation or test are not used ({name})"
    assert expected in capsys.readouterr().err.splitlines()


def test_the_configuration_and_revision_are_told(hub, capsys):
    commit = "0123456789abcdef0123456789abcdef01234567"
    address = f"hf://datasets/someone/tiles@{commit}/data/train.parquet"
    hub["train"] = datasets.Dataset(table(8))
    hub["train"].info.config_name, hub["train"].info.download_checksums = "crops", {address: {}}
    load_tiles("someone/tiles")
    assert f"someone/tiles: configuration crops, revision {commit}" in capsys.readouterr().err.splitlines()


def test_groups_and_sizes_of_its_tiles(hub):
    cells = [{"bytes": png(i, size=8 + i // 299), "path": f"P{i % 7}_{i}.png"} for i in range(300)]
    rows = datasets.Dataset(table(cells=cells, patient=[i // 10 for i in range(300)], site=["x", "y"] * 150))
    hub["train"] = rows.select(range(300))
    listing = list_tiles("someone/tiles", group_column="patient")
    train = listing.splits["train"]
    assert train.groups.tolist() == [str(i // 10) for i in range(300)] and listing.group_kind == "patient"
    assert train.attributes["site"].tolist() == ["x", "y"] * 150
    assert listing.is_sample and listing.sizes == {(8, 8): 199, (9, 9): 1}
    by_name = list_tiles("someone/tiles", group_pattern="(?P<group>P.)_").splits["train"]
    assert by_name.groups.tolist() == [f"P{i % 7}" for i in range(300)]
    source = load_tiles("someone/tiles", image_size=8, group_column="patient", hold_out_validation=False)
    assert source.split("train").groups.tolist() == train.groups.tolist()
    assert "is no column of someone/tiles" in refused("someone/tiles", group_column="case")


@pytest.mark.parametrize(
    ("splits", "expected"),
    [
        (["test"], "has no train split (found test)"),
        ([], "has no train split (found none)"),
        (["train", "val", "valid"], "has two splits for validation"),
    ],
)
def test_splits_that_cannot_be_used(hub, splits, expected):
    hub |= {split: datasets.Dataset(table()) for split in splits}
    assert expected in refused("someone/tiles")


def test_several_configurations(hub):
    hub["error"] = ValueError(
        "Config name is missing.\nPlease pick one among the available configs: ['a', 'b']\nExample of usage:\n..."
    )
    assert refused("someone/tiles") == (
        "someone/tiles has several configurations and no default one: give hub_config one of 'a', 'b'"
    )


def test_a_configuration_that_is_not_there(hub):
    hub["error"] = ValueError("BuilderConfig 'c' not found. Available: ['a', 'b']")
    assert refused("someone/tiles", hub_config="c") == (
        "hub_config=c is no configuration of someone/tiles: give hub_config one of 'a', 'b'"
    )


def test_revision_and_configuration_are_asked_for(hub, asked):
    hub["train"] = datasets.Dataset(table(8))
    load_tiles("someone/tiles", hub_revision="v1", hub_config="a")
    list_tiles("someone/tiles", hub_revision="abc")
    load_tiles("someone/tiles")
    assert asked == [("a", "v1"), (None, "abc"), (None, None)]
    hub["error"] = OSError("Revision not found")
    assert "(Revision not found): check the name, the revision, the" in refused("someone/tiles", hub_revision="v2")


@pytest.mark.parametrize("option", ["hub_revision", "hub_config"])
def test_revision_and_configuration_are_for_the_hub_alone(hub, option):
    assert (
        refused("phantom", **{option: "x"})
        == f"{option}=x is for a dataset of the Hub, and phantom is none: leave it out"
    )


def test_images_are_converted_if_asked_for(hub):
    import io

    from PIL import Image

    buffer = io.BytesIO()
    Image.new("L", (8, 8), 77).save(buffer, "PNG")
    hub["train"] = datasets.Dataset(table(cells=[{"bytes": buffer.getvalue(), "path": None}] * 4))
    assert "give convert with grey" in refused("someone/tiles")
    source = load_tiles("someone/tiles", convert=("grey",), hold_out_validation=False)
    assert (source.split("train").images[:] == 77).all()


@pytest.mark.parametrize("where", ["fetched", "outside"])
def test_files_that_cells_name_are_read_where_they_were_fetched_to(hub, tmp_path, where):
    (tmp_path / "cache").mkdir()
    file = tmp_path / ("cache" if where == "fetched" else ".") / "0.png"
    file.write_bytes(png(77))
    hub["train"] = datasets.Dataset(table(cells=[{"bytes": None, "path": str(file)}] * 4))
    if where == "fetched":
        source = load_tiles("someone/tiles", download_dir=tmp_path / "cache", hold_out_validation=False)
        np.testing.assert_array_equal(source.split("train").images[:, 0, 0, 0], [77] * 4)
    else:
        assert "names a file in place of the image" in refused("someone/tiles", download_dir=tmp_path / "cache")


@pytest.mark.parametrize("kind", ["folder", "empty folder", "dangling link"])
def test_what_is_on_disk_is_no_id(hub, tmp_path, monkeypatch, kind):
    hub["error"] = AssertionError("asked the Hub")
    monkeypatch.chdir(tmp_path)
    Path("someone").mkdir()
    if kind == "dangling link":
        Path("someone/tiles").symlink_to("nowhere")
    elif kind == "folder":
        Path("someone/tiles/train/a").mkdir(parents=True)
    else:
        Path("someone/tiles").mkdir()
    assert "Hub" not in refused("someone/tiles").split(":")[0]
