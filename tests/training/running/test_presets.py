from __future__ import annotations

from importlib import import_module

import pytest
import torch

from histodistill.training.commands import compare
from histodistill.training.end_to_end import distill
from histodistill.training.models.autoencoder import build_autoencoder
from histodistill.training.models.denoiser import build_denoiser
from histodistill.training.running.presets import PRESETS, Preset, to_argv
from histodistill.training.train_classifier import make_config


SCRIPTS = {
    "autoencoder": ("train_autoencoder", ["--data", "d", "--output", "o"]),
    "diffusion": ("train_diffusion", ["--data", "d", "--output", "o", "--autoencoder", "a"]),
    "teacher": ("train_classifier", ["--data", "d", "--output", "o"]),
    "generate": ("commands.generate", ["--pipeline", "p", "--output", "o"]),
    "select": ("commands.select", ["--pool", "p", "--teacher", "t", "--output", "o"]),
}


def parsed(stage: str, preset: Preset):
    name, required = SCRIPTS[stage]
    module = import_module(f"histodistill.training.{name}")
    return module.parse_args([*required, *to_argv(getattr(preset, stage))])


@pytest.mark.parametrize("stage", SCRIPTS)
@pytest.mark.parametrize("name", PRESETS)
def test_scripts_understand_every_option(name, stage):
    options = getattr(PRESETS[name], stage)
    args = parsed(stage, PRESETS[name])
    assert options
    assert {option: getattr(args, option) for option in options} == options


@pytest.mark.parametrize("name", PRESETS)
def test_comparison_is_understood_and_gives_the_recovery(name):
    train = PRESETS[name].compare
    args = compare.parse_args(["--run", "r", "--data", "d", "--train", *train])
    for _, _, rows in args.plan:
        assert {"real_all", "real_random", compare.RECOVERY_ROW} <= set(rows)


@pytest.mark.parametrize("name", PRESETS)
def test_stages_fit_each_other(name):
    preset = PRESETS[name]
    assert preset.select["n_per_class"] <= preset.generate["per_class"]
    # MedMNIST's sizes, of which phantom has the first.
    for image_size in (28, 64, 128, 224):
        distill.check_image_size(preset, image_size)


@pytest.mark.parametrize("image_size", [28, 32, 64, 128, 224])
@pytest.mark.parametrize("name", PRESETS)
def test_models_can_be_built_for_every_size(name, image_size):
    preset = PRESETS[name].for_image_size(image_size)
    autoencoder, diffusion = parsed("autoencoder", preset), parsed("diffusion", preset)
    make_config(parsed("teacher", preset))
    with torch.device("meta"):
        vae = build_autoencoder(
            image_size, autoencoder.channels, autoencoder.latent_channels, autoencoder.layers_per_block
        )
        latent_size = image_size // 2 ** (len(autoencoder.channels) - 1)
        assert 14 <= latent_size <= 28
        denoiser = build_denoiser(
            latent_size, vae.config.latent_channels, 5, diffusion.channels, diffusion.layers_per_block,
            diffusion.attention_levels, diffusion.dropout,
        )  # fmt: skip
        latents = torch.empty(2, vae.config.latent_channels, latent_size, latent_size)
        predicted = denoiser(latents, torch.tensor([0.5, 0.5]), class_labels=torch.tensor([0, 5])).sample
        assert predicted.shape == latents.shape
        assert vae.decode(predicted).sample.shape == (2, 3, image_size, image_size)


def test_the_size_that_a_preset_is_written_for_changes_nothing():
    # Batches and channels; attention is left to the script's default.
    assert all(preset.for_image_size(28) == preset for preset in PRESETS.values())


def test_larger_tiles_get_deeper_models_and_smaller_batches():
    gpu = PRESETS["gpu"]
    small, large = gpu.for_image_size(64), gpu.for_image_size(224)
    assert (small.autoencoder["channels"], large.autoencoder["channels"]) == ([64, 128, 256], [64, 128, 256, 256])
    # Each further halving takes three quarters of a latent's pixels, and doubles its channels.
    assert (small.autoencoder["latent_channels"], large.autoencoder["latent_channels"]) == (16, 32)
    # 256 tiles of 32 px have as many pixels as 64 of 64 px; 224 px would leave 5, but 16 are the least.
    assert (small.autoencoder["batch_size"], large.autoencoder["batch_size"]) == (64, 16)
    assert (small.diffusion["batch_size"], large.diffusion["batch_size"]) == (256, 64)
    assert large.diffusion["attention_levels"] == 1
    # What was written for one size is left as it was.
    assert "attention_levels" not in gpu.diffusion
    assert (gpu.autoencoder["channels"], gpu.autoencoder["latent_channels"]) == ([64, 128], 8)
    assert (gpu.halvings(28), gpu.halvings(64), gpu.halvings(224)) == (2, 4, 5)


def test_batches_that_are_small_already_stay():
    preset = Preset(
        autoencoder={"channels": [8, 8], "latent_channels": 2, "batch_size": 8},
        diffusion={"channels": [8], "batch_size": 8},
    )
    large = preset.for_image_size(224)
    assert (large.autoencoder["batch_size"], large.diffusion["batch_size"]) == (8, 8)


@pytest.mark.parametrize(
    ("num_train", "steps"),
    [
        (25, 10),  # 4 epochs of 25 tiles are 100 tiles
        (24, 9),  # never more than 4 epochs
        (1000, 100),  # the preset's own number
        (1, 1),  # always one
    ],
)
def test_few_tiles_are_not_learnt_by_heart(num_train, steps):
    preset = Preset(diffusion={"batch_size": 10, "max_train_steps": 100}, max_epochs=4)
    assert preset.diffusion_steps(num_train) == steps


def test_phantom_gets_all_steps_of_the_demo():
    preset = PRESETS["cpu-demo"]
    assert preset.diffusion_steps(1500) == preset.diffusion["max_train_steps"]


def test_to_argv():
    options = {"batch_size": 64, "learning_rate": 1e-4, "channels": [32, 64], "loss": "ce", "names": ("a",)}
    assert to_argv(options) == [
        "--batch-size", "64", "--learning-rate", "0.0001", "--channels", "32", "64", "--loss", "ce", "--names", "a",
    ]  # fmt: skip
    assert to_argv({"symmetries": True, "normalize_stain": False}) == ["--symmetries", "--no-normalize-stain"]
    assert to_argv({}) == []


def test_unknown_preset(capsys):
    with pytest.raises(SystemExit) as stopped:
        distill.parse_args(["--data", "phantom", "--output", "o", "--preset", "huge"])
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert "huge" in error and all(name in error for name in PRESETS)
