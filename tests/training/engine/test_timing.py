"""Steps of classifiers that are timed."""

from __future__ import annotations

import numpy as np
import pytest
from accelerate import Accelerator

from histodistill.training.data.tiles import Tiles
from histodistill.training.engine import timing
from histodistill.training.engine.classifier_config import ClassifierConfig


def test_weights_are_changed_once_for_a_whole_batch(monkeypatch):
    config = ClassifierConfig(architecture="convnet", width=8, max_train_steps=2, batch_size=16, ema_decay=0.9)
    tiles = Tiles(np.zeros((20, 16, 16, 3), np.uint8), np.arange(20) % 2)
    training = timing.short_training(config, tiles, Accelerator(cpu=True), ["a", "b"], 4)
    changed, times = [], iter([10.0, 4.0])
    change = training.change_weights
    monkeypatch.setattr(training, "change_weights", lambda step: changed.append(step) or change(step))

    def seconds_of(call):
        before = [weight.detach().clone() for weight in training.trained.parameters()]
        call()
        # Also the second time there is something to do.
        assert any((old != new).any() for old, new in zip(before, training.trained.parameters(), strict=True))
        return next(times)

    monkeypatch.setattr(timing, "seconds_of", seconds_of)
    assert timing.seconds_of_tile(training, config.batch_size) == pytest.approx((10 - 4) / 4 + 4 / 16)
    assert len(changed) == 2
