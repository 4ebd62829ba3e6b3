from __future__ import annotations

import json
import re
import struct

import numpy as np
import pytest
import torch
from diffusers import AutoencoderDC, UNet2DModel
from safetensors.numpy import load, save
from safetensors.torch import save as save_torch

from histodistill.hub_cards import ContentError
from histodistill.hub_cards.documents import read_config, read_selector_config, write_document
from histodistill.hub_cards.weights import (
    WEIGHTS_METADATA,
    check_selector_values,
    model_arrays,
    read_arrays,
    round_selector_values,
    selector_arrays,
    write_arrays,
)
from histodistill.selection import SELECTORS
from histodistill.training.models.autoencoder import build_autoencoder
from histodistill.training.models.denoiser import build_denoiser


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return build_denoiser(8, 2, 3, [8, 16], 1, 1)


@pytest.fixture(scope="module")
def expected(model):
    config = read_config(write_document(json.loads(model.to_json_string())), UNet2DModel)
    return model_arrays(UNet2DModel, config)


@pytest.fixture
def arrays(model):
    return {name: tensor.numpy().copy() for name, tensor in model.state_dict().items()}


def refusal(data, expected, metadata=WEIGHTS_METADATA) -> str:
    with pytest.raises(ContentError) as caught:
        read_arrays(data, expected, metadata)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300
    return str(caught.value)


def test_weights_of_our_models_stay_as_they_are(model, expected):
    data = save_torch(model.state_dict(), WEIGHTS_METADATA)
    assert write_arrays(read_arrays(data, expected, WEIGHTS_METADATA), WEIGHTS_METADATA) == data
    autoencoder = build_autoencoder(16, [8, 8], 2, 1)
    config = read_config(write_document(json.loads(autoencoder.to_json_string())), AutoencoderDC)
    data = save_torch(autoencoder.state_dict(), WEIGHTS_METADATA)
    arrays = read_arrays(data, model_arrays(AutoencoderDC, config), WEIGHTS_METADATA)
    assert write_arrays(arrays, WEIGHTS_METADATA) == data


def test_no_model_of_such_numbers():
    config = json.loads(build_denoiser(8, 2, 3, [8, 16], 1, 1).to_json_string()) | {"norm_num_groups": 7}
    with pytest.raises(ContentError, match="describes no UNet2DModel"):
        model_arrays(UNet2DModel, read_config(write_document(config), UNet2DModel))


def change(arrays, name="conv_in.bias", **changes):
    found = arrays[name]
    if "dtype" in changes:
        found = found.astype(changes["dtype"])
    if "rows" in changes:
        found = np.concatenate([found, found[: changes["rows"]]])
    if "value" in changes:
        found = found.copy()
        found.flat[0] = changes["value"]
    return {**arrays, name: found}


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"dtype": np.float64}, "conv_in.bias as float64 of shape"),
        ({"dtype": np.float16}, "conv_in.bias as float16"),
        ({"dtype": np.uint8}, "conv_in.bias as uint8"),
        ({"rows": 1}, r"conv_in.bias as float32 of shape \(9,\)"),
        ({"value": np.nan}, "conv_in.bias with values that are no numbers"),
        ({"value": np.inf}, "conv_in.bias with values that are no numbers"),
    ],
)
def test_arrays_of_another_kind(arrays, expected, changes, found):
    assert re.search(found, refusal(save(change(arrays, **changes), WEIGHTS_METADATA), expected))


def test_arrays_that_are_not_known_or_missing(arrays, expected):
    extra = {**arrays, "hidden.tiles": np.zeros((2, 8, 8, 3), np.uint8)}
    assert "the array hidden.tiles, which is not known" in refusal(save(extra, WEIGHTS_METADATA), expected)
    empty = {**arrays, "x" * 5000: np.zeros(0, np.float32)}
    assert "which is not known" in refusal(save(empty, WEIGHTS_METADATA), expected)
    del arrays["conv_in.bias"]
    assert "has no array conv_in.bias" in refusal(save(arrays, WEIGHTS_METADATA), expected)


@pytest.mark.parametrize("about", [None, {"format": "np"}, {"format": "pt", "patient": "x"}, {"Format": "pt"}])
def test_what_weights_say_about_themselves(arrays, expected, about):
    assert "something else than arrays" in refusal(save(arrays, about), expected)


def rebuilt(data: bytes, change) -> bytes:
    """A safetensors file with another header: `change` takes it as text and the length of the data."""
    length = struct.unpack("<Q", data[:8])[0]
    header = change(data[8 : 8 + length].decode()).encode()
    return struct.pack("<Q", len(header)) + header + data[8 + length :]


def test_bytes_that_belong_to_no_array(arrays, expected):
    data = save(arrays, WEIGHTS_METADATA)
    assert "something else than arrays" in refusal(data + b"patient", expected)
    assert "something else than arrays" in refusal(data[:-1], expected)
    assert "something else than arrays" in refusal(b"", expected)
    assert "something else than arrays" in refusal(struct.pack("<Q", 2**60) + data[8:], expected)
    assert "no JSON as it should be" in refusal(rebuilt(data, lambda text: text.replace("{", "{\x00", 1)), expected)
    twice = rebuilt(data, lambda text: '{"conv_in.bias":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},' + text[1:])
    assert "twice" in refusal(twice, expected)
    # A hole between two arrays.
    header = json.loads(data[8 : 8 + struct.unpack("<Q", data[:8])[0]])
    for about in header.values():
        if "data_offsets" in about and about["data_offsets"][0] > 0:
            about["data_offsets"] = [place + 16 for place in about["data_offsets"]]
    moved = json.dumps(header)
    assert "something else than arrays" in refusal(rebuilt(data + bytes(16), lambda _: moved), expected)


def test_spaces_and_order_of_a_header_do_not_go_up(arrays, expected):
    data = save(arrays, WEIGHTS_METADATA)
    padded = rebuilt(data, lambda text: json.dumps(dict(reversed(json.loads(text).items())), indent=3) + " " * 64)
    assert padded != data
    assert write_arrays(read_arrays(padded, expected, WEIGHTS_METADATA), WEIGHTS_METADATA) == data


# A selector.


@pytest.fixture(params=list(SELECTORS))
def selector(request, tmp_path, blobs):
    """Configuration and file of a fitted selector of 40 images in two classes."""
    options = {"n_neighbors": 3} if request.param == "infomap" else {}
    SELECTORS[request.param](n_per_class=2, **options).fit(*blobs).save_pretrained(tmp_path)
    config = read_selector_config((tmp_path / "config.json").read_bytes())
    return config, (tmp_path / "selector.safetensors").read_bytes()


def test_arrays_of_our_selectors_stay_as_they_are(selector):
    config, data = selector
    arrays = read_arrays(data, selector_arrays(config, 2, 40), None)
    check_selector_values(arrays, 40)
    assert write_arrays(arrays, None) == data


def test_low_bits_of_a_selector_do_not_go_up(selector):
    """Each number that is not whole has room for 63 bits; after rounding, a message in them cannot be read."""
    config, data = selector
    arrays = read_arrays(data, selector_arrays(config, 2, 40), None)
    rounded = round_selector_values(arrays)
    check_selector_values(rounded, 40)
    again = round_selector_values(rounded)
    for name, values in arrays.items():
        np.testing.assert_array_equal(again[name], rounded[name])
        np.testing.assert_allclose(rounded[name], values, rtol=1e-3, atol=1e-12)
        if values.dtype.kind == "f":
            hidden = np.where(values > 0, np.nextafter(rounded[name], 1), 1e-300)
            np.testing.assert_array_equal(round_selector_values({name: hidden})[name], rounded[name])


def test_arrays_of_a_selector_with_another_shape(selector):
    config, data = selector
    expected = selector_arrays(config, 2, 40)
    for name, array in load(data).items():
        longer = {**load(data), name: np.concatenate([array, array[:1]])}
        assert f"holds the array {name} as" in refusal(save(longer), expected, None)
        square = {**load(data), name: np.stack([array, array])}
        assert f"holds the array {name} as" in refusal(save(square), expected, None)
    assert "has no array" in refusal(save({"classes_": np.arange(2)}), expected, None)
    assert "something else than arrays" in refusal(save(load(data), {"patient": "x"}), expected, None)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("classes_", -1),
        ("classes_", 7),
        ("selected_indices_", 40),
        ("selected_indices_", -1),
        ("selected_indices_", "twice"),
        ("module_labels_", 40),
        ("module_labels_", -2),
        ("num_communities_", -1),
        ("num_communities_", 41),
        ("flow_", -0.1),
        ("flow_", 3.0),
        ("modular_centrality_", -1.0),
        ("modular_centrality_", 1e9),
        ("codelength_", 1e9),
    ],
)
def test_values_that_a_selector_cannot_have(tmp_path, blobs, name, value):
    SELECTORS["infomap"](n_per_class=2, n_neighbors=3).fit(*blobs).save_pretrained(tmp_path)
    arrays = load((tmp_path / "selector.safetensors").read_bytes())
    arrays[name][0] = arrays[name][1] if value == "twice" else value
    with pytest.raises(ContentError, match=f"holds the array {name} with values that it cannot have"):
        check_selector_values(arrays, 40)
