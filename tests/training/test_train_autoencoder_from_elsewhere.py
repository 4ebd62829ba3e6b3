"""Autoencoders from elsewhere in `train_autoencoder`: taken as they are, trained further, or begun from."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderDC, AutoencoderKL, AutoencoderTiny, DiffusionPipeline
from safetensors.torch import load_file, save_file

from histodistill.hub_cards.contents import check_pipeline
from histodistill.hub_cards.documents import read_config
from histodistill.hub_cards.errors import ContentError
from histodistill.hub_cards.part_files import read_part
from histodistill.hub_cards.weights import model_arrays
from histodistill.pipelines import HistologyPipeline
from histodistill.training import generate, train_diffusion
from histodistill.training import train_autoencoder as script
from histodistill.training.data.pixels import to_model_input
from histodistill.training.data.sources import load_tiles
from histodistill.training.models.denoiser import build_denoiser, make_scheduler
from histodistill.training.models.latents import normalised_latents
from histodistill.training.models.loading import load_autoencoder, load_pipeline
from histodistill.training.models.named_autoencoders import check_fits, load_pretrained
from histodistill.training.running.errors import InputError
from histodistill.training.running.files import read_json


WEIGHTS = "diffusion_pytorch_model.safetensors"
TRAINED = ["--mixed-precision", "no"]


def make_kl(**options) -> AutoencoderKL:
    return AutoencoderKL(
        **{
            "down_block_types": ["DownEncoderBlock2D"] * 2,
            "up_block_types": ["UpDecoderBlock2D"] * 2,
            "block_out_channels": [8, 8],
            "norm_num_groups": 4,
            "latent_channels": 2,
            "latents_mean": [1.0, 2.0],
            **options,
        }
    )


def make_tiny(**options) -> AutoencoderTiny:
    return AutoencoderTiny(
        **{
            "encoder_block_out_channels": [8, 8],
            "decoder_block_out_channels": [8, 8],
            "num_encoder_blocks": [1, 1],
            "num_decoder_blocks": [1, 1],
            "latent_channels": 2,
            **options,
        }
    )


def make_dc(**options) -> AutoencoderDC:
    """One with attention, which ours do not have."""
    return AutoencoderDC(
        **{
            "latent_channels": 2,
            "attention_head_dim": 4,
            **{f"{part}_block_out_channels": [8, 8] for part in ("encoder", "decoder")},
            **{f"{part}_layers_per_block": [1, 1] for part in ("encoder", "decoder")},
            **{f"{part}_block_types": ["ResBlock", "EfficientViTBlock"] for part in ("encoder", "decoder")},
            **{f"{part}_qkv_multiscales": [[], [5]] for part in ("encoder", "decoder")},
            **options,
        }
    )


MAKERS = {"AutoencoderKL": make_kl, "AutoencoderTiny": make_tiny, "AutoencoderDC": make_dc}


@pytest.fixture(params=list(MAKERS))
def elsewhere(request, tmp_path) -> Path:
    """The folder of a tiny autoencoder of each kind, with random weights."""
    torch.manual_seed(0)
    MAKERS[request.param]().save_pretrained(tmp_path / "elsewhere")
    return tmp_path / "elsewhere"


@pytest.fixture
def argv(tiny_npz) -> list[str]:
    return ["--data", str(tiny_npz), "--batch-size", "8", *TRAINED]


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / WEIGHTS)


# Taken as it is.


def test_taken_as_it_is(elsewhere, tmp_path, run_main, argv, tiny_npz, capsys):
    out = tmp_path / "autoencoder"
    run_main(script, *argv, "--autoencoder", elsewhere, "--output", out)
    before, after = weights_of(elsewhere), weights_of(out)
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    assert not (out / "checkpoints").exists() and read_json(out / "history.json") == []

    autoencoder, train = load_autoencoder(out), load_tiles(tiny_npz).split("train").images
    with torch.no_grad():
        latents = normalised_latents(autoencoder, to_model_input(train))
    assert latents.square().mean().item() == pytest.approx(1, abs=1e-4)
    if not isinstance(autoencoder, AutoencoderDC):
        assert latents.mean().item() == pytest.approx(0, abs=1e-4)
    assert getattr(autoencoder.config, "latents_mean", None) is None

    record = read_json(out / "stage.json")
    assert record["complete"] and record["image_size"] == 16
    assert record["settings"].keys() == {
        "stage", "data", "autoencoder", "image_size", "mixed_precision", "validation_tiles",
    }  # fmt: skip
    assert record["pretrained"] == {"class_name": type(autoencoder).__name__, "is_taken": True}
    assert record["scaling_factor"] == autoencoder.config.scaling_factor
    assert -1 <= record["validation_ssim"] <= 1
    assert str(elsewhere) not in (out / "stage.json").read_text() + (out / "config.json").read_text()
    line = capsys.readouterr().out
    assert "autoencoder: validation PSNR" in line and " dB, SSIM " in line
    # The same weights again are the same stage; others are another.
    run_main(script, *argv, "--autoencoder", shutil.copytree(elsewhere, tmp_path / "again"), "--output", out)
    assert "already finished" in capsys.readouterr().out
    torch.manual_seed(1)
    MAKERS[record["pretrained"]["class_name"]]().save_pretrained(tmp_path / "other")
    with pytest.raises(InputError, match=r"was made with other settings \(autoencoder was"):
        run_main(script, *argv, "--autoencoder", tmp_path / "other", "--output", out)


def test_from_an_autoencoder_elsewhere_to_images(elsewhere, tmp_path, run_main, argv):
    autoencoder, pipeline = tmp_path / "autoencoder", tmp_path / "pipeline"
    run_main(script, *argv, "--autoencoder", elsewhere, "--output", autoencoder)
    run_main(
        train_diffusion, *argv, "--autoencoder", autoencoder, "--channels", 8, "--layers-per-block", 1,
        "--max-train-steps", 2, "--validation-steps", 2, "--output", pipeline,
    )  # fmt: skip
    run_main(
        generate, "--pipeline", pipeline, "--per-class", 1, "--num-inference-steps", 1, "--output", tmp_path / "pool"
    )
    assert read_json(tmp_path / "pool" / "stage.json")["num_images"] == 5
    # It may be published, as it is.
    files = read_part(pipeline)
    content = check_pipeline(pipeline, files, files["pipeline.py"])
    assert content.files == {name: data for name, data in files.items() if name != "stage.json"}
    assert (content.image_size, content.components["vae"]) == (16, type(load_pipeline(pipeline).vae).__name__)
    shutil.copytree(pipeline, tmp_path / "published", ignore=shutil.ignore_patterns("checkpoints", "progress"))
    loaded = DiffusionPipeline.from_pretrained(tmp_path / "published", trust_remote_code=True)
    assert type(loaded.vae).__name__ == read_json(elsewhere / "config.json")["_class_name"]
    assert loaded(class_labels=[0], num_inference_steps=1).images[0].size == (16, 16)


def test_under_differential_privacy_it_is_measured_on_validation_tiles(tmp_path, run_main, argv, tiny_npz):
    make_tiny().save_pretrained(tmp_path / "elsewhere")
    out = tmp_path / "autoencoder"
    run_main(script, *argv, "--autoencoder", tmp_path / "elsewhere", "--dp-epsilon", 4, "--output", out)
    images = to_model_input(load_tiles(tiny_npz).split("validation").images)
    with torch.no_grad():
        latents = normalised_latents(load_autoencoder(out), images)
    assert latents.square().mean().item() == pytest.approx(1, abs=1e-4)
    record = read_json(out / "stage.json")
    assert record["settings"]["measured_on"] == "validation" and "privacy" not in record


def test_train_diffusion_says_how_to_take_one(tmp_path, run_main, argv):
    make_kl().save_pretrained(tmp_path / "elsewhere")
    with pytest.raises(InputError, match="no finished autoencoder: run train_autoencoder first, with autoencoder"):
        run_main(train_diffusion, *argv, "--autoencoder", tmp_path / "elsewhere", "--output", tmp_path / "out")


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        ("AutoencoderKL", {"latents_mean": [0.1, 0.2]}),
        ("AutoencoderKL", {"shift_factor": None}),
        ("AutoencoderKL", {"act_fn": "/home/me"}),
        ("AutoencoderKL", {"sample_size": 10**9}),
        ("AutoencoderTiny", {"block_out_channels": [8, 8, "/home/me"]}),
        ("AutoencoderTiny", {"note": "/home/me"}),
        ("AutoencoderDC", {"encoder_block_types": ["/home/me"]}),
        ("AutoencoderDC", {"encoder_qkv_multiscales": [[], ["/home/me"]]}),
    ],
)
def test_what_a_published_config_cannot_say(kind, change, tmp_path):
    shift = {} if kind == "AutoencoderDC" else {"shift_factor": 0.5}
    model = MAKERS[kind](**({"latents_mean": None} if kind == "AutoencoderKL" else {}), **shift)
    model.save_pretrained(tmp_path)
    config = read_json(tmp_path / "config.json")
    known = read_config(json.dumps(config).encode(), type(model))
    assert known == config
    own = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    assert {name: spec.shape for name, spec in model_arrays(type(model), known).items()} == own
    with pytest.raises(ContentError):
        read_config(json.dumps(config | change).encode(), type(model))


# Trained further.


def test_all_weights_are_trained_further(elsewhere, tmp_path, run_main, argv):
    out = tmp_path / "autoencoder"
    options = ["--max-train-steps", 2, "--validation-steps", 1, "--learning-rate", 1e-3]
    run_main(script, *argv, "--autoencoder", elsewhere, "--finetune-autoencoder", *options, "--output", out)
    before, after = weights_of(elsewhere), weights_of(out)
    still = [name for name in before if torch.equal(before[name], after[name])]
    # A bias before a norm over it alone may have no gradient; AdamW moves all others.
    assert len(still) < 0.05 * len(before), still
    record = read_json(out / "stage.json")
    assert record["settings"]["finetune_autoencoder"] is True and "channels" not in record["settings"]
    assert record["pretrained"]["is_taken"] is False
    assert (out / "checkpoints" / "checkpoint-2").is_dir()
    history = read_json(out / "history.json")
    assert [entry["step"] for entry in history] == [1, 2]


@pytest.mark.parametrize("make", [make_kl, make_tiny])
def test_trained_further_with_differential_privacy(make, tmp_path, run_main, argv):
    pytest.importorskip("opacus")
    make().save_pretrained(tmp_path / "elsewhere")
    options = ["--autoencoder", tmp_path / "elsewhere", "--finetune-autoencoder", "--max-train-steps", 1]
    private = ["--dp-epsilon", 8, "--dp-views", 1, "--dp-public-init"]
    run_main(script, *argv, *options, *private, "--output", tmp_path / "out")
    record = read_json(tmp_path / "out" / "stage.json")
    assert record["privacy"]["epsilon"] <= 8 and record["settings"]["dp_public_init"] is True
    before, after = weights_of(tmp_path / "elsewhere"), weights_of(tmp_path / "out")
    assert any(not torch.equal(before[name], after[name]) for name in before)


def test_learning_rates():
    options = {"data": "phantom", "output": "out"}
    assert script.TrainAutoencoderConfig(**options).learning_rate == 2e-3
    further = script.TrainAutoencoderConfig(**options, autoencoder="a/b", finetune_autoencoder=True)
    assert further.learning_rate == 1e-4


# Begun from.


def test_a_new_one_begins_with_the_weights_that_fit(tmp_path, run_main, autoencoder_argv, tiny_autoencoder, capsys):
    argv = [*autoencoder_argv, "--max-train-steps", 1, "--validation-steps", 1]
    run_main(script, *argv, "--init-from", tiny_autoencoder, "--learning-rate", 1e-9, "--output", tmp_path / "same")
    before, after = weights_of(tiny_autoencoder), weights_of(tmp_path / "same")
    assert all(torch.allclose(before[name], after[name], atol=1e-7) for name in before)
    told = capsys.readouterr().err
    assert f"warm start: the autoencoder takes all of {len(before)} tensors (100 % of its weights)" in told
    record = read_json(tmp_path / "same" / "stage.json")
    assert len(record["settings"]["init_from"]) == 64
    assert str(tiny_autoencoder) not in (tmp_path / "same" / "stage.json").read_text()

    # With other channels of the latents, some parts are new.
    run_main(script, *argv, "--init-from", tiny_autoencoder, "--latent-channels", 3, "--output", tmp_path / "part")
    assert "makes " in capsys.readouterr().err


def test_what_cannot_be_begun_from(tmp_path, run_main, autoencoder_argv, tiny_autoencoder):
    make_kl().save_pretrained(tmp_path / "kl")
    argv = [*autoencoder_argv, "--max-train-steps", 1, "--output", tmp_path / "out", "--init-from"]
    with pytest.raises(InputError, match="is an AutoencoderKL, and new ones are AutoencoderDC"):
        run_main(script, *argv, tmp_path / "kl")
    with pytest.raises(InputError, match="fit this model: give channels 12 12, latent_channels 2"):
        run_main(script, *argv, tiny_autoencoder, "--channels", 8, 16, "--latent-channels", 5)
    assert not (tmp_path / "out").exists()


# Options.


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"finetune_autoencoder": True}, "finetune_autoencoder needs autoencoder"),
        ({"autoencoder": "a/b", "init_from": "a/b"}, "are two autoencoders to come from"),
        ({"autoencoder_name": "x"}, "autoencoder_name says nothing without autoencoder"),
        ({"autoencoder": "a/b", "autoencoder_name": "/home/me/vae"}, "autoencoder_name has other signs"),
        ({"autoencoder": "a/b", "autoencoder_license": "MIT License"}, "must be an identifier of the Hub"),
        ({"init_from": "a/b", "dp_epsilon": 1.0}, "init_from is not covered by dp_epsilon"),
        (
            {"autoencoder": "a/b", "finetune_autoencoder": True, "dp_epsilon": 1.0},
            "finetune_autoencoder is not covered by dp_epsilon",
        ),
    ],
)
def test_options_that_do_not_go_together(options, message):
    with pytest.raises(InputError, match=message):
        script.TrainAutoencoderConfig(data="phantom", output="out", **options)


def test_what_is_stated_is_in_the_record(tmp_path, run_main, argv):
    make_tiny().save_pretrained(tmp_path / "elsewhere")
    stated = ["--autoencoder-name", "madebyollin/taesd", "--autoencoder-license", "mit"]
    run_main(script, *argv, "--autoencoder", tmp_path / "elsewhere", *stated, "--output", tmp_path / "out")
    assert read_json(tmp_path / "out" / "stage.json")["pretrained"] == {
        "class_name": "AutoencoderTiny", "is_taken": True, "name": "madebyollin/taesd", "license": "mit",
    }  # fmt: skip


def test_a_teacher_tells_what_is_lost(tmp_path, run_main, argv, tiny_teacher, capsys, tiny_npz):
    make_tiny().save_pretrained(tmp_path / "elsewhere")
    options = ["--autoencoder", tmp_path / "elsewhere", "--teacher", tiny_teacher]
    run_main(script, *argv, *options, "--output", tmp_path / "out")
    record = read_json(tmp_path / "out" / "stage.json")
    assert 0 <= record["teacher_agreement"] <= 1
    assert f"the teacher says the same of {record['teacher_agreement']:.1%} of the tiles" in capsys.readouterr().out
    with pytest.raises(InputError, match=r"teacher .* is a classifier of other tiles"):
        run_main(script, *argv, *options, "--image-size", 8, "--output", tmp_path / "small")


# Where they lie, and how.


def halved(folder: Path) -> None:
    weights = {name: tensor.half() for name, tensor in weights_of(folder).items()}
    save_file(weights, folder / "diffusion_pytorch_model.fp16.safetensors")
    (folder / WEIGHTS).unlink()


def in_shards(folder: Path) -> None:
    model = load_autoencoder(folder)
    (folder / WEIGHTS).unlink()
    model.save_pretrained(folder, max_shard_size="10KB")
    assert not (folder / WEIGHTS).exists() and len(list(folder.glob("*-of-*.safetensors"))) > 1


def with_old_names(folder: Path) -> None:
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    weights = {}
    for name, tensor in weights_of(folder).items():
        for today, once in old.items():
            name = name.replace(f"attentions.0.{today}.", f"attentions.0.{once}.")
        weights[name] = tensor
    assert len(set(weights) - set(weights_of(folder))) == 16
    save_file(weights, folder / WEIGHTS)


@pytest.mark.parametrize("lay_down", [halved, in_shards, with_old_names])
def test_weights_as_others_leave_them(lay_down, tmp_path):
    model = make_kl()
    model.save_pretrained(tmp_path)
    lay_down(tmp_path)
    found = load_pretrained(tmp_path)
    assert not found.training
    tolerance = 1e-3 if lay_down is halved else 0
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(found.state_dict()[name], tensor, atol=tolerance, rtol=tolerance)


def test_a_pipeline_of_others_gives_its_vae(tmp_path):
    vae = make_kl()
    HistologyPipeline(vae, build_denoiser(8, 2, 2, [8], 1, 0, 0.0), make_scheduler()).save_pretrained(tmp_path)
    assert torch.equal(load_pretrained(tmp_path).quant_conv.weight, vae.quant_conv.weight)


def test_an_index_leads_nowhere_else(tmp_path):
    make_kl().save_pretrained(tmp_path / "vae")
    (tmp_path / "vae" / WEIGHTS).rename(tmp_path / "elsewhere.safetensors")
    index = {"weight_map": {"x": "../elsewhere.safetensors"}}
    (tmp_path / "vae" / f"{WEIGHTS}.index.json").write_text(json.dumps(index))
    with pytest.raises(InputError, match="is no file of weights"):
        load_pretrained(tmp_path / "vae")


def test_pickles_are_not_read(tmp_path):
    model = make_kl()
    model.save_pretrained(tmp_path)
    (tmp_path / WEIGHTS).unlink()
    torch.save(model.state_dict(), tmp_path / "diffusion_pytorch_model.bin")
    with pytest.raises(InputError, match="weights of other kinds are not read"):
        load_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("model", "size", "message"),
    [
        (make_kl(), 15, "takes tiles whose side is divisible by 2, and these have 15 px: give image_size 16"),
        (make_kl(in_channels=4), 16, "does not take RGB tiles of 16 px"),
        (make_kl(out_channels=1), 16, "makes latents 2×8×8 of tiles 3×16×16, and of these 1×16×16"),
        (make_tiny(upsampling_scaling_factor=4), 16, "and of these 3×32×32"),
    ],
)
def test_what_does_not_take_the_tiles(model, size, message):
    with pytest.raises(InputError, match=message):
        check_fits(model, size)
    check_fits(make_kl(), 16)


def test_a_folder_without_one(tmp_path):
    with pytest.raises(InputError, match="holds no AutoencoderDC, AutoencoderKL or AutoencoderTiny of diffusers"):
        load_pretrained(tmp_path)
    with pytest.raises(InputError, match="is no folder: give the folder of a diffusers autoencoder"):
        load_pretrained(tmp_path / "none")


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("below", ["", "vae"])
def test_of_the_hub_only_what_is_needed_is_fetched(below, half, tmp_path, monkeypatch):
    repo, cache = tmp_path / "repo", tmp_path / "cache"
    make_tiny().save_pretrained(repo / below)
    if half:
        halved(repo / below)
    for name in (
        "model_index.json",
        "pipeline.py",
        "unet/config.json",
        f"unet/{WEIGHTS}",
        "diffusion_pytorch_model.bin",
    ):
        (repo / name).parent.mkdir(exist_ok=True)
        (repo / name).write_text("{}")
    fetched = []

    def snapshot_download(repo_id, *, allow_patterns):
        assert repo_id == "user/vae"
        cache.mkdir(exist_ok=True)
        for pattern in allow_patterns:
            for file in repo.glob(pattern):
                place = cache / file.relative_to(repo)
                place.parent.mkdir(exist_ok=True)
                shutil.copy(file, place)
                fetched.append(file.relative_to(repo).as_posix())
        return str(cache)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    monkeypatch.chdir(tmp_path)
    assert isinstance(load_pretrained("user/vae"), AutoencoderTiny)
    weights = "diffusion_pytorch_model.fp16.safetensors" if half else WEIGHTS
    assert fetched == [f"{below}/config.json".lstrip("/"), f"{below}/{weights}".lstrip("/")]
