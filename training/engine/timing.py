"""How long a step of a classifier's training takes, told by a few of them before many are made."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from accelerate import Accelerator

from histodistill.training.data.tiles import Tiles
from histodistill.training.engine.classifier_config import ClassifierConfig
from histodistill.training.engine.classifier_training import ClassifierTraining
from histodistill.training.engine.steps import spread_indices
from histodistill.training.running.timing import MOST_CALLS, seconds_of


def short_training(
    config: ClassifierConfig, tiles: Tiles, accelerator: Accelerator, class_names: Sequence[str], batch_size: int
) -> ClassifierTraining:
    """A training of a classifier that is there to be timed, by `seconds_of_tile`.

    Args:
        config: How to train; losses that want soft labels are left out.
        tiles: Of which some are trained on.
        accelerator: It must have nothing else prepared.
        class_names: Names of the labels.
        batch_size: Tiles of a batch, in place of the config's.
    """
    few = dataclasses.replace(
        config, batch_size=batch_size, max_train_steps=MOST_CALLS, loss="ce", soft_label_weight=0.0
    )
    some = tiles.subset(spread_indices(len(tiles), batch_size))
    return ClassifierTraining(few, some, None, accelerator, class_names)


def seconds_of_tile(training: ClassifierTraining, batch_size: int) -> float:
    """Seconds of an optimizer step for each of its tiles.

    Args:
        training: Of `short_training`.
        batch_size: Tiles of a batch of the training that it stands for. The weights are changed once for all of them,
            which is timed apart from what is done for each.
    """
    learning_rate, accumulated = training.config.learning_rate, training.config.gradient_accumulation_steps
    assert learning_rate is not None  # the configuration has chosen one
    with training.drawn_batches(0) as drawn:
        steps = iter(range(MOST_CALLS))
        whole = seconds_of(lambda: training.make_step(next(steps), learning_rate, drawn))
    weights = [weight for weight in training.trained.parameters() if weight.requires_grad]
    gradients = [torch.zeros_like(weight) for weight in weights]

    def change() -> None:
        for weight, gradient in zip(weights, gradients, strict=True):
            weight.grad = gradient
        training.change_weights(0)

    changing = min(whole, seconds_of(change))
    return (whole - changing) / (training.batches.batch_size * accumulated) + changing / (batch_size * accumulated)
