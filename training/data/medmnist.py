"""MedMNIST: facts about its RGB sets, fetching their files, and opening them and others in their layout.

Facts (class names, number of tiles, MD5 of each file) are those of MedMNIST's own package, version 3.0.2
(Yang et al., "MedMNIST v2", Scientific Data 10:41, 2023; files: https://zenodo.org/records/10519652).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from histodistill.training.data.grouping import Grouping
from histodistill.training.data.names import numbered_classes
from histodistill.training.data.npz import NpzContent, NpzPixels, list_npz
from histodistill.training.data.opened_source import OpenedSource
from histodistill.training.running.errors import InputError, option_string
from histodistill.training.running.files import md5_of
from histodistill.training.running.notes import tell


#: Where MedMNIST publishes its files.
FILES_URL = "https://zenodo.org/records/10519652/files/"
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


def open_medmnist(
    name: str, image_size: int | None, download_dir: str | Path | None, download: bool, grouping: Grouping
) -> OpenedSource:
    """Opens one of `MEDMNIST` with its official splits, fetching its file first when it is not in the cache folder.

    Args:
        name: A key of `MEDMNIST`.
        image_size: 28, 64, 128 or 224 takes the file of that size; another size resizes the 28-pixel file.
        download_dir: By default the environment variable `MEDMNIST_ROOT`, else `~/.medmnist`.
        download: Whether a missing file may be fetched.
        grouping: What was said of the groups, of which these tiles have none.

    Returns:
        The source.

    Raises:
        InputError: The file is missing and cannot be fetched, or it is damaged.
    """
    facts = MEDMNIST[name]
    size = image_size if image_size in facts.md5 else 28
    folder = Path(download_dir or os.environ.get("MEDMNIST_ROOT") or Path.home() / ".medmnist").expanduser()
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
    return _of_medmnist(name, path, list_npz(path), grouping)


def open_npz(path: Path, grouping: Grouping) -> OpenedSource:
    """Opens a `.npz` file in the layout that `list_npz` describes.

    Class names are, in this order: the array of text `class_names` in the file; those of MedMNIST, if it is one of the
    files that MedMNIST published, by name and MD5; "class 0", "class 1", ... Licence and credit are known for
    MedMNIST's own files only.

    Args:
        path: The file.
        grouping: What was said of the groups, which are arrays here.

    Returns:
        The source, named after the file, or after the MedMNIST set that it is.

    Raises:
        InputError: A file that `list_npz` refuses, labels out of range, or a column or pattern, which arrays do not
            have.
    """
    if grouping.was_asked_for:
        raise InputError(
            f"{path} is a .npz file, whose arrays have neither columns nor paths for {grouping.asked}: put the "
            "groups into it as arrays train_groups, val_groups and test_groups, which are taken by themselves"
        )
    published = _published(path)
    content = list_npz(path)
    if published:
        return _of_medmnist(published, path, content, grouping)
    names = content.class_names
    if names is None:
        names = _numbered_names(path, content.splits["train"].labels)
        if alike := next((facts for name, facts in MEDMNIST.items() if path.stem.lower().startswith(name)), None):
            tell(
                f"{path} is none of the files that MedMNIST published, so neither the class names nor the licence of "
                f"{alike.title} are taken for its own: put the names into it as an array class_names, and give "
                f"{option_string('license')} when you publish"
            )
    return _opened(path.stem, names, path, content, grouping)


def _opened(
    name: str, class_names: Sequence[str], path: Path, content: NpzContent, grouping: Grouping
) -> OpenedSource:
    """The source that a file is."""
    return OpenedSource(
        name,
        class_names,
        content.splits,
        NpzPixels(path, content),
        sizes=lambda: content.sizes,
        stored=lambda: path.stat().st_size,
        grouping=grouping,
    )


def _of_medmnist(name: str, path: Path, content: NpzContent, grouping: Grouping) -> OpenedSource:
    """The source that a file is which MedMNIST published."""
    facts = MEDMNIST[name]
    opened = _opened(name, facts.class_names, path, content, grouping)
    return replace(opened, license=facts.license, attribution=facts.attribution)


def _published(path: Path) -> str | None:
    """The MedMNIST set of which a file is one that was published, None if it is none."""
    sums = {facts.file_name(size): (name, md5) for name, facts in MEDMNIST.items() for size, md5 in facts.md5.items()}
    if path.name not in sums:
        return None
    name, md5 = sums[path.name]
    return name if md5_of(path) == md5 else None


def _numbered_names(path: Path, labels: np.ndarray) -> list[str]:
    """`numbered_classes` for the labels that occur, which must be all up to the largest."""
    found = np.unique(labels)
    gaps = np.flatnonzero(found != np.arange(len(found)))
    if len(gaps):
        raise InputError(
            f"{path} has training labels up to {found[-1]} but no training tile of class {gaps[0]}: "
            "labels must be 0 to number of classes - 1, and every class needs a training tile"
        )
    return numbered_classes(len(found))


def public_name(name: str | None, class_names: list[str]) -> str | None:
    """The name itself where it is one that everybody knows, and otherwise None: names of files stay private.

    `load_tiles` calls nothing else so: a file or folder of the same name is `./pathmnist`.
    """
    is_medmnist = name in MEDMNIST and list(MEDMNIST[name].class_names) == class_names
    return name if is_medmnist or name == "phantom" else None
