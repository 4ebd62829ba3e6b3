"""Distilled sets of several sites: found, read, checked against each other, and joined."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from datasets import ClassLabel, Dataset, Features, Image, load_dataset
from huggingface_hub import metadata_load
from PIL import Image as PILImage

from histodistill.hub_cards import DistilledDatasetCardData, render_dataset_card
from histodistill.hub_cards.dataset_card import NO_SOURCE, NOT_TISSUE, TITLE
from histodistill.training.data.images import png_bytes
from histodistill.training.running.errors import InputError, param
from histodistill.training.running.files import new_folder, write_text
from histodistill.training.running.stages import read_record


@dataclass(repr=False)
class Site:
    """One distilled set.

    Attributes:
        given: The folder as the user names it, for messages only.
        folder: The folder that holds `data/`.
        name: What the result calls the site.
        features: Type of each column; with an Image `image` and a ClassLabel `label`.
        columns: The values of each column but `image`, N each, in the order of the set.
        images: The images, uint8 H×H×3 each.
        facts: Where the images come from, plain JSON values with no paths: what record and card say of the site.
    """

    given: Path
    folder: Path
    name: str
    features: Features
    columns: dict[str, list[Any]]
    images: list[np.ndarray]
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def class_names(self) -> list[str]:
        """Names of the labels."""
        return self.features["label"].names


def read_sites(paths: Sequence[Path], names: Sequence[str] | None, output: Path) -> list[Site]:
    """Reads the distilled sets of all sites, and sees that they fit each other.

    Args:
        paths: Run folders with `distilled/`, or distilled sets themselves.
        names: What to call the sites; None for the names of their folders.
        output: The folder of the result, which must be none of theirs.

    Raises:
        InputError: For a folder that is no site, is named twice or is the output, and for sites that differ in
            classes, image size or columns.
    """
    folders = [find_distilled(path) for path in paths]
    for path, folder in zip(paths, folders, strict=True):
        if folders.count(folder) > 1:
            raise InputError(f"{path} is named twice: name each site once")
        if output.resolve() in (folder, path.resolve()):
            raise InputError(f"{param('output')} {output} is one of the sites: give another folder")
    names = names or default_names(folders)
    sites = [read_site(*site) for site in zip(paths, folders, names, strict=True)]
    check_alike(sites)
    set_offsets(sites)
    return sites


def find_distilled(path: Path) -> Path:
    """The resolved folder of the distilled set that a site's folder is or holds.

    Raises:
        InputError: If there is none.
    """
    for folder in (path / "distilled", path):
        if any((folder / "data").glob("train-*.parquet")):
            return folder.resolve()
    raise InputError(f"{path} is no site: give a run folder with distilled/, or a folder with data/train-*.parquet")


def default_names(folders: list[Path]) -> list[str]:
    """Names of the folders, or of the runs where they are called `distilled`; made unique by numbers."""
    names: list[str] = []
    for folder in folders:
        plain = (folder.parent.name if folder.name == "distilled" else folder.name) or "site"
        name, number = plain, 1
        while name in names:
            number += 1
            name = f"{plain}-{number}"
        names.append(name)
    return names


def read_site(given: Path, folder: Path, name: str) -> Site:
    """Reads the distilled set in `folder`, its record and its card; there may be no record and no card.

    Raises:
        InputError: If it is unfinished, another stage's result, already merged, or cannot be read.
    """
    record = read_record(folder) or {}
    settings = record.get("settings", {})
    if record.get("complete") is False:
        raise InputError(f"{given} is not finished: run the command that makes it again, then merge")
    if settings.get("stage", "distilled") not in ("distilled", "merged"):
        raise InputError(f"{given} is a {settings['stage']}, no distilled set: give what histodistill select left")
    files = sorted((folder / "data").glob("train-*.parquet"))
    try:
        rows = load_dataset("parquet", data_files=[str(file) for file in files], split="train")
        features = rows.features
        has_columns = isinstance(features.get("image"), Image) and isinstance(features.get("label"), ClassLabel)
        # Pixels alone are kept: files from elsewhere may have paths and metadata with them.
        images = [np.asarray(image) for image in rows["image"]] if has_columns else []
    except Exception as error:  # of many kinds: pyarrow's, datasets', Pillow's
        raise InputError(f"{given} holds Parquet files or images that cannot be read: copy them again") from error
    remedy = "it is no distilled set, leave it out"
    if not has_columns:
        raise InputError(f"{given} lacks a column image with images or label with class names: {remedy}")
    if "site" in features:
        raise InputError(f"{given} has a column site, so it is merged already: name the sites that it was made of")
    shapes = {image.shape for image in images}
    if len(shapes) != 1 or (shape := shapes.pop())[1:] != (*shape[:1], 3):
        raise InputError(f"{given} does not hold RGB squares of one size: {remedy}")
    columns = rows.remove_columns("image").to_dict()
    site = Site(given, folder, name, features, columns, images)
    if set(columns["label"]) != set(range(len(site.class_names))):
        raise InputError(f"{given} does not have labelled images of every class: {remedy}")
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.read_bytes())
    site.facts = {
        "name": name,
        "num_images": len(images),
        "n_per_class": np.bincount(columns["label"]).tolist(),
        "selector": settings.get("selector"),
        "pool_size": pool_size(record),
        "fingerprint": record.get("fingerprint"),
        **read_card(folder / "README.md"),
        "data_sha256": digest.hexdigest(),
    }
    return site


def pool_size(record: dict[str, Any]) -> int | None:
    """Images that the selector of a distilled set's record chose from; None where the record does not say."""
    if "community_sizes" not in record or "dropped" not in record:
        return None
    chosen_from = sum(map(sum, record["community_sizes"].values()))
    return chosen_from + sum(record["dropped"].values()) + sum((record.get("copies_dropped") or {}).values())


def read_card(path: Path) -> dict[str, Any]:
    """What a distilled set's card says of its tiles.

    Returns:
        `source_name` and `license`, each None where it is not said, and whether the tiles are drawings: `is_phantom`.

    Raises:
        InputError: If the card's header is damaged.
    """
    if not path.is_file():
        return {"source_name": None, "license": None, "is_phantom": False}
    try:
        header = metadata_load(path) or {}
    except (ValueError, yaml.YAMLError) as error:
        raise InputError(f"{path} has a header that is no YAML mapping: correct it") from error
    title = str(header.get("pretty_name", ""))
    source_name = title.removeprefix(TITLE) if title.startswith(TITLE) and title != TITLE + NO_SOURCE else None
    is_phantom = source_name == "phantom" or NOT_TISSUE in path.read_text(encoding="utf-8")
    return {"source_name": source_name, "license": header.get("license"), "is_phantom": is_phantom}


def check_alike(sites: list[Site]) -> None:
    """Checks classes, image size and columns of all sites against the first.

    Raises:
        InputError: Names the first site that differs.
    """
    first = sites[0]
    for site in sites[1:]:
        if site.class_names != first.class_names:
            raise InputError(
                f"{site.given} has other classes than {first.given} ({', '.join(site.class_names)} and not "
                f"{', '.join(first.class_names)}): all sites must have the same in the same order"
            )
        if site.images[0].shape != first.images[0].shape:
            raise InputError(
                f"{site.given} has images of {len(site.images[0])} pixels and {first.given} of "
                f"{len(first.images[0])}: distil all sites with the same {param('image_size')}"
            )
        if site.features != first.features:
            columns = sorted(
                column
                for column in site.features.keys() | first.features.keys()
                if site.features.get(column) != first.features.get(column)
            )
            raise InputError(
                f"{site.given} has other columns than {first.given} ({', '.join(columns)}): all sites must have the "
                "same of the same type"
            )


def set_offsets(sites: list[Site]) -> None:
    """Notes by how much each site's communities are to be raised, so that no two sites share one."""
    offset = 0
    for site in sites:
        site.facts["community_offset"] = offset
        offset += max([-1, *site.columns.get("community", [])]) + 1


def merge_sites(sites: list[Site]) -> Dataset:
    """All rows: grouped by class, within a class by site, within a site in its order.

    Returns:
        A dataset with the columns of the sites and `site`, a ClassLabel of their names. Communities are raised by the
        site's `community_offset`; -1, which means none, stays.
    """
    rows: dict[str, list[Any]] = {"image": [], **{column: [] for column in sites[0].columns}, "site": []}
    for number, site in enumerate(sites):
        offset = site.facts["community_offset"]
        columns = dict(site.columns)
        if "community" in columns:
            columns["community"] = [c + offset if c >= 0 else c for c in columns["community"]]
        for column, values in columns.items():
            rows[column] += values
        rows["image"] += [{"bytes": png_bytes(PILImage.fromarray(image)), "path": None} for image in site.images]
        rows["site"] += [number] * len(site.images)
    order = np.lexsort((rows["site"], rows["label"]))  # stable: rows that tie stay in their order
    features = Features({**sites[0].features, "site": ClassLabel(names=[site.name for site in sites])})
    return Dataset.from_dict({column: [rows[column][i] for i in order] for column in features}, features=features)


def write_merged(folder: Path, sites: list[Site]) -> int:
    """Writes the rows of all sites as one dataset, with its card.

    Returns:
        The number of images.
    """
    merged = merge_sites(sites)
    with new_folder(folder / "data") as new:
        merged.to_parquet(new / "train-00000-of-00001.parquet")
    licenses = [site.facts["license"] for site in sites]
    card = DistilledDatasetCardData(
        class_names=sites[0].class_names,
        n_per_class=np.bincount(merged["label"]).tolist(),
        image_size=len(sites[0].images[0]),
        features=merged.features,
        license=licenses[0] if licenses.count(licenses[0]) == len(licenses) else None,
        sites=[site.facts for site in sites],
    )
    write_text(folder / "README.md", render_dataset_card(card))
    return len(merged)
