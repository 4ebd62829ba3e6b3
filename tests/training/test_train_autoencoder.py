from __future__ import annotations

import json
import re

import pytest
import torch
from diffusers import AutoencoderDC
from diffusers.models.autoencoders.autoencoder_dc import ResBlock
from PIL import Image
from safetensors.torch import load_file
from torch.distributions import Normal, kl_divergence

from histodistill.training import train_autoencoder as script
from histodistill.training.data.pixels import to_model_input
from histodistill.training.data.sources import load_tiles
from histodistill.training.running.errors import InputError
from histodistill.training.running.files import read_json
from histodistill.training.running.options import run_script


WEIGHTS = "diffusion_pytorch_model.safetensors"


class Killed(BaseException):
    """Ends a run as a kill would: nothing in the scripts catches it."""


def weights_of(folder) -> dict[str, torch.Tensor]:
    return load_file(folder / WEIGHTS)


def assert_same_weights(first, second) -> None:
    first, second = weights_of(first), weights_of(second)
    assert first.keys() == second.keys()
    for name in first:
        assert torch.equal(first[name], second[name]), name


def kill_at(monkeypatch, call: int) -> None:
    """The `call`th batch from 1 is never made."""
    calls = []
    random_symmetry = script.random_symmetry

    def counted(*args):
        calls.append(1)
        if len(calls) == call:
            raise Killed
        return random_symmetry(*args)

    monkeypatch.setattr(script, "random_symmetry", counted)


def test_folder_holds_an_autoencoder_and_its_record(tiny_autoencoder, tiny_npz):
    autoencoder = AutoencoderDC.from_pretrained(tiny_autoencoder)
    assert autoencoder.config.latent_channels == 2
    assert autoencoder.spatial_compression_ratio == 2
    record, history = read_json(tiny_autoencoder / "stage.json"), read_json(tiny_autoencoder / "history.json")
    assert record["complete"]
    assert (record["image_size"], record["num_processes"]) == (16, 1)
    assert record["settings"]["data"] == load_tiles(tiny_npz).fingerprint()
    assert record["settings"]["channels"] == [12, 12]
    assert record["validation_psnr"] == pytest.approx(history[-1]["validation_psnr"])
    assert [entry["step"] for entry in history] == [10, 20, 30, 40, 50, 60]
    assert {path.name for path in (tiny_autoencoder / "checkpoints").iterdir()} == {"checkpoint-50", "checkpoint-60"}
    grids = sorted((tiny_autoencoder / "progress").iterdir())
    assert [path.name for path in grids] == [f"step-{step:07d}.png" for step in (10, 20, 30, 40, 50, 60)]
    with Image.open(grids[-1]) as grid:
        assert grid.size == (16 * (32 + 2) - 2, 2 * (32 + 2) - 2)  # originals above reconstructions


def test_nothing_is_pickled(tiny_autoencoder):
    files = [path for path in tiny_autoencoder.rglob("*") if path.is_file()]
    assert {path.suffix for path in files} == {".safetensors", ".json", ".png"}


def test_it_learns(tiny_autoencoder):
    history = read_json(tiny_autoencoder / "history.json")
    assert history[-1]["train_loss"] < 0.7 * history[0]["train_loss"]
    assert history[-1]["validation_l1"] < 0.7 * history[0]["validation_l1"]
    assert history[-1]["validation_psnr"] > history[0]["validation_psnr"] + 2


def test_measured_scale_normalises_the_latents(tiny_autoencoder, tiny_npz):
    autoencoder = AutoencoderDC.from_pretrained(tiny_autoencoder)
    config, record = autoencoder.config, read_json(tiny_autoencoder / "stage.json")
    assert config.scaling_factor == record["scaling_factor"]
    images = to_model_input(load_tiles(tiny_npz).split("train").images)
    with torch.no_grad():
        normalised = autoencoder.encode(images).latent * config.scaling_factor
    assert normalised.square().mean().item() == pytest.approx(1, abs=1e-3)


def test_scale_is_that_of_all_latents_together():
    # Of other sizes and with a mean, which must not be taken off.
    generator = torch.Generator().manual_seed(0)
    batches = [5 + torch.randn(count, 2, 4, 4, generator=generator) for count in (3, 1, 6)]

    class Identity:
        def encode(self, images):
            return type("Output", (), {"latent": images})

    scale = script.measure_latent_scale(Identity(), iter(batches))
    assert (scale * torch.cat(batches)).square().mean().item() == pytest.approx(1, rel=1e-5)
    assert 0 < script.measure_latent_scale(Identity(), [torch.zeros(1, 2, 4, 4)]) < float("inf")


def test_resumed_run_equals_an_uninterrupted_one(tmp_path, run_main, autoencoder_argv, monkeypatch):
    argv = [*autoencoder_argv, "--max-train-steps", 6, "--validation-steps", 2]
    run_main(script, *argv, "--output", tmp_path / "whole")
    with monkeypatch.context() as patch, pytest.raises(Killed):
        kill_at(patch, 6)
        run_main(script, *argv, "--output", tmp_path / "killed", "--checkpointing-steps", 3)
    assert not read_json(tmp_path / "killed" / "stage.json")["complete"]
    assert not (tmp_path / "killed" / WEIGHTS).exists()

    with monkeypatch.context() as patch:
        kill_at(patch, 4)  # only steps 4 to 6 are left, so this is never reached
        run_main(script, *argv, "--output", tmp_path / "killed", "--resume", "latest")
    assert_same_weights(tmp_path / "whole", tmp_path / "killed")
    whole, resumed = (read_json(tmp_path / name / "history.json") for name in ("whole", "killed"))
    assert resumed == whole


def test_a_checkpoint_of_another_training_is_refused(tmp_path, run_main, autoencoder_argv):
    run_main(script, *autoencoder_argv, "--max-train-steps", 1, "--output", tmp_path / "a")
    with pytest.raises(InputError, match=r"is of a training with other settings \(seed was 0 and is now 1\)"):
        run_main(
            script, *autoencoder_argv, "--max-train-steps", 1, "--seed", 1, "--output", tmp_path / "b",
            "--resume", tmp_path / "a" / "checkpoints" / "checkpoint-1",
        )  # fmt: skip


def test_a_training_that_diverges_says_so(tmp_path, run_main, autoencoder_argv):
    argv = [*autoencoder_argv, "--max-train-steps", 4, "--validation-steps", 1, "--learning-rate", 1e30]
    with pytest.raises(InputError, match=r" after step \d: lower --learning-rate"):
        run_main(script, *argv, "--output", tmp_path)


def test_resume_latest_without_a_checkpoint_begins(tmp_path, run_main, autoencoder_argv):
    run_main(script, *autoencoder_argv, "--max-train-steps", 1, "--output", tmp_path, "--resume", "latest")
    assert read_json(tmp_path / "stage.json")["complete"]


def test_the_seed_decides(tmp_path, run_main, autoencoder_argv):
    argv = [*autoencoder_argv, "--max-train-steps", 2]
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        run_main(script, *argv, "--seed", seed, "--output", tmp_path / name)
    assert_same_weights(tmp_path / "a", tmp_path / "b")
    with pytest.raises(AssertionError):
        assert_same_weights(tmp_path / "a", tmp_path / "c")


def test_accumulated_gradients_are_those_of_one_large_batch(tmp_path, run_main, autoencoder_argv, monkeypatch):
    # Without noise and augmentation the two halves hold what the large batch holds.
    forward = script.VariationalAutoencoder.forward
    monkeypatch.setattr(script.VariationalAutoencoder, "forward", lambda self, x, noise: forward(self, x, 0 * noise))
    monkeypatch.setattr(script, "random_symmetry", lambda images, _: images)
    argv = [*autoencoder_argv, "--max-train-steps", 1, "--class-balance", 0, "--max-grad-norm", 1e9]
    sizes = {"large": (8, 1), "halves": (4, 2), "half": (4, 1)}
    moments = {}
    for name, (batch_size, accumulation) in sizes.items():
        options = ["--batch-size", batch_size, "--gradient-accumulation-steps", accumulation]
        run_main(script, *argv, *options, "--output", tmp_path / name)
        moments[name] = load_file(tmp_path / name / "checkpoints" / "checkpoint-1" / "optimizer.safetensors")

    def flat(name):
        # After one step the first moment is a tenth of the gradient.
        return torch.cat([value.flatten() for key, value in sorted(moments[name].items()) if key.endswith(".exp_avg")])

    scale = flat("large").abs().max()
    assert (flat("halves") - flat("large")).abs().max() < 1e-4 * scale
    assert (flat("half") - flat("large")).abs().max() > 1e-2 * scale


@pytest.mark.parametrize("precision", ["bf16"])
def test_mixed_precision_keeps_weights_in_single(tmp_path, run_main, autoencoder_argv, precision):
    run_main(script, *autoencoder_argv, "--mixed-precision", precision, "--max-train-steps", 2, "--output", tmp_path)
    for name, value in weights_of(tmp_path).items():
        assert value.dtype == torch.float32, name
        assert torch.isfinite(value).all(), name


def test_finished_folder_is_left_alone(tiny_autoencoder, run_main, autoencoder_argv, capsys, monkeypatch):
    before = {path: path.stat().st_mtime_ns for path in tiny_autoencoder.rglob("*")}
    monkeypatch.setattr(script, "build_autoencoder", None)
    run_main(
        script, *autoencoder_argv, "--output", tiny_autoencoder, "--max-train-steps", 60,
        "--validation-steps", 10, "--learning-rate", 3e-4,
    )  # fmt: skip
    assert "already finished" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in tiny_autoencoder.rglob("*")} == before


def test_other_settings_in_the_same_folder_are_refused(tiny_autoencoder, autoencoder_argv, capsys):
    argv = [*autoencoder_argv, "--output", str(tiny_autoencoder), "--max-train-steps", "61"]
    before = (tiny_autoencoder / "stage.json").read_bytes()
    with pytest.raises(SystemExit) as error:
        run_script(script.parse_args, script.main, argv)
    assert error.value.code == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert "was made with other settings" in message
    assert (tiny_autoencoder / "stage.json").read_bytes() == before


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--channels", "0"], "--channels=[0] is out of range: every width must be at least 1"),
        (["--latent-channels", "0"], "--latent-channels=0 is out of range: it must be at least 1"),
        (["--layers-per-block", "0"], "--layers-per-block=0 is out of range: it must be at least 1"),
        (["--kl-weight", "-1"], "--kl-weight=-1.0 is out of range: it must be at least 0"),
        (["--posterior-std", "-1"], "--posterior-std=-1.0 is out of range: it must be at least 0"),
        (["--frequency-weight", "-1"], "--frequency-weight=-1.0 is out of range: it must be at least 0"),
        (["--data", "/no/such/folder"], "/no/such/folder does not exist"),
        (["--channels", *"888888"], "image size 16 is not divisible by 32: give --image-size 32, or fewer --channels"),
        (
            ["--channels", "8", "10"],
            "--channels 8 10 cannot be joined by shortcuts: every width after the first must be divisible by 4 and "
            "divide 4 times the width before it; give 16 after 8\n",
        ),
        (["--mixed-precision", "fp16"], "--mixed-precision=fp16 needs a GPU"),
        (["--resume", "/no/checkpoint"], "--resume /no/checkpoint is not a checkpoint"),
    ],
)
def test_bad_input_ends_with_one_sentence(tmp_path, autoencoder_argv, argv, message, capsys, fresh_accelerate):
    if "fp16" in argv and torch.cuda.is_available():
        pytest.skip("fp16 is fine with a GPU")
    output = tmp_path / "output"
    with pytest.raises(SystemExit) as error:
        run_script(script.parse_args, script.main, [*autoencoder_argv, "--output", str(output), *argv])
    assert error.value.code == 2
    captured = capsys.readouterr().err
    assert captured.startswith(f"error: {message}")
    assert captured.count("\n") == 1
    assert not output.exists()


@pytest.mark.parametrize("latent_channels", [2, 3, 16])
@pytest.mark.parametrize(("channels", "latent_size"), [([8], 16), ([8, 16], 8), ([4, 16, 8], 4), ([3, 12], 8)])
def test_build_autoencoder(channels, latent_size, latent_channels):
    autoencoder = script.build_autoencoder(16, channels, latent_channels, 1)
    images = torch.zeros(2, 3, 16, 16)
    with torch.no_grad():
        latents = autoencoder.encode(images).latent
        assert latents.shape == (2, latent_channels, latent_size, latent_size)
        assert autoencoder.decode(latents).sample.shape == images.shape
    # The shortcuts past the latents take means over as many channels each, so there are none where that does not go.
    has_shortcut = channels[-1] % latent_channels == 0
    assert autoencoder.encoder.out_shortcut == autoencoder.decoder.in_shortcut == has_shortcut


@pytest.mark.parametrize("layers_per_block", [1, 2])
def test_residual_blocks_begin_as_the_identity(layers_per_block):
    torch.manual_seed(0)
    autoencoder = script.build_autoencoder(16, [8, 16], 2, layers_per_block)
    blocks = {}
    for name in ("encoder", "decoder"):
        blocks[name] = [module for module in getattr(autoencoder, name).modules() if isinstance(module, ResBlock)]
        for block in blocks[name]:
            features = torch.randn(2, block.conv1.in_channels, 4, 4)
            assert torch.equal(block(features), features)
    assert (len(blocks["encoder"]), len(blocks["decoder"])) == (2 * layers_per_block, 4 * layers_per_block)
    # They can learn: where a norm's weight is 0, its gradient is not.
    autoencoder(torch.rand(2, 3, 16, 16)).sample.square().mean().backward()
    assert all(block.norm.weight.grad.abs().max() > 0 for block in blocks["encoder"] + blocks["decoder"])


@pytest.mark.parametrize("channels", [[8, 10], [8, 24], [8, 64], [8, 8, 12], [6, 2], [5, 10]])
def test_widths_that_shortcuts_cannot_join(channels):
    with pytest.raises(InputError) as error:
        script.build_autoencoder(16, channels, 2, 1)
    message = str(error.value)
    assert message.startswith(f"--channels {' '.join(map(str, channels))} cannot be joined by shortcuts: every width ")
    # What it says to give can be built.
    next_width, width = map(int, re.fullmatch(r".*; give (\d+) after (\d+)", message).groups())
    assert width == channels[-2]
    script.build_autoencoder(16, [*channels[:-1], next_width], 2, 1)


def test_build_autoencoder_refuses_odd_sizes():
    with pytest.raises(InputError, match="image size 30 is not divisible by 4: give --image-size 32"):
        script.build_autoencoder(30, [8, 8, 8], 2, 1)


def test_forward_draws_from_the_posterior():
    torch.manual_seed(0)
    autoencoder = script.build_autoencoder(16, [8, 8], 2, 1).eval()
    images, noise = torch.rand(2, 3, 16, 16) * 2 - 1, torch.randn(2, 2, 8, 8)
    prior = Normal(0.0, 1.0)
    with torch.no_grad():
        mean = autoencoder.encode(images).latent
        reconstruction, kl = script.VariationalAutoencoder(autoencoder, 0.3)(images, noise)
        torch.testing.assert_close(reconstruction, autoencoder.decode(mean + 0.3 * noise).sample)
        # Less what would be left if the posterior were N(0, 0.3²).
        expected = kl_divergence(Normal(mean, 0.3), prior).mean() - kl_divergence(Normal(0.0, 0.3), prior)
        torch.testing.assert_close(kl, expected)
        assert kl > 0

        without, same_kl = script.VariationalAutoencoder(autoencoder, 0.0)(images, noise)
        torch.testing.assert_close(without, autoencoder(images).sample)
        torch.testing.assert_close(same_kl, kl)
        assert (reconstruction - without).abs().max() > 0.01


def test_reconstruction_loss():
    torch.manual_seed(0)
    images = torch.rand(2, 3, 8, 8) * 2 - 1
    assert script.reconstruction_loss(images, images, 0.5) == 0
    shifted = images + 0.25
    assert script.reconstruction_loss(shifted, images, 0.0).item() == pytest.approx(0.25)
    # A constant has one Fourier coefficient of 8 × 0.25 among the 8 × 5 that rfft2 keeps.
    expected = 0.25 + 0.5 * 8 * 0.25 / 40
    assert script.reconstruction_loss(shifted, images, 0.5).item() == pytest.approx(expected, rel=1e-4)


@pytest.mark.launch
def test_two_processes_train_the_same_autoencoder(tmp_path, launch, run_main, autoencoder_argv):
    argv = [*autoencoder_argv, "--max-train-steps", 3]
    module = "histodistill.training.train_autoencoder"
    finished = launch(2, module, *argv, "--output", tmp_path / "two")
    assert finished.returncode == 0, finished.stderr[-3000:]
    assert json.loads((tmp_path / "two" / "stage.json").read_text())["num_processes"] == 2
    run_main(script, *argv, "--output", tmp_path / "one")
    one, two = weights_of(tmp_path / "one"), weights_of(tmp_path / "two")
    assert one.keys() == two.keys()
    for name in one:
        torch.testing.assert_close(two[name], one[name], atol=1e-4, rtol=0, msg=name)
