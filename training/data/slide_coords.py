"""Files of coordinates as CLAM and TRIDENT write them: where the tiles of one slide are."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from histodistill.training.data.limits import check_growth
from histodistill.training.data.slide_places import Places, Scale
from histodistill.training.running.errors import InputError, reason_of


if TYPE_CHECKING:
    import h5py


# Endings of a file's name after that of its slide, as CLAM and as TRIDENT write them.
_ENDINGS = (".h5", "_patches.h5")
# Endings of a slide's name that are two, which TRIDENT cuts off whole.
_DOUBLE_ENDINGS = (".ome.tif", ".ome.tiff", ".ome.zarr")
# Characters of a slide's name that are read.
_LONGEST_NAME = 1000


@dataclass(frozen=True, eq=False)
class Coords:
    """What a file of coordinates holds.

    Attributes:
        places: Where the tiles are, in the order of the file, each once.
        repeated: Places that it holds again.
        slide: The name of the slide as the file has it; None where it has none.
    """

    places: Places
    repeated: int
    slide: str | None


def name_of_slide(slide: Path) -> str:
    """What CLAM and TRIDENT call a slide: the name of its file without the ending."""
    ending = next((each for each in _DOUBLE_ENDINGS if slide.name.lower().endswith(each)), slide.suffix)
    return slide.name[: len(slide.name) - len(ending)]


def file_of_coords(given: Path, slide: Path) -> Path:
    """The file with the coordinates of a slide: what is given, or what is called after the slide in that folder.

    Args:
        given: A file, or a folder such as `patches` of CLAM or TRIDENT.
        slide: The slide.

    Returns:
        The file, which need not be there.
    """
    if not given.is_dir():
        return given
    names = dict.fromkeys(name + ending for name in (name_of_slide(slide), slide.stem) for ending in _ENDINGS)
    files = [given / name for name in names]
    return next((file for file in files if file.is_file()), files[0])


def read_coords(path: Path) -> Coords:
    """Reads a file of coordinates: an HDF5 file with the data set `coords`.

    These are numbers N×2, x and y of the upper left corner of each tile in pixels of level 0.

    The attributes of `coords`, or of the file, say how large tiles are. CLAM writes `patch_size`, their side in pixels
    of the level `patch_level`. TRIDENT writes `patch_size`, their side in pixels once they are resized, and
    `patch_size_level0`, the side in pixels of level 0.

    Nothing but numbers is read, and nothing from another file that this one points to.

    Raises:
        InputError: If it cannot be read, or is no such file.
    """
    try:
        import h5py
    except ImportError as error:
        raise InputError(
            f"{path} takes h5py to be read, which is missing: pip install 'histodistill[slides]'"
        ) from error
    try:
        with h5py.File(path, "r", locking=False) as file:
            return _read(path, file)
    except InputError:
        raise
    except Exception as error:  # h5py raises errors of many kinds on damaged files
        raise InputError(f"{path} cannot be read as HDF5 ({reason_of(error)}): write it again") from error


def _read(path: Path, file: h5py.File) -> Coords:
    import h5py

    is_here = isinstance(file.get("coords", getlink=True), h5py.HardLink)
    if not is_here or file.get("coords", getclass=True) != h5py.Dataset:
        raise InputError(f"{path} has no data set coords: give a file of coordinates, as CLAM or TRIDENT writes it")
    coords = file["coords"]
    if coords.is_virtual or coords.external:
        raise InputError(f"{path} has its coordinates in another file: write them into this one")
    # An empty list is written with one dimension or with two.
    if coords.dtype.kind not in "iuf" or not (coords.shape == (0,) or (coords.ndim == 2 and coords.shape[1] == 2)):
        found = f"{coords.dtype} of shape {'x'.join(map(str, coords.shape or ()))}"
        raise InputError(f"{path} has coords that are {found}: they must be numbers N x 2, the x and y of each tile")
    check_growth(str(path), path.stat().st_size, coords.size * coords.dtype.itemsize)
    size, scale, unit = _kind(path, coords, file)
    corners = np.asarray(coords[()]).reshape(-1, 2)
    if not np.isfinite(corners).all() or (np.abs(corners) >= 2**62).any():
        raise InputError(f"{path} has coords that are no pixels of a slide: write it again")
    corners = np.rint(corners).astype(np.int64)
    first = np.sort(np.unique(corners, axis=0, return_index=True)[1])
    places = Places.alike(corners[first], size, scale, unit)
    return Coords(places, len(corners) - len(first), _name(coords, file))


def _kind(path: Path, coords: h5py.Dataset, file: h5py.File) -> tuple[int, float, Scale]:
    """Side of the tiles in pixels, and what these are pixels of."""
    size = _number(path, coords, file, "patch_size")
    level, side = (_number(path, coords, file, name) for name in ("patch_level", "patch_size_level0"))
    if size is None or (level is None and side is None):
        raise InputError(
            f"{path} does not say how large its tiles are, by patch_size and patch_level (CLAM) or patch_size_level0 "
            "(TRIDENT): write it with one of them (of CLAM, create_patches_fp.py)"
        )
    if _number(path, coords, file, "custom_downsample") not in (None, 1):
        raise InputError(f"{path} has tiles with a custom_downsample, which is not read: write it without")
    if size < 1 or size % 1 or size >= 2**31 or (level is not None and (level < 0 or level % 1 or level >= 2**15)):
        raise InputError(f"{path} has tiles of {size:g} pixels of level {level}: write it again")
    if level is not None:
        return int(size), level, Scale.LEVEL
    assert side is not None
    if not 0 < side < 2**31:
        raise InputError(f"{path} has tiles of {side:g} pixels of level 0: write it again")
    return int(size), side / size, Scale.DOWNSAMPLE


def _number(path: Path, coords: h5py.Dataset, file: h5py.File, name: str) -> float | None:
    """An attribute that is a number; None where there is none of this name."""
    attributes = next((each.attrs for each in (coords, file) if name in each.attrs), None)
    if attributes is None:
        return None
    kept = attributes.get_id(name)
    if kept.dtype.kind not in "iuf" or kept.shape not in ((), (1,)):
        raise InputError(f"{path} has an attribute {name} that is no number: write it again")
    value = float(np.asarray(attributes[name]).reshape(())[()])
    if not np.isfinite(value):
        raise InputError(f"{path} has an attribute {name} that is no number: write it again")
    return value


def _name(coords: h5py.Dataset, file: h5py.File) -> str | None:
    """The name of the slide."""
    attributes = next((each.attrs for each in (coords, file) if "name" in each.attrs), None)
    if attributes is None or attributes.get_id("name").shape not in ((), (1,)):
        return None
    value = attributes["name"]
    return value[:_LONGEST_NAME] if isinstance(value, str) else None
