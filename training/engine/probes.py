"""Linear probes: logistic regression on what a frozen encoder makes of tiles."""

from __future__ import annotations

import time
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator

from histodistill.training.data.tiles import Tiles
from histodistill.training.engine.classifier_config import ClassifierConfig
from histodistill.training.engine.classifier_training import TrainedClassifier, rank_of, soft_labels_of
from histodistill.training.engine.scoring import embed_shared, score_probabilities
from histodistill.training.engine.steps import class_weights
from histodistill.training.models.architectures import PROBE
from histodistill.training.models.classifiers import Classifier
from histodistill.training.models.embedders import classifier_on
from histodistill.training.running.errors import InputError


#: What the mean loss weighs against the penalty on the weights; the validation tiles choose one, of equals the first.
#: Scikit-learn's C is this divided by the number of tiles, so that it means the same for few tiles and for many.
LOSS_WEIGHTS = (1.0, 10.0, 100.0, 1000.0)
# The one that is taken where there are no validation tiles.
_USUAL_LOSS_WEIGHT = 10.0
_MOST_ITERATIONS = 500
# What a class gets as its bias that no training tile is of: no tile is taken for it.
_NEVER = -1e4
# Features that differ by less than this are constant, and say nothing.
_CONSTANT = 1e-8


def fit_probe(
    config: ClassifierConfig,
    train: Tiles,
    validation: Tiles | None,
    accelerator: Accelerator,
    *,
    class_names: Sequence[str],
) -> TrainedClassifier:
    """Fits logistic regression on the standardised features of the training tiles, as they are.

    The one of `LOSS_WEIGHTS` is kept that does best on the validation tiles. What is minimised is the cross-entropy
    with the labels, or with their mean with the soft labels, by `soft_label_weight`. Nothing in it is random, and the
    options of steps and augmentations are not looked at.

    Args:
        config: Its architecture says whose features.
        train: The tiles to fit to.
        validation: Tiles of the same size; without them (None) a medium weight is taken.
        accelerator: Decides device and processes.
        class_names: One per class; the index is the label.

    Returns:
        The encoder and its linear head as one classifier; a record of the history for each `loss_weight`, with
        `validation_accuracy` and `validation_auc` where there are validation tiles.

    Raises:
        InputError: For an encoder that cannot be loaded or does not take these tiles, tiles of one class alone, or
            soft labels that are missing.
    """
    started = time.perf_counter()
    model = build_probe(config, train.images.shape[1], class_names).to(accelerator.device)
    targets = _targets(config, train, len(class_names))
    features = embed_shared(model, train.images, accelerator).astype(np.float64)
    mean, spread = features.mean(axis=0), features.std(axis=0)
    spread[spread < _CONSTANT] = np.inf
    features = (features - mean) / spread
    if validation is not None:
        known = (embed_shared(model, validation.images, accelerator) - mean) / spread
    history: list[dict[str, Any]] = []
    best: tuple[np.ndarray, np.ndarray] | None = None
    best_scores: dict[str, Any] | None = None
    for loss_weight in LOSS_WEIGHTS if validation is not None else (_USUAL_LOSS_WEIGHT,):
        weights, biases = fit_logistic_regression(features, targets, loss_weight)
        record: dict[str, Any] = {"loss_weight": loss_weight}
        scores = None
        if validation is not None:
            scores = score_probabilities(_softmax(known @ weights.T + biases), validation.labels)
            record |= {"validation_accuracy": scores["accuracy"], "validation_auc": scores["auc"]}
        history.append(record)
        if best is None or (scores and best_scores and rank_of(scores) > rank_of(best_scores)):
            best, best_scores = (weights, biases), scores
    assert best is not None
    weights = best[0] / spread
    with torch.no_grad():
        model.head.weight.copy_(torch.from_numpy(weights))
        model.head.bias.copy_(torch.from_numpy(best[1] - weights @ mean))
    return TrainedClassifier(model.eval(), history, None, best_scores, time.perf_counter() - started)


def build_probe(config: ClassifierConfig, image_size: int, class_names: Sequence[str]) -> Classifier:
    """The classifier that `fit_probe` fits, with a head that is not.

    Raises:
        InputError: For an encoder that cannot be loaded, or does not take tiles of this size.
    """
    return classifier_on(config.architecture.removeprefix(PROBE), image_size, class_names).requires_grad_(False)


def fit_logistic_regression(
    features: np.ndarray, targets: np.ndarray, loss_weight: float
) -> tuple[np.ndarray, np.ndarray]:
    """Multinomial logistic regression on soft targets.

    Args:
        features: float64 N×D, standardised.
        targets: float64 N×C: how much a tile counts for each class, at least 0.
        loss_weight: What the mean loss weighs against the penalty, half the sum of the squared weights.

    Returns:
        Weights, float64 C×D, and biases, float64 C, of which the softmax is the probability of a class.

    Raises:
        InputError: If all tiles are of one class.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    # Each tile once for every class that it counts for: the weighted sum of their losses is that of soft targets.
    rows, labels = np.nonzero(targets)
    present = np.unique(labels)
    if len(present) < 2:
        raise InputError("all training tiles are of one class: a probe needs two")
    counts = targets[rows, labels]
    model = LogisticRegression(C=loss_weight / counts.sum(), max_iter=_MOST_ITERATIONS)
    with warnings.catch_warnings():
        # Weights that are nearly the best ones tell classes apart as well.
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(features[rows], labels, sample_weight=counts)
    weights, biases = np.zeros((targets.shape[1], features.shape[1])), np.full(targets.shape[1], _NEVER)
    # Of two classes there is one row, the logit of the second over the first.
    found, offsets = model.coef_, model.intercept_
    if len(present) == 2:
        found, offsets = np.concatenate([-found, found]) / 2, np.concatenate([-offsets, offsets]) / 2
    weights[present], biases[present] = found, offsets
    return weights, biases


def _targets(config: ClassifierConfig, train: Tiles, num_classes: int) -> np.ndarray:
    """How much each tile counts for each class, float64 N×C."""
    targets = np.eye(num_classes)[train.labels]
    share = config.soft_label_weight
    if share > 0:
        targets = (1 - share) * targets + share * soft_labels_of(train, share).astype(np.float64)
    weights = class_weights(train.labels, config.class_balance)
    return targets if weights is None else targets * weights[:, None]


def _softmax(logits: np.ndarray) -> np.ndarray:
    return torch.from_numpy(logits).softmax(dim=1).numpy()
