"""Loading tiles from every kind of source, and refusing bad ones with one sentence."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from small_sources import image_folder, refused, tiles

from histodistill.training.data import phantom
from histodistill.training.data.pixels import to_model_input, to_uint8
from histodistill.training.data.sources import check_source, load_tiles
from histodistill.training.data.tiles import Tiles, TileSource, sample_as_many, sample_per_class
from histodistill.training.running.errors import InputError


def real_data(name: str) -> Path:
    root = os.environ.get("HISTODISTILL_DATA") or Path(__file__).parents[3].parent / "shared" / "data"
    path = Path(root) / name
    if not path.exists():
        pytest.skip(f"{path} is not there; set HISTODISTILL_DATA to the folder that holds it")
    return path


# --- names and paths ---


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("no/such/folder", "no/such/folder does not exist"),
        ("missing.npz", "missing.npz does not exist"),
        ("pathmnits", "pathmnits does not exist (did you mean pathmnist?): a source"),
        ("chestmnist", "chestmnist is not a MedMNIST name that can be used: a source"),
        ("organmnist", "organmnist is not a MedMNIST name that can be used: a source"),
        ("Phantom", "Phantom does not exist (did you mean phantom?): a source"),
        ("", "the source is empty"),
    ],
)
def test_unknown_sources_say_what_a_source_may_be(tmp_path, monkeypatch, source, expected):
    monkeypatch.chdir(tmp_path)
    message = refused(source)
    assert message.startswith(expected)
    with pytest.raises(InputError) as at_once:
        check_source(source)
    assert str(at_once.value) == message
    for known in ("phantom", "pathmnist", "dermamnist", "retinamnist", "bloodmnist", ".npz", "user/name"):
        assert known in message


def test_what_is_seen_before_tiles_are_read(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("phantom", "PathMNIST", "user/name"):  # whether these can be loaded is another matter
        check_source(name)
    image_folder(tmp_path / "good", {"train/a": 2, "train/b": 2})
    image_folder(tmp_path / "bad", {"tiles": 2, "test": 2})
    np.savez("good.npz", train_images=np.zeros((2, 8, 8, 3), np.uint8), train_labels=np.zeros(2, np.int64))
    np.savez("bad.npz", train_images=np.zeros((2, 8, 8, 3), np.uint8))
    for name in ("good", "good.npz"):
        check_source(name)
        check_source(Path(name))
    for name in ("bad", "bad.npz"):
        with pytest.raises(InputError) as at_once:
            check_source(name)
        assert str(at_once.value) == refused(name)


def test_a_path_is_never_a_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "phantom does not exist" in refused(Path("phantom"))
    image_folder(tmp_path / "phantom", {"train/a": 2, "train/b": 2})
    assert load_tiles(Path("phantom")).class_names == ["a", "b"]
    assert len(load_tiles("./phantom").class_names) == 2


def test_drawings_of_another_seed_have_other_patients(monkeypatch):
    monkeypatch.setattr(phantom, "PHANTOM_SIZES", {"train": 4, "validation": 1, "test": 1})
    drawn, other = load_tiles("phantom", image_size=16), load_tiles("phantom:3", image_size=16)
    same = phantom.phantom_source(image_size=16, seed=3)
    assert other.fingerprint() == same.fingerprint() != drawn.fingerprint() and other.name == "phantom"
    assert load_tiles("phantom:0", image_size=16).fingerprint() == drawn.fingerprint()
    for wrong in ("phantom:", "phantom:-1", "phantom:x"):
        assert f"{wrong} does not exist" in refused(wrong)


@pytest.mark.parametrize("name", ["phantom", "pathmnist", "PathMNIST"])
def test_a_name_beside_a_folder_called_so_is_told(tmp_path, monkeypatch, capsys, name):
    monkeypatch.chdir(tmp_path)
    image_folder(tmp_path / name, {"train/a": 2, "train/b": 2})
    if name == "phantom":
        assert len(load_tiles(name).class_names) == 5
    else:
        assert "download is off" in refused(name, download_dir=tmp_path / "cache", download=False)
    assert capsys.readouterr().err.startswith(
        f"warning: {name} is taken for the data set of this name, not for what is called so here: for that, write "
        f"./{name}\n"
    )


@pytest.mark.parametrize(
    "name",
    ["site[1]", "site?", "*", "**", "hf://datasets/a/b", "https://x.org/a", "a::b", "zip://x", "someone/tiles", "~",
     "~x", "$HOME", "{a,b}", "%41", "a b", "tiles.npz", "x.parquet", "file:", "a//b/"],
)  # fmt: skip
def test_a_path_that_exists_is_that_path(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    for other in ("site1", "sitex", "other"):
        image_folder(tmp_path / other, {"train/a": 2, "train/b": 2})
    image_folder(tmp_path / name, {"train/c": 2, "train/d": 2})
    for source in (name, Path(name), str(tmp_path / name)):
        assert load_tiles(source).class_names == ["c", "d"]


def test_a_home_folder_is_found(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    image_folder(tmp_path / "slides", {"train/a": 2, "train/b": 2})
    assert load_tiles("~/slides").name == "slides"
    assert "~nobody-is-called-so/x does not exist" in refused("~nobody-is-called-so/x")


@pytest.mark.parametrize(
    "name", ["x" * 300, "a\0b", "a\nb", "dr\udcfcse", "hf://datasets/a/b", "http://x.org/a.npz", "*"]
)
def test_what_is_no_path_and_no_id_is_refused(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    assert refused(name).isprintable()


def test_a_link_without_a_target_is_no_id_on_the_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "someone").mkdir()
    (tmp_path / "someone" / "tiles").symlink_to("nowhere")
    assert "someone/tiles is neither a folder nor a .npz, .csv, .tsv or .parquet file" in refused("someone/tiles")


def test_other_files_are_refused(tmp_path):
    (tmp_path / "tiles.zip").write_bytes(b"PK")
    assert "neither a folder nor a .npz" in refused(tmp_path / "tiles.zip")


@pytest.mark.parametrize("size", [0, 7, -3])
def test_image_size_out_of_range(size):
    assert refused("phantom", image_size=size) == f"image_size={size} is out of range: it must be at least 8"


@pytest.mark.parametrize("size", [28.0, True, "28"])
def test_an_image_size_that_is_no_whole_number(size):
    rule = "it must be a whole number of at least 8"
    assert refused("phantom", image_size=size) == f"image_size={size!r} is not valid: {rule}"


def test_a_source_prints_in_a_line():
    source = load_tiles("phantom")
    classes = "5 classes (adipose, glands, lymphocytes, mucus, stroma)"
    splits = "train 1,500, validation 300, test 500"
    assert repr(source) == f"TileSource('phantom', 28×28 px, tiles: {splits}; {classes})"
    many = TileSource("many", [f"class {i}" for i in range(12)], source.splits, 28)
    assert repr(many).endswith(
        "12 classes (class 0, class 1, class 2, class 3, class 4, class 5, class 6, class 7, class 8, class 9, …))"
    )


def test_tiles_print_in_a_line():
    tiles = load_tiles("phantom").split("train")
    assert repr(tiles) == "Tiles(1,500 tiles of 28×28 px, 5 classes, 100 groups)"
    one = Tiles(tiles.images[:1, :20], tiles.labels[:1], np.ones((1, 1), dtype=np.float32))
    assert repr(one) == "Tiles(1 tile of 28×20 px, 1 class, with soft labels)"
    assert repr(one.subset([])) == "Tiles(0 tiles, 0 classes, with soft labels)"


# --- datasets ---


@pytest.fixture
def dataset():
    from datasets import ClassLabel, Dataset, Features
    from datasets import Image as ImageFeature

    images, labels = tiles(12, classes=3)
    features = Features({"tile": ImageFeature(), "tissue": ClassLabel(names=["fat", "gland", "mucus"])})
    data = Dataset.from_dict({"tile": [Image.fromarray(i) for i in images], "tissue": labels}, features=features)
    return data, images, labels


def test_saved_dataset_dict(tmp_path, dataset):
    from datasets import DatasetDict

    data, images, labels = dataset
    splits = DatasetDict({"train": data.select(range(6)), "val": data.select(range(6, 9)), "test": data.select([9])})
    splits.save_to_disk(tmp_path / "saved")
    source = load_tiles(tmp_path / "saved")
    assert source.class_names == ["fat", "gland", "mucus"]
    assert {name: len(split) for name, split in source.splits.items()} == {"train": 6, "validation": 3, "test": 1}
    np.testing.assert_array_equal(source.split("validation").images, images[6:9])
    np.testing.assert_array_equal(source.split("validation").labels, labels[6:9])


def test_splits_of_a_dataset_in_any_case_of_letters(tmp_path, dataset):
    from datasets import DatasetDict

    data = dataset[0]
    splits = {"Train": data.select(range(6)), "Val": data.select(range(6, 9)), "TEST": data.select([9])}
    DatasetDict(splits).save_to_disk(tmp_path / "saved")
    source = load_tiles(tmp_path / "saved")
    assert {name: len(split) for name, split in source.splits.items()} == {"train": 6, "validation": 3, "test": 1}
    DatasetDict({**splits, "validation": data}).save_to_disk(tmp_path / "twice")
    expected = "has two splits for validation (Val, validation): keep one of them"
    assert expected in refused(tmp_path / "twice")


def with_soft_labels(dataset, rows: list) -> object:
    return dataset[0].add_column("soft_label", rows)


def test_soft_labels_of_a_dataset_are_taken_along(tmp_path, dataset):
    from datasets import DatasetDict

    soft_labels = np.random.default_rng(0).dirichlet(np.ones(3), size=12)
    data = with_soft_labels(dataset, soft_labels.tolist())
    DatasetDict({"train": data, "test": data.remove_columns("soft_label")}).save_to_disk(tmp_path / "saved")
    (tmp_path / "set").mkdir()
    data.to_parquet(tmp_path / "set" / "train.parquet")
    for folder in ("saved", "set"):
        source = load_tiles(tmp_path / folder, hold_out_validation=False)
        found = source.split("train").soft_labels
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, soft_labels, atol=1e-6)
    assert load_tiles(tmp_path / "saved").split("test").soft_labels is None
    # Tiles that are held out take theirs with them.
    held = load_tiles(tmp_path / "set").split("validation")
    places = [np.flatnonzero((dataset[1] == image).all(axis=(1, 2, 3)))[0] for image in held.images]
    np.testing.assert_allclose(held.soft_labels, soft_labels[places], atol=1e-6)


@pytest.mark.parametrize(
    "rows",
    [
        [[0.5, 0.5]] * 12,
        [0.5] * 12,
        ["fat"] * 12,
        [[0.2, 0.3, 0.5]] * 11 + [[0.5, 0.5]],
        [[0.2, 0.3, 0.5]] * 11 + [None],
        [[0.2, 0.3, 0.5]] * 11 + [[0.5, None, 0.5]],
    ],
)
def test_soft_labels_of_another_kind_are_passed_over(tmp_path, dataset, rows):
    with_soft_labels(dataset, rows).save_to_disk(tmp_path / "saved")
    train = load_tiles(tmp_path / "saved", hold_out_validation=False).split("train")
    assert train.soft_labels is None
    np.testing.assert_array_equal(train.images, dataset[1])


@pytest.mark.parametrize(
    ("row", "found"),
    [
        ([0.7, 0.5, -0.2], "numbers from -0.2 with the sum 1"),
        ([0.2, 0.3, 0.6], "numbers from 0.2 with the sum 1.1"),
        ([3.0, 0.0, -4.0], "numbers from -4 with the sum -1"),
    ],
)
def test_soft_labels_that_are_no_probabilities_are_refused(tmp_path, dataset, row, found):
    with_soft_labels(dataset, [[0.2, 0.3, 0.5]] * 7 + [row] + [[0.2, 0.3, 0.4996]] * 4).save_to_disk(tmp_path)
    assert refused(tmp_path) == (
        f"{tmp_path}, split train holds in column soft_label, row 7, {found}: a row must be probabilities, at least 0 "
        "and with the sum 1; save them so, or leave the column out"
    )


def test_saved_single_dataset_counts_as_train(tmp_path, dataset):
    data, images, _ = dataset
    data.save_to_disk(tmp_path / "saved")
    source = load_tiles(tmp_path / "saved", hold_out_validation=False)
    np.testing.assert_array_equal(source.split("train").images, images)


def test_parquet_folder_leaves_no_copy_of_the_tiles(tmp_path, dataset, monkeypatch):
    from datasets import config

    cache = tmp_path / "cache"
    monkeypatch.setattr(config, "HF_DATASETS_CACHE", cache)
    data, images, labels = dataset
    (tmp_path / "set" / "data").mkdir(parents=True)
    data.to_parquet(tmp_path / "set" / "data" / "train-00000-of-00001.parquet")
    data.select(range(3)).to_parquet(tmp_path / "set" / "data" / "test-00000-of-00001.parquet")
    source = load_tiles(tmp_path / "set", hold_out_validation=False)
    assert source.class_names == ["fat", "gland", "mucus"]
    np.testing.assert_array_equal(source.split("train").images, images)
    np.testing.assert_array_equal(source.split("test").labels, labels[:3])
    assert not list(cache.rglob("*.arrow"))


def test_dataset_without_class_names(tmp_path, dataset):
    from datasets import Value

    dataset[0].cast_column("tissue", Value("int64")).save_to_disk(tmp_path / "saved")
    message = refused(tmp_path / "saved")
    assert "no column of type ClassLabel" in message and "cast_column" in message


def test_dataset_with_two_image_columns(tmp_path, dataset):
    from datasets import concatenate_datasets

    masks = dataset[0].select_columns("tile").rename_column("tile", "mask")
    data = concatenate_datasets([dataset[0], masks], axis=1)
    data.save_to_disk(tmp_path / "saved")
    assert "several columns of type Image" in refused(tmp_path / "saved")
    data.rename_column("tile", "image").save_to_disk(tmp_path / "named")
    np.testing.assert_array_equal(
        load_tiles(tmp_path / "named", hold_out_validation=False).split("train").images, dataset[1]
    )


def test_dataset_with_a_class_without_tiles(tmp_path, dataset):
    dataset[0].filter(lambda label: label != 1, input_columns="tissue").save_to_disk(tmp_path / "saved")
    assert "'gland' (label 1)" in refused(tmp_path / "saved")


def test_dataset_with_hidden_labels(tmp_path, dataset):
    from datasets import DatasetDict

    hidden = dataset[0].map(lambda row: {"tissue": -1})
    DatasetDict({"train": dataset[0], "test": hidden}).save_to_disk(tmp_path / "saved")
    assert "the test split of saved holds the label -1" in refused(tmp_path / "saved")


def test_dataset_row_of_another_mode_is_named(tmp_path, dataset):
    from datasets import Dataset

    rows = [Image.fromarray(i) for i in dataset[1]]
    rows[4] = rows[4].convert("L")
    data = Dataset.from_dict({"tile": rows, "tissue": dataset[2]}, features=dataset[0].features)
    data.save_to_disk(tmp_path / "saved")
    message = refused(tmp_path / "saved")
    assert "row 4 is grey" in message


def test_damaged_dataset_folder(tmp_path):
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "train.parquet").write_bytes(b"PAR1 cut short")
    assert "train.parquet cannot be read as a Parquet file (" in refused(tmp_path / "set")


def test_hub_dataset(monkeypatch, dataset):
    import datasets

    asked = []

    def load_dataset(name, config, revision, cache_dir):
        asked.append((name, cache_dir))
        return datasets.DatasetDict({"train": dataset[0], "validation": dataset[0].select(range(3))})

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    source = load_tiles("someone/tiles", download_dir=Path("kept"))
    assert asked == [("someone/tiles", "kept")]
    assert source.name == "someone/tiles" and source.class_names == ["fat", "gland", "mucus"]


def test_hub_dataset_out_of_reach(monkeypatch):
    import datasets

    def load_dataset(name, config, revision, cache_dir):
        raise ConnectionError("Couldn't reach\nthe Hub.")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    message = refused("someone/tiles")
    assert "someone/tiles is no local folder and cannot be loaded from the Hub (Couldn't reach the Hub)" in message


# --- what goes with the tiles ---


def test_fingerprint_follows_every_input():
    images, labels = tiles(4)

    def source(images=images, labels=labels, names=("a", "b"), split="train"):
        return TileSource("x", list(names), {split: Tiles(images, labels)}, 10).fingerprint()

    changed = images.copy()
    changed[3, 9, 9, 2] ^= 1
    prints = {source(), source(changed), source(labels=labels[::-1].copy()), source(names=("a", "c"))}
    prints.add(source(split="test"))
    assert len(prints) == 5
    assert source(images.copy()) == source() and len(source()) == 64


def test_tiles_are_checked():
    images, labels = tiles(4)
    with pytest.raises(InputError, match="uint8"):
        Tiles(images.astype(np.float32), labels)
    with pytest.raises(InputError, match="uint8 N x H x W x 3"):
        Tiles(images[..., 0], labels)
    with pytest.raises(InputError, match="one for each of 4 images"):
        Tiles(images, labels[:3])
    for soft_labels, found in ((np.ones((3, 2)), "float64 of shape 3x2"), (np.ones(4), "float64 of shape 4")):
        with pytest.raises(InputError, match=f"soft labels are {found}: there must be one row for each of 4 images"):
            Tiles(images, labels, soft_labels)


def test_subset_keeps_the_order_asked_for():
    images, labels = tiles(6, classes=3)
    part = Tiles(images, labels).subset([4, 0])
    np.testing.assert_array_equal(part.images, images[[4, 0]])
    assert part.labels.tolist() == [1, 0] and len(part) == 2 and part.soft_labels is None
    soft_labels = np.arange(12.0).reshape(6, 2)
    part = Tiles(images, labels, soft_labels).subset([4, 0])
    assert part.soft_labels.dtype == np.float32 and part.soft_labels.tolist() == [[8, 9], [0, 1]]


def test_sample_per_class():
    labels = np.array([0, 1, 2] * 20)
    chosen = sample_per_class(labels, 5, seed=3)
    assert np.bincount(labels[chosen]).tolist() == [5, 5, 5]
    assert (np.diff(chosen) > 0).all()
    np.testing.assert_array_equal(chosen, sample_per_class(labels.tolist(), 5, seed=3))
    assert not np.array_equal(chosen, sample_per_class(labels, 5, seed=4))
    assert set(chosen) < set(sample_per_class(labels, 9, seed=3))


def test_sample_as_many():
    labels, others = np.repeat([0, 1, 2], [6, 2, 4]), np.repeat([0, 1, 2], 3)
    drawn = sample_as_many(labels, others, 0)
    # Of the second class there are but two.
    assert np.bincount(labels[drawn]).tolist() == [3, 2, 3]
    assert np.all(np.diff(drawn) > 0)
    assert np.array_equal(sample_as_many(labels, others, 0), drawn)
    assert any(not np.array_equal(sample_as_many(labels, others, seed), drawn) for seed in range(1, 5))
    # Where there are enough, those that are drawn of each class otherwise.
    labels, others = np.repeat([0, 1], [6, 4]), np.repeat([0, 1], 3)
    np.testing.assert_array_equal(sample_as_many(labels, others, 3), sample_per_class(labels, 3, 3))


def test_sample_per_class_refuses_too_many():
    with pytest.raises(InputError, match="n_per_class=3 is too many: class 1 has only 2 tiles"):
        sample_per_class([0, 0, 0, 1, 1], 3, seed=0)
    with pytest.raises(InputError, match="n_per_class=0 is out of range"):
        sample_per_class([0, 1], 0, seed=0)
    with pytest.raises(InputError, match="seed=-1 is out of range"):
        sample_per_class([0, 1], 1, seed=-1)


@pytest.mark.parametrize("kind", ["array", "read-only", "tensor"])
def test_model_input_and_back(kind):
    images = np.arange(256, dtype=np.uint8)[:, None, None, None] + np.zeros((1, 2, 3, 3), dtype=np.uint8)
    given = images.copy()
    given.flags.writeable = kind != "read-only"
    pixels = to_model_input(torch.from_numpy(given) if kind == "tensor" else given)
    assert pixels.shape == (256, 3, 2, 3) and pixels.dtype == torch.float32 and pixels.is_contiguous()
    assert pixels.min() == -1 and pixels.max() == 1
    np.testing.assert_array_equal(to_uint8(pixels), images)
    np.testing.assert_array_equal(to_uint8(pixels.numpy()), images)


def test_model_input_puts_channels_first():
    images = np.zeros((1, 2, 2, 3), dtype=np.uint8)
    images[..., 1] = 255
    assert to_model_input(images)[0, :, 0, 0].tolist() == [-1, 1, -1]


def test_to_uint8_rounds_and_clips():
    pixels = torch.tensor([-1.7, 0.0, 1.2])[:, None, None, None].expand(3, 3, 8, 8)
    assert to_uint8(pixels)[:, 0, 0, 0].tolist() == [0, 128, 255]
    np.testing.assert_array_equal(to_uint8(pixels.bfloat16()), to_uint8(pixels))


def test_conversions_refuse_other_input():
    with pytest.raises(InputError, match="uint8"):
        to_model_input(np.zeros((1, 8, 8, 3), dtype=np.float32))
    with pytest.raises(InputError, match="float N x 3 x H x W"):
        to_uint8(np.zeros((1, 8, 8, 3), dtype=np.float32))
    with pytest.raises(InputError, match="NaN"):
        to_uint8(torch.full((1, 3, 8, 8), float("nan")))


# --- real tiles, where they are at hand ---


def test_real_npz_in_medmnist_layout():
    source = load_tiles(real_data("pathmnist_1k.npz"))
    assert source.class_names == [f"class {i}" for i in range(9)]
    assert {name: len(split) for name, split in source.splits.items()} == {
        "train": 850,
        "validation": 150,
        "test": 359,
    }


def test_real_parquet_folder(tmp_path):
    # Only the smallest split is loaded: decoding all of them takes long.
    part = next(real_data("crc5_64").glob("validation-*.parquet"))
    (tmp_path / "crc5").mkdir()
    (tmp_path / "crc5" / "train-00000-of-00001.parquet").symlink_to(part)
    source = load_tiles(tmp_path / "crc5", image_size=28, hold_out_validation=False)
    assert source.class_names[1] == "healthy mucosa" and source.split("train").images.shape == (1289, 28, 28, 3)
    reference = load_tiles(real_data("crc5_28.npz")).split("validation")
    np.testing.assert_array_equal(source.split("train").labels, reference.labels)
    # The 28-pixel tiles were made from the originals, so they are near to these and not equal.
    assert np.abs(source.split("train").images[:].astype(int) - reference.images[:]).mean() < 4


# Tiles that no model sees.


def test_part_held_out_for_the_audit(tmp_path):
    rng = np.random.default_rng(0)
    arrays = {"train_images": rng.integers(256, size=(50, 8, 8, 3), dtype=np.uint8)}
    arrays |= {"train_labels": np.array([0] * 30 + [1] * 20), "val_images": arrays["train_images"][:4]}
    np.savez(tmp_path / "tiles.npz", **arrays, val_labels=np.array([0, 0, 1, 1]))
    whole = load_tiles(tmp_path / "tiles.npz", hold_out_validation=False)
    parted = load_tiles(tmp_path / "tiles.npz", hold_out_validation=False, audit_share=0.2)
    train, held_out = parted.split("train"), parted.split("held_out")
    assert np.bincount(train.labels).tolist() == [24, 16] and np.bincount(held_out.labels).tolist() == [6, 4]
    both = np.concatenate([train.images, held_out.images]).reshape(50, -1)
    assert np.array_equal(np.unique(both, axis=0), np.unique(arrays["train_images"].reshape(50, -1), axis=0))
    # At random, but the same every time; and the fingerprint tells it.
    assert not np.array_equal(train.images[:24], arrays["train_images"][:24])
    again = load_tiles(tmp_path / "tiles.npz", hold_out_validation=False, audit_share=0.2)
    assert np.array_equal(again.split("held_out").images, held_out.images)
    assert again.fingerprint() == parted.fingerprint() != whole.fingerprint()
    same = load_tiles(tmp_path / "tiles.npz", hold_out_validation=False, audit_share=0)
    assert same.fingerprint() == whole.fingerprint()
    with pytest.raises(InputError, match="audit_share=1 is out of range: it must be at least 0 and below 1"):
        load_tiles(tmp_path / "tiles.npz", audit_share=1)


def test_single_tiles_are_not_held_out(tmp_path):
    arrays = {"train_images": np.zeros((2, 8, 8, 3), np.uint8), "train_labels": np.array([0, 1])}
    np.savez(tmp_path / "tiles.npz", **arrays, val_images=arrays["train_images"], val_labels=arrays["train_labels"])
    with pytest.raises(InputError, match="tiles has one training tile per class"):
        load_tiles(tmp_path / "tiles.npz", audit_share=0.5)
