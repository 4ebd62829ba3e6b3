"""Manifests of places on slides: what is taken, whose tiles they are, and the line that a message names."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from small_sources import image_folder, refused

from histodistill.training.data.grouping import Grouping
from histodistill.training.data.manifest import read_table
from histodistill.training.data.slide_manifest import open_slide_manifest
from histodistill.training.data.sources import check_source, list_tiles, load_tiles
from histodistill.training.data.tiles import SPLITS
from histodistill.training.end_to_end.inspect_tiles import InspectTilesConfig
from histodistill.training.end_to_end.looking import look as inspect_tiles


pytest.importorskip("openslide", reason="needs histodistill[slides]")
pytest.importorskip("h5py", reason="needs histodistill[slides]")
slides = pytest.importorskip("slides")

HEADER = ("slide", "x", "y", "size", "label")


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A folder with two slides of two levels, a.tif of 0.5 microns a pixel and b.tif of 0.25."""
    folder = tmp_path_factory.mktemp("slides")
    for number, (name, mpp) in enumerate((("a", 0.5), ("b", 0.25))):
        pixels = slides.tissue(300, 260, seed=number)
        slides.write_slide(folder / f"{name}.tif", [pixels, slides.halved(pixels)], (mpp, mpp))
    return folder


@pytest.fixture
def folder(made, tmp_path) -> Path:
    """A folder in which a manifest may be written, with the slides."""
    for name in ("a.tif", "b.tif"):
        (tmp_path / name).symlink_to(made / name)
    return tmp_path


def written(folder: Path, *rows: tuple, header: tuple = HEADER, name: str = "set.csv") -> Path:
    with open(folder / name, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows((header, *rows))
    return folder / name


# Four tiles.
ROWS = (
    ("a.tif", 0, 0, 32, "gland"),
    ("b.tif", 40, 8, 32, "stroma"),
    ("a.tif", 100, 60, 32, "stroma"),
    ("b.tif", 8, 100, 32, "gland"),
)


def with_column(name: str, *cells: object, rows: tuple = ROWS) -> dict:
    return {"header": (*HEADER, name), "rows": [(*row, cell) for row, cell in zip(rows, cells, strict=True)]}


def column(folder: Path, name: str, *cells: object, **kwargs) -> Path:
    table = with_column(name, *cells, **kwargs)
    return written(folder, *table["rows"], header=table["header"])


def train(source: Path, **options):
    return load_tiles(source, hold_out_validation=False, **options).split("train")


def pixels_at(seed: int, x: int, y: int, size: int, level: int = 0) -> np.ndarray:
    image = slides.tissue(300, 260, seed=seed)
    if level:
        image, x, y = slides.halved(image), x // 2, y // 2
    return image[y : y + size, x : x + size]


# --- places, line by line ---


def test_tiles_are_those_of_the_slide_in_the_order_of_the_lines(folder):
    path = written(folder, *ROWS)
    check_source(path)
    source = load_tiles(path, hold_out_validation=False)
    tiles = source.split("train")
    assert source.class_names == ["gland", "stroma"] and tiles.labels.tolist() == [0, 1, 1, 0]
    for image, (name, x, y, size, _) in zip(tiles.images, ROWS, strict=True):
        np.testing.assert_array_equal(image, pixels_at("ab".index(name[0]), x, y, size))


def test_a_level(folder):
    images = train(column(folder, "level", 1, 1, 0, 0)).images
    for image, (name, x, y, size, _), level in zip(images, ROWS, (1, 1, 0, 0), strict=True):
        np.testing.assert_array_equal(image, pixels_at("ab".index(name[0]), x, y, size, level))


def test_microns_choose_the_level_or_are_resized(folder):
    # Of the slide a, 1 micron is level 1 as it is; of b, 0.5 is.
    images = train(column(folder, "mpp", "1", "0.5", "1.0", 0.50)).images
    for image, (name, x, y, size, _) in zip(images, ROWS, strict=True):
        np.testing.assert_array_equal(image, pixels_at("ab".index(name[0]), x, y, size, level=1))
    finer = train(column(folder, "mpp", 0.75, 0.75, 0.75, 0.75)).images
    # 32 pixels of 0.75 microns are 48 of a's level 0: nearly the mean of them.
    mean = pixels_at(0, 0, 0, 48).mean(axis=(0, 1))
    assert np.abs(finer[0].mean(axis=(0, 1)) - mean).max() < 1


def test_one_resolution_for_all_keeps_the_centre(folder):
    path = written(folder, ("a.tif", 100, 60, 32, "gland"), ("b.tif", 100, 60, 32, "stroma"))
    one = train(path, mpp=0.5).images
    np.testing.assert_array_equal(one[0], pixels_at(0, 100, 60, 32))  # its own resolution
    np.testing.assert_array_equal(one[1], pixels_at(1, 84, 44, 32, level=1))  # 64 pixels around 116, 76


def test_parquet_with_numbers(folder):
    names, x, y, size, labels = zip(*ROWS, strict=True)
    table = pa.table(
        {"slide": names, "x": [float(each) for each in x], "y": y, "size": size, "mpp": [0.5] * 4, "label": labels}
    )
    pq.write_table(table, folder / "set.parquet")
    check_source(folder / "set.parquet")
    np.testing.assert_array_equal(
        train(folder / "set.parquet").images, train(column(folder, "mpp", *[0.5] * 4)).images
    )


def test_splits_and_attributes(folder):
    rows = [*ROWS, ("a.tif", 200, 0, 32, "stroma"), ("b.tif", 200, 0, 32, "gland")]
    splits = ("test", "train", "val", "train", "val", "test")
    rows = [(*row, split, site) for row, split, site in zip(rows, splits, "nnsssn", strict=True)]
    source = load_tiles(written(folder, *rows, header=(*HEADER, "split", "site")), allow_shared_groups=True)
    assert {split: tiles.attributes["site"].tolist() for split, tiles in source.splits.items()} == {
        "train": ["n", "s"],
        "validation": ["s", "s"],
        "test": ["n", "n"],
    }
    np.testing.assert_array_equal(source.split("test").images[0], pixels_at(0, 0, 0, 32))
    np.testing.assert_array_equal(source.split("train").images[1], pixels_at(1, 8, 100, 32))


def test_tiles_outside_and_on_glass_are_left_out(folder, capsys):
    glass = np.full((64, 64, 3), 240, np.uint8)
    slides.write_slide(folder / "glass.tif", [glass])
    rows = [*ROWS, ("glass.tif", 0, 0, 32, "gland"), ("a.tif", 290, 0, 32, "gland"), ("a.tif", -9, 0, 32, "gland")]
    tiles = train(written(folder, *rows))
    assert len(tiles) == 4 and tiles.labels.tolist() == [0, 1, 1, 0]
    told = capsys.readouterr().err
    assert "1 of 7 tiles of set show bare glass and are left out (gland 1)" in told
    assert "2 of 7 tiles of set lie outside their slide and are left out (gland 2)" in told


def test_a_split_of_glass_alone_is_refused(folder):
    slides.write_slide(folder / "glass.tif", [np.full((64, 64, 3), 240, np.uint8)])
    rows = [("glass.tif", 0, 0, 32, "gland", "train"), ("glass.tif", 32, 0, 32, "stroma", "train")]
    rows += [(*row, "test") for row in ROWS]
    assert "the train split of set is empty" in refused(written(folder, *rows, header=(*HEADER, "split")))


# --- whose tiles they are ---


def test_slides_are_the_groups_where_no_patient_is_given(folder):
    (folder / "sub").mkdir()
    (folder / "sub" / "a.tif").symlink_to(folder / "a.tif")
    rows = (*ROWS, ("sub/../a.tif", 64, 64, 32, "gland"), ("sub/a.tif", 64, 99, 32, "gland"))
    source = load_tiles(written(folder, *rows), hold_out_validation=False)
    assert source.group_kind == "slide"
    assert source.split("train").groups.tolist() == ["a.tif", "b.tif", "a.tif", "b.tif", "a.tif", "a.tif"]


def test_slides_of_one_name_are_two_groups(folder):
    (folder / "sub").mkdir()
    slides.write_slide(folder / "sub" / "a.tif", [slides.tissue(64, 64, seed=7)])
    tiles = train(written(folder, *ROWS, ("sub/a.tif", 0, 0, 32, "gland")))
    assert tiles.groups.tolist() == ["a.tif", "b.tif", "a.tif", "b.tif", "sub/a.tif"]


def test_a_patient_wins(folder):
    source = load_tiles(column(folder, "patient", "P1", "P1", "P1", "P2"), hold_out_validation=False)
    assert source.group_kind == "patient" and source.split("train").groups.tolist() == ["P1", "P1", "P1", "P2"]


def test_a_column_called_group_or_one_that_is_named_wins(folder):
    path = column(folder, "group", "g", "g", "g", "h")
    assert train(path).groups.tolist() == ["g", "g", "g", "h"]
    path = column(folder, "case", 1, 1, 2, 2)
    assert train(path, group_column="case").groups.tolist() == ["1", "1", "2", "2"]
    path = column(folder, "patient", "P1", "P1", "P1", "P2")
    source = load_tiles(path, group_column="slide", hold_out_validation=False)
    assert source.group_kind == "slide" and source.split("train").groups.tolist() == ["a.tif", "b.tif"] * 2


def test_a_pattern_wins(folder):
    tiles = train(written(folder, *ROWS), group_pattern=r"^(?P<group>\w)\.")
    assert tiles.groups.tolist() == ["a", "b", "a", "b"]


def test_a_column_that_looks_like_patients_is_hinted_at(folder, capsys):
    source = load_tiles(column(folder, "patient_id", 1, 1, 1, 2), hold_out_validation=False)
    assert source.group_kind == "slide" and "--group-column patient_id" in capsys.readouterr().err


# --- files of coordinates ---

CORNERS = {"a": [(0, 0), (100, 60), (40, 8)], "b": [(6, 98), (0, 0)]}


def of_coords(folder: Path, *rows: tuple, header: tuple = ("slide", "label", "coords")) -> Path:
    return written(folder, *rows, header=header, name="slides.csv")


def as_places(folder: Path, **more: object) -> np.ndarray:
    rows = [
        (f"{name}.tif", x, y, 32, "gland" if name == "a" else "stroma", *more.values())
        for name, corners in CORNERS.items()
        for x, y in corners
    ]
    return train(written(folder, *rows, header=(*HEADER, *more))).images


@pytest.mark.parametrize("cells", [("clam/a.h5", "clam/b.h5"), ("clam", "clam/")])
@pytest.mark.parametrize("level", [0, 1])
def test_clam(folder, cells, level):
    for name, corners in CORNERS.items():
        slides.write_clam(folder / "clam" / f"{name}.h5", corners, level=level)
    path = of_coords(folder, ("a.tif", "gland", cells[0]), ("b.tif", "stroma", cells[1]))
    check_source(path)
    tiles = train(path)
    assert tiles.labels.tolist() == [0, 0, 0, 1, 1] and tiles.groups.tolist() == ["a.tif"] * 3 + ["b.tif"] * 2
    np.testing.assert_array_equal(tiles.images, as_places(folder, level=level))


def test_trident(folder):
    # 20x of a scan at 40x: 32 pixels of 2 pixels of level 0 each.
    for name, corners in CORNERS.items():
        slides.write_trident(folder / "job" / f"{name}_patches.h5", corners, size=32, level0=64)
    rows = [("a.tif", "gland", "job", "P1", "val"), ("b.tif", "stroma", "job", "P2", "train")]
    rows[1:1] = [(str(folder / "c.tif"), "gland", "job", "P3", "train")]
    slides.write_slide(folder / "c.tif", [slides.tissue(100, 100, seed=5)])
    slides.write_trident(folder / "job" / "c_patches.h5", [(0, 0)], size=32, level0=64)
    path = of_coords(folder, *rows, header=("slide", "label", "coords", "patient", "split"))
    source = load_tiles(path)
    tiles = source.split("validation")
    assert tiles.groups.tolist() == ["P1"] * 3 and source.split("train").groups.tolist() == ["P3", "P2", "P2"]
    expected = as_places(folder, level=1)
    np.testing.assert_array_equal(tiles.images, expected[:3])
    np.testing.assert_array_equal(source.split("train").images[1:], expected[3:])


def test_what_is_odd_about_coordinates_is_told(folder, capsys):
    slides.write_clam(folder / "a.h5", [(0, 0), (8, 8), (0, 0)], name="other")
    slides.write_trident(folder / "b_patches.h5", [])
    path = of_coords(folder, ("a.tif", "gland", "a.h5"), ("b.tif", "stroma", "b_patches.h5"))
    opened = open_slide_manifest(read_table(path), Grouping())
    assert len(opened.splits["train"]) == 2
    told = capsys.readouterr().err
    assert "1 place that a file of coordinates holds twice" in told and "1 slide has no tile" in told
    assert "line 2 has the coordinates of a slide called other" in told


def test_coordinates_that_cannot_be_used(folder):
    slides.write_clam(folder / "a.h5", CORNERS["a"])
    good = ("a.tif", "gland", "a.h5")
    assert "line 3 names the slide of line 2 again" in refused(of_coords(folder, good, ("a.tif", "stroma", "a.h5")))
    text = refused(of_coords(folder, good, ("b.tif", "stroma", "no.h5")))
    assert "line 3 names coordinates that are not there" in text and "no.h5" in text
    text = refused(of_coords(folder, good, ("b.tif", "stroma", ".")))
    assert f"{folder / 'b.h5'}" in text
    rows = [("a.tif", "gland", "a.h5", 0.5)]
    assert "coords and mpp" in refused(of_coords(folder, *rows, header=("slide", "label", "coords", "mpp")))
    slides.write_clam(folder / "a.h5", [])
    text = "has no tile of the split train"
    assert text in refused(of_coords(folder, good))
    slides.write_clam(folder / "b.h5", CORNERS["b"])
    rows = [(*good, "train"), ("b.tif", "stroma", "b.h5", "test")]
    assert text in refused(of_coords(folder, *rows, header=("slide", "label", "coords", "split")))


# --- manifests that are refused ---


@pytest.mark.parametrize(
    ("place", "name", "what"),
    [
        (1, "x", "'x'"),
        (2, "y", "1_0"),
        (1, "x", "inf"),
        (3, "size", "0"),
        (3, "size", "32.5"),
        (3, "size", "-32"),
        (3, "size", "nan"),
    ],
)
def test_numbers_that_are_none(folder, place, name, what):
    row = [*ROWS[1]]
    row[place] = what
    text = refused(written(folder, ROWS[0], tuple(row)))
    assert f"line 3 has {what} in column {name}: it must be" in text


@pytest.mark.parametrize(
    ("name", "cell"), [("level", "-1"), ("level", "0.5"), ("mpp", "0"), ("mpp", "-1"), ("mpp", "2e9")]
)
def test_scales_that_are_none(folder, name, cell):
    assert f"in column {name}: it must be" in refused(column(folder, name, cell, cell, cell, cell))


def test_columns_that_are_missing_or_too_many(folder):
    text = refused(written(folder, ("a.tif", 0, 0, "gland"), header=("slide", "x", "y", "label")))
    assert "has no column size" in text and "coords in place of x, y and size" in text
    with pytest.raises(Exception, match="no column size"):
        check_source(folder / "set.csv")
    path = written(folder, *ROWS, header=("slide_id", *HEADER[1:]))
    assert "has no column slide (did you mean slide_id?)" in refused(path)
    rows = [(*row, 0, 0.5) for row in ROWS]
    assert "level and mpp" in refused(written(folder, *rows, header=(*HEADER, "level", "mpp")))
    assert "empty cell in column level" in refused(column(folder, "level", 0, "", 0, 0))


def test_a_place_that_is_there_twice(folder):
    (folder / "again.tif").symlink_to(folder / "a.tif")
    text = refused(written(folder, *ROWS, ("again.tif", 100, 60, 32, "gland")))
    assert "line 6 names the place of line 4 again" in text


def test_a_slide_that_is_not_there(folder):
    text = refused(written(folder, *ROWS, ("c.tif", 0, 0, 32, "gland"), ("c.tif", 0, 9, 32, "gland")))
    assert "line 6 names c.tif, one of 1 file that is not there" in text


def test_a_size_that_no_tile_can_have(folder):
    text = refused(written(folder, ROWS[0], ("b.tif", 0, 0, 100_000, "stroma")))
    assert "line 3 is 100000x100000 pixels" in text


def test_slides_that_cannot_be_read(folder):
    (folder / "broken.tif").write_bytes(b"II*\0" + bytes(50))
    rows = (*ROWS, ("broken.tif", 0, 0, 32, "gland"))
    text = refused(written(folder, *rows))
    assert "broken.tif is no slide that OpenSlide can open" in text
    with pytest.raises(Exception, match=r"broken\.tif is no slide"):
        list_tiles(folder / "set.csv")
    text = refused(column(folder, "level", 0, 0, 9, 0))
    assert "a.tif has no level 9: its last is 1" in text


def test_a_resolution_is_for_slides(folder):
    (folder / "files.csv").write_text("path,label\na.tif,gland\n")
    assert "mpp=0.5 is for places on slides, and files holds" in refused(folder / "files.csv", mpp=0.5)
    image_folder(folder / "images", {"train/a": 1, "train/b": 1})
    assert "mpp=0.5 is for places on slides" in refused(folder / "images", mpp=0.5)
    assert "mpp=0 is out of range" in refused(written(folder, *ROWS), mpp=0)


# --- lists ---


def test_listing(folder):
    found = list_tiles(written(folder, *ROWS))
    assert found.sizes == {(32, 32): 4} and found.count_modes() == {"RGB": 4}
    assert found.bytes_on_disk == sum((folder / name).stat().st_size for name in ("a.tif", "b.tif"))
    assert found.group_kind == "slide" and found.splits["train"].groups.tolist() == ["a.tif", "b.tif"] * 2


def test_the_page_tells_how_to_take_what_qupath_exports(folder, monkeypatch, capsys):
    text = (Path(__file__).parents[3] / "docs" / "slides.md").read_text(encoding="utf-8")
    (program,) = re.findall(r"^```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    (folder / "wsi").mkdir()
    slides.write_slide(folder / "wsi" / "S01.svs", [slides.tissue(100, 90)])
    names = {(0, 0): "Tumor", (32, 8): "Stroma", (64, 0): None}
    tiles = []
    for (x, y), name in names.items():
        ring = [[x, y], [x + 32, y], [x + 32, y + 32], [x, y + 32], [x, y]]
        classified = {"classification": {"name": name}} if name else {}
        geometry = {"type": "Polygon", "coordinates": [ring]}
        tiles.append({"type": "Feature", "geometry": geometry, "properties": {"objectType": "tile", **classified}})
    (folder / "qupath").mkdir()
    (folder / "qupath" / "S01.geojson").write_text(json.dumps({"type": "FeatureCollection", "features": tiles}))
    monkeypatch.chdir(folder)
    exec(compile(program, "snippet", "exec"), {})
    assert capsys.readouterr().out == "2 tiles\n"
    source = load_tiles("places.csv", hold_out_validation=False)
    assert source.class_names == ["Stroma", "Tumor"]
    np.testing.assert_array_equal(source.split("train").images[1], slides.tissue(100, 90)[8:40, 32:64])


# --- what others make of it ---


def test_inspection_counts_what_is_there(folder, capsys):
    rows = [(name, x, y, 32, label, f"P{x}", split) for name, label in (("a.tif", "gland"), ("b.tif", "stroma"))
            for split, y in (("train", 0), ("val", 64), ("test", 128)) for x in range(0, 300, 32)]  # fmt: skip
    path = written(folder, *rows, header=(*HEADER, "group", "split"))
    options = {"group_column": "group", "allow_shared_groups": True, "audit_share": 0.0}
    listed, seen = (inspect_tiles(InspectTilesConfig(data=path, pixels=pixels, **options)) for pixels in (False, True))
    # The last tile of each row is partly outside.
    assert {split: counts.tiles for split, counts in listed.splits.items()} == dict.fromkeys(SPLITS, 20)
    assert {split: counts.tiles for split, counts in seen.splits.items()} == dict.fromkeys(SPLITS, 18)
    assert "6 of 60 tiles lie outside their slide and are left out" in [finding.found for finding in seen.findings]


def test_a_classifier_is_trained_on_places(folder):
    from histodistill.training.train_classifier import TrainClassifierConfig, run

    rows = [(f"{name}.tif", x, y, 16, name, split) for name in "ab"
            for split, y in (("train", 32), ("val", 64), ("test", 128)) for x in range(16, 260, 16)]  # fmt: skip
    path = written(folder, *rows, header=(*HEADER, "split"))
    run(
        TrainClassifierConfig(
            data=path, output=folder / "out", architecture="convnet", width=8, max_train_steps=2, batch_size=8,
            allow_shared_groups=True, mpp=0.5, mixed_precision="no",
        )
    )  # fmt: skip
    assert (folder / "out" / "results.json").is_file()
