from __future__ import annotations

import json
import shutil

import pytest
import torch
from diffusers import AutoencoderDC, DiffusionPipeline
from PIL import Image
from safetensors.torch import load_file
from sentences import without_notes

from histodistill.pipelines import HistologyPipeline
from histodistill.training import train_diffusion as script
from histodistill.training.data.pixels import to_model_input
from histodistill.training.data.sources import load_tiles
from histodistill.training.engine import diffusion_training
from histodistill.training.engine.flow import flow_loss
from histodistill.training.evaluation.weights_attack import denoising_losses
from histodistill.training.models.classifiers import Classifier
from histodistill.training.models.loading import load_pipeline
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
    draw_batch = diffusion_training.DiffusionTraining.draw_batch

    def counted(*args):
        calls.append(1)
        if len(calls) == call:
            raise Killed
        return draw_batch(*args)

    monkeypatch.setattr(diffusion_training.DiffusionTraining, "draw_batch", counted)


def assert_same_losses(first, second) -> None:
    first, second = (read_json(folder / "history.json") for folder in (first, second))
    assert len(first) == len(second) > 1
    for one, two in zip(first, second, strict=True):
        assert two == pytest.approx(one, abs=1e-5)


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


@pytest.mark.parametrize(
    "options", [[], ["--dropout", 0.2], ["--optimizer", "muon"], ["--optimizer", "muon", "--align", "TEACHER"]]
)
def test_resumed_run_equals_an_uninterrupted_one(
    tmp_path, run_main, diffusion_argv, tiny_teacher, monkeypatch, options
):
    options = [tiny_teacher if option == "TEACHER" else option for option in options]
    argv = [*diffusion_argv, "--max-train-steps", 6, "--validation-steps", 2, *options]
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


def test_a_denoiser_is_drawn_to_the_features_of_a_classifier(
    tmp_path, run_main, diffusion_argv, tiny_teacher, tiny_pipeline
):
    argv = [*diffusion_argv, "--max-train-steps", 40, "--validation-steps", 10, "--learning-rate", 5e-3]
    for name, options in {"alone": [], "aligned": ["--align", tiny_teacher, "--align-weight", 2]}.items():
        run_main(script, *argv, *options, "--output", tmp_path / name)
    alone, aligned = (read_json(tmp_path / name / "history.json") for name in ("alone", "aligned"))
    # The loss has the term in it; what is validated and saved knows nothing of it.
    terms = [one["train_loss"] - other["train_loss"] for one, other in zip(aligned, alone, strict=True)]
    assert all(0.5 < term < 4 for term in terms)  # twice one minus a cosine
    assert aligned[-1]["validation_loss"] != alone[-1]["validation_loss"]
    assert load_file(tmp_path / "aligned" / WEIGHTS).keys() == load_file(tiny_pipeline / WEIGHTS).keys()
    settings = read_json(tmp_path / "aligned" / "stage.json")["settings"]
    assert settings["align"] == read_json(tiny_teacher / "stage.json")["fingerprint"] and settings["align_weight"] == 2
    assert not {"align", "align_weight"} & set(read_json(tmp_path / "alone" / "stage.json")["settings"])
    files = [(tmp_path / name / "unet" / "config.json").read_bytes() for name in ("alone", "aligned")]
    assert files[0] == files[1]


def test_a_denoiser_that_gives_the_tile_itself(tmp_path, run_main, diffusion_argv, capsys):
    argv = [*diffusion_argv, "--max-train-steps", 60, "--validation-steps", 20, "--learning-rate", 5e-3]
    run_main(script, *argv, "--prediction-type", "sample", "--noise-level-mean", "0.5", "--output", tmp_path / "run")
    history, record = (read_json(tmp_path / "run" / name) for name in ("history.json", "stage.json"))
    assert record["settings"]["prediction_type"] == "sample" and record["settings"]["noise_level_mean"] == 0.5
    assert history[-1]["validation_loss"] < history[0]["validation_loss"]
    pipeline = DiffusionPipeline.from_pretrained(tmp_path / "run", trust_remote_code=True)
    assert pipeline.scheduler.config.prediction_type == "sample"
    # What the weights know is told by the same errors, and what is made is no noise.
    losses = denoising_losses(pipeline, load_tiles(diffusion_argv[1]).split("validation"))
    assert 0 < losses.mean() < 3
    latents = pipeline([0, 1, 2], generator=torch.Generator().manual_seed(0), output_type="latent").images
    assert latents.std() < 2
    message = "has the prediction_type sample, and here it is flow_prediction: give the one that it has"
    with pytest.raises(InputError, match=message):
        run_main(script, *argv, "--init-from", tmp_path / "run", "--output", tmp_path / "other")


def test_noise_levels_of_a_range_alone(tmp_path, run_main, diffusion_argv, monkeypatch, capsys):
    seen = []

    def noted(denoiser, latents, class_ids, noise, noise_levels, output):
        seen.append(noise_levels)
        return flow_loss(denoiser, latents, class_ids, noise, noise_levels, output)

    monkeypatch.setattr(diffusion_training, "flow_loss", noted)
    argv = [*diffusion_argv, "--max-train-steps", 2, "--validation-steps", 2]
    run_main(script, *argv, "--noise-level-range", 0.4, 0.6, "--output", tmp_path / "run")
    trained, validated = torch.cat(seen[:2]), torch.cat(seen[2:])
    assert 0.4 <= trained.min() < 0.45 and 0.55 < trained.max() <= 0.6
    assert validated.min() < 0.3 and validated.max() > 0.7  # as of any other training
    assert read_json(tmp_path / "run" / "stage.json")["settings"]["noise_level_range"] == [0.4, 0.6]
    capsys.readouterr()
    for wrong in (["0.6", "0.4"], ["0.5", "0.5"], ["-0.1", "1"], ["0", "1.1"], ["nan", "1"]):
        with pytest.raises(SystemExit):
            script.make_parser().read([*map(str, diffusion_argv), "--output", "x", "--noise-level-range", *wrong])
        message = "is out of range: it must be LOW HIGH with 0 <= LOW < HIGH <= 1\n"
        assert (said := capsys.readouterr().err).startswith("error: --noise-level-range=") and said.endswith(message)


def test_a_denoiser_part_of_whose_input_goes_into_the_tile(tmp_path, run_main, diffusion_argv, capsys):
    steps = ["--max-train-steps", 60, "--validation-steps", 60, "--learning-rate", 5e-3]
    argv = [*diffusion_argv, *steps, "--prediction-type", "sample"]
    for name, options in {"alone": [], "skip": ["--skip-noise", "0.25"]}.items():
        run_main(script, *argv, *options, "--output", tmp_path / name)
    settings = read_json(tmp_path / "skip" / "stage.json")["settings"]
    assert settings["skip_noise"] == 0.25
    assert "skip_noise" not in read_json(tmp_path / "alone" / "stage.json")["settings"]
    # Alone, it can hardly pass on what there is next to no noise on.
    validation = load_tiles(diffusion_argv[1]).split("validation")
    losses = {}
    for name in ("alone", "skip"):
        losses[name] = denoising_losses(load_pipeline(tmp_path / name), validation)[:, 0].mean()
    assert losses["skip"] < 1.2 < losses["alone"] / 2
    # What travels with the pipeline makes the same of it.
    shipped = DiffusionPipeline.from_pretrained(tmp_path / "skip", trust_remote_code=True)
    latents = [
        pipeline([0, 1], generator=torch.Generator().manual_seed(0), output_type="latent").images
        for pipeline in (shipped, load_pipeline(tmp_path / "skip"))
    ]
    assert torch.equal(*latents) and latents[0].std() < 2
    message = r"has the skip_noise 0\.25, and here it is 0\.0: give the one that it has"
    with pytest.raises(InputError, match=message):
        run_main(script, *argv, "--init-from", tmp_path / "skip", "--output", tmp_path / "other")
    with pytest.raises(InputError, match=r"has the skip_noise 0\.0, and here it is 0\.5"):
        run_main(script, *argv, "--skip-noise", 0.5, "--init-from", tmp_path / "alone", "--output", tmp_path / "other")
    with pytest.raises(SystemExit):
        run_main(script, *diffusion_argv, "--skip-noise", 0.25, "--output", tmp_path / "other")
    assert (
        "--skip-noise=0.25 is out of range: with --prediction-type flow_prediction it must be 0"
        in capsys.readouterr().err
    )


def test_who_aligns_is_told_what_fits(tmp_path, run_main, diffusion_argv, tiny_teacher, capsys):
    argv = [*diffusion_argv, "--max-train-steps", 1, "--output", tmp_path / "o", "--align"]
    with pytest.raises(InputError, match="holds no finished classifier: run train_classifier first"):
        run_main(script, *argv, tmp_path)
    with pytest.raises(SystemExit):
        run_main(script, *argv, tiny_teacher, "--dp-epsilon", 1)
    assert "with --dp-epsilon it must be left out, since its features" in capsys.readouterr().err
    other = shutil.copytree(tiny_teacher, tmp_path / "other")
    Classifier("convnet", image_size=32, class_names=["0", "1"], width=4).save_pretrained(other)
    with pytest.raises(
        InputError, match=r"the tiles are 16 px, but the classifier of align is for 32 px: give one that"
    ):
        run_main(script, *argv, other)
    (other / "config.json").write_text("{}")
    with pytest.raises(InputError, match="holds no classifier"):
        run_main(script, *argv, other)
    assert not (tmp_path / "o").exists()
    # This teacher's record does not say which tiles it was trained on.
    run_main(script, *argv, tiny_teacher, "--audit-share", 0.2)
    assert "must not have had the tiles that are held out here for the audit" in capsys.readouterr().err


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
    with pytest.raises(InputError, match=r" after step \d: lower learning_rate"):
        run_main(script, *argv, "--output", tmp_path)
    assert not (tmp_path / "model_index.json").exists()


@pytest.mark.parametrize("symmetries", [True, False])
def test_tiles_are_turned_unless_told_otherwise(tmp_path, run_main, diffusion_argv, tiny_npz, monkeypatch, symmetries):
    shown = []
    encode = diffusion_training.normalised_latents
    monkeypatch.setattr(
        diffusion_training, "normalised_latents", lambda vae, x: shown.append(x.clone()) or encode(vae, x)
    )
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

    monkeypatch.setattr(diffusion_training, "draw_step", draw_nothing)
    monkeypatch.setattr(diffusion_training, "draw_symmetries", lambda n, _: torch.zeros(n, dtype=torch.int64))
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


@pytest.mark.parametrize(("options", "chosen"), [({}, 0.01), ({"optimizer": "muon"}, 0.3)])
def test_weight_decay_goes_by_the_optimizer(options, chosen):
    """Under Muon nothing else bounds the weights."""
    paths = {"data": "phantom", "autoencoder": "ae", "output": "out"}
    assert script.TrainDiffusionConfig(**paths, **options).settings()["weight_decay"] == chosen
    assert script.TrainDiffusionConfig(**paths, **options, weight_decay=0.0).settings()["weight_decay"] == 0.0


def test_finished_folder_is_left_alone(tiny_pipeline, run_main, diffusion_argv, capsys, monkeypatch):
    before = {path: path.stat().st_mtime_ns for path in tiny_pipeline.rglob("*")}
    monkeypatch.setattr("histodistill.training.models.denoiser.build_denoiser", None)
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
        (["--channels", "0"], "--channels=0 is out of range: each must be at least 1"),
        (["--layers-per-block", "0"], "--layers-per-block=0 is out of range: it must be at least 1"),
        (["--attention-levels", "-1"], "--attention-levels=-1 is out of range: it must be at least 0"),
        (["--dropout", "1"], "--dropout=1.0 is out of range: it must be at least 0 and below 1"),
        (["--class-dropout", "-0.1"], "--class-dropout=-0.1 is out of range: it must be at least 0 and below 1"),
        (["--ema-decay", "1"], "--ema-decay=1.0 is out of range: it must be at least 0 and below 1"),
        (
            ["--autoencoder", "/no/such"],
            "/no/such holds no finished autoencoder: run train_autoencoder first, with --auto",
        ),
        (["--image-size", "32"], "the tiles are 32 px, but the autoencoder is for 16 px: give --image-size 16"),
        (["--channels", *["8"] * 5], "latents of 8×8 cannot be halved 4 times: give fewer --channels"),
    ],
)
def test_bad_input_ends_with_one_sentence(tmp_path, diffusion_argv, argv, message, capsys, fresh_accelerate):
    output = tmp_path / "output"
    with pytest.raises(SystemExit) as error:
        run_script(script.make_parser, script.run, [*diffusion_argv, "--output", str(output), *argv])
    assert error.value.code == 2
    captured = without_notes(capsys.readouterr().err)
    assert captured.startswith(f"error: {message}")
    assert captured.count("\n") == 1
    assert not output.exists()


def test_autoencoder_of_an_earlier_version_is_refused(tmp_path, tiny_autoencoder, diffusion_argv, capsys):
    folder = tmp_path / "autoencoder"
    shutil.copytree(tiny_autoencoder, folder)
    record = read_json(folder / "stage.json")
    del record["image_size"]
    (folder / "stage.json").write_text(json.dumps(record))
    with pytest.raises(SystemExit) as ended:
        run_script(
            script.make_parser, script.run,
            [*diffusion_argv, "--autoencoder", str(folder), "--output", str(tmp_path / "o"), "--max-train-steps", "1"],
        )  # fmt: skip
    assert ended.value.code == 2
    sentence = "holds an autoencoder of an earlier version: train one anew, in another folder"
    assert without_notes(capsys.readouterr().err) == f"error: {folder} {sentence}\n"
    assert not (tmp_path / "o").exists()


@pytest.mark.launch
def test_two_processes_train_the_same_denoiser(tmp_path, launch, run_main, diffusion_argv):
    # So many views that latents are kept, which each of the two runs encodes for itself.
    argv = [*diffusion_argv, "--max-train-steps", 3, "--batch-size", 320, "--validation-steps", 1]
    two = ["--output", tmp_path / "two", "--cache-dir", tmp_path / "cache-of-two"]
    finished = launch(2, "histodistill.training.train_diffusion", *argv, *two)
    assert finished.returncode == 0, finished.stderr[-3000:]
    assert json.loads((tmp_path / "two" / "stage.json").read_text())["num_processes"] == 2
    run_main(script, *argv, "--output", tmp_path / "one", "--cache-dir", tmp_path / "cache-of-one")
    latents = [list((tmp_path / f"cache-of-{name}" / "latents").glob("*/latents.npy")) for name in ("one", "two")]
    assert latents[0][0].parent.name == latents[1][0].parent.name
    assert latents[0][0].read_bytes() == latents[1][0].read_bytes()
    assert_same_losses(tmp_path / "one", tmp_path / "two")
    # The weights of the last step, which have moved further than their average.
    one, two = (
        load_file(tmp_path / name / "checkpoints" / "checkpoint-3" / "unet.safetensors") for name in ("one", "two")
    )
    assert one.keys() == two.keys()
    for name in one:
        torch.testing.assert_close(two[name], one[name], atol=1e-4, rtol=0, msg=name)


@pytest.mark.launch
def test_two_processes_go_on_from_the_same_checkpoint(tmp_path, launch, run_main, diffusion_argv):
    argv = [*diffusion_argv, "--max-train-steps", 6, "--validation-steps", 3]
    run_main(script, *argv, "--checkpointing-steps", 4, "--output", tmp_path / "one")
    two = tmp_path / "two"
    shutil.copytree(tmp_path / "one" / "checkpoints" / "checkpoint-4", two / "checkpoints" / "checkpoint-4")
    shutil.copytree(two / "checkpoints" / "checkpoint-4", two / "checkpoints" / "checkpoint-5")
    (two / "checkpoints" / "checkpoint-5" / "unet.safetensors").write_bytes(b"")
    finished = launch(
        2, "histodistill.training.train_diffusion", *argv, "--checkpointing-steps", 1, "--resume", "latest",
        "--output", two,
    )  # fmt: skip
    assert finished.returncode == 0, finished.stderr[-3000:]
    assert "checkpoint-5 is damaged" in finished.stderr and "goes on from step 4" in finished.stderr
    one, two = (load_file(tmp_path / n / "checkpoints" / "checkpoint-6" / "unet.safetensors") for n in ("one", "two"))
    for name in one:
        torch.testing.assert_close(two[name], one[name], atol=1e-4, rtol=0, msg=name)
