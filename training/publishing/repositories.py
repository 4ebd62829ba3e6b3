"""The repositories of a run as they are to be published: files and card of each, past the gate of the audit.

Every file of a run is read once, into memory. Those bytes are compared with the audit, checked, and taken apart; what
goes up, pictures and cards as well, is made of what was found in them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from histodistill.hub_cards import (
    AuditError,
    AuditFacts,
    ContentError,
    PipelineCardData,
    RunFacts,
    SelectorCardData,
    Upload,
    check_audit,
    check_records,
    render_dataset_card,
    render_pipeline_card,
    render_selector_card,
)
from histodistill.hub_cards.audit_record import AuditRecord
from histodistill.hub_cards.contents import about
from histodistill.hub_cards.set_record import SET_RECORD, write_set_record
from histodistill.training.data.medmnist import public_name
from histodistill.training.evaluation.checked_run import CheckedRun, read_checked_run
from histodistill.training.evaluation.ledger import check_ledger
from histodistill.training.evaluation.run_contents import RunFiles
from histodistill.training.evaluation.run_records import by_class
from histodistill.training.evaluation.set_card import dataset_card
from histodistill.training.evaluation.verdicts import read_run_audit
from histodistill.training.models.encoder_licences import tell_licences
from histodistill.training.publishing.pushing import as_input_error
from histodistill.training.running.errors import InputError, param
from histodistill.training.running.notes import warn
from histodistill.training.tables.benchmark_record import benchmark_rows


# What the name of each repository ends with.
SUFFIXES = {"pipeline": "ldm", "selector": "selector", "dataset": "distilled"}
# The folder of a run that each repository is made of, and that its verdict is about.
PARTS = {"pipeline": "pipeline", "selector": "selector", "dataset": "distilled"}
#: What cards call the place of the picture of the distilled set.
GRID = "assets/distilled.png"
# The same of the picture of the pool's communities.
_MAP = "assets/community_map.png"


@dataclass(frozen=True)
class Repository:
    """A repository of a run as it is to be.

    Attributes:
        upload: What is in it.
        refusal: Why the gate refuses it, without the names of folders; None where it does not, or is overruled.
    """

    upload: Upload
    refusal: str | None = None


def collect_repositories(
    run: Path,
    namespace: str,
    kinds: Sequence[str] = tuple(PARTS),
    *,
    name: str | None = None,
    license: str | None = None,
    attribution: str | None = None,
    audit_file: Path | None = None,
    accept_risk: bool = False,
    show_refused: bool = False,
) -> list[Repository]:
    """The repositories of a run as they are to be, in the order in which they refer to each other.

    Warns where they would have no licence, and tells by what licences models from elsewhere were used.

    Args:
        run: Folder of the run.
        namespace: The user or organisation of the Hub that they belong to.
        kinds: Which repositories, of `PARTS`.
        name: What to call the real tiles; by default their own name where that is known to everybody.
        license, attribution: Of the real tiles; by default those of MedMNIST where they are its tiles.
        audit_file: The audit; by default that of the run.
        accept_risk: Whether the gate's refusal is only noted on the cards; what files hold is checked all the same.
        show_refused: Whether a repository that the gate refuses is put together all the same, to be looked at and not
            to be uploaded.

    Raises:
        InputError: If a stage is missing, the gate refuses, a step of a run under differential privacy is outside its
            budget, or a file holds what may not leave.
    """
    try:
        checked = read_checked_run(run, "pipeline" in kinds)
        name = _name_to_publish(checked, name)
        repos = {kind: f"{namespace}/{name}-{SUFFIXES[kind]}" for kind in kinds}
        facts = checked.facts(repos, name, license, attribution)
        if facts.privacy is not None and facts.privacy.ledger is not None:
            check_ledger(run, facts.privacy.ledger)
            if accept_risk:
                raise InputError(
                    f"{param('i_accept_the_risk')} does not go with a run under differential privacy, since the "
                    "gate's reasons would tell of real tiles outside the budget: publish what passes its audit, with "
                    f"{param('only')}"
                )
        else:
            per_class = facts.num_distilled // len(facts.class_names)
            facts = replace(facts, benchmark=benchmark_rows(run, checked.files.records, per_class))
        audit = read_run_audit(audit_file or run / "audit.json")
        verdicts = {}
        for kind in kinds:
            # What stands on a card or a page names no folder of this machine.
            verdicts[kind] = ask_gate(checked.files, kind, audit, Path() if accept_risk or show_refused else run)
            refusal = verdicts[kind].refusal
            if refusal is not None and not (accept_risk or show_refused):
                raise as_input_error(refusal) from refusal
        repositories = [
            _repository(checked, kind, facts, verdicts[kind], accept_risk) for kind in MAKERS if kind in repos
        ]
    except ContentError as error:
        raise InputError(str(error)) from error
    for repository in repositories:
        check_no_paths(repository.upload, (run, Path.home()))
    tell_licences(encoder.model_dump() for record in checked.records.stages.values() for encoder in record.encoders)
    if facts.license is None and not facts.is_phantom:
        warn_of_no_licence()
    return repositories


def warn_of_no_licence() -> None:
    """Warns that what goes up has no licence."""
    warn(
        "without --license the repositories have no licence, so nobody may lawfully use them: give one that the "
        "owner of the tiles agrees to, such as --license cc-by-4.0"
    )


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


@dataclass(frozen=True)
class GateAnswer:
    """What the gate says of a repository.

    Attributes:
        audit: What the audit says, where it is about these files.
        refusal: Why it may not go up; None where it may.
    """

    audit: AuditFacts | None
    refusal: AuditError | None


def ask_gate(files: RunFiles, kind: str, audit: AuditRecord | None, place: Path) -> GateAnswer:
    """What the gate says of one repository.

    Args:
        files: The files of the run as they were read.
        kind: Of the repository.
        audit: The audit, None where there is none.
        place: What a refusal calls the folder of the run.
    """
    part = PARTS[kind]
    refusal = None
    try:
        check_audit(place / part, files.parts[part], audit)
        check_records(place, files.records, audit)
    except AuditError as error:
        refusal = error
    if audit is None or part not in audit.parts:
        return GateAnswer(None, refusal)
    facts = AuditFacts.of(audit, part)
    # One that passed and is refused was of other files than these.
    return GateAnswer(None if refusal and facts.passed else facts, refusal)


def _repository(run: CheckedRun, kind: str, facts: RunFacts, answer: GateAnswer, accept_risk: bool) -> Repository:
    """A repository with the card that says what the gate says."""
    refusal = None if answer.refusal is None else as_input_error(answer.refusal).for_command_line()
    facts = facts.audited(answer.audit, str(answer.refusal) if answer.refusal and accept_risk else None)
    return Repository(MAKERS[kind](run, facts), None if accept_risk else refusal)


def pipeline_upload(run: CheckedRun, facts: RunFacts) -> Upload:
    """The repository of the pipeline; `facts` is what its card says of the run."""
    assert run.pipeline is not None
    card = PipelineCardData(
        facts=facts,
        components=run.pipeline.components,
        parameters=run.pipeline.parameters,
        generation=run.generation,
        precision=run.precision,
        pool_size=run.pool.num_images,
    )
    files = {**run.pipeline.files, GRID: run.grid, "README.md": render_pipeline_card(card).encode()}
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
        encoders=run.encoders,
    )
    files = {**run.selector.files, **_map_files(run), "README.md": render_selector_card(card).encode()}
    return Upload("selector", facts.repos["selector"], files)


def dataset_upload(run: CheckedRun, facts: RunFacts) -> Upload:
    """The repository of the distilled set; `facts` is what its card says of the run."""
    card = dataset_card(run, facts, has_pictures=True)
    files = {
        **run.distilled.files,
        GRID: run.grid,
        **_map_files(run),
        "README.md": render_dataset_card(card).encode(),
    }
    files[SET_RECORD] = write_set_record(files, facts.audit, run.made_with)
    return Upload("dataset", facts.repos["dataset"], files)


def _map_files(run: CheckedRun) -> dict[str, bytes]:
    """The picture of the pool's communities by its place in a repository."""
    return {} if run.map is None else {_MAP: run.map}


#: Kind of a repository → what puts it together.
MAKERS = {"pipeline": pipeline_upload, "selector": selector_upload, "dataset": dataset_upload}


def check_no_paths(upload: Upload, folders: Iterable[Path]) -> None:
    """Checks that no text of an upload names a folder of this machine.

    Raises:
        InputError: If one does.
    """
    words = {str(path.resolve()).encode() for path in folders} - {b"/"}
    for name, content in upload.files.items():
        if name.endswith((".json", ".md", ".py")) and any(word in content for word in words):
            raise InputError(f"{name} of {upload.repo_id} names a folder of this machine: make the stage again")
