"""Folders of images: what is taken, and how what is not taken is told or refused."""

from __future__ import annotations

import os
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from small_sources import TWO_CLASSES, image_folder, refused, tiles

from histodistill.training.data.folder_walk import IMAGE_SUFFIXES
from histodistill.training.data.sources import check_source, list_tiles, load_tiles
from histodistill.training.running.errors import InputError


def test_image_folder(tmp_path):
    source = load_tiles(str(image_folder(tmp_path / "slides", TWO_CLASSES)))
    assert (source.name, source.class_names, source.image_size) == ("slides", ["fat", "gland"], 10)
    assert {name: len(split) for name, split in source.splits.items()} == {"train": 8, "validation": 3, "test": 3}
    train = source.split("train")
    assert train.images.dtype == np.uint8 and train.labels.dtype == np.int64
    assert train.labels.tolist() == [0] * 4 + [1] * 4
    assert train.images[:, 0, 0, 0].tolist() == [0, 1, 2, 3] * 2


@pytest.mark.parametrize("alias", ["validation", "val", "valid", "dev"])
def test_validation_folder_may_have_several_names(tmp_path, alias):
    counts = {"train/a": 2, "train/b": 2, f"{alias}/a": 1}
    assert len(load_tiles(image_folder(tmp_path, counts)).split("validation")) == 1


@pytest.mark.parametrize("suffix", ["jpg", "JPEG", "tif", "tiff", "bmp", "webp"])
def test_image_formats(tmp_path, suffix):
    source = load_tiles(image_folder(tmp_path, {"train/a": 2, "train/b": 2}, suffix=suffix))
    assert len(source.split("train")) + len(source.split("validation")) == 4


def test_missing_validation_and_test_are_the_last_tenths_of_each_class(tmp_path):
    folder = image_folder(tmp_path, {"train/a": 20, "train/b": 5})
    source = load_tiles(folder)
    assert source.split("validation").labels.tolist() == [0, 0, 1]
    assert source.split("validation").images[:, 0, 0, 0].tolist() == [18, 19, 4]
    assert source.split("test").images[:, 0, 0, 0].tolist() == [16, 17, 3]
    assert source.split("train").images[:, 0, 0, 0].tolist() == [*range(16), *range(3)]
    assert source.made == ("validation", "test")
    whole = load_tiles(folder, hold_out_validation=False)
    assert list(whole.splits) == ["train"] and len(whole.split("train")) == 25


def test_missing_test_split_is_an_error_only_when_asked_for(tmp_path):
    source = load_tiles(image_folder(tmp_path, {"train/a": 2, "train/b": 3}))  # too few to make one
    with pytest.raises(InputError, match="no 'test' split: it has train, validation"):
        source.split("test")


def test_odd_sizes_shorter_side_then_centre(tmp_path):
    folder = image_folder(tmp_path, {"train/a": 3, "train/b": 3}, size=16)
    wide = np.zeros((20, 40, 3), dtype=np.uint8)
    wide[:, 10:30] = 200  # the centre square is all that should be left
    Image.fromarray(wide).save(folder / "train" / "a" / "tile_000.png")
    source = load_tiles(folder, image_size=8, hold_out_validation=False)
    assert source.image_size == 8
    assert source.split("train").images.shape == (6, 8, 8, 3)
    assert source.split("train").images[0].min() > 150


@pytest.mark.parametrize("size", [9, 24])
def test_resizing_agrees_between_npz_and_folder(tmp_path, size):
    images, labels = tiles(4, size=16)
    np.savez(tmp_path / "set.npz", train_images=images, train_labels=labels)
    for i, image in enumerate(images):
        folder = tmp_path / "folder" / "train" / str(labels[i])
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / f"{i}.png")
    from_npz = load_tiles(tmp_path / "set.npz", image_size=size, hold_out_validation=False).split("train")
    from_folder = load_tiles(tmp_path / "folder", image_size=size, hold_out_validation=False).split("train")
    order = np.argsort(labels, kind="stable")
    np.testing.assert_array_equal(from_npz.images[order], from_folder.images)


def test_mixed_sizes_are_refused_unless_a_size_is_given(tmp_path):
    folder = image_folder(tmp_path, {"train/a": 3, "train/b": 3})
    odd = folder / "train" / "b" / "tile_001.png"
    Image.new("RGB", (12, 10)).save(odd)
    message = refused(folder)
    assert str(odd) in message and "12x10" in message and "image_size" in message
    assert load_tiles(folder, image_size=10).image_size == 10


@pytest.mark.parametrize(("mode", "fault"), [("L", "is grey"), ("1", "is grey"), ("RGBA", "is transparent")])
def test_other_modes_are_refused(tmp_path, mode, fault):
    folder = image_folder(tmp_path, {"train/a": 3, "train/b": 3})
    odd = folder / "train" / "b" / "tile_001.png"
    Image.new(mode, (10, 10)).save(odd)
    assert f"{odd} {fault}" in refused(folder, image_size=8)


@pytest.mark.parametrize("content", [b"not an image", None])
def test_damaged_image_is_named(tmp_path, content):
    folder = image_folder(tmp_path, {"train/a": 3, "train/b": 3}, size=64)
    bad = folder / "train" / "b" / "tile_001.png"
    bad.write_bytes(bad.read_bytes()[:60] if content is None else content)
    assert f"{bad} cannot be read" in refused(folder)


def test_hidden_files_are_passed_over(tmp_path):
    folder = image_folder(tmp_path, {"train/a": 3, "train/b": 3})
    (folder / "train" / "a" / "._tile_000.png").write_bytes(b"junk")
    for name in (".cache", "__MACOSX", "__pycache__"):
        (folder / "train" / name).mkdir()
        (folder / name).mkdir()
    assert load_tiles(folder).class_names == ["a", "b"]


def test_class_may_begin_with_underscores(tmp_path):
    folder = image_folder(tmp_path, {"train/__background__": 3, "train/a": 3})
    assert load_tiles(folder).class_names == ["__background__", "a"]


@pytest.mark.parametrize("names", [("Train", "Val", "Test"), ("TRAIN", "Validation", "TEST")])
def test_split_folders_in_any_case_of_letters(tmp_path, names):
    counts = {f"{name}/{label}": count for name, count in zip(names, (4, 2, 3), strict=True) for label in "ab"}
    source = load_tiles(image_folder(tmp_path, counts))
    assert {name: len(split) for name, split in source.splits.items()} == {"train": 8, "validation": 4, "test": 6}


@pytest.mark.parametrize("name", ["eval", "held_out", "a"])
def test_other_folders_beside_train_are_refused(tmp_path, name):
    folder = image_folder(tmp_path, {**TWO_CLASSES, f"{name}/fat": 1})
    assert refused(folder) == (
        f"{folder / name} is no split: folders beside train must be called validation (or val, valid, dev) or test "
        "(or testing); rename it or move it away"
    )


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        ({}, "is empty"),
        ({"test/a": 2, "test/b": 2}, "has no folder train"),
        ({".": 2}, "has no class folders"),
        ({"train": 2}, "has no class folders"),
        ({"train/a": 2}, "only one class"),
        ({"train/a": 2, "train/b": 0}, "holds no image"),
        ({"train/a": 2, "train/b": 2, "test/c": 1}, "is a class that train does not have"),
        ({"train/a": 2, "train/b": 2, "test/a": 0}, "holds no image"),
        ({"train/a": 2, "train/b": 2, "val/a": 1, "valid/a": 1}, "both val and valid"),
        ({"train/a": 2, "train/b": 2, "Val/a": 1, "valid/a": 1}, "both Val and valid"),
    ],
)
def test_bad_folders(tmp_path, counts, expected):
    assert expected in refused(image_folder(tmp_path, counts))


@pytest.mark.parametrize(("size", "expected"), [((10, 12), "must be square"), ((7, 7), "at least 8")])
def test_bad_shapes(tmp_path, size, expected):
    for name in "ab":
        (tmp_path / "train" / name).mkdir(parents=True)
        for i in range(2):
            Image.new("RGB", size).save(tmp_path / "train" / name / f"{i}.png")
    assert expected in refused(tmp_path)
    assert load_tiles(tmp_path, image_size=8).image_size == 8


def test_folders_of_classes_without_splits_are_train(tmp_path, capsys):
    folder = image_folder(tmp_path / "slides", {"fat": 4, "gland/deep": 3})
    (folder / "notes").mkdir()
    check_source(folder)
    source = load_tiles(folder, hold_out_validation=False)
    assert source.class_names == ["fat", "gland"] and list(source.splits) == ["train"]
    assert source.split("train").labels.tolist() == [0] * 4 + [1] * 3
    assert capsys.readouterr().err.splitlines()[:2] == [
        f"left out of {folder}: 1 folder without images (such as notes)",
        f"{folder} has no folders of splits: its folders are 2 classes",
    ]
    assert load_tiles(folder).made == ("validation", "test")


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        ({"a": 2, "b": 2, ".": 1}, "holds 1 image beside the class folders"),
        ({"one/train/a": 2, "two/b": 2}, "train is called like a split, so that"),
        ({"a": 2, "#b": 2}, "is named as systems name their own"),
    ],
)
def test_folders_that_are_no_classes_are_refused(tmp_path, counts, expected):
    assert expected in refused(image_folder(tmp_path, counts))


@pytest.mark.parametrize("content", [b"", b"version https://git-lfs.github.com/spec/v1\n", b"text"])
def test_what_cannot_be_read_is_left_out_if_asked_for(tmp_path, content):
    folder = image_folder(tmp_path, {"train/a": 4, "train/b": 3})
    (folder / "train" / "a" / "tile_001.png").write_bytes(content)
    source = load_tiles(folder, skip_unreadable=True, max_unreadable=0.2, hold_out_validation=False)
    assert source.split("train").labels.tolist() == [0] * 3 + [1] * 3
    listing = list_tiles(folder, skip_unreadable=True)
    assert listing.sizes == {(10, 10): 6} and listing.count_modes() == {"RGB": 6}
    with pytest.raises(InputError):
        list_tiles(folder)


def test_greys_are_converted_if_asked_for_and_kept_apart_in_the_cache(tmp_path, capsys):
    folder = image_folder(tmp_path, {"train/a": 3, "train/b": 3})
    Image.new("L", (10, 10), 77).save(folder / "train" / "b" / "tile_001.png")
    assert "give convert with grey" in refused(folder)
    source = load_tiles(folder, convert=["grey"], hold_out_validation=False)
    assert source.split("train").images[4][0, 0].tolist() == [77, 77, 77]
    assert "1 picture is converted (such as " in capsys.readouterr().err
    assert "give convert with grey" in refused(folder)
    assert "convert=gray is unknown" in refused(folder, convert=["gray"])


# --- what is there and not taken ---


def varied_folder(root: Path, counts: dict[str, int], seed: int = 0) -> Path:
    """As `image_folder`, of tiles that all differ."""
    rng = np.random.default_rng(seed)
    for folder, count in counts.items():
        (root / folder).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            Image.fromarray(rng.integers(0, 256, (10, 10, 3), dtype=np.uint8)).save(root / folder / f"tile_{i:03}.png")
    return root


@pytest.fixture
def folder(tmp_path) -> Path:
    return varied_folder(tmp_path / "slides", {"train/a": 4, "train/b": 4, "val/a": 2, "val/b": 2})


def told(folder: Path, capsys, **options: object) -> list[str]:
    """What is told of a folder that is loaded."""
    load_tiles(folder, **options)
    captured = capsys.readouterr()
    assert captured.out == ""
    return captured.err.splitlines()


COUNTS = (
    "tiles of slides, 10x10 px: train 6 (a 3, b 3), validation 4 (a 2, b 2), "
    "test 2 (a 1, b 1; a tenth of train, for there is no such split)"
)


def test_a_folder_with_nothing_else_is_told_in_one_line(folder, capsys):
    assert told(folder, capsys) == [COUNTS]


@pytest.mark.parametrize("suffix", IMAGE_SUFFIXES)
def test_every_suffix_of_a_format_that_is_read_is_taken(folder, suffix):
    tile = folder / "train" / "a" / "tile_000.png"
    tile.rename(tile.with_suffix(suffix.upper()))
    (folder / "train" / "a" / "tile_001.png").rename(folder / "train" / "a" / f"x{suffix}")
    train = load_tiles(folder, hold_out_validation=False).split("train")
    assert np.bincount(train.labels).tolist() == [4, 4]


def test_other_files_are_told_with_number_and_example(folder, capsys):
    for name in (
        "README.md",
        "train/labels.csv",
        "train/a/Thumbs.db",
        "val/b/notes.csv",
        "val/b/LICENSE",
        "train/.DS_Store",
    ):
        (folder / name).write_text("BM: some text")
    assert told(folder, capsys) == [
        f"left out of {folder}: 6 files that are no images (2 .csv, 2 without suffix, 1 .db, 1 .md, such as "
        "README.md)",
        COUNTS,
    ]


@pytest.mark.parametrize(
    "name",
    ["@eaDir", "#recycle", "@Recycle", ".snapshot", ".ipynb_checkpoints", "__MACOSX", "lost+found", "$RECYCLE.BIN",
     ".@__thumb", "System Volume Information", ".thumbnails", "@Recently-Snapshot"],
)  # fmt: skip
@pytest.mark.parametrize("place", [".", "train", "train/a", "train/a/patient 1"])
def test_folders_of_systems_are_no_tiles_and_no_classes(folder, capsys, name, place):
    (folder / place / name).mkdir(parents=True)
    assert told(folder, capsys) == [COUNTS]
    varied_folder(folder / place / name, {"tile_000.png": 2}, seed=1)
    where = (Path(place) / name).as_posix()
    assert told(folder, capsys) == [
        f"left out of {folder}: 1 hidden or system folder with images (such as {where})",
        COUNTS,
    ]


@pytest.mark.parametrize("name", ["#1", "@home", "$new", "~old"])
@pytest.mark.parametrize("place", ["train", "train/a"])
def test_folders_that_may_be_the_users_or_the_systems_are_refused(folder, name, place):
    varied_folder(folder / place, {name: 2}, seed=1)
    assert f"holds 1 folder of images that is named as systems name their own (such as {folder / place / name})" in (
        refused(folder)
    )


@pytest.mark.parametrize("name", ["[ab]", "a?", "(1)", "-1", "_x", "100%", "ö", "é", "1", "a & b", "!x"])
def test_folders_that_are_the_users(tmp_path, name):
    folder = varied_folder(tmp_path / "[slides]*", {f"train/{name}": 2, "train/zz": 2})
    varied_folder(tmp_path / "s", {f"train/{name}": 4, "train/zz": 4}, seed=1)
    varied_folder(tmp_path / "l", {f"train/{name}": 4, "train/zz": 4}, seed=1)
    (folder / "train" / name / "tile_000.png").rename(folder / "train" / name / "[01]?.png")
    for path in (folder, str(folder)):
        source = load_tiles(path, hold_out_validation=False)
        assert source.class_names == sorted([name, "zz"]) and len(source.split("train")) == 4


def test_hidden_images_are_told(folder, capsys):
    for name in ("._tile_000.png", "._tile_001.png", ".x.JPG"):
        (folder / "train" / "a" / name).write_bytes(b"junk")
    assert told(folder, capsys)[0] == (f"left out of {folder}: 3 hidden images (such as train/a/._tile_000.png)")


def test_images_beside_the_split_folders_are_told(folder, capsys):
    varied_folder(folder, {".": 3})
    line = f"left out of {folder}: 3 images beside the split folders (such as tile_000.png)"
    assert told(folder, capsys) == [line, COUNTS]


@pytest.mark.parametrize("name", ["slide.svs", "logo.svg", "favicon.ico", "overview.gif", "cut short.png"])
def test_pictures_beside_the_split_folders_that_are_not_read_are_told(folder, capsys, name):
    (folder / name).write_bytes(b"")
    line = f"left out of {folder}: 1 image beside the split folders (such as {name})"
    assert told(folder, capsys) == [line, COUNTS]


@pytest.mark.parametrize("name", ["docs/a/readme.TXT", "masks", "notes/.DS_Store", "protocol/stain.pdf"])
def test_folders_without_images_beside_the_splits_are_told(folder, capsys, name):
    path = folder / name
    (path.parent if path.suffix or "." in path.name else path).mkdir(parents=True)
    if path.parent.is_dir() and not path.is_dir():
        path.write_bytes(b"text")
    line = f"left out of {folder}: 1 folder without images (such as {name.split('/')[0]})"
    assert told(folder, capsys) == [line, COUNTS]


@pytest.mark.parametrize("name", ["slide.svs", "tile.png", ".tile.png.icloud", "tiles.npy", "tiles", "a/b/tiles.zip"])
def test_folders_that_may_hold_tiles_beside_the_splits_are_refused(folder, name):
    path = folder / "external" / name
    path.parent.mkdir(parents=True)
    path.write_bytes(b"data")
    assert refused(folder).startswith(f"{folder / 'external'} is no split")


@pytest.mark.parametrize("target", ["file", "folder"])
def test_folders_of_links_beside_the_splits_are_refused(folder, tmp_path, target):
    (tmp_path / "else").mkdir() if target == "folder" else (tmp_path / "else").touch()
    (folder / "external").mkdir()
    (folder / "external" / "notes.txt").symlink_to(tmp_path / "else")
    assert refused(folder).startswith(f"{folder / 'external'} is no split")


@pytest.mark.parametrize("name", ["test.zip", "TESTING.tar.gz", "test", "test - Shortcut.lnk", "crc_test.7z"])
def test_a_split_that_is_not_unpacked_is_refused(folder, name):
    (folder / name).write_bytes(b"PK\3\4")
    assert refused(folder).startswith(f"{folder / name} seems to be the test split, which has no folder: unpack")


@pytest.mark.parametrize("name", ["val.zip", "train.tar.gz", "test_labels.csv", "best_test.pth", "latest.zip"])
def test_other_files_beside_the_split_folders_are_told(folder, capsys, name):
    (folder / name).write_bytes(b"PK\3\4")
    assert told(folder, capsys)[0].startswith(f"left out of {folder}: 1 file that is no image")


def test_images_beside_the_class_folders_are_refused(folder):
    varied_folder(folder, {"val": 3})
    assert refused(folder) == (
        f"{folder} holds 3 images beside the class folders (such as {folder / 'val' / 'tile_000.png'}): move them "
        "into the folder of their class, or away"
    )


# --- images that cannot be used ---


@pytest.mark.parametrize("target", ["../../../.git/annex/objects/x/y.png", "/no/such/file.png", "tile_000_link.png"])
@pytest.mark.parametrize("name", ["tile_000_link.png", "b", "notes"])
def test_links_without_a_target_are_refused(folder, target, name):
    for i in range(3):
        (folder / "train" / "a" / f"{i}{name}").symlink_to(target)
    message = refused(folder)
    assert f"holds 3 links without a target (such as {folder / 'train' / 'a' / f'0{name}'})" in message


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("x.tif", b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n"),
        ("x.png", b"/annex/objects/SHA256E-s100--00.png\n"),
        ("x.png.dvc", b"outs:\n- md5: 00\n  path: x.png\n"),
        ("../gland.dvc", b"outs:\n- md5: 00\n  path: gland\n"),
        (".x.png.icloud", b"bplist00"),
    ],
)
def test_placeholders_of_files_that_were_not_fetched_are_refused(folder, name, content):
    (folder / "train" / "a" / name).write_bytes(content)
    assert "holds 1 placeholder for content that was not fetched (such as " in refused(folder)


def test_a_dvc_file_beside_what_it_stands_for_is_told(folder, capsys):
    (folder / "train" / "a.dvc").write_text("outs:")
    (folder / "train" / "a" / "tile_000.png.dvc").write_text("outs:")
    assert "2 files that are no images (2 .dvc, such as train/a/tile_000.png.dvc)" in told(folder, capsys)[0]


@pytest.mark.parametrize("suffix", [".png", ".JPG", ".tif", ".jp2"])
def test_empty_images_are_refused(folder, suffix):
    for i in range(2):
        (folder / "val" / "a" / f"{i}{suffix}").touch()
    assert f"{folder} holds 2 empty image files (such as {folder / 'val' / 'a' / f'0{suffix}'})" in refused(folder)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("x.gif", b"GIF89a"),
        ("x.DCM", b""),
        ("x.heic", b"\0\0\0 ftypheic"),
        ("x.lif", b""),
        ("x", b"\x89PNG\r\n\x1a\n"),
        ("x.png_", b"\x89PNG\r\n\x1a\n"),
        ("x.1", b"\xff\xd8\xff\xe0"),
        ("x.dat", bytes(128) + b"DICM"),
        ("x.bak", b"BM" + bytes(12)),
        ("0001.00.00", b"RIFF\0\0\0\0WEBPVP8 "),
    ],
)
def test_images_of_other_kinds_or_names_are_refused_with_their_number(folder, name, content):
    (folder / "train" / "a" / "deep").mkdir()
    for place in ("train/a/deep", "val/b"):
        (folder / place / name).write_bytes(content)
    message = refused(folder)
    suffix = Path(name).suffix.lower() or "without suffix"
    assert f"holds 2 images of kinds or names that are not read (2 {suffix}, such as " in message


def test_slides_among_tiles_are_pointed_to_manifests(folder):
    for name in ("x.svs", "y.CZI"):
        (folder / "train" / "a" / name).write_bytes(b"II*\0")
    assert refused(folder) == (
        f"{folder} holds 2 whole slides (such as {folder / 'train' / 'a' / 'x.svs'}): name places on slides in a "
        "manifest (columns slide, x, y, size and label), or move them away"
    )


def test_what_is_no_file_is_refused(folder):
    os.mkfifo(folder / "train" / "a" / "x.png")
    assert f"holds 1 entry that is no file (such as {folder / 'train' / 'a' / 'x.png'})" in refused(folder)


@pytest.mark.parametrize("name", [b"Dr\xfcse", b"a\nb", b"\x1b[31mx", b"\xff"])
@pytest.mark.parametrize("place", ["train", "val", "train/a", "."])
def test_names_that_are_no_text_are_refused(folder, name, place):
    os.mkdir(os.fsencode(folder / place) + b"/" + name)
    with open(os.fsencode(folder / place) + b"/" + name + b"/x.png", "wb") as file:
        file.write((folder / "train" / "a" / "tile_000.png").read_bytes())
    message = refused(folder)
    assert "holds 1 name with bytes or characters that are no text" in message and message.isprintable()


def test_names_of_files_that_are_no_text_are_refused(folder):
    (folder / "train" / "a" / "tile_000.png").rename(folder / "train" / "a" / "dr\udcfcse.png")
    assert r"a/dr\udcfcse.png): rename them in letters of UTF-8" in refused(folder)


# --- links ---


def test_links_to_folders_and_files_are_followed(folder, tmp_path, capsys):
    store = varied_folder(tmp_path / "store", {"patient 1": 5, "patient 2": 3}, seed=1)
    (folder / "train" / "a" / "p1").symlink_to(store / "patient 1")
    (folder / "train" / "c").symlink_to(store / "patient 2", target_is_directory=True)
    (folder / "train" / "b" / "x.png").symlink_to(varied_folder(tmp_path / "one", {"y": 1}, seed=2) / "y/tile_000.png")
    assert told(folder, capsys, hold_out_validation=False) == [
        f"followed 3 links that lead out of {folder} (such as train/a/p1)",
        "tiles of slides, 10x10 px: train 17 (a 9, b 5, c 3), validation 4 (a 2, b 2, c 0), no test",
    ]


@pytest.mark.parametrize("target", [".", "..", "../..", "../../..", "../b", "/", "../../val/a"])
def test_links_that_lead_back_are_refused(folder, target):
    (folder / "train" / "a" / "link").symlink_to(target)
    message = refused(folder)
    assert "leads to" in message and message.endswith("take the link out")


def test_the_folder_itself_may_be_a_link(folder, tmp_path, capsys):
    (tmp_path / "link").symlink_to(folder)
    assert told(tmp_path / "link", capsys) == [COUNTS]


# --- groups ---


def patients(root: Path) -> Path:
    """Tiles whose path tells patient and site, such as train/a/north/P1_tile_000.png."""
    counts = {
        f"{split}/{label}/{site}": 2 for split in ("train", "val") for label in "ab" for site in ("north", "south")
    }
    varied_folder(root, counts)
    for folder in map(root.joinpath, counts):
        for i, tile in enumerate(sorted(folder.iterdir())):
            number = 1 + i + 2 * (folder.name == "south") + 4 * ("val" in folder.parts)
            tile.rename(folder / f"P{number}_{tile.name}")
    return root


def test_groups_and_attributes_are_parts_of_paths(tmp_path):
    folder = patients(tmp_path / "slides")
    pattern = r"/(?P<site>[^/]+)/(?P<group>P\d+)_"
    source = load_tiles(folder, group_pattern=pattern, group_kind="patient", hold_out_validation=False)
    train = source.split("train")
    assert train.groups.tolist() == ["P1", "P2", "P3", "P4"] * 2 and source.group_kind == "patient"
    assert train.attributes["site"].tolist() == ["north", "north", "south", "south"] * 2
    assert source.split("validation").groups.tolist() == ["P5", "P6", "P7", "P8"] * 2
    listing = list_tiles(folder, group_pattern=pattern)
    assert listing.splits["train"].groups.tolist() == train.groups.tolist() and listing.group_kind == "group"


def test_spellings_of_a_group_are_one_group(tmp_path):
    folder = varied_folder(tmp_path, {"train/a/M\u00fcller": 2, "train/b/Mu\u0308ller": 2})
    groups = (
        load_tiles(folder, group_pattern="(?P<group>[^/]+)/[^/]+$", hold_out_validation=False).split("train").groups
    )
    assert groups.tolist() == ["M\u00fcller"] * 4


@pytest.mark.parametrize(
    ("pattern", "number"),
    [("P(?P<group>[1-3])_", 2), ("(?P<group>P.)(?P<site>x)?", 8), ("(?P<group>X?)", 8)],
)
def test_paths_that_a_pattern_does_not_fit_are_refused(tmp_path, pattern, number):
    folder = patients(tmp_path / "slides")
    message = refused(folder, group_pattern=pattern)
    assert f"in the paths of {number} of 8 tiles of {folder}" in message and "(such as train/a/" in message


@pytest.mark.parametrize("pattern", ["(?P<group>", "(?P<patient>.)", "x"])
def test_patterns_that_are_none_are_refused(folder, pattern):
    assert f"group_pattern={pattern} " in refused(folder, group_pattern=pattern)


def test_a_folder_has_no_columns(folder):
    message = refused(folder, group_column="patient")
    assert "which has no columns for group_column=patient" in message and "group_pattern" in message


# --- names of splits and classes ---


@pytest.mark.parametrize(
    ("names", "both"),
    [(("train", "Training"), "train"), (("val", "DEV"), "validation"), (("test", "testing"), "test")],
)
def test_two_spellings_of_a_split_are_refused(tmp_path, names, both):
    folder = varied_folder(tmp_path, {"train/a": 2, "train/b": 2, f"{names[0]}/a": 2, f"{names[1]}/a": 2})
    assert f"keep one folder for the {both} split" in refused(folder)


@pytest.mark.parametrize("name", ["eval", "holdout", "development", "train2", "test_old", "masks", "tests"])
def test_a_split_of_another_name_is_never_passed_over(folder, name):
    varied_folder(folder, {f"{name}/a": 2})
    assert refused(folder).startswith(f"{folder / name} is no split")


@pytest.mark.parametrize("name", ["Dru\u0308se", "e\u0301pithe\u0301lium", "\u1100\u1161"])
def test_spellings_of_a_class_in_unicode_are_one_class(tmp_path, capsys, name):
    composed = unicodedata.normalize("NFC", name)
    folder = varied_folder(tmp_path / "x", {f"train/{name}": 3, "train/b": 2, f"test/{composed}": 2, "val/b": 1})
    source = load_tiles(folder)
    assert composed in source.class_names and len(source.class_names) == 2
    capsys.readouterr()
    varied_folder(folder, {f"train/{composed}": 2}, seed=1)
    source = load_tiles(folder)
    label = source.class_names.index(composed)
    assert (source.split("train").labels == label).sum() == 5 and (source.split("test").labels == label).sum() == 2
    assert "put 1 folder together with others of the same name in another spelling" in capsys.readouterr().err


def test_a_class_that_only_test_has_is_refused_with_the_names_of_train(folder):
    varied_folder(folder, {"test/A": 2})
    assert f"{folder / 'test' / 'A'} is a class that train does not have (did you mean a?): add" in refused(folder)
    assert "or give it one of the names there (a, b)" in refused(folder)
