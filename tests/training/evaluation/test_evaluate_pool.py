from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from diffusers import AutoencoderDC

from histodistill.training import cli
from histodistill.training.data.image_dataset import read_image_dataset, write_image_dataset
from histodistill.training.data.sources import load_tiles
from histodistill.training.evaluation import cells, pool_figures, pool_quality
from histodistill.training.evaluation import evaluate_pool as script
from histodistill.training.evaluation.evaluate_pool import (
    ROWS,
    EvaluatePoolConfig,
    accuracy_scores,
    make_parser,
    row_lines,
)
from histodistill.training.evaluation.pool_figures import CANDIDATES, DISTANCES, distance_lines
from histodistill.training.evaluation.pool_quality import compare_with_validation
from histodistill.training.models import reconstruction
from histodistill.training.models.embedders import embed_images, embedder_fingerprint
from histodistill.training.models.loading import load_classifier
from histodistill.training.models.prediction import predict_proba
from histodistill.training.models.reconstruction import reconstruct_tiles
from histodistill.training.running.errors import InputError
from histodistill.training.running.files import read_json, write_json
from histodistill.training.running.options import to_argv
from histodistill.training.running.precision import usual_precision
from histodistill.training.running.stages import is_complete, read_record


# The command line.


def read(*argv: str) -> EvaluatePoolConfig:
    return make_parser().read(["run", "--data", "phantom", *argv])


def test_defaults():
    config = make_parser().read(["runs/one", "--data", "phantom"])
    assert (config.run, config.pool_folder) == (Path("runs/one"), Path("runs/one/pool"))
    assert config.output_folder == Path("runs/one/evaluation")
    assert config.embedder == "teacher"
    assert config.plan == [("resnet18", 300, ("real_all", "reconstructed", "pool_all"))]
    assert (config.seeds, config.n_neighbors, config.num_processes) == ((0,), 5, 1)
    assert config == EvaluatePoolConfig(run="runs/one", data="phantom")


def test_options():
    config = read(
        "--pool", "other", "--output", "here", "--seeds", "3", "1", "--train", "convnet:5:pool_all,real_all", "vit:7",
    )  # fmt: skip
    assert (config.pool_folder, config.output_folder, config.seeds) == (Path("other"), Path("here"), (3, 1))
    assert config.plan == [("convnet", 5, ("pool_all", "real_all")), ("vit", 7, tuple(ROWS))]
    assert make_parser().read(to_argv(config)) == config
    # Nothing after it trains none.
    assert read("--train").plan == EvaluatePoolConfig(run="run", data="phantom", train=()).plan == []
    assert make_parser().read(to_argv(read("--train"))) == read("--train")


def test_settings_are_the_options_that_decide_the_result():
    # Of pool, embedder and tiles the fingerprints are recorded.
    settings = read("--pool", "other", "--embedder", "untrained", "--image-size", "28", "--output", "o").settings()
    assert settings == {
        "batch_size": 128, "mixed_precision": usual_precision(), "n_neighbors": 5,
        "seeds": (0,), "train": ("resnet18:300:real_all,reconstructed,pool_all",),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--n-neighbors", "0"], "--n-neighbors=0 is out of range: it must be at least 1"),
        (["--batch-size", "0"], "--batch-size=0 is out of range: it must be at least 1"),
        (["--num-processes", "0"], "--num-processes=0 is out of range: it must be at least 1"),
        (["--seeds", "0", "-1"], "--seeds=0 -1 is out of range: each must be at least 0"),
        (["--seeds", "1", "1"], "--seeds=1 1 is out of range: each may be named once"),
        (["--train", "vgg:10"], "--train=vgg:10: the architecture must be one of convnet, resnet18, vit"),
        (["--train", "convnet"], "--train=convnet: after the architecture comes the number of steps"),
        (["--train", "convnet:0"], "--train=convnet:0: after the architecture comes the number of steps"),
        (
            ["--train", "convnet:5:distilled_ce"],
            "--train=convnet:5:distilled_ce: 'distilled_ce' is no row: use real_all, reconstructed, pool_all, "
            "real_as_many, pool_soft",
        ),
        (["--train", "convnet:5:pool_all,pool_all"], "--train=convnet:5:pool_all,pool_all names a row twice"),
        (["--train", "convnet:5:pool_all", "convnet:9"], "--train names convnet twice"),
    ],
)
def test_bad_options(argv, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        read(*argv)
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {message}")
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--data", "phantom"], "RUN must be given"),
        (["run"], "--data must be given"),
        (["run", "--dat", "phantom"], "--dat is no option of histodistill evaluate-pool (did you mean --data?)"),
    ],
)
def test_run_and_data_have_to_be_named(argv, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        make_parser().read(argv)
    assert stopped.value.code == 2
    assert capsys.readouterr().err.startswith(f"error: {message}: ")


def test_several_processes_are_launched_with_every_option(monkeypatch):
    started = []
    monkeypatch.setattr(cli, "run_module", lambda *call: started.append(call))
    argv = ["run", "--data", "phantom", "--train", "--num-processes", "2"]
    cli.main(["evaluate-pool", *argv])
    assert started == [("histodistill.training.evaluation.evaluate_pool", argv, 2)]


# Sums.


def test_accuracy_score_is_the_share_of_the_accuracy_of_all_real_tiles():
    def row(architecture: str, name: str, accuracy: float) -> dict:
        return {"architecture": architecture, "row": name, "accuracy": {"mean": accuracy}}

    shares = accuracy_scores([
        row("convnet", "pool_all", 0.6), row("convnet", "real_all", 0.8), row("convnet", "reconstructed", 0.84),
        row("resnet18", "real_all", 0.5), row("resnet18", "pool_all", 0.4),
        # Without all real tiles, or where they taught nothing, there is no share.
        row("vit", "pool_all", 0.9), row("other", "real_all", 0.0), row("other", "pool_all", 0.5),
    ])  # fmt: skip
    assert shares == {
        "convnet": {"pool_all": pytest.approx(0.75), "reconstructed": pytest.approx(1.05)},
        "resnet18": {"pool_all": pytest.approx(0.8)},
    }
    assert accuracy_scores([]) == {}


def test_accuracies_as_text():
    def row(name: str, accuracy: float) -> dict:
        return {"architecture": "convnet", "row": name, "title": ROWS[name], "accuracy": {"mean": accuracy}}

    assert row_lines([row("real_all", 0.8), row("pool_all", 0.6)]) == [
        "convnet · All real tiles: validation ACC 0.800",
        "convnet · The whole pool: validation ACC 0.600, 75.0% of all real tiles",
    ]
    assert row_lines([]) == []


# The whole way, on a copy of a finished run with 12 / 4 / 4 real tiles and 8 generated ones of each class.


OPTIONS = ("--mixed-precision", "no", "--batch-size", "20", "--n-neighbors", "3")


def copy_run(tiny_run, place: Path) -> Path:
    return shutil.copytree(tiny_run.folder, place / "run", ignore=shutil.ignore_patterns("checkpoints"))


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory, tiny_run, run_main) -> Path:
    """A run after `evaluate-pool --train convnet:2`; it is read, never changed."""
    folder = copy_run(tiny_run, tmp_path_factory.mktemp("evaluated"))
    run_main(script, folder, "--data", tiny_run.data, *OPTIONS, "--train", "convnet:2")
    return folder


@pytest.fixture
def run(tiny_run, tmp_path) -> Path:
    return copy_run(tiny_run, tmp_path)


@pytest.fixture
def start(run, run_main, tiny_run):
    def start(*argv: object) -> None:
        run_main(script, run, "--data", tiny_run.data, *OPTIONS, *argv)

    return start


def finite_json(path: Path):
    return json.loads(path.read_text(), parse_constant=lambda constant: pytest.fail(f"{path} holds {constant}"))


def test_files_that_are_left(evaluated, read_png):
    folder = evaluated / "evaluation"
    assert {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()} == {
        "stage.json", "metrics.json", "distances.json", "metrics.png", "tiles.png",
        *(f"convnet-{row}-seed0.json" for row in ROWS),
    }  # fmt: skip
    for name in ("metrics.png", "tiles.png"):
        assert read_png((folder / name).read_bytes()).std() > 5, name
    for path in folder.glob("*.json"):
        finite_json(path)
        assert str(evaluated.parent) not in path.read_text(), path.name


def test_results(evaluated, tiny_tiles):
    results = finite_json(evaluated / "evaluation" / "metrics.json")
    source = load_tiles(tiny_tiles)
    assert (results["data"], results["class_names"]) == (tiny_tiles.stem, source.class_names)
    assert (results["embedder"], results["n_neighbors"]) == ("teacher", 3)
    assert results["distances"] == finite_json(evaluated / "evaluation" / "distances.json")
    rows = results["rows"]
    assert [(row["row"], row["title"], row["num_train"]) for row in rows] == [
        ("real_all", "All real tiles", 60),
        ("reconstructed", "All real tiles, reconstructed by the autoencoder", 60),
        ("pool_all", "The whole pool", 40),
        ("real_as_many", "As many real tiles of each class as the pool has, or all", 40),
        ("pool_soft", "The whole pool, soft labels of the teacher", 40),
    ]
    accuracy = {row["row"]: row["accuracy"]["mean"] for row in rows}
    for row in rows:
        assert (row["architecture"], row["steps"], row["seeds"]) == ("convnet", 2, [0])
        cell = finite_json(evaluated / "evaluation" / f"convnet-{row['row']}-seed0.json")
        assert row["accuracy"]["values"] == [cell["validation"]["accuracy"]]
        assert np.sum(cell["validation"]["confusion"]) == 20
        assert cell["config"]["batch_size"] == 20 and cell["best_step"] == 2
        assert cell["config"]["soft_label_weight"] == (row["row"] == "pool_soft")
    expected = {row: value / accuracy["real_all"] for row, value in accuracy.items() if row != "real_all"}
    assert results["accuracy_score"] == {"convnet": pytest.approx(expected)}


def test_distances_are_of_validation_tiles_in_the_space_of_the_teacher(evaluated, tiny_tiles):
    source = load_tiles(tiny_tiles)
    images, columns, names = read_image_dataset(evaluated / "pool")
    validation, train = source.split("validation"), source.split("train")
    labels = {"validation": validation.labels, "pool": columns["label"], "real_train": train.labels}
    pictures = {"validation": validation.images, "pool": images, "real_train": train.images}
    embeddings = {name: embed_images(evaluated / "teacher", batch) for name, batch in pictures.items()}
    expected = compare_with_validation(embeddings, labels, names, 3)
    found = read_json(evaluated / "evaluation" / "distances.json")
    assert [record["num_images"] for record in found] == [20, 4, 4, 4, 4, 4]
    for one, other in zip(found, expected, strict=True):
        for name in CANDIDATES:
            assert one[name] == pytest.approx(other[name], rel=1e-4, abs=1e-6)
    assert found[0]["pool"]["frechet_distance"] > found[0]["real_train"]["frechet_distance"]


def test_from_python_the_results_come_back(evaluated, tiny_run, fresh_accelerate):
    config = EvaluatePoolConfig(
        run=evaluated, data=tiny_run.data, mixed_precision="no", batch_size=20, n_neighbors=3, train=["convnet:2"]
    )
    assert script.run(config) == finite_json(evaluated / "evaluation" / "metrics.json")


def test_record_names_all_inputs(evaluated, tiny_tiles):
    record = read_record(evaluated / "evaluation")
    assert record["complete"] and record["num_processes"] == 1
    assert record["settings"]["data"] == load_tiles(tiny_tiles).fingerprint()
    for name in ("pool", "pipeline", "teacher"):
        assert record["settings"][name] == read_record(evaluated / name)["fingerprint"]
    assert record["settings"]["train"] == ["convnet:2"]


def test_a_killed_evaluation_goes_on_and_each_row_has_its_tiles(start, run, evaluated, tiny_tiles, monkeypatch):
    trained, train_cell = {}, cells.train_cell

    def watched(path, row, config, train, choose_on, score_on, *others, **more):
        if len(trained) == limit:
            raise KeyboardInterrupt
        trained[row] = train
        assert choose_on is None
        assert list(score_on) == ["validation"]
        assert np.array_equal(score_on["validation"].images, source.split("validation").images)
        return train_cell(path, row, config, train, choose_on, score_on, *others, **more)

    monkeypatch.setattr(cells, "train_cell", watched)
    source, limit = load_tiles(tiny_tiles), 2
    with pytest.raises(KeyboardInterrupt):
        start("--train", "convnet:2")
    assert list(trained) == ["real_all", "reconstructed"]
    assert not is_complete(run / "evaluation") and not (run / "evaluation" / "metrics.json").exists()

    # Neither is embedded again, nor are the finished ones trained again.
    monkeypatch.setattr(pool_quality, "embed_images", None)
    limit = len(ROWS)
    start("--train", "convnet:2")
    assert list(trained) == list(ROWS)
    assert is_complete(run / "evaluation")
    assert read_json(run / "evaluation" / "metrics.json") == read_json(evaluated / "evaluation" / "metrics.json")

    images, columns, _ = read_image_dataset(run / "pool")
    real, reconstructed, pool, as_many, soft = trained.values()
    assert np.array_equal(real.images, source.split("train").images)
    assert np.array_equal(pool.images, images) and np.array_equal(pool.labels, columns["label"])
    assert np.array_equal(reconstructed.labels, real.labels)
    assert not np.array_equal(reconstructed.images, real.images)
    autoencoder = AutoencoderDC.from_pretrained(run / "pipeline" / "vae").eval()
    expected = np.concatenate(list(reconstruct_tiles(autoencoder, real.images)))
    assert np.abs(expected.astype(int) - reconstructed.images).max() <= 1
    assert np.array_equal(np.bincount(as_many.labels), np.bincount(pool.labels))
    assert {tile.tobytes() for tile in as_many.images} < {tile.tobytes() for tile in real.images}
    assert pool.soft_labels is None
    assert np.array_equal(soft.images, images) and np.array_equal(soft.labels, pool.labels)
    teacher = load_classifier(run / "teacher")
    assert np.allclose(soft.soft_labels, predict_proba(teacher, images), atol=1e-6)


def test_a_finished_evaluation_is_left_alone(evaluated, tiny_run, run_main, capsys, monkeypatch):
    before = {path: path.stat().st_mtime_ns for path in evaluated.rglob("*") if path.is_file()}
    for module, name in (
        (pool_quality, "embed_images"), (cells, "train_cell"), (reconstruction, "reconstruct_tiles"),
        (pool_figures, "draw_tiles"),
    ):  # fmt: skip
        monkeypatch.setattr(module, name, None)
    run_main(script, evaluated, "--data", tiny_run.data, *OPTIONS, "--train", "convnet:2")
    assert f"evaluate-pool: {evaluated / 'evaluation'} is already finished" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in evaluated.rglob("*") if path.is_file()} == before


def test_other_settings_are_refused(evaluated, tiny_run, run_main):
    before = {path: path.stat().st_mtime_ns for path in evaluated.rglob("*") if path.is_file()}
    for argv, changed in (
        (["--train", "convnet:3"], 'train was ["convnet:2"] and is now ["convnet:3"]'),
        (["--train", "convnet:2", "--n-neighbors", 2], "n_neighbors was 3 and is now 2"),
        (["--train", "convnet:2", "--seeds", 0, 1], "seeds was [0] and is now [0, 1]"),
    ):
        with pytest.raises(InputError) as error:
            run_main(script, evaluated, "--data", tiny_run.data, *OPTIONS, *argv)
        folder = evaluated / "evaluation"
        message = error.value.for_command_line()
        assert message == f"{folder} was made with other settings ({changed}): give another --output"
    assert {path: path.stat().st_mtime_ns for path in evaluated.rglob("*") if path.is_file()} == before


def test_nothing_is_trained_where_nothing_is_asked_for(start, run, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(cells, "train_cell", None)
    start("--n-neighbors", 5, "--output", tmp_path / "other", "--train")
    assert not (run / "evaluation").exists()
    results = finite_json(tmp_path / "other" / "metrics.json")
    assert (results["rows"], results["accuracy_score"]) == ([], {})
    # 20 validation tiles together are enough for 5 neighbours, and 4 of a class are not.
    everything, *classes = results["distances"]
    assert None not in everything["pool"].values() and None not in everything["real_train"].values()
    assert all(record["pool"] == record["real_train"] == dict.fromkeys(DISTANCES) for record in classes)
    printed = capsys.readouterr().out
    assert "\n".join(distance_lines(results["distances"])) in printed
    assert printed.splitlines()[-1] == f"evaluate-pool: saved to {tmp_path / 'other'}"


def test_test_tiles_are_not_touched(run, run_main, tiny_tiles, evaluated, tmp_path):
    with np.load(tiny_tiles) as arrays:
        others = {**arrays, "test_images": np.roll(255 - arrays["test_images"], 3, axis=2)}
    np.savez(tmp_path / "tiles.npz", **others)
    run_main(script, run, "--data", tmp_path / "tiles.npz", *OPTIONS, "--train")
    found, expected = (read_json(folder / "evaluation" / "distances.json") for folder in (run, evaluated))
    assert found == expected


def test_another_pool_and_another_embedder(start, run, evaluated, tmp_path, capsys):
    # Where a model is named, no teacher is needed.
    shutil.move(run / "teacher", tmp_path / "model")
    shutil.move(run / "pool", tmp_path / "pool")
    start("--pool", tmp_path / "pool", "--embedder", tmp_path / "model", "--train")
    results = read_json(run / "evaluation" / "metrics.json")
    assert results["distances"] == read_json(evaluated / "evaluation" / "distances.json")
    settings = read_record(run / "evaluation")["settings"]
    assert "teacher" not in settings
    # A folder is known by its content: it may move, but not change.
    assert results["embedder"] == settings["embedder"] == embedder_fingerprint(tmp_path / "model")
    assert str(tmp_path) not in (run / "evaluation" / "metrics.json").read_text()
    shutil.move(tmp_path / "model", tmp_path / "moved")
    argv = ["--pool", tmp_path / "pool", "--embedder", tmp_path / "moved", "--train"]
    start(*argv)
    assert "is already finished" in capsys.readouterr().out
    (tmp_path / "moved" / "results.json").write_text("{}")
    with pytest.raises(InputError, match=r"was made with other settings \(embedder was "):
        start(*argv)


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ("pool", "run histodistill generate first"),
        ("pipeline", "run train_diffusion first"),
        ("teacher", "run train_classifier, or give --embedder"),
    ],
)
def test_stage_before_must_be_finished(missing, message, start, run):
    record = read_record(run / missing)
    write_json(run / missing / "stage.json", {**record, "complete": False})
    with pytest.raises(InputError) as error:
        start()
    assert error.value.for_command_line() == f"{run / missing} holds no finished {missing}: {message}"
    shutil.rmtree(run / missing)
    with pytest.raises(InputError) as error:
        start()
    assert error.value.for_command_line() == f"{run / missing} holds no finished {missing}: {message}"
    assert not (run / "evaluation").exists()


def test_soft_labels_need_the_teacher(start, run):
    shutil.move(run / "teacher", run / "model")
    argv = ("--embedder", run / "model", "--train", "convnet:2:pool_soft")
    with pytest.raises(InputError) as error:
        start(*argv)
    assert error.value.for_command_line() == (
        f"{run / 'teacher'} holds no finished teacher: run train_classifier, or leave pool_soft out"
    )
    assert not (run / "evaluation").exists()
    shutil.copytree(run / "model", run / "teacher")
    start(*argv)
    assert "teacher" in read_record(run / "evaluation")["settings"]


def test_other_classes_are_refused(start, run):
    images, columns, names = read_image_dataset(run / "pool")
    write_image_dataset(run / "pool" / "data", images, {"label": columns["label"]}, names[::-1])
    with pytest.raises(InputError) as error:
        start()
    assert error.value.for_command_line() == (
        f"{run / 'pool'} has the classes {', '.join(names[::-1])} and --data {', '.join(names)}: "
        "they must be the same, in the same order"
    )
    assert not (run / "evaluation").exists()


def test_another_size_is_refused(start, run):
    with pytest.raises(InputError) as error:
        start("--image-size", 24)
    assert error.value.for_command_line() == (
        f"the images of {run / 'pool'} are 16 px and the tiles of --data 24 px: give --image-size 16"
    )
    assert not (run / "evaluation").exists()


def test_more_validation_tiles_than_neighbours_are_needed(start, run):
    with pytest.raises(InputError) as error:
        start("--n-neighbors", 20)
    assert error.value.for_command_line() == "--n-neighbors=20 is too many for 20 validation tiles: give fewer"
    assert not (run / "evaluation").exists()
