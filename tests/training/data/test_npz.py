"""The layout of `.npz` files: splits, arrays that are refused, and files that are no honest archives."""

from __future__ import annotations

import io
import re
import zipfile

import numpy as np
import pytest
from small_sources import arrays, packed, refused

from histodistill.training.data.sources import list_tiles, load_tiles
from histodistill.training.running.errors import InputError


def sizes(source) -> dict[str, int]:
    return {name: len(tiles) for name, tiles in source.splits.items()}


def test_class_names(tmp_path):
    np.savez(tmp_path / "mine.npz", **arrays(classes=3))
    assert load_tiles(tmp_path / "mine.npz").class_names == ["class 0", "class 1", "class 2"]
    np.savez(tmp_path / "named.npz", class_names=np.array(["a", "b", "c"]), **arrays(classes=3))
    assert load_tiles(tmp_path / "named.npz").class_names == ["a", "b", "c"]


def test_splits_may_be_missing(tmp_path):
    content = {key: value for key, value in arrays(classes=2, per_class=10).items() if key.startswith("train")}
    np.savez(tmp_path / "mine.npz", **content)
    source = load_tiles(tmp_path / "mine.npz")
    assert {name: len(tiles) for name, tiles in source.splits.items()} == {
        "train": 16,
        "validation": 2,
        "test": 2,
    }


@pytest.mark.parametrize(
    "names",
    [
        ["p1", "p2", "p1", "p3"],
        np.array([["p1"], ["p2"], ["p1"], ["p3"]]),
        np.array([b"p1", b"p2", b"p1", b"p3"]),
        np.array([7, 8, 7, 9], dtype=np.uint16),
        np.array([[7], [8], [7], [-9]]),
    ],
)
def test_groups_and_sites(tmp_path, capsys, names):
    content = arrays(8) | {"Training_groups": np.array(names), "val_sites": np.array(["x", "y", "x", "y"])}
    np.savez(tmp_path / "mine.npz", **content)
    source = load_tiles(tmp_path / "mine.npz", group_kind="patient")
    expected = [name.decode() if isinstance(name, bytes) else str(name) for name in np.array(names).ravel().tolist()]
    assert source.split("train").groups.tolist() == expected and source.group_kind == "patient"
    assert source.split("test").groups is None and source.split("train").attributes == {}
    assert source.split("validation").attributes["site"].tolist() == ["x", "y", "x", "y"]
    assert "not used" not in capsys.readouterr().err
    listing = list_tiles(tmp_path / "mine.npz", group_kind="patient")
    assert listing.splits["train"].groups.tolist() == expected and listing.group_kind == "patient"


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"train_groups": np.array(["a", "b", "c"])}, "train_groups in {path} has 3 names for 4 images"),
        ({"train_groups": np.array(["a", "b", " ", "c"])}, "train_groups in {path}, row 2 has no group"),
        (
            {"val_sites": np.array(["a", "b", "c", "c" * 201])},
            "val_sites in {path}, row 3 has a site of more than 200",
        ),
        ({"train_groups": np.ones(4)}, "float64 of shape 4: it must be text or whole numbers of shape N or N x 1"),
        ({"train_groups": np.ones((4, 2), int)}, "int64 of shape 4x2: it must be text"),
        (
            {"train_groups": np.array([b"a", b"\xff", b"c", b"d"])},
            "train_groups in {path} holds bytes that are no UTF-8",
        ),
        ({"train_groups": np.array(["a", 1, None, "b"], dtype=object)}, "Python objects in train_groups.npy"),
        ({"train_groups": np.arange(4), "training_groups": np.arange(4)}, "has both train_groups and training_groups"),
        ({"train_groups": np.arange(4), "val_groups": np.arange(4)}, "4 groups are in both train and validation"),
    ],
)
def test_groups_that_are_refused(tmp_path, change, expected):
    path = tmp_path / "mine.npz"
    np.savez(path, **arrays(8) | change)
    assert expected.format(path=path) in refused(path)


def test_groups_of_no_split_are_told(tmp_path, capsys):
    content = arrays(8) | {"slide_groups": np.array(["a", None], dtype=object)}
    np.savez(tmp_path / "mine.npz", **content)
    assert load_tiles(tmp_path / "mine.npz").group_kind is None
    assert "1 array is not used (slide_groups)" in capsys.readouterr().err
    content = {key: value for key, value in arrays(8).items() if not key.startswith("val")}
    np.savez(tmp_path / "mine.npz", **content, val_groups=np.arange(4))
    assert "has an array 'val_groups' and no validation split" in refused(tmp_path / "mine.npz")


@pytest.mark.parametrize("option", [{"group_column": "patient"}, {"group_pattern": "(?P<group>.)"}])
def test_arrays_have_no_columns_and_no_paths(tmp_path, option):
    np.savez(tmp_path / "mine.npz", **arrays(8))
    message = refused(tmp_path / "mine.npz", **option)
    assert "as arrays train_groups, val_groups and test_groups" in message and next(iter(option)) in message


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"train_images": None}, "no array 'train_images'"),
        ({"val_labels": None}, "no array 'val_labels'"),
        ({"train_images": np.zeros((4, 28, 28), np.uint8)}, "uint8 of shape 4x28x28: images must be uint8"),
        ({"train_images": np.zeros((4, 28, 28, 4), np.uint8)}, "RGB"),
        ({"train_images": np.zeros((4, 28, 28, 3), np.float32)}, "float32"),
        ({"train_images": np.zeros((4, 0, 0, 3), np.uint8)}, "must be uint8 N x H x W x 3"),
        (
            {"train_images": np.zeros((4, 28, 20, 3), np.uint8)},
            "mine.npz is 20x28: give image_size",
        ),
        ({"train_images": np.zeros((4, 32, 32, 3), np.uint8)}, "give image_size"),
        ({"train_labels": np.array([0, 1, 0])}, "3 labels for 4 images"),
        ({"train_labels": np.array([0, 1, 0, 5])}, "labels up to 5 but no training tile of class 2"),
        ({"train_labels": np.array([0, 1, 0, 2**62])}, "labels up to 4611686018427387904"),
        ({"train_labels": np.array([1, 1, 2, 2])}, "no training tile of class 0"),
        ({"train_labels": np.array([0, 0, 0, 0])}, "only one class"),
        ({"train_labels": np.array([0, -1, 0, 1])}, "holds -1"),
        ({"train_labels": np.array([0.0, 1.0, 0.0, 1.0])}, "whole numbers"),
        ({"train_labels": np.array([True, False, True, False])}, "whole numbers"),
        ({"train_labels": np.zeros((4, 14), np.uint8)}, "one label, not several"),
        ({"test_labels": np.array([0, 1, 2, 0])}, "test split of mine holds the label 2"),
        ({"test_images": np.zeros((0, 28, 28, 3), np.uint8), "test_labels": np.zeros(0, int)}, "is empty"),
        ({"train_labels": np.array([0, 1, 0, "b"], dtype=object)}, "Python objects"),
        ({"class_names": np.array(["a", "b", "c"])}, "class 'c' (label 2) of mine has no training tile"),
        ({"class_names": np.array(["a", "a"])}, "names two classes alike"),
        ({"class_names": np.array([1, 2])}, "it must be text"),
        ({"class_names": np.array([b"a", b"b"])}, "save it as numpy.array(names, dtype=str)"),
        ({"class_names": np.array(["a", "b"], dtype=object)}, "save names as numpy.array(names, dtype=str)"),
        ({"class_names": np.array({"0": "a", "1": "b"}, dtype=object)}, "Python objects in class_names.npy"),
    ],
)
def test_bad_arrays(tmp_path, change, expected):
    content = {key: value for key, value in (arrays(classes=2) | change).items() if value is not None}
    np.savez(tmp_path / "mine.npz", **content)
    assert expected in refused(tmp_path / "mine.npz")


@pytest.mark.parametrize("damage", ["empty", "text", "cut", "flipped", "bare array"])
def test_damaged_file(tmp_path, damage):
    good = packed(arrays(classes=2))
    middle = len(good) // 2
    array = io.BytesIO()
    np.save(array, np.zeros(3))
    content = {
        "empty": b"",
        "text": b"<html>not found</html>",
        "cut": good[:middle],
        "flipped": good[:200] + bytes(b ^ 255 for b in good[200:400]) + good[400:],
        "bare array": array.getvalue(),
    }[damage]
    (tmp_path / "mine.npz").write_bytes(content)
    message = refused(tmp_path / "mine.npz")
    assert str(tmp_path / "mine.npz") in message and ("damaged" in message or "single array" in message)


@pytest.mark.parametrize("count", [10**12, 10**30, 3, 5])
def test_header_that_claims_another_size_than_is_there(tmp_path, count):
    content = arrays(classes=2)
    header = io.BytesIO()
    kind = {"descr": "|u1", "fortran_order": False, "shape": (count, 28, 28, 3)}
    np.lib.format.write_array_header_1_0(header, kind)
    del content["train_images"]
    np.savez(tmp_path / "mine.npz", **content)
    with zipfile.ZipFile(tmp_path / "mine.npz", "a") as archive:
        archive.writestr("train_images.npy", header.getvalue())
    message = refused(tmp_path / "mine.npz")
    expected = f"{tmp_path / 'mine.npz'} cannot be read as a .npz file (train_images.npy claims "
    assert message.startswith(expected) and "and holds 0 B" in message


def test_encrypted_archive(tmp_path):
    content = bytearray(packed(arrays(classes=2)))
    # The first bit of the flags says so, in the header of each entry and in the table of contents.
    for signature, flags in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        for found in re.finditer(re.escape(signature), bytes(content)):
            content[found.start() + flags] |= 1
    (tmp_path / "mine.npz").write_bytes(content)
    assert "is encrypted, password required for extraction): " in refused(tmp_path / "mine.npz")


# --- what splits are called ---


@pytest.mark.parametrize("prefix", ["valid", "validation", "Val", "VAL", "dev", "Validation", "DEV"])
def test_validation_may_be_called_in_many_ways(tmp_path, prefix):
    content = {key.replace("val_", f"{prefix}_"): value for key, value in arrays(per_class=3).items()}
    np.savez(tmp_path / "mine.npz", **content)
    source = load_tiles(tmp_path / "mine.npz")
    assert sizes(source) == {"train": 6, "validation": 6, "test": 6}
    np.testing.assert_array_equal(source.split("validation").images, content[f"{prefix}_images"])


def test_train_and_test_in_any_case_of_letters(tmp_path):
    np.savez(tmp_path / "mine.npz", **{key.upper(): value for key, value in arrays().items()})
    assert sizes(load_tiles(tmp_path / "mine.npz")) == {"train": 4, "validation": 4, "test": 4}


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        (("valid_images", "valid_labels"), "both val_images and valid_images"),
        (("Val_images", "Val_labels"), "both val_images and Val_images"),
        (("training_labels",), "both train_labels and training_labels"),
        (("holdout_images", "holdout_labels"), "an array 'holdout_images' of no known split"),
        (("extra_images",), "an array 'extra_images' of no known split"),
        (("eval_labels",), "an array 'eval_labels' of no known split"),
        (("unsupervised_images",), "an array 'unsupervised_images' of no known split"),
    ],
)
def test_arrays_that_may_be_a_split_are_not_passed_over(tmp_path, keys, expected):
    content = arrays()
    content |= {key: content["val_images" if key.endswith("images") else "val_labels"] for key in keys}
    np.savez(tmp_path / "mine.npz", **content)
    assert expected in refused(tmp_path / "mine.npz")


@pytest.mark.parametrize("key", ["x_val", "images_val", "VALID", "dev.x"])
def test_a_split_in_another_layout_is_not_passed_over(tmp_path, key):
    content = arrays()
    content[key] = content.pop("val_images")
    del content["val_labels"]
    np.savez(tmp_path / "mine.npz", **content)
    assert f"an array {key!r} and no validation split" in refused(tmp_path / "mine.npz")


def test_one_split_has_one_name(tmp_path):
    content = arrays()
    content["valid_labels"] = content.pop("val_labels")
    np.savez(tmp_path / "mine.npz", **content)
    assert "has val_images and valid_labels: give the validation split one name" in refused(tmp_path / "mine.npz")


def test_other_arrays_are_told(tmp_path, capsys):
    np.savez(tmp_path / "mine.npz", train_labels2=np.zeros(4), mean=np.zeros(3), who=np.array([None]), **arrays())
    load_tiles(tmp_path / "mine.npz")
    line = f"{tmp_path / 'mine.npz'}: 3 arrays are not used (train_labels2, mean, who)"
    assert line in capsys.readouterr().err.splitlines()


# --- archives that are not what they seem ---


def npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


@pytest.mark.parametrize("name", ["../train_images.npy", "/train_images.npy", "a/x.npy", "..\\x.npy", "note.txt"])
def test_members_that_are_no_plain_arrays(tmp_path, name):
    np.savez(tmp_path / "mine.npz", **arrays())
    with zipfile.ZipFile(tmp_path / "mine.npz", "a") as archive:
        archive.writestr(name, npy(np.zeros(3)))
    message = refused(tmp_path / "mine.npz")
    assert f"holds {name}, which is no array" in message.replace("\\\\", "\\")
    assert [file.name for file in tmp_path.iterdir()] == ["mine.npz"]


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("name", ["train_images.npy", "val_labels.npy", "class_names.npy"])
def test_two_members_of_one_name(tmp_path, name):
    np.savez(tmp_path / "mine.npz", class_names=np.array(["a", "b"]), **arrays())
    with zipfile.ZipFile(tmp_path / "mine.npz", "a") as archive:
        archive.writestr(name, npy(np.zeros(3)))
    assert f"holds two files called {name}" in refused(tmp_path / "mine.npz")


@pytest.mark.parametrize("key", ["train_images", "test_labels", "class_names"])
def test_what_unpacks_to_very_much_is_refused_before(tmp_path, key, monkeypatch):
    from histodistill.training.data import limits

    monkeypatch.setattr(limits, "_HARMLESS", 2**16)
    monkeypatch.setattr(np.lib.format, "read_array", lambda *_, **__: pytest.fail("unpacked"))
    bomb = {"train_images": np.zeros((4000, 28, 28, 3), np.uint8), "test_labels": np.zeros(10**7, np.uint8)}
    bomb["class_names"] = np.zeros(10**6, "U4")
    (tmp_path / "mine.npz").write_bytes(packed(arrays(size=8) | {key: bomb[key]}))
    message = refused(tmp_path / "mine.npz")
    assert "a file may grow 200 times" in message and "HISTODISTILL_MAX_GROWTH" in message


@pytest.mark.parametrize("change", [np.asfortranarray, lambda a: a.astype(">i8"), lambda a: a.astype("<u2")])
def test_the_order_of_bytes_does_not_matter(tmp_path, change):
    content = arrays()
    np.savez(tmp_path / "mine.npz", **content)
    expected = load_tiles(tmp_path / "mine.npz").fingerprint()
    changed = {key: change(value) if "labels" in key else np.asfortranarray(value) for key, value in content.items()}
    np.savez(tmp_path / "mine.npz", **changed)
    source = load_tiles(tmp_path / "mine.npz")
    assert source.fingerprint() == expected


@pytest.mark.parametrize("kind", ["f4", ">u2", "?", "c8", "S3", [("r", "u1"), ("g", "u1")]])
def test_images_of_another_kind(tmp_path, kind):
    np.savez(tmp_path / "mine.npz", **(arrays() | {"train_images": np.zeros((4, 8, 8, 3), kind)}))
    assert "images must be uint8" in refused(tmp_path / "mine.npz")


def test_a_header_that_does_not_end_is_told_of(tmp_path):
    header = b"{'descr': '|u1', 'shape': (1, 8, 8, 3),".ljust(118)
    data = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header
    with zipfile.ZipFile(tmp_path / "t.npz", "w") as archive:
        archive.writestr("train_images.npy", data)
    with pytest.raises(InputError, match=r"cannot be read as a \.npz file \("):
        load_tiles(tmp_path / "t.npz")
