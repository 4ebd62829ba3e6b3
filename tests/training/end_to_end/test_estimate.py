"""What a distillation is expected to need: how much work it is, what is measured of it, and what the user is told."""

from __future__ import annotations

import dataclasses
import shutil
import subprocess
import sys
import time
from collections import namedtuple

import pytest
import torch

from histodistill.training.end_to_end import estimate as estimate_module
from histodistill.training.end_to_end import measuring, work
from histodistill.training.end_to_end.estimate import Estimate, anew, check_room
from histodistill.training.end_to_end.measuring import Measured
from histodistill.training.end_to_end.rough_cost import costs, usual_seconds
from histodistill.training.end_to_end.steps import Common, stage_calls
from histodistill.training.running import timing
from histodistill.training.running.errors import InputError
from histodistill.training.running.files import read_json, write_json
from histodistill.training.running.presets import load_preset


SIZES = {"train": 45, "held_out": 5, "validation": 20, "test": 30}


def plan_of(preset, folder, data="phantom", image_size=28, num_processes=1):
    run = {
        "image_size": image_size,
        "class_names": list("abcde"),
        "num_tiles": SIZES,
        "settings": preset.for_image_size(image_size).settings(),
    }
    return stage_calls(Common(data, folder, 0.1, 0, "no", num_processes), run), run


@pytest.fixture
def tiny(tiny_preset, tiny_tiles, tmp_path):
    """The steps of a tiny run, and what its run.json holds."""
    return plan_of(load_preset(tiny_preset), tmp_path, tiny_tiles, 16)


def test_work_is_counted_from_the_options(tiny):
    by_step = work.work_of(*tiny)
    assert by_step["autoencoder"] == {
        work.START: 1, work.TRAIN_AUTOENCODER: 150 * 8, work.ENCODE: 3 * 20 + 45, work.DECODE: 3 * 20
    }  # fmt: skip
    assert by_step["pipeline"][work.TRAIN_DENOISER] == 10 * 8
    # No more than the steps show, though there are 8 views of each of 45 tiles.
    assert by_step["pipeline"][work.ENCODE] == 80 + 20
    # It is also asked about validation tiles and their reconstructions.
    assert by_step["teacher"] == {
        work.START: 1, "train convnet 8": 10 * 20, "predict convnet 8": 20 + 30 + 40, work.ENCODE: 20, work.DECODE: 20
    }  # fmt: skip
    assert by_step["pool"][work.GENERATE] == 8 * 5
    # Three rows for two steps each, of 45 real or 15 other tiles; validated after each.
    assert by_step["comparison"]["train convnet 128"] == 2 * (45 + 15 + 15)
    assert by_step["comparison"]["predict convnet 128"] == 3 * (2 * 20 + 30)
    # Pool and validation tiles in eight symmetries, and all that an audit knows once.
    # The pool is embedded once more, to select from it.
    assert by_step["distilled"][work.EMBED_UNTRAINED] == 8 * (40 + 20) + 70 + 40
    assert by_step["audit"][work.DENOISE] == 8 * (45 + 5)


def test_crops_are_less_work_than_tiles(tmp_path):
    plan, run = plan_of(load_preset("cpu"), tmp_path, image_size=224)
    shown = work.work_of(plan, run)["autoencoder"][work.TRAIN_AUTOENCODER]
    assert shown * 128**2 == pytest.approx(2 * 2000 * 32 * 28**2, rel=0.01)


def kept(plan, run):
    return work.kept_bytes({stage.folder: stage.config for stage in plan}, run)


def test_latents_are_kept_where_more_views_are_shown_than_there_are(tiny, tmp_path):
    assert kept(*tiny) == (0, 2 * 45 * 8 * 8 * 8)
    plan, run = plan_of(load_preset("cpu"), tmp_path)
    # And of each tile, the teacher's features that the denoiser is aligned with.
    assert kept(plan, run) == (2 * 8 * 45 * 8 * 14 * 14, 2 * 45 * 128 * 7 * 7)
    alone, run = plan_of(load_preset("cpu").with_options("diffusion", {"align_weight": 0}), tmp_path)
    assert kept(alone, run) == (2 * 8 * 45 * 8 * 14 * 14, 0)


def test_what_was_not_measured_is_as_much_slower_as_the_rest(tiny):
    usual = usual_seconds(*tiny)
    thrice = {kind: 3 * usual[kind] for kind in (work.TRAIN_DENOISER, work.ENCODE, work.GENERATE)}
    start = usual[work.START]
    for step, seconds in costs(*tiny, thrice).items():
        assert seconds - start == pytest.approx(3 * (costs(*tiny)[step] - start))


def test_processes_of_a_cpu_share_its_cores(tiny_preset, tiny_tiles, tmp_path):
    alone, shared = (plan_of(load_preset(tiny_preset), tmp_path, tiny_tiles, 16, number) for number in (1, 2))
    assert costs(*shared, shared=False) == costs(*alone)
    assert costs(*shared)["autoencoder"] < costs(*alone)["autoencoder"]


def test_all_work_is_measured_and_nothing_else_is_touched(tiny, monkeypatch):
    monkeypatch.setattr(timing, "_ENOUGH", 0.0)
    plan, run = tiny
    torch.manual_seed(3)
    before = torch.get_rng_state()
    # An encoder that no step trains is measured, too.
    configs = {stage.folder: stage.config for stage in plan}
    configs["audit"] = dataclasses.replace(configs["audit"], embedders=("untrained", "mean_colour"))
    found = measuring.measure(configs, start=2.0)
    assert found.unit_seconds.pop(f"{work.EMBED_OTHER}mean_colour") > 0 and found.latent_shape == (2, 8, 8)
    assert torch.equal(torch.get_rng_state(), before)
    assert not list(plan[0].config.output.parent.iterdir())
    unknown = usual_seconds(plan, run).keys() - found.unit_seconds.keys()
    assert unknown == {work.SELECT, work.ATTACK}
    assert all(seconds > 0 for seconds in found.unit_seconds.values()) and found.unit_seconds[work.START] > 2
    assert found.memory > 10**7 and (found.device_memory is None) != torch.cuda.is_available()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Linux alone forgets a peak")
def test_memory_is_that_of_whole_batches():
    # In a process of its own: others' freed memory would be used here.
    program = (
        "import numpy as np\n"
        "from histodistill.training.end_to_end.measuring import _Memory\n"
        "from histodistill.training.running.memory import held_memory\n"
        "np.ones(2**26)\n"  # 512 MiB that are gone, and nobody asks for again
        "before = held_memory()\n"
        "memory = _Memory()\n"
        "with memory.of():\n"
        "    np.ones(2**23)\n"
        "once = memory.most - before\n"
        "with memory.of(3, weights=2**21):\n"
        "    np.ones(2**23)\n"
        "print(once, memory.most - before)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    once, larger = map(int, done.stdout.split())
    assert once == pytest.approx(2**26, rel=0.2)
    # Three times as much, but for gradients and moments of 2 MiB of weights.
    assert larger == pytest.approx(3 * 2**26 - 2 * 3 * 2**21, rel=0.2)


def test_the_start_is_timed_whatever_the_clock_says(tmp_path, monkeypatch):
    asked, answer = tmp_path / "request.json", tmp_path / "answer.json"
    write_json(asked, {"steps": {}, "asked": time.monotonic() - 20})
    monkeypatch.setattr(measuring, "measure", lambda _, start: Measured({"start": start}, 0))
    monkeypatch.setattr(time, "time", lambda: 0.0)
    measuring._main(asked, answer)
    assert 20 <= read_json(answer)["unit_seconds"]["start"] < 80


def test_what_cannot_be_measured_is_told(tiny, monkeypatch):
    plan, _ = tiny
    broken = [dataclasses.replace(plan[0], config=dataclasses.replace(plan[0].config, data="/nowhere.npz")), *plan[1:]]
    said = measuring.measure_apart(broken)
    assert isinstance(said, str) and "/nowhere.npz" in said


HOURS = {
    "autoencoder": 900, "pipeline": 4800, "teacher": 400, "pool": 30, "distilled": 20, "comparison": 900, "audit": 20
}  # fmt: skip
TITLES = {"autoencoder": "autoencoder", "pipeline": "denoiser", "teacher": "teacher", "comparison": "comparison"}


def made(**changes) -> Estimate:
    return dataclasses.replace(Estimate(HOURS, 3 * 10**9, 10**8, 1_200_000_000, None, {}), **changes)


def test_what_the_user_is_told():
    assert list(made().lines(TITLES)) == [
        "expected: about 2 h in all (autoencoder 15 min, denoiser 1 h 20 min, teacher 7 min, comparison 15 min), "
        "3.1 GB of disk, 1.2 GB of memory"
    ]
    (line,) = made(device_memory=2 * 10**9).lines(TITLES)
    assert line.endswith("1.2 GB of memory and 2.0 GB of the GPU's")
    _, offer = made(seconds={**HOURS, "pipeline": 40_000}).lines(TITLES)
    assert offer.startswith("to make it shorter: ") and "2h does less of everything" in offer


def test_an_estimate_is_made_anew_for_other_options(tiny, tiny_preset, tiny_tiles, tmp_path):
    stored = Estimate.of(*tiny, Measured({work.GENERATE: 2.0}, 10**9)).to_json()
    assert anew(stored, *tiny) == stored
    larger, run = plan_of(
        load_preset(tiny_preset).with_options("generate", {"per_class": 80}), tmp_path, tiny_tiles, 16
    )
    again = anew(stored, larger, run)
    assert again["seconds"]["pool"] - stored["seconds"]["pool"] == pytest.approx(2.0 * 5 * (80 - 8), abs=0.2)
    assert again["disk"] > stored["disk"]
    assert {name for name in stored if again[name] != stored[name]} <= {"seconds", "disk"}


def test_an_estimate_counts_what_is_held_for_each_image(tiny):
    found = Measured(usual_seconds(*tiny), 10**9)
    estimate = Estimate.of(*tiny, found)
    assert estimate.memory == 10**9 + 8000 * (100 + 40)
    assert estimate.total == pytest.approx(sum(costs(*tiny).values()), abs=0.5)
    assert Estimate(**estimate.to_json()) == estimate


def test_a_full_disk_is_refused_and_short_memory_told(tmp_path, monkeypatch):
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(2 * 10**9))
    with pytest.raises(InputError) as raised:
        check_room(made(latents=0), tmp_path / "new" / "run", tmp_path / "cache")
    assert "2.0 GB free, and the run needs about 3.0 GB: give a folder" in raised.value.for_command_line()
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(4 * 10**9))
    assert check_room(made(memory=1), tmp_path, tmp_path) is None
    assert "end other programs" in str(check_room(made(memory=10**15), tmp_path, tmp_path))


def test_latents_need_room_on_the_disk_of_the_run(tmp_path, monkeypatch):
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(4 * 10**9))
    large = made(latents=2 * 10**9, memory=1)
    with pytest.raises(InputError, match=r"about 5\.0 GB, 2\.0 GB of it for latents in .*latent_cache=off"):
        check_room(large, tmp_path, tmp_path / "cache")
    monkeypatch.setattr(estimate_module, "_are_on_one_disk", lambda *_: False)
    assert check_room(large, tmp_path, tmp_path / "cache") is None


def test_what_the_cache_may_not_hold_is_made_in_each_step(tiny, monkeypatch):
    plan, run = tiny
    denoiser = next(stage for stage in plan if stage.folder == "pipeline")
    aligned = dataclasses.replace(denoiser.config, max_train_steps=1000)
    plan = [stage if stage is not denoiser else dataclasses.replace(stage, config=aligned) for stage in plan]
    configs = {stage.folder: stage.config for stage in plan}
    latents, features = work.wanted_bytes(configs, run)
    tiles, shown = 16 * 16 * 3 * sum(run["num_tiles"].values()), work.tiles_shown(aligned)
    train = run["num_tiles"]["train"]
    assert latents > 0 and features > 0 and shown > 8 * train
    recipe = configs["teacher"].recipe
    for limit, kept, encoded, asked in (
        (tiles + latents + features, (latents, features), 8 * train, train),
        (tiles + latents + features - 1, (0, features), shown, train),
        (tiles + features - 1, (0, 0) if latents > features else (latents, 0), shown, shown),
    ):
        monkeypatch.setenv("HISTODISTILL_CACHE_LIMIT", str(limit))
        assert work.kept_bytes(configs, run) == kept
        units = work.work_of(plan, run)["pipeline"]
        looked_at = min(run["num_tiles"]["validation"], aligned.validation_tiles)
        assert units[work.ENCODE] == encoded + looked_at
        assert units[work.predict_of(recipe.architecture, recipe.width)] == asked
    monkeypatch.setenv("HISTODISTILL_CACHE_LIMIT", str(tiles))
    estimate = Estimate.of(plan, run, Measured({}, 0))
    assert (estimate.latents, estimate.not_kept) == (0, latents + features)
    assert any("HISTODISTILL_CACHE_LIMIT" in line for line in estimate.lines(TITLES))


def test_latents_are_those_of_the_autoencoder_that_was_measured(tmp_path):
    plan, run = plan_of(load_preset("cpu"), tmp_path)
    own, other = Estimate.of(plan, run, Measured({}, 0)), Estimate.of(plan, run, Measured({}, 0, None, (4, 7, 7)))
    features = 2 * 45 * 128
    assert own.latents == 2 * 8 * 45 * 8 * 14 * 14 + features * 7 * 7
    assert other.latents == 2 * 8 * 45 * 4 * 7 * 7 + features * 3 * 3
    assert anew(other.to_json(), plan, run)["latents"] == other.latents


def test_each_encoder_has_a_cost_of_its_own(tiny, tmp_path):
    plan, run = tiny
    selection = next(stage for stage in plan if stage.folder == "distilled")
    for embedder, kind in (
        ("teacher", None), ("untrained", work.EMBED_UNTRAINED), ("mean_colour", "embed by mean_colour"),
        ("facebook/dinov2-base", "embed by dinov2-base"),
    ):  # fmt: skip
        other = dataclasses.replace(selection.config, embedder=embedder, drop_copies=False)
        changed = [stage if stage is not selection else dataclasses.replace(stage, config=other) for stage in plan]
        units = work.work_of(changed, run)["distilled"]
        assert units == {work.START: 1, work.SELECT: 40, **units} and sum(units.values()) == 1 + 40 + 2 * 40
        assert kind is None or units[kind] == 40
        assert units.keys() <= usual_seconds(changed, run).keys()


def test_a_row_that_cannot_be_trained_is_left_out(tiny):
    plan, run = tiny
    compare = next(stage for stage in plan if stage.folder == "comparison")
    other = dataclasses.replace(compare.config, train=("probe:untrained", "convnet:10"))
    changed = [stage if stage is not compare else dataclasses.replace(stage, config=other) for stage in plan]
    assert work.work_of(changed, run)["comparison"][work.predict_of("probe:untrained", None)] > 0
    assert costs(changed, run)["comparison"] > 0


# In a run.


def test_a_run_is_estimated_once(tiny_run):
    first = (tiny_run.folder.parent / "first.log").read_text()
    assert first.count("a few steps are timed") == 1 and "expected: " in first
    assert "timed" not in tiny_run.progress and "expected" not in tiny_run.progress
    kept = read_json(tiny_run.folder / "run.json")["estimate"]
    assert list(kept["seconds"]) == ["autoencoder", "teacher", "pipeline", "pool", "distilled", "comparison", "audit"]
    assert all(0 < seconds < 600 for seconds in kept["seconds"].values())
