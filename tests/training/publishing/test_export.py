"""`histodistill export`: other layouts of a set, which load again with the same pixels and classes."""

from __future__ import annotations

import numpy as np
import pytest
from datasets import load_dataset

from histodistill.training.data.image_dataset import write_image_dataset
from histodistill.training.data.sources import load_tiles
from histodistill.training.publishing import export
from histodistill.training.publishing.export import ExportConfig
from histodistill.training.running.errors import InputError


NAMES = ["stroma", "fat", "smooth muscle"]  # not in the order of the alphabet


@pytest.fixture
def given(tmp_path):
    """A set of nine images, of which a folder and images and labels are given."""
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (9, 16, 16, 3), np.uint8), np.repeat([0, 1, 2], 3)
    write(tmp_path / "set", images, labels)
    return tmp_path / "set", images, labels


def write(folder, images, labels, names=NAMES):
    write_image_dataset(folder / "data", images, {"label": labels, "seed": np.arange(len(labels))}, list(names))


def exported(given, layout, place):
    return export.run(ExportConfig(set=given, format=layout, output=place))


def loaded(place):
    """Images and the names of their classes, as our loader has them."""
    tiles = load_tiles(place, hold_out_validation=False)
    assert set(tiles.splits) == {"train"}
    train = tiles.split("train")
    return np.asarray(train.images), [tiles.class_names[label] for label in train.labels], tiles.class_names


def in_order(images, names):
    """Images with their classes, in an order that does not depend on that of a folder."""
    return sorted((name, image.tobytes()) for name, image in zip(names, images, strict=True))


def test_a_file_in_the_layout_of_medmnist(given, tmp_path, capsys):
    folder, images, labels = given
    place = exported(folder, "medmnist", tmp_path / "there" / "set.npz")
    assert "9 images saved to" in (printed := capsys.readouterr().out) and "left out: seed\n" in printed
    with np.load(place, allow_pickle=False) as arrays:
        assert sorted(arrays) == ["class_names", "train_images", "train_labels"]
        assert (arrays["train_labels"].dtype, arrays["train_labels"].shape) == (np.uint8, (9, 1))
        np.testing.assert_array_equal(arrays["train_images"], images)
    found, names, class_names = loaded(place)
    np.testing.assert_array_equal(found, images)
    assert (names, class_names) == ([NAMES[label] for label in labels], NAMES)


def test_a_folder_of_pictures(given, tmp_path, capsys):
    folder, images, labels = given
    place = exported(folder, "folder", tmp_path / "pictures")
    assert "number classes by their sorted names" in capsys.readouterr().out
    expected = in_order(images, [NAMES[label] for label in labels])
    found, names, class_names = loaded(place)
    assert in_order(found, names) == expected and class_names == sorted(NAMES)
    theirs = load_dataset("imagefolder", data_dir=str(place), split="train")
    called = theirs.features["label"].names
    assert in_order([np.asarray(row["image"]) for row in theirs], [called[row["label"]] for row in theirs]) == expected


@pytest.mark.parametrize(("layout", "name"), [("medmnist", "set.npz"), ("folder", "pictures")])
def test_what_is_there_is_never_replaced(given, tmp_path, layout, name, capsys):
    folder, images, labels = given
    place = exported(folder, layout, tmp_path / name)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    exported(folder, layout, place)
    assert "9 images are already in" in capsys.readouterr().out
    other = tmp_path / "other"
    write(other, 255 - images, labels)
    with pytest.raises(InputError, match=r"holds something else than this set: give another place$"):
        exported(other, layout, place)
    assert {path: path.stat().st_mtime_ns for path in before} == before
    if layout == "folder":
        (place / "more.txt").write_text("x")
        with pytest.raises(InputError, match="holds something else"):
            exported(folder, layout, place)


@pytest.mark.parametrize(("layout", "name"), [("medmnist", "set.npz"), ("folder", "pictures")])
def test_a_place_in_what_is_no_folder_is_refused(given, tmp_path, layout, name):
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match=r"^output=.* lies in .*file, which is no folder: give another place$"):
        exported(given[0], layout, tmp_path / "file" / name)


@pytest.mark.parametrize(
    ("names", "fault"),
    [
        (["fat", "test tissue", "c"], "'test tissue', which would be taken for a split"),
        (["fat", "and/or", "c"], "'and/or', which cannot be the name of a folder"),
        (["fat", "#1", "c"], "'#1', which cannot be the name of a folder"),
        (["fat", "Fat", "c"], "'Fat', which differs from another class in capitals alone"),
    ],
)
def test_classes_that_folders_cannot_be_called_are_refused(given, tmp_path, names, fault):
    _, images, labels = given
    write(tmp_path / "other", images, labels, names)
    with pytest.raises(InputError, match=f"^format=folder does not go with the class {fault}.*: give format=medm"):
        exported(tmp_path / "other", "folder", tmp_path / "pictures")
    assert not (tmp_path / "pictures").exists()
    exported(tmp_path / "other", "medmnist", tmp_path / "set.npz")


def test_a_file_must_be_named_as_one(given, tmp_path):
    with pytest.raises(InputError, match=r"is no \.npz file: give it that ending$"):
        ExportConfig(set=given[0], format="medmnist", output=tmp_path / "set")
