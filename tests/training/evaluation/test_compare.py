from __future__ import annotations

import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from transformers import ViTConfig

from histodistill.training import cli
from histodistill.training.data.image_dataset import write_image_dataset
from histodistill.training.data.phantom import phantom_source, phantom_tiles
from histodistill.training.data.sources import load_tiles
from histodistill.training.engine.classifier_training import TrainedClassifier
from histodistill.training.evaluation import cells, compare
from histodistill.training.evaluation.compare import RECOVERY_ROW, ROWS, CompareConfig, make_parser
from histodistill.training.evaluation.results_file import parse_results
from histodistill.training.running.errors import InputError
from histodistill.training.running.files import read_json
from histodistill.training.running.precision import usual_precision
from histodistill.training.running.stages import Stage, is_complete, read_record


SIZE = 16
PER_CLASS = 3  # distilled; there are 6 in the pool and 12 real ones


# The command line.


def read(*argv: str) -> CompareConfig:
    return make_parser().read(["run", "--data", "phantom", *argv])


def test_plan():
    config = read("--train", "convnet:1000", "resnet18:400:real_all,distilled_joint", "--seeds", "0", "1")
    assert config.plan == [("convnet", 1000, tuple(ROWS)), ("resnet18", 400, ("real_all", "distilled_joint"))]
    assert config.seeds == (0, 1)


def test_defaults():
    assert read() == CompareConfig(run=Path("run"), data="phantom")
    assert read().plan == [("convnet", 1000, tuple(ROWS))]


def test_settings_are_the_options_that_decide_the_result():
    # The tiles' fingerprint tells the image size.
    assert read("--num-processes", "2", "--image-size", "28").settings() == {
        "batch_size": 128, "mixed_precision": usual_precision(), "seeds": (0,), "train": ("convnet:1000",),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--train", "vgg:10"], "--train=vgg:10: the architecture must be one of convnet, resnet18, vit"),
        (["--train", "convnet"], "--train=convnet: after the architecture comes the number of steps"),
        (["--train", "convnet:0"], "--train=convnet:0: after the architecture comes the number of steps"),
        (["--train", "convnet:ten"], "--train=convnet:ten: after the architecture"),
        (["--train", "convnet:-5"], "--train=convnet:-5: after the architecture"),
        (["--train", "convnet:5:all"], "--train=convnet:5:all: 'all' is no row: use real_all, real_random"),
        (["--train", "convnet:5:real_all,"], "--train=convnet:5:real_all,: '' is no row"),
        (["--train", "convnet:5:real_all,real_all"], "--train=convnet:5:real_all,real_all names a row twice"),
        (["--train", "convnet:5:real_all", "convnet:9"], "--train names convnet twice"),
        (["--seeds", "0", "-1"], "--seeds=0 -1 is out of range: each must be at least 0"),
        (["--seeds", "1", "1"], "--seeds=1 1 is out of range: each may be named once"),
        (["--batch-size", "0"], "--batch-size=0 is out of range: it must be at least 1"),
        (["--num-processes", "0"], "--num-processes=0 is out of range: it must be at least 1"),
    ],
)
def test_bad_options(argv, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        read(*argv)
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {message}")
    assert error.count("\n") == 1


def test_nothing_to_train_is_refused(capsys):
    with pytest.raises(SystemExit):
        read("--train")
    assert "error: --train: expected at least one argument: " in capsys.readouterr().err
    with pytest.raises(InputError, match="train has no values: give at least one"):
        CompareConfig(run="run", data="phantom", train=[])


def test_several_processes_are_launched_with_every_option(monkeypatch):
    started = []
    monkeypatch.setattr(cli, "run_module", lambda *call: started.append(call))
    argv = ["run", "--data", "phantom", "--num-processes", "2"]
    cli.main(["compare", *argv])
    assert started == [("histodistill.training.evaluation.compare", argv, 2)]


# Sums.


def cell(row: str, seed: int, accuracy: float, auc: float | None = 0.75, architecture: str = "convnet") -> dict:
    return {
        "architecture": architecture, "row": row, "seed": seed, "num_train": 60 if row == "real_all" else 15,
        "test": {"accuracy": accuracy, "auc": auc, "f1": accuracy / 2}, "config": {"max_train_steps": 10},
    }  # fmt: skip


def summarise(*cells: dict) -> dict:
    source = phantom_source(image_size=SIZE, sizes={"train": 2, "validation": 1, "test": 1})
    results = compare.summarise(list(cells), source, PER_CLASS, ["a note"])
    # It has to be JSON without NaN.
    assert json.loads(json.dumps(results, allow_nan=False)) == results
    return results


def test_mean_and_sample_standard_deviation_over_seeds():
    results = summarise(cell("real_all", 0, 0.8), cell("real_all", 1, 0.9), cell("real_all", 2, 1.0))
    [row] = results["rows"]
    assert row["accuracy"]["mean"] == pytest.approx(0.9)
    assert row["accuracy"]["std"] == pytest.approx(0.1)  # n - 1: sqrt((0.01 + 0 + 0.01) / 2)
    assert row["accuracy"]["values"] == [0.8, 0.9, 1.0]
    assert row["f1"]["mean"] == pytest.approx(0.45)
    assert (row["seeds"], row["steps"], row["num_train"]) == ([0, 1, 2], 10, 60)
    assert (row["row"], row["title"], row["architecture"]) == ("real_all", "All real tiles", "convnet")


def test_one_seed_has_no_spread():
    [row] = summarise(cell("real_all", 4, 0.8))["rows"]
    assert row["accuracy"] == {"mean": 0.8, "std": None, "values": [0.8]}


def test_undefined_auc_stays_undefined():
    [row] = summarise(cell("real_all", 0, 0.8, auc=0.9), cell("real_all", 1, 0.8, auc=None))["rows"]
    assert row["auc"] == {"mean": None, "std": None, "values": [0.9, None]}


def test_recovery_is_the_ratio_of_mean_accuracies():
    results = summarise(
        cell("real_all", 0, 0.7), cell("real_all", 1, 0.9), cell(RECOVERY_ROW, 0, 0.5), cell(RECOVERY_ROW, 1, 0.7),
        cell("real_all", 0, 0.5, architecture="resnet18"), cell(RECOVERY_ROW, 0, 0.4, architecture="resnet18"),
        cell("real_random", 0, 0.9, architecture="vit"), cell(RECOVERY_ROW, 0, 0.4, architecture="vit"),
    )  # fmt: skip
    # The last was not trained on all real tiles, so nothing is known of its recovery.
    assert results["recovery"] == {"convnet": pytest.approx(0.75), "resnet18": pytest.approx(0.8)}
    assert results["recovery_row"] == "distilled_ce"
    assert (results["n_per_class"], results["notes"], results["data"]) == (PER_CLASS, ["a note"], "phantom")
    assert len(results["class_names"]) == 5


def test_classifier_that_learns_nothing_has_no_recovery():
    assert summarise(cell("real_all", 0, 0.0), cell(RECOVERY_ROW, 0, 0.5))["recovery"] == {}


# The script. What trains and predicts is replaced: that it really trains, the tests of `distill` show.


@dataclass
class Trainer:
    """Stands for `fit_classifier`; keeps what it was asked for, and fails when it has trained `limit` times."""

    calls: list
    limit: int = 1000

    def __call__(self, config, train, validation, accelerator, *, class_names, checkpoint_dir, resume, progress):
        if len(self.calls) == self.limit:
            raise KeyboardInterrupt
        self.calls.append((config, train, validation, class_names, checkpoint_dir, resume))
        return TrainedClassifier(None, [], config.max_train_steps, {"accuracy": 1.0}, 0.5)


@pytest.fixture
def trainer(monkeypatch) -> Trainer:
    trainer = Trainer([])

    def predict(_, images, __):
        # One tile in five is taken for the class after its own.
        labels = np.repeat(np.arange(5), len(images) // 5)
        labels[::5] = (labels[::5] + 1) % 5
        return np.eye(5)[labels] * 0.8 + 0.04

    monkeypatch.setattr(cells, "fit_classifier", trainer)
    monkeypatch.setattr(cells, "predict_shared", predict)
    return trainer


def write_set(folder: Path, per_class: int, size: int = SIZE, class_names: list[str] | None = None) -> None:
    tiles = phantom_tiles("validation", per_class, image_size=size)
    names = class_names or phantom_source(sizes={"train": 1}).class_names
    soft_labels = np.full((len(tiles), len(names)), 1 / len(names), dtype=np.float32)
    write_image_dataset(folder / "data", tiles.images, {"label": tiles.labels, "soft_label": soft_labels}, names)
    Stage(folder, {"stage": folder.name, "per_class": per_class, "size": size}).finish()


@pytest.fixture(scope="module")
def finished_stages(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("compare")
    write_set(folder / "distilled", PER_CLASS)
    write_set(folder / "pool", 2 * PER_CLASS)
    return folder


@pytest.fixture
def run(finished_stages, tmp_path) -> Path:
    return shutil.copytree(finished_stages, tmp_path / "run")


@pytest.fixture
def start(run, run_main, tiny_tiles):
    def start(*argv: object) -> None:
        run_main(compare, run, "--data", tiny_tiles, "--mixed-precision", "no", *argv)

    return start


def test_rows_differ_in_tiles_and_loss_alone(run, start, trainer):
    start("--train", "convnet:7", "--seeds", 0, 1, "--batch-size", 20)
    assert len(trainer.calls) == 2 * len(ROWS)
    seen = {}
    for config, train, validation, _, checkpoint_dir, resume in trainer.calls:
        assert (config.architecture, config.max_train_steps, config.batch_size) == ("convnet", 7, 20)
        assert len(validation) == 20
        row = next(name for name in ROWS if checkpoint_dir.name == f"convnet-{name}-seed{config.seed}")
        assert resume == "latest"
        assert config.loss == ("joint" if row == "distilled_joint" else "ce")
        assert config.soft_label_weight == (row == "distilled_soft")
        assert (train.soft_labels is not None) == (row == "distilled_soft")
        seen[row, config.seed] = train
    counts = {row: np.bincount(train.labels).tolist() for (row, _), train in seen.items()}
    assert counts == {
        "real_all": [12] * 5,
        "real_random": [PER_CLASS] * 5,
        "pool_random": [PER_CLASS] * 5,
        "distilled_ce": [PER_CLASS] * 5,
        "distilled_joint": [PER_CLASS] * 5,
        "distilled_soft": [PER_CLASS] * 5,
    }
    # Random draws depend on the seed, and nothing else does.
    for row in ROWS:
        same = np.array_equal(seen[row, 0].images, seen[row, 1].images)
        assert same == (row not in ("real_random", "pool_random")), row
    assert np.array_equal(seen["distilled_ce", 0].images, seen["distilled_joint", 0].images)


def test_results(run, start, trainer, tiny_tiles):
    start("--train", "convnet:7:real_all,distilled_ce")
    results = read_json(run / "results.json")
    assert [(row["row"], row["num_train"]) for row in results["rows"]] == [("real_all", 60), ("distilled_ce", 15)]
    for row in results["rows"]:
        assert row["accuracy"]["mean"] == pytest.approx(0.8)
        assert 0 < row["auc"]["mean"] < 1 and 0 < row["f1"]["mean"] < 1
    assert results["recovery"] == {"convnet": pytest.approx(1.0)}
    assert results["n_per_class"] == PER_CLASS
    assert results["data"] == tiny_tiles.stem
    assert results["notes"] == []
    record = read_record(run / "comparison")
    assert record["complete"] and record["recovery"] == results["recovery"]


def test_from_python_the_results_come_back(run, trainer, tiny_tiles, fresh_accelerate, capsys):
    config = CompareConfig(run=run, data=tiny_tiles, train=["convnet:7:real_all,distilled_ce"], mixed_precision="no")
    results = compare.run(config)
    assert results == read_json(run / "results.json")
    capsys.readouterr()
    # And once more, without a training.
    assert compare.run(config) == results
    assert "already finished" in capsys.readouterr().out and len(trainer.calls) == 2


def test_finished_cells_are_not_trained_again(run, start, trainer):
    options = ("--train", "convnet:7:real_all,real_random,distilled_joint")
    trainer.limit = 2
    with pytest.raises(KeyboardInterrupt):
        start(*options)
    assert not is_complete(run / "comparison") and not (run / "results.json").exists()

    trainer.limit = 1000
    start(*options)
    assert [call[0].loss for call in trainer.calls] == ["ce", "ce", "joint"]
    assert [row["row"] for row in read_json(run / "results.json")["rows"]] == options[1].split(":")[2].split(",")


def test_a_finished_comparison_is_left_alone(run, start, trainer, capsys):
    start("--train", "convnet:7:real_all")
    written = (run / "results.json").stat().st_mtime_ns
    capsys.readouterr()
    start("--train", "convnet:7:real_all")
    assert "already finished" in capsys.readouterr().out
    assert len(trainer.calls) == 1
    assert (run / "results.json").stat().st_mtime_ns == written


def test_lost_results_are_summed_up_again(run, start, trainer):
    start("--train", "convnet:7:real_all")
    results = (run / "results.json").read_bytes()
    (run / "results.json").unlink()
    start("--train", "convnet:7:real_all")
    assert (run / "results.json").read_bytes() == results
    assert len(trainer.calls) == 1
    assert is_complete(run / "comparison")


def test_other_settings_are_refused(run, start, trainer):
    start("--train", "convnet:7:real_all")
    before = {path: path.read_bytes() for path in run.rglob("*.json")}
    with pytest.raises(InputError) as error:
        start("--train", "convnet:8:real_all")
    message = str(error.value)
    assert message.startswith(f"{run / 'comparison'} was made with other settings (train was ")
    assert message.endswith(f": delete {run / 'comparison'} to compare anew")
    assert {path: path.read_bytes() for path in run.rglob("*.json")} == before


def test_row_that_needs_more_tiles_than_there_are_is_left_out(run, start, trainer, capsys):
    shutil.rmtree(run / "distilled")
    write_set(run / "distilled", 13)  # 12 real ones of each class, 6 in the pool
    start("--train", "convnet:7", "--seeds", 0, 1)
    results = read_json(run / "results.json")
    assert [row["row"] for row in results["rows"]] == ["real_all", "distilled_ce", "distilled_joint", "distilled_soft"]
    # One note per row, not per seed.
    assert results["notes"] == [
        f"{ROWS['real_random']}: left out, since n_per_class=13 is too many: class 0 has only 12 tiles; ask for fewer",
        f"{ROWS['pool_random']}: left out, since n_per_class=13 is too many: class 0 has only 6 tiles; ask for fewer",
    ]
    assert results["notes"][0] in capsys.readouterr().err
    assert list(results["recovery"]) == ["convnet"]


@pytest.mark.parametrize("missing", ["distilled", "pool"])
def test_stage_before_must_be_finished(missing, run, start, trainer):
    record = json.loads((run / missing / "stage.json").read_text())
    (run / missing / "stage.json").write_text(json.dumps({**record, "complete": False}))
    with pytest.raises(InputError, match=f"{missing} holds no finished .*: run histodistill (select|generate) first"):
        start()
    assert not (run / "comparison").exists()


def test_other_classes_are_refused(run, start, trainer):
    shutil.rmtree(run / "distilled")
    write_set(run / "distilled", PER_CLASS, class_names=["a", "b", "c", "d", "e"])
    with pytest.raises(InputError) as error:
        start()
    message = error.value.for_command_line()
    assert re.search(r"has the classes a, b, c, d, e and --data adipose, .*: they must be the same", message)
    assert not (run / "comparison").exists() and trainer.calls == []


def test_another_size_is_refused(run, start, trainer, run_main, tiny_tiles):
    shutil.rmtree(run / "distilled")
    write_set(run / "distilled", PER_CLASS, size=24)
    with pytest.raises(InputError) as error:
        start()
    message = error.value.for_command_line()
    assert message.endswith("distilled are 24 px and the tiles of --data 16 px: give --image-size 24")
    assert not (run / "comparison").exists() and trainer.calls == []
    start("--train", "convnet:7:real_all", "--image-size", 24)
    assert trainer.calls[0][1].images.shape == (60, 24, 24, 3)


def test_pool_must_hold_as_many_as_are_drawn(finished_stages, tiny_tiles):
    source = load_tiles(tiny_tiles)
    with pytest.raises(InputError, match="n_per_class=7 is too many"):
        compare.training_tiles("pool_random", finished_stages, source, 7, seed=0)
    assert len(compare.training_tiles("pool_random", finished_stages, source, 6, seed=0)) == 30


def test_a_probe_and_a_transformer_from_scratch_stand_in_the_results(run, start, tmp_path, tiny_autoencoder, capsys):
    """Both are really trained; nothing that is kept of them names a folder of this machine."""
    shutil.copytree(tiny_autoencoder, run / "autoencoder")
    network = tmp_path / "secret"
    ViTConfig(
        image_size=SIZE, patch_size=8, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8
    ).save_pretrained(network)
    rows = "real_all,distilled_ce"
    start(
        "--train", f"probe:{run / 'autoencoder'}::{rows},distilled_joint,distilled_soft", f"scratch:{network}:2:{rows}"
    )
    results = parse_results((run / "results.json").read_bytes())
    assert [(row.architecture.partition("-")[0], row.row, row.steps) for row in results.rows] == [
        ("probe:autoencoder", "real_all", None),
        ("probe:autoencoder", "distilled_ce", None),
        ("probe:autoencoder", "distilled_soft", None),
        ("scratch:vit", "real_all", 2),
        ("scratch:vit", "distilled_ce", 2),
    ]
    (note,) = results.notes
    assert note.startswith("probe:autoencoder, Distilled, joint loss: left out, since loss=joint has no meaning for")
    assert results.rows[0].accuracy.mean > 0.5 and len(results.recovery) == 2
    for file in (run / "comparison").glob("*.json"):
        assert "secret" not in file.name and "secret" not in file.read_text(), file
    capsys.readouterr()
    start("--train", f"probe:autoencoder::{rows},distilled_joint,distilled_soft", f"scratch:{network}:2:{rows}")
    assert "is already finished" in capsys.readouterr().out  # the run's own autoencoder by its name is the same plan
