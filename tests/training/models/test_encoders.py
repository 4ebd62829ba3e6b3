"""Vision models by folder: tiny ones of each kind, with random weights; nothing is fetched."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import nn

from histodistill.training.data.pixels import to_model_input
from histodistill.training.models.classifiers import ENCODER, Classifier
from histodistill.training.models.embedders import classifier_on, embed_images
from histodistill.training.models.encoders import ClassifierBody, VisionEncoder, encoder_from_data, refuse_foreign
from histodistill.training.models.loading import load_classifier
from histodistill.training.models.prediction import embed, predict_proba
from histodistill.training.models.preprocessing import IMAGENET_MEAN, Preprocessing
from histodistill.training.models.pretrained import load_classifier_body, load_vision_encoder, new_classifier_body
from histodistill.training.running.errors import InputError


TRANSFORMER = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
PATCHES = {"image_size": 16, "patch_size": 8}
TEXT = {**TRANSFORMER, "vocab_size": 9, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
STAGES = {"depths": [1, 1], "hidden_sizes": [8, 12]}
SIMPLE = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, **PATCHES}
# Kind of a model → its config and the class that is saved.
CONFIGS = {
    "vit": ("ViTConfig", {**TRANSFORMER, **PATCHES}, "ViTModel"),
    "dinov2": ("Dinov2Config", SIMPLE, "Dinov2Model"),
    "dinov2_with_registers": ("Dinov2WithRegistersConfig", SIMPLE, "Dinov2WithRegistersModel"),
    "dinov3_vit": ("DINOv3ViTConfig", {**TRANSFORMER, **PATCHES}, "DINOv3ViTModel"),
    "clip": ("CLIPConfig", {"vision_config": {**TRANSFORMER, **PATCHES}, "text_config": TEXT}, "CLIPModel"),
    "siglip": ("SiglipConfig", {"vision_config": {**TRANSFORMER, **PATCHES}, "text_config": TEXT}, "SiglipModel"),
    "swin": (
        "SwinConfig",
        {"image_size": 16, "patch_size": 2, "embed_dim": 8, "depths": [1, 1], "num_heads": [2, 2], "window_size": 4},
        "SwinModel",
    ),
    "convnext": ("ConvNextConfig", {**STAGES, "num_stages": 2}, "ConvNextModel"),
    "resnet": ("ResNetConfig", {**STAGES, "embedding_size": 8, "layer_type": "basic"}, "ResNetModel"),
    "beit": ("BeitConfig", {**TRANSFORMER, **PATCHES}, "BeitModel"),
    "vit_mae": (
        "ViTMAEConfig",
        {
            **TRANSFORMER,
            **PATCHES,
            "decoder_hidden_size": 8,
            "decoder_num_hidden_layers": 1,
            "decoder_num_attention_heads": 2,
            "decoder_intermediate_size": 8,
        },
        "ViTMAEForPreTraining",
    ),
    "hiera": (
        "HieraConfig",
        {
            "embed_dim": 8,
            "image_size": [16, 16],
            "patch_stride": [4, 4],
            "patch_size": [7, 7],
            "patch_padding": [3, 3],
            "depths": [1, 1],
            "num_heads": [1, 2],
            "masked_unit_size": [2, 2],
            "query_stride": [2, 2],
            "num_query_pool": 1,
        },
        "HieraModel",
    ),
}
CLASSIFIERS = ["vit", "dinov2", "clip", "siglip", "swin", "convnext", "resnet", "beit", "hiera"]
NAMES = ["a", "b", "c"]


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 255, (3, 16, 16, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Gives the folder of a model of a kind, with weights and without an image processor."""
    root, made = tmp_path_factory.mktemp("models"), {}

    def folder_of(kind: str) -> Path:
        if kind not in made:
            config_name, options, model_name = CONFIGS[kind]
            config = getattr(transformers, config_name)(**options)
            torch.manual_seed(0)
            getattr(transformers, model_name)(config).save_pretrained(root / kind)
            made[kind] = root / kind
        return made[kind]

    return folder_of


def native(kind: str, folder: Path, images: np.ndarray) -> torch.Tensor:
    """What the library itself makes of tiles, by the rule that stands in the documentation."""
    pixels = Preprocessing(16 if kind not in ("convnext", "resnet") else 224)(to_model_input(images))
    with torch.no_grad():
        if kind == "clip":
            return transformers.CLIPModel.from_pretrained(folder).eval().vision_model(pixels).pooler_output
        if kind == "siglip":
            return transformers.SiglipModel.from_pretrained(folder).eval().vision_model(pixels).pooler_output
        if kind == "vit_mae":
            model = transformers.ViTMAEModel.from_pretrained(folder, mask_ratio=0.0).eval()
            return model(pixels).last_hidden_state.mean(1)
        output = transformers.AutoModel.from_pretrained(folder).eval()(pixels)
        if kind.startswith("dino"):
            return output.last_hidden_state[:, 0]
        return output.pooler_output.flatten(1)


@pytest.mark.parametrize("kind", CONFIGS)
def test_features_of_each_kind_of_model(folders, images, kind, capsys):
    found = embed_images(folders(kind), images, batch_size=2)
    assert found.dtype == np.float32 and len(np.unique(found.round(5), axis=0)) == 3
    np.testing.assert_allclose(found, native(kind, folders(kind), images).numpy(), rtol=1e-3, atol=1e-4)
    assert f"{kind} has no image processor: tiles are brought to" in capsys.readouterr().err


@pytest.mark.parametrize("kind", CONFIGS)
def test_an_encoder_is_built_again_from_data(folders, images, kind):
    encoder = load_vision_encoder(folders(kind))
    data = json.loads(json.dumps(encoder.to_data()))
    again = encoder_from_data(data).eval()
    again.load_state_dict(encoder.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(again(to_model_input(images)), encoder(to_model_input(images)))
    assert again.to_data() == data
    assert str(folders(kind)) not in json.dumps(data)


@pytest.mark.parametrize("kind", CLASSIFIERS)
def test_a_classifier_with_a_new_head_on_pretrained_weights(folders, tmp_path, images, kind):
    body = load_classifier_body(folders(kind))
    torch.manual_seed(0)
    model = Classifier(ENCODER, image_size=16, class_names=NAMES, encoder=body).eval()
    output = model(to_model_input(images))
    assert output.logits.shape == (3, 3)
    torch.testing.assert_close(model.head(output.features), output.logits)
    kept = body.state_dict()
    pretrained = load_file(folders(kind) / "model.safetensors")
    same = [a for a in kept.values() for b in pretrained.values() if a.shape == b.shape and torch.equal(a, b)]
    assert len(same) >= len(kept) / 2  # these are the weights of the folder
    model.save_pretrained(tmp_path)
    again = load_classifier(tmp_path)
    np.testing.assert_array_equal(predict_proba(again, images), predict_proba(model, images))
    np.testing.assert_array_equal(embed_images(tmp_path, images), embed(model, images))
    assert str(folders(kind)) not in (tmp_path / "config.json").read_text()
    np.testing.assert_array_equal(
        predict_proba(Classifier.from_pretrained(tmp_path), images), predict_proba(model, images)
    )


def test_every_weight_that_is_trained_has_a_gradient(folders, images):
    """Several processes wait for the gradients of all weights that are trained."""
    model = Classifier(ENCODER, image_size=16, class_names=NAMES, encoder=load_classifier_body(folders("dinov2")))
    model(to_model_input(images)).logits.sum().backward()
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert [name for name, parameter in model.named_parameters() if parameter.grad is not None] == trained
    assert "backbone.model.dinov2.embeddings.mask_token" not in trained


def test_a_new_network_of_a_config_alone(folders, tmp_path, images):
    config = transformers.ViTConfig(**TRANSFORMER, **PATCHES, hidden_dropout_prob=0.5)
    config.save_pretrained(tmp_path)
    with pytest.raises(InputError, match=f"write scratch:{tmp_path} to train the network of its config"):
        load_classifier_body(tmp_path)
    torch.manual_seed(0)
    first = new_classifier_body(tmp_path)
    torch.manual_seed(0)
    second = new_classifier_body(tmp_path)
    pixels = to_model_input(images)
    torch.testing.assert_close(first(pixels), second(pixels))  # in training mode: nothing is dropped out
    third = new_classifier_body(tmp_path)
    assert not torch.equal(first(pixels), third(pixels))


def test_a_new_convolutional_network_takes_tiles_as_large_as_they_are(tmp_path, images):
    transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8], depths=[1]).save_pretrained(tmp_path)
    assert new_classifier_body(tmp_path).preprocessing.side is None


def test_what_is_no_classifier(folders):
    with pytest.raises(InputError, match=r"architecture .* cannot be loaded: a network of the kind dinov3_vit is not"):
        load_classifier_body(folders("dinov3_vit"))


def test_weights_that_are_missing_are_no_random_ones(folders, tmp_path):
    source = folders("vit")
    weights = load_file(source / "model.safetensors")
    lacking = next(name for name in weights if name.endswith("query.weight") or "q_proj.weight" in name)
    (tmp_path / "config.json").write_bytes((source / "config.json").read_bytes())
    save_file({k: v for k, v in weights.items() if k != lacking}, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(InputError, match=r"lacks 1 arrays of weights, such as .*: give the whole model"):
        load_vision_encoder(tmp_path)


def test_a_pickle_is_not_read(folders, tmp_path):
    source = folders("vit")
    (tmp_path / "config.json").write_bytes((source / "config.json").read_bytes())
    torch.save(load_file(source / "model.safetensors"), tmp_path / "pytorch_model.bin")
    with pytest.raises(InputError, match="cannot be loaded"):
        load_vision_encoder(tmp_path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"kind": "pickle"}, "cannot be built"),
        ({"config": {"model_type": "mine"}}, "knows no network of the kind 'mine'"),
        ({"config": {"model_type": "vit", "auto_map": {"AutoModel": "code.Model"}}}, "config.json has auto_map"),
        ({"config": {"model_type": "vit", "hidden_size": "wide"}}, "cannot be built"),
        ({"preprocessing": {"side": 10**9}}, "is no way to prepare tiles"),
    ],
)
def test_data_of_no_encoder(folders, change, words):
    data = load_vision_encoder(folders("vit")).to_data()
    with pytest.raises(InputError, match=words) as error:
        encoder_from_data({**data, **change})
    assert "\n" not in str(error.value)


def test_a_part_from_elsewhere_is_refused():
    with pytest.raises(InputError, match="comes from another model"):
        refuse_foreign(SimpleNamespace(model_type="detr", backbone="resnet50", use_timm_backbone=True))


def test_the_pooler_of_a_vit_counts_where_its_weights_are_there(folders, tmp_path, images):
    torch.manual_seed(0)
    transformers.ViTModel(transformers.ViTConfig(**TRANSFORMER, **PATCHES), add_pooling_layer=False).save_pretrained(
        tmp_path
    )
    with_pooler, without = load_vision_encoder(folders("vit")), load_vision_encoder(tmp_path)
    assert isinstance(with_pooler, VisionEncoder) and isinstance(without, VisionEncoder)
    assert (with_pooler.pooled, without.pooled) == (True, False)


@pytest.mark.parametrize("kind", ["untrained", "classifier", "autoencoder", "vision"])
def test_a_new_head_on_any_embedder(folders, tiny_teacher, tiny_autoencoder, tmp_path, images, kind):
    name = {"classifier": tiny_teacher, "autoencoder": tiny_autoencoder, "vision": folders("dinov2")}.get(kind, kind)
    model = classifier_on(name, 16, NAMES)
    assert model.class_names == NAMES
    np.testing.assert_allclose(embed(model, images), embed_images(name, images), rtol=1e-4, atol=1e-5)
    model.save_pretrained(tmp_path)
    np.testing.assert_array_equal(predict_proba(load_classifier(tmp_path), images), predict_proba(model, images))
    assert not any(path.suffix not in (".json", ".safetensors", ".md") for path in tmp_path.iterdir())


def test_tiles_of_another_size_than_a_classifier_takes(tiny_teacher):
    with pytest.raises(InputError, match="takes tiles of 16 px, and these have 20 px: give a classifier of such"):
        classifier_on(tiny_teacher, 20, NAMES)


class FakeTimm:
    """Stands for the library, which needs one that is not installed for tests."""

    def __init__(self) -> None:
        self.calls: list = []

    def create_model(
        self, name: str, pretrained: bool, num_classes: int, checkpoint_path: str = "", **options
    ) -> nn.Module:
        assert not checkpoint_path
        self.calls.append((name, pretrained, num_classes, options))
        return nn.Sequential(nn.Conv2d(3, options["width"], 8), nn.AdaptiveAvgPool2d(1), nn.Flatten())


@pytest.fixture
def timm_folder(tmp_path):
    torch.manual_seed(0)
    model = FakeTimm().create_model("vit_tiny", False, 0, width=6)
    weights = {**model.state_dict(), "head.weight": torch.zeros(2, 6)}
    save_file(weights, tmp_path / "model.safetensors")
    config = {
        "architecture": "vit_tiny",
        "num_classes": 2,
        "model_args": {"width": 6},
        "pretrained_cfg": {
            "input_size": [3, 24, 24],
            "interpolation": "bilinear",
            "crop_pct": 0.75,
            "mean": [0.5] * 3,
        },
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    return tmp_path


@pytest.mark.parametrize("prefix", ["", "timm:"])
def test_a_model_of_timm(timm_folder, tmp_path_factory, monkeypatch, images, prefix):
    library = FakeTimm()
    monkeypatch.setitem(sys.modules, "timm", library)
    found = embed_images(f"{prefix}{timm_folder}", images)
    assert library.calls == [("vit_tiny", False, 0, {"width": 6})]
    model = library.create_model("vit_tiny", False, 0, width=6)
    model.load_state_dict({k: v for k, v in load_file(timm_folder / "model.safetensors").items() if "head" not in k})
    preprocessing = Preprocessing(32, 24, "bilinear", (0.5,) * 3)
    with torch.no_grad():
        np.testing.assert_allclose(found, model(preprocessing(to_model_input(images))).numpy(), rtol=1e-5, atol=1e-5)
    probe, folder = classifier_on(f"{prefix}{timm_folder}", 16, NAMES), tmp_path_factory.mktemp("probe")
    probe.save_pretrained(folder)
    np.testing.assert_array_equal(embed_images(folder, images), found)


def test_timm_is_asked_for_where_it_is_not_installed(timm_folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    for name in (timm_folder, "timm:vit_small_patch16_224"):
        with pytest.raises(InputError, match=r"needs that library .*pip install 'histodistill\[timm\]'"):
            load_vision_encoder(name)


def test_a_model_of_timm_whose_config_does_not_say_all(timm_folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", FakeTimm())
    config = json.loads((timm_folder / "config.json").read_text())
    (timm_folder / "config.json").write_text(json.dumps({**config, "model_args": {"width": 5}}))
    with pytest.raises(InputError, match=r"weights do not fit .* says in model_args how it is made"):
        load_vision_encoder(timm_folder)
    (timm_folder / "config.json").write_text(json.dumps({**config, "model_args": {"checkpoint_path": "/weights.pth"}}))
    with pytest.raises(InputError, match="model_args holds checkpoint_path: give the folder of a model that is whole"):
        load_vision_encoder(timm_folder)
    (timm_folder / "config.json").write_text(json.dumps({**config, "architecture": "hf-hub:user/model"}))
    with pytest.raises(InputError, match="is no network of timm"):
        load_vision_encoder(timm_folder)


def test_a_gated_model_says_what_to_do(monkeypatch):
    from huggingface_hub.errors import GatedRepoError

    def refuse(*_, **__):
        try:
            raise GatedRepoError("no", response=SimpleNamespace(headers={}, request=None))
        except GatedRepoError as error:
            raise OSError("cannot load") from error

    monkeypatch.setattr(transformers.AutoConfig, "from_pretrained", refuse)
    with pytest.raises(InputError, match=r"MahmoodLab/UNI is gated on the Hub: ask for access .* `hf auth login`"):
        load_vision_encoder("MahmoodLab/UNI")


PROCESSORS = [
    ("ViTImageProcessorPil", {}),
    ("ViTImageProcessorPil", {"size": {"height": 48, "width": 48}, "resample": 3}),
    ("BitImageProcessorPil", {"size": {"shortest_edge": 256}, "crop_size": {"height": 224, "width": 224}}),
    ("CLIPImageProcessorPil", {}),
    ("SiglipImageProcessorPil", {}),
    ("ConvNextImageProcessorPil", {"size": {"shortest_edge": 224}}),
    ("ConvNextImageProcessorPil", {"size": {"shortest_edge": 384}}),
    ("BeitImageProcessorPil", {}),
    ("DeiTImageProcessorPil", {}),
    ("ViTImageProcessorPil", {"do_rescale": False, "image_mean": [127.5] * 3, "image_std": [127.5] * 3}),
    ("ViTImageProcessorPil", {"do_normalize": False}),
    ("ViTImageProcessorPil", {"do_resize": False}),
]


def processor_of(name: str, options: dict):
    from transformers.models.auto.image_processing_auto import get_image_processor_class_from_name

    return get_image_processor_class_from_name(name)(**options)


@pytest.mark.parametrize(("name", "options"), PROCESSORS)
@pytest.mark.parametrize("side", [28, 96, 300])
def test_tiles_are_prepared_as_by_the_processor(name, options, side):
    processor = processor_of(name, options)
    tile = np.random.default_rng(1).integers(0, 256, (side, side, 3), dtype=np.uint8)
    preprocessing = Preprocessing.of(processor)
    theirs = processor(images=[tile], return_tensors="np")["pixel_values"]
    ours = preprocessing(to_model_input(tile[None])).numpy()
    assert ours.shape == theirs.shape
    difference = (ours - theirs) * np.array(preprocessing.std).reshape(3, 1, 1)
    assert abs(difference).max() < 2 / 255  # Pillow rounds to whole levels, twice


def test_a_processor_that_does_more_is_refused():
    with pytest.raises(InputError, match="EfficientNetImageProcessorPil, which does more than resize"):
        Preprocessing.of(processor_of("EfficientNetImageProcessorPil", {}))


def test_the_processor_of_a_folder_is_used(folders, tmp_path, images, capsys):
    for file in folders("vit").iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    processor_of("ViTImageProcessorPil", {"size": {"height": 16, "width": 16}}).save_pretrained(tmp_path)
    encoder = load_vision_encoder(tmp_path)
    assert encoder.preprocessing == Preprocessing(16, None, "bilinear", (0.5,) * 3, (0.5,) * 3)
    assert "no image processor" not in capsys.readouterr().err
    assert load_vision_encoder(folders("vit")).preprocessing == Preprocessing(16, mean=IMAGENET_MEAN)


def test_a_processor_that_only_torchvision_has_is_read_as_data(folders, tmp_path):
    for file in folders("dinov3_vit").iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    settings = {"image_processor_type": "DINOv3ViTImageProcessorFast", "size": {"height": 16, "width": 16}}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))
    assert load_vision_encoder(tmp_path).preprocessing.side == 16


def test_the_head_is_found_and_cut():
    config = transformers.ViTConfig(**TRANSFORMER, **PATCHES)
    body = ClassifierBody.of(config, Preprocessing(16))
    assert isinstance(body.model.classifier, nn.Identity)
    with pytest.raises(InputError, match="does not end in one linear layer"):
        ClassifierBody(transformers.ViTForImageClassification(transformers.ViTConfig(**TRANSFORMER, **PATCHES)), 1)


def test_a_new_head_on_the_untrained_network_of_large_tiles(tmp_path):
    """Which brings tiles above 64 px to that size."""
    tiles = np.random.default_rng(0).integers(0, 255, (3, 128, 128, 3), dtype=np.uint8)
    model = classifier_on("untrained", 128, NAMES)
    found, expected = embed(model, tiles), embed_images("untrained", tiles)
    np.testing.assert_allclose(found, expected, atol=0.02 * np.abs(expected).max())
    model.save_pretrained(tmp_path)
    np.testing.assert_array_equal(predict_proba(load_classifier(tmp_path), tiles), predict_proba(model, tiles))


def test_colours_by_hand():
    image = np.zeros((1, 4, 4, 3), np.uint8)
    image[0, :2] = (255, 0, 64)  # boxes 3, 0 and 1
    image[0, 2, 0] = (63, 128, 255)  # boxes 0, 2 and 3
    np.testing.assert_allclose(
        embed_images("mean_colour", image), [image[0].mean(axis=(0, 1)) / 127.5 - 1], atol=1e-6
    )  # fmt: skip
    expected = np.zeros((4, 4, 4))  # blue, green, red
    expected[1, 0, 3], expected[3, 2, 0], expected[0, 0, 0] = 8 / 16, 1 / 16, 7 / 16
    np.testing.assert_allclose(embed_images("colour_histogram", image), [expected.reshape(-1)], atol=1e-6)


@pytest.mark.parametrize("name", ["mean_colour", "colour_histogram"])
def test_colours_do_not_know_where_they_are_and_are_saved(images, tmp_path, name):
    turned = np.rot90(images, axes=(1, 2)).copy()
    np.testing.assert_allclose(embed_images(name, images), embed_images(name, turned), atol=1e-6)
    model = classifier_on(name, images.shape[1], NAMES)
    model.save_pretrained(tmp_path)
    again = load_classifier(tmp_path)
    np.testing.assert_array_equal(predict_proba(again, images), predict_proba(model, images))
    with pytest.raises(InputError, match="is no encoder of colours: it must be one of mean_colour, colour_histogram"):
        encoder_from_data({"kind": "colours", "name": "texture"})
