from __future__ import annotations

from importlib import import_module
from pathlib import Path

import numpy as np
import pytest

from histodistill.training.benchmarks import site_cells
from histodistill.training.benchmarks import sites_study as script
from histodistill.training.benchmarks.sites import split_over_sites
from histodistill.training.benchmarks.sites_table import summarise_sites, titles
from histodistill.training.data.sources import load_tiles
from histodistill.training.running.errors import InputError
from histodistill.training.running.files import read_json
from histodistill.training.running.stages import read_record
from histodistill.training.tables.results_summary import paired_margin


OPTIONS = ["--sites", "2", "--min-per-class", "3", "--n-per-class", "2", "--train", "convnet:2", "--batch-size", "8"]
OPTIONS += ["--rounds", "2"]
SEEDS = "0 to 2147483647, the largest that a selector takes"


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--sites", "1"], "--sites=1 is out of range: it must be at least 2"),
        (["--concentration", "0"], "--concentration=0.0 is out of range: it must be above 0"),
        (["--rounds", "7"], "--rounds=7 does not divide the 600 steps of --train: give numbers that do"),
        (["--rounds", "0"], "--rounds=0 is out of range: it must be at least 1"),
        (["--diffusion-steps", "0"], "--diffusion-steps=0 is out of range: it must be at least 1"),
        (["--split-seed", "-1"], f"--split-seed=-1 is out of range: it must be {SEEDS}"),
        (["--split-seed", "2147483648"], f"--split-seed=2147483648 is out of range: it must be {SEEDS}"),
        (["--seeds", "0", "2147483648"], f"--seeds=0 2147483648 is out of range: each must be {SEEDS}"),
        (["--train", "convnet:5:random"], "--train=convnet:5:random: write ARCHITECTURE:STEPS, as in convnet:600"),
        (["--train", "mlp:5"], "--train=mlp:5: the architecture must be one of convnet, resnet18, vit"),
    ],
)
def test_bad_options_end_with_one_sentence(argv, message, capsys):
    with pytest.raises(SystemExit) as error:
        script.make_parser().read(["--data", "phantom", "--output", "/no/such", *argv])
    assert error.value.code == 2
    assert capsys.readouterr().err == f"error: {message}\n"


@pytest.mark.parametrize(
    ("is_cut", "words"), [(False, "as many as merged"), (True, "3 of each class, as the rarest has no more")]
)
def test_title_of_sampled_tiles_tells_how_many(is_cut, words):
    named = titles(2, 5, as_many=3, is_cut=is_cut)
    assert named["sampled"] == f"random real tiles of all sites together, {words}"
    assert named["federated"] == "federated averaging, 5 rounds"
    assert [name for name in named if name.endswith(("-1", "-2", "-3"))] == [
        "site-1", "distilled-1", "site-2", "distilled-2",
    ]  # fmt: skip


def test_each_site_distils_its_own_tiles(tiny_npz, tmp_path, monkeypatch):
    started = []
    monkeypatch.setattr(site_cells, "run_module", lambda module, argv, num_processes: started.append((module, argv)))
    distilled = (np.zeros((1, 8, 8, 3), np.uint8), {"label": np.zeros(1)}, [])
    monkeypatch.setattr(site_cells, "read_image_dataset", lambda folder: distilled)
    source = load_tiles(tiny_npz)
    argv = ["--data", str(tiny_npz), "--output", str(tmp_path), "--preset", "cpu-demo", "--diffusion-steps", "7"]
    argv += ["--teacher-steps", "5"]
    study = script.make_parser().read([*argv, *OPTIONS, "--per-class", "9"])
    own = source.split("train").subset(range(0, 120, 2))
    site_cells.distil_site(study.of_site(1), source, own, study.max_train_steps)
    kept = load_tiles(tmp_path / "site-1" / "tiles.npz")
    assert kept.class_names == source.class_names
    assert np.array_equal(kept.split("train").images, own.images)
    for split in ("validation", "test"):
        assert np.array_equal(kept.split(split).labels, source.split(split).labels)
    # Everything but the comparison, on the site's tiles alone.
    steps = [module.rsplit(".", 1)[1] for module, _ in started]
    assert steps == ["train_autoencoder", "train_classifier", "train_diffusion", "generate", "select"]
    configs = {
        step: import_module(module).make_parser().read(argv)
        for step, (module, argv) in zip(steps, started, strict=True)
    }
    tiles = str(tmp_path / "site-1" / "tiles.npz")
    assert all(configs[name].data == tiles for name in (*steps[:3], "select"))
    assert [configs[name].max_train_steps for name in ("train_diffusion", "train_classifier")] == [7, 5]
    settings = read_json(tmp_path / "site-1" / "run" / "run.json")["settings"]
    assert [settings[name]["max_train_steps"] for name in ("autoencoder", "diffusion", "teacher")] == [250, 7, 5]
    assert (configs["generate"].per_class, configs["select"].n_per_class) == (9, 2)
    assert configs["train_autoencoder"].audit_share == 0


def a_few(options, source, own, max_train_steps):
    """Stands for `distil_site`: a few real tiles as if they were distilled."""
    return own.subset([0, len(own) - 1])


@pytest.fixture(scope="module")
def finished(tiny_npz, tmp_path_factory, run_main) -> Path:
    """A study whose sites give a few of their real tiles as if they were distilled."""
    output = tmp_path_factory.mktemp("sites")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(site_cells, "distil_site", a_few)
        argv = ["--data", tiny_npz, "--output", output, *OPTIONS, "--rounds", 2, "--mixed-precision", "no"]
        run_main(script, *argv, "--seeds", 0, 1)
    return output


def test_all_ways_of_learning_are_compared(finished, tiny_npz):
    results = read_json(finished / "sites.json")
    rows = {row["row"]: row for row in results["rows"]}
    assert list(rows) == [
        "pooled", "merged", "sampled", "site-1", "site-2", "distilled-1", "distilled-2", "federated", "sites",
    ]  # fmt: skip
    train = load_tiles(tiny_npz).split("train")
    parts = split_over_sites(train.labels, 2, 0.3, 0, 3)
    assert [sum(counts) for counts in results["tiles_per_site"]] == [len(part) for part in parts]
    assert [rows[name]["num_train"] for name in ("pooled", "federated", "merged", "site-1", "sampled")] == [
        120, 120, 4, len(parts[0]), 20,
    ]  # fmt: skip
    assert all(row["seeds"] == [0, 1] for row in rows.values())
    assert all(0 <= row[split]["accuracy"]["mean"] <= 1 for row in rows.values() for split in ("validation", "test"))
    assert read_record(finished)["num_cells"] == 2 * 8


def test_table_names_every_row(finished):
    text = (finished / "sites.md").read_text()
    assert text.count("| the merged distilled sets | 4 |") == 2
    assert text.count("| federated averaging, 2 rounds | 120 |") == 2
    assert text.startswith("| tiles | ") and "\n| site 2 | " in text


def test_finished_trainings_are_kept(finished, tiny_npz, run_main, monkeypatch):
    for name in ("train_cell", "federated_cell"):
        monkeypatch.setattr(site_cells, name, lambda *call: pytest.fail("something was trained"))
    monkeypatch.setattr(site_cells, "distil_site", a_few)
    before = (finished / "sites.json").read_bytes()
    argv = ["--data", tiny_npz, "--output", finished, *OPTIONS, "--rounds", 2, "--mixed-precision", "no"]
    run_main(script, *argv, "--seeds", 0, 1)
    assert (finished / "sites.json").read_bytes() == before


def test_another_study_is_refused(finished, tiny_npz, run_main):
    argv = ["--data", tiny_npz, "--output", finished, *OPTIONS, "--mixed-precision", "no", "--concentration", 1]
    with pytest.raises(InputError, match=r"concentration was 0\.3 and is now 1\.0\): give another output, or"):
        run_main(script, *argv)


def cell(row: str, seed: int, accuracy: float, auc: float | None = 0.5) -> dict:
    scores = {"accuracy": accuracy, "auc": auc, "f1": accuracy}
    return {"row": row, "seed": seed, "num_train": 3, "validation": scores, "test": scores}


def test_margins_are_those_of_the_merged_sets():
    scores = {"merged": (0.8, 0.9), "site-1": (0.5, 0.6), "site-2": (0.3, 0.2), "federated": (0.9, 0.8)}
    cells = [cell(row, seed, values[seed]) for seed in (0, 1) for row, values in scores.items()]
    rows = {row["row"]: row for row in summarise_sites(cells)}
    assert rows["sites"]["test"]["accuracy"]["values"] == pytest.approx([0.4, 0.4])
    assert rows["federated"]["test"]["margin"]["mean"] == pytest.approx(0)
    expected = paired_margin(np.array([0.8, 0.9]), np.array([0.5, 0.6]))
    assert rows["site-1"]["test"]["margin"]["mean"] == pytest.approx(expected["mean"]) == pytest.approx(0.3)
    assert rows["merged"]["test"]["margin"] is None


def test_an_undefined_auc_leaves_the_mean_open():
    cells = [cell("merged", 0, 0.5, None), cell("site-1", 0, 0.5, 0.7), cell("site-2", 0, 0.5, None)]
    rows = {row["row"]: row for row in summarise_sites(cells)}
    assert rows["sites"]["validation"]["auc"] == {"mean": None, "std": None, "values": [None]}
