from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from histodistill.training.data.phantom import phantom_source
from histodistill.training.data.tiles import Tiles, TileSource
from histodistill.training.engine.accelerator import make_accelerator
from histodistill.training.engine.classifier_config import ClassifierConfig, recorded_recipe
from histodistill.training.engine.classifier_training import fit_classifier
from histodistill.training.engine.scoring import score
from histodistill.training.evaluation.cells import check_same_kind, read_cell, summarise_rows, train_cell
from histodistill.training.running.errors import InputError


# One kind of tiles.


@pytest.fixture(scope="module")
def source() -> TileSource:
    return phantom_source(image_size=16, sizes={"train": 6, "validation": 3, "test": 2})


def test_images_of_the_same_kind_are_accepted(source):
    images = np.zeros((1, 16, 16, 3), np.uint8)
    assert check_same_kind(Path("run/pool"), images, source.class_names, source) is None


def test_other_classes_are_refused(source):
    names = source.class_names
    images = np.zeros((1, 16, 16, 3), np.uint8)
    for other in (["a", "b"], names[::-1], names[:-1]):
        with pytest.raises(InputError) as error:
            check_same_kind(Path("run/pool"), images, other, source)
        assert error.value.for_command_line() == (
            f"{Path('run/pool')} has the classes {', '.join(other)} and --data {', '.join(names)}: "
            "they must be the same, in the same order"
        )


def test_another_size_is_refused(source):
    with pytest.raises(InputError) as error:
        check_same_kind(Path("run/pool"), np.zeros((1, 24, 24, 3), np.uint8), source.class_names, source)
    assert error.value.for_command_line() == (
        f"the images of {Path('run/pool')} are 24 px and the tiles of --data 16 px: give --image-size 24"
    )
    assert str(error.value).endswith("the tiles of data 16 px: give image_size 24")


# Training.


CONFIG = ClassifierConfig(architecture="convnet", width=4, max_train_steps=6, batch_size=10, validation_steps=2)


@pytest.fixture
def accelerator(fresh_accelerate):
    return make_accelerator("no")


@pytest.fixture
def train(source, accelerator, tmp_path):
    """`train(config, choose_on, score_on, …)` gives the cell, whose file is cells/one.json."""

    def train(config: ClassifierConfig, choose_on: Tiles | None, score_on: dict[str, Tiles], **options) -> dict:
        return train_cell(
            tmp_path / "cells" / "one.json", "a row", config, source.split("train"), choose_on, score_on, accelerator,
            source.class_names, **options,
        )  # fmt: skip

    return train


def without_seconds(cell: dict) -> dict:
    assert cell["seconds"] >= 0
    return {key: value for key, value in cell.items() if key != "seconds"}


def test_a_cell_is_written_with_all_that_is_known_of_it(source, accelerator, train, tmp_path):
    validation, test = source.split("validation"), source.split("test")
    cell = train(CONFIG, validation, {"test": test})
    alone = fit_classifier(
        CONFIG, source.split("train"), validation, accelerator, class_names=source.class_names, progress=False
    )
    assert without_seconds(cell) == {
        "architecture": "convnet",
        "row": "a row",
        "size": None,
        "seed": 0,
        "num_train": 30,
        "validation": alone.validation,
        "test": score(alone.model, test),
        "best_step": alone.best_step,
        "config": recorded_recipe(CONFIG),
    }
    assert alone.validation == score(alone.model, validation) and alone.best_step in (2, 4, 6)
    assert read_cell(tmp_path / "cells" / "one.json") == cell
    assert [path.name for path in (tmp_path / "cells").rglob("*") if path.is_file()] == ["one.json"]


def test_validation_tiles_may_be_what_is_scored(source, accelerator, train):
    validation = source.split("validation")
    cell = train(CONFIG, None, {"validation": validation})
    last = fit_classifier(
        CONFIG, source.split("train"), None, accelerator, class_names=source.class_names, progress=False
    )
    assert last.validation is None
    assert cell["validation"] == score(last.model, validation)
    assert cell["best_step"] == CONFIG.max_train_steps
    assert "test" not in cell


def test_several_splits_are_scored_by_the_same_weights(source, accelerator, train, tmp_path):
    splits = {name: source.split(name) for name in ("test", "validation", "train")}
    cell = train(CONFIG, None, splits)
    last = fit_classifier(
        CONFIG, source.split("train"), None, accelerator, class_names=source.class_names, progress=False
    )
    scores = {name: score(last.model, tiles) for name, tiles in splits.items()}
    assert {name: cell[name] for name in splits} == scores
    assert [np.sum(scores[name]["confusion"]) for name in splits] == [10, 15, 30]
    assert read_cell(tmp_path / "cells" / "one.json") == cell


def test_the_bar_can_be_left_out(source, train, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("histodistill.training.running.progress.has_bars", lambda: True)
    score_on = {"test": source.split("test")}
    train(CONFIG, None, score_on)
    assert "6/6" in capsys.readouterr().err
    train(CONFIG, None, score_on, progress=False)
    assert capsys.readouterr().err == ""


def leave_checkpoints(folder: Path, config: ClassifierConfig, source: TileSource, accelerator) -> None:
    fit_classifier(
        config, source.split("train"), None, accelerator, class_names=source.class_names, checkpoint_dir=folder,
        checkpointing_steps=4, progress=False,
    )  # fmt: skip
    assert [path.name for path in folder.iterdir()] == ["checkpoint-4"]


def test_a_killed_training_goes_on_and_its_checkpoints_go(source, accelerator, train, tmp_path):
    score_on = {"validation": source.split("validation")}
    whole = train(CONFIG, None, score_on)
    # The checkpoint of a killed training, and those of another cell that is not finished.
    leave_checkpoints(tmp_path / "cells" / "checkpoints" / "one", CONFIG, source, accelerator)
    leave_checkpoints(tmp_path / "cells" / "checkpoints" / "two", CONFIG, source, accelerator)
    (tmp_path / "cells" / "one.json").unlink()
    assert without_seconds(train(CONFIG, None, score_on)) == without_seconds(whole)
    assert [path.name for path in (tmp_path / "cells" / "checkpoints").iterdir()] == ["two"]


def test_checkpoints_of_other_settings_are_refused(source, accelerator, train, tmp_path):
    # Which also shows that the checkpoint beside the cell is the one that is read.
    other = ClassifierConfig(**{**vars(CONFIG), "seed": 1})
    leave_checkpoints(tmp_path / "cells" / "checkpoints" / "one", other, source, accelerator)
    with pytest.raises(InputError, match=r"checkpoint-4 is of a training with other settings"):
        train(CONFIG, None, {"validation": source.split("validation")})
    assert read_cell(tmp_path / "cells" / "one.json") is None


def test_undefined_auc_is_written_as_null(source, train, tmp_path):
    validation = source.split("validation")
    lacking = validation.subset(np.flatnonzero(validation.labels == 1))
    assert train(CONFIG, None, {"validation": lacking})["validation"]["auc"] is None
    written = json.loads((tmp_path / "cells" / "one.json").read_text(), parse_constant=pytest.fail)
    assert written["validation"]["auc"] is None
    assert 0 <= written["validation"]["accuracy"] <= 1


def test_a_cell_that_is_not_there(tmp_path):
    assert read_cell(tmp_path / "none.json") is None
    assert read_cell(tmp_path) is None


# Rows.


TITLES = {"one": "The first", "two": "The second"}


def cell(row: str, seed: int, accuracy: float, auc: float | None = 0.75, architecture: str = "convnet") -> dict:
    return {
        "architecture": architecture, "row": row, "seed": seed, "num_train": {"one": 60, "two": 15}[row],
        "config": {"max_train_steps": 10 if architecture == "convnet" else 20},
        "validation": {"accuracy": accuracy, "auc": auc, "f1": accuracy / 2},
        "test": {"accuracy": 0.0, "auc": 0.0, "f1": 0.0},
    }  # fmt: skip


def test_mean_and_sample_standard_deviation_over_seeds():
    [row] = summarise_rows([cell("one", 3, 0.8), cell("one", 0, 0.9), cell("one", 5, 1.0)], TITLES, "validation")
    # n - 1: sqrt((0.01 + 0 + 0.01) / 2), and a quarter of that for half the values.
    assert row == {
        "row": "one",
        "title": "The first",
        "architecture": "convnet",
        "num_train": 60,
        "steps": 10,
        "seeds": [3, 0, 5],
        "accuracy": {"mean": pytest.approx(0.9), "std": pytest.approx(0.1), "values": [0.8, 0.9, 1.0]},
        "auc": {"mean": 0.75, "std": 0, "values": [0.75, 0.75, 0.75]},
        "f1": {"mean": pytest.approx(0.45), "std": pytest.approx(0.05), "values": [0.4, 0.45, 0.5]},
    }


def test_one_seed_has_no_spread():
    [row] = summarise_rows([cell("two", 4, 0.8)], TITLES, "validation")
    assert row["accuracy"] == {"mean": 0.8, "std": None, "values": [0.8]}


def test_an_auc_that_is_undefined_once_has_no_mean():
    [row] = summarise_rows([cell("one", 0, 0.8, auc=0.9), cell("one", 1, 0.6, auc=None)], TITLES, "validation")
    assert row["auc"] == {"mean": None, "std": None, "values": [0.9, None]}
    assert row["accuracy"]["mean"] == pytest.approx(0.7)


def test_rows_stand_in_order_of_appearance():
    cells = [
        cell("two", 0, 0.1), cell("one", 0, 0.2, architecture="vit"), cell("one", 0, 0.3), cell("two", 1, 0.5),
        cell("one", 1, 0.6, architecture="vit"),
    ]  # fmt: skip
    rows = summarise_rows(cells, TITLES, "validation")
    assert [(row["architecture"], row["row"], row["title"], row["num_train"], row["steps"]) for row in rows] == [
        ("convnet", "two", "The second", 15, 10),
        ("vit", "one", "The first", 60, 20),
        ("convnet", "one", "The first", 60, 10),
    ]
    assert [row["accuracy"]["values"] for row in rows] == [[0.1, 0.5], [0.2, 0.6], [0.3]]
    assert summarise_rows([], TITLES, "validation") == []


def test_the_split_that_is_asked_for_counts():
    [row] = summarise_rows([cell("one", 0, 0.8)], TITLES, "test")
    assert row["accuracy"]["values"] == [0.0]
