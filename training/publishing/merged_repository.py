"""The repository of a merged set as it is to be published, past the gate."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from histodistill.hub_cards import AuditError, AuditFacts, ContentError, Upload, check_audit, render_dataset_card
from histodistill.hub_cards.documents import read_document
from histodistill.hub_cards.part_files import read_file
from histodistill.hub_cards.pictures import encode_png
from histodistill.hub_cards.set_record import SET_RECORD, write_set_record
from histodistill.hub_cards.site_verdict import SET_AUDIT, MergedRecord
from histodistill.training.evaluation.checked_run import distilled_grid
from histodistill.training.evaluation.merged_set import MergedSet, judge_merged, merged_card
from histodistill.training.models.encoder_licences import tell_licences
from histodistill.training.publishing.pushing import as_input_error
from histodistill.training.publishing.repositories import (
    GRID,
    SUFFIXES,
    Repository,
    check_no_paths,
    warn_of_no_licence,
)
from histodistill.training.running.errors import InputError, param


def merged_repository(
    folder: Path,
    repo_id: str,
    *,
    license: str | None = None,
    attribution: str | None = None,
    show_refused: bool = False,
) -> Repository:
    """The repository of a merged set.

    The set is judged anew, and its audit.json must say the same: what somebody writes there changes nothing.

    Args:
        folder: What `merge` left.
        repo_id: Namespace, and what to call the tiles of all sites together.
        license: Of the set; by default that which all sites state.
        attribution: Whom to credit for the tiles.
        show_refused: Whether one that the gate refuses is put together all the same, to be looked at and not to be
            uploaded.

    Raises:
        InputError: If the gate refuses it, a file holds what may not leave, or a site states another licence.
    """
    merged = MergedSet.read(folder)
    judged = judge_merged(merged)
    audit, refusal = _read_audit(folder, judged), None
    try:
        # What stands on a page names no folder of this machine.
        check_audit("merged" if show_refused else folder, merged.files, audit, "distilled")
    except AuditError as error:
        if not show_refused:
            raise as_input_error(error) from error
        refusal = as_input_error(error).for_command_line()
    for site in merged.sites:
        if license is not None and site.license not in (None, license):
            raise InputError(
                f"{param('license')}={license} is not that of the set of {site.name}, which is {site.license}: leave "
                "it out, and the card tells the licence of each site"
            )
    name = repo_id.partition("/")[2]
    repo_id = f"{repo_id}-{SUFFIXES['dataset']}"
    facts = None if audit is None else AuditFacts.of(audit, "distilled")
    card = merged_card(
        merged,
        facts,
        name=name,
        repos={"dataset": repo_id},
        license=license,
        attribution=attribution,
        has_grid=True,
    )
    files = {
        **merged.published,
        GRID: encode_png(np.asarray(distilled_grid(merged.table.images, merged.table.columns["label"]))),
        "README.md": render_dataset_card(card).encode(),
    }
    # The images are of several pipelines, so none makes all of them again.
    files[SET_RECORD] = write_set_record(files, facts, generation=None)
    upload = Upload("dataset", repo_id, files)
    check_no_paths(upload, (folder, Path.home()))
    tell_licences(encoder.model_dump() for site in merged.sites for encoder in site.encoders)
    if license is None and any(site.license is None and not site.is_phantom for site in merged.sites):
        warn_of_no_licence()
    return Repository(upload, refusal)


def _read_audit(folder: Path, judged: MergedRecord) -> MergedRecord | None:
    """The audit of a merged set; None where there is none.

    Raises:
        InputError: If it says something else than what was found now.
    """
    path = folder / SET_AUDIT
    if not os.path.lexists(path):
        return None
    try:
        audit = read_document(read_file(path), MergedRecord)
    except ContentError as error:
        raise InputError(
            f"{path} is no audit of a merged set ({error}): run histodistill audit {folder} again"
        ) from error
    if audit != judged:
        raise InputError(f"{path} is not about this set, or was changed: run histodistill audit {folder} again")
    return audit
