"""MedMNIST: facts about its RGB sets, fetching their files, and reading the layout of its `.npz` files.

Facts (class names, number of tiles, MD5 of each file) are those of MedMNIST's own package, version 3.0.2
(Yang et al., "MedMNIST v2", Scientific Data 10:41, 2023; files: https://zenodo.org/records/10519652).
"""

from __future__ import annotations

import os
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from histodistill.training.data.tiles import Tiles, TileSource, describe, fit_array, make_source
from histodistill.training.running.errors import InputError
from histodistill.training.running.files import md5_of


#: Where MedMNIST publishes its files.
FILES_URL = "https://zenodo.org/records/10519652/files/"
# What reading a damaged archive may raise. MemoryError and OverflowError come from a header that asks for too much,
# RuntimeError from an encrypted archive.
_UNREADABLE = (
    OSError,
    EOFError,
    ValueError,
    KeyError,
    MemoryError,
    OverflowError,
    RuntimeError,
    zipfile.BadZipFile,
    zlib.error,
)
# How an attribution begins; where the tiles are from follows.
_ATTRIBUTION = "MedMNIST v2 (Yang et al., Scientific Data 2023, doi:10.1038/s41597-022-01721-8), from "


@dataclass(frozen=True)
class MedMNISTFacts:
    """One MedMNIST set.

    Attributes:
        title: name as written in prose.
        class_names: The name of each label.
        md5: Checksum of the file for each size in pixels.
        license: Licence of the tiles.
        attribution: Whom to credit.
    """

    title: str
    class_names: tuple[str, ...]
    md5: dict[int, str]
    license: str
    attribution: str

    def file_name(self, size: int) -> str:
        """`pathmnist.npz` for 28 pixels, `pathmnist_64.npz` and so on for the larger ones."""
        return f"{self.title.lower()}.npz" if size == 28 else f"{self.title.lower()}_{size}.npz"


#: Name → facts, of MedMNIST's sets of RGB images.
MEDMNIST = {
    "pathmnist": MedMNISTFacts(
        title="PathMNIST",
        class_names=(
            "adipose",
            "background",
            "debris",
            "lymphocytes",
            "mucus",
            "smooth muscle",
            "normal colon mucosa",
            "cancer-associated stroma",
            "colorectal adenocarcinoma epithelium",
        ),
        md5={
            28: "a8b06965200029087d5bd730944a56c1",
            64: "55aa9c1e0525abe5a6b9d8343a507616",
            128: "ac42d08fb904d92c244187169d1fd1d9",
            224: "2c51a510bcdc9cf8ddb2af93af1eadec",
        },
        license="CC BY 4.0",
        attribution=_ATTRIBUTION + "NCT-CRC-HE-100K and CRC-VAL-HE-7K (Kather et al., PLOS Medicine 2019)",
    ),
    "dermamnist": MedMNISTFacts(
        title="DermaMNIST",
        class_names=(
            "actinic keratoses and intraepithelial carcinoma",
            "basal cell carcinoma",
            "benign keratosis-like lesions",
            "dermatofibroma",
            "melanoma",
            "melanocytic nevi",
            "vascular lesions",
        ),
        md5={
            28: "0744692d530f8e62ec473284d019b0c7",
            64: "b70a2f5635c6199aeaa28c31d7202e1f",
            128: "2defd784463fa5243564e855ed717de1",
            224: "8974907d8e169bef5f5b96bc506ae45d",
        },
        license="CC BY-NC 4.0",
        attribution=_ATTRIBUTION + "HAM10000 (Tschandl et al., Scientific Data 2018)",
    ),
    "retinamnist": MedMNISTFacts(
        title="RetinaMNIST",
        # MedMNIST calls them "0" to "4", which would read as label numbers wherever a class can be given by name.
        class_names=("grade 0", "grade 1", "grade 2", "grade 3", "grade 4"),
        md5={
            28: "bd4c0672f1bba3e3a89f0e4e876791e4",
            64: "afda852cc34dcda56f86ad2b2457dbcc",
            128: "e48e916a24454daf90583d4e6efb1a18",
            224: "eae7e3b6f3fcbda4ae613ebdcbe35348",
        },
        license="CC BY 4.0",
        attribution=_ATTRIBUTION + "the DeepDRiD challenge (Liu et al., Patterns 2022)",
    ),
    "bloodmnist": MedMNISTFacts(
        title="BloodMNIST",
        class_names=(
            "basophil",
            "eosinophil",
            "erythroblast",
            "immature granulocytes(myelocytes, metamyelocytes and promyelocytes)",
            "lymphocyte",
            "monocyte",
            "neutrophil",
            "platelet",
        ),
        md5={
            28: "7053d0359d879ad8a5505303e11de1dc",
            64: "2b94928a2ae4916078ca51e05b6b800b",
            128: "adace1e0ed228fccda1f39692059dd4c",
            224: "b718ff6835fcbdb22ba9eacccd7b2601",
        },
        license="CC BY 4.0",
        attribution=_ATTRIBUTION + "Acevedo et al. (Data in Brief 2020)",
    ),
}


def load_medmnist(
    name: str,
    *,
    image_size: int | None = None,
    cache_dir: str | Path | None = None,
    download: bool = True,
) -> TileSource:
    """Loads one of `MEDMNIST` with its official splits, fetching its file first when it is not in the cache folder.

    Args:
        name: A key of `MEDMNIST`.
        image_size: 28, 64, 128 or 224 takes the file of that size; another size resizes the 28-pixel file.
        cache_dir: By default the environment variable `MEDMNIST_ROOT`, else `~/.medmnist`.
        download: Whether a missing file may be fetched.

    Returns:
        The source.

    Raises:
        InputError: The file is missing and cannot be fetched, or it is damaged.
    """
    facts = MEDMNIST[name]
    size = image_size if image_size in facts.md5 else 28
    folder = Path(cache_dir or os.environ.get("MEDMNIST_ROOT") or Path.home() / ".medmnist").expanduser()
    path = folder / facts.file_name(size)
    url, md5 = FILES_URL + path.name, facts.md5[size]
    if path.is_file():
        found = md5_of(path)
        if found != md5:
            raise InputError(
                f"{path} is not the file that MedMNIST published (MD5 {found} instead of {md5}): "
                f"delete it to fetch it again, or put {url} there"
            )
    elif download:
        # The HTTP library is only needed here.
        from histodistill.training.data.download import fetch

        fetch(url, path, md5)
    else:
        raise InputError(f"{path.name} is not in {folder} and download is off: put {url} there (MD5 {md5})")
    splits = _fit(_read_layout(path), image_size)
    return make_source(name, facts.class_names, splits, license=facts.license, attribution=facts.attribution)


def load_npz(path: Path, *, image_size: int | None = None, hold_out_validation: bool = True) -> TileSource:
    """Loads a `.npz` file in the MedMNIST layout.

    The layout: `train_images` uint8 N×H×W×3 and `train_labels` integers N or N×1, and the same with `val_` and
    `test_`, each pair of which may be missing. Class names are, in this order: the array of text `class_names` in the
    file; those of the MedMNIST set after which the file is named (`pathmnist*.npz`), when as many classes occur;
    "class 0", "class 1", ...

    Args:
        path: The file.
        image_size: Side that tiles are brought to in pixels; by default they stay as they are.
        hold_out_validation: Whether a part of train becomes validation where there is no such split.

    Returns:
        The source, named after the file.

    Raises:
        InputError: A damaged file, missing arrays, a wrong dtype or shape, or labels out of range.
    """
    splits = _read_layout(path)
    found = np.unique(splits["train"].labels)
    facts = next((f for name, f in MEDMNIST.items() if path.stem.lower().startswith(name)), None)
    if facts and len(facts.class_names) != len(found):
        facts = None
    names = _read_class_names(path)
    if names is None:
        gaps = np.flatnonzero(found != np.arange(len(found)))
        if len(gaps):
            raise InputError(
                f"{path} has training labels up to {found[-1]} but no training tile of class {gaps[0]}: "
                "labels must be 0 to number of classes - 1, and every class needs a training tile"
            )
        names = list(facts.class_names) if facts else [f"class {i}" for i in range(len(found))]
    return make_source(
        path.stem,
        names,
        _fit(splits, image_size),
        license=facts.license if facts else None,
        attribution=facts.attribution if facts else None,
        hold_out_validation=hold_out_validation,
    )


def _fit(splits: dict[str, Tiles], image_size: int | None) -> dict[str, Tiles]:
    """The splits with tiles of one size."""
    return {name: Tiles(fit_array(tiles.images, image_size), tiles.labels) for name, tiles in splits.items()}


def _read_layout(path: Path) -> dict[str, Tiles]:
    """The splits that a file holds, with tiles of the size that they have."""
    arrays = _read_arrays(path)
    splits = {}
    for split, prefix in (("train", "train"), ("validation", "val"), ("test", "test")):
        images_key, labels_key = f"{prefix}_images", f"{prefix}_labels"
        present = [key for key in (images_key, labels_key) if key in arrays]
        if not present and split != "train":
            continue
        if len(present) < 2:
            missing = next(key for key in (images_key, labels_key) if key not in arrays)
            raise InputError(
                f"{path} has no array {missing!r}: the MedMNIST layout needs train_images and train_labels, "
                "and for val and test both or neither"
            )
        images, labels = arrays[images_key], arrays[labels_key]
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3 or 0 in images.shape[1:]:
            raise InputError(
                f"{images_key} in {path} is {describe(images)}: images must be uint8 N x H x W x 3 (RGB); "
                "convert greyscale or RGBA images first"
            )
        splits[split] = Tiles(images, _flat_labels(labels, labels_key, len(images), path))
    return splits


def _flat_labels(labels: np.ndarray, key: str, count: int, path: Path) -> np.ndarray:
    """Labels N or N×1 of `count` images as int64 N; messages call them `key` in `path`."""
    if labels.ndim == 2 and labels.shape[1] > 1:
        raise InputError(f"{key} in {path} is {describe(labels)}: each tile must have one label, not several")
    if labels.dtype.kind not in "iu" or labels.ndim not in (1, 2):
        raise InputError(f"{key} in {path} is {describe(labels)}: labels must be whole numbers of shape N or N x 1")
    labels = labels.reshape(-1)
    if len(labels) != count:
        raise InputError(f"{key} in {path} has {len(labels)} labels for {count} images: there must be one for each")
    if not count:
        raise InputError(f"{key} in {path} is empty: a split needs at least one tile")
    if labels.min() < 0 or labels.max() > np.iinfo(np.int64).max:
        bad = int(labels.min() if labels.min() < 0 else labels.max())
        raise InputError(f"{key} in {path} holds {bad}: labels must be 0 to number of classes - 1")
    return labels.astype(np.int64)


def _read_class_names(path: Path) -> list[str] | None:
    """The names that a file gives its classes, if it does."""
    names = _read_arrays(path, only="class_names").get("class_names")
    if names is None:
        return None
    if names.dtype.kind != "U" or names.ndim != 1:
        raise InputError(f"class_names in {path} is {describe(names)}: it must be text, one for each class")
    return [str(name) for name in names]


def _read_arrays(path: Path, only: str | None = None) -> dict[str, np.ndarray]:
    """Those arrays of the MedMNIST layout that a file holds, or `only` the one of that name."""
    try:
        # Opened here, since np.load leaves the file open when the archive is damaged.
        with open(path, "rb") as raw:
            file = np.load(raw, allow_pickle=False)
            if not isinstance(file, np.lib.npyio.NpzFile):
                raise InputError(f"{path} holds a single array: the MedMNIST layout is a .npz of several")
            wanted = [f"{split}_{what}" for split in ("train", "val", "test") for what in ("images", "labels")]
            return {key: file[key] for key in ([only] if only else wanted) if key in file.files}
    except InputError:
        raise
    except _UNREADABLE as error:
        reason = " ".join(str(error).split()).rstrip(".") or type(error).__name__
        if "allow_pickle" in reason:
            reason = "it holds Python objects, which are not loaded"
        raise InputError(
            f"{path} cannot be read as a .npz file ({reason}): it may be cut short or damaged; fetch or save it again"
        ) from error
