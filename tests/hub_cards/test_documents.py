from __future__ import annotations

import json

import pytest
from diffusers import AutoencoderDC, DPMSolverMultistepScheduler, UNet2DModel

from histodistill.hub_cards import ContentError
from histodistill.hub_cards.documents import (
    CommunityParams,
    parse_json,
    plain_name,
    read_config,
    read_model_index,
    read_selector_config,
    write_document,
    write_selector_config,
)
from histodistill.selection import QUOTA_RULES, RANKINGS, SELECTORS, WEIGHTINGS, DistillSelector
from histodistill.training.data.medmnist import MEDMNIST
from histodistill.training.models.autoencoder import build_autoencoder
from histodistill.training.models.denoiser import build_denoiser, make_scheduler


BASE64 = "iVBORw0KGgoAAAANSUhEUgAAABwAAAAcCAIAAAD9b0jDAAAA" * 20


def saved_config(model) -> bytes:
    return write_document(json.loads(model.to_json_string()))


@pytest.fixture(scope="module")
def configs() -> dict[str, tuple[bytes, type]]:
    """The documents of a pipeline's components, as our trainings write them."""
    return {
        "unet": (saved_config(build_denoiser(8, 2, 3, [8, 16], 1, 1, 0.1)), UNet2DModel),
        "vae": (saved_config(build_autoencoder(16, [8, 8], 2, 1)), AutoencoderDC),
        "scheduler": (saved_config(make_scheduler("sample")), DPMSolverMultistepScheduler),
    }


# JSON.


@pytest.mark.parametrize(
    ("data", "found"),
    [
        (b'{"a": 1, "a": 2}', "has the key 'a' twice"),
        (b'{"a": {"b": 1, "b": 1}}', "has the key 'b' twice"),
        (b'{"a": NaN}', "NaN is no number"),
        (b'{"a": Infinity}', "Infinity is no number"),
        (b'{"a": -Infinity}', "-Infinity is no number"),
        (b'\xef\xbb\xbf{"a": 1}', "BOM"),
        ('{"a": 1}'.encode("utf-16"), "codec can't decode"),
        (b'{"a": "\xff"}', "codec can't decode"),
        (b'{"a": 1} x', "Extra data"),
        (b'{"a": 1,}', "no JSON as it should be"),
        (b"", "Expecting value"),
        (b"[" * 100_000, "nested too deeply"),
        (b"[" * 100_000 + b"]" * 100_000, "nested too deeply"),
        (b"9" * 5000, "Exceeds the limit"),
    ],
)
def test_what_is_no_json(data, found):
    with pytest.raises(ContentError, match=found) as caught:
        parse_json(data)
    assert len(str(caught.value)) < 200 and "\n" not in str(caught.value)


# Names.


@pytest.mark.parametrize(
    "name",
    ["adipose", "Tumor > 20%", "no: 'yes'", "Grad I/II", "cancer-associated stroma", "腫瘍", "Gefäß", "H&E+", "T[1]",
     "2", "01_TUMOR", "≥ 50 %", *(name for source in MEDMNIST.values() for name in source.class_names)],
)  # fmt: skip
def test_names_as_people_write_them(name):
    assert plain_name(name) == name


@pytest.mark.parametrize(
    "name",
    ["", " a", "a ", "a\nb", "a\tb", "/mnt/ward7/mueller.npz", "../x", "C:\\x", "C:/x", "file:///x", "https://x.org",
     "data:image/png;base64,AAAA", "<b>x", "x</b>", "<img src=x>", "[a](x\\", "`x`", "a|b", "a*b", "evil\u202egnp",
     "a\u200bb",
     "a\u2028b", "a\x00b", "a\x1b[31m", "a" * 41, "ab " * 40, "\ud800", "a//b", "a/", "~/x", "$HOME", "{{ x }}"],
)  # fmt: skip
def test_names_that_could_be_something_else(name):
    with pytest.raises(ValueError, match=r"^has "):
        plain_name(name)


# A pipeline.


def index_of(**changes) -> bytes:
    document = {
        "_class_name": ["pipeline", "HistologyPipeline"],
        "_diffusers_version": "0.42.1",
        "id2label": {"0": "fat", "1": "stroma"},
        "scheduler": ["diffusers", "DPMSolverMultistepScheduler"],
        "unet": ["diffusers", "UNet2DModel"],
        "vae": ["diffusers", "AutoencoderDC"],
    }
    return write_document({name: value for name, value in (document | changes).items() if value is not None})


def test_index_of_a_pipeline():
    index = read_model_index(index_of())
    assert index.class_names == ["fat", "stroma"] and index.components["vae"] == "AutoencoderDC"
    assert index.skip_noise == 0 and index.written() == index_of()
    for skip_noise in (0.0, 0.25):
        given = index_of(skip_noise=skip_noise)
        assert read_model_index(given).skip_noise == skip_noise and read_model_index(given).written() == given
    many = {str(label): f"class {label}" for label in range(12)}
    assert read_model_index(index_of(id2label=many)).class_names == list(many.values())


@pytest.mark.parametrize(
    "changes",
    [
        {"_note": BASE64},
        {"_name_or_path": "/mnt/ward7"},
        {"safety_checker": [None, None]},
        {"_class_name": ["pipeline", "Other"]},
        {"_class_name": "HistologyPipeline"},
        {"unet": ["evil", "UNet2DModel"]},
        {"unet": ["diffusers", "UNet2DModel", BASE64]},
        {"vae": ["diffusers", "AsymmetricAutoencoderKL"]},
        {"_diffusers_version": BASE64},
        {"_diffusers_version": "0.42.1\n"},
        {"_diffusers_version": 1},
        {"scheduler": None},
        {"id2label": {"0": "fat", "2": "stroma"}},
        {"id2label": {"0": "fat", "01": "stroma"}},
        {"id2label": {"0": "fat", "1": "fat"}},
        {"id2label": {"0": "fat", "1": 1}},
        {"id2label": {"0": "fat", "1": "/mnt/ward7/x"}},
        {"id2label": ["fat", "stroma"]},
        {"id2label": {}},
        {"skip_noise": -0.5},
        {"skip_noise": 1e300},
        {"skip_noise": BASE64},
    ],
)
def test_index_with_something_else(changes):
    with pytest.raises(ContentError, match=r"^(holds|its class) ") as caught:
        read_model_index(index_of(**changes))
    assert BASE64[:100] not in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("part", ["unet", "vae", "scheduler"])
def test_configurations_of_our_trainings_stay_as_they_are(configs, part):
    data, model = configs[part]
    assert write_document(read_config(data, model)) == data


@pytest.mark.parametrize(
    ("part", "changes"),
    [
        ("unet", {"_note": BASE64}),
        ("unet", {"note": 1}),
        ("unet", {"_name_or_path": "/mnt/ward7"}),
        ("unet", {"_diffusers_version": "0.42.1; " + BASE64}),
        ("unet", {"_diffusers_version": None}),
        ("unet", {"_class_name": "UNet2DConditionModel"}),
        ("unet", {"_class_name": ["UNet2DModel"]}),
        ("unet", {"act_fn": BASE64}),
        ("unet", {"act_fn": "gelu"}),
        ("unet", {"norm_eps": 1.0000000001e-05}),
        ("unet", {"add_attention": 1}),
        ("unet", {"freq_shift": False}),
        ("unet", {"dropout": 1.5}),
        ("unet", {"dropout": "0.1"}),
        ("unet", {"block_out_channels": [8] * 17}),
        ("unet", {"block_out_channels": [8, 2**40]}),
        ("unet", {"block_out_channels": [8, 16.5]}),
        ("unet", {"down_block_types": ["DownBlock2D", "KDownBlock2D"]}),
        ("unet", {"sample_size": True}),
        ("vae", {"scaling_factor": -1.0}),
        ("vae", {"scaling_factor": [1.0, 2.0]}),
        ("vae", {"encoder_qkv_multiscales": [[], [66]]}),
        ("vae", {"decoder_act_fns": ["silu", "sinh"]}),
        ("vae", {"encoder_out_shortcut": 1}),
        ("scheduler", {"trained_betas": [0.1] * 1000}),
        ("scheduler", {"trained_betas": []}),
        ("scheduler", {"lambda_min_clipped": -1e308}),
        ("scheduler", {"use_flow_sigmas": 2}),
        ("scheduler", {"flow_shift": 0.123456789}),
        ("scheduler", {"flow_shift": 1.5}),
        ("scheduler", {"num_train_timesteps": 1000.5}),
        ("scheduler", {"prediction_type": "epsilon"}),
        ("scheduler", {"prediction_type": "velocity"}),
        ("scheduler", {"solver_order": 2**60}),
    ],
)
def test_configurations_with_something_else(configs, part, changes):
    data, model = configs[part]
    with pytest.raises(ContentError) as caught:
        read_config(write_document(json.loads(data) | changes), model)
    assert BASE64[:100] not in str(caught.value) and "\n" not in str(caught.value)


def test_numbers_written_in_another_way_go_up_as_we_write_them(configs):
    data, model = configs["scheduler"]
    other = data.replace(b'"num_train_timesteps": 1000', b'"num_train_timesteps": 1.000000e3')
    other = other.replace(b'"use_flow_sigmas": true', b'"use_flow_sigmas": 1')
    assert other != data and write_document(read_config(other, model)) == data


@pytest.mark.parametrize("number", [b"1e999", b"NaN", b"Infinity", b"-Infinity", b"9" * 400])
def test_numbers_that_are_infinite_are_refused(configs, number):
    data, model = configs["vae"]
    scale = json.dumps(json.loads(data)["scaling_factor"]).encode()
    changed = data.replace(b'"scaling_factor": ' + scale, b'"scaling_factor": ' + number)
    assert changed != data
    with pytest.raises(ContentError):
        read_config(changed, model)


# A selector.


def test_schemas_know_the_selectors(tmp_path, blobs):
    for name, selector_class in SELECTORS.items():
        options = {"n_neighbors": 3} if name == "infomap" else {}
        selector = selector_class(n_per_class=2, **options).fit(*blobs)
        selector.save_pretrained(tmp_path / name)
        data = (tmp_path / name / "config.json").read_bytes()
        config = read_selector_config(data)
        assert config.class_name == selector_class.__name__
        assert write_selector_config(config, config.arrays_sha256) == data


def test_choices_of_the_community_selector():
    choices = {
        name: CommunityParams.model_fields[name].annotation.__args__ for name in ("quota", "ranking", "weighting")
    }
    assert choices == {"quota": QUOTA_RULES, "ranking": RANKINGS, "weighting": WEIGHTINGS}


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("note",), BASE64),
        (("class_name",), "Evil"),
        (("format_version",), 2),
        (("params", "note"), BASE64),
        (("params", "quota"), BASE64),
        (("params", "random_state"), 2**40),
        (("params", "markov_time"), "1"),
        (("params", "n_per_class"), [2]),
        (("fitted", "classes_"), ["a", "b"]),
        (("fitted", "n_features_in_"), 2**70),
        (("versions", "evil"), "1.0"),
        (("versions", "numpy"), BASE64),
        (("arrays_sha256",), "x" * 64),
    ],
)
def test_selectors_with_something_else(tmp_path, blobs, place, value):
    DistillSelector(n_per_class=2, n_neighbors=3).fit(*blobs).save_pretrained(tmp_path)
    document = json.loads((tmp_path / "config.json").read_bytes())
    target = document
    for key in place[:-1]:
        target = target[key]
    target[place[-1]] = value
    with pytest.raises(ContentError, match="holds something unknown") as caught:
        read_selector_config(json.dumps(document).encode())
    assert BASE64[:100] not in str(caught.value)
