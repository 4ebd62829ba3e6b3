"""What a classifier says of tiles: class probabilities, and the features that they come from."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from histodistill.selection.image_rows import Images, batches
from histodistill.training.data.pixels import to_model_input
from histodistill.training.models.batch_sizes import usual_batch_size
from histodistill.training.models.classifiers import Classifier, ClassifierOutput
from histodistill.training.running.errors import InputError, param
from histodistill.training.running.options import require


def predict_proba(
    model: Classifier, images: Images, batch_size: int | None = None, device: torch.device | str | None = None
) -> np.ndarray:
    """Class probabilities of images.

    Args:
        model: The classifier. It is used in evaluation mode, in float32, and left as it was found.
        images: uint8 N×H×W×3, at least one; read in batches.
        batch_size: Images at a time, at least 1; by default `usual_batch_size`.
        device: Where the work is done; None for where the model is.

    Returns:
        float32 N×C with rows that sum to 1.

    Raises:
        InputError: For images of another size than the model's, none at all, or a batch size below 1.
    """
    return _run(model, images, batch_size, device, lambda output: output.logits.float().softmax(dim=1))


def embed(
    model: Classifier, images: Images, batch_size: int | None = None, device: torch.device | str | None = None
) -> np.ndarray:
    """Embeddings of images: the features that the model's linear head takes.

    Args:
        model, images, batch_size, device: See `predict_proba`.

    Returns:
        float32 N×D.

    Raises:
        InputError: As `predict_proba` does.
    """
    return _run(model, images, batch_size, device, lambda output: output.features.float())


@torch.no_grad()
def _run(
    model: Classifier,
    images: Images,
    batch_size: int | None,
    device: torch.device | str | None,
    take: Callable[[ClassifierOutput], torch.Tensor],
) -> np.ndarray:
    batch_size = usual_batch_size(images.shape[1]) if batch_size is None else batch_size
    require(batch_size >= 1, "batch_size", batch_size, "it must be at least 1")
    if images.shape[1:3] != (model.image_size, model.image_size):
        raise InputError(
            f"images are {images.shape[1]} by {images.shape[2]} px and the classifier takes {model.image_size} px: "
            f"load them with {param('image_size')}={model.image_size}"
        )
    was_training, was_on = model.training, model.device
    model.eval()
    if device is not None:
        model.to(device)
    # Into one array: results that lie between what the model takes and gives back would keep memory from being reused.
    results, start = np.empty((0, 0), np.float32), 0
    try:
        for batch in batches(images, batch_size):
            found = take(model(to_model_input(batch, model.device))).cpu().numpy()
            if not start:
                results = np.empty((len(images), *found.shape[1:]), found.dtype)
            results[start : start + len(found)] = found
            start += len(found)
    finally:
        model.train(was_training)
        model.to(was_on)
    if not start:
        raise InputError("there are no images: give at least one")
    return results
