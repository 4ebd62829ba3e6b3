from __future__ import annotations

from histodistill.training.engine.diffusion_training import overfitting_warning


def test_warning_of_overfitting():
    def history(*losses):
        return [{"step": step, "validation_loss": loss} for step, loss in enumerate(losses, start=1)]

    assert overfitting_warning(history(1.0, 0.7, 0.76)) is None
    warning = overfitting_warning(history(1.0, 0.7, 0.8))
    assert warning.startswith(
        "the validation loss rose from 0.7000 at step 2 to 0.8000, so the model learns its tiles"
    )
