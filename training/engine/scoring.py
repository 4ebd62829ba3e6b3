"""Scores of class probabilities against labels."""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator

from histodistill.selection.image_rows import Images, rows_of
from histodistill.training.data.tiles import Tiles
from histodistill.training.metrics import load_metric
from histodistill.training.models.classifiers import Classifier
from histodistill.training.models.prediction import embed, predict_proba
from histodistill.training.running.errors import InputError
from histodistill.training.running.notes import warn


def score(model: Classifier, tiles: Tiles) -> dict[str, Any]:
    """Scores of a classifier on labelled tiles: see `score_probabilities`.

    Raises:
        InputError: As `predict_proba` and `score_probabilities` do.
    """
    return score_probabilities(predict_proba(model, tiles.images), tiles.labels)


def score_probabilities(probabilities: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    """Scores of class probabilities against labels.

    Args:
        probabilities: float N×C.
        labels: int N in [0, C).

    Returns:
        Values that JSON can hold, by name:

        - `accuracy`, `auc` (macro one-vs-rest) and `f1` (macro), in [0, 1], higher is better, from the modules in
          `histodistill.training.metrics`. A class without a sample is left out of the mean of `auc`, of which the user
          is told, once for the same classes; `auc` is None where all samples are of one class;
        - `per_class_f1`: C floats, 0 for a class that occurs neither among the labels nor the predictions;
        - `confusion`: C×C counts, row the true class, column the predicted one;
        - `reliability`: see `reliability_bins`, for ten ranges;
        - `ece`: expected calibration error of these ranges, the mean distance of confidence and accuracy over samples
          (Guo et al., ICML 2017).

    Raises:
        InputError: For no samples at all, or labels outside [0, C).
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
    return {
        "accuracy": load_metric("accuracy").compute(predictions=predictions, references=labels)["accuracy"],
        "auc": _auc(probabilities, labels),
        "f1": load_metric("f1_macro").compute(predictions=predictions, references=labels)["f1_macro"],
        "per_class_f1": per_class_f1.tolist(),
        "confusion": confusion.tolist(),
        "reliability": reliability,
        "ece": sum(count * abs(confidence - accuracy) for count, confidence, accuracy in reliability) / len(labels),
    }


def _auc(probabilities: np.ndarray, labels: np.ndarray) -> float | None:
    """The macro AUC over the classes that occur, or None for a single one."""
    present = np.unique(labels)
    if len(present) < 2:
        return None
    if missing := missing_classes(labels, probabilities.shape[1]):
        _tell_once(
            f"AUC is the mean over {len(present)} of {probabilities.shape[1]} classes, since no "
            f"tile that is scored is of class {', '.join(map(str, missing))}"
        )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="the mean is over")  # what has just been told
        found = load_metric("auroc_macro_ovr").compute(
            prediction_scores=np.asarray(probabilities, dtype=np.float64), references=labels
        )
    return found["auroc_macro_ovr"]


def missing_classes(labels: np.ndarray, num_classes: int) -> list[int]:
    """The classes, of `num_classes`, that no label is of."""
    return sorted(set(range(num_classes)) - set(np.unique(labels).tolist()))


# A training scores its validation tiles again and again.
_tell_once = functools.cache(warn)


def auc_note(split: str, labels: np.ndarray, class_names: Sequence[str]) -> str | None:
    """What stands beside the scores of tiles that lack a class, or None where they have all.

    Args:
        split: Of the tiles.
        labels: int N.
        class_names: The name of each label.
    """
    missing = missing_classes(labels, len(class_names))
    if not missing:
        return None
    present = len(class_names) - len(missing)
    names = ", ".join(class_names[label] for label in missing)
    if present < 2:
        return f"AUC is not defined: all {split} tiles are of one class, and none of {names}"
    return f"AUC is the mean over {present} of {len(class_names)} classes, since no {split} tile is of {names}"


def predict_shared(model: Classifier, images: Images, accelerator: Accelerator) -> np.ndarray:
    """`predict_proba` with the work shared by the processes.

    Args:
        model: The classifier, the same on every process.
        images: uint8 N×H×W×3, the same on every process; each reads its share of them, in batches.
        accelerator: Tells the processes.

    Returns:
        float32 N×C, all of them on every process.
    """
    return _shared(predict_proba, model, images, accelerator)


def embed_shared(model: Classifier, images: Images, accelerator: Accelerator) -> np.ndarray:
    """`prediction.embed` with the work shared by the processes: float32 N×D, all of them on every process.

    Args:
        model, images, accelerator: See `predict_shared`.
    """
    return _shared(embed, model, images, accelerator)


def _shared(
    take: Callable[[Classifier, Images], np.ndarray], model: Classifier, images: Images, accelerator: Accelerator
) -> np.ndarray:
    num_processes = accelerator.num_processes
    if num_processes == 1:
        return take(model, images)
    # Shares must be of one length to be gathered: the last image fills up, and is cut off again.
    share = math.ceil(len(images) / num_processes)
    positions = np.minimum(np.arange(share) * num_processes + accelerator.process_index, len(images) - 1)
    found = torch.from_numpy(take(model, rows_of(images, positions))).to(accelerator.device)
    gathered = accelerator.gather(found).cpu().numpy().reshape(num_processes, share, -1)
    return gathered.transpose(1, 0, 2).reshape(num_processes * share, -1)[: len(images)]


def reliability_bins(confidences: np.ndarray, is_right: np.ndarray, num_bins: int = 10) -> list[list[float]]:
    """Groups predictions by confidence, in equal ranges of which each holds its upper end.

    Args:
        confidences: float N in [0, 1], the highest probability of each prediction.
        is_right: bool N, whether it is the true class.
        num_bins: Number of ranges.

    Returns:
        For each range the number of predictions, their mean confidence and their accuracy; 0, 0, 0 without any.
    """
    place = np.clip(np.ceil(confidences * num_bins).astype(int) - 1, 0, num_bins - 1)
    counts = np.bincount(place, minlength=num_bins)
    sums = (np.bincount(place, weights=weights, minlength=num_bins) for weights in (confidences, is_right))
    means = [(total / np.maximum(counts, 1)).tolist() for total in sums]
    return [[int(count), *mean] for count, *mean in zip(counts, *means, strict=True)]
