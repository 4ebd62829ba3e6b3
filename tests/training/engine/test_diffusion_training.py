from __future__ import annotations

import pytest

from histodistill.training.engine.diffusion_training import training_warning


def history(*losses: float) -> list[dict[str, float]]:
    return [{"step": step, "validation_loss": loss} for step, loss in enumerate(losses, start=1)]


def test_warning_of_overfitting():
    assert training_warning(history(1.0, 0.7, 0.76)) is None
    warning = training_warning(history(1.0, 0.7, 0.8))
    assert warning.startswith(
        "the validation loss rose from 0.7000 at step 2 to 0.8000, so the model learns its tiles"
    )


@pytest.mark.parametrize("losses", [(7.89, 8.65, 7.63), (1.0, 1.8), (1.8,)])
def test_warning_of_a_model_that_knows_nothing(losses):
    assert training_warning(history(1.9, 1.7)) is None
    assert f"is {losses[-1]:.4f} in the end, and a model that knows nothing" in training_warning(history(*losses))
