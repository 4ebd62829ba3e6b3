"""Distilled sets of several sites: found, read, checked against each other, and joined."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import yaml
from huggingface_hub import metadata_load
from pydantic import Field, StringConstraints, ValidationError

from histodistill.hub_cards import DistilledDatasetCardData, render_dataset_card
from histodistill.hub_cards.dataset_card import NO_SOURCE, NOT_TISSUE, TITLE
from histodistill.hub_cards.documents import Known, check_document, read_document
from histodistill.hub_cards.errors import ContentError
from histodistill.hub_cards.group_facts import GroupFacts
from histodistill.hub_cards.names import is_license_id
from histodistill.hub_cards.part_files import hash_files, read_file
from histodistill.hub_cards.site_verdict import SET_AUDIT, SiteVerdict, image_hashes
from histodistill.hub_cards.tables import ImageTable, check_names
from histodistill.training.data.image_dataset import SHARD, find_shards, read_shards, write_image_dataset
from histodistill.training.distillation.site_choice import match_classes, parse_shares, rename_classes, take_shares
from histodistill.training.models.encoder_licences import for_cards
from histodistill.training.models.encoder_record import EncoderRecord
from histodistill.training.running.errors import InputError, param
from histodistill.training.running.files import read_json, sha256_of, write_text
from histodistill.training.running.stages import RECORD


_Count = Annotated[int, Field(ge=0, lt=2**31)]
#: A name of ours, such as that of a selector.
Word = Annotated[str, StringConstraints(pattern=r"^[a-z0-9_]{1,40}$")]


class SiteSettings(Known):
    """The settings of a site's distilled set, as far as they are told."""

    stage: Word = "distilled"
    selector: Word | None = None


class SiteRecord(Known):
    """The record of a site's distilled set, as far as it is told; a site may have none."""

    complete: bool = True
    settings: SiteSettings = SiteSettings()
    fingerprint: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")] | None = None
    community_sizes: dict[str, list[_Count]] | None = None
    dropped: dict[str, _Count] | None = None
    copies_dropped: dict[str, _Count] | None = None
    encoders: Annotated[list[EncoderRecord], Field(max_length=20)] = Field(default_factory=list)

    @property
    def pool_size(self) -> int | None:
        """Images that the selector chose from; None where the record does not say."""
        if self.community_sizes is None or self.dropped is None:
            return None
        chosen_from = sum(map(sum, self.community_sizes.values()))
        return chosen_from + sum(self.dropped.values()) + sum((self.copies_dropped or {}).values())


@dataclass(repr=False)
class Site:
    """One distilled set.

    Attributes:
        given: The folder as the user names it, for messages only.
        folder: The folder that holds `data/`.
        name: What the result calls the site.
        table: Its images, its other columns and the names of its classes.
        facts: Where the images come from, plain JSON values with no paths: what record and card say of the site.
        record: The verdict that came with the set, which is about these images; None where there is none.
    """

    given: Path
    folder: Path
    name: str
    table: ImageTable
    facts: dict[str, Any] = field(default_factory=dict)
    record: SiteVerdict | None = None


def read_sites(
    paths: Sequence[Path],
    names: Sequence[str] | None,
    output: Path,
    *,
    shares: Sequence[str] = (),
    renames: Sequence[str] = (),
    keep_all_classes: bool = False,
) -> list[Site]:
    """Reads the distilled sets of all sites, and makes them fit each other.

    Args:
        paths: Run folders with `distilled/`, or distilled sets themselves.
        names: What to call the sites; None for the names of their folders.
        output: The folder of the result, which must be none of theirs.
        shares: `NAME=NUMBER` for each site: see `take_shares`; none for all images.
        renames: `NAME:OLD=NEW`, what to call a class of a site.
        keep_all_classes: Whether there may be classes that only some sites have.

    Raises:
        InputError: For a folder that is no site, is named twice or is the output, for names that are no plain text,
            and for sites that differ in classes, image size or columns.
    """
    folders = [find_distilled(path) for path in paths]
    for path, folder in zip(paths, folders, strict=True):
        if folders.count(folder) > 1:
            raise InputError(f"{path} is named twice: name each site once")
        if output.resolve() in (folder, path.resolve()):
            raise InputError(f"{param('output')} {output} is one of the sites: give another folder")
    names = names or default_names(folders)
    try:
        check_names(names, "site")
    except ContentError as error:
        raise InputError(f"{param('names')}={' '.join(names)} cannot be published: {error}") from error
    numbers = parse_shares(shares, names) if shares else None
    sites = [read_site(*site) for site in zip(paths, folders, names, strict=True)]
    # Sets that were made before there were ranks have none.
    if not all("rank" in site.table.columns for site in sites):
        for site in sites:
            site.table.columns.pop("rank", None)
    # Views are told by class and rank, which images of several sites share.
    for site in sites:
        site.table.columns.pop("soft_label_views", None)
    check_alike(sites)
    tables = rename_classes({site.name: site.table for site in sites}, renames)
    tables = match_classes(tables, keep_all_classes)
    if numbers is not None:
        tables = take_shares(tables, numbers)
    for site in sites:
        site.table = tables[site.name]
        counts = np.bincount(site.table.columns["label"], minlength=len(site.table.class_names))
        site.facts |= {"num_images": len(site.table), "n_per_class": counts.tolist()}
    set_offsets(sites)
    return sites


def find_distilled(path: Path) -> Path:
    """The resolved folder of the distilled set that a site's folder is or holds.

    Raises:
        InputError: If there is none, or a file of it is missing.
    """
    for folder in (path / "distilled", path):
        if find_shards(folder):
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


def _record_of(folder: Path) -> Any:
    """What a set's record holds, whatever that is; nothing where there is no record that can be read."""
    try:
        return read_json(folder / RECORD)
    except (OSError, ValueError):
        return {}


def read_site(given: Path, folder: Path, name: str) -> Site:
    """Reads the distilled set in `folder`, its record and its card; there may be no record and no card.

    Raises:
        InputError: If it is unfinished, another stage's result, already merged, or cannot be read.
    """
    try:
        record = SiteRecord.model_validate(_record_of(folder))
    except ValidationError as error:
        place = ".".join(map(str, error.errors()[0]["loc"]))
        raise InputError(f"{folder / RECORD} holds what no record does ({place}): ask for it again") from error
    if not record.complete:
        raise InputError(f"{given} is not finished: run the command that makes it again, then merge")
    if record.settings.stage not in ("distilled", "merged"):
        raise InputError(f"{given} is a {record.settings.stage}, no distilled set: give what histodistill select left")
    files = find_shards(folder)
    try:
        table = read_shards(files)
    except (ContentError, OSError) as error:
        raise InputError(
            f"{given} holds no distilled set that can be read ({error}): ask for it again, or leave it out"
        ) from error
    if "site" in table.columns:
        raise InputError(f"{given} has a column site, so it is merged already: name the sites that it was made of")
    site = Site(given, folder, name, table)
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.read_bytes())
    site.record = read_verdict(site, files)
    site.facts = {
        "name": name,
        "num_images": len(table),
        "n_per_class": [],  # when it is known which images are taken
        "selector": record.settings.selector,
        "pool_size": record.pool_size,
        "fingerprint": record.fingerprint,
        **read_card(folder / "README.md"),
        "groups": read_groups(folder.parent / "run.json"),
        "data_sha256": digest.hexdigest(),
    }
    if record.encoders:
        site.facts["encoders"] = [encoder.model_dump() for encoder in record.encoders]
    return site


def read_verdict(site: Site, files: Sequence[Path]) -> SiteVerdict | None:
    """The verdict that came with a set; None where there is none.

    What it was, the audit of a merged set sees: here it is seen that it is about the files that it came with.

    Args:
        site: With its table as it was read.
        files: Where it was read from.

    Raises:
        InputError: If it holds anything else than a verdict, or is about other files or images.
    """
    path = site.folder / SET_AUDIT
    if not os.path.lexists(path):
        return None
    remedy = f"ask {site.name} for its set with the record of its audit again"
    try:
        record = read_document(read_file(path), SiteVerdict)
        # The record of the stage is not on the Hub.
        names = [f"data/{file.name}" for file in files] + [RECORD] * (site.folder / RECORD).is_file()
        found = hash_files(site.folder, names)
    except ContentError as error:
        raise InputError(f"{path} is no record of an audit, or was changed ({error}): {remedy}") from error
    audited = record.audit.parts["distilled"].files
    if any(audited.get(name) != digest for name, digest in found.items()):
        raise InputError(f"{path} is about other files than those of the set of {site.name}: {remedy}")
    if image_hashes(site.table.images) != record.images:
        raise InputError(f"{path} is about other images than those of the set of {site.name}: {remedy}")
    return record


def read_card(path: Path) -> dict[str, Any]:
    """What a distilled set's card says of its tiles.

    Returns:
        `source_name` and `license`, each None where it is not said, and whether the tiles are drawings: `is_phantom`.

    Raises:
        InputError: If the card's header is damaged, or says what cannot be told on another card.
    """
    if not path.is_file():
        return {"source_name": None, "license": None, "is_phantom": False}
    try:
        header, text = metadata_load(path) or {}, path.read_text(encoding="utf-8")
    except (ValueError, yaml.YAMLError, OSError) as error:
        raise InputError(f"{path} has a header that is no YAML mapping: correct it") from error
    title, license = str(header.get("pretty_name", "")), header.get("license")
    source_name = title.removeprefix(TITLE) if title.startswith(TITLE) and title != TITLE + NO_SOURCE else None
    try:
        check_names([] if source_name is None else [source_name], "source")
    except ContentError as error:
        raise InputError(f"{path} names tiles that cannot be named on another card ({error}): correct it") from error
    if license is not None and not (isinstance(license, str) and is_license_id(license)):
        raise InputError(f"{path} has a license that is no identifier of one: correct it, such as cc-by-4.0")
    is_phantom = source_name == "phantom" or NOT_TISSUE in text
    return {"source_name": source_name, "license": license, "is_phantom": is_phantom}


def read_groups(path: Path) -> dict[str, Any] | None:
    """What a site's run says of the groups of its tiles, such as patients; None where nothing is known of them.

    Raises:
        InputError: If it says something else there.
    """
    try:
        said = read_json(path).get("groups")
        return None if said is None else check_document(said, GroupFacts).model_dump()
    except OSError:  # a set by itself, as other sites have it
        return None
    except (ValueError, AttributeError, ContentError) as error:
        raise InputError(f"{path} does not say which groups there are ({error}): ask for the run's own") from error


def check_alike(sites: list[Site]) -> None:
    """Checks image size and columns of all sites against the first.

    Raises:
        InputError: Names the first site that differs.
    """
    first = sites[0]
    for site in sites[1:]:
        mine, other = site.table, first.table
        if mine.images.shape[1:] != other.images.shape[1:]:
            raise InputError(
                f"{site.given} has images of {mine.images.shape[1]} pixels and {first.given} of "
                f"{other.images.shape[1]}: distil all sites with the same {param('image_size')}"
            )
        if different := sorted(mine.columns.keys() ^ other.columns.keys()):
            raise InputError(
                f"{site.given} has other columns than {first.given} ({', '.join(different)}): all sites must have the "
                "same"
            )


def set_offsets(sites: list[Site]) -> None:
    """Notes by how much each site's communities are to be raised, so that no two sites share one."""
    offset = 0
    for site in sites:
        site.facts["community_offset"] = offset
        offset += int(site.table.columns.get("community", np.array([-1])).max()) + 1


def merge_sites(sites: list[Site]) -> ImageTable:
    """All rows: grouped by class, within a class by site, within a site in its order.

    Returns:
        A table with the columns of the sites and `site`, which of them an image is from. Communities are raised by the
        site's `community_offset`; -1, which means none, stays.
    """
    rows: dict[str, list[np.ndarray]] = {column: [] for column in (*sites[0].table.columns, "site")}
    for number, site in enumerate(sites):
        columns = {**site.table.columns, "site": np.full(len(site.table), number)}
        if "community" in columns:
            communities = columns["community"]
            columns["community"] = np.where(communities < 0, communities, communities + site.facts["community_offset"])
        for column, values in columns.items():
            rows[column].append(values)
    joined = {column: np.concatenate(parts) for column, parts in rows.items()}
    order = np.lexsort((joined["site"], joined["label"]))  # stable: rows that tie stay in their order
    return replace(
        sites[0].table,
        images=np.concatenate([site.table.images for site in sites])[order],
        columns={column: values[order] for column, values in joined.items()},
        site_names=[site.name for site in sites],
    )


def write_merged(folder: Path, sites: list[Site]) -> tuple[int, str]:
    """Writes the rows of all sites as one dataset, with its card; an audit that is there was of another.

    Returns:
        The number of images, and the SHA-256 of the file.
    """
    (folder / SET_AUDIT).unlink(missing_ok=True)
    merged = merge_sites(sites)
    features = write_image_dataset(
        folder / "data", merged.images, merged.columns, merged.class_names, merged.site_names
    )
    licenses = [site.facts["license"] for site in sites]
    card = DistilledDatasetCardData(
        class_names=merged.class_names,
        n_per_class=np.bincount(merged.columns["label"]).tolist(),
        image_size=merged.images.shape[1],
        features=features,
        license=licenses[0] if licenses.count(licenses[0]) == len(licenses) else None,
        sites=[site.facts for site in sites],
        encoders=for_cards(encoder for site in sites for encoder in site.facts.get("encoders", ())),
    )
    write_text(folder / "README.md", render_dataset_card(card))
    return len(merged), sha256_of(folder / "data" / SHARD)
