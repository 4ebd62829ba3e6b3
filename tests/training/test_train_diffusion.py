from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from diffusers import AutoencoderDC
from diffusers.models.attention_processor import Attention
from PIL import Image
from safetensors.torch import load_file

from histodistill.pipelines import HistologyPipeline
from histodistill.training import train_diffusion as script
from histodistill.training.data.pixels import to_model_input
from histodistill.training.data.sources import load_tiles
from histodistill.training.engine.steps import step_generator
from histodistill.training.running.errors import InputError
from histodistill.training.running.files import read_json
from histodistill.training.running.options import run_script


WEIGHTS = "unet/diffusion_pytorch_model.safetensors"


class Killed(BaseException):
    """Ends a run as a kill would: nothing in the scripts catches it."""


def assert_same_weights(first, second) -> None:
    first, second = load_file(first / WEIGHTS), load_file(second / WEIGHTS)
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


def load(folder) -> HistologyPipeline:
    return HistologyPipeline.from_pretrained(folder, trust_remote_code=True)


def test_folder_holds_a_pipeline_and_its_record(tiny_pipeline, tiny_npz, tiny_autoencoder):
    pipeline = load(tiny_pipeline)
    source = load_tiles(tiny_npz)
    assert pipeline.class_names == source.class_names
    assert pipeline.null_class == len(source.class_names) == 5
    assert pipeline.unet.config.num_class_embeds == 6
    assert (pipeline.unet.config.sample_size, pipeline.unet.config.in_channels) == (8, 2)
    for name, value in AutoencoderDC.from_pretrained(tiny_autoencoder).state_dict().items():
        assert torch.equal(pipeline.vae.state_dict()[name], value), name
    record, history = read_json(tiny_pipeline / "stage.json"), read_json(tiny_pipeline / "history.json")
    assert record["complete"]
    assert record["num_processes"] == 1
    assert record["settings"]["data"] == source.fingerprint()
    assert record["settings"]["autoencoder"] == read_json(tiny_autoencoder / "stage.json")["fingerprint"]
    assert record["validation_loss"] == history[-1]["validation_loss"]
    assert record["images_per_second"] > 0
    assert [entry["step"] for entry in history] == [3, 6]
    with Image.open(tiny_pipeline / "progress" / "step-0000006.png") as grid:
        assert grid.size == (8 * (32 + 2) - 2, 5 * (32 + 2) - 2)  # a row for each class


def test_nothing_is_pickled_and_no_path_is_told(tiny_pipeline, tmp_path):
    files = [path for path in tiny_pipeline.rglob("*") if path.is_file()]
    assert {path.suffix for path in files} == {".safetensors", ".json", ".png", ".py"}
    for path in files:
        if path.suffix == ".json":
            assert str(tiny_pipeline.parent) not in path.read_text(), path.name


def test_pipeline_holds_the_averaged_weights(tiny_pipeline):
    saved = load_file(tiny_pipeline / WEIGHTS)
    checkpoint = tiny_pipeline / "checkpoints" / "checkpoint-6"
    average, last = load_file(checkpoint / "ema.safetensors"), load_file(checkpoint / "unet.safetensors")
    assert saved.keys() == average.keys() == last.keys()
    assert all(torch.equal(saved[name], average[name]) for name in saved)
    assert not all(torch.equal(saved[name], last[name]) for name in saved)


def test_it_learns(tmp_path, run_main, diffusion_argv):
    run_main(
        script, *diffusion_argv, "--max-train-steps", 40, "--validation-steps", 10, "--learning-rate", 5e-3,
        "--ema-decay", 0.5, "--output", tmp_path,
    )  # fmt: skip
    losses = [entry["validation_loss"] for entry in read_json(tmp_path / "history.json")]
    assert losses[-1] < 0.9 * losses[0]


@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_resumed_run_equals_an_uninterrupted_one(tmp_path, run_main, diffusion_argv, monkeypatch, dropout):
    argv = [*diffusion_argv, "--max-train-steps", 6, "--validation-steps", 2, "--dropout", dropout]
    run_main(script, *argv, "--output", tmp_path / "whole")
    with monkeypatch.context() as patch, pytest.raises(Killed):
        kill_at(patch, 6)
        run_main(script, *argv, "--output", tmp_path / "killed", "--checkpointing-steps", 3)
    assert not (tmp_path / "killed" / "model_index.json").exists()

    with monkeypatch.context() as patch:
        kill_at(patch, 4)  # only steps 4 to 6 are left, so this is never reached
        run_main(script, *argv, "--output", tmp_path / "killed", "--resume", "latest")
    assert_same_weights(tmp_path / "whole", tmp_path / "killed")
    whole, resumed = (read_json(tmp_path / name / "history.json") for name in ("whole", "killed"))
    assert resumed == whole


def test_a_checkpoint_of_another_training_is_refused(tmp_path, run_main, diffusion_argv):
    argv = [*diffusion_argv, "--max-train-steps", 2]
    run_main(script, *argv, "--output", tmp_path / "a")
    resume = ["--resume", tmp_path / "a" / "checkpoints" / "checkpoint-2"]
    # The pipeline of tiles that were held out from it would be anything but.
    with pytest.raises(InputError, match=r"is of a training with other settings \(data was "):
        run_main(script, *argv, "--audit-share", 0.25, *resume, "--output", tmp_path / "b")
    with pytest.raises(InputError, match=r"\(max_train_steps was 2 and is now 1\)"):
        run_main(script, *diffusion_argv, "--max-train-steps", 1, *resume, "--output", tmp_path / "c")
    run_main(script, *argv, *resume, "--output", tmp_path / "d")
    assert_same_weights(tmp_path / "a", tmp_path / "d")


def test_a_training_that_diverges_keeps_its_good_checkpoints(tmp_path, run_main, diffusion_argv):
    argv = [*diffusion_argv, "--max-train-steps", 4, "--checkpointing-steps", 1, "--learning-rate", 1e30]
    with pytest.raises(InputError, match=r" after step \d: lower --learning-rate"):
        run_main(script, *argv, "--output", tmp_path)
    assert not (tmp_path / "model_index.json").exists()


def test_warning_of_overfitting():
    def history(*losses):
        return [{"step": step, "validation_loss": loss} for step, loss in enumerate(losses, start=1)]

    assert script.overfitting_warning(history(1.0, 0.7, 0.76)) is None
    warning = script.overfitting_warning(history(1.0, 0.7, 0.8))
    assert warning.startswith(
        "the validation loss rose from 0.7000 at step 2 to 0.8000, so the model learns its tiles"
    )


@pytest.mark.parametrize("symmetries", [True, False])
def test_tiles_are_turned_unless_told_otherwise(tmp_path, run_main, diffusion_argv, tiny_npz, monkeypatch, symmetries):
    shown = []
    encode = script.normalised_latents
    monkeypatch.setattr(script, "normalised_latents", lambda vae, x: shown.append(x.clone()) or encode(vae, x))
    option = [] if symmetries else ["--no-symmetries"]
    run_main(script, *diffusion_argv, "--max-train-steps", 2, *option, "--output", tmp_path / "run")
    train = to_model_input(load_tiles(tiny_npz).split("train").images)
    # The last batch of two is of validation.
    as_they_are = [any(torch.equal(view, tile) for tile in train) for batch in shown[:2] for view in batch]
    assert all(as_they_are) != symmetries


def test_accumulated_gradients_are_those_of_one_large_batch(tmp_path, run_main, diffusion_argv, monkeypatch):
    # Without noise and augmentation the two halves hold what the large batch holds.
    def draw_nothing(generator, class_ids, latent_shape, *_):
        return torch.zeros(len(class_ids), *latent_shape), torch.full((len(class_ids),), 0.5), class_ids

    monkeypatch.setattr(script, "draw_step", draw_nothing)
    monkeypatch.setattr(script, "random_symmetry", lambda images, _: images)
    argv = [*diffusion_argv, "--max-train-steps", 1, "--class-balance", 0, "--max-grad-norm", 1e9]
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


def test_mixed_precision_keeps_weights_in_single(tmp_path, run_main, diffusion_argv):
    run_main(script, *diffusion_argv, "--mixed-precision", "bf16", "--max-train-steps", 2, "--output", tmp_path)
    for name, value in load_file(tmp_path / WEIGHTS).items():
        assert value.dtype == torch.float32, name
        assert torch.isfinite(value).all(), name


def test_finished_folder_is_left_alone(tiny_pipeline, run_main, diffusion_argv, capsys, monkeypatch):
    before = {path: path.stat().st_mtime_ns for path in tiny_pipeline.rglob("*")}
    monkeypatch.setattr(script, "build_denoiser", None)
    run_main(script, *diffusion_argv, "--output", tiny_pipeline, "--max-train-steps", 6, "--validation-steps", 3)
    assert "already finished" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in tiny_pipeline.rglob("*")} == before


def test_another_autoencoder_is_another_setting(
    tmp_path, tiny_pipeline, tiny_npz, run_main, autoencoder_argv, diffusion_argv
):
    from histodistill.training import train_autoencoder

    other = tmp_path / "autoencoder"
    run_main(train_autoencoder, *autoencoder_argv, "--max-train-steps", 1, "--seed", 1, "--output", other)
    argv = [*diffusion_argv, "--autoencoder", other, "--max-train-steps", 6, "--validation-steps", 3]
    with pytest.raises(InputError, match=r"was made with other settings \(autoencoder was .*\): give another output"):
        run_main(script, *argv, "--output", tiny_pipeline)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--channels", "0"], "--channels=[0] is out of range: every width must be at least 1"),
        (["--layers-per-block", "0"], "--layers-per-block=0 is out of range: it must be at least 1"),
        (["--attention-levels", "-1"], "--attention-levels=-1 is out of range: it must be at least 0"),
        (["--dropout", "1"], "--dropout=1.0 is out of range: it must be at least 0 and below 1"),
        (["--class-dropout", "-0.1"], "--class-dropout=-0.1 is out of range: it must be at least 0 and below 1"),
        (["--ema-decay", "1"], "--ema-decay=1.0 is out of range: it must be at least 0 and below 1"),
        (["--autoencoder", "/no/such"], "/no/such holds no finished autoencoder: run train_autoencoder on it first"),
        (["--image-size", "32"], "the tiles are 32 px, but the autoencoder is for 16 px: give --image-size 16"),
        (["--channels", *["8"] * 5], "latents of 8×8 cannot be halved 4 times: give fewer --channels"),
    ],
)
def test_bad_input_ends_with_one_sentence(tmp_path, diffusion_argv, argv, message, capsys, fresh_accelerate):
    output = tmp_path / "output"
    with pytest.raises(SystemExit) as error:
        run_script(script.parse_args, script.main, [*diffusion_argv, "--output", str(output), *argv])
    assert error.value.code == 2
    captured = capsys.readouterr().err
    assert captured.startswith(f"error: {message}")
    assert captured.count("\n") == 1
    assert not output.exists()


@pytest.mark.parametrize(
    ("channels", "attention_levels", "kinds"),
    [
        ([8], 0, ["DownBlock2D"]),
        ([8], 2, ["AttnDownBlock2D"]),
        ([8, 16, 24], 1, ["DownBlock2D", "DownBlock2D", "AttnDownBlock2D"]),
    ],
)
def test_build_denoiser(channels, attention_levels, kinds):
    denoiser = script.build_denoiser(8, 3, 4, channels, 1, attention_levels)
    assert denoiser.config.num_class_embeds == 5
    assert list(denoiser.config.down_block_types) == kinds
    assert list(denoiser.config.up_block_types) == [kind.replace("Down", "Up") for kind in reversed(kinds)]
    latents = torch.zeros(2, 3, 8, 8)
    with torch.no_grad():
        assert denoiser(latents, 10, class_labels=torch.tensor([0, 4])).sample.shape == latents.shape


def test_class_scales_the_maps_and_does_not_only_shift_them():
    denoiser = script.build_denoiser(8, 2, 3, [12], layers_per_block=1, attention_levels=0)
    block = denoiser.down_blocks[0].resnets[0]
    assert block.time_emb_proj.out_features == 2 * 12


def test_plain_attention_is_the_fused_one(tmp_path):
    torch.manual_seed(0)
    denoiser = script.build_denoiser(8, 2, 3, [12, 24], layers_per_block=1, attention_levels=1)
    inputs = torch.randn(3, 2, 8, 8), torch.tensor([1.0, 500.0, 900.0]), torch.tensor([0, 1, 3])
    results = []
    for change in (lambda model: None, script.use_plain_attention):
        change(denoiser)
        denoiser.zero_grad()
        output = denoiser(inputs[0], inputs[1], class_labels=inputs[2]).sample
        output.square().sum().backward()
        attention = next(module for module in denoiser.modules() if isinstance(module, Attention))
        results.append((type(attention.processor).__name__, output.detach(), attention.to_q.weight.grad.clone()))
    (fused, output, gradient), (plain, plain_output, plain_gradient) = results
    assert (fused, plain) == ("AttnProcessor2_0", "AttnProcessor")
    torch.testing.assert_close(plain_output, output)
    torch.testing.assert_close(plain_gradient, gradient, atol=1e-5, rtol=1e-4)
    assert gradient.abs().max() > 1e-3
    # What is saved does not know of it.
    denoiser.save_pretrained(tmp_path)
    loaded = type(denoiser).from_pretrained(tmp_path)
    loaded_attention = next(module for module in loaded.modules() if isinstance(module, Attention))
    assert type(loaded_attention.processor).__name__ == "AttnProcessor2_0"


def test_autoencoder_of_an_earlier_version_is_refused(tmp_path, tiny_autoencoder, diffusion_argv, capsys):
    folder = tmp_path / "autoencoder"
    shutil.copytree(tiny_autoencoder, folder)
    record = read_json(folder / "stage.json")
    del record["image_size"]
    (folder / "stage.json").write_text(json.dumps(record))
    with pytest.raises(SystemExit) as ended:
        run_script(
            script.parse_args, script.main,
            [*diffusion_argv, "--autoencoder", str(folder), "--output", str(tmp_path / "o"), "--max-train-steps", "1"],
        )  # fmt: skip
    assert ended.value.code == 2
    sentence = "holds an autoencoder of an earlier version: train one anew, in another folder"
    assert capsys.readouterr().err == f"error: {folder} {sentence}\n"
    assert not (tmp_path / "o").exists()


def test_scheduler_follows_the_flow_back_to_the_data():
    """With the true velocity, which is constant along a straight path, the sampler arrives at the data exactly."""
    generator = torch.Generator().manual_seed(0)
    data, noise = torch.randn(2, 1, 2, 4, 4, generator=generator)
    scheduler = script.make_scheduler()
    scheduler.set_timesteps(8)
    latents = noise
    for t in scheduler.timesteps:
        latents = scheduler.step(noise - data, t, latents).prev_sample
    torch.testing.assert_close(latents, data, atol=2e-2, rtol=0)


def test_scheduler_and_training_agree_on_noise_levels():
    """At timestep t the sampler mixes data and noise as the training does, which calls t = 1000 s."""
    scheduler = script.make_scheduler()
    scheduler.set_timesteps(10)
    sigmas = scheduler.sigmas[:-1].numpy()
    np.testing.assert_allclose(scheduler.timesteps.numpy() / script.NUM_TRAIN_TIMESTEPS, sigmas, atol=2e-3)


def test_normalised_latents(tiny_autoencoder, tiny_npz):
    autoencoder = AutoencoderDC.from_pretrained(tiny_autoencoder)
    images = to_model_input(load_tiles(tiny_npz).split("train").images)
    with torch.no_grad():
        latents = script.normalised_latents(autoencoder, images)
        assert latents.shape == (len(images), 2, 8, 8)
        assert latents.square().mean().item() == pytest.approx(1, abs=1e-3)
        torch.testing.assert_close(latents / autoencoder.config.scaling_factor, autoencoder.encode(images).latent)
        half = script.normalised_latents(autoencoder.to(torch.bfloat16), images.to(torch.bfloat16))
    assert latents.dtype == half.dtype == torch.float32
    torch.testing.assert_close(half, latents, atol=0.1, rtol=0)


def test_flow_loss_is_zero_for_the_true_velocity():
    generator = torch.Generator().manual_seed(0)
    latents, noise = torch.randn(2, 3, 2, 4, 4, generator=generator)
    levels = torch.tensor([0.1, 0.5, 0.9])
    seen = {}

    class Denoiser(torch.nn.Module):
        def forward(self, noisy, timesteps, class_labels):
            seen.update(noisy=noisy, timesteps=timesteps, class_labels=class_labels)
            return type("Output", (), {"sample": noise - latents + error})

    class_ids = torch.tensor([0, 1, 5])
    error = 0.0
    assert script.flow_loss(Denoiser(), latents, class_ids, noise, levels) == 0
    torch.testing.assert_close(seen["noisy"][1], (latents[1] + noise[1]) / 2)
    torch.testing.assert_close(seen["timesteps"], torch.tensor([100.0, 500.0, 900.0]))
    assert seen["class_labels"] is class_ids
    error = 0.5
    assert script.flow_loss(Denoiser(), latents, class_ids, noise, levels).item() == pytest.approx(0.25)


def test_draw_step():
    count = 4000
    class_ids = torch.arange(count) % 3
    noise, levels, shown = script.draw_step(step_generator(0, 0), class_ids, (2, 4, 4), 3, 0.25)
    assert noise.shape == (count, 2, 4, 4)
    assert noise.mean().item() == pytest.approx(0, abs=0.02)
    assert noise.std().item() == pytest.approx(1, abs=0.02)
    assert levels.shape == (count,)
    assert 0 < levels.min() < levels.max() < 1
    assert torch.logit(levels).std().item() == pytest.approx(1, abs=0.05)  # logit-normal
    dropped = shown == 3
    assert dropped.float().mean().item() == pytest.approx(0.25, abs=0.03)
    assert torch.equal(shown[~dropped], class_ids[~dropped])
    again = script.draw_step(step_generator(0, 0), class_ids, (2, 4, 4), 3, 0.25)
    assert all(torch.equal(a, b) for a, b in zip(again, (noise, levels, shown), strict=True))
    assert torch.equal(script.draw_step(step_generator(0, 0), class_ids, (2, 4, 4), 3, 0.0)[2], class_ids)


@pytest.mark.launch
def test_two_processes_train_the_same_denoiser(tmp_path, launch, run_main, diffusion_argv):
    argv = [*diffusion_argv, "--max-train-steps", 3]
    finished = launch(2, "histodistill.training.train_diffusion", *argv, "--output", tmp_path / "two")
    assert finished.returncode == 0, finished.stderr[-3000:]
    assert json.loads((tmp_path / "two" / "stage.json").read_text())["num_processes"] == 2
    run_main(script, *argv, "--output", tmp_path / "one")
    # The weights of the last step, which have moved further than their average.
    one, two = (
        load_file(tmp_path / name / "checkpoints" / "checkpoint-3" / "unet.safetensors") for name in ("one", "two")
    )
    assert one.keys() == two.keys()
    for name in one:
        torch.testing.assert_close(two[name], one[name], atol=1e-4, rtol=0, msg=name)
