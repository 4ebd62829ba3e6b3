"""What a folder holds is data: no code of it runs, nothing in it chooses a class, and damage gives one sentence."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from histodistill.training.engine.pool import generate_images
from histodistill.training.models.embedders import is_autoencoder, load_embedder
from histodistill.training.models.loading import has_classifier, load_autoencoder, load_classifier, load_pipeline
from histodistill.training.running.errors import InputError


WEIGHTS = "diffusion_pytorch_model.safetensors"
# One for each file of weights that libraries look for beside, or in place of, safetensors.
PICKLES = ("diffusion_pytorch_model.bin", "diffusion_pytorch_model.pt", "model.ckpt", "pytorch_model.bin")


class Marker:
    """Makes a folder when it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def code_that_marks(path: Path) -> str:
    return f"import os\nos.mkdir({str(path)!r})\n"


@pytest.fixture
def pipeline(tmp_path, tiny_pipeline) -> Path:
    """A copy of the tiny pipeline, which tests change."""
    copy = tmp_path / "run" / "pipeline"
    shutil.copytree(tiny_pipeline, copy, ignore=shutil.ignore_patterns("checkpoints", "progress"))
    return copy


@pytest.fixture
def classifier(tmp_path, tiny_teacher) -> Path:
    """A copy of the tiny teacher, which tests change."""
    return Path(shutil.copytree(tiny_teacher, tmp_path / "teacher"))


def change(path: Path, **values: Any) -> None:
    """Sets keys of a JSON file; None takes them out."""
    config = json.loads(path.read_text()) | values
    path.write_text(json.dumps({name: value for name, value in config.items() if value is not None}))


def refusal(load, folder: str | Path) -> str:
    with pytest.raises(InputError) as refused:
        load(folder)
    sentence = str(refused.value)
    assert "\n" not in sentence
    return sentence


def images(folder: Path) -> np.ndarray:
    loaded = load_pipeline(folder)
    assert not loaded.unet.training and not loaded.vae.training
    loaded.set_progress_bar_config(disable=True)
    return generate_images(loaded, np.array([0, 1]), np.array([3, 4]), num_inference_steps=2)


def test_pipeline_is_that_which_diffusers_loads(pipeline, capsys):
    from diffusers import DiffusionPipeline

    theirs = DiffusionPipeline.from_pretrained(pipeline, trust_remote_code=True)
    ours = load_pipeline(pipeline)
    for name in ("vae", "unet"):
        expected, found = getattr(theirs, name).state_dict(), getattr(ours, name).state_dict()
        assert expected.keys() == found.keys()
        assert all(torch.equal(value, found[key]) for key, value in expected.items())
        assert (
            dict(getattr(ours, name).config).items()
            >= {key: value for key, value in getattr(theirs, name).config.items() if not key.startswith("_")}.items()
        )
    plain = [{key: value for key, value in part.scheduler.config.items() if key[0] != "_"} for part in (theirs, ours)]
    assert plain[0] == plain[1]
    assert ours.class_names == theirs.class_names
    assert "warning" not in capsys.readouterr().err


def test_code_of_a_pipeline_is_not_run_but_told(pipeline, tmp_path, capsys):
    expected = images(pipeline)
    marker = tmp_path / "run by somebody"
    with open(pipeline / "pipeline.py", "a") as file:
        file.write(code_that_marks(marker))
    for place in ("", "unet", "vae", "scheduler"):
        for name in ("evil.py", "__init__.py", "unet.py", "diffusers.py"):
            (pipeline / place / name).write_text(code_that_marks(marker))
    capsys.readouterr()
    assert np.array_equal(images(pipeline), expected)
    assert not marker.exists()
    told = capsys.readouterr().err
    assert told.startswith(f"warning: {pipeline / 'pipeline.py'} is not the file of the installed histodistill")
    assert told.count("\n") == 1


def test_pipeline_loads_without_its_code(pipeline, capsys):
    (pipeline / "pipeline.py").unlink()
    assert images(pipeline).shape == (2, 16, 16, 3)
    assert "warning" not in capsys.readouterr().err


@pytest.mark.parametrize(
    "values",
    [
        {"unet": ["os", "system"]},
        {"vae": ["evil", "AutoencoderDC"]},
        {"scheduler": ["diffusers_modules.local.evil", "Evil"]},
        {"scheduler": ["diffusers", "DDPMScheduler"]},
        {"unet": ["diffusers", "UNet2DConditionModel"]},
        {"unet": [None, None]},
        {"unet": None},
        {"_class_name": "HistologyPipeline"},
        {"_class_name": ["evil", "HistologyPipeline"]},
        {"_class_name": ["pipeline", "Evil"]},
        {"_class_name": "StableDiffusionPipeline"},
        {"custom_pipeline": "evil"},
        {"safety_checker": ["evil", "Evil"]},
        {"id2label": ["a", "b", "c", "d", "e"]},
        {"id2label": {"0": "a", "1": "b"}},
        {"id2label": {"0": "a", "1": "b", "2": "c", "3": "d", "5": "e"}},
        {"id2label": {"0": 0, "1": 1, "2": 2, "3": 3, "4": 4}},
    ],
    ids=str,
)
def test_index_chooses_nothing(values, pipeline, tmp_path):
    marker = tmp_path / "run by somebody"
    for place in ("", "unet", "vae", "scheduler"):
        (pipeline / place / "evil.py").write_text(code_that_marks(marker))
    change(pipeline / "model_index.json", **values)
    assert "model_index.json" in refusal(load_pipeline, pipeline)
    assert not marker.exists()


@pytest.mark.parametrize(
    ("file", "values"),
    [
        ("unet/config.json", {"_class_name": "UNet2DConditionModel"}),
        ("unet/config.json", {"_class_name": ["evil", "UNet2DModel"]}),
        ("unet/config.json", {"_class_name": None}),
        ("unet/config.json", {"quantization_config": {"quant_method": "torchao"}}),
        ("unet/config.json", {"auto_map": {"AutoModel": "evil.Evil"}}),
        ("unet/config.json", {"down_block_types": ["EvilBlock2D"]}),
        ("unet/config.json", {"block_out_channels": "many"}),
        ("unet/config.json", {"num_class_embeds": 1}),
        ("vae/config.json", {"_class_name": "AutoencoderKL"}),
        ("vae/config.json", {"encoder_block_out_channels": [10**6, 10**6]}),
        ("vae/config.json", {"latent_channels": -1}),
        ("scheduler/scheduler_config.json", {"_class_name": "EvilScheduler"}),
        ("scheduler/scheduler_config.json", {"algorithm_type": "evil"}),
        ("scheduler/scheduler_config.json", {"num_train_timesteps": "many"}),
    ],
    ids=str,
)
def test_config_of_another_model_is_refused(file, values, pipeline):
    change(pipeline / file, **values)
    assert str(pipeline / Path(file).parent) in refusal(load_pipeline, pipeline)


def test_a_skip_connection_goes_with_a_sampler_of_the_data_alone(pipeline):
    change(pipeline / "model_index.json", skip_noise=0.25)
    assert "has a skip connection, which its scheduler does not go with" in refusal(load_pipeline, pipeline)
    change(pipeline / "scheduler" / "scheduler_config.json", prediction_type="sample")
    assert load_pipeline(pipeline).config.skip_noise == 0.25


@pytest.mark.parametrize("file", ["model_index.json", "unet/config.json", "scheduler/scheduler_config.json"])
@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"7", b"\xff\xfe{}", b"[" * 200_000, None], ids=lambda c: str(c)[:12]
)
def test_damaged_config_gives_one_sentence(file, content, pipeline):
    (pipeline / file).unlink()
    if content is not None:
        (pipeline / file).write_bytes(content)
    assert file in refusal(load_pipeline, pipeline)


def test_no_pickle_is_read(pipeline, classifier, tmp_path):
    marker = tmp_path / "run by somebody"
    for folder in (pipeline / "unet", classifier):
        for file in folder.glob("*.safetensors"):
            file.unlink()
        for name in PICKLES:
            (folder / name).write_bytes(pickle.dumps(Marker(marker)))
    assert f"no {WEIGHTS}" in refusal(load_pipeline, pipeline)
    assert "no model.safetensors" in refusal(load_classifier, classifier)
    assert not marker.exists()


def test_shards_that_lie_elsewhere_are_not_read(pipeline):
    unet = pipeline / "unet"
    (unet / WEIGHTS).rename(pipeline.parent / "elsewhere.safetensors")
    places = dict.fromkeys(load_file(pipeline.parent / "elsewhere.safetensors"), "../../elsewhere.safetensors")
    (unet / f"{WEIGHTS}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    assert f"no {WEIGHTS}" in refusal(load_pipeline, pipeline)


@pytest.mark.parametrize("part", ["unet", "vae"])
def test_weights_that_do_not_fit_are_refused(part, pipeline):
    path = pipeline / part / WEIGHTS
    weights = load_file(path)
    name = sorted(weights)[0]
    for wrong in (
        {key: value for key, value in weights.items() if key != name},
        {**weights, "stowaway": torch.zeros(1)},
        {**weights, name: torch.zeros(3)},
    ):
        save_file(wrong, path)
        assert f"{pipeline / part} holds no" in refusal(load_pipeline, pipeline)


@pytest.mark.parametrize("damage", ["cut short", "no file of weights", "a folder", "a pipe"])
def test_damaged_weights_give_one_sentence(damage, pipeline, classifier):
    for folder, file, load in (
        (pipeline, pipeline / "vae" / WEIGHTS, load_pipeline),
        (classifier, classifier / "model.safetensors", load_classifier),
    ):
        content = file.read_bytes()
        file.unlink()
        if damage == "cut short":
            file.write_bytes(content[: len(content) // 2])
        elif damage == "no file of weights":
            file.write_bytes(b"<html>not found</html>")
        elif damage == "a folder":
            file.mkdir()
        else:
            os.mkfifo(file)
        assert str(folder) in refusal(load, folder)


@pytest.mark.parametrize("name", ["google/ddpm-cat-256", "gpt2", "https://huggingface.co/gpt2", "", "\0"])
def test_names_are_folders_and_never_hub_ids(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("requests.sessions.Session.request", lambda *_, **__: pytest.fail("looked on the network"))
    for load in (load_pipeline, load_autoencoder, load_classifier):
        assert "cannot be read" in refusal(load, name)


@pytest.mark.parametrize(
    "values",
    [
        {"architecture": "evil"},
        {"width": 10**9},
        {"width": "many"},
        {"class_names": ["a", "b"]},
        {"num_classes": [5]},
        {"backbone": "evil"},
        {"_class_name": "Evil"},
    ],
    ids=str,
)
def test_config_of_another_classifier_is_refused(values, classifier):
    change(classifier / "config.json", **values)
    assert str(classifier) in refusal(load_classifier, classifier)


def test_classifier_without_some_weights_is_refused(classifier):
    weights = load_file(classifier / "model.safetensors")
    del weights["head.weight"]
    save_file(weights, classifier / "model.safetensors")
    assert "holds no classifier that can be loaded" in refusal(load_classifier, classifier)


@pytest.mark.parametrize("content", ["", "[]", "null", "\ud83d"], ids=ascii)
def test_folder_with_a_damaged_config_is_neither(content, tmp_path):
    (tmp_path / "config.json").write_bytes(content.encode("utf-8", "surrogatepass"))
    assert not has_classifier(tmp_path) and not is_autoencoder(tmp_path)
    assert "cannot be loaded" in refusal(load_embedder, tmp_path)


def test_embedder_brings_no_code_and_no_pickle(tmp_path, monkeypatch):
    from transformers import ViTConfig, ViTImageProcessor, ViTModel

    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked whether code may be run"))
    model = ViTModel(ViTConfig(image_size=16, patch_size=8, hidden_size=8, num_hidden_layers=1, num_attention_heads=1))
    folder, marker = tmp_path / "vit", tmp_path / "run by somebody"
    model.save_pretrained(folder)
    ViTImageProcessor(size={"height": 16, "width": 16}).save_pretrained(folder)
    assert load_embedder(folder)(np.zeros((1, 16, 16, 3), np.uint8)).shape == (1, 8)

    # Code for a kind of model that transformers does not know.
    foreign = Path(shutil.copytree(folder, tmp_path / "foreign"))
    (foreign / "evil.py").write_text(code_that_marks(marker))
    names = {"AutoConfig": "evil.EvilConfig", "AutoModel": "evil.EvilModel"}
    change(foreign / "config.json", model_type="evil", auto_map=names)
    assert "cannot be loaded" in refusal(load_embedder, foreign)
    # Of one that it knows: its own class loads the weights.
    known = Path(shutil.copytree(folder, tmp_path / "known"))
    (known / "evil.py").write_text(code_that_marks(marker))
    change(known / "config.json", auto_map={"AutoModel": "evil.EvilModel"})
    assert load_embedder(known)(np.zeros((1, 16, 16, 3), np.uint8)).shape == (1, 8)
    # Pickled weights.
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Marker(marker)))
    assert "cannot be loaded" in refusal(load_embedder, folder)
    assert not marker.exists()
