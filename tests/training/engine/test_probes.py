from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from histodistill.training import train_classifier
from histodistill.training.data.tiles import Tiles
from histodistill.training.engine.accelerator import make_accelerator
from histodistill.training.engine.classifier_config import ClassifierConfig
from histodistill.training.engine.probes import LOSS_WEIGHTS, fit_logistic_regression, fit_probe
from histodistill.training.models.embedders import embed_images
from histodistill.training.models.loading import load_classifier
from histodistill.training.models.prediction import predict_proba
from histodistill.training.running.errors import InputError
from histodistill.training.train_classifier import TrainClassifierConfig


NAMES = ["red", "green", "blue"]


def coloured_tiles(count: int, seed: int, soft: bool = False) -> Tiles:
    """Noise in which one colour of three is a little brighter: that of the class."""
    draw = np.random.default_rng(seed)
    labels = np.arange(count) % 3
    images = draw.integers(0, 120, (count, 16, 16, 3), dtype=np.uint8)
    images[np.arange(count), :, :, labels] += 60
    soft_labels = np.eye(3, dtype=np.float32)[(labels + 1) % 3] if soft else None
    return Tiles(images, labels, soft_labels)


@pytest.fixture(scope="module")
def accelerator():
    return make_accelerator("no")


def probe(encoder="untrained", **options) -> ClassifierConfig:
    return ClassifierConfig(architecture=f"probe:{encoder}", **options)


def test_a_probe_learns_chooses_and_is_saved_as_a_classifier(accelerator, tmp_path, tiny_autoencoder):
    train, validation, test = (coloured_tiles(30, seed) for seed in (0, 1, 2))
    for encoder in ("untrained", tiny_autoencoder):
        trained = fit_probe(probe(encoder), train, validation, accelerator, class_names=NAMES)
        assert [record["loss_weight"] for record in trained.history] == list(LOSS_WEIGHTS)
        best = max(record["validation_accuracy"] for record in trained.history)
        assert trained.validation["accuracy"] == best and trained.best_step is None
        probabilities = predict_proba(trained.model, test.images)
        assert (probabilities.argmax(1) == test.labels).mean() > 0.9
        trained.model.save_pretrained(tmp_path)
        assert {path.suffix for path in tmp_path.iterdir()} == {".json", ".safetensors", ".md"}
        np.testing.assert_array_equal(predict_proba(load_classifier(tmp_path), test.images), probabilities)
        again = fit_probe(probe(encoder), train, validation, accelerator, class_names=NAMES)
        np.testing.assert_array_equal(predict_proba(again.model, test.images), probabilities)


def test_a_probe_is_what_scikit_learn_makes_of_standardised_features(accelerator):
    train, test = coloured_tiles(30, 0), coloured_tiles(9, 1)
    trained = fit_probe(probe(), train, None, accelerator, class_names=NAMES)
    features, others = (embed_images("untrained", tiles.images).astype(np.float64) for tiles in (train, test))
    mean, spread = features.mean(0), features.std(0)
    model = LogisticRegression(C=10 / 30, max_iter=1000).fit((features - mean) / spread, train.labels)
    expected = model.predict_proba((others - mean) / spread)
    np.testing.assert_allclose(predict_proba(trained.model, test.images), expected, atol=2e-3)


def test_soft_labels_count_by_their_weight(accelerator):
    train = coloured_tiles(30, 0, soft=True)
    by_labels = fit_probe(probe(), train, None, accelerator, class_names=NAMES).model
    by_soft = fit_probe(probe(soft_label_weight=1.0), train, None, accelerator, class_names=NAMES).model
    assert (predict_proba(by_labels, train.images).argmax(1) == train.labels).all()
    assert (predict_proba(by_soft, train.images).argmax(1) == (train.labels + 1) % 3).all()
    with pytest.raises(InputError, match=r"soft_label_weight=1.0 needs soft labels"):
        fit_probe(probe(soft_label_weight=1.0), coloured_tiles(9, 0), None, accelerator, class_names=NAMES)


@pytest.mark.parametrize("num_classes", [2, 3])
def test_soft_targets_of_one_are_labels(num_classes):
    draw = np.random.default_rng(0)
    features, labels = draw.normal(size=(60, 5)), np.arange(60) % num_classes
    features[:, 0] += labels
    weights, biases = fit_logistic_regression(features, np.eye(num_classes)[labels], 60.0)
    expected = LogisticRegression(C=1.0).fit(features, labels).predict_proba(features)
    found = torch.from_numpy(features @ weights.T + biases).softmax(1).numpy()
    np.testing.assert_allclose(found, expected, atol=1e-6)
    halves = np.full((60, num_classes), 1 / num_classes)
    weights, _ = fit_logistic_regression(features, halves, 60.0)
    np.testing.assert_allclose(weights, 0, atol=1e-6)


def test_a_class_without_tiles_is_never_taken():
    features, labels = np.random.default_rng(0).normal(size=(20, 3)), np.arange(20) % 2 * 2
    weights, biases = fit_logistic_regression(features, np.eye(3)[labels], 1.0)
    assert set((features @ weights.T + biases).argmax(1)) <= {0, 2}
    with pytest.raises(InputError, match="all training tiles are of one class: a probe needs two"):
        fit_logistic_regression(features, np.eye(3)[np.zeros(20, int)], 1.0)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"loss": "joint"}, "loss=joint has no meaning for architecture=probe:untrained, which is logistic"),
        ({"mixup": 0.2}, "mixup=0.2 has no meaning"),
        ({"normalize_stain": True}, "normalize_stain=True has no meaning"),
        ({"width": 8}, "width=8 has no meaning for architecture=probe:untrained, whose config says"),
    ],
)
def test_what_a_probe_cannot_do(options, words):
    with pytest.raises(InputError, match=words):
        probe(**options)


def test_train_classifier_fits_a_probe(tmp_path, tiny_autoencoder, capsys):
    config = TrainClassifierConfig(
        data="phantom",
        image_size=16,
        output=tmp_path,
        architecture=f"probe:{tiny_autoencoder}",
        n_per_class=5,
        mixed_precision="no",
    )
    results = train_classifier.run(config)
    assert (results["steps"], results["best_step"]) == (None, None)
    assert "(a probe), saved to" in capsys.readouterr().out
    label = results["config"]["architecture"]
    assert label.startswith("probe:autoencoder-")
    for name in ("results.json", "stage.json"):
        assert str(tiny_autoencoder) not in (tmp_path / name).read_text()
    assert json.loads((tmp_path / "stage.json").read_text())["settings"]["architecture"] == label
    assert load_classifier(tmp_path).num_classes > 2
    assert train_classifier.run(config) == results  # it is already finished
