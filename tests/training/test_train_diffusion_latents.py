"""The latents that a denoiser is trained on: encoded once, and never in a step."""

from __future__ import annotations

import pytest
import torch
from diffusers import AutoencoderDC
from safetensors.torch import load_file
from sentences import without_notes

from histodistill.training import train_diffusion as script
from histodistill.training.data.tile_cache import TileCache
from histodistill.training.running.files import read_json


# 15 steps of 64 show as many views as the 120 training tiles have, so that they are encoded beforehand.
STEPS = ["--batch-size", "64", "--max-train-steps", "15", "--validation-steps", "5", "--validation-tiles", "16"]
WEIGHTS = "unet/diffusion_pytorch_model.safetensors"


@pytest.fixture
def encoded(monkeypatch) -> list[int]:
    """Images in each batch that the autoencoder has encoded."""
    sizes = []
    encode = AutoencoderDC.encode
    monkeypatch.setattr(AutoencoderDC, "encode", lambda self, x: sizes.append(len(x)) or encode(self, x))
    return sizes


@pytest.fixture
def argv(tmp_path, diffusion_argv) -> list[str]:
    return [*diffusion_argv, *STEPS, "--cache-dir", str(tmp_path / "cache")]


def test_each_view_of_a_tile_is_encoded_once(tmp_path, run_main, argv, encoded, capsys):
    run_main(script, *argv, "--output", tmp_path / "first", "--checkpointing-steps", 5)
    assert encoded == [120] * 8 + [16]  # training tiles in each symmetry, and validation tiles
    record = read_json(tmp_path / "first" / "stage.json")
    assert record["latents"]["kept_as"] == "float16"
    assert 0 < record["latents"]["rms_error"] < 1e-3 and record["latents"]["largest_error"] < 5e-3
    assert "latent_cache" not in record["settings"]  # what earlier versions finished stays finished
    line = next(line for line in capsys.readouterr().err.splitlines() if "kept as" in line)
    assert line.startswith("diffusion: latents of 960 views are kept as float16, 245.8 kB: rounding errs by ")
    # Nor is anything encoded again by another training with this autoencoder, or one that goes on.
    encoded.clear()
    run_main(script, *argv, "--output", tmp_path / "second", "--seed", 1)
    assert encoded == [16]
    encoded.clear()
    resume = ["--resume", tmp_path / "first" / "checkpoints" / "checkpoint-10"]
    run_main(script, *argv, "--output", tmp_path / "third", *resume)
    assert encoded == [16]
    first, third = (load_file(tmp_path / name / WEIGHTS) for name in ("first", "third"))
    assert all(torch.equal(first[name], third[name]) for name in first)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float16", 1e-3), ("bfloat16", 1e-2)])
def test_it_learns_the_same_as_without_up_to_rounding(tmp_path, run_main, argv, encoded, dtype, tolerance):
    argv = [*argv, "--batch-size", "8", "--no-symmetries"]
    run_main(script, *argv, "--output", tmp_path / "kept", "--latent-cache", dtype)
    assert encoded == [120, 8, 8]
    encoded.clear()
    run_main(script, *argv, "--output", tmp_path / "anew", "--latent-cache", "off")
    assert encoded == [8] * (15 + 2)
    kept, anew = (read_json(tmp_path / name / "history.json") for name in ("kept", "anew"))
    for one, other in zip(kept, anew, strict=True):
        assert one != other
        assert one == pytest.approx(other, rel=tolerance)
    records = [read_json(tmp_path / name / "stage.json") for name in ("kept", "anew")]
    assert [record["latents"]["kept_as"] for record in records] == [dtype, "off"]
    assert [record["settings"].get("latent_cache", "float16") for record in records] == [dtype, "off"]


def test_few_steps_encode_what_they_show(tmp_path, run_main, argv, encoded, capsys):
    run_main(script, *argv, "--output", tmp_path / "run", "--max-train-steps", 2)
    assert encoded == [64, 64, 16]
    told = (
        "diffusion: tiles are encoded as they are shown, since these steps show 128 views of them, and there are 960"
    )
    assert told in capsys.readouterr().err.splitlines()
    assert read_json(tmp_path / "run" / "stage.json")["latents"] == {"kept_as": "off"}


def test_where_there_is_no_room_tiles_are_encoded_anew(tmp_path, run_main, argv, encoded, capsys, monkeypatch):
    from histodistill.training.data.sources import load_tiles

    data = argv[argv.index("--data") + 1]
    load_tiles(data, cache_dir=tmp_path / "cache")  # for which there was room
    monkeypatch.setenv("HISTODISTILL_CACHE_LIMIT", "200 kB")
    run_main(script, *argv, "--output", tmp_path / "run")
    assert encoded[:3] == [64] * 3 and len(encoded) == 16
    told = [line for line in capsys.readouterr().err.splitlines() if "anew" in line]
    assert len(told) == 1 and without_notes(told[0]).startswith(
        "diffusion: tiles are encoded anew in each step: latents of these tiles take 245.8 kB"
    )
    assert told[0].endswith("set HISTODISTILL_CACHE_LIMIT to more")
    assert read_json(tmp_path / "run" / "stage.json")["latents"] == {"kept_as": "off"}
    assert {entry.what for entry in TileCache(tmp_path / "cache").entries()} <= {"tiles"}


def test_latents_that_another_training_left_change_nothing(tmp_path, run_main, argv, encoded):
    few = ["--max-train-steps", 2, "--validation-steps", 2]
    run_main(script, *argv, "--output", tmp_path / "before", *few)
    run_main(script, *argv, "--output", tmp_path / "other")  # keeps them
    encoded.clear()
    run_main(script, *argv, "--output", tmp_path / "after", *few)
    assert encoded == [64, 64, 16]
    before, after = (load_file(tmp_path / name / WEIGHTS) for name in ("before", "after"))
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_training_goes_on_without_latents_that_it_had_not(tmp_path, run_main, argv, encoded, monkeypatch, capsys):
    whole = [*argv, "--checkpointing-steps", "5"]
    monkeypatch.setenv("HISTODISTILL_CACHE_LIMIT", "200 kB")
    run_main(script, *whole, "--output", tmp_path / "whole")
    monkeypatch.delenv("HISTODISTILL_CACHE_LIMIT")  # now there is room
    encoded.clear()
    resume = ["--resume", tmp_path / "whole" / "checkpoints" / "checkpoint-10"]
    run_main(script, *whole, "--output", tmp_path / "resumed", *resume)
    assert encoded == [64] * 5 + [16]
    first, second = (load_file(tmp_path / name / WEIGHTS) for name in ("whole", "resumed"))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert read_json(tmp_path / "resumed" / "stage.json")["latents"] == {"kept_as": "off"}


def test_a_training_that_goes_on_without_its_latents_says_so(tmp_path, run_main, argv, monkeypatch, capsys):
    run_main(script, *argv, "--output", tmp_path / "first", "--checkpointing-steps", 5)
    monkeypatch.setenv("HISTODISTILL_CACHE_LIMIT", "200 kB")
    resume = ["--resume", tmp_path / "first" / "checkpoints" / "checkpoint-10"]
    capsys.readouterr()
    run_main(script, *argv, "--output", tmp_path / "second", *resume, "--cache-dir", tmp_path / "other")
    assert (
        "diffusion: tiles are encoded anew in each step, no longer rounded as they were: " in capsys.readouterr().err
    )
    # One that has no step left is told of as it was.
    monkeypatch.delenv("HISTODISTILL_CACHE_LIMIT")
    (tmp_path / "first" / "stage.json").unlink()
    run_main(script, *argv, "--output", tmp_path / "first", "--resume", "latest")
    assert read_json(tmp_path / "first" / "stage.json")["latents"]["kept_as"] == "float16"


def test_memory_for_time_changes_no_number(tmp_path, run_main, argv):
    argv = [*argv, "--max-train-steps", "2", "--batch-size", "8"]
    run_main(script, *argv, "--output", tmp_path / "plain")
    run_main(script, *argv, "--output", tmp_path / "again", "--gradient-checkpointing")
    assert read_json(tmp_path / "again" / "history.json") == read_json(tmp_path / "plain" / "history.json")
    plain, again = (load_file(tmp_path / name / WEIGHTS) for name in ("plain", "again"))
    assert all(torch.equal(plain[name], again[name]) for name in plain)


def test_a_compiled_model_has_the_same_names(tmp_path, run_main, argv, monkeypatch):
    compiled = []

    def with_no_compiler(module):
        compiled.append(type(module).__name__)
        return compile_module(module, backend="eager")

    argv = [*argv, "--max-train-steps", "2", "--batch-size", "8"]
    compile_module = torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile", with_no_compiler)
    run_main(script, *argv, "--output", tmp_path / "plain")
    assert compiled == []
    run_main(script, *argv, "--output", tmp_path / "run", "--compile")
    assert compiled == ["UNet2DModel"]
    for file in (WEIGHTS, "checkpoints/checkpoint-2/unet.safetensors"):
        plain, run = (load_file(tmp_path / name / file) for name in ("plain", "run"))
        assert plain.keys() == run.keys()
        assert all(torch.allclose(plain[name], run[name], atol=1e-5) for name in plain)
    settings = [read_json(tmp_path / name / "stage.json")["settings"] for name in ("plain", "run")]
    assert "compile" not in settings[0] and settings[1]["compile"] is True
