"""Local folders of `datasets`: what their files are called, where they lead, and what they claim."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from small_sources import NAMES, greys, parquet, png, refused, table

from histodistill.training.data import limits
from histodistill.training.data.sources import check_source, list_tiles, load_tiles
from histodistill.training.running.errors import InputError


def saved(folder: Path, **splits: int) -> Path:
    """What `save_to_disk` leaves; split → the grey level of its first row."""
    from datasets import Dataset, DatasetDict

    DatasetDict({split: Dataset(table(grey=grey)) for split, grey in splits.items()}).save_to_disk(folder)
    return folder


def compressed(file: Path) -> None:
    """Writes an Arrow file again, its buffers compressed."""
    with pa.ipc.open_stream(file.read_bytes()) as reader:
        rows = reader.read_all()
    with pa.ipc.new_stream(file, rows.schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as writer:
        writer.write_table(rows)


# --- groups and sites ---


SITES = {"_type": "ClassLabel", "names": ["north", "south"]}


def grouped(folder: Path, split: str = "train", features: dict | None = None, **columns) -> Path:
    """Adds a file with further columns, of four rows, whose cells have the names of files."""
    cells = [{"bytes": png(i), "path": f"P{i // 2}_{i}.png"} for i in range(4)]
    rows = table(cells=cells, **columns)
    described = json.loads(rows.schema.metadata[b"huggingface"])
    described["info"]["features"] |= features or {}
    folder.mkdir(exist_ok=True)
    pq.write_table(rows.replace_schema_metadata({"huggingface": json.dumps(described)}), folder / f"{split}.parquet")
    return folder


def stored(folder: Path, kind: str) -> Path:
    """The same rows as `save_to_disk` leaves them, as a single file, or as they are."""
    if kind == "saved":
        from datasets import Dataset

        Dataset(pq.read_table(folder / "train.parquet")).save_to_disk(folder.parent / "saved")
        return folder.parent / "saved"
    return folder / "train.parquet" if kind == "file" else folder


@pytest.mark.parametrize("kind", ["folder", "saved", "file"])
@pytest.mark.parametrize(
    ("values", "features", "expected"),
    [
        (["a", "b", "a", " c"], None, ["a", "b", "a", "c"]),
        ([1, 2, 1, 30], None, ["1", "2", "1", "30"]),
        ([0, 1, 0, 1], {"patient": SITES}, ["north", "south", "north", "south"]),
        (pa.array(["a", "b", "a", "b"], pa.large_string()), None, ["a", "b", "a", "b"]),
    ],
)
def test_a_column_is_the_group(tmp_path, kind, values, features, expected):
    source = stored(grouped(tmp_path / "set", features=features, patient=values, site=["x", "y", "x", "y"]), kind)
    train = load_tiles(source, group_column="patient", hold_out_validation=False).split("train")
    assert train.groups.tolist() == expected and train.attributes["site"].tolist() == ["x", "y", "x", "y"]
    listing = list_tiles(source, group_column="patient")
    assert listing.splits["train"].groups.tolist() == expected and listing.group_kind == "patient"
    assert listing.sizes == {(8, 8): 4} and listing.bytes_on_disk > 0


@pytest.mark.parametrize("kind", ["folder", "saved", "file"])
def test_a_pattern_finds_the_group_in_the_names_of_files(tmp_path, kind):
    source = stored(grouped(tmp_path / "set"), kind)
    train = load_tiles(source, group_pattern="(?P<group>P.)_(?P<number>.)", hold_out_validation=False).split("train")
    assert train.groups.tolist() == ["P0", "P0", "P1", "P1"]
    assert train.attributes["number"].tolist() == ["0", "1", "2", "3"]


@pytest.mark.parametrize(
    ("column", "values", "expected"),
    [
        ("patients", ["a"] * 4, "group_column=patients is no column of {path}, split train (did you mean patient?)"),
        ("label", ["a"] * 4, "group_column=label is the column of images or labels"),
        ("image", ["a"] * 4, "group_column=image is the column of images or labels"),
        ("patient", [0.5] * 4, "is of type double: groups must be text, whole numbers or a ClassLabel"),
        ("patient", ["a", "b", None, "c"], "column patient of {path}, split train, row 2 has no group"),
        ("patient", ["a", "b", "c", " "], "column patient of {path}, split train, row 3 has no group"),
    ],
)
def test_columns_that_are_no_groups(tmp_path, column, values, expected):
    folder = grouped(tmp_path / "set", patient=values)
    assert expected.format(path=folder) in refused(folder, group_column=column)


def test_numbers_that_stand_for_no_group(tmp_path):
    folder = grouped(tmp_path / "set", features={"patient": SITES}, patient=[0, 1, 2, 0])
    assert "holds 2, which stands for none of its 2 names" in refused(folder, group_column="patient")


def test_rows_without_the_names_of_files_have_no_pattern(tmp_path):
    parquet(tmp_path / "train.parquet")
    assert "has an image without the name of a file in row 0: give group_column" in (
        refused(tmp_path, group_pattern="(?P<group>.)")
    )


def test_a_split_without_the_column_has_no_groups(tmp_path, capsys):
    folder = grouped(grouped(tmp_path / "set", patient=["a", "b", "c", "d"]), "test")
    source = load_tiles(folder, group_column="patient", hold_out_validation=False)
    assert source.split("test").groups is None
    assert "warning: the test split of set has no groups" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("values", "features"),
    [
        (["x", None, "y", "y"], None),
        (["x", "", "y", "y"], None),
        (["x" * 201, "x", "y", "y"], None),
        ([1, 2, 1, 2], None),
    ],
)
def test_columns_that_are_no_sites_are_told(tmp_path, capsys, values, features):
    folder = grouped(tmp_path / "set", features=features, site=values)
    assert load_tiles(folder).split("train").attributes == {}
    assert f"{folder}: 1 column is not used (site)" in capsys.readouterr().err


def test_sites_by_number(tmp_path):
    folder = grouped(tmp_path / "set", features={"site": SITES}, site=[0, 1, 0, 1])
    train = load_tiles(folder, hold_out_validation=False).split("train")
    assert train.attributes["site"].tolist() == ["north", "south", "north", "south"]


def test_sites_of_some_files_are_none(tmp_path, capsys):
    grouped(tmp_path / "set", "train-0", site=["x", "y", "x", "y"])
    grouped(tmp_path / "set", "train-1")
    assert load_tiles(tmp_path / "set", hold_out_validation=False).split("train").attributes == {}
    assert "1 column is not used (site)" in capsys.readouterr().err


def test_a_likely_column_is_told_and_not_guessed(tmp_path, capsys):
    folder = grouped(tmp_path / "set", patient_id=["a", "b", "c", "d"])
    assert load_tiles(folder).group_kind is None
    told = f"{folder}: if tiles of one patient_id belong together, give --group-column patient_id"
    assert told in capsys.readouterr().err.splitlines()


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("test.parquet", "is the test split by its name, and a source needs train"),
        ("train-00000-of-00002.parquet", "train-00001-of-00002.parquet is missing"),
    ],
)
def test_single_files_that_are_a_part(tmp_path, name, expected):
    assert expected in refused(parquet(tmp_path / name))


def test_a_single_file_is_called_as_it_is(tmp_path):
    # Images, beside what a manifest has.
    path = grouped(tmp_path / "set", "tiles", path=["a", "b", "c", "d"]) / "tiles.parquet"
    check_source(path)
    source = load_tiles(path)
    assert (source.name, source.class_names) == ("tiles", ["gland", "stroma"])


# --- files are read where they are ---


@pytest.mark.parametrize("name", ["site[1]", "tiles *", "what?", "a{b,c}", "hf:x", "zip::y", "~z", "!d", "ünï code"])
def test_no_name_is_a_pattern(tmp_path, name):
    for folder in ("site1", "tiles x", "whats", "ab", name):
        parquet(tmp_path / folder / "data" / f"train {name}.parquet", grey=10)
    parquet(tmp_path / name / "data" / f"train {name}.parquet", grey=200)
    assert greys(tmp_path / name) == [200, 201, 202, 203]


def test_same_name_and_time_with_other_content(tmp_path, monkeypatch):
    from datasets import config

    monkeypatch.setattr(config, "HF_DATASETS_CACHE", tmp_path / "cache")
    for grey in (10, 200):
        shutil.rmtree(tmp_path / "run", ignore_errors=True)
        file = parquet(tmp_path / "run" / "data" / "train-00000-of-00001.parquet", grey=grey)
        os.utime(file, (1_700_000_000, 1_700_000_000))
        assert greys(tmp_path / "run")[0] == grey
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]


def test_files_below_and_in_any_case_of_letters(tmp_path):
    parquet(tmp_path / "set" / "default" / "Train" / "0001.PARQUET", grey=20)
    parquet(tmp_path / "set" / "default" / "Train" / "0000.parquet", grey=10)
    parquet(tmp_path / "set" / "Test.Parquet", grey=30)
    for hidden in (".cache/x.parquet", "data/._train.parquet", "__MACOSX/train.parquet"):
        (tmp_path / "set" / hidden).parent.mkdir(exist_ok=True)
        (tmp_path / "set" / hidden).write_bytes(b"junk")
    assert greys(tmp_path / "set") == [*range(10, 14), *range(20, 24)]
    assert greys(tmp_path / "set", "test") == [*range(30, 34)]


@pytest.mark.parametrize("shape", ["loop", "folder", "files"])
def test_links_are_followed_and_told(tmp_path, capsys, shape):
    real = parquet(tmp_path / "elsewhere" / "train.parquet", grey=7)
    (tmp_path / "set").mkdir()
    if shape == "files":
        (tmp_path / "set" / "train.parquet").symlink_to(real)
    else:
        (tmp_path / "set" / "data").symlink_to(real.parent)
    if shape == "loop":
        (real.parent / "back").symlink_to(real.parent)
    assert greys(tmp_path / "set")[0] == 7
    assert f"{tmp_path / 'set'}: 1 file is a link to files outside the folder" in capsys.readouterr().err


def test_links_to_files_that_were_not_fetched(tmp_path):
    parquet(tmp_path / "train.parquet")
    (tmp_path / "val.parquet").symlink_to(tmp_path / ".git" / "annex" / "objects" / "val")
    assert "val.parquet is a link to a file that is not there: fetch it" in refused(tmp_path)
    (tmp_path / "val.parquet").unlink()
    (tmp_path / "val.parquet").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    assert "val.parquet stands for a file that Git LFS has not fetched" in refused(tmp_path)


@pytest.mark.parametrize("content", [b"", b"PAR1", b"PAR1" + bytes(99) + b"PAR1", b"PARE" + bytes(8) + b"PARE", b"<"])
def test_files_that_are_no_parquet(tmp_path, content):
    (tmp_path / "train.parquet").write_bytes(content)
    assert "train.parquet cannot be read as a Parquet file (" in refused(tmp_path)


def test_pages_that_are_damaged(tmp_path):
    content = bytearray(parquet(tmp_path / "train.parquet").read_bytes())
    content[4:200] = bytes(196)
    (tmp_path / "train.parquet").write_bytes(content)
    assert "train.parquet cannot be read as a Parquet file (" in refused(tmp_path)


# --- nothing that is there is lost ---


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["data/train-00000-of-00002"], "data/train-00001-of-00002.parquet is missing"),
        (["train", "holdout"], "holdout.parquet does not say to which split it belongs"),
        (["train", "val", "dev"], None),
        (["validation"], "has no train split (found validation)"),
        (["train-0", "train-1"], None),
    ],
)
def test_names_decide_or_are_refused(tmp_path, names, expected):
    for i, name in enumerate(names):
        parquet(tmp_path / f"{name}.parquet", grey=10 * i)
    if expected:
        assert expected in refused(tmp_path)
    else:
        source = load_tiles(tmp_path, hold_out_validation=False)
        assert sum(len(tiles) for tiles in source.splits.values()) == 4 * len(names)


def test_a_copied_shard_is_refused(tmp_path):
    parquet(tmp_path / "train.parquet")
    shutil.copy(tmp_path / "train.parquet", tmp_path / "train (1).parquet")
    assert "hold the same: keep one of them" in refused(tmp_path)


def test_what_is_not_used_is_told(tmp_path, capsys):
    parquet(tmp_path / "train.parquet", patient=pa.array([1, 2, 3, 4]), file=pa.array(["a", "b", "c", "d"]))
    (tmp_path / "train.csv").write_text("image,label\n")
    (tmp_path / "0.png").write_bytes(png())
    (tmp_path / "README.md").write_text("# Tiles\n")
    load_tiles(tmp_path)
    said = capsys.readouterr().err.splitlines()
    assert f"{tmp_path}: 2 columns are not used (file, patient)" in said
    assert f"{tmp_path}: 2 files are not read (0.png, train.csv)" in said


@pytest.mark.parametrize("layout", ["parquet", "saved", "saved without splits"])
@pytest.mark.parametrize("other", ["val.csv", "test/0.arrow", "dev/gland/0.png", "Validation.jsonl"])
def test_a_split_that_is_stored_otherwise_is_refused(tmp_path, layout, other):
    from datasets import Dataset

    if layout == "parquet":
        parquet(tmp_path / "train.parquet")
    elif layout == "saved":
        saved(tmp_path, train=0)
    else:
        Dataset(table()).save_to_disk(tmp_path)
    assert len(greys(tmp_path)) == 4
    (tmp_path / other).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / other).write_bytes(b"x")
    assert f"{other} is of the split " in refused(tmp_path)


@pytest.mark.parametrize("table", ["metadata.parquet", "train/patients.parquet", "train-tiles.Parquet"])
def test_a_table_among_images_is_named_as_what_is_in_the_way(tmp_path, table):
    for split in ("train", "test"):
        (tmp_path / split / "gland").mkdir(parents=True)
        (tmp_path / split / "gland" / "0.png").write_bytes(png(0))
    parquet(tmp_path / table)
    assert refused(tmp_path).endswith(
        "also holds Parquet or Arrow files, which are read instead: move away either these or the images"
    )


@pytest.mark.parametrize(
    "files",
    [
        ("he/train-00000-of-00001", "ihc/train-00000-of-00001"),
        ("2019/train", "2020/export/train"),
        ("train_0", "train_2"),
        ("part-00001", "part-00003"),
        ("train", "train (1)"),
        ("train", "train_old"),
    ],
)
def test_files_that_may_be_several_data_sets_are_told(tmp_path, capsys, files):
    folder = tmp_path / "set"
    names = [f"{file}.parquet" for file in files]
    for i, name in enumerate(names):
        parquet(folder / name, grey=10 * i)
    assert len(greys(folder)) == 8
    line = f"warning: {folder}: 2 files ({', '.join(sorted(names))}) are put together as the train split"
    assert sum(said.startswith(line) for said in capsys.readouterr().err.splitlines()) == 1


@pytest.mark.parametrize(
    "files",
    [
        ("train/0", "train/1", "test/0"),
        ("data/train-00000-of-00002", "data/train-00001-of-00002"),
        ("train_1", "train_2", "train_3"),
        ("crc 64 px train 0", "crc 64 px train 1"),
    ],
)
def test_files_that_are_numbered_throughout_are_not_told(tmp_path, capsys, files):
    for i, file in enumerate(files):
        parquet(tmp_path / f"{file}.parquet", grey=10 * i)
    load_tiles(tmp_path)
    assert "put together" not in capsys.readouterr().err


@pytest.mark.parametrize("names", [("gland", "fat"), ("stroma", "gland"), ("gland", "stroma", "fat")])
@pytest.mark.parametrize("file", ["train-1", "test"])
def test_files_that_name_their_classes_otherwise(tmp_path, names, file):
    parquet(tmp_path / "train-0.parquet")
    parquet(tmp_path / f"{file}.parquet", grey=9, names=names)
    assert ("has other columns or class names" if file == "train-1" else "has other class names") in refused(tmp_path)


# --- cells ---


ODD_CELLS = ["outside", "inside", "relative", "url", "none", "other class", "relative to a class", "through", "zero"]


@pytest.mark.parametrize("where", ODD_CELLS)
def test_a_cell_names_no_file_of_its_own_choice(tmp_path, where, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "set"
    for file in (
        tmp_path / "private.png",
        folder / "own.png",
        tmp_path / NAMES[0] / "x.png",
        tmp_path / "y" / "x.png",
    ):
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(png(77))
    (tmp_path / NAMES[1]).symlink_to(tmp_path / "y")
    path = {
        "outside": str(tmp_path / "private.png"),
        "inside": str(folder / "own.png"),
        "relative": "private.png",
        "url": "http://127.0.0.1:9/private.png",
        "none": None,
        "other class": str(tmp_path / NAMES[0] / "x.png"),  # the fourth row is of the second class
        "relative to a class": f"{NAMES[1]}/x.png",
        "through": str(tmp_path / NAMES[1] / "x.png"),
        "zero": str(tmp_path / NAMES[1] / "x\0.png"),
    }[where]
    cells = [{"bytes": png(i), "path": None} for i in range(3)] + [{"bytes": None, "path": path}]
    parquet(folder / "train.parquet", cells=cells)
    message = refused(folder)
    assert "row 3" in message
    assert ("has no image" if path is None else "names a file in place of the image") in message


def test_parquet_of_a_folder_of_images_names_its_files(tmp_path, capsys):
    """As `load_dataset("imagefolder").to_parquet` leaves it: without images."""
    cells = []
    for row in range(4):
        file = tmp_path / "tiles" / NAMES[row % 2] / f"{row}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(png(10 * row))
        cells.append({"bytes": None, "path": str(file)})
    (tmp_path / "set").mkdir()
    parquet(tmp_path / "set" / "train.parquet", cells=cells)
    tiles = load_tiles(tmp_path / "set", hold_out_validation=False).split("train")
    assert tiles.images[:, 0, 0, 0].tolist() == [0, 10, 20, 30]
    assert "holds no images but the names of files: 4 are read from folders of images" in capsys.readouterr().err


def test_names_in_cells_do_not_break_the_sentence(tmp_path):
    parquet(tmp_path / "train.parquet", cells=[{"bytes": b"?", "path": "\x1b[2J\n" + "x" * 10_000}] * 2)
    message = refused(tmp_path)
    assert "row 0 (" in message and len(message) < 500 and message.isprintable()


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary(), pa.struct({"bytes": pa.large_binary()})])
def test_images_may_be_stored_in_several_ways(tmp_path, kind):
    rows = table()
    cells = [png(i) if not pa.types.is_struct(kind) else {"bytes": png(i)} for i in range(4)]
    rows = rows.set_column(0, "image", pa.array(cells, kind))
    pq.write_table(rows, tmp_path / "train.parquet")
    assert greys(tmp_path) == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("column", "values", "expected"),
    [
        ("label", pa.array([0, 1, None, 1]), "has no label in row 2"),
        ("label", pa.array([0, 1, -1, 1]), "holds the label -1"),
        ("label", pa.array([0, 1, 2, 1]), "holds the label 2"),
        ("label", pa.array([0, 1, 2**64 - 1, 1], pa.uint64()), "has a label that is too large"),
        ("label", pa.array(["gland"] * 4), "no column of type ClassLabel"),
        ("label", pa.array([0.0, 1.0, 0.0, 1.0]), "no column of type ClassLabel"),
        ("image", pa.array(["a.png"] * 4), "no column of type Image"),
        ("image", pa.array([1, 2, 3, 4]), "no column of type Image"),
        ("image", pa.array([[png()]] * 4), "no column of type Image"),
    ],
)
def test_columns_of_another_kind(tmp_path, column, values, expected):
    rows = table()
    pq.write_table(rows.set_column(rows.schema.get_field_index(column), column, values), tmp_path / "train.parquet")
    assert expected in refused(tmp_path)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", '{"info": []}', '{"info": {"features": [1]}}', "[" * 100_000, '"\\ud800"']
)
def test_metadata_that_cannot_be_understood(tmp_path, text):
    pq.write_table(table().replace_schema_metadata({"huggingface": text}), tmp_path / "train.parquet")
    assert "whose entry 'huggingface' cannot be understood" in refused(tmp_path)


@pytest.mark.parametrize("names", [[], None, "ab", [1, 2], {"0": "a"}])
def test_class_names_that_are_none(tmp_path, names):
    parquet(tmp_path / "train.parquet", names=names)
    assert "has no names for the labels in column 'label'" in refused(tmp_path)


def test_two_columns_of_one_name(tmp_path):
    rows = table()
    pq.write_table(rows.append_column("label", rows["label"]), tmp_path / "train.parquet")
    assert "has two columns called 'label'" in refused(tmp_path)


# --- small files that unpack to much ---


@pytest.mark.parametrize("what", ["rows", "cell", "soft labels", "file"])
def test_what_unpacks_to_very_much_is_refused_before(tmp_path, monkeypatch, what):
    monkeypatch.setattr(limits, "_HARMLESS", 2**16)
    if what == "rows":  # one picture, 20,000 times
        cells = [{"bytes": png(), "path": None}] * 20_000
        parquet(tmp_path / "train.parquet", cells=cells)
    elif what == "cell":
        parquet(tmp_path / "train.parquet", cells=[{"bytes": png() + bytes(10**7), "path": None}] * 4, codec="zstd")
    elif what == "soft labels":
        parquet(tmp_path / "train.parquet", soft_label=pa.array([[0.5] * 10**6] * 4, pa.list_(pa.float64())))
    else:  # tiles that are far larger than they are stored
        parquet(tmp_path / "train.parquet", cells=[{"bytes": png(size=2000), "path": None}] * 4)
    message = refused(tmp_path)
    assert "a file may grow 200 times" in message and "HISTODISTILL_MAX_GROWTH" in message


def test_values_that_repeat_are_read_a_few_at_a_time(tmp_path, monkeypatch):
    from histodistill.training.data import arrow_files

    monkeypatch.setattr(arrow_files, "_BATCH_BYTES", 10_000)
    cell = {"bytes": png() + bytes(np.random.default_rng(0).bytes(4000)), "path": None}
    file = parquet(tmp_path / "train.parquet", cells=[cell] * 50)
    sizes = [batch.num_rows for batch in arrow_files.open_parquet(file).batches(["image", "label"])]
    assert sum(sizes) == 50 and max(sizes) <= 2


@pytest.mark.parametrize("what", ["bytes", "values"])
@pytest.mark.parametrize("version", ["1.0", "2.0"])
def test_what_a_file_says_of_its_pages_is_not_believed(tmp_path, monkeypatch, what, version):
    """Sizes are those of the pages' own headers, whatever the table of contents at the file's end says of them."""
    from histodistill.hub_cards import parquet_pages
    from histodistill.training.data import arrow_files

    monkeypatch.setattr(limits, "_HARMLESS", 2**16)
    if what == "bytes":
        rows = table(cells=[{"bytes": png() + bytes(10**7), "path": None}] * 4)
    else:
        rows = table(soft_label=pa.array([[0.5] * 10**6] * 4, pa.list_(pa.float64())))
    file = tmp_path / "train.parquet"
    pq.write_table(rows, file, compression="zstd", data_page_version=version)

    class Lying:
        """A column chunk of which only the place is true."""

        total_uncompressed_size = num_values = 1

        def __init__(self, chunk):
            self.data_page_offset, self.total_compressed_size = chunk.data_page_offset, chunk.total_compressed_size
            self.dictionary_page_offset, self.has_dictionary_page = (
                chunk.dictionary_page_offset,
                chunk.has_dictionary_page,
            )

    honest = parquet_pages.measure_pages
    monkeypatch.setattr(arrow_files, "measure_pages", lambda stream, chunk: honest(stream, Lying(chunk)))
    assert "a file may grow 200 times" in refused(tmp_path)


@pytest.mark.parametrize("compression", ["none", "zstd", "gzip"])
@pytest.mark.parametrize("version", ["1.0", "2.0"])
def test_pages_are_measured_as_they_were_written(tmp_path, compression, version):
    from histodistill.hub_cards.parquet_pages import measure_pages

    rows = table(500, soft_label=pa.array([[0.25, 0.75]] * 500))
    file = tmp_path / "train.parquet"
    pq.write_table(rows, file, compression=compression, data_page_version=version, data_page_size=500)
    group = pq.read_metadata(file).row_group(0)
    with open(file, "rb") as stream:
        for chunk in (group.column(i) for i in range(group.num_columns)):
            pages = measure_pages(stream, chunk)
            assert pages.num_values == chunk.num_values
            if chunk.path_in_schema != "image.path":  # which is empty, and its dictionary too
                assert bool(pages.dictionary) == chunk.has_dictionary_page
            # The size in the table of contents has the headers in it.
            assert 0 <= chunk.total_uncompressed_size - pages.num_bytes < chunk.total_uncompressed_size


# --- what save_to_disk leaves ---


def test_saved_splits_are_read_directly(tmp_path):
    saved(tmp_path / "set[1]", train=10, dev=20)
    saved(tmp_path / "set1", train=30)
    assert greys(tmp_path / "set[1]") == [10, 11, 12, 13] and greys(tmp_path / "set[1]", "validation")[0] == 20


@pytest.mark.parametrize("name", ["eval", "holdout", "unsupervised", "train2"])
def test_saved_splits_of_no_known_name(tmp_path, name):
    saved(tmp_path / "set", train=0, **{name: 9})
    assert f"has a split {name!r}: a split must be called" in refused(tmp_path / "set")


@pytest.mark.parametrize(
    "name",
    ["../secret/train/data-00000-of-00001.arrow", "/etc/passwd", "..", "", "a\\b", "c:x", "hf://a/b", "nul\0x"],
)
@pytest.mark.parametrize("where", ["dataset_dict.json", "train/state.json"])
def test_saved_folders_lead_nowhere_else(tmp_path, name, where):
    saved(tmp_path / "secret", train=77)
    file = saved(tmp_path / "set", train=5) / where
    content = {"splits": [name]} if where == "dataset_dict.json" else {"_data_files": [{"filename": name}]}
    file.write_text(json.dumps(content))
    assert "only names of files and folders beside it are followed" in refused(tmp_path / "set")


@pytest.mark.parametrize("part", ["train/data-00000-of-00001.arrow", "train"])
def test_links_out_of_saved_folders(tmp_path, part):
    saved(tmp_path / "secret", train=77)
    link = saved(tmp_path / "set", train=5) / part
    shutil.rmtree(link) if link.is_dir() else link.unlink()
    link.symlink_to(tmp_path / "secret" / part)
    assert "is a link out of the dataset's folder" in refused(tmp_path / "set")


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("dataset_dict.json", "{"),
        ("dataset_dict.json", '{"splits": "train"}'),
        ("dataset_dict.json", '{"splits": []}'),
        ("dataset_dict.json", "[" * 100_000),
        ("train/state.json", "{}"),
        ("train/state.json", '{"_data_files": [{"filename": 1}]}'),
        ("train/state.json", '{"_data_files": [{"filename": "data-00000-of-00001.arrow", "skip": 3}]}'),
        (
            "train/state.json",
            '{"_data_files": [{"filename": "a"}], "_indices_files": [{"filename": "i"}]}',
        ),
        ("train/dataset_info.json", '{"features": []}'),
        ("train/dataset_info.json", "\xff"),
    ],
)
def test_saved_folders_that_say_something_else(tmp_path, file, content):
    (saved(tmp_path / "set", train=5) / file).write_text(content, encoding="latin-1")
    assert f"{Path(file).name} cannot be used (" in refused(tmp_path / "set")


def test_saved_shards_that_are_missing(tmp_path):
    from datasets import Dataset

    Dataset(table(8)).save_to_disk(tmp_path / "set", num_shards=2)
    assert greys(tmp_path / "set") == [*range(8)]
    (tmp_path / "set" / "data-00001-of-00002.arrow").unlink()
    assert "data-00001-of-00002.arrow is missing, and state.json names it" in refused(tmp_path / "set")
    state = {"_data_files": [{"filename": "data-00000-of-00002.arrow"}]}
    (tmp_path / "set" / "state.json").write_text(json.dumps(state))
    assert "data-00001-of-00002.arrow is missing, and 1 of 2 shards are there" in refused(tmp_path / "set")


def test_a_saved_split_that_is_not_named(tmp_path):
    folder = saved(tmp_path / "set", train=5, validation=9)
    (folder / "dataset_dict.json").write_text('{"splits": ["train"]}')
    assert "validation is a split that dataset_dict.json does not name" in refused(folder)


@pytest.mark.parametrize("damage", ["compressed", "cut", "text", "dictionary"])
def test_arrow_files_that_are_not_what_is_saved(tmp_path, damage):
    file = saved(tmp_path / "set", train=5) / "train" / "data-00000-of-00001.arrow"
    if damage == "compressed":
        compressed(file)
        assert "is compressed inside" in refused(tmp_path / "set")
        return
    if damage == "dictionary":
        rows = table().append_column("more", pa.array(["a", "b"] * 2).dictionary_encode())
        with pa.ipc.new_stream(file, rows.schema) as writer:
            writer.write_table(rows)
        assert "holds a dictionary, which datasets does not write" in refused(tmp_path / "set")
        return
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2] if damage == "cut" else b"text" * 100)
    assert "cannot be read as an Arrow file (" in refused(tmp_path / "set")


def test_offsets_that_lead_out_of_a_column(tmp_path):
    file = saved(tmp_path / "set", train=5) / "train" / "data-00000-of-00001.arrow"
    content = file.read_bytes()
    lengths = np.cumsum([0, *(len(png(5 + i)) for i in range(4))]).astype("<i4").tobytes()
    assert content.count(lengths) == 1
    file.write_bytes(content.replace(lengths, lengths[:-4] + np.int32(2**30).tobytes()))
    assert "cannot be read as an Arrow file (" in refused(tmp_path / "set")


def test_a_column_that_is_said_to_be_another(tmp_path):
    info = saved(tmp_path / "set", train=5) / "train" / "dataset_info.json"
    content = json.loads(info.read_text())
    content["features"]["label"]["names"] = ["stroma", "gland"]
    info.write_text(json.dumps(content))
    assert "has other class names than are written beside it" in refused(tmp_path / "set")


def test_rows_that_the_footer_does_not_count_are_refused(tmp_path):
    """The number of rows stands in the footer twice: once for all, and once for each group."""
    data = parquet(tmp_path / "train.parquet", 200).read_bytes()
    length = int.from_bytes(data[-8:-4], "little")
    footer = data[-8 - length : -8]
    refusals = 0
    for lie in (b"\x8e\x03", b"\x92\x03"):  # 199 and 201 as Thrift writes them; 200 is 90 03
        for place in (place for place in range(len(footer)) if footer.startswith(b"\x90\x03", place)):
            changed = data[: -8 - length] + footer[:place] + lie + footer[place + 2 :] + data[-8:]
            (tmp_path / "train.parquet").write_bytes(changed)
            try:
                assert greys(tmp_path) == [*range(200)]  # what no reader goes by
            except InputError:
                refusals += 1
    assert refusals >= 2


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no pipes")
@pytest.mark.parametrize("put", [os.mkfifo, lambda path: path.symlink_to("/dev/zero"), lambda path: path.mkdir()])
def test_saved_records_that_are_no_files_are_not_waited_for(tmp_path, put):
    file = saved(tmp_path / "set", train=5) / "train" / "state.json"
    file.unlink()
    put(file)
    assert "state.json cannot be used (it is no ordinary file)" in refused(tmp_path / "set")


def test_what_pyarrow_quotes_of_a_file_does_not_break_the_sentence(tmp_path, monkeypatch):
    from histodistill.training.data import arrow_files

    def fail(*_, **__):
        raise OSError("don't know what type: \x0f")

    parquet(tmp_path / "train.parquet")
    monkeypatch.setattr(arrow_files, "_parquet", fail)
    assert r"(don't know what type: \x0f)" in refused(tmp_path)


def test_names_of_columns_that_are_no_text(tmp_path):
    file = saved(tmp_path / "set", train=5) / "train" / "data-00000-of-00001.arrow"
    content = file.read_bytes()
    assert content.count(b"label\0") >= 1
    file.write_bytes(content.replace(b"label\0", b"\xff\xffbel\0"))
    assert "cannot be read as an Arrow file (" in refused(tmp_path / "set")
