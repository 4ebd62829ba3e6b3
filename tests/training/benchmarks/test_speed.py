from __future__ import annotations

import contextlib
import copy
import io
import json
import shutil
from statistics import median

import numpy as np
import pytest
import torch
from diffusers import AutoencoderDC, DiffusionPipeline, FlowMatchEulerDiscreteScheduler
from sentences import without_notes

from histodistill.pipelines import HistologyPipeline
from histodistill.training import train_diffusion
from histodistill.training.benchmarks import diffusers_style, peers
from histodistill.training.benchmarks import speed as script
from histodistill.training.benchmarks.sampling import Sampler, check_sampling, make_samplers, sample
from histodistill.training.benchmarks.training_speed import require_same_model, training_config
from histodistill.training.data.image_dataset import read_image_dataset
from histodistill.training.data.phantom import phantom_source
from histodistill.training.data.pixels import to_model_input
from histodistill.training.data.tiles import Tiles
from histodistill.training.engine.accelerator import make_accelerator
from histodistill.training.engine.pool import plan_pool
from histodistill.training.models.autoencoder import build_autoencoder
from histodistill.training.models.denoiser import build_denoiser, make_scheduler
from histodistill.training.models.denoiser_output import DATA
from histodistill.training.running.errors import InputError
from histodistill.training.running.files import read_json, write_json
from histodistill.training.running.options import run_script, to_argv
from histodistill.training.running.stages import Stage


NUM_CLASSES = 3
OUR_NAMES = [f"histodistill, {steps} steps" for steps in (2, 8, 12, 16, 25)]
PEER_NAMES = ["DiTPipeline, Euler, 50 steps", "DiTPipeline, our scheduler, 50 steps"]


@pytest.fixture
def autoencoder() -> AutoencoderDC:
    """For 16-pixel tiles; its latents have a scale that cannot be overlooked."""
    torch.manual_seed(0)
    autoencoder = build_autoencoder(16, [8, 8], latent_channels=2, layers_per_block=1)
    autoencoder.register_to_config(scaling_factor=0.25)
    return autoencoder.eval()


@pytest.fixture
def denoiser():
    torch.manual_seed(1)
    # Not 8 channels: with one channel in a group, the group norms take the class away.
    return build_denoiser(8, 2, NUM_CLASSES, [12], layers_per_block=1, attention_levels=1)


@pytest.fixture
def tiles() -> Tiles:
    """20 phantom tiles of 16 pixels, labelled anew with three classes."""
    images = phantom_source(image_size=16, sizes={"train": 4, "validation": 1, "test": 1}).split("train").images
    return Tiles(images, np.arange(20) % NUM_CLASSES)


# Sampling.


@pytest.mark.parametrize("guidance_scale", [1.0, 2.5])
@pytest.mark.parametrize(
    ("scheduler", "skip_noise", "their_scheduler"),
    [
        (make_scheduler(), 0.0, make_scheduler()),
        (FlowMatchEulerDiscreteScheduler(), 0.0, FlowMatchEulerDiscreteScheduler()),
        # A denoiser that gives the data, for a pipeline that takes the velocity.
        (make_scheduler(DATA), 0.25, make_scheduler()),
        (make_scheduler(DATA), 0.0, make_scheduler()),
    ],
    ids=["ours", "Euler", "data", "data with a skip connection"],
)
def test_dit_pipeline_makes_the_images_of_our_pipeline(
    autoencoder, denoiser, scheduler, skip_noise, their_scheduler, guidance_scale
):
    if scheduler.config.get("prediction_type") == DATA:
        scheduler = type(scheduler).from_config(scheduler.config, flow_shift=1.0)
    ours = HistologyPipeline(autoencoder, denoiser, scheduler, skip_noise=skip_noise)
    theirs = diffusers_style.make_dit_pipeline(ours, their_scheduler)
    assert theirs.vae is autoencoder

    def images(pipeline, guidance_scale=guidance_scale):
        pipeline.set_progress_bar_config(disable=True)
        seeds = [torch.Generator().manual_seed(i) for i in range(4)]
        options = {"num_inference_steps": 6, "guidance_scale": guidance_scale, "output_type": "np"}
        return pipeline([0, 1, 2, 1], generator=seeds, **options).images

    expected = images(ours)
    # Timesteps are whole numbers, so that the data, from which a velocity is made, is of a level that is a little off.
    tolerance = 0.01 if scheduler.config.get("prediction_type") == DATA else 1e-5
    np.testing.assert_allclose(images(theirs), expected, atol=tolerance)
    # The scale and the guidance do matter for these models, and the images are not all black or white.
    assert np.abs(images(ours, 1.7) - expected).max() > 1e-3
    autoencoder.register_to_config(scaling_factor=1.0)
    assert np.abs(images(theirs) - expected).max() > 0.01
    assert 0.1 < expected.mean() < 0.9


def test_our_sampler_makes_the_images_of_the_pool_again(tiny_run, fresh_accelerate):
    images, columns, _ = read_image_dataset(tiny_run.folder / "pool")
    settings = read_json(tiny_run.folder / "pool" / "stage.json")["settings"]
    pipeline = DiffusionPipeline.from_pretrained(tiny_run.folder / "pipeline", trust_remote_code=True)
    sampler = Sampler("ours", pipeline, settings["num_inference_steps"], settings["mixed_precision"])
    labels, seeds = plan_pool(5, 2, seed=0)
    np.testing.assert_array_equal(columns["label"][:10], labels)
    accelerator = make_accelerator(settings["mixed_precision"])
    # In chunks of 4, 4 and 2, which may round differently.
    made, speed = sample(sampler, labels, seeds, settings["guidance_scale"], 4, accelerator)
    assert (made.dtype, made.shape) == (np.uint8, (10, 16, 16, 3))
    assert np.abs(made.astype(int) - images[:10]).max() <= 1
    assert speed > 0


def test_only_our_samplers_have_the_guidance_interval_of_the_pool(autoencoder, denoiser):
    pipeline = HistologyPipeline(autoencoder, denoiser, make_scheduler())
    pool = {"num_inference_steps": 10, "mixed_precision": "bf16", "guidance_interval": [0.2, 0.7]}
    samplers = make_samplers(pipeline, pool)
    ours = [sampler for sampler in samplers if sampler.pipeline is pipeline]
    assert [sampler.num_inference_steps for sampler in ours] == [8, 10, 12, 16, 25]
    assert {tuple(sampler.options.items()) for sampler in ours} == {(("guidance_interval", (0.2, 0.7)),)}
    peers_samplers = [sampler for sampler in samplers if sampler.pipeline is not pipeline]
    assert [sampler.options for sampler in peers_samplers] == [{}, {}]
    assert {sampler.mixed_precision for sampler in peers_samplers} == {"no"}


@pytest.mark.parametrize(
    ("num_images", "validation", "guidance_scale", "message"),
    [
        (9, 2, 1.5, "num_images=9 and 10 validation tiles in 5 classes leave 5 of each to compare"),
        (100, 1, 1.5, "num_images=100 and 5 validation tiles in 5 classes leave 5 of each to compare"),
        (100, 2, 0.5, "the pool has guidance_scale=0.5, and DiTPipeline guides only above 1"),
    ],
)
def test_what_cannot_be_compared_is_refused(num_images, validation, guidance_scale, message):
    source = phantom_source(image_size=16, sizes={"train": 2, "validation": validation, "test": 1})
    with pytest.raises(InputError) as error:
        check_sampling(source, num_images, guidance_scale)
    assert str(error.value).startswith(message)
    assert check_sampling(phantom_source(image_size=16, sizes={"train": 2, "validation": 2, "test": 1}), 14, 1.0) == 2


# The training loop of the peers.


def test_dataset_gives_each_tile_mirrored_or_not(tiles):
    dataset = diffusers_style.make_dataset(tiles, ["a", "b", "c"])
    assert dataset.features["label"].names == ["a", "b", "c"]
    mirrored = 0
    for _ in range(3):
        batch = dataset[:20]
        assert batch["label"] == tiles.labels.tolist()
        for pixels, expected in zip(batch["pixel_values"], to_model_input(tiles.images), strict=True):
            assert (pixels.dtype, pixels.shape) == (torch.float32, (3, 16, 16))
            if not torch.allclose(pixels, expected, atol=1e-6):
                torch.testing.assert_close(pixels, expected.flip(2), atol=1e-6, rtol=0)
                mirrored += 1
    assert 10 < mirrored < 50  # of 60; outside with a chance of about 1 in 10 million


@pytest.mark.parametrize("mixed_precision", ["no", "bf16"])
def test_peer_trains_and_counts_its_images(autoencoder, denoiser, tiles, mixed_precision, fresh_accelerate):
    before = copy.deepcopy(denoiser.state_dict())
    result = diffusers_style.train_peer(
        denoiser, autoencoder, diffusers_style.make_dataset(tiles, ["a", "b", "c"]), batch_size=8, steps=4,
        warmup_steps=1, mixed_precision=mixed_precision,
    )  # fmt: skip
    # Epochs of 8 + 8 + 4 tiles; the first 8 are warm-up.
    assert result["num_images"] == 8 + 4 + 8 + 8
    assert result["images_per_second"] == pytest.approx(28 / result["seconds"])
    assert result["images_per_second_with_warmup"] > 0
    assert len(result["loss"]) == 5
    assert np.isfinite(result["loss"]).all()
    assert result["num_parameters"] == sum(values.numel() for values in before.values())
    moved = [name for name, values in denoiser.state_dict().items() if not torch.equal(values, before[name])]
    assert len(moved) > len(before) / 2
    assert {values.dtype for values in denoiser.state_dict().values()} == {torch.float32}
    assert next(autoencoder.parameters()).dtype == (torch.float32 if mixed_precision == "no" else torch.bfloat16)


def test_peer_learns_the_velocity_between_normalised_latents_and_noise(autoencoder, denoiser, tiles, fresh_accelerate):
    # Where nothing is predicted, the loss is the mean square of noise - latents: 1 and that of the latents.
    autoencoder.register_to_config(scaling_factor=4.0)
    with torch.no_grad():
        for parameter in denoiser.conv_out.parameters():
            parameter.zero_()
        expected = 1 + 16 * autoencoder.encode(to_model_input(tiles.images)).latent.square().mean().item()
    torch.manual_seed(0)
    dataset = diffusers_style.make_dataset(tiles, ["a", "b", "c"])
    # The learning rate of the first step is 0.
    [loss] = diffusers_style.train_peer(denoiser, autoencoder, dataset, batch_size=20, steps=1)["loss"]
    assert loss == pytest.approx(expected, rel=0.05)


# What the two trainings share.


def test_our_script_gets_the_settings_of_the_run(tmp_path, tiny_run):
    settings = read_json(tiny_run.folder / "pipeline" / "stage.json")["settings"]
    config = training_config(
        settings, tiny_run.folder, "phantom", tmp_path, max_train_steps=7, batch_size=3, image_size=16
    )
    assert train_diffusion.make_parser().read(to_argv(config)) == config
    assert (config.data, config.output, config.autoencoder) == ("phantom", tmp_path, tiny_run.folder / "autoencoder")
    assert (config.max_train_steps, config.validation_steps, config.checkpointing_steps) == (7, 7, 7)
    assert (config.batch_size, config.image_size, config.resume) == (3, 16, None)
    assert list(config.channels) == settings["channels"]
    for name in ("layers_per_block", "attention_levels", "dropout", "ema_decay", "mixed_precision"):
        assert getattr(config, name) == settings[name], name


def test_another_architecture_is_refused(tmp_path, denoiser):
    denoiser.save_pretrained(tmp_path / "ours")
    shutil.copytree(tmp_path / "ours", tmp_path / "same")
    wider = build_denoiser(8, 2, NUM_CLASSES, [24], layers_per_block=1, attention_levels=1)
    wider.save_pretrained(tmp_path / "wider")
    require_same_model(tmp_path / "ours", tmp_path / "same")
    with pytest.raises(InputError, match=r"wider does not hold the denoiser that .*: train the pipeline anew$"):
        require_same_model(tmp_path / "ours", tmp_path / "wider")


# The command.


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--steps", "0"], "--steps=0 is out of range: it must be at least 1"),
        (["--batch-size", "-1"], "--batch-size=-1 is out of range: it must be at least 1"),
        (["--num-images", "0"], "--num-images=0 is out of range: it must be at least 1"),
        (["--repeats", "0"], "--repeats=0 is out of range: it must be at least 1"),
        (["--num-workers", "0", "-2"], "--num-workers=0 -2 is out of range: each must be at least 0"),
        (["--num-workers", "1", "1"], "--num-workers=1 1 is out of range: each may be named once"),
        (["--output", "."], "--output=. is a folder: give a file, such as benchmark.json"),
    ],
)
def test_bad_options(argv, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        script.make_parser().read(["run", "--data", "phantom", *argv])
    assert stopped.value.code == 2
    assert capsys.readouterr().err == f"error: {message}\n"


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--steps", "0"], "--steps=0 is out of range: it must be at least 1"),
        (["--warmup-steps", "-1"], "--warmup-steps=-1 is out of range: it must be at least 0"),
        (["--num-workers", "-1"], "--num-workers=-1 is out of range: it must be at least 0"),
    ],
)
def test_bad_options_of_a_peer(argv, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        peers.make_parser().read(["run", "--data", "phantom", "--output", "peer.json", *argv])
    assert stopped.value.code == 2
    assert capsys.readouterr().err == f"error: {message}\n"


def test_other_tiles_end_it_with_one_sentence(tiny_run, tiny_npz, tmp_path, capsys):
    argv = [str(tiny_run.folder), "--data", str(tiny_npz), "--output", str(tmp_path / "benchmark.json")]
    with pytest.raises(SystemExit) as stopped:
        run_script(script.make_parser, script.run, argv)
    assert stopped.value.code == 2
    assert without_notes(capsys.readouterr().err) == (
        f"error: --data={tiny_npz} does not hold the tiles that {tiny_run.folder / 'pipeline'} was trained on: "
        "give the same source, with the same --image-size\n"
    )


def test_an_unfinished_run_ends_it_with_one_sentence(tmp_path, capsys):
    for name, stage in (("pipeline", "diffusion"), ("pool", "pool"), ("autoencoder", "autoencoder")):
        Stage(tmp_path / name, {"stage": stage}).finish()
    with pytest.raises(SystemExit) as stopped:
        run_script(script.make_parser, script.run, [str(tmp_path), "--data", "phantom"])
    assert stopped.value.code == 2
    assert capsys.readouterr().err == (
        f"error: {tmp_path / 'teacher'} holds no finished teacher: run train_classifier first\n"
    )


@pytest.fixture(scope="module")
def measured(tiny_run, tmp_path_factory, run_main):
    """The JSON file and the output of a whole benchmark, with as little of everything as there can be."""
    folder, output = tmp_path_factory.mktemp("benchmark"), io.StringIO()
    file, run = folder / "results" / "benchmark.json", folder / "run"
    shutil.copytree(tiny_run.folder, run, ignore=shutil.ignore_patterns("checkpoints"))
    # As if its models had been trained in the default precision.
    record = read_json(run / "pipeline" / "stage.json")
    record["settings"]["mixed_precision"] = "bf16"
    write_json(run / "pipeline" / "stage.json", record)
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(output):
        patch.setenv("OMP_NUM_THREADS", "1")
        run_main(
            script, run, "--data", tiny_run.data, "--steps", 2, "--batch-size", 8,
            "--num-workers", 1, "--num-images", 12, "--repeats", 1, "--output", file,
        )  # fmt: skip
    return file, output.getvalue()


def test_results_tell_the_machine_but_not_whose(measured, tiny_run):
    file, _ = measured
    results = read_json(file)
    assert results.keys() == {"machine", "data", "repeats", "training", "sampling"}
    assert results["machine"].keys() == {"device", "cpu_count", "torch_threads", "versions"}
    assert results["machine"]["versions"]["torch"] == torch.__version__
    assert results["data"]["num_tiles"] == {"train": 55, "validation": 20, "test": 20, "held_out": 5}
    assert str(tiny_run.folder.parent.parent) not in file.read_text()
    assert str(file.parent.parent) not in file.read_text()
    assert [path.name for path in file.parent.iterdir()] == ["benchmark.json"]


def test_training_results(measured, tiny_run):
    training = read_json(measured[0])["training"]
    unet = HistologyPipeline.from_pretrained(tiny_run.folder / "pipeline", trust_remote_code=True).unet
    assert training["num_parameters"] == {"ours": unet.num_parameters(), "peer": unet.num_parameters()}
    assert (training["steps"], training["batch_size"], training["same_architecture"]) == (2, 8, True)
    assert training["histodistill"]["mixed_precision"] == "bf16"
    assert [(row["mixed_precision"], row["num_workers"]) for row in training["peers"]] == [("no", 1), ("bf16", 1)]
    for row in (training["histodistill"], *training["peers"]):
        assert row["images_per_second"] == median(row["images_per_second_values"]) > 0
        assert len(row["images_per_second_values"]) == 1
    for row in training["peers"]:
        ours = training["histodistill"]["images_per_second"]
        assert row["speedup"] == pytest.approx(ours / row["images_per_second"])


def test_sampling_results(measured):
    sampling = read_json(measured[0])["sampling"]
    # 12 images are 2 of each of 5 classes, and 4 validation tiles are there.
    assert (sampling["num_images"], sampling["num_images_compared"]) == (10, 10)
    assert (sampling["guidance_scale"], sampling["chunk_size"]) == (1.5, 20)
    rows = {row["name"]: row for row in sampling["samplers"]}
    assert list(rows) == OUR_NAMES + PEER_NAMES
    assert [name for name, row in rows.items() if row["is_pool_setting"]] == OUR_NAMES[:1]
    assert [rows[name]["scheduler"] for name in (OUR_NAMES[0], *PEER_NAMES)] == [
        "DPMSolverMultistepScheduler", "FlowMatchEulerDiscreteScheduler", "DPMSolverMultistepScheduler",
    ]  # fmt: skip
    for row in rows.values():
        assert row["images_per_second"] == median(row["images_per_second_values"]) > 0
        assert row["frechet_distance"] > 0
        assert 0 <= row["coverage"] <= 1
        for peer in PEER_NAMES:
            expected = row["images_per_second"] / rows[peer]["images_per_second"]
            assert row["speedup"][peer] == pytest.approx(expected)
    assert {rows[name]["mixed_precision"] for name in PEER_NAMES} == {"no"}


def test_table_has_a_row_for_each_speed(measured):
    file, output = measured
    results = read_json(file)
    assert json.loads(json.dumps(results, allow_nan=False)) == results
    lines = output.splitlines()
    rows = [results["training"]["histodistill"], *results["training"]["peers"], *results["sampling"]["samplers"]]
    names = ["histodistill, bf16", *(row["name"] for row in rows[1:])]
    for name, row in zip(names, rows, strict=True):
        [line] = [line for line in lines if line.removeprefix("[1] ").removeprefix("[2] ").startswith(name)]
        assert f" {row['images_per_second']:.1f}" in line
    [first] = [line for line in lines if line.startswith("[1] ")]
    assert first.split()[-2] == "1.00×"
    assert lines[-1].startswith("benchmark: saved to ")
