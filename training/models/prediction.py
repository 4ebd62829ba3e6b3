"""What a classifier says of tiles: class probabilities, and the features that they come from."""

from __future__ import annotations

import numpy as np
import torch

from histodistill.training.data.pixels import to_model_input
from histodistill.training.models.classifiers import Classifier
from histodistill.training.running.errors import InputError


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
