"""Folders of pictures whose classes stand in a table."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from small_sources import png, refused

from histodistill.training.data.sources import check_source, list_tiles, load_tiles


# Four tiles, of grey levels 0 to 3.
NAMES = ("a.png", "b.png", "c.png", "d.png")
LABELS = ("stroma", "gland", "stroma", "gland")


@pytest.fixture
def folder(tmp_path) -> Path:
    return pictures(tmp_path / "tiles", *NAMES)


def pictures(folder: Path, *paths: str) -> Path:
    """A folder with pictures, of grey levels 0, 1, ..."""
    for grey, path in enumerate(paths):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(png(grey))
    return folder


def table(path: Path, cells, header: str = "path,label", *more: str) -> Path:
    lines = [f"{cell},{label}{','.join(['', *more])}" for cell, label in zip(cells, LABELS, strict=True)]
    path.write_text("\n".join([header, *lines, ""]))
    return path


def loaded(source: Path, **options: object):
    check_source(source, options.get("labels"))
    return load_tiles(source, hold_out_validation=False, **options)


def check_four(source) -> None:
    """Sees that these are the four tiles, with their labels."""
    train = source.split("train")
    assert source.class_names == ["gland", "stroma"] and list(source.splits) == ["train"]
    assert train.images[:][:, 0, 0, 0].tolist() == [0, 1, 2, 3] and train.labels.tolist() == [1, 0, 1, 0]


@pytest.mark.parametrize("name", ["labels.csv", "metadata.csv"])
def test_a_table_in_the_folder(folder, capsys, name):
    table(folder / name, NAMES)
    (folder / "e.png").write_bytes(png(99))
    check_four(loaded(folder))
    told = capsys.readouterr().err.splitlines()
    assert told[0] == f"{folder}: labels are those of {name}"
    assert "1 image without a label (such as e.png)" in told[1]


@pytest.mark.parametrize(
    "header", ["path,label", "file_name,label", "filename,class", "file,label", "image,class", "id,label"]
)
def test_names_of_columns(folder, tmp_path, header):
    check_four(loaded(folder, labels=table(tmp_path / "beside.csv", NAMES, header)))


def test_a_table_of_parquet(folder, tmp_path):
    path = tmp_path / "beside.parquet"
    pq.write_table(pa.table({"file": NAMES, "class": LABELS, "year": [1.5] * 4}), path)
    check_four(loaded(folder, labels=path))


@pytest.mark.parametrize(
    "cells", [NAMES, ("x/a.png", "x/b.png", "y/c.png", "d.png"), ("x/a", "b", "c", "./d"), "abcd"]
)
def test_paths_in_any_tree_with_suffix_or_without(tmp_path, cells):
    folder = pictures(tmp_path / "tiles", "x/a.png", "x/b.png", "y/c.png", "d.png")
    check_four(loaded(folder, labels=table(tmp_path / "beside.csv", cells)))


def test_groups_sites_and_splits_are_columns(folder):
    lines = [
        "path,label,patient,site,split",
        "a.png,x,P1,n,train",
        "b.png,y,P1,n,train",
        "c.png,x,P2,s,test",
        "d,y,P2,s,test",
    ]
    (folder / "labels.csv").write_text("\n".join(lines))
    source = loaded(folder, group_column="patient")
    assert source.split("train").groups.tolist() == ["P1", "P1"] and source.group_kind == "patient"
    assert source.split("test").attributes["site"].tolist() == ["s", "s"]
    pattern = load_tiles(folder, group_pattern="(?P<group>.)[.]png", hold_out_validation=False)
    assert pattern.split("test").groups.tolist() == ["c", "d"]


def test_folders_of_splits_are_splits_where_the_table_has_none(tmp_path):
    folder = pictures(tmp_path, "train/a.png", "train/b.png", "Test/c.png", "Test/d.png")
    table(folder / "labels.csv", "abcd")
    source = loaded(folder)
    assert {split: len(tiles) for split, tiles in source.splits.items()} == {"train": 2, "test": 2}


def test_folders_of_classes_in_splits_go_before_a_table(tmp_path, capsys):
    folder = pictures(tmp_path, "train/x/a.png", "train/y/b.png", "train/x/c.png", "train/y/d.png")
    table(folder / "labels.csv", "abcd")
    assert loaded(folder).class_names == ["x", "y"]
    assert "1 file that is no image (1 .csv, such as labels.csv)" in capsys.readouterr().err
    assert loaded(folder, labels=folder / "labels.csv").class_names == ["gland", "stroma"]


def test_a_table_goes_before_folders_without_splits_unless_it_says_something_else(tmp_path):
    folder = pictures(tmp_path, "x/a.png", "y/b.png", "x/c.png", "y/d.png")
    (folder / "metadata.csv").write_text("scanner,year\nA,2020\n")
    assert loaded(folder).class_names == ["x", "y"]
    table(folder / "labels.csv", "abcd")
    assert list_tiles(folder).class_names == loaded(folder).class_names == ["gland", "stroma"]


def test_empty_pictures_are_left_out_if_asked_for(folder, capsys):
    table(folder / "labels.csv", NAMES)
    (folder / "b.png").write_bytes(b"")
    assert "holds 1 empty image file" in refused(folder)
    source = loaded(folder, skip_unreadable=True, max_unreadable=0.5)
    assert source.split("train").images[:][:, 0, 0, 0].tolist() == [0, 2, 3]


# --- what is refused ---


@pytest.mark.parametrize("cell", ["z.png", "../tiles/a.png", "/etc/passwd", "x/a.png"])
def test_names_without_a_picture_are_counted(folder, cell):
    path = table(folder / "labels.csv", ["a.png", cell, "c.png", "q.png"])
    assert refused(folder) == (
        f"{path}, line 3 names {cell}, one of 2 pictures that are not there: correct the paths, which go from "
        f"{folder}, or fetch the files"
    )


@pytest.mark.parametrize("others", [("x/a.png", "y/a.png"), ("a.png", "a.jpg")])
def test_names_of_several_pictures_are_refused(tmp_path, others):
    folder = pictures(tmp_path / "tiles", *others, "b.png", "c.png", "d.png")
    message = refused(folder, labels=table(tmp_path / "beside.csv", "abcd"))
    assert f"line 2 names a, and {folder} has several of this name, such as " in message


def test_a_picture_that_is_named_twice_is_refused(folder):
    table(folder / "labels.csv", ["a.png", "b.png", "a", "d.png"])
    assert "line 4 names the file of line 2 again (a.png)" in refused(folder)


def test_two_tables_are_refused(folder):
    table(folder / "labels.csv", NAMES)
    table(folder / "metadata.csv", NAMES)
    assert "has both labels.csv and metadata.csv: say with labels which" in refused(folder)
    check_four(loaded(folder, labels=folder / "metadata.csv"))


def test_places_on_slides_are_no_pictures_in_a_folder(folder):
    (folder / "labels.csv").write_text("slide,x,y,size,label\na.svs,0,0,8,gland\n")
    assert "labels.csv names places on slides, and no pictures in" in refused(folder)


def test_tables_are_for_folders_of_images(folder, tmp_path):
    beside = table(tmp_path / "beside.csv", NAMES)
    assert "is for a folder of images, and phantom is none" in refused("phantom", labels=beside)
    assert "is no file: name the table" in refused(folder, labels=tmp_path / "no.csv")
