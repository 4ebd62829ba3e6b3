"""Files of coordinates: those that CLAM and TRIDENT write, and what hostile ones hold."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from histodistill.training.data.slide_places import Scale
from histodistill.training.running.errors import InputError


h5py = pytest.importorskip("h5py", reason="needs histodistill[slides]")
slides = pytest.importorskip("slides")

CORNERS = [(5, 9), (300, 2), (4, 4)]


def read(path: Path):
    from histodistill.training.data.slide_coords import read_coords

    return read_coords(path)


def test_clam(tmp_path):
    found = read(slides.write_clam(tmp_path / "a.h5", CORNERS, size=256, level=1))
    places = found.places
    assert places.corners.tolist() == [[5, 9], [300, 2], [4, 4]] and places.corners.dtype == np.int64
    assert set(places.sizes.tolist()) == {256} and set(places.scales.tolist()) == {1}
    assert set(places.units.tolist()) == {Scale.LEVEL} and (found.slide, found.repeated) == ("a", 0)


def test_trident(tmp_path):
    found = read(slides.write_trident(tmp_path / "a_patches.h5", CORNERS, size=256, level0=512))
    assert found.places.sizes.tolist() == [256] * 3 and found.places.scales.tolist() == [2.0] * 3
    assert set(found.places.units.tolist()) == {Scale.DOWNSAMPLE} and found.slide == "a"


def test_attributes_of_the_file_and_arrays_of_one_number(tmp_path):
    path = slides.write_clam(tmp_path / "a.h5", CORNERS, patch_size=None, patch_level=np.array([0]), name=None)
    with h5py.File(path, "a") as file:
        file.attrs["patch_size"] = np.int32(64)
    found = read(path)
    assert found.places.sizes.tolist() == [64] * 3 and found.slide is None


def test_places_that_are_there_twice_and_none(tmp_path):
    found = read(slides.write_clam(tmp_path / "a.h5", [(9, 9), (1, 1), (9, 9), (9, 9)]))
    assert found.places.corners.tolist() == [[9, 9], [1, 1]] and found.repeated == 2
    assert len(read(slides.write_trident(tmp_path / "b.h5", [])).places) == 0
    with h5py.File(slides.write_trident(tmp_path / "c.h5", []), "a") as file:
        attributes = dict(file["coords"].attrs)
        del file["coords"]
        file.create_dataset("coords", data=np.array([])).attrs.update(attributes)
    assert len(read(tmp_path / "c.h5").places) == 0


def in_place_of_coords(path: Path, make) -> Path:
    """A file of CLAM, of which `make(file)` makes the coordinates anew."""
    with h5py.File(slides.write_clam(path, CORNERS), "a") as file:
        attributes = dict(file["coords"].attrs)
        del file["coords"]
        make(file)
        if file.get("coords", getlink=True).__class__ is h5py.HardLink:
            file["coords"].attrs.update(attributes)
    return path


def virtual(file) -> None:
    layout = h5py.VirtualLayout((3, 2), np.int64)
    layout[:] = h5py.VirtualSource("other.h5", "coords", (3, 2))
    file.create_virtual_dataset("coords", layout)


@pytest.mark.parametrize(
    ("make", "what"),
    [
        (lambda file: file.create_group("coords"), "has no data set coords"),
        (lambda file: file.__setitem__("coords", h5py.ExternalLink("other.h5", "/coords")), "has no data set coords"),
        (lambda file: file.__setitem__("coords", h5py.SoftLink("/elsewhere")), "has no data set coords"),
        (virtual, "in another file"),
        (lambda file: file.create_dataset("coords", (3, 2), "i8", external=[("raw.bin", 0, 48)]), "in another file"),
        (lambda file: file.create_dataset("coords", (2**40, 2), "i8", chunks=(2**10, 2)), "a file may grow"),
        (lambda file: file.create_dataset("coords", (3, 3), "i8"), "int64 of shape 3x3"),
        (lambda file: file.create_dataset("coords", data=[b"x"]), "they must be numbers N x 2"),
        (lambda file: file.create_dataset("coords", data=[[np.nan, 1.0]]), "no pixels of a slide"),
        (lambda file: file.create_dataset("coords", data=[[1e300, 1.0]]), "no pixels of a slide"),
        (lambda file: file.create_dataset("coords", data=np.array([[2**64 - 1, 1]], "u8")), "no pixels of a slide"),
    ],
)
def test_coordinates_that_are_none(tmp_path, make, what):
    slides.write_clam(tmp_path / "other.h5", CORNERS)
    with pytest.raises(InputError, match=what):
        read(in_place_of_coords(tmp_path / "a.h5", make))


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"patch_size": None}, "does not say how large"),
        ({"patch_level": None}, "does not say how large"),
        ({"patch_size": "large"}, "patch_size that is no number"),
        ({"patch_size": [1, 2]}, "patch_size that is no number"),
        ({"patch_size": float("nan")}, "patch_size that is no number"),
        ({"patch_size": 0}, "tiles of 0 pixels"),
        ({"patch_size": 0.5}, "tiles of 0.5 pixels"),
        ({"patch_level": -1}, "of level -1"),
        ({"custom_downsample": 2}, "custom_downsample"),
        ({"patch_level": None, "patch_size_level0": 0}, "tiles of 0 pixels of level 0"),
    ],
)
def test_attributes_that_cannot_be_used(tmp_path, changes, what):
    with pytest.raises(InputError, match=re.escape(what)):
        read(slides.write_clam(tmp_path / "a.h5", CORNERS, **changes))


def test_bags_of_clam_have_other_coordinates(tmp_path):
    # `create_patches.py` keeps pixels, and coordinates in pixels of their level, with no attributes.
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["imgs"] = np.zeros((1, 4, 4, 3), np.uint8)
        file["coords"] = np.zeros((1, 2), np.int32)
    with pytest.raises(InputError, match=r"create_patches_fp\.py"):
        read(tmp_path / "a.h5")


def test_files_that_are_no_hdf5(tmp_path):
    whole = slides.write_clam(tmp_path / "a.h5", CORNERS).read_bytes()
    for content in (b"", b"slide,x,y\n", whole[: len(whole) // 2]):
        (tmp_path / "a.h5").write_bytes(content)
        with pytest.raises(InputError, match=r"a\.h5 (cannot be read as HDF5|has no data set)"):
            read(tmp_path / "a.h5")


@pytest.mark.parametrize(
    ("slide", "file"),
    [
        ("S1.svs", "S1.h5"),
        ("S1.svs", "S1_patches.h5"),
        ("S.1.ndpi", "S.1_patches.h5"),
        ("S1.ome.tif", "S1_patches.h5"),
        ("S1.ome.tif", "S1.ome.h5"),
    ],
)
def test_the_file_of_a_slide_in_a_folder(tmp_path, slide, file):
    from histodistill.training.data.slide_coords import file_of_coords

    (tmp_path / file).touch()
    (tmp_path / "S2.h5").touch()
    assert file_of_coords(tmp_path, Path("elsewhere") / slide) == tmp_path / file
    assert file_of_coords(tmp_path / "S2.h5", Path(slide)) == tmp_path / "S2.h5"
    assert not file_of_coords(tmp_path, Path("S3.svs")).exists()
