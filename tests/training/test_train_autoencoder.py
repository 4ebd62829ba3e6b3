from __future__ import annotations

import json

import pytest
import torch
from diffusers import AutoencoderDC
from PIL import Image
from safetensors.torch import load_file
from sentences import without_notes
from trainings import Killed

from histodistill.training import train_autoencoder as script
from histodistill.training.data.pixels import to_model_input
from histodistill.training.data.sources import load_tiles
from histodistill.training.engine import autoencoder_training, loop
from histodistill.training.engine.augment import apply_symmetries
from histodistill.training.models.autoencoder import VariationalAutoencoder
from histodistill.training.running.errors import InputError
from histodistill.training.running.files import read_json
from histodistill.training.running.options import run_script


WEIGHTS = "diffusion_pytorch_model.safetensors"


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
    draw_batch = autoencoder_training.AutoencoderTraining.draw_batch

    def counted(*args):
        calls.append(1)
        if len(calls) == call:
            raise Killed
        return draw_batch(*args)

    monkeypatch.setattr(autoencoder_training.AutoencoderTraining, "draw_batch", counted)


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


def test_a_finest_level_without_blocks_trained_by_muon(tmp_path, run_main, autoencoder_argv):
    argv = [*autoencoder_argv, "--max-train-steps", "6", "--validation-steps", "3", "--checkpointing-steps", "3"]
    argv += ["--plain-finest", "--optimizer", "muon"]
    run_main(script, *argv, "--output", tmp_path / "whole")
    settings = read_json(tmp_path / "whole" / "stage.json")["settings"]
    assert (settings["plain_finest"], settings["optimizer"]) == (True, "muon")
    assert list(AutoencoderDC.from_pretrained(tmp_path / "whole").config.encoder_layers_per_block) == [0, 1]
    resume = ["--resume", tmp_path / "whole" / "checkpoints" / "checkpoint-3"]
    run_main(script, *argv, "--output", tmp_path / "resumed", *resume)
    assert_same_weights(tmp_path / "whole", tmp_path / "resumed")


def test_latents_that_bear_to_be_halved(tmp_path, run_main, autoencoder_argv):
    """The tile that halved latents decode into is nearer to the halved tile than without the term."""
    argv = [*autoencoder_argv, "--max-train-steps", "60", "--validation-steps", "60"]
    run_main(script, *argv, "--output", tmp_path / "without")
    run_main(script, *argv, "--output", tmp_path / "with", "--equivariance-weight", "5")
    settings = [read_json(tmp_path / name / "stage.json")["settings"] for name in ("without", "with")]
    assert [values.get("equivariance_weight") for values in settings] == [None, 5.0]
    data = autoencoder_argv[autoencoder_argv.index("--data") + 1]
    images = to_model_input(load_tiles(data).split("validation").images)
    errors = []
    for name in ("without", "with"):
        autoencoder = AutoencoderDC.from_pretrained(tmp_path / name)
        with torch.no_grad():
            halved = autoencoder.decode(torch.nn.functional.avg_pool2d(autoencoder.encode(images).latent, 2)).sample
        errors.append((halved - torch.nn.functional.avg_pool2d(images, 2)).abs().mean().item())
    assert errors[1] < 0.93 * errors[0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--image-size", "12", "--channels", "8", "8", "8"],
            "must have an even side to be halved, and have 3: give 0",
        ),
        (["--dp-epsilon", "8"], "--equivariance-weight=1.0 is out of range: with --dp-epsilon it must be 0"),
    ],
)
def test_where_latents_cannot_be_halved(tmp_path, autoencoder_argv, capsys, options, message):
    argv = [*autoencoder_argv, *options, "--equivariance-weight", "1", "--output", str(tmp_path / "run")]
    with pytest.raises(SystemExit):
        run_script(script.make_parser, script.run, argv)
    assert message in capsys.readouterr().err


def test_the_only_level_keeps_its_blocks(tmp_path, autoencoder_argv, capsys):
    argv = [*autoencoder_argv, "--plain-finest", "--channels", "8", "--output", str(tmp_path / "run")]
    with pytest.raises(SystemExit):
        run_script(script.make_parser, script.run, argv)
    assert "--plain-finest leaves nothing of one level: give --channels of two" in capsys.readouterr().err


def test_records_of_before_have_neither(tiny_autoencoder):
    assert not {"plain_finest", "optimizer"} & set(read_json(tiny_autoencoder / "stage.json")["settings"])


def test_nothing_is_pickled(tiny_autoencoder):
    files = [path for path in tiny_autoencoder.rglob("*") if path.is_file()]
    assert {path.suffix for path in files} == {".safetensors", ".json", ".png"}


def test_it_learns(tiny_autoencoder):
    history = read_json(tiny_autoencoder / "history.json")
    assert history[-1]["train_loss"] < 0.75 * history[0]["train_loss"]
    assert history[-1]["validation_l1"] < 0.75 * history[0]["validation_l1"]
    assert history[-1]["validation_psnr"] > history[0]["validation_psnr"] + 2


def test_measured_scale_normalises_the_latents(tiny_autoencoder, tiny_npz):
    autoencoder = AutoencoderDC.from_pretrained(tiny_autoencoder)
    config, record = autoencoder.config, read_json(tiny_autoencoder / "stage.json")
    assert config.scaling_factor == record["scaling_factor"]
    images = to_model_input(load_tiles(tiny_npz).split("train").images)
    with torch.no_grad():
        normalised = autoencoder.encode(images).latent * config.scaling_factor
    assert normalised.square().mean().item() == pytest.approx(1, abs=1e-3)


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
    with pytest.raises(InputError, match=r" after step \d: lower learning_rate"):
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
    forward = VariationalAutoencoder.forward
    monkeypatch.setattr(VariationalAutoencoder, "forward", lambda self, x, noise: forward(self, x, 0 * noise))
    monkeypatch.setattr(
        autoencoder_training, "draw_symmetries", lambda count, _: torch.zeros(count, dtype=torch.int64)
    )
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
    monkeypatch.setattr("histodistill.training.models.autoencoder.build_autoencoder", None)
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
        run_script(script.make_parser, script.run, argv)
    assert error.value.code == 2
    message = without_notes(capsys.readouterr().err)
    assert message.count("\n") == 1
    assert "was made with other settings" in message
    assert (tiny_autoencoder / "stage.json").read_bytes() == before


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--channels", "0"], "--channels=0 is out of range: each must be at least 1"),
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
        run_script(script.make_parser, script.run, [*autoencoder_argv, "--output", str(output), *argv])
    assert error.value.code == 2
    captured = without_notes(capsys.readouterr().err)
    assert captured.startswith(f"error: {message}")
    assert captured.count("\n") == 1
    assert not output.exists()


# Crops, and a budget of pixels.


def config(**options) -> script.TrainAutoencoderConfig:
    return script.TrainAutoencoderConfig(data="phantom", output="out", **options)


@pytest.mark.parametrize(
    ("image_size", "reduction", "crop"),
    [(28, 2, 28), (64, 2, 64), (64, 8, 64), (224, 4, 64), (224, 8, 128), (96, 6, 96)],
)
def test_tiles_are_shown_whole_up_to_some_size(image_size, reduction, crop):
    assert config().for_tiles(image_size, reduction).crop_size == crop


def test_pixels_become_steps():
    assert config().for_tiles(28, 2).max_train_steps == 2000
    options = {"train_pixels": 3_000_000, "batch_size": 16}
    assert config(**options).max_train_steps is None
    assert config(**options).for_tiles(28, 2).max_train_steps == -(-3_000_000 // (16 * 28**2))
    fitted = config(**options, crop_size=32, gradient_accumulation_steps=2).for_tiles(224, 4)
    assert fitted.max_train_steps == -(-3_000_000 // (32 * 32**2))
    assert fitted.for_tiles(224, 4).settings() == fitted.settings()
    assert (fitted.settings()["train_pixels"], fitted.settings()["crop_size"]) == (3_000_000, 32)
    assert {"train_pixels", "crop_size"}.isdisjoint(config().settings())


def test_steps_and_pixels_are_not_both_given():
    with pytest.raises(InputError, match="train_pixels and max_train_steps both say how long"):
        config(train_pixels=1000, max_train_steps=3)


@pytest.mark.parametrize(
    ("crop", "message"),
    [(32, "crop_size=32 is out of range: it must be at most 28"), (9, "must be divisible by 2: give 8")],
)
def test_crops_that_do_not_fit_are_refused(crop, message):
    with pytest.raises(InputError, match=message):
        config(crop_size=crop).for_tiles(28, 2)


def test_crops_are_parts_of_the_tiles_in_their_symmetries(tmp_path, run_main, autoencoder_argv, tiny_npz, monkeypatch):
    shown = []
    make_inputs = autoencoder_training.AutoencoderTraining.make_inputs

    def kept(self, read, views):
        shown.append((read, views, make_inputs(self, read, views)))
        return shown[-1][2]

    monkeypatch.setattr(autoencoder_training.AutoencoderTraining, "make_inputs", kept)
    argv = [*autoencoder_argv, "--crop-size", 8, "--train-pixels", 3 * 8 * 8**2]
    run_main(script, *argv, "--output", tmp_path)
    record = read_json(tmp_path / "stage.json")
    assert [record["settings"][name] for name in ("crop_size", "max_train_steps", "train_pixels")] == [8, 3, 1536]
    assert len(shown) == 3
    train = load_tiles(tiny_npz).split("train").images
    corners = torch.cat([views[:, 1:] for _, views, _ in shown])
    assert corners.min() >= 0 and corners.max() <= 8 and len(corners.unique(dim=0)) > 15
    for tiles, views, images in shown:
        assert images.shape == (8, 3, 8, 8)
        for crop, (symmetry, top, left), image in zip(tiles, views.tolist(), images, strict=True):
            windows = train[:, top : top + 8, left : left + 8]
            assert (windows == crop.numpy()).all(axis=(1, 2, 3)).any()
            expected = apply_symmetries(to_model_input(crop[None]), torch.tensor([symmetry]))
            assert torch.equal(image[None], expected)
    with Image.open(tmp_path / "progress" / "step-0000003.png") as grid:
        assert grid.size[0] == 16 * (32 + 2) - 2  # whole tiles


@pytest.mark.parametrize("options", [[], ["--dp-epsilon", "8", "--dp-views", "2"]])
def test_a_crop_as_large_as_the_tile_is_the_tile(tmp_path, run_main, autoencoder_argv, options, monkeypatch):
    if options:
        pytest.importorskip("opacus")
        monkeypatch.setattr(loop, "secret_key", lambda _: bytes(32))
    argv = [*autoencoder_argv, *options, "--max-train-steps", 2]
    run_main(script, *argv, "--output", tmp_path / "plain")
    run_main(script, *argv, "--output", tmp_path / "whole", "--crop-size", 16)
    run_main(script, *argv, "--output", tmp_path / "crops", "--crop-size", 8)
    assert_same_weights(tmp_path / "plain", tmp_path / "whole")
    settings = [read_json(tmp_path / name / "stage.json")["settings"] for name in ("plain", "whole")]
    assert settings[0] == settings[1]
    with pytest.raises(AssertionError):
        assert_same_weights(tmp_path / "plain", tmp_path / "crops")


@pytest.mark.launch
def test_two_processes_train_the_same_autoencoder(tmp_path, launch, run_main, autoencoder_argv):
    argv = [*autoencoder_argv, "--max-train-steps", 3, "--crop-size", 12, "--validation-steps", 1]
    module = "histodistill.training.train_autoencoder"
    finished = launch(2, module, *argv, "--output", tmp_path / "two")
    assert finished.returncode == 0, finished.stderr[-3000:]
    assert json.loads((tmp_path / "two" / "stage.json").read_text())["num_processes"] == 2
    run_main(script, *argv, "--output", tmp_path / "one")
    histories = [json.loads((tmp_path / name / "history.json").read_text()) for name in ("one", "two")]
    for first, second in zip(*histories, strict=True):
        assert second == pytest.approx(first, rel=1e-5, abs=1e-5)
    one, two = weights_of(tmp_path / "one"), weights_of(tmp_path / "two")
    assert one.keys() == two.keys()
    for name in one:
        torch.testing.assert_close(two[name], one[name], atol=1e-4, rtol=0, msg=name)
