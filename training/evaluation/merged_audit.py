"""The audit of a merged set by one of its sites: does it, as a whole, give away anything about the site's own tiles?

Each site asks this of its own tiles, which no other site may see. Images of other sites were made by models that never
saw them, and so make the site's share smaller; that is how it will be shared.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from histodistill.hub_cards.audit_record import AuditRecord
from histodistill.hub_cards.errors import ContentError
from histodistill.hub_cards.part_files import hash_part
from histodistill.selection.real_tiles import LabelledImages
from histodistill.training.data.image_dataset import read_image_dataset
from histodistill.training.evaluation.cells import check_same_kind
from histodistill.training.evaluation.run_audit import AuditedRun, audit_set
from histodistill.training.evaluation.verdicts import make_audit
from histodistill.training.running.errors import InputError, param


def audit_merged(run: AuditedRun, merged: Path, embedders: Sequence[str], n_planted: int, seed: int) -> AuditRecord:
    """The verdict on a merged set, by the tiles of one of its sites.

    Args:
        run: The site's run.
        merged: What `merge` left.
        embedders: Embedding spaces beside pixels.
        n_planted: Copies of each kind to plant.
        seed: Of all that is random.

    Raises:
        InputError: If the set is of other classes or another size, has changed meanwhile, or is no merged set.
    """
    before = _hashes(merged)
    images, columns, class_names = read_image_dataset(merged)
    check_same_kind(merged, images, class_names, run.source)
    if "site" not in columns:
        raise InputError(f"{param('merged')}={merged} has no column site: give what histodistill merge left")
    result = audit_set(run, LabelledImages(images, columns["label"]), embedders, n_planted, seed)
    if _hashes(merged) != before:
        raise InputError(f"files of {merged} have changed while it was audited: run histodistill audit again")
    return make_audit(result, class_names, {"distilled": before}, {}, {**run.facts, "copies_dropped": None})


def _hashes(merged: Path) -> dict[str, str]:
    """File of a merged set → SHA-256."""
    try:
        return hash_part(merged, "distilled")
    except ContentError as error:
        raise InputError(f"{param('merged')}={merged} cannot be audited: {error}") from error
