"""Audits by patient as audit.json holds them: written, read back, and refused where anything was changed."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from audits import audit_result, by_patient

from histodistill.hub_cards.audit_record import GroupKind, _Disguise
from histodistill.selection.disguises import DISGUISES
from histodistill.selection.membership import Interval
from histodistill.selection.names import ATTRIBUTE_NAMES, GROUP_KINDS
from histodistill.training.evaluation.run_audit import write_audit
from histodistill.training.evaluation.verdicts import make_audit, read_run_audit
from histodistill.training.running.errors import InputError
from histodistill.training.running.files import read_json, write_json


FACTS = {"data": "mine", "num_tiles": {"train": 100, "validation": 20}, "copies_dropped": None}
FILES = {part: {"stage.json": "0" * 64} for part in ("distilled", "selector", "pipeline")}


def record(**figures):
    result = by_patient(audit_result(), per_class={0: 3, 1: 90}, **figures)
    return make_audit(result, ["fat", "gland"], FILES, {}, FACTS)


@pytest.fixture
def path(tmp_path) -> Path:
    write_audit(tmp_path / "audit.json", record())
    return tmp_path / "audit.json"


def test_audit_by_patient_is_read_as_it_was_written(path):
    audit = read_run_audit(path)
    assert audit == record()
    names = [finding.name for finding in audit.parts["pipeline"].findings]
    assert names[-6:] == ["membership", "classes", "dominance", "attributes", "pool", "weights"]
    assert all(verdict.passed for verdict in audit.parts.values())
    assert audit.warnings == ("class fat rests on 3 patients: it may point to persons",)
    told = next(finding.sentence for finding in audit.parts["distilled"].findings if finding.name == "membership")
    assert told.endswith(
        "; by patient: 90 in training, 10 held out; a leak with an AUC above 0.80 would have been seen"
    )


def test_a_leak_of_patients_does_not_pass():
    audit = record(p_value=0.001)
    failed = {part: {f.name for f in verdict.findings if not f.passed} for part, verdict in audit.parts.items()}
    assert failed == {"distilled": {"membership"}, "selector": {"membership"}, "pipeline": {"membership", "pool"}}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: a["figures"]["published"]["tests"].update(membership=0.001), "contradicts itself about distilled"),
        (lambda a: a["figures"]["units"].update(num_held_out=11), "contradicts itself about distilled"),
        (lambda a: a["figures"]["units"]["per_class"].update(fat=30), "contradicts itself about warnings"),
        (lambda a: a.update(warnings=[]), "contradicts itself about warnings"),
        (lambda a: a["figures"]["published"].update(class_p_value=0.001), "contradicts itself about distilled"),
        (lambda a: a["figures"]["disguised"]["negative"].update(value=0.5), "contradicts itself about distilled"),
        (
            lambda a: a["figures"]["pool"]["copies"]["per_class"].update(
                fat={"num_images": 40, "of_training": 40, "of_others": 0}
            ),
            "contradicts itself about distilled",
        ),
        (lambda a: a["figures"].update(units=None), "is no audit, or was changed"),
        (lambda a: a["figures"].update(weights_test=None), "is no audit, or was changed"),
        (lambda a: a["figures"]["units"].update(kind="Dr Mueller's patient"), "is no audit, or was changed"),
        (lambda a: a["figures"]["units"].update(names=["Mueller"]), "is no audit, or was changed"),
        (lambda a: a["figures"]["pool"].update(tests=None), "is no audit, or was changed"),
        (
            lambda a: a["figures"]["published"]["tests"]["attributes"].update(
                surgeon=a["figures"]["published"]["tests"]["attributes"]["site"]
            ),
            "is no audit, or was changed",
        ),
        (
            lambda a: a["figures"]["published"]["membership"]["pixels"]["distance"].update(p_value=None),
            "is no audit, or was changed",
        ),
        (lambda a: a["parts"]["distilled"]["findings"].pop(-1), "is no audit, or was changed"),
    ],
)
def test_a_changed_audit_is_refused(path, change, message):
    audit = read_json(path)
    change(audit)
    write_json(path, audit)
    with pytest.raises(InputError, match=message):
        read_run_audit(path)


def test_what_is_known_to_be_harmless_is_one_list(path):
    assert GroupKind.__args__ == GROUP_KINDS and _Disguise.__args__ == tuple(DISGUISES)
    audit = read_json(path)
    for name in (*ATTRIBUTE_NAMES, "attribute 1", "attribute 12"):
        tests = audit["figures"]["published"]["tests"]
        tests["attributes"] = {name: tests["attributes"].popitem()[1]}
        write_json(path, audit)
        with pytest.raises(InputError, match="contradicts itself") if name != "site" else pytest.MonkeyPatch.context():
            read_run_audit(path)


def test_number_of_repeated_tiles_is_kept_and_is_a_number(path):
    result = replace(by_patient(audit_result(), per_class={0: 3, 1: 90}), num_repeated=7)
    write_audit(path, make_audit(result, ["fat", "gland"], FILES, {}, FACTS))
    assert read_run_audit(path).figures.num_repeated == 7
    audit = read_json(path)
    audit["figures"]["num_repeated"] = ["patient 7"]
    write_json(path, audit)
    with pytest.raises(InputError, match="is no audit, or was changed"):
        read_run_audit(path)


def test_an_audit_of_an_older_version_is_none(path):
    path.write_text(json.dumps({**read_json(path), "format": 5}))
    assert read_run_audit(path) is None


def test_the_longest_sentence_fits():
    """Where no disguise is seen through, all are named."""
    hidden = dict.fromkeys(DISGUISES, Interval(0.0, 0.0, 0.2))
    audit = make_audit(replace(audit_result(), disguised=hidden), ["fat"], FILES, {}, FACTS)
    sentence = next(f.sentence for f in audit.parts["distilled"].findings if f.name == "disguises")
    assert all(name in sentence for name in DISGUISES) and audit.parts["distilled"].passed
