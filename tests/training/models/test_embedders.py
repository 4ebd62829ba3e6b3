from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from diffusers import AutoencoderDC
from PIL import Image
from transformers import BertConfig, BertModel, ResNetConfig, ResNetModel, ViTConfig, ViTImageProcessor, ViTModel

from histodistill.selection.image_rows import rows_of
from histodistill.training.data.pixels import to_model_input
from histodistill.training.models import embedders
from histodistill.training.models.autoencoder import build_autoencoder
from histodistill.training.models.classifiers import Classifier
from histodistill.training.models.embedders import (
    classifier_on,
    describe_embedder,
    embed_images,
    embed_pool,
    embedder_fingerprint,
    is_autoencoder,
    load_embedder,
    named_embeddings,
)
from histodistill.training.models.loading import has_classifier
from histodistill.training.models.prediction import embed
from histodistill.training.running.errors import InputError


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 255, (5, 16, 16, 3), dtype=np.uint8)


def save_vision_model(folder, model) -> ViTImageProcessor:
    processor = ViTImageProcessor(size={"height": 16, "width": 16})
    processor.save_pretrained(folder)
    model.save_pretrained(folder)
    return processor


def tiny_vit(**options) -> ViTModel:
    torch.manual_seed(0)
    config = ViTConfig(
        image_size=16, patch_size=8, hidden_size=12, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8
    )
    return ViTModel(config, **options).eval()


def test_features_of_a_classifier(tiny_teacher, images):
    embeddings = embed_images(tiny_teacher, images, batch_size=2)
    expected = embed(Classifier.from_pretrained(tiny_teacher), images)
    assert embeddings.dtype == np.float32
    np.testing.assert_allclose(embeddings, expected, rtol=1e-4, atol=1e-5)


def test_pooled_output_of_a_transformer(tmp_path, images):
    model = tiny_vit()
    processor = save_vision_model(tmp_path, model)
    embeddings = embed_images(str(tmp_path), images, batch_size=2)
    inputs = processor([Image.fromarray(image) for image in images], return_tensors="pt")
    with torch.no_grad():
        expected = model(**inputs).pooler_output.numpy()
    assert (embeddings.dtype, embeddings.shape) == (np.float32, (5, 12))
    np.testing.assert_allclose(embeddings, expected, rtol=1e-4, atol=1e-5)


def test_a_pooler_that_was_never_trained_is_not_used(tmp_path, images):
    """Where the files hold no pooler, transformers makes a random one, another in each process."""
    model = tiny_vit(add_pooling_layer=False)
    processor = save_vision_model(tmp_path, model)
    embeddings = embed_images(tmp_path, images)
    inputs = processor([Image.fromarray(image) for image in images], return_tensors="pt")
    with torch.no_grad():
        expected = model(**inputs).last_hidden_state.mean(1).numpy()
    np.testing.assert_allclose(embeddings, expected, rtol=1e-4, atol=1e-5)


def test_convolutional_model(tmp_path, images):
    torch.manual_seed(0)
    model = ResNetModel(ResNetConfig(embedding_size=8, hidden_sizes=[8], depths=[1], layer_type="basic")).eval()
    save_vision_model(tmp_path, model)
    embeddings = embed_images(tmp_path, images)
    assert (embeddings.dtype, embeddings.shape) == (np.float32, (5, 8))
    assert len(np.unique(embeddings.round(4), axis=0)) == 5


@pytest.fixture(scope="module")
def autoencoder(tmp_path_factory):
    """The folder of an autoencoder that quarters tiles of 16 pixels to latents of 3×4×4."""
    folder = tmp_path_factory.mktemp("autoencoder")
    torch.manual_seed(0)
    build_autoencoder(16, [12, 12, 12], latent_channels=3, layers_per_block=1).save_pretrained(folder)
    return folder


def test_latents_of_an_autoencoder(autoencoder, images):
    embeddings = embed_images(str(autoencoder), images, batch_size=2)
    with torch.no_grad():
        latents = AutoencoderDC.from_pretrained(autoencoder).eval().encode(to_model_input(images)).latent
    assert latents.shape == (5, 3, 4, 4)
    assert (embeddings.dtype, embeddings.shape) == (np.float32, (5, 48))
    np.testing.assert_allclose(embeddings, latents.numpy().reshape(5, 48), rtol=1e-4, atol=1e-5)
    assert len(np.unique(embeddings.round(4), axis=0)) == 5


def test_tiles_that_an_autoencoder_cannot_take(autoencoder):
    with pytest.raises(InputError, match="a multiple of 4 px, and these have 18 px: give the autoencoder") as error:
        embed_images(autoencoder, np.zeros((2, 18, 18, 3), np.uint8))
    assert str(autoencoder) in str(error.value) and "\n" not in str(error.value)


def test_what_cannot_be_loaded(tmp_path, images):
    BertModel(
        BertConfig(hidden_size=4, num_hidden_layers=1, num_attention_heads=1, intermediate_size=4, vocab_size=9)
    ).save_pretrained(tmp_path / "text")
    (tmp_path / "empty").mkdir()
    for folder, words in {
        "text": "a network of the kind bert takes no pictures: give a vision model",
        "empty": "give a folder that train_classifier or",
        "none": "give a folder that train_classifier or",
    }.items():
        with pytest.raises(InputError, match=f"cannot be loaded: {words}") as error:
            embed_images(tmp_path / folder, images)
        assert "\n" not in str(error.value)


def test_has_classifier(tmp_path, tiny_teacher):
    assert has_classifier(tiny_teacher)
    assert has_classifier(str(tiny_teacher))
    assert not has_classifier(tmp_path)
    assert not has_classifier(tmp_path / "none")
    assert not has_classifier("user/model")
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "resnet18", "model_type": "timm_wrapper"}))
    assert not has_classifier(tmp_path)


def test_is_autoencoder(tmp_path, autoencoder, tiny_teacher):
    assert is_autoencoder(autoencoder)
    assert is_autoencoder(str(autoencoder))
    assert not has_classifier(autoencoder)
    for other in (tiny_teacher, tmp_path, tmp_path / "none", "user/model"):
        assert not is_autoencoder(other)
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": "AutoencoderKL"}))
    assert is_autoencoder(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": "VQModel"}))
    assert not is_autoencoder(tmp_path)


def test_an_untrained_network_is_shown_large_tiles_at_64_px():
    small = np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), dtype=np.uint8)
    large = small.repeat(2, axis=1).repeat(2, axis=2)
    np.testing.assert_array_equal(embed_images("untrained", large), embed_images("untrained", small))


def test_an_autoencoder_that_compares_large_tiles_is_shown_them_at_64_px(tmp_path, autoencoder):
    small = np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), dtype=np.uint8)
    large = small.repeat(2, axis=1).repeat(2, axis=2)
    (compare,) = embedders.named_embeddings([str(autoencoder)]).values()
    np.testing.assert_array_equal(compare(large), embed_images(autoencoder, small))
    np.testing.assert_array_equal(compare(small), embed_images(autoencoder, small))
    # Whoever embeds them for anything else has their latents as they are.
    assert embed_images(autoencoder, large).shape == (3, 4 * compare(large).shape[1])
    # One that halves them more often takes no smaller ones.
    deep = tmp_path / "autoencoder"
    build_autoencoder(256, [4] * 8, latent_channels=2, layers_per_block=1).save_pretrained(deep)
    (compare,) = embedders.named_embeddings([str(deep)]).values()
    assert compare(large.repeat(2, axis=1).repeat(2, axis=2)).shape == (3, 2)


def test_features_of_an_untrained_network_are_always_the_same(images):
    torch.manual_seed(5)
    expected_draw = torch.rand(1)
    torch.manual_seed(5)
    embeddings = embed_images("untrained", images)
    assert torch.rand(1) == expected_draw  # the global generator is as it was
    torch.manual_seed(6)
    np.testing.assert_array_equal(embed_images("untrained", images), embeddings)
    assert embeddings.dtype == np.float32 and embeddings.shape[0] == len(images)
    assert len(np.unique(embeddings.round(4), axis=0)) == len(images)


def test_an_embedder_in_words_has_no_path(tiny_autoencoder, tiny_teacher, tmp_path):
    (tmp_path / "dinov2-small").mkdir()
    assert describe_embedder(str(tiny_autoencoder)) == "latents of an autoencoder"
    assert describe_embedder(str(tiny_teacher)) == "features of a classifier"
    assert describe_embedder(str(tmp_path / "dinov2-small")) == "dinov2-small"
    assert describe_embedder("facebook/dinov2-small") == "facebook/dinov2-small"
    assert describe_embedder("untrained") == "features of a convolutional network with random weights"
    assert describe_embedder("teacher") == "features of a classifier trained on the same tiles"


def test_an_embedder_is_recorded_by_its_content(tiny_autoencoder, tiny_teacher, tmp_path, monkeypatch):
    # Folders of such names, wherever the program is, are not meant.
    for name in ("untrained", "teacher"):
        shutil.copytree(tiny_teacher, tmp_path / "here" / name)
    monkeypatch.chdir(tmp_path / "here")
    assert embedder_fingerprint("untrained") == "untrained" and embedder_fingerprint("teacher") == "teacher"
    assert list(embedders.named_embeddings(["untrained"])) == ["untrained"]
    assert embedder_fingerprint("facebook/dinov2-small") == "facebook/dinov2-small"
    shutil.copytree(tiny_teacher, tmp_path / "copy")
    found = embedder_fingerprint(str(tiny_teacher))
    assert embedder_fingerprint(str(tmp_path / "copy")) == found
    assert str(tiny_teacher) not in found and found != embedder_fingerprint(str(tiny_autoencoder))
    # What a training goes on from is no part of it: `clean` takes that away.
    (tmp_path / "copy" / "checkpoints" / "checkpoint-10").mkdir(parents=True, exist_ok=True)
    (tmp_path / "copy" / "checkpoints" / "checkpoint-10" / "state.json").write_text("{}")
    assert embedder_fingerprint(str(tmp_path / "copy")) == found
    weights = tmp_path / "copy" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"?")
    assert embedder_fingerprint(str(tmp_path / "copy")) != found


@pytest.mark.parametrize("kind", ["untrained", "classifier", "autoencoder", "transformer"])
def test_a_loaded_embedder_embeds_several_times(tmp_path, tiny_teacher, tiny_autoencoder, images, kind):
    save_vision_model(tmp_path, tiny_vit())
    places = {"untrained": "untrained", "classifier": tiny_teacher, "autoencoder": tiny_autoencoder}
    name = places.get(kind, tmp_path)
    embedder = load_embedder(name)
    expected = embed_images(name, images)
    for _ in range(2):
        np.testing.assert_array_equal(embedder(images), expected)
    np.testing.assert_allclose(embedder(images, batch_size=2), expected, rtol=1e-4, atol=1e-5)
    assert repr(embedder) == f"Embedder(name={str(name)!r})"


def test_images_that_are_not_in_memory_are_embedded_batch_by_batch(tiny_teacher, images):
    embedder = load_embedder(tiny_teacher)
    rows = np.arange(len(images))[::-1]
    found = embedder(rows_of(images, rows), batch_size=2)
    np.testing.assert_array_equal(found, embedder(images[rows], batch_size=2))


def test_named_embeddings_are_loaded_once_and_not_before(tiny_teacher, images, monkeypatch):
    loaded = []
    monkeypatch.setattr(
        embedders, "load_embedder", lambda name, side: loaded.append(name) or load_embedder(name, side)
    )
    (embed,) = embedders.named_embeddings([str(tiny_teacher)]).values()
    assert not loaded
    np.testing.assert_array_equal(embed(images), embed(images))
    assert loaded == [str(tiny_teacher)]


def test_embeddings_are_called_by_what_a_folder_holds(tiny_teacher, tmp_path):
    private = tmp_path / "doe_jane_1957"
    shutil.copytree(tiny_teacher, private)
    (label,) = embedders.named_embeddings([str(private)])
    assert label.startswith("classifier-") and "doe" not in label
    named = tmp_path / "teacher"
    shutil.copytree(tiny_teacher, named)
    assert list(embedders.named_embeddings([str(named), "untrained"])) == ["teacher", "untrained"]


def test_an_embedder_is_named_once(tiny_teacher, tmp_path):
    with pytest.raises(InputError, match=r"embedders names untrained twice: name each once"):
        embedders.named_embeddings(["untrained", "untrained"])
    for own in ("pixels", "structure"):
        with pytest.raises(InputError, match=f"embedders {own} is a name that the audit uses itself"):
            embedders.named_embeddings([own])


@pytest.mark.parametrize(("count", "size", "words"), [(0, 2, "no images"), (2, 0, "at least 1")])
def test_an_embedder_takes_images_and_batches_of_one_or_more(tiny_teacher, images, count, size, words):
    with pytest.raises(InputError, match=words):
        embed_images(tiny_teacher, images[:count], size)


def test_an_embedder_that_is_not_there_is_refused_when_it_is_loaded(tmp_path):
    with pytest.raises(InputError, match="cannot be loaded"):
        load_embedder(tmp_path / "nothing")


def test_several_untrained_networks_see_a_tile_alike_however_it_lies(images):
    features = embed_images("untrained_several", images)
    of_convnet = embed_images("untrained", images).shape[1]
    assert features.shape == (5, of_convnet + 4 * 320)
    for turned in (np.rot90(images, axes=(1, 2)), images[:, :, ::-1]):
        np.testing.assert_allclose(
            embed_images("untrained_several", np.ascontiguousarray(turned)), features, rtol=1e-3, atol=1e-4
        )
    views = [images, images[:, :, ::-1]]
    views += [np.rot90(view, quarters, axes=(1, 2)) for view in views for quarters in (1, 2, 3)]
    mean = np.mean([embed_images("untrained", np.ascontiguousarray(view)) for view in views], axis=0)
    np.testing.assert_allclose(features[:, :of_convnet], mean, rtol=1e-3, atol=1e-4)
    # Four networks, and not one four times.
    parts = features[:, of_convnet:].reshape(5, 4, -1)
    assert all(np.abs(parts[:, 0] - parts[:, number]).max() > 1e-3 for number in (1, 2, 3))


def test_either_architecture_weighs_the_same_in_a_pool(images):
    real = images[:3, ::-1] // 2
    pool, beside = embed_pool("untrained_several", images, real)
    raw, raw_beside = (embed_images("untrained_several", x) for x in (images, real))
    first = raw.shape[1] - 4 * 320
    np.testing.assert_allclose(pool.mean(axis=0), 0, atol=1e-5)
    for part in (pool[:, :first], pool[:, first:]):
        assert 0.9 < np.square(part).sum() / len(pool) <= 1 + 1e-5  # a few features are the same for all
    varied = raw.std(axis=0) > 1e-3
    expected = (raw_beside - raw.mean(axis=0)) / raw.std(axis=0).clip(1e-3)
    expected /= np.sqrt(np.where(np.arange(raw.shape[1]) < first, first, 4 * 320))
    np.testing.assert_allclose(beside[:, varied], expected[:, varied], rtol=1e-2, atol=1e-3)
    assert np.isfinite(beside).all() and embed_pool("untrained", images)[1] is None
    np.testing.assert_array_equal(embed_pool("untrained", images)[0], embed_images("untrained", images))


def test_several_untrained_networks_are_for_selections_alone():
    with pytest.raises(InputError, match="is for selections alone: give untrained"):
        named_embeddings(["untrained_several"])
    with pytest.raises(InputError, match="is for selections alone: give untrained"):
        classifier_on("untrained_several", 16, ["a", "b"])
    assert describe_embedder("untrained_several") == "features of networks of two architectures with random weights"
    assert embedder_fingerprint("untrained_several") == "untrained_several"
