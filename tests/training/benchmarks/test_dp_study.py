"""The study of differential privacy: what each arm is, what is kept, and what its tables say."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from small_sources import patients_npz

from histodistill.selection import group_audit
from histodistill.training.benchmarks import dp_study as script
from histodistill.training.benchmarks.dp_arms import PublicModels, arm_config
from histodistill.training.benchmarks.dp_table import study_text
from histodistill.training.engine import privacy
from histodistill.training.running.errors import InputError
from histodistill.training.running.files import read_json
from histodistill.training.running.presets import load_preset


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--epsilons", "0"], "--epsilons=0 is out of range: each must be a number above 0, or inf"),
        (["--epsilons", "nan"], "--epsilons=nan is out of range: each must be a number above 0, or inf"),
        (["--epsilons", "much"], "--epsilons=much is out of range: each must be a number above 0, or inf"),
        (["--epsilons", "1", "1"], "--epsilons=1 1 is out of range: each may be named once"),
        (["--n-per-class", "300"], "--n-per-class=300 is out of range: each must be at most 200, the pool's images of "
         "each class"),
        (["--data", "phantom:1"], "--public-data=phantom:1 are the very tiles that are to be protected: give others"),
    ],
)  # fmt: skip
def test_bad_options_end_with_one_sentence(argv, message, capsys):
    with pytest.raises(SystemExit):
        script.make_parser().read(["--output", "/no/such", *argv])
    assert capsys.readouterr().err == f"error: {message}\n"


def test_arms_differ_in_what_they_say():
    config = script.make_parser().read(["--output", "out", "--steps", "40", "--batch-size", "32"])
    public = PublicModels(load_preset("cpu-demo").under_privacy(), Path("ae"), Path("/public"))
    of = {arm: arm_config(config, public, arm, 4.0, Path("p")) for arm in script.ARMS}
    assert {arm: (c.init_from, c.dp_public_init) for arm, c in of.items()} == {
        "scratch": (None, False), **dict.fromkeys(list(script.ARMS)[1:], ("/public", True)),
    }  # fmt: skip
    assert {arm: c.trained_weights for arm, c in of.items() if c.trained_weights != "all"} == {
        "embeddings": "embeddings", "adapters": "adapters",
    }  # fmt: skip
    assert {arm for arm, c in of.items() if c.noise_level_range == (0.3, 0.8)} == {"middle"}
    assert {arm for arm, c in of.items() if c.noise_level_mean} == {"noisy"}
    assert {arm for arm, c in of.items() if c.dp_central_share} == {"central"}
    assert {arm: (c.max_train_steps, c.batch_size) for arm, c in of.items() if c.batch_size != 32} == {
        "batches": (10, 128)
    }
    assert all((c.dp_epsilon, c.dp_delta, c.dp_unit, c.class_balance) == (4, None, None, 0) for c in of.values())
    assert arm_config(config, public, "central", None, Path("p")).dp_central_share == 0
    without = arm_config(config, public, "pretrained", None, Path("p"))
    assert without.dp_epsilon is None and without.init_from == "/public" and without.class_balance == 0


@pytest.mark.parametrize(
    ("missing", "arms", "epsilon"), [("opacus", ["scratch"], "1"), ("peft", ["scratch", "adapters"], "inf")]
)
def test_what_is_not_installed_is_told_at_once(missing, arms, epsilon, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, missing, None)
    config = script.make_parser().read(["--output", str(tmp_path), "--epsilons", epsilon, "--arms", *arms])
    with pytest.raises(InputError, match=f"needs {missing}, which is not installed"):
        script.run(config)
    assert not any(tmp_path.iterdir())


def test_study_goes_on_where_it_was(run_main, tmp_path, least_preset, monkeypatch):
    pytest.importorskip("opacus")
    # To search for the noise takes longer than all else.
    monkeypatch.setattr(privacy, "noise_multiplier", lambda *of: 2.5)
    monkeypatch.setattr(privacy, "epsilon_spent", lambda *of: 10.0)
    monkeypatch.setattr(group_audit, "_DRAWS", 99)
    monkeypatch.setattr(group_audit, "_DOMINANCE_DRAWS", 9)
    data, public = (patients_npz(tmp_path / f"{seed}.npz", seed) for seed in (0, 1))
    argv = [
        "--data", data, "--public-data", public, "--output", tmp_path / "out", "--preset", least_preset,
        "--autoencoder-steps", 1, "--steps", 4, "--batch-size", 8, "--per-class", 2, "--n-per-class", 2, 1,
        "--classifier-steps", 1, "--weight-tiles", 20, "--audit-share", 0.25, "--mixed-precision", "no",
    ]  # fmt: skip
    run_main(script, *argv, "--epsilons", 10, "--arms", "embeddings")
    made = tmp_path / "out" / "arms" / "embeddings-10"
    assert (made / "pool.png").read_bytes().startswith(b"\x89PNG")
    before = {path: path.stat().st_mtime_ns for path in made.rglob("*") if path.suffix in (".json", ".safetensors")}
    run_main(script, *argv, "--epsilons", 10, "inf", "--arms", "embeddings")
    assert {path: path.stat().st_mtime_ns for path in before} == before
    results = read_json(tmp_path / "out" / "dp.json")
    private, ordinary = results["arms"]
    assert (private["epsilon"], ordinary["epsilon"], ordinary["privacy"]) == (10, None, None)
    spent = private["privacy"]
    assert (spent["unit"], spent["num_units"], spent["noise_multiplier"], spent["init"]) == ("group", 6, 2.5, "public")
    assert spent["delta"] == pytest.approx(1 / 60)  # 1 / (10 N), N = 6 patients, since two are held out
    assert list(results["real"]) == ["real", "real-2", "real-1"]
    assert list(results["public"]) == ["pool", "set-2", "set-1"]
    assert [private["scores"][row]["num_train"] for row in ("pool", "set-2", "set-1")] == [10, 10, 5]
    assert private["attack"]["unit"] == "group" and 0 < private["attack"]["p_value"] <= 1
    assert (tmp_path / "out" / "dp.md").read_text().count("| from public tiles, embeddings and norms alone | ") == 6


def score(accuracy: float) -> dict:
    return {split: {"accuracy": {"mean": accuracy, "std": None}} for split in ("validation", "test")}


def test_tables_say_what_was_measured():
    real = {"real": score(0.9), "real-10": score(0.6)}
    auc = {"value": 0.51, "low": 0.4, "high": 0.62}
    arm = {"validation_loss": 1.25, "seconds": 61.4, "scores": {"pool": score(0.5), "set-10": score(0.4)}}
    budget = {"delta": 0.001, "unit": "patient", "noise_multiplier": 1.2345}
    text = study_text(
        real,
        {"pool": score(0.3), "set-10": score(0.2)},
        [
            {**arm, "arm": "scratch", "epsilon": 10.0, "privacy": budget,
             "attack": {"unit": "patient", "auc": auc, "p_value": 0.3}},
            {**arm, "arm": "noisy", "epsilon": None, "privacy": None,
             "attack": {"unit": "tile", "auc": auc, "p_value": None}},
        ],
        [10],
        script.ARMS,
    )  # fmt: skip
    assert text.count("| real tiles | | 0.900 | 0.600 |\n") == 2
    assert text.count("| public tiles alone | 0 | 0.300 | 0.200 |\n") == 2
    assert text.count("| from scratch | 10 | 0.500 | 0.400 |\n") == 2
    assert (
        "| from scratch | 10 | 0.001 | patient | 1.23 | 61 | 1.250 | 0.510 [0.400, 0.620], by patient | 0.3 |" in text
    )
    assert "| from public tiles, on more noise | ∞ |  |  |  | 61 | 1.250 | 0.510 [0.400, 0.620], by tile |  |" in text
