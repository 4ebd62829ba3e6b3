from __future__ import annotations

import ast
import inspect
import json
import os
import re
import subprocess
import sys
import sysconfig
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import PIL.Image
import pytest
import torch
from diffusers import (
    AutoencoderDC,
    AutoencoderKL,
    AutoencoderTiny,
    DDPMScheduler,
    DiffusionPipeline,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    IPNDMScheduler,
    UNet2DModel,
)
from diffusers.utils import hub_utils
from huggingface_hub import ModelCard

from histodistill.pipelines import HistologyPipeline, HistologyPipelineOutput, histology_pipeline


NAMES = ["adipose", "glands", "mucus"]
SIZE = 16
STEPS = 3
GOLDEN = [0.8632, 0.6617, 0.5920, 0.6086, 0.6404, 0.5879, 0.6405, 0.6220, 0.6077]


def dummy_components(vae_class: type = AutoencoderKL) -> dict:
    """A pipeline with one level in the U-Net and two in the autoencoder: 16×16 tiles, 2×8×8 latents, 3 classes."""
    torch.manual_seed(0)
    unet = UNet2DModel(
        sample_size=8,
        in_channels=2,
        out_channels=2,
        block_out_channels=(16,),
        down_block_types=("AttnDownBlock2D",),
        up_block_types=("AttnUpBlock2D",),
        layers_per_block=1,
        attention_head_dim=8,
        norm_num_groups=8,
        num_class_embeds=4,
    )
    if vae_class is AutoencoderKL:
        vae = AutoencoderKL(
            block_out_channels=(8, 8),
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            layers_per_block=1,
            latent_channels=2,
            norm_num_groups=8,
            sample_size=SIZE,
            scaling_factor=0.5,
            shift_factor=0.25,
        )
    elif vae_class is AutoencoderTiny:
        vae = AutoencoderTiny(
            encoder_block_out_channels=(8, 8),
            decoder_block_out_channels=(8, 8),
            num_encoder_blocks=(1, 1),
            num_decoder_blocks=(1, 1),
            latent_channels=2,
            scaling_factor=0.5,
            shift_factor=0.25,
        )
    else:
        vae = AutoencoderDC(
            encoder_block_out_channels=(8, 8),
            decoder_block_out_channels=(8, 8),
            encoder_layers_per_block=(1, 1),
            decoder_layers_per_block=(1, 1),
            encoder_qkv_multiscales=((), ()),
            decoder_qkv_multiscales=((), ()),
            latent_channels=2,
            scaling_factor=0.5,
        )
    scheduler = DPMSolverMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True)
    return {"vae": vae.eval(), "unet": unet.eval(), "scheduler": scheduler, "id2label": dict(enumerate(NAMES))}


def make_pipe(vae_class: type = AutoencoderKL) -> HistologyPipeline:
    pipeline = HistologyPipeline(**dummy_components(vae_class))
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture
def pipe() -> HistologyPipeline:
    return make_pipe()


# For what depends on the autoencoder.
every_vae = pytest.mark.parametrize("vae_class", [AutoencoderKL, AutoencoderDC, AutoencoderTiny])


def seeds(*numbers: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(number) for number in numbers]


def generate(pipe, labels, *numbers: int, **options):
    options = {"num_inference_steps": STEPS, "output_type": "np", **options}
    return pipe(labels, generator=seeds(*numbers), **options).images


def one_sentence(message: str) -> bool:
    return "\n" not in message and re.search(r"\.\s", message) is None and ":" in message


def test_golden_slice(pipe):
    images = generate(pipe, ["glands"], 0, guidance_scale=2.0)
    expected = np.array(GOLDEN)
    np.testing.assert_allclose(images[0, -3:, -3:, -1].reshape(-1), expected, atol=1e-3)


def data_scheduler() -> DPMSolverMultistepScheduler:
    return DPMSolverMultistepScheduler(prediction_type="sample", use_flow_sigmas=True, flow_shift=2.0)


def test_a_skip_connection_goes_with_schedulers_of_the_data_alone():
    components = dummy_components()
    message = r"skip_noise=0\.25 does not go with the scheduler: its prediction_type must be 'sample'"
    for scheduler in (components["scheduler"], FlowMatchEulerDiscreteScheduler()):
        with pytest.raises(ValueError, match=message):
            HistologyPipeline(**{**components, "scheduler": scheduler}, skip_noise=0.25)
    assert (
        HistologyPipeline(**{**components, "scheduler": data_scheduler()}, skip_noise=0.25).config.skip_noise == 0.25
    )


def test_more_steps_than_there_are_timesteps():
    """Some timesteps then stand twice among the sampler's, from the first on."""
    components = dummy_components()
    pipe = HistologyPipeline(**{**components, "scheduler": data_scheduler()})
    pipe.set_progress_bar_config(disable=True)
    assert np.isfinite(generate(pipe, [0], 0, num_inference_steps=1001)).all()


def test_class_ids_and_names_may_be_mixed(pipe):
    assert pipe.class_names == NAMES
    assert (pipe.num_classes, pipe.null_class) == (3, 3)
    for labels, ids in [
        (1, [1]),
        ("mucus", [2]),
        (["mucus", 0, "glands"], [2, 0, 1]),
        (torch.tensor([2, 1]), [2, 1]),
        (np.array([0, 2]), [0, 2]),
        (np.int64(1), [1]),
    ]:
        found = pipe.get_class_ids(labels)
        assert found.tolist() == ids
        assert found.dtype == torch.int64


def test_names_and_ids_give_the_same_image(pipe):
    images = generate(pipe, ["adipose", "mucus"], 4, 5)
    np.testing.assert_array_equal(generate(pipe, [0, 2], 4, 5), images)
    assert not np.allclose(generate(pipe, [2, 0], 4, 5), images)


def test_names_default_to_numbers():
    components = dummy_components()
    del components["id2label"]
    assert HistologyPipeline(**components).class_names == ["0", "1", "2"]


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (3, r"class_labels=3 is out of range: it must be 0 to 2"),  # the null class is no class
        ([0, -1], r"class_labels=-1 is out of range: it must be 0 to 2"),
        (["bone"], r"class_labels='bone' is unknown: it must be one of \['adipose', 'glands', 'mucus'\]"),
        ([True], r"class_labels=True is out of range: it must be 0 to 2"),
        ([0.5], r"class_labels=0.5 is out of range: it must be 0 to 2"),
        ([], r"class_labels=\[\] is empty: give at least one class id or name"),
    ],
)
def test_wrong_class_labels(pipe, labels, message):
    with pytest.raises(ValueError, match=message) as error:
        pipe(labels)
    assert one_sentence(str(error.value))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_inference_steps": 0}, "num_inference_steps=0 is out of range: it must be at least 1"),
        ({"num_inference_steps": 2.5}, "num_inference_steps=2.5 is out of range: it must be at least 1"),
        ({"guidance_scale": -1.0}, "guidance_scale=-1.0 is out of range: it must be at least 0"),
        ({"guidance_scale": float("nan")}, "guidance_scale=nan is out of range"),
        *(
            (
                {"guidance_interval": interval},
                re.escape(f"guidance_interval={interval} is out of range: it must be two numbers with ")
                + "0 <= low <= high <= 1$",
            )
            for interval in [(-0.1, 1.0), (0.0, 1.5), (0.8, 0.2), (float("nan"), 1.0), (0.5,)]
        ),
        ({"output_type": "jpg"}, "output_type='jpg' is unknown: it must be one of"),
        ({"generator": seeds(1)}, "generator has 1 entries for 2 images: give one per image, or just one"),
        ({"latents": torch.zeros(2, 2, 4, 4)}, r"latents of shape \(2, 2, 4, 4\) do not fit: the shape must be"),
    ],
)
def test_wrong_arguments(pipe, options, message):
    with pytest.raises(ValueError, match=message) as error:
        pipe([0, 1], **options)
    assert one_sentence(str(error.value))


def test_output_types(pipe):
    labels, numbers = [0, 1], (0, 1)
    pil = generate(pipe, labels, *numbers, output_type="pil")
    array = generate(pipe, labels, *numbers, output_type="np")
    tensor = generate(pipe, labels, *numbers, output_type="pt")
    latents = generate(pipe, labels, *numbers, output_type="latent")

    assert all(isinstance(image, PIL.Image.Image) for image in pil)
    assert [(image.mode, image.size) for image in pil] == [("RGB", (SIZE, SIZE))] * 2
    assert (array.dtype, array.shape) == (np.float32, (2, SIZE, SIZE, 3))
    assert (tensor.dtype, tensor.shape) == (torch.float32, (2, 3, SIZE, SIZE))
    assert (latents.dtype, latents.shape) == (torch.float32, (2, 2, 8, 8))
    assert array.min() >= 0
    assert array.max() <= 1
    np.testing.assert_array_equal(tensor.permute(0, 2, 3, 1).numpy(), array)
    np.testing.assert_array_equal(np.stack(pil), (array * 255).round().astype(np.uint8))


@every_vae
def test_latents_are_normalised(vae_class):
    """What "latent" returns becomes the image by undoing (latent - shift) * scale and decoding."""
    pipe, shift = make_pipe(vae_class), 0.0 if vae_class is AutoencoderDC else 0.25
    latents = generate(pipe, [1], 7, output_type="latent")
    with torch.no_grad():
        decoded = pipe.vae.decode(latents / 0.5 + shift).sample
    expected = (decoded / 2 + 0.5).clamp(0, 1)
    torch.testing.assert_close(generate(pipe, [1], 7, output_type="pt"), expected)


def test_output_class_and_tuple(pipe):
    output = pipe([1, "adipose"], num_inference_steps=1, generator=seeds(0, 1), output_type="np")
    assert isinstance(output, HistologyPipelineOutput)
    assert output.class_labels.tolist() == [1, 0]
    images = pipe([1, "adipose"], num_inference_steps=1, generator=seeds(0, 1), output_type="np", return_dict=False)
    assert isinstance(images, tuple)
    assert len(images) == 1
    np.testing.assert_array_equal(images[0], output.images)


def test_image_depends_on_its_own_generator_alone(pipe):
    labels, numbers = [0, 1, 2, 1, 0], (10, 11, 12, 13, 14)
    batch = generate(pipe, labels, *numbers)
    alone = np.concatenate([generate(pipe, [label], number) for label, number in zip(labels, numbers, strict=True)])
    np.testing.assert_allclose(alone, batch, atol=1e-5)
    # Kernels add up in another order for another batch size, so a value may fall on the other side of a half.
    difference = np.abs((alone * 255).round() - (batch * 255).round())
    assert difference.max() <= 1
    assert (difference > 0).mean() < 0.001
    others = generate(pipe, [2, 1], 99, 11)
    np.testing.assert_allclose(others[1], batch[1], atol=1e-5)


@pytest.mark.parametrize("scheduler", [DDPMScheduler, IPNDMScheduler])  # the second takes no generator
def test_noise_of_the_steps_comes_from_the_generator_too(pipe, scheduler):
    pipe.scheduler = scheduler()
    torch.manual_seed(1)
    batch = generate(pipe, [0, 1], 10, 11)
    torch.manual_seed(2)
    np.testing.assert_array_equal(generate(pipe, [0, 1], 10, 11), batch)
    np.testing.assert_allclose(generate(pipe, [1], 11)[0], batch[1], atol=1e-5)


def test_one_generator_for_all(pipe):
    first, again = (
        pipe([0, 0], num_inference_steps=1, generator=seeds(3)[0], output_type="np").images for _ in range(2)
    )
    np.testing.assert_array_equal(first, again)
    assert not np.allclose(first[0], first[1])


def test_given_latents_take_the_place_of_the_generator(pipe):
    noise = torch.randn(2, 2, 8, 8, generator=seeds(5)[0])
    drawn = pipe([0, 2], num_inference_steps=2, generator=seeds(5)[0], output_type="np").images
    given = pipe([0, 2], num_inference_steps=2, latents=noise, output_type="np").images
    np.testing.assert_array_equal(given, drawn)


class Calls:
    """Records the class labels that the denoiser is asked for."""

    def __init__(self, pipe: HistologyPipeline):
        self.labels = []
        pipe.unet.register_forward_pre_hook(
            lambda _, args, kwargs: self.labels.append(kwargs["class_labels"].tolist()), with_kwargs=True
        )


def test_guidance_of_one_asks_for_the_condition_only(pipe):
    calls = Calls(pipe)
    generate(pipe, [0, 2], 0, 1, guidance_scale=1.0)
    assert calls.labels == [[0, 2]] * STEPS


def test_guidance_of_one_is_the_limit_of_guidance(pipe):
    conditional = generate(pipe, [0, 2], 0, 1, guidance_scale=1.0)
    np.testing.assert_allclose(generate(pipe, [0, 2], 0, 1, guidance_scale=1.0 + 1e-6), conditional, atol=1e-4)
    assert not np.allclose(generate(pipe, [0, 2], 0, 1, guidance_scale=3.0), conditional, atol=1e-4)


def test_null_class_comes_from_the_config_of_the_denoiser(pipe):
    calls = Calls(pipe)
    generate(pipe, [0, 2], 0, 1, guidance_scale=2.0)
    assert calls.labels == [[0, 2, 3, 3]] * STEPS


def test_guidance_of_zero_ignores_the_class(pipe):
    np.testing.assert_allclose(
        generate(pipe, [0], 3, guidance_scale=0.0), generate(pipe, [2], 3, guidance_scale=0.0), atol=1e-6
    )


def test_whole_guidance_interval_is_the_default(pipe):
    default = generate(pipe, [0, 2], 0, 1, guidance_scale=3.0)
    np.testing.assert_array_equal(
        generate(pipe, [0, 2], 0, 1, guidance_scale=3.0, guidance_interval=(0.0, 1.0)), default
    )


def test_nothing_is_guided_in_an_empty_interval(pipe):
    conditional = generate(pipe, [0, 2], 0, 1, guidance_scale=1.0)
    for interval in [(0.0, 0.0), (0.5, 0.5)]:  # no step is at these levels
        calls = Calls(pipe)
        images = generate(pipe, [0, 2], 0, 1, guidance_scale=3.0, guidance_interval=interval)
        np.testing.assert_array_equal(images, conditional)
        assert calls.labels == [[0, 2]] * STEPS


@pytest.mark.parametrize(
    ("interval", "guided"),
    [
        ((0.0, 0.5), [False, False, True]),  # noise comes first
        ((0.5, 1.0), [True, True, False]),
        ((0.5, 0.8), [False, True, False]),
        ((0.666, 0.999), [True, True, False]),  # the ends belong to it
    ],
)
def test_only_noise_levels_in_the_interval_are_guided(pipe, interval, guided):
    calls = Calls(pipe)
    images = generate(pipe, [0, 2], 0, 1, guidance_scale=3.0, guidance_interval=interval)
    assert pipe.scheduler.timesteps.tolist() == [999, 666, 332]
    assert calls.labels == [[0, 2, 3, 3] if step else [0, 2] for step in guided]
    for guidance_scale in (1.0, 3.0):
        other = generate(pipe, [0, 2], 0, 1, guidance_scale=guidance_scale)
        assert not np.allclose(images, other, atol=1e-4)


def test_interval_does_not_guide_where_guidance_is_off(pipe):
    calls = Calls(pipe)
    generate(pipe, [0, 2], 0, 1, guidance_scale=1.0, guidance_interval=(0.5, 0.8))
    assert calls.labels == [[0, 2]] * STEPS


def test_documented_defaults_are_the_defaults():
    documented = re.findall(r"(\w+) \([^)]*\*optional\*, defaults to `([^`]+)`\)", HistologyPipeline.__call__.__doc__)
    defaults = {
        name: parameter.default
        for name, parameter in inspect.signature(HistologyPipeline.__call__).parameters.items()
        if parameter.default not in (inspect.Parameter.empty, None)
    }
    # Numbers stand outside the backquotes.
    documented += re.findall(r"(\w+) \([^)]*\*optional\*, defaults to ([\d.]+)\)", HistologyPipeline.__call__.__doc__)
    assert {name: ast.literal_eval(value) for name, value in documented} == defaults


def test_every_argument_is_documented():
    for name in list(inspect.signature(HistologyPipeline.__call__).parameters)[1:]:
        assert re.search(rf"^\s+{name} \(", HistologyPipeline.__call__.__doc__, re.MULTILINE), name


def test_file_is_self_contained():
    tree = ast.parse(Path(histology_pipeline.__file__).read_text())
    imported = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imported |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0
            imported.add(node.module.partition(".")[0])
    assert imported - sys.stdlib_module_names == {"PIL", "diffusers", "numpy", "torch"}


def test_saved_folder_has_no_pickle_and_names_its_class(pipe, tmp_path):
    pipe.save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert index["_class_name"] == ["pipeline", "HistologyPipeline"]
    assert index["id2label"] == {"0": "adipose", "1": "glands", "2": "mucus"}
    assert (tmp_path / "pipeline.py").read_bytes() == Path(histology_pipeline.__file__).read_bytes()
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {path.suffix for path in files} == {".json", ".py", ".safetensors"}


@pytest.fixture
def pushed(monkeypatch) -> list[dict]:
    """What would have gone to the Hub: the arguments of each upload, and the names of its files."""
    uploads = []

    def create_repo(repo_id, **options):
        uploads.append({"create": options})
        return SimpleNamespace(repo_id=f"me/{repo_id.rpartition('/')[2]}")

    def upload_folder(*, folder_path, **options):
        files = {path.relative_to(folder_path).as_posix() for path in Path(folder_path).rglob("*") if path.is_file()}
        uploads[-1] |= {"upload": options, "files": files}

    monkeypatch.setattr(hub_utils, "create_repo", create_repo)
    monkeypatch.setattr(hub_utils, "upload_folder", upload_folder)
    monkeypatch.setattr(hub_utils, "load_or_create_model_card", lambda *_, **__: ModelCard("---\n{}\n---\n"))
    return uploads


def test_a_push_goes_where_its_options_say(pipe, tmp_path, pushed):
    (tmp_path / "toy").mkdir()
    (tmp_path / "toy" / "private.txt").write_text("private")
    pipe.save_pretrained(
        str(tmp_path / "toy"), push_to_hub=True, variant="fp32", private=True, token="t", commit_message="first",
        create_pr=True,
    )  # fmt: skip
    [push] = pushed
    assert push["create"] == {"private": True, "token": "t", "exist_ok": True}
    expected = {"repo_id": "me/toy", "token": "t", "commit_message": "first", "create_pr": True, "path_in_repo": None}
    assert push["upload"] == expected
    weights = {f"{name}/diffusion_pytorch_model.fp32.safetensors" for name in ("unet", "vae")}
    assert {file for file in push["files"] if file.endswith(".safetensors")} == weights
    assert {"pipeline.py", "model_index.json"} < push["files"] and "private.txt" not in push["files"]
    assert all((tmp_path / "toy" / file).is_file() for file in weights)


def test_a_push_without_options_commits_to_a_repository_of_the_folders_name(pipe, tmp_path, pushed):
    pipe.save_pretrained(tmp_path / "toy", push_to_hub=True)
    pipe.save_pretrained(tmp_path / "toy", push_to_hub=True, repo_id="me/other", safe_serialization=False)
    assert [push["upload"]["repo_id"] for push in pushed] == ["me/toy", "me/other"]
    assert [push["upload"]["create_pr"] for push in pushed] == [False, False]
    assert "unet/diffusion_pytorch_model.safetensors" in pushed[0]["files"]
    assert "unet/diffusion_pytorch_model.bin" in pushed[1]["files"]


FRESH_PROCESS = """
import importlib.util, sys
import numpy as np, torch
from diffusers import DiffusionPipeline

assert importlib.util.find_spec("histodistill") is None
folder, output, vae_class = sys.argv[1:]
pipe = DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)
assert type(pipe).__name__ == "HistologyPipeline"
assert type(pipe.vae).__name__ == vae_class
generators = [torch.Generator().manual_seed(i) for i in (1, 2)]
images = pipe(["mucus", 0], num_inference_steps=3, generator=generators, output_type="np").images
pipe.save_pretrained(folder + "-again")
np.savez(output, images=images, names=np.array(pipe.class_names))
"""


@every_vae
def test_loads_where_histodistill_is_not_installed(vae_class, tmp_path):
    pipe = make_pipe(vae_class)
    pipe.save_pretrained(tmp_path / "saved")
    # The interpreter below the virtual environment, with the libraries' folder on its path, does not see histodistill:
    # only a site folder's own .pth files, which are not read here, lead to an editable install.
    environment = {
        **os.environ,
        "PYTHONPATH": sysconfig.get_path("purelib"),
        "HF_HOME": str(tmp_path / "cache"),
        "HF_HUB_OFFLINE": "1",
    }
    argv = [str(tmp_path / "saved"), str(tmp_path / "images.npz"), vae_class.__name__]
    subprocess.run([sys._base_executable, "-c", FRESH_PROCESS, *argv], env=environment, cwd=tmp_path, check=True)
    with np.load(tmp_path / "images.npz") as fresh:
        assert fresh["names"].tolist() == NAMES
        np.testing.assert_array_equal(fresh["images"], generate(pipe, ["mucus", 0], 1, 2))

    # What the loaded pipeline saves is the same folder again; in particular it does not tell where it was loaded from.
    again, saved = tmp_path / "saved-again", tmp_path / "saved"
    for path in saved.rglob("*"):
        if path.is_file():
            assert (again / path.relative_to(saved)).read_bytes() == path.read_bytes(), path.name


def test_loading_asks_for_trust(pipe, tmp_path):
    pipe.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="trust_remote_code"):
        DiffusionPipeline.from_pretrained(tmp_path)


@every_vae
def test_half_precision_stays_in_range(vae_class):
    images = generate(make_pipe(vae_class).to(torch.bfloat16), [0, 1], 0, 1)
    assert np.isfinite(images).all()
    assert images.dtype == np.float32
    reference = generate(make_pipe(vae_class), [0, 1], 0, 1)
    np.testing.assert_allclose(images, reference, atol=0.1)


@torch.no_grad()
def test_an_autoencoder_that_overflows_in_half_precision_decodes_in_single(pipe):
    expected = generate(pipe, [0, 1], 0, 1, guidance_scale=1.0)
    latents = generate(pipe, [0, 1], 0, 1, guidance_scale=1.0, output_type="latent")
    with torch.autocast("cpu", torch.float16):
        found = pipe._decode(latents, "np")
    np.testing.assert_array_equal(found, expected)
    pipe.vae.half()
    np.testing.assert_allclose(pipe._decode(latents, "np"), expected, atol=0.01)
    assert pipe.vae.dtype == torch.float32
