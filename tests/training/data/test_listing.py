"""What a source holds, told without its pixels: the same that loading gives."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from small_sources import TWO_CLASSES, arrays, image_folder, png, table

from histodistill.training.data import decoding, npz, splits
from histodistill.training.data.listing import spread
from histodistill.training.data.sources import list_tiles, load_tiles


def npz_file(root: Path) -> Path:
    np.savez(root / "mine.npz", **arrays(12), train_groups=np.array(["a", "b", "c", "d"]))
    return root / "mine.npz"


def folder(root: Path) -> Path:
    return image_folder(root / "slides", TWO_CLASSES)


def parquet_folder(root: Path) -> Path:
    (root / "set").mkdir()
    for i in range(3):
        cells = [{"bytes": png(i + j, size=9), "path": None} for j in range(100)]
        pq.write_table(table(cells=cells), root / "set" / f"train-{i}.parquet", row_group_size=30)
    pq.write_table(table(5), root / "set" / "test.parquet")
    return root / "set"


def saved_folder(root: Path) -> Path:
    from datasets import Dataset, DatasetDict

    DatasetDict({"train": Dataset(table(300)), "dev": Dataset(table(4))}).save_to_disk(root / "saved")
    return root / "saved"


def manifest(root: Path) -> Path:
    image_folder(root / "tiles", {"x": 4})
    lines = [f"tiles/x/tile_{i:03}.png,{'ab'[i % 2]},P{i}" for i in range(4)]
    (root / "set.csv").write_text("\n".join(["path,label,group", *lines]))
    return root / "set.csv"


KINDS = {
    "npz": (npz_file, {(12, 12): 12}),
    "folder": (folder, {(10, 10): 14}),
    "parquet": (parquet_folder, None),
    "saved": (saved_folder, {(8, 8): 201}),
    "manifest": (manifest, {(10, 10): 4}),
    "phantom": (lambda root: "phantom", {(16, 16): 2300}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_what_loading_gives(tmp_path, monkeypatch, kind):
    make, sizes = KINDS[kind]
    source = make(tmp_path)
    loaded = load_tiles(source, image_size=16, hold_out_validation=False)
    for module, name in ((decoding, "_decode"), (npz, "_read_rows"), (splits, "make_missing_splits")):
        monkeypatch.setattr(module, name, None)  # what would fail if it were called
    listing = list_tiles(source, image_size=16)
    assert (listing.name, listing.class_names, listing.group_kind) == (
        loaded.name,
        loaded.class_names,
        loaded.group_kind,
    )
    assert list(listing.splits) == list(loaded.splits)
    for split, tiles in loaded.splits.items():
        listed = listing.splits[split]
        assert len(listed) == len(tiles)
        np.testing.assert_array_equal(listed.labels, tiles.labels)
        np.testing.assert_array_equal(listed.groups, tiles.groups)
        assert listed.attributes.keys() == tiles.attributes.keys()
        for name, values in tiles.attributes.items():
            np.testing.assert_array_equal(listed.attributes[name], values)
    if sizes is not None:
        assert listing.sizes == sizes
    assert listing.is_sample == (kind in ("parquet", "saved"))
    assert (listing.bytes_on_disk > 0) == (kind != "phantom")


def test_sizes_of_rows_are_those_of_a_sample(tmp_path):
    sizes = list_tiles(parquet_folder(tmp_path)).sizes
    assert sizes.keys() == {(9, 9), (8, 8)} and 150 <= sum(sizes.values()) <= 200


def test_sizes_are_as_viewers_show_them(tmp_path):
    source = image_folder(tmp_path, {"train/a": 2, "train/b": 2}, suffix="jpg")
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.new("RGB", (20, 10)).save(source / "train" / "a" / "tile_000.jpg", exif=turned)
    Image.new("RGB", (20, 10)).save(source / "train" / "b" / "tile_000.jpg")
    assert list_tiles(source).sizes == {(10, 20): 1, (20, 10): 1, (10, 10): 2}


def test_a_sample_is_spread_evenly():
    assert spread(3).tolist() == [0, 1, 2] and spread(0).tolist() == []
    indices = spread(100_000)
    assert len(indices) == 200 and indices[0] == 0 and indices[-1] == 99_999
    assert set(np.diff(indices)) <= {502, 503}


def test_what_loading_refuses_is_listed(tmp_path):
    # `inspect` tells what is wrong with it.
    assert list_tiles(folder(tmp_path), group_kind="patient").group_kind is None
    content = arrays(8) | {"val_labels": np.array([0, 1, 1, 2]), "class_names": np.array(["a", "b"])}
    np.savez(tmp_path / "mine.npz", **content)
    assert list_tiles(tmp_path / "mine.npz").splits["validation"].labels.tolist() == [0, 1, 1, 2]


def test_a_group_in_two_splits_is_listed(tmp_path):
    groups = {f"{split}_groups": np.array(["a", "b", "c", "d"]) for split in ("train", "test")}
    np.savez(tmp_path / "mine.npz", **arrays(8), **groups)
    listing = list_tiles(tmp_path / "mine.npz")
    assert listing.splits["train"].groups.tolist() == listing.splits["test"].groups.tolist()
