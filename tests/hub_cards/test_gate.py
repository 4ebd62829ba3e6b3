"""The gate, and audit.json by its schema."""

from __future__ import annotations

import json

import pytest
from audits import audit_of

from histodistill.hub_cards import ContentError
from histodistill.hub_cards.audit_record import MODEL_FINDINGS, PART_FINDINGS, check_space, read_audit
from histodistill.hub_cards.gate import AuditError, audit_sentences, check_audit, check_records, risk_statement
from histodistill.hub_cards.part_files import read_part
from histodistill.selection.planting import MUST_FIND


@pytest.fixture
def run(tmp_path):
    for name in ("data/train-00000-of-00001.parquet", "stage.json"):
        file = tmp_path / "distilled" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"tiles")
    return tmp_path


def refusal(run, audit, part="distilled", **changes) -> str:
    with pytest.raises(AuditError) as error:
        check_audit(run / "distilled", read_part(run / "distilled") | changes, audit, part)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_what_passed_goes_through(run):
    check_audit(run / "distilled", read_part(run / "distilled"), audit_of(run))
    check_audit("elsewhere", read_part(run / "distilled"), audit_of(run), "distilled")


def test_what_has_no_audit_is_refused(run):
    expected = f"{run / 'distilled'} has not been audited: run histodistill audit on the run first"
    assert refusal(run, None) == expected
    assert "the audit is not about pipeline" in refusal(run, audit_of(run), part="pipeline")


def test_other_files_than_those_audited_are_refused(run):
    audit, table = audit_of(run), "data/train-00000-of-00001.parquet"
    assert f"{table} is not the file that was audited" in refusal(run, audit, **{table: b"Tiles"})
    assert "more.parquet was not audited" in refusal(run, audit, **{"data/more.parquet": b""})
    (run / "distilled" / table).unlink()
    assert f"{table} was audited and is not there" in refusal(run, audit)


def test_what_failed_is_refused_with_its_reasons(run):
    message = refusal(run, audit_of(run, copies=3))
    assert "did not pass the privacy audit (3 of 15 images are copies of real tiles)" in message
    assert message.endswith("with `i_accept_the_risk`")
    statement = risk_statement(message)
    assert statement.startswith("**This was published although it did not pass a privacy audit.**")
    assert "3 of 15 images are copies of real tiles" in statement and "accept_the_risk" not in statement


def test_sentences_for_a_card(run):
    sentences = audit_sentences(audit_of(run, copies=3), "distilled")
    assert "✗ 3 of 15 images are copies of real tiles." in sentences and len(sentences) == len(MUST_FIND) + 6


def test_what_cards_tell_of_is_what_was_audited(run):
    (run / "results.json").write_bytes(b"{}")
    audit = audit_of(run)
    check_records(run, {"results.json": b"{}"}, audit)
    check_records(run, {}, None)
    for records in ({"results.json": b"{} "}, {}, {"results.json": b"{}", "run.json": b"{}"}):
        with pytest.raises(AuditError, match=r"(results|run).json is not what was audited: run histodistill"):
            check_records(run, records, audit)


# audit.json.


def changed(run, place: str, value, **figures) -> dict:
    """An audit with something else at a place, or without it where the value is None."""
    document = json.loads(audit_of(run, **figures).model_dump_json())
    *steps, last = [int(step) if step.isdecimal() else step for step in place.split("/")]
    target = document
    for step in steps:
        target = target[step]
    if value is None:
        del target[last]
    else:
        target[last] = value
    return document


def test_an_audit_is_read_as_it_was_written(run):
    audit = audit_of(run)
    assert read_audit(json.loads(audit.model_dump_json())) == audit


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ("format", 2),
        ("format", True),
        ("note", "x"),
        ("parts/ward7", {}),
        ("parts/distilled/note", "x"),
        ("parts/distilled/passed", "no"),
        ("parts/distilled/passed", 1),
        ("parts/distilled/passed", False),
        ("parts/distilled/findings", []),
        ("parts/distilled/findings/8", None),
        ("parts/distilled/findings/8/name", "Copies"),
        ("parts/distilled/findings/8/passed", False),
        ("parts/distilled/findings/8/sentence", ""),
        ("parts/distilled/findings/8/sentence", "x" * 2001),
        ("parts/distilled/files/..%2fx", "0" * 64),
        ("parts/distilled/files/stage.json", "0" * 63),
        ("parts/distilled/files/stage.json", "A" * 64),
        ("records//mnt/ward7/mueller.npz", "0" * 64),
        ("held_out_at_random", False),
        ("num_tiles/ward7", 3),
        ("num_tiles/train", -1),
        ("figures/note", "x"),
        ("figures/num_planted", 1.5),
        ("figures/planted/exact/value", 1.2),
        ("figures/planted/evil", {"value": 1.0, "low": 1.0, "high": 1.0}),
        ("figures/disguised/evil", {"value": 1.0, "low": 1.0, "high": 1.0}),
        ("figures/published/class_p_value", 1.5),
        ("figures/published/copies/of_training", "0"),
        ("figures/published/copies/per_class", {"/mnt/ward7": 1}),
        ("figures/published/overfitting/<b>", {"share": {"value": 0.5, "low": 0.5, "high": 0.5}, "p_value": 0.5}),
        ("figures/weights/auc/low", -0.1),
    ],
)
def test_an_audit_with_something_else(run, place, value):
    if place.startswith("records//"):
        document = changed(run, "records", {place.removeprefix("records/"): value})
    else:
        document = changed(run, place, value)
    with pytest.raises(ContentError, match="holds something unknown") as caught:
        read_audit(document)
    assert "\n" not in str(caught.value)


def test_names_of_embeddings():
    for name in ("untrained", "autoencoder", "facebook/dinov2-small", "resnet18.a1"):
        check_space(name)
    for name in ("", "/mnt/ward7/x", "a b", "<b>", "a/b/c", "..", "x" * 65, "a\u202eb"):
        with pytest.raises(ContentError, match="has a name that cannot stand in an audit"):
            check_space(name)


def test_findings_are_those_that_the_audit_makes(run):
    assert [name.removeprefix("planted ") for name in MODEL_FINDINGS[: len(MUST_FIND)]] == list(MUST_FIND)
    for part in ("selector", "pipeline"):
        (run / part).mkdir()
    for part, verdict in audit_of(run).parts.items():
        assert tuple(finding.name for finding in verdict.findings) == PART_FINDINGS[part]
