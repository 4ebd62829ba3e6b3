from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from histodistill.training.models.architectures import ARCHITECTURES, DEFAULT_WIDTHS
from histodistill.training.models.backbones import ConvNetBackbone, _HalvePool
from histodistill.training.models.classifiers import Classifier
from histodistill.training.models.stain import standardize_stain
from histodistill.training.running.errors import InputError


NAMES = ["adipose", "stroma", "mucus"]


def tiny(architecture: str, image_size: int = 16, **options) -> Classifier:
    torch.manual_seed(0)
    return Classifier(architecture, image_size=image_size, class_names=NAMES, width=8, **options)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("image_size", [16, 28, 64])
def test_shapes(architecture, image_size):
    model = tiny(architecture, image_size)
    output = model(torch.zeros(2, 3, image_size, image_size))
    assert output.logits.shape == (2, 3)
    assert output.features.shape == (2, model.num_features)
    torch.testing.assert_close(model.head(output.features), output.logits)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_saved_and_loaded_it_is_the_same(architecture, tmp_path):
    model = tiny(architecture).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-1, 1)
    model.save_pretrained(tmp_path)
    assert {"config.json", "model.safetensors"} <= {path.name for path in tmp_path.iterdir()}
    assert json.loads((tmp_path / "config.json").read_text())["class_names"] == NAMES
    again = Classifier.from_pretrained(tmp_path)
    assert (again.architecture, again.class_names, again.image_size) == (architecture, NAMES, 16)
    pixels = torch.rand(3, 3, 16, 16) * 2 - 1
    with torch.no_grad():
        assert torch.equal(again.eval()(pixels).logits, model(pixels).logits)


@pytest.mark.parametrize("architecture", ["convnet", "resnet18"])
def test_evened_out_stain_is_a_part_of_the_model(architecture, tmp_path):
    model, plain = tiny(architecture, normalize_stain=True).eval(), tiny(architecture).eval()
    assert not plain.normalize_stain
    model.save_pretrained(tmp_path)
    again = Classifier.from_pretrained(tmp_path).eval()
    assert again.normalize_stain
    density = 0.1 + torch.rand(3, 3, 16, 16)
    pixels, stronger = ((-amount * density).exp() * 2 - 1 for amount in (1, 1.5))
    with torch.no_grad():
        # The weights are the plain model's; tiles go through the function first.
        expected = plain(standardize_stain(pixels)).logits
        for classifier in (model, again):
            assert torch.equal(classifier(pixels).logits, expected)
            torch.testing.assert_close(classifier(stronger).logits, expected, atol=1e-4, rtol=0)
        assert not torch.allclose(plain(stronger).logits, plain(pixels).logits, atol=1e-3)


def test_a_classifier_saved_before_there_was_the_option_loads(tmp_path):
    tiny("convnet").save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    del config["normalize_stain"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert not Classifier.from_pretrained(tmp_path).normalize_stain


@pytest.mark.parametrize("shape", [(8, 8), (7, 7), (2, 2), (3, 2), (5, 8)])
def test_pooling_is_that_of_torch(shape):
    maps = torch.randn(3, 4, *shape, generator=torch.Generator().manual_seed(0), requires_grad=True)
    found, expected = _HalvePool()(maps), nn.AvgPool2d(2)(maps)
    torch.testing.assert_close(found, expected)
    weights = torch.randn_like(expected)
    gradients = [torch.autograd.grad((pooled * weights).sum(), maps)[0] for pooled in (found, expected)]
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize(
    ("image_size", "blocks", "side"), [(16, 3, 2), (28, 3, 3), (32, 3, 4), (64, 4, 4), (128, 5, 4), (224, 6, 3)]
)
def test_convnet_grows_with_the_image(image_size, blocks, side):
    backbone = ConvNetBackbone(image_size, width=4)
    assert backbone.num_blocks == blocks
    assert backbone(torch.zeros(1, 3, image_size, image_size)).shape == (1, 4 * side * side)


def test_convnet_is_the_standard_one():
    # 3 blocks of width 128 at 32 px: 0.3 M parameters in the convolutions, as in the literature's ConvNet.
    model = Classifier("convnet", num_classes=10, image_size=32)
    convolutions = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
    assert [(c.in_channels, c.out_channels) for c in convolutions] == [(3, 128), (128, 128), (128, 128)]
    assert sum(p.numel() for p in model.parameters()) == 320_010


def test_convnet_norm_is_per_image_and_channel():
    model = tiny("convnet").eval()
    norm = next(m for m in model.modules() if isinstance(m, nn.GroupNorm))
    maps = torch.randn(4, 8, 6, 6)
    torch.testing.assert_close(norm(maps), nn.functional.instance_norm(maps))


@pytest.mark.parametrize(("image_size", "side"), [(28, 28), (64, 64), (96, 24)])
def test_resnet_stem(image_size, side):
    model = tiny("resnet18", image_size)
    assert model.backbone.stem(torch.zeros(1, 3, image_size, image_size)).shape == (1, 8, side, side)


def test_resnet18_has_the_papers_size():
    # 11,689,512 parameters with 1,000 classes, in the paper's layout above 64 px.
    model = Classifier("resnet18", num_classes=1000, image_size=224)
    assert sum(p.numel() for p in model.parameters()) == 11_689_512


def test_vit_default_size():
    model = Classifier("vit", num_classes=9, image_size=28)
    config = model.backbone.vit.config
    found = (config.hidden_size, config.num_hidden_layers, config.num_attention_heads, config.patch_size)
    assert found == (192, 6, 3, 4)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_parameter_gets_a_gradient(architecture):
    # DistributedDataParallel stops at parameters without one.
    model = tiny(architecture)
    model(torch.rand(4, 3, 16, 16)).logits.square().sum().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


def test_only_batch_norm_goes_channels_last():
    for architecture in ARCHITECTURES:
        model = tiny(architecture)
        is_last = model.memory_format == torch.channels_last
        assert is_last == any(isinstance(m, nn.BatchNorm2d) for m in model.modules())


def test_names_and_widths_have_defaults():
    model = Classifier("convnet", num_classes=2, image_size=8)
    assert model.class_names == ["0", "1"]
    assert model.num_classes == 2
    assert model.width == DEFAULT_WIDTHS["convnet"] == 128


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"architecture": "vgg"}, "architecture='vgg' is unknown: it must be one of convnet, resnet18, vit"),
        ({"num_classes": 1}, "num_classes=1 is out of range"),
        ({"num_classes": None}, "num_classes=0 is out of range"),
        ({"num_classes": 3, "class_names": ["a", "b"]}, "class_names has 2 names and num_classes=3"),
        ({"image_size": 7}, "image_size=7 is out of range: it must be at least 8"),
        ({"width": 0}, "width=0 is out of range"),
        ({"architecture": "vit", "image_size": 30}, "image_size=30 doesn't suit a vit: it must be a multiple of 4"),
        ({"architecture": "vit", "width": 193}, "width=193 doesn't suit a vit"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(InputError, match=message):
        Classifier(**{"num_classes": 3, **options})
