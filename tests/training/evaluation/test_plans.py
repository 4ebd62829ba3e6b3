from __future__ import annotations

import json
from pathlib import Path

import pytest

from histodistill.hub_cards.card_facts import architecture_title
from histodistill.training.evaluation.plans import PlannedCell, parse_plan, planned_cells, recorded_plan
from histodistill.training.models.encoder_names import architecture_label, is_architecture_label
from histodistill.training.running.errors import InputError
from histodistill.training.tables.planned_cells import TablePlan
from histodistill.training.tables.rows import HEADLINE_ROWS


ROWS = ["all", "few"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("convnet:800", ("convnet", 800, ("all", "few"))),
        ("convnet:800:few", ("convnet", 800, ("few",))),
        ("microsoft/resnet-18:800:few,all", ("microsoft/resnet-18", 800, ("few", "all"))),
        ("/data/a:1/model:800", ("/data/a:1/model", 800, ("all", "few"))),
        ("/data/a:1/model:7:800:few", ("/data/a:1/model:7", 800, ("few",))),
        ("scratch:user/model:800", ("scratch:user/model", 800, ("all", "few"))),
        ("probe:untrained", ("probe:untrained", None, ("all", "few"))),
        ("probe:untrained::few", ("probe:untrained", None, ("few",))),
        ("probe:timm:vit_tiny", ("probe:timm:vit_tiny", None, ("all", "few"))),
        ("probe:facebook/dinov2-small::few,all", ("probe:facebook/dinov2-small", None, ("few", "all"))),
        ("probe:/data/a:1/model::few", ("probe:/data/a:1/model", None, ("few",))),
        ("probe:/data/odd::few::", ("probe:/data/odd::few", None, ("all", "few"))),
    ],
)
def test_names_with_colons_and_slashes_are_read_in_one_way(text, expected):
    assert parse_plan([text], ROWS) == [expected]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            "probe:untrained:1000",
            "a probe is fitted without steps, .*: write probe:untrained, or probe:untrained:1000::",
        ),
        ("probe:untrained:few", "its rows stand after two colons: write probe:untrained::few, or"),
        ("probe:untrained::many", "'many' is no row"),
        ("probe::few", "must be one of convnet, resnet18, vit, or MODEL, scratch:MODEL or probe:ENCODER"),
        ("user/model", "after the architecture comes the number of steps"),
        ("user/model:few", "after the architecture comes the number of steps"),
        ("scratch:convnet:9", "must be one of convnet"),
        ("timm:vit_tiny:9", "must be one of convnet"),
    ],
)
def test_plans_that_cannot_be_read(text, words):
    with pytest.raises(InputError, match=words) as error:
        parse_plan([text], ROWS)
    assert "\n" not in str(error.value)


@pytest.fixture
def run(tmp_path):
    folder = tmp_path / "run"
    for name in ("autoencoder", "teacher"):
        (folder / name).mkdir(parents=True)
        (folder / name / "config.json").write_text("{}")
    return folder


@pytest.fixture
def model(tmp_path):
    folder = tmp_path / "secret" / "model"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"model_type": "dinov2"}))
    (folder / "model.safetensors").write_bytes(b"weights")
    return folder


def test_labels_hold_no_path_and_tell_models_apart(run, model, monkeypatch):
    found = {
        text: architecture_label(text, run)
        for text in ("convnet", "probe:untrained", "probe:autoencoder", "probe:timm:vit_tiny", "scratch:user/model")
    }
    assert all(text == label for text, label in found.items())
    monkeypatch.chdir(run.parent)
    assert architecture_label(f"probe:{run / 'autoencoder'}", run) == "probe:autoencoder"
    assert architecture_label("probe:run/teacher", Path("run")) == "probe:teacher"
    label = architecture_label(str(model), run)
    assert label == architecture_label("secret/model", run) and label.startswith("dinov2-") and len(label) == 15
    assert architecture_label(f"scratch:{model}", run) == f"scratch:{label}"
    (model / "model.safetensors").write_bytes(b"others")
    assert architecture_label(str(model), run) != label
    for text in (*found.values(), label, f"probe:{label}"):
        assert is_architecture_label(text)
    with pytest.raises(InputError, match="there is no folder a/b/c, and no model of the Hub is called so"):
        architecture_label("probe:a/b/c", run)


@pytest.mark.parametrize(
    "text", ["vgg", "/data/secret/model", "probe:/data/secret", "a/b/c", "probe:../x", "probe: x"]
)
def test_what_is_no_label(text):
    assert not is_architecture_label(text)


@pytest.mark.parametrize(
    ("label", "title"),
    [
        ("resnet18", "ResNet-18"),
        ("probe:autoencoder", "probe of the run's own autoencoder"),
        ("probe:teacher", "probe of the teacher's features"),
        ("probe:untrained", "probe of untrained"),
        ("probe:facebook/dinov2-small", "probe of facebook/dinov2-small"),
        ("scratch:user/model", "user/model, from scratch"),
        ("user/model", "user/model"),
    ],
)
def test_what_texts_call_them(label, title):
    assert architecture_title(label) == title


def test_cells_name_the_folder_to_load_and_the_label_to_keep(run, model):
    plan = parse_plan(["probe:autoencoder::few", f"{model}:9:few", "convnet:9:few"], ROWS)
    cells = list(planned_cells(plan, [0, 1], run))
    assert [cell.architecture for cell in cells[::2]] == [f"probe:{run / 'autoencoder'}", str(model), "convnet"]
    assert cells[4].file_name == "convnet-few-seed0.json"
    names = {cell.file_name for cell in cells}
    assert len(names) == 6 and not any("/" in name or "secret" in name for name in names)
    assert cells[0].work == 1 and cells[2].work == 9
    # What the report knows of a cell is its label.
    assert PlannedCell(cells[2].shown, 9, "few", 0).file_name == cells[2].file_name


def test_records_hold_the_texts_of_a_plan_without_paths(run, model):
    texts = ["convnet:9:few", f"probe:{run / 'autoencoder'}::few", f"{model}:9"]
    recorded = recorded_plan(texts, parse_plan(texts, ROWS), run)
    assert recorded[:2] == ("convnet:9:few", "probe:autoencoder::few")
    assert recorded[2].startswith("dinov2-") and recorded[2].endswith(":9")


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("probe:secret/model", "probe:./secret/model"),
        ("probe:teacher", "probe:run/./teacher"),
        ("secret/model:9", "./secret/model:8"),
    ],
)
def test_one_model_has_one_name_in_a_plan(run, model, monkeypatch, one, other):
    monkeypatch.chdir(run.parent)
    plan = parse_plan([one, other], ROWS)
    names = [planned.architecture for planned in plan]
    for read in (
        lambda: list(planned_cells(plan, [0], run)),
        lambda: recorded_plan([one, other], plan, run),
        lambda: TablePlan([one, other]).lines(run),
    ):
        with pytest.raises(InputError, match=f"^train names {names[0]} and {names[1]}, which are one model: name it"):
            read()


def test_probes_in_the_results_table(run, tmp_path):
    lines = TablePlan(["probe:autoencoder@class_balance=1"]).lines(run)
    assert {line.first.shown for line in lines} == {"probe:autoencoder"}
    assert {line.first.row.name for line in lines} == set(HEADLINE_ROWS)
    assert {line.first.config.class_balance for line in lines} == {1.0}
    assert {(line.rungs, line.seeds) for line in lines} == {((None,), (0, 1, 2))}
    assert "secret" not in lines[0].first.path(tmp_path).name
    with pytest.raises(InputError, match="rows says what to train on"):
        TablePlan(["probe:autoencoder::few"]).lines(run)
    with pytest.raises(InputError, match="loss=joint has no meaning"):
        TablePlan(["probe:autoencoder"], ["random@loss=joint"]).lines(run)
    odd = run.parent / "a@b"
    odd.mkdir()
    (line,) = TablePlan([f"{odd}/:9,11@margin=0.2"], ["real_all"]).lines(run)
    assert (line.first.config.architecture, line.first.config.margin, line.rungs) == (f"{odd}/", 0.2, (9, 11))
    # Colons of a path begin no rows.
    colons = run.parent / "a:1" / "b"
    colons.mkdir(parents=True)
    lines = TablePlan([f"{colons}:9", f"probe:{colons}"], ["real_all"]).lines(run)
    assert [line.first.config.architecture for line in lines] == [str(colons), f"probe:{colons}"]
