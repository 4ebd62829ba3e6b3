"""Verdicts on figures that are made up: what of them passes, and what is said of it."""

from __future__ import annotations

from dataclasses import replace

import pytest
from audits import audit_result, audited_set, by_patient

from histodistill.selection.audit_figures import AuditResult, ClassCopies
from histodistill.selection.audit_verdict import Finding, judge_set
from histodistill.selection.membership import Interval


def finding(result: AuditResult, name: str) -> Finding:
    return next(found for found in judge_set(result) if found.name == name)


def with_pool(of_training: int, of_others: int = 0, per_class: dict[int, ClassCopies] | None = None) -> AuditResult:
    """Of 3,000 generated images so many are copies of one of 900 training tiles, and of one of 300 others."""
    result = audit_result()
    copies = replace(
        audited_set(3000, of_training).copies,
        of_others=of_others,
        num_training=900,
        num_others=300,
        per_class=per_class or {},
    )
    return replace(result, pool=replace(result.pool, copies=copies))


@pytest.mark.parametrize(
    ("of_training", "of_others", "passed"),
    [
        (0, 0, True),
        (30, 3, True),  # false alarms
        (90, 30, True),  # more, but of other tiles as well
        (90, 0, False),
        (400, 130, True),
        (400, 5, False),
    ],
)
def test_a_set_fails_where_much_of_its_pool_was_copied(of_training, of_others, passed):
    found = finding(with_pool(of_training, of_others), "copies")
    assert found.passed == passed
    assert found.sentence.startswith("0 of 15 images are copies of real tiles")
    assert (f"the generated images {of_training} of 3,000 are copies of training tiles" in found.sentence) != passed


def test_a_class_that_copies_does_not_hide_among_the_others():
    clean = {label: ClassCopies(300, 0, 0) for label in range(9)}
    assert finding(with_pool(28, 0, clean), "copies").passed
    leaking = finding(with_pool(28, 0, {**clean, 9: ClassCopies(300, 28, 0)}), "copies")
    assert not leaking.passed and "generated images of a class 28 of 300 are copies" in leaking.sentence
    # As many of a class, but of all tiles alike: they are false alarms.
    assert finding(with_pool(28, 9, {**clean, 9: ClassCopies(300, 28, 9)}), "copies").passed


@pytest.mark.parametrize("by_group", [False, True])
def test_single_classes_are_judged(by_group):
    result = by_patient(audit_result()) if by_group else audit_result()
    assert finding(result, "classes").passed
    worse = replace(result, published=replace(result.published, class_p_value=0.002))
    assert not finding(worse, "classes").passed and "(p = 0.002)" in finding(worse, "classes").sentence


def test_what_is_not_seen_is_told_and_decides_nothing():
    result = audit_result()
    told = finding(result, "disguises")
    assert told.passed and "75% are found" in told.sentence
    assert told.sentence.endswith("not looked for, as fewer than 90% are found: blurred by 2 px (50%)")
    all_seen = replace(result, disguised={"negative": Interval(1.0, 0.8, 1.0)})
    assert finding(all_seen, "disguises").sentence.endswith("this is a screen for copies, not a proof")
    assert "no further disguises" in finding(replace(result, disguised={}, num_disguised=0), "disguises").sentence
