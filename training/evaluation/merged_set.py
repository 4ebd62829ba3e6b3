"""The audit of a merged set as a whole: the verdicts of its sites, and images that sites have in common.

Nobody who merges sets has the tiles of other sites, so nothing is compared with tiles here. Each site's audit was
about its own set; what is seen is that the merged set holds images of these sets and no others. All of it follows from
the files, so publishing judges them anew, and does not go by what lies beside them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from histodistill.hub_cards import AuditFacts, ContentError, DistilledDatasetCardData, RunFacts
from histodistill.hub_cards.audit_record import Count, FindingRecord, VerdictRecord
from histodistill.hub_cards.contents import about
from histodistill.hub_cards.documents import ClassName, Known, Sha256, read_document
from histodistill.hub_cards.group_facts import GroupFacts
from histodistill.hub_cards.part_files import hash_contents, read_part
from histodistill.hub_cards.site_verdict import VERDICT_FORMAT, MergedRecord, SiteVerdict, image_hashes
from histodistill.hub_cards.table_files import read_table, write_table
from histodistill.hub_cards.tables import ImageTable, canonical
from histodistill.selection.near_copies import TOLERANCE, near_pairs
from histodistill.training.data.image_dataset import SHARD, dataset_features
from histodistill.training.distillation.site_sets import Word
from histodistill.training.evaluation.verdicts import check_verdicts
from histodistill.training.models.encoder_licences import for_cards
from histodistill.training.models.encoder_record import EncoderRecord, LicenseId
from histodistill.training.running.errors import InputError
from histodistill.training.running.stages import RECORD


# The file of a merged set that is published.
_TABLE = f"data/{SHARD}"


class MergedSite(Known):
    """What the record of a merged set says of a site: see `site_sets.Site.facts`."""

    name: ClassName
    num_images: Count
    n_per_class: list[Count]
    selector: Word | None
    pool_size: Count | None
    fingerprint: Sha256 | None
    source_name: ClassName | None
    license: LicenseId | None
    is_phantom: bool
    groups: GroupFacts | None
    encoders: Annotated[list[EncoderRecord], Field(max_length=20)] = Field(default_factory=list)


class MergedSettings(Known):
    """The settings of a merged set, as far as they are told."""

    stage: Literal["merged"]


class MergedStage(Known):
    """The record of a merged set, as far as it is told."""

    complete: Literal[True]
    settings: MergedSettings
    data_sha256: Sha256
    sites: Annotated[list[MergedSite], Field(min_length=2)]
    records: list[SiteVerdict | None]


@dataclass(frozen=True, repr=False)
class MergedSet:
    """A merged set, read once, that holds nothing but what it may.

    Attributes:
        folder: Where it was read from.
        files: Path → content: the table and the record.
        table: Its images and what is known of each.
        sites: What is told of each site.
        records: The verdict that came with each site's set; None where none did.
    """

    folder: Path
    files: dict[str, bytes]
    table: ImageTable
    sites: list[MergedSite]
    records: list[SiteVerdict | None]

    @classmethod
    def read(cls, folder: Path) -> MergedSet:
        """Reads it.

        Raises:
            InputError: For a file that it may not hold, or that was changed since it was merged.
        """
        try:
            files = read_part(folder, "distilled")
            with about(folder, RECORD):
                record = read_document(files[RECORD], MergedStage)
            with about(folder, _TABLE):
                if _TABLE not in files or hash_contents(files)[_TABLE] != record.data_sha256:
                    raise ContentError("is not the file that merge left")
                table = canonical(read_table(files[_TABLE]))
            with about(folder, RECORD):
                if not _fits(record, table):
                    raise ContentError("tells of other sites than those of the images")
        except ContentError as error:
            raise InputError(f"{error}; merge the sites again, into a new folder") from error
        return cls(folder, files, table, record.sites, record.records)

    @cached_property
    def published(self) -> dict[str, bytes]:
        """The files that go up, but for the card: path → content."""
        return {_TABLE: write_table(self.table)}

    def rows_of(self, number: int) -> np.ndarray:
        """The images of a site, uint8 N×S×S×3."""
        return self.table.images[self.table.columns["site"] == number]


def _fits(record: MergedStage, table: ImageTable) -> bool:
    """Whether a record tells of the sites of a table."""
    if [site.name for site in record.sites] != table.site_names or len(record.records) != len(record.sites):
        return False
    counts = np.zeros((len(record.sites), len(table.class_names)), np.int64)
    np.add.at(counts, (table.columns["site"], table.columns["label"]), 1)
    return all(
        site.n_per_class == mine and site.num_images == sum(mine)
        for site, mine in zip(record.sites, counts.tolist(), strict=True)
    )


def judge_merged(merged: MergedSet) -> MergedRecord:
    """The verdict on a merged set: whether each site's set passed its audit, and no image is at two sites.

    Raises:
        InputError: If a site's verdict contradicts itself, or the set has an image that it is not about.
    """
    findings = [_judge_site(merged, number) for number in range(len(merged.sites))]
    findings.append(_judge_common(merged))
    verdict = VerdictRecord(
        passed=all(finding.passed for finding in findings), findings=tuple(findings), files=hash_contents(merged.files)
    )
    return MergedRecord(format=VERDICT_FORMAT, parts={"distilled": verdict})


def _judge_site(merged: MergedSet, number: int) -> FindingRecord:
    """What is to be said of one site."""
    name, record = merged.sites[number].name, merged.records[number]
    if record is None:
        return _finding(number, False, f"no record of an audit came with the set of {name}")
    remedy = f"ask {name} for its set with the record of its audit again, and merge into a new folder"
    check_verdicts(record.audit, f"the record of the audit of {name}", remedy)
    strange = Counter(image_hashes(merged.rows_of(number))) - Counter(record.images)
    if strange:
        raise InputError(
            f"{merged.folder} has images of {name} that its audit was not about ({strange.total()} of "
            f"{merged.sites[number].num_images}): merge the sites again, into a new folder"
        )
    verdict = record.audit.parts["distilled"]
    if not verdict.passed:
        reasons = ", ".join(finding.name for finding in verdict.findings if not finding.passed)
        return _finding(number, False, f"the set of {name} did not pass the audit of its site ({reasons})")
    units = record.audit.figures.units
    by = "single tiles only, so nothing is known about its patients"
    if units is not None:
        by = f"{units.kind}: {units.num_training:,} whose tiles were trained on, {units.num_held_out:,} held out"
    return _finding(number, True, f"the set of {name} passed the audit of its own site, by {by}")


def _judge_common(merged: MergedSet) -> FindingRecord:
    """Which images sites have in common: the same one says that a set is there twice, or repeats a tile at both."""
    by_site = [merged.rows_of(number) for number in range(len(merged.sites))]
    site_of = np.repeat(np.arange(len(by_site)), [len(images) for images in by_site])
    equal, near = (_shared(near_pairs(by_site, tolerance), site_of) for tolerance in (0, TOLERANCE))
    sentence = (
        f"{equal:,} images are equal to one of another site, also turned or mirrored; {near - equal:,} more differ "
        f"from one by {TOLERANCE} grey levels at most, on average"
    )
    return FindingRecord(name="common", passed=equal == 0, sentence=sentence)


def _shared(pairs: np.ndarray, site_of: np.ndarray) -> int:
    """How many images are in a pair with one of another site, by pairs int64 P×2 of rows."""
    across = pairs[site_of[pairs[:, 0]] != site_of[pairs[:, 1]]]
    return len(np.unique(across))


def _finding(number: int, passed: bool, sentence: str) -> FindingRecord:
    return FindingRecord(name=f"site {number + 1}", passed=passed, sentence=sentence)


def merged_card(
    merged: MergedSet,
    audit: AuditFacts | None,
    *,
    name: str = "",
    repos: Mapping[str, str] | None = None,
    license: str | None = None,
    attribution: str | None = None,
    has_grid: bool = False,
) -> DistilledDatasetCardData:
    """What the card of a merged set says.

    Args:
        merged: The set.
        audit: What its audit found.
        name: What to call the tiles of all sites together.
        repos: Id on the Hub of the "dataset" repository; none for a card that stays here.
        license: By default that which all sites state.
        attribution: Whom to credit for the tiles.
        has_grid: Whether the picture of the card lies beside it.
    """
    sites: list[dict[str, Any]] = [site.model_dump() for site in merged.sites]
    licenses = {site.license for site in merged.sites}
    labels, size = merged.table.columns["label"], merged.table.images.shape[1]
    facts = RunFacts(
        repos=repos or {},
        name=name,
        is_phantom=any(site.is_phantom for site in merged.sites),
        class_names=merged.table.class_names,
        image_size=size,
        num_distilled=len(labels),
        audit=audit,
    )
    return DistilledDatasetCardData(
        class_names=merged.table.class_names,
        n_per_class=np.bincount(labels).tolist(),
        image_size=size,
        features=dataset_features(merged.table),
        license=license or (licenses.pop() if len(licenses) == 1 else None),
        attribution=attribution,
        sites=sites,
        encoders=for_cards(encoder for site in sites for encoder in site["encoders"]),
        facts=facts,
        has_grid=has_grid,
    )
