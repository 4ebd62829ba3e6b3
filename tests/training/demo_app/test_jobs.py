from __future__ import annotations

import threading
import time
from dataclasses import replace

import numpy as np
import pytest
from diffusers import DiffusionPipeline

from histodistill.training.data.image_dataset import read_image_dataset
from histodistill.training.data.sources import load_tiles
from histodistill.training.data.tiles import TileSource
from histodistill.training.demo_app import jobs
from histodistill.training.demo_app.run_data import DemoRun
from histodistill.training.running.errors import InputError
from histodistill.training.running.stages import read_record


@pytest.fixture(scope="module")
def real(tiny_npz) -> TileSource:
    return load_tiles(tiny_npz)


@pytest.fixture
def run(real) -> DemoRun:
    """Tiles stand in for distilled images: 40 with soft labels."""
    tiles = real.split("train").subset(np.arange(0, 120, 3))
    soft = np.full((40, 5), 0.05, np.float32)
    soft[np.arange(40), tiles.labels] = 0.8
    return DemoRun("tiny", real.class_names, tiles.images, tiles.labels, {"soft_label": soft})


def training_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "demo-app-training"]


@pytest.fixture
def no_signs_of_life(monkeypatch):
    """Only what was measured is told, however slow the machine is."""
    monkeypatch.setattr(jobs, "_SIGN_OF_LIFE", None)


@pytest.fixture(autouse=True)
def accelerate_as_in_a_process_of_its_own(fresh_accelerate):
    """Each training makes an Accelerator; a thread that has told its last may take a moment to end."""
    yield
    for thread in training_threads():
        thread.join(timeout=60)


def test_images_are_those_of_the_pool(tiny_pool, tiny_pipeline, run):
    images, columns, _ = read_image_dataset(tiny_pool)
    settings = read_record(tiny_pool)["settings"]
    names = ("num_inference_steps", "guidance_scale", "guidance_interval", "mixed_precision")
    run = replace(run, generation={name: settings[name] for name in names})
    pipeline = DiffusionPipeline.from_pretrained(tiny_pipeline, trust_remote_code=True)
    pipeline.set_progress_bar_config(disable=True)
    chosen = np.flatnonzero(columns["label"] == 2)[:2]
    made = jobs.generate_like_pool(pipeline, run, 2, columns["seed"][chosen].tolist())
    # In batches of another size, a rounding error may cross half a step.
    assert np.abs(made.astype(int) - images[chosen]).max() <= 1
    assert run.generation["mixed_precision"] == "no"  # left as it was


@pytest.mark.parametrize("recipe", list(jobs.RECIPES))
def test_training_is_watched_and_scored_on_real_tiles(run, real, recipe, no_signs_of_life):
    seen = list(jobs.train_live(run, real, recipe, 4))
    assert [progress.step for progress in seen] == [0, 1, 2, 3, 4, 4]
    assert [progress.finished for progress in seen] == [False] * 5 + [True]
    assert [len(progress.history) for progress in seen] == [0, 1, 2, 3, 4, 4]
    assert all(0 <= record["validation_accuracy"] <= 1 for record in seen[-1].history)
    last = seen[-1]
    assert 0 <= last.test["accuracy"] <= 1 and 1 <= last.best_step <= 4
    text = jobs.progress_text(last)
    assert text.startswith("Trained for 4 steps on 40 distilled images. On 20 real test tiles, the weights of step ")
    assert f"ACC {last.test['accuracy']:.3f}" in text
    assert jobs.progress_text(seen[2]).startswith("Step 2 of 4 on 40 distilled images. Loss ")
    assert "ACC on real validation tiles" in jobs.progress_text(seen[2])


def test_without_real_tiles_there_is_no_score_and_the_text_says_so(run):
    last = list(jobs.train_live(run, None, "labels", 2))[-1]
    assert last.finished and last.test is None
    text = jobs.progress_text(last)
    assert "There is no score, since this page was started without real tiles" in text
    assert "ACC" not in text
    assert "validation_accuracy" not in last.history[-1]


def test_training_ends_when_nobody_looks_on(run, monkeypatch):
    # It measures nothing for long: who looks on hears of it all the same, and can end it at any step.
    def endless(*args, progress, **options):
        for _ in range(60_000):
            progress.update()
            time.sleep(0.001)

    monkeypatch.setattr(jobs, "fit_classifier", endless)
    monkeypatch.setattr(jobs, "_SIGN_OF_LIFE", 0.02)
    progress = jobs.train_live(run, None, "labels", 60_000)
    assert next(progress).step == 0
    steps = [next(progress).step for _ in range(100)]
    assert steps == sorted(steps) and steps[0] < steps[-1]
    assert len(training_threads()) == 1
    thread = training_threads()[0]
    progress.close()
    thread.join(timeout=20)
    assert training_threads() == []


def test_recipes_are_those_that_the_set_is_good_for(run):
    assert jobs.available_recipes(run) == list(jobs.RECIPES)
    assert next(iter(jobs.RECIPES)) == "soft"
    bare = replace(run, columns={})
    assert jobs.available_recipes(bare) == ["labels", "joint"]
    with pytest.raises(InputError, match="recipe='soft' is not possible here: it must be one of labels, joint"):
        next(jobs.train_live(bare, None, "soft", 2))


def test_errors_of_the_training_reach_who_looks_on(run, monkeypatch):
    def fail(*args, **kwargs):
        raise InputError("the loss is nan at step 1: lower --learning-rate")

    monkeypatch.setattr(jobs, "fit_classifier", fail)
    with pytest.raises(InputError, match="the loss is nan"):
        list(jobs.train_live(run, None, "labels", 2))
    with pytest.raises(InputError, match="max_train_steps=0 is out of range"):
        next(jobs.train_live(run, None, "labels", 0))
