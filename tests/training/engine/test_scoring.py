from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn.metrics import confusion_matrix, f1_score

from histodistill.selection.image_rows import ImageRows
from histodistill.training.data.pixels import to_model_input
from histodistill.training.data.tiles import Tiles
from histodistill.training.engine import scoring
from histodistill.training.engine.scoring import (
    auc_note,
    predict_shared,
    reliability_bins,
    score,
    score_probabilities,
)
from histodistill.training.models.architectures import ARCHITECTURES
from histodistill.training.models.classifiers import Classifier
from histodistill.training.models.prediction import embed, predict_proba
from histodistill.training.running.errors import InputError


@pytest.fixture
def images() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, size=(11, 16, 16, 3), dtype=np.uint8)


def tiny(architecture: str = "convnet") -> Classifier:
    torch.manual_seed(0)
    return Classifier(architecture, num_classes=3, image_size=16, width=8)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_probabilities_and_embeddings_are_the_models(architecture, images):
    model = tiny(architecture)
    probabilities, embeddings = predict_proba(model, images, batch_size=4), embed(model, images, batch_size=4)
    assert model.training  # left as it was found
    with torch.no_grad():
        output = model.eval()(to_model_input(images))
    assert probabilities.dtype == embeddings.dtype == np.float32
    assert embeddings.shape == (11, model.num_features)
    np.testing.assert_allclose(probabilities, torch.softmax(output.logits, 1).numpy(), atol=1e-5)
    np.testing.assert_allclose(embeddings, output.features.numpy(), atol=1e-4)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-6)


class CountedRows(ImageRows):
    """Writes down which rows are read at a time."""

    def __init__(self, images: np.ndarray):
        super().__init__(images.shape)
        self.images, self.reads = images, []

    def read(self, rows: np.ndarray) -> np.ndarray:
        self.reads.append(rows.tolist())
        return self.images[rows]


@pytest.mark.parametrize("predict", [predict_proba, embed])
def test_images_are_read_in_batches(predict, images):
    rows = CountedRows(images)
    np.testing.assert_array_equal(predict(tiny(), rows, batch_size=4), predict(tiny(), images, batch_size=4))
    assert rows.reads == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10]]


def test_processes_share_a_prediction(images):
    model, reads, parts = tiny(), [], {}

    def predict(index, gather):
        rows = CountedRows(images)
        accelerator = SimpleNamespace(num_processes=2, process_index=index, device=model.device, gather=gather)
        found = predict_shared(model, rows, accelerator)
        reads.append(rows.reads)
        return found

    for index in (0, 1):
        predict(index, lambda part, index=index: parts.setdefault(index, part).repeat(2, 1))
    gathered = torch.cat([parts[0], parts[1]])
    whole = predict_proba(model, images)
    for index in (0, 1):
        np.testing.assert_allclose(predict(index, lambda _: gathered), whole, atol=1e-6)
    # Eleven images are six for each: the last one fills up.
    assert reads == [[[0, 2, 4, 6, 8, 10]], [[1, 3, 5, 7, 9, 10]]] * 2


def test_scores_against_scikit_learn():
    rng = np.random.default_rng(1)
    labels = rng.integers(4, size=200)
    probabilities = rng.dirichlet(np.ones(4), size=200) * 0.6 + 0.4 * np.eye(4)[labels] * (rng.random((200, 1)) < 0.7)
    predictions = probabilities.argmax(axis=1)
    found = score_probabilities(probabilities, labels)
    assert found["accuracy"] == (predictions == labels).mean()
    assert found["f1"] == pytest.approx(f1_score(labels, predictions, average="macro"))
    assert found["per_class_f1"] == pytest.approx(f1_score(labels, predictions, average=None).tolist())
    assert found["confusion"] == confusion_matrix(labels, predictions).tolist()
    assert 0.5 < found["auc"] < 1
    assert json.loads(json.dumps(found)) == found


def test_score_is_that_of_the_probabilities(images):
    model, labels = tiny(), np.arange(11) % 3
    assert score(model, Tiles(images, labels)) == score_probabilities(predict_proba(model, images), labels)


def test_a_class_without_a_sample_is_left_out_of_the_auc_and_told_once(capsys):
    scoring._tell_once.cache_clear()
    probabilities = np.array([[0.8, 0.1, 0.1], [0.3, 0.6, 0.1], [0.7, 0.2, 0.1]])
    for _ in range(2):
        found = score_probabilities(probabilities, np.array([0, 1, 1]))
    assert found["auc"] == 1.0
    assert found["accuracy"] == 2 / 3
    assert found["per_class_f1"] == pytest.approx([2 / 3, 2 / 3, 0])
    assert found["f1"] == pytest.approx(2 / 3)
    told = "warning: AUC is the mean over 2 of 3 classes, since no tile that is scored is of class 2\n"
    assert capsys.readouterr().err == told


def test_auc_is_none_where_all_samples_are_of_one_class(capsys):
    scoring._tell_once.cache_clear()
    found = score_probabilities(np.array([[0.8, 0.1, 0.1], [0.3, 0.6, 0.1]]), np.array([0, 0]))
    assert found["auc"] is None
    assert capsys.readouterr().err == ""


def test_note_beside_the_scores_of_tiles_that_lack_a_class():
    names = ["fat", "glands", "mucus"]
    assert auc_note("test", np.array([0, 1, 2, 2]), names) is None
    assert auc_note("test", np.array([0, 2]), names) == (
        "AUC is the mean over 2 of 3 classes, since no test tile is of glands"
    )
    assert auc_note("test", np.array([2, 2]), names) == (
        "AUC is not defined: all test tiles are of one class, and none of fat, glands"
    )


def test_reliability_worked_out_by_hand():
    # A range holds its upper end: 0.5 is of the fifth, 0.501 of the sixth, and 0 and 1 of the outer ones.
    confidences = np.array([0.0, 0.5, 0.42, 0.501, 0.95, 1.0, 0.91])
    is_right = np.array([False, True, False, True, True, True, False])
    expected = [[0, 0.0, 0.0] for _ in range(10)]
    expected[0], expected[4], expected[5] = [1, 0.0, 0.0], [2, 0.46, 0.5], [1, 0.501, 1.0]
    expected[9] = [3, 2.86 / 3, 2 / 3]
    found = reliability_bins(confidences, is_right)
    assert [row[0] for row in found] == [row[0] for row in expected]
    np.testing.assert_allclose(found, expected, atol=1e-12)
    # In two ranges.
    np.testing.assert_allclose(
        reliability_bins(confidences, is_right, 2), [[3, 0.92 / 3, 1 / 3], [4, 3.361 / 4, 0.75]], atol=1e-12
    )


def test_calibration_error_worked_out_by_hand():
    # Two of confidence 0.9, one of them right, and two of 0.6, both right: (2·|0.9 - 0.5| + 2·|0.6 - 1|) / 4.
    probabilities = np.array([[0.9, 0.1], [0.1, 0.9], [0.6, 0.4], [0.4, 0.6]])
    found = score_probabilities(probabilities, np.array([0, 0, 0, 1]))
    assert found["ece"] == pytest.approx(0.4)
    assert found["reliability"][8] == pytest.approx([2, 0.9, 0.5])
    assert found["reliability"][5] == pytest.approx([2, 0.6, 1.0])
    assert sum(row[0] for row in found["reliability"]) == 4
    assert json.loads(json.dumps(found)) == found


def test_calibration_error_of_chances_that_are_true_is_small():
    rng = np.random.default_rng(0)
    probabilities = rng.dirichlet(np.ones(3), size=2000)
    labels = (probabilities.cumsum(axis=1) < rng.random((2000, 1))).sum(axis=1)
    assert score_probabilities(probabilities, labels)["ece"] < 0.04
    sharper = probabilities**4 / (probabilities**4).sum(axis=1, keepdims=True)
    assert score_probabilities(sharper, labels)["ece"] > 0.1


def test_bad_input(images):
    model = tiny()
    with pytest.raises(InputError, match="images are 20 by 20 px and the classifier takes 16 px"):
        predict_proba(model, np.zeros((2, 20, 20, 3), dtype=np.uint8))
    with pytest.raises(InputError, match="batch_size=0 is out of range"):
        embed(model, images, batch_size=0)
    with pytest.raises(InputError, match="there are no images"):
        embed(model, images[:0])
    with pytest.raises(InputError, match="there are no tiles to score"):
        score_probabilities(np.zeros((0, 3)), np.zeros(0, dtype=np.int64))
    with pytest.raises(InputError, match="labels run from 0 to 3, but the classifier knows 3 classes"):
        score_probabilities(np.full((2, 3), 1 / 3), np.array([0, 3]))
