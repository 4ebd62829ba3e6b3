"""Tiles of real slides of scanners; the slides are not part of the project."""

from __future__ import annotations

import csv
import os
from pathlib import Path

import numpy as np
import pytest
from small_sources import refused

from histodistill.training.data.sources import list_tiles, load_tiles


openslide = pytest.importorskip("openslide", reason="needs histodistill[slides]")
pytest.importorskip("h5py", reason="needs histodistill[slides]")
slides = pytest.importorskip("slides")

ODD = Path(os.environ.get("HISTODISTILL_DATA") or Path(__file__).parents[3].parent / "shared" / "data") / "odd"
# 0.499 microns a pixel, one level.
CMU = ODD / "libvips__libvips" / "CMU-1-Small-Region.svs"
# Two levels, does not say how large its pixels are.
TCGA = ODD / "histolab__histolab" / "tcga-cr-7395-01a-01-ts1.svs"
pytestmark = pytest.mark.skipif(not (CMU.is_file() and TCGA.is_file()), reason=f"the real slides are not in {ODD}")

SIDE = 96


def grid(path: Path, step: int) -> list[tuple[int, int]]:
    """Corners side by side, over the edge of the slide as CLAM goes."""
    width, height = openslide.OpenSlide(path).dimensions
    return [(x, y) for y in range(0, height, step) for x in range(0, width, step)]


CORNERS = {CMU: (0, "skin"), TCGA: (1, "tumour")}


def written(path: Path, *rows: tuple) -> Path:
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows(rows)
    return path


@pytest.fixture(scope="module")
def places(tmp_path_factory) -> Path:
    """A manifest of the places of both slides."""
    rows = [
        (slide, x, y, SIDE, level, label)
        for slide, (level, label) in CORNERS.items()
        for x, y in grid(slide, SIDE * 2**level)
    ]
    folder = tmp_path_factory.mktemp("places")
    return written(folder / "set.csv", ("slide", "x", "y", "size", "level", "label"), *rows)


def test_places_of_two_scanners(places, capsys):
    source = load_tiles(places, hold_out_validation=False)
    tiles = source.split("train")
    told = capsys.readouterr().err
    assert (source.group_kind, source.image_size) == ("slide", SIDE)
    assert np.bincount(tiles.labels).tolist() == [336, 307]
    assert "461 of 1,200 tiles of set show bare glass and are left out (skin 354, tumour 107)" in told
    assert "96 of 1,200 tiles of set lie outside their slide and are left out (skin 54, tumour 42)" in told
    # What is left is tissue: no tile is white all over.
    assert max(image.mean() for image in tiles.images) < 250
    found = list_tiles(places)
    assert found.bytes_on_disk == sum(slide.stat().st_size for slide in CORNERS) and found.sizes == {(96, 96): 1200}


def test_files_of_coordinates_give_the_same_tiles(places, tmp_path):
    for slide, (level, _) in CORNERS.items():
        corners = grid(slide, SIDE * 2**level)
        slides.write_clam(tmp_path / "clam" / f"{slide.stem}.h5", corners, size=SIDE, level=level)
        side = SIDE * 2**level
        slides.write_trident(tmp_path / "trident" / f"{slide.stem}_patches.h5", corners, size=SIDE, level0=side)
    expected = load_tiles(places, hold_out_validation=False).fingerprint()
    for tool in ("clam", "trident"):
        rows = [(slide, label, tool) for slide, (_, label) in CORNERS.items()]
        table = written(tmp_path / "set.csv", ("slide", "label", "coords"), *rows)
        assert load_tiles(table, hold_out_validation=False).fingerprint() == expected


def test_one_resolution(tmp_path):
    header = ("slide", "x", "y", "size", "label")
    rows = [(CMU, 960, 1200, 128, "a"), (CMU, 960, 1600, 128, "b")]
    tiles = load_tiles(written(tmp_path / "set.csv", header, *rows), mpp=0.998, hold_out_validation=False)
    whole = openslide.OpenSlide(CMU).read_region((896, 1136), 0, (256, 256)).convert("RGB").resize((128, 128))
    difference = np.abs(tiles.split("train").images[0].astype(int) - np.asarray(whole))
    assert difference.mean() < 3  # another filter
    text = refused(written(tmp_path / "set.csv", header, rows[0], (TCGA, 2000, 2000, 64, "b")), mpp=0.5)
    assert "tcga-cr-7395-01a-01-ts1.svs does not say how large its pixels are" in text


@pytest.mark.parametrize("name", ["histolab__histolab/broken.svs", "histolab__histolab/kidney-48-5.tif"])
def test_files_that_are_no_slides(tmp_path, name):
    rows = [(CMU, 960, 1200, 128, "a"), (ODD / name, 0, 0, 128, "b")]
    table = written(tmp_path / "set.csv", ("slide", "x", "y", "size", "label"), *rows)
    assert f"{Path(name).name} is no slide that OpenSlide can open" in refused(table)


def test_dicom(tmp_path):
    slide = ODD / "GoogleCloudPlatform__EZ-WSI-DICOMweb" / "multiframe_camelyon_challenge_image.dcm"
    rows = [(slide, 400, 200, 64, "a"), (CMU, 960, 1200, 64, "b")]
    table = written(tmp_path / "set.csv", ("slide", "x", "y", "size", "label"), *rows)
    images = load_tiles(table, hold_out_validation=False).split("train").images
    whole = openslide.OpenSlide(slide).read_region((400, 200), 0, (64, 64)).convert("RGB")
    np.testing.assert_array_equal(images[0], np.asarray(whole))
