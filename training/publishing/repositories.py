"""The repositories of a run as they are to be published: files and card of each, past the gate of the audit.

Every file of a run is read once, into memory. Those bytes are compared with the audit, checked, and taken apart; what
goes up, pictures and cards as well, is made of what was found in them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from histodistill.hub_cards import (
    AuditError,
    AuditFacts,
    ContentError,
    DistilledDatasetCardData,
    PipelineCardData,
    RunFacts,
    SelectorCardData,
    Upload,
    audit_sentences,
    check_audit,
    check_records,
    render_dataset_card,
    render_pipeline_card,
    render_selector_card,
)
from histodistill.hub_cards.audit_record import AuditRecord
from histodistill.hub_cards.contents import PipelineContent, SelectorContent, SetContent, about
from histodistill.hub_cards.pictures import encode_png
from histodistill.training.data.image_dataset import dataset_features
from histodistill.training.data.images import make_grid
from histodistill.training.distillation.community_discs import community_discs
from histodistill.training.evaluation.run_contents import RunFiles
from histodistill.training.evaluation.verdicts import read_run_audit
from histodistill.training.generate import PIPELINE_OPTIONS
from histodistill.training.models.embedders import describe_embedder
from histodistill.training.publishing.pushing import as_input_error
from histodistill.training.reporting.run_facts import RunRecords, public_name, read_run_facts
from histodistill.training.reporting.run_records import StageRecord, by_class, check_setting
from histodistill.training.running.errors import InputError, param
from histodistill.training.running.stages import require_complete


# What the name of each repository ends with.
SUFFIXES = {"pipeline": "ldm", "selector": "selector", "dataset": "distilled"}
# The folder of a run that each repository is made of, and that its verdict is about.
PARTS = {"pipeline": "pipeline", "selector": "selector", "dataset": "distilled"}
# Images of a class in the picture of the distilled set, which fit side by side on a card.
GRID_COLUMNS = 10
# In pixels: to about this small images are enlarged in that picture.
_GRID_SIDE = 64
# Settings of `select` that say what an image of the pool had to pass.
_FILTERS = ("min_probability", "typical_share")
# What cards call the place of the picture of the distilled set.
_GRID = "assets/distilled.png"
# The same of the picture of the pool's communities.
_MAP = "assets/community_map.png"
# An embedder that is not of a run: a model of the Hub, or of a library.
_MODEL_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,63}(/[A-Za-z0-9][\w.-]{0,63})?")


@dataclass(frozen=True, repr=False)
class CheckedRun:
    """A run whose files were read once, and hold nothing but what they may.

    Attributes:
        files: The files as they were read.
        pipeline, selector: What of these parts goes up; None for one that is not to be published.
        distilled: What of the distilled set goes up.
        records: What the stages say, as far as cards tell of it.
    """

    files: RunFiles
    pipeline: PipelineContent | None
    selector: SelectorContent
    distilled: SetContent
    records: RunRecords

    @property
    def class_names(self) -> list[str]:
        """Names of the labels."""
        return self.distilled.table.class_names

    @property
    def labels(self) -> np.ndarray:
        """int64 N, of the distilled set."""
        return self.distilled.table.columns["label"]

    @property
    def selection(self) -> StageRecord:
        """The record of the selection."""
        return self.records.stages["distilled"]

    @property
    def pool(self) -> StageRecord:
        """The record of the pool."""
        return self.records.stages["pool"]

    @cached_property
    def grid(self) -> bytes:
        """PNG file of the first images of each class."""
        return encode_png(np.asarray(distilled_grid(self.distilled.table.images, self.labels)))

    @cached_property
    def community_sizes(self) -> dict[str, list[int]]:
        """Images of each community of a class, the largest first; empty where none were looked for."""
        with about(self.files.folder, "distilled/stage.json"):
            sizes = by_class(self.selection.community_sizes, self.class_names)
            if sum(map(sum, sizes.values())) > (self.pool.num_images or 0):
                raise ContentError("holds communities of more images than the pool has")
            return {name: list(counts) for name, counts in sizes.items()}

    @cached_property
    def map(self) -> bytes | None:
        """PNG file of the pool's communities, drawn from their sizes; None where these are not known."""
        with about(self.files.folder, "distilled/stage.json"):
            chosen = by_class(self.selection.community_chosen, self.class_names)
            if not self.community_sizes or not chosen:
                return None
            try:
                return community_discs(self.community_sizes, chosen)
            except ValueError as error:
                raise ContentError(f"contradicts itself ({error})") from error

    @property
    def map_files(self) -> dict[str, bytes]:
        """The same by its place in a repository."""
        return {} if self.map is None else {_MAP: self.map}

    @cached_property
    def generation(self) -> dict[str, Any]:
        """The options of the pipeline with which the pool was made."""
        with about(self.files.folder, "pool/stage.json"):
            return {name: check_setting(self.pool, "pool", name) for name in PIPELINE_OPTIONS}

    @cached_property
    def filters(self) -> dict[str, Any]:
        """What an image of the pool had to pass before the selector saw it."""
        with about(self.files.folder, "distilled/stage.json"):
            found = {name: check_setting(self.selection, "distilled", name) for name in _FILTERS}
            filters = {name: value for name, value in found.items() if value}
            if self.selection.copies_dropped is not None:
                dropped = by_class(self.selection.copies_dropped, self.class_names)
                filters["copies of real tiles"] = f"{sum(dropped.values())} images dropped"
        return filters

    @cached_property
    def embedder(self) -> str | None:
        """What embedded the pool in words, without the name of a folder or a file."""
        setting = self.selection.settings.get("embedder")
        if not isinstance(setting, str):
            return None
        name, _, digest = setting.partition(", sha256 ")
        of_a_run = {f"{what} of {of}" for what in ("features", "latents") for of in ("a classifier", "an autoencoder")}
        if name in of_a_run or name == "features of a classifier trained on the same tiles":
            return name
        return (
            describe_embedder(name) if not digest and _MODEL_NAME.fullmatch(name) else "a model that is not published"
        )


def collect_uploads(
    run: Path,
    namespace: str,
    kinds: Sequence[str] = tuple(PARTS),
    *,
    name: str | None = None,
    license: str | None = None,
    attribution: str | None = None,
    audit_file: Path | None = None,
    accept_risk: bool = False,
) -> list[Upload]:
    """The repositories of a run as they are to be, in the order in which they refer to each other.

    Args:
        run: Folder of the run.
        namespace: The user or organisation of the Hub that they belong to.
        kinds: Which repositories, of `PARTS`.
        name: What to call the real tiles; by default their own name where that is known to everybody.
        license, attribution: Of the real tiles; by default those of MedMNIST where they are its tiles.
        audit_file: The audit; by default that of the run.
        accept_risk: Whether the gate's refusal is only noted on the cards; what files hold is checked all the same.

    Raises:
        InputError: If a stage is missing, the gate refuses, or a file holds what may not leave.
    """
    try:
        checked = read_checked_run(run, "pipeline" in kinds)
        name = _name_to_publish(checked, name)
        repos = {kind: f"{namespace}/{name}-{SUFFIXES[kind]}" for kind in kinds}
        table = checked.distilled.table
        common = read_run_facts(
            checked.records,
            repos,
            name,
            checked.class_names,
            table.images.shape[1],
            len(table),
            license,
            attribution,
        )
        audit = read_run_audit(audit_file or run / "audit.json")
        facts = {kind: pass_gate(checked.files, kind, audit, common, accept_risk) for kind in kinds}
        makers = {"pipeline": pipeline_upload, "selector": selector_upload, "dataset": dataset_upload}
        uploads = [make(checked, facts[kind]) for kind, make in makers.items() if kind in repos]
    except ContentError as error:
        raise InputError(str(error)) from error
    for upload in uploads:
        check_no_paths(upload, (run, Path.home()))
    return uploads


def read_checked_run(run: Path, with_pipeline: bool) -> CheckedRun:
    """Reads what is published of a run, and sees that it holds nothing but what it may.

    Args:
        run: Folder of the run.
        with_pipeline: Whether the pipeline is to be published.

    Raises:
        InputError: If a stage is missing.
        ContentError: If a file holds what it may not.
    """
    require_complete(run / "distilled", "distilled set", "run histodistill select first")
    require_complete(run / "pool", "pool", "run histodistill generate first")
    parts = ["distilled", "selector"]
    if with_pipeline:
        require_complete(run / "pipeline", "pipeline", "run train_diffusion first")
        parts.append("pipeline")
    files = RunFiles.read(run, parts)
    # The records of the two parts that have one are read with these, and the others beside them.
    stages = {f"{part}/stage.json": files.parts[part]["stage.json"] for part in parts if part != "selector"}
    records = RunRecords.read(run, files.records | stages)
    contents = files.check()
    return CheckedRun(files, contents.pipeline, contents.selector, contents.distilled, records)


def _name_to_publish(run: CheckedRun, name: str | None) -> str:
    """What to call the real tiles in public.

    Raises:
        InputError: If that must be said, or what is said is the name of the built-in drawings and they are not.
    """
    known = public_name(run.records.source, run.class_names)
    name = name or known
    if name is None:
        raise InputError(
            f"the tiles of {run.files.folder} come from a source whose name is not published: give {param('name')}, "
            "what to call them"
        )
    if name == "phantom" and known != "phantom":
        raise InputError(
            f"{param('name')}=phantom is the built-in drawings, and these tiles are not: give another {param('name')}"
        )
    return name


def pass_gate(files: RunFiles, kind: str, audit: AuditRecord | None, facts: RunFacts, accept_risk: bool) -> RunFacts:
    """The facts with what the audit says of one repository.

    Args:
        files: The files of the run as they were read.
        kind: Of the repository.
        audit: The audit, None where there is none.
        facts: What the cards have in common.
        accept_risk: Whether the gate's refusal is only noted.

    Returns:
        The facts with `audit`, where the audit is about these files, and `risk`, what the gate said where it refused.

    Raises:
        InputError: If the gate refuses.
    """
    part = PARTS[kind]
    # A refusal that is overridden stands on the card, which names no folder of this machine.
    run = Path() if accept_risk else files.folder
    try:
        check_audit(run / part, files.parts[part], audit)
        check_records(run, files.records, audit)
        refusal = None
    except AuditError as error:
        if not accept_risk:
            raise as_input_error(error) from error
        refusal = str(error)
    if audit is None or part not in audit.parts:
        return replace(facts, risk=refusal)
    passed = audit.parts[part].passed  # type: ignore[index]
    if refusal and passed:
        # The audit passed, but of other files than these.
        return replace(facts, risk=refusal)
    return replace(facts, risk=refusal, audit=AuditFacts(passed=passed, findings=audit_sentences(audit, part)))


def pipeline_upload(run: CheckedRun, facts: RunFacts) -> Upload:
    """The repository of the pipeline; `facts` is what its card says of the run."""
    assert run.pipeline is not None
    card = PipelineCardData(
        facts=facts,
        components=run.pipeline.components,
        parameters=run.pipeline.parameters,
        generation=run.generation,
        pool_size=run.pool.num_images,
    )
    files = {**run.pipeline.files, _GRID: run.grid, "README.md": render_pipeline_card(card).encode()}
    return Upload("pipeline", facts.repos["pipeline"], files)


def selector_upload(run: CheckedRun, facts: RunFacts) -> Upload:
    """The repository of the selector. Pictures of pool images stay here: no audit has looked at those."""
    config = run.selector.config
    with about(run.files.folder, "distilled/stage.json"):
        dropped = by_class(run.selection.dropped, run.class_names)
    card = SelectorCardData(
        facts=facts,
        selector=config.class_name,
        params=dict(sorted(config.params.model_dump().items())),
        arrays={name: f"{array.dtype}, {len(array):,}" for name, array in sorted(run.selector.arrays.items())},
        n_per_class=config.params.n_per_class,
        pool_size=run.pool.num_images,
        embedder=run.embedder,
        filters=run.filters,
        community_sizes=run.community_sizes,
        dropped=dropped,
        has_map=run.map is not None,
    )
    files = {**run.selector.files, **run.map_files, "README.md": render_selector_card(card).encode()}
    return Upload("selector", facts.repos["selector"], files)


def dataset_upload(run: CheckedRun, facts: RunFacts) -> Upload:
    """The repository of the distilled set; `facts` is what its card says of the run."""
    config = run.selector.config
    card = DistilledDatasetCardData(
        class_names=list(facts.class_names),
        n_per_class=np.bincount(run.labels).tolist(),
        image_size=facts.image_size,
        pool_size=run.pool.num_images,
        selector=config.class_name,
        selector_params=dict(sorted(config.params.model_dump().items())),
        features=dataset_features(run.distilled.table),
        embedder=run.embedder,
        source_name=facts.name,
        license=facts.license,
        attribution=facts.attribution,
        results=facts.results,
        filters=run.filters,
        generation=run.generation,
        facts=facts,
        has_grid=True,
        has_map=run.map is not None,
    )
    pictures = {_GRID: run.grid, **run.map_files}
    files = {**run.distilled.files, **pictures, "README.md": render_dataset_card(card).encode()}
    return Upload("dataset", facts.repos["dataset"], files)


def distilled_grid(images: np.ndarray, labels: np.ndarray) -> Image.Image:
    """The first images of each class, uint8 N×H×W×3 with labels int N, one row for each class."""
    classes = np.unique(labels)
    columns = min(GRID_COLUMNS, *(int((labels == label).sum()) for label in classes))
    shown = np.concatenate([np.flatnonzero(labels == label)[:columns] for label in classes])
    return make_grid(images[shown], columns, scale=max(1, _GRID_SIDE // images.shape[1]))


def check_no_paths(upload: Upload, folders: Iterable[Path]) -> None:
    """Checks that no text of an upload names a folder of this machine.

    Raises:
        InputError: If one does.
    """
    words = {str(path.resolve()).encode() for path in folders} - {b"/"}
    for name, content in upload.files.items():
        if name.endswith((".json", ".md", ".py")) and any(word in content for word in words):
            raise InputError(f"{name} of {upload.repo_id} names a folder of this machine: make the stage again")
