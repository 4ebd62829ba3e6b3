from __future__ import annotations

import shutil
from importlib import metadata

import pytest

from histodistill.training.running import stages
from histodistill.training.running.errors import InputError
from histodistill.training.running.files import read_json, write_json
from histodistill.training.running.stages import (
    Stage,
    content_of,
    fingerprint,
    is_complete,
    read_record,
    require_complete,
    require_parts,
)


SETTINGS = {"stage": "test", "channels": [8, 8], "seed": 0}


def test_fingerprint():
    assert fingerprint({"a": 1, "b": [2]}) == fingerprint({"b": [2], "a": 1})
    assert len(fingerprint({})) == 64
    assert fingerprint({"a": 1}) != fingerprint({"a": 2})


def test_a_stage_from_beginning_to_end(tmp_path):
    assert read_record(tmp_path) is None
    stage = Stage(tmp_path, SETTINGS)
    assert not stage.complete
    assert list(tmp_path.iterdir()) == []  # looking writes nothing
    stage.begin()
    assert not is_complete(tmp_path)
    assert not Stage(tmp_path, SETTINGS).complete
    record = stage.finish(score=0.5)
    assert record == read_record(tmp_path) == read_json(tmp_path / "stage.json")
    assert (record["complete"], record["score"], record["settings"]) == (True, 0.5, SETTINGS)
    assert record["fingerprint"] == fingerprint(SETTINGS)
    assert record["versions"]["torch"] == metadata.version("torch")
    assert Stage(tmp_path, SETTINGS).complete
    assert is_complete(tmp_path)
    assert is_complete(tmp_path, SETTINGS)
    assert not is_complete(tmp_path, {**SETTINGS, "seed": 1})


def test_tuples_are_lists(tmp_path):
    Stage(tmp_path, {"channels": (8, 8)}).finish()
    assert Stage(tmp_path, {"channels": [8, 8]}).complete
    assert is_complete(tmp_path, {"channels": (8, 8)})


@pytest.mark.parametrize("finished", [False, True])
def test_other_settings_are_refused(tmp_path, finished):
    stage = Stage(tmp_path, SETTINGS)
    stage.begin()
    if finished:
        stage.finish()
    before = (tmp_path / "stage.json").read_bytes()
    with pytest.raises(
        InputError, match=r"was made with other settings \(seed was 0 and is now 7\): give another output folder"
    ):
        Stage(tmp_path, {**SETTINGS, "seed": 7})
    assert (tmp_path / "stage.json").read_bytes() == before


def test_long_values_are_shortened(tmp_path):
    Stage(tmp_path, {"data": "a" * 64}).begin()
    with pytest.raises(InputError, match=r'data was "a{36}\.\.\. and is now "b{36}\.\.\.\)') as error:
        Stage(tmp_path, {"data": "b" * 64})
    assert len(str(error.value).removeprefix(str(tmp_path))) < 200


def test_options_that_come_or_go_are_named(tmp_path):
    Stage(tmp_path, {"a": 1}).begin()
    with pytest.raises(InputError, match=r"b was null and is now 2"):
        Stage(tmp_path, {"a": 1, "b": 2})


def test_time_of_all_attempts_is_added(tmp_path, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(stages.time, "perf_counter", lambda: now[0])
    stage = Stage(tmp_path, SETTINGS)
    stage.begin()
    now[0] += 5
    stage.save_progress()
    now[0] += 50  # lost: the process was killed
    stage = Stage(tmp_path, SETTINGS)
    stage.begin()
    now[0] += 3
    assert stage.finish()["seconds"] == 8.0


@pytest.mark.parametrize("text", ['{"complete": tr', "[]", '{"complete": true}', "\xff"])
def test_a_damaged_record_counts_as_none(tmp_path, text):
    (tmp_path / "stage.json").write_bytes(text.encode("latin-1"))
    assert read_record(tmp_path) is None
    assert not Stage(tmp_path, SETTINGS).complete


def test_require_complete(tmp_path):
    with pytest.raises(InputError, match=r"holds no finished pool: run generate first$"):
        require_complete(tmp_path / "none", "pool", "run generate first")
    settings = {**SETTINGS, "stage": "pool"}
    stage = Stage(tmp_path, settings)
    stage.begin()
    with pytest.raises(InputError, match="holds no finished pool"):
        require_complete(tmp_path, "pool", "run generate first")
    stage.finish()
    assert require_complete(tmp_path, "pool", "run generate first")["settings"] == settings
    with pytest.raises(InputError, match="holds no finished pipeline: run train_diffusion first"):
        require_complete(tmp_path, "pipeline", "run train_diffusion first")


def test_parts_of_a_run(tmp_path):
    for name, stage in {"pool": "pool", "teacher": "classifier"}.items():
        begun = Stage(tmp_path / name, {**SETTINGS, "stage": stage})
        begun.begin()
        begun.finish()
    records = require_parts(tmp_path, "pool", "teacher")
    assert {name: record["settings"]["stage"] for name, record in records.items()} == {
        "pool": "pool",
        "teacher": "classifier",
    }
    with pytest.raises(InputError) as refused:
        require_parts(tmp_path, "pool", "distilled")
    assert (
        str(refused.value)
        == f"{tmp_path / 'distilled'} holds no finished distilled set: run histodistill select first"
    )


def test_a_folder_with_other_things_is_refused(tmp_path):
    (tmp_path / ".hidden").write_text("")
    stage = Stage(tmp_path, SETTINGS)
    stage.require_own_folder()
    (tmp_path / "data").mkdir()
    with pytest.raises(InputError, match=r"is not empty and holds no stage of a run \(data\): give a new folder"):
        stage.require_own_folder()
    # What a stage left there before is no other thing.
    stage.begin()
    stage.require_own_folder()


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"file cannot be written \(.+\): give another folder"):
        Stage(tmp_path / "file", SETTINGS).begin()


def test_a_library_under_another_name_is_left_out(tmp_path, monkeypatch):
    monkeypatch.setattr(stages, "PACKAGES", ("torch", "no-such-library"))
    assert Stage(tmp_path, SETTINGS).finish()["versions"] == {"torch": metadata.version("torch")}


def make_input(folder, content=b"weights"):
    (folder / "unet").mkdir(parents=True, exist_ok=True)
    (folder / "unet" / "model.safetensors").write_bytes(content)
    (folder / "config.json").write_text("{}")
    return folder


@pytest.mark.parametrize("finished", [False, True])
def test_inputs_are_told_by_content(tmp_path, finished):
    """Settings name how an input was made; files may have been put in the place of others since."""
    model = make_input(tmp_path / "model")
    stage = Stage(tmp_path / "pool", SETTINGS, inputs={"pipeline": model})
    stage.begin()
    if finished:
        stage.finish()
    # What is no part of it may come and go.
    (model / "README.md").write_text("a card")
    make_input(model / "checkpoints")
    Stage(tmp_path / "pool", SETTINGS, inputs={"pipeline": model})
    changes = [
        lambda: make_input(model, b"weighty"),
        lambda: (model / "unet" / "model.safetensors").rename(model / "model.safetensors"),
        lambda: (model / "config.json").write_text('{"scaling_factor": 2}'),
        lambda: (model / "more.parquet").write_bytes(b""),
    ]
    for change in changes:
        change()
        with pytest.raises(
            InputError, match=r"pool was made of other files of the pipeline than those of today: give"
        ):
            Stage(tmp_path / "pool", SETTINGS, inputs={"pipeline": model})
        shutil.rmtree(model)
        make_input(model)
    assert Stage(tmp_path / "pool", SETTINGS, inputs={"pipeline": model}).complete == finished


def test_stage_of_before_inputs_were_recorded_stays_valid(tmp_path):
    Stage(tmp_path / "pool", SETTINGS).finish()
    stage = Stage(tmp_path / "pool", SETTINGS, inputs={"pipeline": make_input(tmp_path / "model")})
    assert stage.complete
    assert stage.finish()["inputs"] == {"pipeline": content_of(tmp_path / "model")}


def test_inputs_do_not_change_the_fingerprint(tmp_path):
    one = Stage(tmp_path / "one", SETTINGS).finish()["fingerprint"]
    assert one == Stage(tmp_path / "two", SETTINGS, inputs={"model": tmp_path}).finish()["fingerprint"]


def test_a_stage_records_the_most_memory_over_all_its_attempts(tmp_path):
    stage = Stage(tmp_path, {"stage": "pool"})
    stage.begin()
    record = read_json(tmp_path / "stage.json")
    assert record["peak_memory"] > 2**20
    write_json(tmp_path / "stage.json", {**record, "peak_memory": 2**50})  # an attempt that held more
    assert Stage(tmp_path, {"stage": "pool"}).finish()["peak_memory"] == 2**50
    for damaged in ("much", None, [1]):
        write_json(tmp_path / "stage.json", {**record, "peak_memory": damaged})
        assert Stage(tmp_path, {"stage": "pool"}).finish()["peak_memory"] < 2**50
