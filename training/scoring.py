"""What a trained classifier says of tiles: probabilities, embeddings and scores."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from histodistill.training.classifiers import Classifier
from histodistill.training.data import Tiles, to_model_input
from histodistill.training.errors import InputError
from histodistill.training.metrics import load_metric


def predict_proba(
    model: Classifier, images: np.ndarray, batch_size: int = 256, device: torch.device | str | None = None
) -> np.ndarray:
    """Class probabilities, float32 N×C with rows that sum to 1, of `images`, uint8 N×H×W×3.

    The model is used in evaluation mode, in float32, on `device` (None: where it is), and left as it was found.

    Raises
    ------
    InputError : for images of another size than the model's, or a batch size below 1.
    """
    return _run(model, images, batch_size, device, lambda output: output.logits.float().softmax(dim=1))


def embed(
    model: Classifier, images: np.ndarray, batch_size: int = 256, device: torch.device | str | None = None
) -> np.ndarray:
    """Embeddings, float32 N×D, of `images`, uint8 N×H×W×3: the features that the model's linear head takes.

    Arguments and errors are those of `predict_proba`.
    """
    return _run(model, images, batch_size, device, lambda output: output.features.float())


def score(model: Classifier, tiles: Tiles) -> dict[str, Any]:
    """Scores of `model` on labelled tiles: see `score_probabilities`. Errors are those of `predict_proba` too."""
    return score_probabilities(predict_proba(model, tiles.images), tiles.labels)


def score_probabilities(probabilities: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    """Scores of class probabilities (float N×C) against labels (int N in [0, C)).

    Returns
    -------
    dict, of values that JSON can hold:

    - `accuracy`, `auc` (macro one-vs-rest) and `f1` (macro), in [0, 1], higher is better, from the modules in
      `histodistill.training.metrics`. `auc` is None where a class has no sample, since it's undefined then;
    - `per_class_f1`: C floats, 0 for a class that occurs neither among the labels nor the predictions;
    - `confusion`: C×C counts, row the true class, column the predicted one;
    - `reliability`: for each of ten equal ranges of confidence (the highest probability) the number of samples, their
      mean confidence and their accuracy; 0, 0, 0 for a range without samples;
    - `ece`: expected calibration error of these ranges, the mean distance of confidence and accuracy over samples
      (Guo et al., ICML 2017).

    Raises
    ------
    InputError : for no samples at all, or labels outside [0, C).
    """
    labels = np.asarray(labels)
    num_classes = probabilities.shape[1]
    if len(labels) == 0:
        raise InputError("there are no tiles to score: give a split with at least one")
    if labels.min() < 0 or labels.max() >= num_classes:
        raise InputError(
            f"labels run from {labels.min()} to {labels.max()}, but the classifier knows {num_classes} classes: "
            "score tiles of the classes that it was trained on"
        )
    predictions = probabilities.argmax(axis=1)
    confusion = np.zeros((num_classes, num_classes), dtype=np.int64)
    np.add.at(confusion, (labels, predictions), 1)
    occurrences = confusion.sum(axis=0) + confusion.sum(axis=1)
    per_class_f1 = 2 * confusion.diagonal() / np.maximum(occurrences, 1)
    reliability = reliability_bins(probabilities.max(axis=1), predictions == labels)
    auc = None
    if len(np.unique(labels)) == num_classes:
        result = load_metric("auroc_macro_ovr").compute(
            prediction_scores=np.asarray(probabilities, dtype=np.float64), references=labels
        )
        auc = result["auroc_macro_ovr"]
    return {
        "accuracy": load_metric("accuracy").compute(predictions=predictions, references=labels)["accuracy"],
        "auc": auc,
        "f1": load_metric("f1_macro").compute(predictions=predictions, references=labels)["f1_macro"],
        "per_class_f1": per_class_f1.tolist(),
        "confusion": confusion.tolist(),
        "reliability": reliability,
        "ece": sum(count * abs(confidence - accuracy) for count, confidence, accuracy in reliability) / len(labels),
    }


def reliability_bins(confidences: np.ndarray, is_right: np.ndarray, num_bins: int = 10) -> list[list[float]]:
    """Count, mean confidence and accuracy of the predictions in each of `num_bins` equal ranges of confidence.

    `confidences` is float N in [0, 1], `is_right` bool N; a range holds its upper end.
    """
    place = np.clip(np.ceil(confidences * num_bins).astype(int) - 1, 0, num_bins - 1)
    counts = np.bincount(place, minlength=num_bins)
    sums = (np.bincount(place, weights=weights, minlength=num_bins) for weights in (confidences, is_right))
    means = [(total / np.maximum(counts, 1)).tolist() for total in sums]
    return [[int(count), *mean] for count, *mean in zip(counts, *means, strict=True)]


@torch.no_grad()
def _run(model, images, batch_size, device, take) -> np.ndarray:
    if batch_size < 1:
        raise InputError(f"batch_size={batch_size} is out of range: it must be at least 1")
    if images.shape[1:3] != (model.image_size, model.image_size):
        raise InputError(
            f"images are {images.shape[1]} by {images.shape[2]} px and the classifier takes {model.image_size} px: "
            f"load them with image_size={model.image_size}"
        )
    was_training, was_on = model.training, model.device
    model.eval()
    if device is not None:
        model.to(device)
    try:
        results = [
            take(model(to_model_input(images[start : start + batch_size]).to(model.device))).cpu().numpy()
            for start in range(0, len(images), batch_size)
        ]
    finally:
        model.train(was_training)
        model.to(was_on)
    if not results:
        raise InputError("there are no images: give at least one")
    return np.concatenate(results)
