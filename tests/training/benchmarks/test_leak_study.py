"""The study of leaks: trials are what they say, and its tables count what they hold."""

from __future__ import annotations

import numpy as np
import pytest

from histodistill.selection.near_copies import near_pairs
from histodistill.training.benchmarks import leak_models, leak_trials
from histodistill.training.benchmarks import leak_study as script
from histodistill.training.benchmarks.leak_table import draw_leaks, leak_text, summarise_leaks
from histodistill.training.benchmarks.leak_trials import Sizes, Trial, make_trial, run_trial
from histodistill.training.data.splits import hold_out_for_audit
from histodistill.training.running.files import read_json


SIZES = Sizes(patients=20, tiles=2, audit_share=0.25, images=10, image_size=16)


@pytest.mark.parametrize("leak", ["looks", "neighbours"])
@pytest.mark.parametrize(("share", "copied"), [(0.5, 25), (1.0, 50)])
def test_a_leak_is_of_training_patients_and_of_as_many_images(leak, share, copied):
    source, images = make_trial(Trial(leak, share, 0.0, 3, by_tile=False), SIZES)
    parted = hold_out_for_audit(source, SIZES.audit_share)
    known, held_out = (np.unique(parted.split(name).groups) for name in ("train", "held_out"))
    assert (len(known), len(held_out)) == (15, 5)
    assert np.bincount(images.labels).tolist() == [10] * 5
    assert np.isin(images.groups, known).sum() == copied and not np.isin(images.groups, held_out).any()


def test_honest_images_are_of_other_patients_with_near_copies_or_without():
    plain, images = make_trial(Trial("none", 0.0, 0.0, 3, by_tile=False), SIZES)
    twice, same = make_trial(Trial("none", 0.0, 0.2, 3, by_tile=False), SIZES)
    assert images.fingerprint() == same.fingerprint()
    real = np.concatenate([plain.split(name).images for name in ("train", "validation")])
    assert not len(near_pairs([real, images.images]))
    changed = (plain.split("train").images != twice.split("train").images).any(axis=(1, 2, 3))
    assert changed.sum() == 40 and len(changed) == 200


def record(leak: str, share: float, duplicated: float, failed: list[str], by_tile: list[str] | None) -> dict:
    """A trial of which these points failed."""

    def audit(points: list[str]) -> dict:
        p_value = 0.01 if "membership" in points else 0.5
        return {
            "passed": not points,
            "failed": points,
            "p_values": {"mixture, looks": p_value},
            "overfitting": {"pixels": {"share": 0.5, "p_value": 0.5}},
            "tests": {"dominance": {"p_value": 0.5}, "attributes": {"site": {"p_value": 0.02}}},
        }

    audits = {"by_patient": audit(failed), "by_tile": None if by_tile is None else audit(by_tile)}
    return {"leak": leak, "share": share, "duplicated": duplicated, **audits}


def counts(trials: int, failed: int) -> dict:
    """How an audit fares in the summary."""
    return {"trials": trials, "failed": failed}


def test_tables_count_trials():
    records = [
        record("none", 0.0, 0.0, [], []),
        record("none", 0.0, 0.0, ["membership"], None),
        record("none", 0.0, 0.2, [], None),
        record("looks", 0.5, 0.0, ["membership", "overfitting"], []),
        record("looks", 0.5, 0.0, ["membership"], ["overfitting"]),
    ]
    models = [{"model": "leaky", "number": 0, "auc": 0.9, "p_value": 0.001, "passed": False, "sentence": "…"}]
    results = summarise_leaks(records, models)
    first, second = results["calibration"]
    assert (first["trials"], first["failed"], first["points"]) == (2, 1, {"membership": 1})
    assert first["alone"] == {
        "mixture, looks": 1, "nearest, pixels": 0, "attribute, site": 2, "dominance": 0,
    }  # fmt: skip
    assert (second["duplicated"], second["trials"], second["failed"]) == (0.2, 1, 0)
    assert results["detection"] == [
        {"leak": "none", "share": 0.0, "by_patient": counts(2, 1), "by_tile": counts(1, 0)},
        {"leak": "looks", "share": 0.5, "by_patient": counts(2, 2), "by_tile": counts(2, 1)},
    ]
    text = leak_text(results)
    assert "| **the audit by patient** | 1 of 2 | 0 of 1 |" in text
    assert "| looks of training patients | 0.5 | 2 of 2 | 1 of 2 |" in text
    assert "| leaky | 1 | 0.900 | 0.0010 | not passed |" in text
    assert draw_leaks(results["detection"]).startswith(b"\x89PNG")


def test_a_trial_is_audited_by_patient_and_by_tile():
    sizes = Sizes(patients=12, tiles=1, audit_share=0.25, images=4, image_size=16)
    found = run_trial(Trial("looks", 1.0, 0.0, 0, by_tile=True), sizes)
    assert found["leak"] == "looks" and 0 < found["num_images"] <= 20
    by_patient, by_tile = found["by_patient"], found["by_tile"]
    assert set(by_patient["p_values"]) == set(by_patient["aucs"]) > set(by_tile["aucs"])
    assert by_patient["tests"]["membership"] > 0 and by_tile["tests"] is None
    assert {"mixture, looks", "distance, pixels", "distance, colours"} <= set(by_patient["aucs"])
    # Images that look like copies were dropped before, as distill drops them.
    assert "copies" not in by_patient["failed"]


def test_study_goes_on_where_it_was(run_main, tmp_path, monkeypatch, capsys):
    made = []

    def fake(trial, sizes):
        made.append(trial.name)
        return record(trial.leak, trial.share, trial.duplicated, ["membership"] if trial.share else [], None)

    monkeypatch.setattr(leak_trials, "run_trial", fake)
    monkeypatch.setattr(leak_models, "train_shared_autoencoder", lambda folder, steps: folder)
    found = {"auc": 0.5, "p_value": 0.4, "passed": True, "sentence": "…"}
    monkeypatch.setattr(leak_models, "attack_model", lambda *of: found)
    argv = ["--honest", 1, "--leaky", 1, "--strengths", 1, "--output", tmp_path]
    run_main(script, *argv, "--pairs", 0)
    names = [
        "none-0-duplicated-0-000", "none-0-duplicated-0.2-001", "looks-1-duplicated-0-000",
        "neighbours-1-duplicated-0-000",
    ]  # fmt: skip
    assert made == names
    run_main(script, *argv, "--strengths", 0.5, 1, "--pairs", 1)
    assert made[4:] == ["looks-0.5-duplicated-0-000", "neighbours-0.5-duplicated-0-000"]
    results = read_json(tmp_path / "leaks.json")
    assert [(row["leak"], row["share"], row["by_patient"]["failed"]) for row in results["detection"]] == [
        ("none", 0.0, 0), ("looks", 0.5, 1), ("looks", 1.0, 1), ("neighbours", 0.5, 1), ("neighbours", 1.0, 1),
    ]  # fmt: skip
    assert [row["model"] for row in results["models"]] == ["honest", "leaky"]
    assert "| honest | 1 | 0.500 |" in capsys.readouterr().out


def test_a_model_is_trained_and_attacked(tmp_path, monkeypatch):
    monkeypatch.setattr(leak_models, "_HELD_OUT", 4)
    monkeypatch.setattr(leak_models, "_TILES", 1)
    monkeypatch.setattr(leak_models, "_PUBLIC_SIZES", (("train", 8), ("validation", 4)))
    autoencoder = leak_models.train_shared_autoencoder(tmp_path, steps=2)
    recipe = leak_models.Recipe(patients=4, steps=2, symmetries=True)
    found = leak_models.attack_model(tmp_path / "model", autoencoder, recipe, 0)
    assert 0 <= found["auc"] <= 1 and 0 < found["p_value"] <= 1
    assert "4 in training, 4 held out" in found["sentence"]
