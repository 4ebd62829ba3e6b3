from __future__ import annotations

from pathlib import Path

import pytest
import torch

from histodistill.training.end_to_end import distill, steps
from histodistill.training.end_to_end.tile_checks import check_image_size
from histodistill.training.evaluation import compare
from histodistill.training.models.autoencoder import build_autoencoder
from histodistill.training.models.denoiser import build_denoiser
from histodistill.training.running.errors import InputError
from histodistill.training.running.precision import usual_precision
from histodistill.training.running.presets import PRESET_NAMES, Preset, load_preset, preset_name


PRESETS = {name: load_preset(name) for name in PRESET_NAMES}
REQUIRED = {
    "autoencoder": {"data": "d", "output": "o"},
    "diffusion": {"data": "d", "output": "o", "autoencoder": "a"},
    "teacher": {"data": "d", "output": "o"},
    "generate": {"pipeline": "p", "output": "o"},
    "select": {"pool": "p", "teacher": "t", "output": "o"},
    "compare": {"run": "r", "data": "d"},
}


def configured(step: str, preset: Preset):
    return steps.STEPS[step](**REQUIRED[step], **preset.options(step))


@pytest.mark.parametrize("step", REQUIRED)
@pytest.mark.parametrize("name", PRESETS)
def test_steps_understand_every_option(name, step):
    options = PRESETS[name].options(step)
    config = configured(step, PRESETS[name])
    assert options
    plain = {name: list(value) if isinstance(value, tuple) else value for name, value in vars(config).items()}
    if options.get("mixed_precision") == "auto":
        options["mixed_precision"] = usual_precision()
    assert {option: plain[option] for option in options} == options


@pytest.mark.parametrize("name", PRESETS)
def test_comparison_gives_the_recovery(name):
    for _, _, rows in configured("compare", PRESETS[name]).plan:
        assert {"real_all", "real_random", compare.RECOVERY_ROW} <= set(rows)


@pytest.mark.parametrize("name", PRESETS)
def test_stages_fit_each_other(name):
    preset = PRESETS[name]
    assert preset.select["n_per_class"] <= preset.generate["per_class"]
    # MedMNIST's sizes, of which phantom has the first.
    for image_size in (28, 64, 128, 224, 256, 512):
        check_image_size(preset, image_size)


@pytest.mark.parametrize("image_size", [28, 32, 64, 128, 224, 256, 512])
@pytest.mark.parametrize("name", PRESETS)
def test_models_can_be_built_for_every_size(name, image_size):
    preset = PRESETS[name].for_image_size(image_size)
    autoencoder, diffusion = configured("autoencoder", preset), configured("diffusion", preset)
    with torch.device("meta"):
        vae = build_autoencoder(
            image_size, autoencoder.channels, autoencoder.latent_channels, autoencoder.layers_per_block
        )
        latent_size = image_size // 2 ** (len(autoencoder.channels) - 1)
        assert 14 <= latent_size <= 32
        denoiser = build_denoiser(
            latent_size, vae.config.latent_channels, 5, list(diffusion.channels), diffusion.layers_per_block,
            diffusion.attention_levels, diffusion.dropout,
        )  # fmt: skip
        latents = torch.empty(2, vae.config.latent_channels, latent_size, latent_size)
        predicted = denoiser(latents, torch.tensor([0.5, 0.5]), class_labels=torch.tensor([0, 5])).sample
        assert predicted.shape == latents.shape
        assert vae.decode(predicted).sample.shape == (2, 3, image_size, image_size)


def test_the_size_that_a_preset_is_written_for_changes_nothing():
    # Batches and channels; attention is left to the script's default.
    assert all(preset.for_image_size(28) == preset for preset in PRESETS.values())


@pytest.mark.parametrize(
    ("image_size", "halvings", "latent_size", "crop_size"),
    [
        (28, 1, 14, None),
        (64, 2, 16, None),
        (128, 3, 16, None),
        (224, 3, 28, 128),
        (256, 3, 32, 128),
        (512, 4, 32, 256),
    ],
)
def test_tiles_are_halved_until_latents_are_small(image_size, halvings, latent_size, crop_size):
    for preset in PRESETS.values():
        autoencoder = preset.for_image_size(image_size).autoencoder
        assert len(autoencoder["channels"]) - 1 == halvings and image_size / 2**halvings == latent_size
        assert autoencoder.get("crop_size") == crop_size
        # Each further halving takes three quarters of a latent's positions; the first makes up for that.
        assert autoencoder["latent_channels"] == preset.autoencoder["latent_channels"] * min(4 ** (halvings - 1), 8)
        assert autoencoder.get("plain_finest", False) == (halvings > 1)
        assert autoencoder.get("equivariance_weight") == (0.25 if halvings > 1 else None)
        diffusion = preset.for_image_size(image_size).diffusion
        assert diffusion.get("prediction_type") == ("sample" if halvings > 1 else None)
        assert diffusion.get("skip_noise") == (0.25 if halvings > 1 else None)


def test_up_to_32_px_latents_of_16_add_a_level_and_nothing_else():
    for preset in PRESETS.values():
        fitted = preset.for_image_size(32)
        widths = preset.diffusion["channels"]
        levels = {"channels": [*widths, widths[-1]], "attention_levels": 1}
        assert fitted == preset.with_options("diffusion", levels)


@pytest.mark.parametrize("image_size", [28, 64])
def test_a_denoiser_that_gives_the_velocity_has_no_skip_connection(image_size):
    before = (
        PRESETS["cpu"].with_options("diffusion", {"prediction_type": "flow_prediction"}).for_image_size(image_size)
    )
    after = PRESETS["cpu"].for_image_size(image_size).with_options("diffusion", {"prediction_type": "flow_prediction"})
    assert before == after and "skip_noise" not in after.diffusion


def test_steps_in_place_of_pixels():
    preset = PRESETS["cpu"].for_image_size(64)
    by_steps = preset.with_options("autoencoder", {"max_train_steps": 5}).autoencoder
    assert by_steps["max_train_steps"] == 5 and "train_pixels" not in by_steps
    by_pixels = PRESETS["cpu"].with_options("autoencoder", {"train_pixels": 7}).autoencoder
    assert by_pixels["train_pixels"] == 7 and "max_train_steps" not in by_pixels
    assert preset.with_options("diffusion", {"max_train_steps": 5}).diffusion["max_train_steps"] == 5


def test_the_finest_level_of_large_tiles_is_half_as_wide():
    gpu = PRESETS["gpu"]
    widths = [gpu.for_image_size(size).autoencoder["channels"] for size in (64, 224, 512)]
    assert widths == [[64, 128, 256], [32, 64, 128, 256], [32, 64, 128, 256, 256]]
    assert gpu.autoencoder["channels"] == [64, 128]  # what was written is left as it was


@pytest.mark.parametrize("name", PRESETS)
def test_pixels_and_positions_that_are_shown_follow_a_rule(name):
    base = PRESETS[name]
    pixels = base.autoencoder["max_train_steps"] * base.autoencoder["batch_size"] * 28**2
    tiles = base.diffusion["max_train_steps"] * base.diffusion["batch_size"]
    for size, factor, latent_size in ((64, 1, 16), (128, 2, 16), (224, 2, 28), (256, 2, 32), (512, 4, 32)):
        preset = base.for_image_size(size)
        assert preset.autoencoder["train_pixels"] == factor * pixels and "max_train_steps" not in preset.autoencoder
        diffusion = preset.diffusion
        shown = diffusion["max_train_steps"] * diffusion["batch_size"]
        assert shown == pytest.approx(tiles * 16**2 / latent_size**2, rel=0.01)


def test_learning_rates_go_by_the_root_of_the_batch():
    gpu, large = PRESETS["gpu"], PRESETS["gpu"].for_image_size(224)
    assert large.diffusion["batch_size"] == 128 and large.autoencoder["batch_size"] == 32
    for options, base in ((large.diffusion, gpu.diffusion), (large.autoencoder, gpu.autoencoder)):
        expected = base["learning_rate"] * (options["batch_size"] / base["batch_size"]) ** 0.5
        assert options["learning_rate"] == pytest.approx(expected, rel=0.002)


def test_batches_that_are_small_already_stay():
    preset = Preset(
        autoencoder={"channels": [8, 8], "latent_channels": 2, "batch_size": 2},
        diffusion={"channels": [8], "batch_size": 8},
    )
    large = preset.for_image_size(224)
    assert (large.autoencoder["batch_size"], large.diffusion["batch_size"]) == (2, 8)
    assert "train_pixels" not in large.autoencoder and "max_train_steps" not in large.diffusion


def test_classifiers_shrink_where_a_preset_says_so():
    small, large = PRESETS["cpu"].for_image_size(56), PRESETS["cpu"].for_image_size(224)
    # Half as many tiles, in batches of a quarter; of each comparison 800 · 4 / 2^1.5.
    assert small.teacher["max_train_steps"] == 2000 and small.teacher["batch_size"] == 32
    assert [text.partition(":real")[0] for text in small.compare] == ["convnet:1131"]
    assert small.compare_options == {"validation_tiles": 500, "batch_size": 32}
    assert PRESETS["cpu"].with_options(
        "compare", {"train": ["scratch:a/b:90:x", "probe:c", "v:8"]}
    ).with_compared_steps(0.5).compare == ("scratch:a/b:45:x", "probe:c", "v:4")
    # Up to 64 px a ConvNet costs less than a ResNet-18, and above it is the other way round.
    assert large.teacher["architecture"] == "resnet18" and large.teacher["max_train_steps"] == 500
    assert [text.partition(":real")[0] for text in large.compare] == ["resnet18:53"]
    assert PRESETS["cpu-demo"].for_image_size(224).compare[0].startswith("resnet18:25:")
    gpu = PRESETS["gpu"].for_image_size(224)
    assert (gpu.teacher, gpu.compare) == (PRESETS["gpu"].teacher, PRESETS["gpu"].compare)


def test_few_tiles_may_have_options_of_their_own_and_a_least_number_of_samples():
    preset = Preset(
        autoencoder={"channels": [8, 8]},
        diffusion={"batch_size": 10, "max_train_steps": 100},
        max_epochs=4,
        min_samples=150,
        few_tiles={"dropout": 0.1},
    )
    assert preset.for_tiles(28, 1000).diffusion == {"batch_size": 10, "max_train_steps": 100}
    assert preset.for_tiles(28, 100).diffusion == {"batch_size": 10, "max_train_steps": 40, "dropout": 0.1}
    assert preset.for_tiles(28, 3).diffusion["max_train_steps"] == 15
    # How it came about is no setting of a run.
    assert {"few_tiles", "min_samples", "classifiers_shrink"}.isdisjoint(preset.settings())


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


GOOD = """
[autoencoder]
channels = [8, 8]
latent_channels = 2
batch_size = 8
[diffusion]
channels = [8]
max_train_steps = 10
batch_size = 8
[generate]
per_class = 8
[select]
n_per_class = 3
[compare]
train = ["convnet:2"]
seeds = [0, 1]
"""


def test_a_file_is_a_preset(tmp_path):
    file = tmp_path / "my preset[1].toml"
    file.write_text(f"max_epochs = 3\n{GOOD}")
    preset = load_preset(file)
    assert (preset.max_epochs, preset.diffusion["max_train_steps"]) == (3, 10)
    assert preset.options("compare") == {"train": ["convnet:2"], "seeds": [0, 1]}
    assert preset.settings()["compare_options"] == {"seeds": [0, 1]} and "audit" not in preset.settings()
    assert (preset_name(file), preset_name("cpu")) == ("my preset[1]", "cpu")


def test_a_file_as_editors_and_command_lines_have_it(tmp_path):
    text = GOOD.replace("latent_channels", "latent-channels").replace("\n", "\r\n")
    (tmp_path / "P.TOML").write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert load_preset(tmp_path / "P.TOML") == load_preset(write(tmp_path / "p.toml", GOOD))


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[autoencoder", "is no TOML"),
        (f"[denoiser]\nseed = 1\n{GOOD}", "'denoiser' is no section of a preset: use max_epochs, min_samples, "),
        (f"teacher = 3\n{GOOD}", "'teacher' must be a section with options"),
        (f"max_epochs = 0\n{GOOD}", "max_epochs=0 is out of range: it must be a whole number, at least 1"),
        (f"min_samples = -1\n{GOOD}", "min_samples=-1 is out of range: it must be a whole number, at least 0"),
        (f"classifiers_shrink = 1\n{GOOD}", "classifiers_shrink=1 cannot be read: it must be true or false"),
        (GOOD.replace("per_class = 8", ""), "lacks per_class in section [generate]: a preset needs it"),
        (GOOD.replace("latent_channels = 2", ""), "lacks latent_channels in section [autoencoder]"),
        (GOOD.replace('["convnet:2"]', '"convnet:2"'), "train in section [compare] must be a list"),
        ("", "lacks channels in section [autoencoder]"),
    ],
)
def test_a_file_that_is_no_preset(text, message, tmp_path):
    (tmp_path / "p.toml").write_text(text)
    with pytest.raises(InputError) as raised:
        load_preset(tmp_path / "p.toml")
    assert message in str(raised.value) and str(tmp_path / "p.toml") in str(raised.value)


def test_a_file_that_cannot_be_read(tmp_path):
    with pytest.raises(InputError, match=r"cannot be read \(No such file or directory\): give a \.toml file"):
        load_preset(tmp_path / "none.toml")
    (tmp_path / "latin.toml").write_bytes(b"# \xe9")
    with pytest.raises(InputError, match=r"cannot be read \(it is not UTF-8 text\)"):
        load_preset(tmp_path / "latin.toml")


def test_unknown_preset(capsys):
    with pytest.raises(SystemExit) as stopped:
        distill.make_parser().read(["--data", "phantom", "--output", "o", "--preset", "huge"])
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert "huge" in error and all(name in error for name in PRESETS)


@pytest.mark.parametrize(
    ("name", "image_size", "channels"),
    [
        ("cpu", 28, [64, 128]),
        ("cpu", 64, [128, 128, 128]),
        ("cpu", 224, [128, 128, 128]),
        ("gpu", 64, [128, 256, 256]),
        ("gpu", 224, [256, 256, 256]),
    ],
)
def test_the_finest_level_is_wide_enough_for_its_latents(name, image_size, channels):
    assert PRESETS[name].for_image_size(image_size).diffusion["channels"] == channels


def test_steps_of_several_batches_show_as_many_tiles():
    preset = PRESETS["cpu"]
    for step in ("autoencoder", "diffusion"):
        options = preset.options(step)
        fourth = {"batch_size": options["batch_size"] // 4, "gradient_accumulation_steps": 4}
        accumulated = preset.with_options(step, fourth)
        assert accumulated.diffusion_steps(1000) == preset.diffusion_steps(1000)
    accumulated = preset.with_options("autoencoder", {"gradient_accumulation_steps": 2, "max_train_steps": 1000})
    whole, halves = preset.for_image_size(64).autoencoder, accumulated.for_image_size(64).autoencoder
    assert halves["train_pixels"] == whole["train_pixels"]
    assert 2 * halves["validation_steps"] == whole["validation_steps"]
