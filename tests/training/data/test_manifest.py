"""Manifests: which tables of tiles are taken, and the line that a message names."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from small_sources import png, refused

from histodistill.training.data.manifest import read_table
from histodistill.training.data.sources import check_source, list_tiles, load_tiles
from histodistill.training.running.errors import InputError


HEADER = "path,label"
# Four tiles, of grey levels 0, 1, ... in this order.
LINES = ("a.png,gland", "b.png,stroma", "c.png,gland", "d.png,stroma")


@pytest.fixture
def folder(tmp_path) -> Path:
    """A folder with the tiles a.png, b.png, ... of grey levels 0, 1, ..."""
    folder = tmp_path / "tiles"
    folder.mkdir()
    for grey, name in enumerate("abcdefgh"):
        (folder / f"{name}.png").write_bytes(png(grey))
    return folder


def manifest(folder: Path, *lines: str, header: str = HEADER, name: str = "set.csv", encoding: str = "utf-8") -> Path:
    path = folder / name
    path.write_bytes("".join(f"{line}\n" for line in (header, *lines)).encode(encoding))
    return path


def with_column(name: str, *cells: str, lines: tuple[str, ...] = LINES) -> dict:
    """Header and lines with one more column."""
    return {"header": f"{HEADER},{name}", "lines": [f"{line},{cell}" for line, cell in zip(lines, cells, strict=True)]}


def written(folder: Path, name: str, *cells: str) -> Path:
    table = with_column(name, *cells)
    return manifest(folder, *table["lines"], header=table["header"])


def train(source: Path, **options):
    return load_tiles(source, hold_out_validation=False, **options).split("train")


# --- tables that are taken ---


@pytest.mark.parametrize(
    "header", ["file_name,label", "filename,class", "file,label", "image,label", "image_id,class"]
)
def test_other_names_of_columns(folder, header):
    path = manifest(folder, *LINES, header=header)
    check_source(path)
    tiles = train(path)
    assert tiles.images[:, 0, 0, 0].tolist() == [0, 1, 2, 3] and tiles.labels.tolist() == [0, 1, 0, 1]


def test_a_column_of_the_usual_name_goes_before_others(folder):
    lines = [f"{line},{i}" for i, line in enumerate(LINES)]
    assert len(train(manifest(folder, *lines, header="path,label,id"))) == 4


def test_tiles_come_in_the_order_of_the_lines(folder):
    path = manifest(folder, "d.png,stroma", "a.png,gland", "c.png,gland", "b.png,stroma")
    check_source(path)
    source = load_tiles(str(path), hold_out_validation=False)
    assert (source.name, source.class_names, source.group_kind) == ("set", ["gland", "stroma"], None)
    tiles = source.split("train")
    assert tiles.images[:, 0, 0, 0].tolist() == [3, 0, 2, 1] and tiles.labels.tolist() == [1, 0, 0, 1]
    assert tiles.groups is None and tiles.attributes == {}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize(("name", "separator"), [("set.csv", ","), ("set.TSV", "\t")])
def test_kinds_of_text(folder, encoding, end, name, separator):
    (folder / 'odd, na\tme "1".png').write_bytes(png(77))
    rows = [
        ["label", "path"],
        ["Drüse", '"odd, na\tme ""1"".png"'],
        [""],
        [" stroma ", "b.png"],
        ["Dru\u0308se", "c.png"],
    ]
    text = end.join(separator.join(row) for row in rows)
    (folder / name).write_bytes(text.encode(encoding))
    check_source(folder / name)
    source = load_tiles(folder / name, hold_out_validation=False)
    assert source.class_names == ["Drüse", "stroma"]
    assert source.split("train").images[:, 0, 0, 0].tolist() == [77, 1, 2]
    assert source.split("train").labels.tolist() == [0, 1, 0]


def parquet_manifest(folder: Path, **columns) -> Path:
    table = pa.table({"path": ["a.png", "b.png", "c.png", "d.png"], **columns})
    pq.write_table(table, folder / "set.parquet")
    return folder / "set.parquet"


@pytest.mark.parametrize(
    ("labels", "classes"),
    [
        (["gland", "stroma", "gland", "stroma"], ["gland", "stroma"]),
        ([3, 10, 3, 10], ["3", "10"]),
        (pa.array(["x", "y", "x", "y"]).dictionary_encode(), ["x", "y"]),
    ],
)
def test_parquet(folder, labels, classes):
    path = parquet_manifest(folder, label=labels, patient=[1, 2, 3, 4], um=[0.5] * 4)
    check_source(path)
    source = load_tiles(path, group_column="patient", hold_out_validation=False)
    assert source.class_names == classes and source.group_kind == "patient"
    assert source.split("train").labels.tolist() == [0, 1, 0, 1]
    assert source.split("train").groups.tolist() == ["1", "2", "3", "4"]


def test_whole_numbers_are_classes_in_the_order_of_their_values(folder):
    path = manifest(folder, "a.png,10", "b.png,9", "c.png,2", "d.png,10")
    assert load_tiles(path, hold_out_validation=False).class_names == ["2", "9", "10"]


def test_splits(folder):
    path = written(folder, "split", "train", "Training", "VAL", "test")
    source = load_tiles(path)
    assert {name: tiles.images[:, 0, 0, 0].tolist() for name, tiles in source.splits.items()} == {
        "train": [0, 1],
        "validation": [2],
        "test": [3],
    }
    assert source.made == ()


def test_without_splits_some_are_made(folder):
    lines = [f"{name}.png,{label}" for name, label in zip("abcdefgh", "xyxyxyxy", strict=True)]
    assert load_tiles(manifest(folder, *lines)).made == ("validation", "test")
    empty = manifest(folder, *(f"{line}, " for line in lines), header=f"{HEADER},split")
    assert load_tiles(empty).made == ("validation", "test")


def test_paths_may_lead_elsewhere(folder, tmp_path, monkeypatch):
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists" / "store").symlink_to(folder)
    lines = (
        "../tiles/a.png,gland",
        f"{folder / 'b.png'},stroma",
        "store/c.png,gland",
        "./store/../tiles/d.png,stroma",
    )
    monkeypatch.chdir(tmp_path / "lists")
    # What a link leads to has a parent of its own.
    tiles = train(manifest(Path("."), *lines))
    assert tiles.images[:, 0, 0, 0].tolist() == [0, 1, 2, 3]


# --- groups and attributes ---


def test_the_column_group_is_the_group(folder):
    source = load_tiles(written(folder, "group", "p1", "p2", " p1", "p3"), hold_out_validation=False)
    assert source.split("train").groups.tolist() == ["p1", "p2", "p1", "p3"] and source.group_kind == "group"


@pytest.mark.parametrize(
    ("column", "said", "kind"),
    [
        ("patient_id", None, "patient"),
        ("Slide ID", None, "slide"),
        ("CASE", None, "case"),
        ("patients_seen", None, "group"),
        ("patient_id", "slide", "slide"),
    ],
)
def test_another_column_may_be_the_group(folder, column, said, kind):
    path = written(folder, column, "01", "1", "1", "2")
    source = load_tiles(path, group_column=column, group_kind=said, hold_out_validation=False)
    assert source.split("train").groups.tolist() == ["01", "1", "1", "2"] and source.group_kind == kind
    assert list_tiles(path, group_column=column, group_kind=said).group_kind == kind
    assert source.split("train").attributes == {}


def test_spellings_of_a_group_are_one(folder):
    tiles = train(written(folder, "group", "M\u00fcller", "Mu\u0308ller ", "x", "y"))
    assert tiles.groups.tolist() == ["M\u00fcller", "M\u00fcller", "x", "y"]


def test_groups_by_the_paths(folder):
    for name, grey in (("P1_x.png", 11), ("P2_x.png", 12)):
        (folder / name).write_bytes(png(grey))
    path = manifest(folder, "P1_x.png,gland", "P2_x.png,stroma")
    assert train(path, group_pattern="(?P<group>[^_/]+)_").groups.tolist() == ["P1", "P2"]
    path = manifest(folder, "P1_x.png,gland", "P2_x.png,stroma", "a.png,gland")
    message = refused(path, group_pattern="(?P<group>[^_/]+)_")
    assert "does not find all its named parts in the paths of 1 of 3 tiles" in message and "(such as a.png)" in message


def test_a_likely_column_is_told_and_not_guessed(folder, capsys):
    path = written(folder, "patient_id", "1", "2", "1", "2")
    assert train(path).groups is None
    told = capsys.readouterr().err.splitlines()
    assert f"{path}: if tiles of one patient_id belong together, give --group-column patient_id" in told
    assert f"{path}: 1 column is not used (patient_id)" in told


def test_attributes(folder, capsys):
    header = f"{HEADER},site,scanner,note,only,empty,<b>,"
    rows = [f"{line},S{i % 2},{'xy'[i // 2]},{i},1,{'z' * i},{i % 2},{i}" for i, line in enumerate(LINES)]
    path = manifest(folder, *rows, header=header)
    tiles = train(path)
    attributes = {name: values.tolist() for name, values in tiles.attributes.items()}
    assert attributes == {"site": ["S0", "S1", "S0", "S1"], "scanner": list("xxyy"), "note": list("0123")}
    assert f"{path}: 4 columns are not used (a column without a name, only, empty, <b>)" in capsys.readouterr().err


def test_a_column_with_many_values_is_no_attribute(folder):
    for i in range(21):
        (folder / f"{i}.png").write_bytes(png(i))
    for count, expected in ((20, ["scanner"]), (21, [])):
        rows = [f"{i}.png,{i % 2},{i}" for i in range(count)]
        assert list(train(manifest(folder, *rows, header=f"{HEADER},scanner")).attributes) == expected


# --- tables that are refused ---


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("tile,label", "has no column path: a manifest needs the columns path and label, and this has tile, label"),
        ("paths,label", "has no column path (did you mean paths?)"),
        ("path,tissue", "has no column label"),
        ("path,label,path", "has two columns called path"),
        ("path;label", "has semicolons between its cells, and a .csv file has commas"),
        ("path\tlabel", "has tabs between its cells, and a .csv file has commas"),
    ],
)
def test_headers_that_are_refused_at_once(folder, header, expected):
    path = manifest(folder, *LINES, header=header)
    assert expected in refused(path)
    with pytest.raises(InputError) as caught:
        check_source(path)
    assert expected in str(caught.value)


def test_an_empty_file_is_refused_at_once(folder):
    (folder / "set.csv").write_bytes(b"")
    with pytest.raises(InputError, match="has no column path") as caught:
        check_source(folder / "set.csv")
    assert refused(folder / "set.csv") == str(caught.value)


def test_a_header_of_several_lines_is_read(folder):
    path = manifest(folder, *(f"{line},1" for line in LINES), header=f'{HEADER},"of\nwhat"')
    check_source(path)
    assert len(train(path)) == 4
    assert "line 4 names missing.png" in refused(
        manifest(folder, "a.png,x,1", "missing.png,y,1", header=f'{HEADER},"of\nwhat"')
    )


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({2: "c.png,"}, "line 4 has an empty cell in column label"),
        ({1: " ,gland"}, "line 3 has an empty cell in column path"),
        ({1: "b.png"}, "line 3 has 1 cell and the header 2"),
        ({1: "b.png,gland,1"}, "line 3 has 3 cells and the header 2"),
        ({3: 'd.png,"stro"ma'}, "line 5 cannot be read as CSV"),
        ({3: 'd.png,"stroma'}, "line 5 cannot be read as CSV"),
        ({1: "no.png,gland", 3: "e/f.png,stroma"}, "line 3 names no.png, one of 2 files that are not there"),
        ({1: ".,gland"}, "line 3 names ., one of 1 file that is not there"),
        ({1: "http://x/b.png,gland"}, "line 3 names http://x/b.png, one of 1 file"),
        ({1: "*.png,gland"}, "line 3 names *.png, one of 1 file"),
        ({2: "a.png,gland"}, "line 4 names the file of line 2 again (a.png)"),
        ({2: "../tiles/a.png,stroma"}, "line 4 names the file of line 2 again (../tiles/a.png)"),
    ],
)
def test_lines_that_are_refused(folder, change, expected):
    path = manifest(folder, *(change.get(i, line) for i, line in enumerate(LINES)))
    assert f"{path}, {expected}" in refused(path)


@pytest.mark.parametrize(
    ("name", "cells", "expected"),
    [
        ("split", ("train", "train", "tset", "test"), "line 4 has a split 'tset': a split must be called train, "),
        ("split", ("train", "", "test", "test"), "line 3 has an empty cell in column split"),
        ("group", ("a", "b", "", "c"), "line 4 has an empty cell in column group"),
        ("site", ("a", "b", "c", ""), "line 5 has an empty cell in column site"),
        ("group", ("a", "b", "c" * 201, "d"), "line 4 has a group of more than 200 characters"),
    ],
)
def test_cells_that_are_refused(folder, name, cells, expected):
    path = written(folder, name, *cells)
    assert f"{path}, {expected}" in refused(path)


@pytest.mark.parametrize(
    ("cells", "expected"),
    [
        (("test", "val", "test", "test"), "has no tile of the split train"),
        (("train", "test", "train", "train"), "class 'stroma' (label 1) of set has no training tile"),
    ],
)
def test_splits_that_are_refused(folder, cells, expected):
    lines = (*LINES[:3], "d.png,gland") if cells[0] == "train" else LINES
    table = with_column("split", *cells, lines=lines)
    assert expected in refused(manifest(folder, *table["lines"], header=table["header"]))


@pytest.mark.parametrize(
    ("column", "expected"),
    [
        ("patientid", "group_column=patientid is no column of {path} (did you mean patient_id?): it has patient_id"),
        ("label", "group_column=label is the column of each tile's label"),
        ("path", "group_column=path is the column of each tile's path"),
    ],
)
def test_columns_that_are_no_groups(folder, column, expected):
    path = written(folder, "patient_id", "1", "2", "1", "2")
    assert expected.format(path=path) in refused(path, group_column=column)


@pytest.mark.parametrize(("encoding", "line"), [("latin-1", 3), ("utf-16", 1)])
def test_other_encodings_are_refused(folder, encoding, line):
    path = manifest(folder, "a.png,x", "b.png,Drüse", encoding=encoding)
    assert f"{path}, line {line} is no UTF-8" in refused(path)


def test_a_manifest_needs_tiles(folder):
    assert "has no line below its header" in refused(manifest(folder))


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ({"label": [0.5] * 4}, "column label of {path} holds something else than text"),
        ({"label": ["a", None, "b", "c"]}, "{path}, row 1 has an empty cell in column label"),
        ({"label": ["a", "b", "a", "b"], "split": ["train", "x", "x", "x"]}, "{path}, row 1 has a split 'x'"),
        ({"names": ["a", "b", "a", "b"]}, "{path} has no column label"),
    ],
)
def test_parquet_that_is_refused(folder, columns, expected):
    path = parquet_manifest(folder, **columns)
    assert expected.format(path=path) in refused(path)


def test_parquet_text_that_is_none(folder):
    labels = pa.Array.from_buffers(pa.string(), 4, pa.array([b"a", b"\xff", b"a", b"b"]).buffers())
    assert "holds text that is no UTF-8" in refused(parquet_manifest(folder, label=labels))
    (folder / "set.parquet").write_bytes(b"PAR1")
    assert "cannot be read as a Parquet file" in refused(folder / "set.parquet")
    (folder / "set.parquet").write_bytes(b"no Parquet")
    with pytest.raises(InputError, match="is no Parquet file"):
        check_source(folder / "set.parquet")


def test_a_tile_that_cannot_be_read_is_named_with_its_line(folder):
    (folder / "b.png").write_bytes(b"no picture")
    path = manifest(folder, *LINES)
    assert f"{path}, line 3 (b.png) cannot be read as an image" in refused(path)
    with pytest.raises(InputError, match="line 3"):
        list_tiles(path)


@pytest.mark.parametrize("name", ["missing.csv", "some/missing.tsv", "missing/x.parquet"])
def test_a_manifest_that_is_not_there_is_no_id_on_the_hub(name):
    assert refused(name).startswith(f"{name} does not exist: a source is")


# --- listing ---


def test_a_listing_tells_what_loading_gives(folder):
    header = f"{HEADER},split,group,site"
    rows = [f"{n}.png,{'xy'[i % 2]},{'train' if i < 5 else 'test'},g{i},s{i % 3}" for i, n in enumerate("abcdefgh")]
    path = manifest(folder, *rows, header=header)
    listing, source = list_tiles(path), load_tiles(path, hold_out_validation=False)
    assert (listing.name, listing.class_names, listing.group_kind) == ("set", ["x", "y"], "group")
    assert list(listing.splits) == list(source.splits)
    for split, tiles in source.splits.items():
        listed = listing.splits[split]
        np.testing.assert_array_equal(listed.labels, tiles.labels)
        np.testing.assert_array_equal(listed.groups, tiles.groups)
        np.testing.assert_array_equal(listed.attributes["site"], tiles.attributes["site"])
    assert listing.sizes == {(8, 8): 8} and not listing.is_sample
    assert listing.bytes_on_disk == sum(file.stat().st_size for file in folder.glob("*.png"))


def test_a_manifest_that_is_not_there_is_told_of_as_such(tmp_path):
    with pytest.raises(InputError, match=r"none\.csv is not there: correct the path"):
        read_table(tmp_path / "none.csv")
