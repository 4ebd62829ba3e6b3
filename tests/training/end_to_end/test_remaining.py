"""How long a distillation will still take."""

from __future__ import annotations

import pytest

from histodistill.training.end_to_end.remaining import seconds_left
from histodistill.training.end_to_end.rough_cost import costs
from histodistill.training.end_to_end.steps import Common, stage_calls
from histodistill.training.running.files import write_json
from histodistill.training.running.presets import load_preset


# Seconds of each step of the demo on one core of a server.
DEMO = {
    "autoencoder": 54, "pipeline": 473, "teacher": 48, "pool": 97, "distilled": 32, "comparison": 514, "audit": 91,
}  # fmt: skip


@pytest.fixture
def demo(tmp_path):
    """The steps of a run with the options that `DEMO` was measured with, and what its run.json holds."""
    preset = load_preset("cpu-demo")
    for step, options in {
        "autoencoder": {"max_train_steps": 400, "batch_size": 32, "channels": [16, 32]},
        "diffusion": {"max_train_steps": 1200, "batch_size": 32, "channels": [32, 96]},
        "teacher": {"max_train_steps": 300, "width": 64, "architecture": "convnet"},
        "generate": {"per_class": 200, "num_inference_steps": 16},
        "compare": {
            "train": ["convnet:250:real_all,real_random,distilled_ce,distilled_joint,distilled_soft"],
            "batch_size": 128,
        },
    }.items():
        preset = preset.with_options(step, options)
    run = {
        "image_size": 28,
        "class_names": list("abcde"),
        "num_tiles": {"train": 1350, "held_out": 150, "validation": 300, "test": 500},
        "settings": preset.settings(),
    }
    return stage_calls(Common("phantom", tmp_path, 0.1, 0, "no"), run), run


def finish(folder, steps, speed=1.0, complete=True):
    for step in steps:
        record = {"complete": complete, "settings": {}, "fingerprint": "", "seconds": speed * DEMO[step]}
        write_json(folder / step / "stage.json", record)


def test_costs_are_those_of_the_demo(demo):
    plan, run = demo
    assert costs(plan, run) == {step: pytest.approx(seconds, rel=0.15) for step, seconds in DEMO.items()}


@pytest.mark.parametrize("speed", [0.02, 1, 6])
def test_what_is_left_goes_by_what_was_taken(speed, demo, tmp_path):
    plan, run = demo
    steps = list(DEMO)
    assert seconds_left(tmp_path, plan, run, []) is None
    for done in range(1, 7):
        finish(tmp_path, steps[:done], speed)
        left = speed * sum(DEMO[step] for step in steps[done:])
        assert seconds_left(tmp_path, plan, run, steps[:done]) == pytest.approx(left, rel=0.15)
    finish(tmp_path, steps, speed)
    assert seconds_left(tmp_path, plan, run, steps) == 0


def test_a_killed_step_has_a_part_of_its_work_behind_it(demo, tmp_path):
    plan, run = demo
    finish(tmp_path, ["autoencoder"])
    whole = seconds_left(tmp_path, plan, run, ["autoencoder"])
    finish(tmp_path, ["pipeline"], speed=0.5, complete=False)
    assert seconds_left(tmp_path, plan, run, ["autoencoder"]) == pytest.approx(whole - DEMO["pipeline"] / 2)
    # What took longer than was reckoned has nothing left, but takes nothing off the others.
    finish(tmp_path, ["pipeline"], speed=9, complete=False)
    assert seconds_left(tmp_path, plan, run, ["autoencoder"]) == pytest.approx(whole - DEMO["pipeline"], rel=0.1)


def test_processes_share_work(demo, tmp_path):
    plan, run = demo
    shared = stage_calls(Common("phantom", tmp_path, 0.1, 0, "no", 2), run)
    alone, together = costs(plan, run), costs(shared, run)
    assert together["pipeline"] == pytest.approx(alone["pipeline"] / 2, rel=0.05)
    assert together["audit"] == alone["audit"]
