"""audit.json: written from what was found, and read back so that its verdicts are those of its figures."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel

from histodistill.hub_cards.audit_record import (
    AUDIT_FORMAT,
    AuditRecord,
    Figures,
    FindingRecord,
    SetFigures,
    UnitsFigures,
    UnitTestsFigures,
    is_of_this_format,
    read_audit,
)
from histodistill.hub_cards.documents import parse_json
from histodistill.hub_cards.errors import ContentError
from histodistill.hub_cards.part_files import hash_contents, read_file
from histodistill.selection.audit_figures import (
    AttributeAttack,
    AuditResult,
    ClassCopies,
    Copies,
    Dominance,
    MembershipAttack,
    SetAudit,
    Units,
    UnitTests,
    WeightsTest,
)
from histodistill.selection.audit_verdict import Finding, few_groups, judge_set, judge_weights
from histodistill.selection.copies import CopyLimits
from histodistill.selection.membership import Attack, Interval, Overfitting
from histodistill.training.running.errors import InputError


#: How each part of a run that is published is judged, in the order in which they are named.
JUDGES: dict[str, Callable[[AuditResult], list[Finding]]] = {
    "distilled": judge_set,
    "selector": judge_set,
    "pipeline": judge_weights,
}
#: The place of the results table in a run.
BENCHMARK = "benchmark/benchmark.json"
#: Files of a run, beside those of its parts, that the cards tell of.
RECORDS = (
    "run.json",
    "results.json",
    "autoencoder/stage.json",
    "teacher/stage.json",
    "teacher/results.json",
    "pool/stage.json",
    BENCHMARK,
)


def read_records(run: Path) -> dict[str, bytes]:
    """Those of `RECORDS` that a run has, each read once: path → content.

    Raises:
        ContentError: For one that is a link, too large, or cannot be read.
    """
    return {name: read_file(run / name) for name in RECORDS if os.path.lexists(run / name)}


def read_run_audit(path: Path) -> AuditRecord | None:
    """An audit.json whose verdicts are those of its figures.

    Returns:
        None where there is no such file, or it is of another version of histodistill.

    Raises:
        InputError: If it cannot be read, holds anything else than an audit, or contradicts itself.
    """
    if not os.path.lexists(path):
        return None
    try:
        document = parse_json(read_file(path))
        if isinstance(document, dict) and "format" in document and not is_of_this_format(document):
            return None
        audit = read_audit(document)
    except ContentError as error:
        raise InputError(f"{path} is no audit, or was changed ({error}): run histodistill audit again") from error
    check_verdicts(audit, path)
    return audit


def check_verdicts(
    audit: AuditRecord, place: str | Path, remedy: str = "delete it and run histodistill audit again"
) -> None:
    """Sees that the verdicts of an audit are those of its figures.

    Args:
        audit: The audit.
        place: What it was read from, for messages.
        remedy: What to do where one is not.

    Raises:
        InputError: If one is not.
    """
    for part, verdict in audit.parts.items():
        if verdict.findings != tuple(_finding(finding) for finding in JUDGES[part](to_result(audit.figures))):
            raise InputError(f"{place} contradicts itself about {part}: {remedy}")
    if audit.warnings != _warnings(audit.figures.units):
        raise InputError(f"{place} contradicts itself about warnings: {remedy}")


def is_about_records(path: Path, run: Path) -> bool:
    """Whether an audit.json is about the files that cards tell of, as a run has them now; not if it is damaged."""
    try:
        audit = read_run_audit(path)
        return audit is not None and audit.records == hash_contents(read_records(run))
    except (ContentError, InputError):
        return False


def _finding(finding: Finding) -> FindingRecord:
    return FindingRecord(name=finding.name, passed=bool(finding.passed), sentence=finding.sentence)


def make_audit(
    result: AuditResult,
    class_names: list[str],
    files: Mapping[str, Mapping[str, str]],
    records: Mapping[str, str],
    facts: Mapping[str, Any],
) -> AuditRecord:
    """What `audit.json` holds of an audit: nothing in it is of a single real tile.

    Args:
        result: What was found.
        class_names: Names of the labels.
        files: Part → file → SHA-256.
        records: File of `RECORDS` → SHA-256.
        facts: Its `data`, `num_tiles` and `copies_dropped`.
    """
    figures = to_plain(result, class_names)
    for part in ("published", "pool"):
        for name in ("closest", "closest_scores"):
            del figures[part][name]
    parts = {}
    for part, hashes in files.items():
        findings = [_finding(finding).model_dump() for finding in JUDGES[part](result)]
        passed = all(finding["passed"] for finding in findings)
        parts[part] = {"passed": passed, "findings": findings, "files": dict(hashes)}
    return read_audit(
        {
            "format": AUDIT_FORMAT,
            **facts,
            "held_out_at_random": result.is_random,
            "parts": parts,
            "records": dict(records),
            "warnings": few_groups(result.units, class_names),
            "figures": figures,
        }
    )


def to_plain(value: Any, class_names: list[str]) -> Any:
    """Figures as JSON holds them: dataclasses as objects, classes by name."""
    if dataclasses.is_dataclass(value):
        return {f.name: to_plain(getattr(value, f.name), class_names) for f in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {_key(key, class_names): to_plain(item, class_names) for key, item in value.items()}
    return value.item() if isinstance(value, np.generic) else value


def _key(key: Any, class_names: list[str]) -> str:
    # Whole numbers are classes; false positive rates are not whole.
    return class_names[key] if isinstance(key, int) else str(key)


def to_result(figures: Figures) -> AuditResult:
    """Figures as `selection` judges them; without those of single classes that no verdict rests on."""
    return AuditResult(
        limits=CopyLimits(**figures.limits.model_dump()),
        is_random=figures.is_random,
        published=_to_set(figures.published),
        pool=_to_set(figures.pool),
        planted={kind: _interval(found) for kind, found in figures.planted.items()},
        num_planted=figures.num_planted,
        disguised={name: _interval(found) for name, found in figures.disguised.items()},
        num_disguised=figures.num_disguised,
        weights=None if figures.weights is None else _to_attack(figures.weights),
        num_weight_tiles=figures.num_weight_tiles,
        least_weight_tiles=figures.least_weight_tiles,
        num_left_out=figures.num_left_out,
        units=None if figures.units is None else _to_units(figures.units),
        weights_test=None if figures.weights_test is None else WeightsTest(**figures.weights_test.model_dump()),
        num_repeated=figures.num_repeated,
    )


def _to_units(figures: UnitsFigures) -> Units:
    return Units(**{**figures.model_dump(), "per_class": {}})


def _warnings(figures: UnitsFigures | None) -> tuple[str, ...]:
    """The warnings that must be there, by the figures."""
    if figures is None:
        return ()
    counts = dict(enumerate(figures.per_class.values()))
    return few_groups(Units(**{**figures.model_dump(), "per_class": counts}), list(figures.per_class))


def _to_set(figures: SetFigures) -> SetAudit:
    copies = figures.copies
    return SetAudit(
        copies=Copies(
            **{
                **copies.model_dump(exclude={"per_class"}),
                "share": _interval(copies.share),
                "per_class": {
                    number: ClassCopies(**found.model_dump()) for number, found in enumerate(copies.per_class.values())
                },
            }
        ),
        overfitting={
            space: Overfitting(_interval(found.share), found.p_value) for space, found in figures.overfitting.items()
        },
        overfitting_per_class={},
        membership={
            space: {
                name: MembershipAttack(
                    _to_attack(found.main), _to_attack(found.control), found.advantage, p_value=found.p_value
                )
                for name, found in by_name.items()
            }
            for space, by_name in figures.membership.items()
        },
        closest=np.empty((0, 2), np.int64),
        closest_scores=np.empty(0),
        tests=None if figures.tests is None else _to_tests(figures.tests),
        class_p_value=figures.class_p_value,
    )


def _to_tests(figures: UnitTestsFigures) -> UnitTests:
    attributes = {
        name: AttributeAttack(found.num_values, _interval(found.auc), found.p_value)
        for name, found in figures.attributes.items()
    }
    dominance = Dominance(**figures.dominance.model_dump())
    return UnitTests(**{**figures.model_dump(), "dominance": dominance, "attributes": attributes})


def _to_attack(figures: Any) -> Attack:
    rates = {
        float(rate): None if found is None else _interval(found) for rate, found in figures.true_positives.items()
    }
    return Attack(_interval(figures.auc), rates)


def _interval(figure: BaseModel) -> Interval:
    return Interval(**figure.model_dump())
