from __future__ import annotations

import pytest

from histodistill.training.engine.diffusion_training import training_warning


def history(*losses: float, train_loss: float = 1.8) -> list[dict[str, float]]:
    steps = enumerate(losses, start=1)
    return [{"step": step, "validation_loss": loss, "train_loss": train_loss} for step, loss in steps]


def test_warning_of_overfitting():
    assert training_warning(history(1.0, 0.7, 0.76)) is None
    warning = training_warning(history(1.0, 0.7, 0.8))
    assert warning.startswith(
        "the validation loss rose from 0.7000 at step 2 to 0.8000, so the model learns its tiles"
    )


@pytest.mark.parametrize(
    ("losses", "remedy"),
    [
        ((7.89, 8.65, 7.63), "train longer"),
        ((1.0, 1.8), "train with a smaller learning rate, or more weight decay"),
        ((1.8,), "train longer"),
    ],
)
def test_warning_of_a_model_that_knows_nothing(losses, remedy):
    assert training_warning(history(1.9, 1.7)) is None
    warning = training_warning(history(*losses))
    assert f"is {losses[-1]:.4f} in the end, and a model that knows nothing" in warning and warning.endswith(remedy)


def test_a_model_that_knows_nothing_but_its_own_tiles_has_learned_them_by_heart():
    warning = training_warning(history(0.723, 1.865, train_loss=0.2))
    assert "so the model learns its tiles by heart: train fewer steps" in warning
