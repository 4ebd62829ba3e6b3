"""Audits as `histodistill audit` writes them, of figures that are made up: for tests of what goes by an audit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from histodistill.hub_cards.audit_record import AuditRecord
from histodistill.hub_cards.part_files import hash_contents, hash_part
from histodistill.selection.audit_figures import (
    AttributeAttack,
    AuditResult,
    Copies,
    Dominance,
    MembershipAttack,
    SetAudit,
    Units,
    UnitTests,
    WeightsTest,
)
from histodistill.selection.copies import CopyLimits
from histodistill.selection.membership import Attack, Interval, Overfitting
from histodistill.selection.planting import MUST_FIND
from histodistill.training.evaluation.run_audit import write_audit
from histodistill.training.evaluation.verdicts import JUDGES, make_audit, read_records


def attack(auc: float) -> Attack:
    """An attack whose AUC is surely what it is."""
    return Attack(Interval(auc, auc - 0.01, auc + 0.01), {0.01: Interval(0.01, 0.0, 0.02), 0.001: None})


def audited_set(num_images: int, num_copies: int = 0) -> SetAudit:
    """A set of which so many images are copies, and that gives nothing else away."""
    share = Interval(num_copies / num_images, 0.0, 0.1)
    return SetAudit(
        copies=Copies(num_images, num_copies, 0, 100, 20, share, 0.0, 0.01, 1.0, {}),
        overfitting={"pixels": Overfitting(Interval(0.5, 0.4, 0.6), 0.5)},
        overfitting_per_class={},
        membership={"pixels": {"distance": MembershipAttack(attack(0.5), attack(0.5), 0.0)}},
        closest=np.empty((0, 2), np.int64),
        closest_scores=np.empty(0),
        class_p_value=0.5,
    )


def audit_result(*, copies: int = 0, weights_auc: float = 0.5, is_random: bool = True) -> AuditResult:
    """Figures on which everything passes, but for so many copies in the set, and what the weights tell."""
    return AuditResult(
        limits=CopyLimits({"pixels": 1.0}, {"pixels": 2.0}, 0.1, 0.0, 100, 0, True),
        is_random=is_random,
        published=audited_set(15, copies),
        pool=audited_set(40),
        planted=dict.fromkeys(MUST_FIND, Interval(1.0, 0.9, 1.0)),
        num_planted=100,
        disguised={"negative": Interval(1.0, 0.8, 1.0), "blurred by 2 px": Interval(0.5, 0.3, 0.7)},
        num_disguised=20,
        weights=attack(weights_auc),
        num_weight_tiles=20,
        least_weight_tiles=20,
    )


def by_patient(result: AuditResult, p_value: float = 0.5, per_class: dict[int, int] | None = None) -> AuditResult:
    """The same figures by patient: the best attack has this p-value, and each class so many patients."""

    def tested(found: SetAudit) -> SetAudit:
        attributes = {"site": AttributeAttack(3, Interval(0.5, 0.4, 0.6), 0.5)}
        tests = UnitTests(p_value, 0.5, 0.002, 12, 0.8, Dominance(0.05, 0.07, 0.9), 0, attributes, 0.5)
        attacked = {
            space: {name: replace(attack, p_value=p_value) for name, attack in by_name.items()}
            for space, by_name in found.membership.items()
        }
        return replace(found, membership=attacked, tests=tests)

    return replace(
        result,
        published=tested(result.published),
        pool=tested(result.pool),
        units=Units("patient", 90, 10, 1, 4.5, 30, per_class or {}),
        weights_test=WeightsTest(0.5, 90, 10, 0.8),
    )


def audit_of(run: Path, parts: Sequence[str] = tuple(JUDGES), **figures: float) -> AuditRecord:
    """The audit of a run as it is now; `figures` are those of `audit_result`."""
    facts = {"data": "mueller_2023", "num_tiles": {"train": 100, "validation": 20}, "copies_dropped": None}
    files = {part: hash_part(run / part) for part in parts if (run / part).is_dir()}
    result = audit_result(**figures)  # type: ignore[arg-type]
    return make_audit(result, [], files, hash_contents(read_records(run)), facts)


def add_audit(run: Path, path: Path | None = None, **options) -> None:
    """Writes it to `path`, which is the run's audit.json by default."""
    write_audit(path or run / "audit.json", audit_of(run, **options))
