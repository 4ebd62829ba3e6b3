"""What goes with a run's distilled set: its card, as it is published and in the run's own folder, and its verdict."""

from __future__ import annotations

import numpy as np

from histodistill.hub_cards import AuditFacts, ContentError, DistilledDatasetCardData, RunFacts, render_dataset_card
from histodistill.hub_cards.audit_record import AuditRecord
from histodistill.hub_cards.dataset_card import NO_SOURCE
from histodistill.hub_cards.documents import parse_json
from histodistill.hub_cards.site_verdict import SET_AUDIT, VERDICT_FORMAT, SiteVerdict, image_hashes
from histodistill.training.data.image_dataset import dataset_features
from histodistill.training.data.medmnist import public_name
from histodistill.training.evaluation.checked_run import CheckedRun
from histodistill.training.evaluation.run_contents import RunContents, RunFiles
from histodistill.training.running.files import write_json, write_text
from histodistill.training.running.notes import warn


def dataset_card(run: CheckedRun, facts: RunFacts, *, has_pictures: bool) -> DistilledDatasetCardData:
    """What the card of the distilled set says.

    Args:
        run: The run.
        facts: What its cards say alike.
        has_pictures: Whether the pictures of the card lie beside it.
    """
    config = run.selector.config
    return DistilledDatasetCardData(
        class_names=list(facts.class_names),
        n_per_class=np.bincount(run.labels).tolist(),
        image_size=facts.image_size,
        pool_size=run.pool.num_images,
        selector=config.class_name,
        selector_params=dict(sorted(config.params.model_dump().items())),
        features=dataset_features(run.distilled.table),
        embedder=run.embedder,
        encoders=run.encoders,
        source_name=facts.name,
        license=facts.license,
        attribution=facts.attribution,
        results=facts.results,
        filters=run.filters,
        generation=run.generation,
        precision=run.precision,
        review=run.review,
        facts=facts,
        has_grid=has_pictures,
        has_map=has_pictures and run.map is not None,
    )


def write_site_verdict(files: RunFiles, contents: RunContents, audit: AuditRecord) -> None:
    """Writes RUN/distilled/audit.json: the verdict on the set as it goes with the set, to be merged elsewhere.

    Its figures are of the real tiles, so there is none of a run under a budget of differential privacy.

    Args:
        files, contents, audit: As for `renew_card`.
    """
    path = files.folder / "distilled" / SET_AUDIT
    if "run.json" in files.records and parse_json(files.records["run.json"]).get("privacy"):
        path.unlink(missing_ok=True)
        return
    table = contents.distilled.table
    alone = {
        # What the real tiles are called stays here, unless everybody knows it.
        "data": public_name(audit.data, table.class_names) or NO_SOURCE,
        "parts": {"distilled": audit.parts["distilled"]},
        "records": {},
    }
    record = SiteVerdict(
        format=VERDICT_FORMAT, audit=audit.model_copy(update=alone), images=image_hashes(table.images)
    )
    write_json(path, record.model_dump(mode="json"))


def renew_card(files: RunFiles, contents: RunContents, audit: AuditRecord) -> None:
    """Writes RUN/distilled/README.md anew, with the scores and the verdict that the run now has.

    What `select` wrote there is from before either was known. The file stays here: the card that goes up is made while
    publishing. A run that no card can tell of keeps the one that it has, and a warning says why.

    Args:
        files: The run, as it was read for its audit.
        contents: What of it goes up.
        audit: The audit.
    """
    path = files.folder / "distilled" / "README.md"
    try:
        run = CheckedRun.of(files, contents)
        # The set may leave the house as it is, to be merged: names of files stay in it.
        facts = run.facts({}, public_name(run.records.source, run.class_names) or NO_SOURCE)
        facts = facts.audited(AuditFacts.of(audit, "distilled"))
        text = render_dataset_card(dataset_card(run, facts, has_pictures=False))
    except ContentError as error:
        warn(f"{path} does not tell what the audit found: {error}")
    else:
        write_text(path, text)
