"""How long a step of a classifier's training takes, told by a few of them before many are made."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from accelerate import Accelerator

from histodistill.training.data.tiles import Tiles
from histodistill.training.engine.classifier_config import ClassifierConfig
from histodistill.training.engine.classifier_training import ClassifierTraining
from histodistill.training.engine.steps import spread_indices
from histodistill.training.running.timing import MOST_CALLS, seconds_of


def short_training(
    config: ClassifierConfig, tiles: Tiles, accelerator: Accelerator, class_names: Sequence[str], batch_size: int
) -> ClassifierTraining:
    """A training of a classifier that is there to be timed, by `seconds_of_step`.

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


def seconds_of_step(training: ClassifierTraining) -> float:
    """Seconds of an optimizer step for each of its tiles."""
    learning_rate = training.config.learning_rate
    assert learning_rate is not None  # the configuration has chosen one
    with training.drawn_batches(0) as drawn:
        steps = iter(range(MOST_CALLS))
        seconds = seconds_of(lambda: training.make_step(next(steps), learning_rate, drawn))
    return seconds / (training.batches.batch_size * training.config.gradient_accumulation_steps)
