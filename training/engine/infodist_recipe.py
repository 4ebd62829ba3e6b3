"""How InfoDist trains a classifier (Li and Kainz, MICCAI 2024): the recipe of its published code, beside our own.

Where the code is known to do other than one would (the softmax up to three times), both can be had. What the code does
in ways that nobody should repeat is left out: see docs/results.md.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch.nn import functional as F

from histodistill.selection.image_rows import Images, batches
from histodistill.selection.streams import stream, torch_seed
from histodistill.training.data.pixels import to_device, to_model_input
from histodistill.training.data.tiles import Tiles
from histodistill.training.engine.checkpoints import resume_training, save_checkpoint
from histodistill.training.engine.infodist_augmentation import augment
from histodistill.training.engine.losses import boundary_contrastive_loss
from histodistill.training.engine.steps import set_learning_rate, step_generator
from histodistill.training.models.batch_sizes import usual_batch_size
from histodistill.training.models.infodist_convnet import WIDTH, InfoDistConvNet
from histodistill.training.running.errors import InputError


#: Epochs of the published recipe.
PUBLISHED_EPOCHS = 1000
# Of its optimizer, SGD: the peak learning rate, the one that the warm-up begins at, momentum and weight decay.
_PEAK, _START = 1e-3, 1e-7
_MOMENTUM, _WEIGHT_DECAY = 0.9, 5e-4
# Of its moving average of the weights, which moves once an epoch.
_AVERAGE_DECAY = 0.995
# Of its contrastive term: see `boundary_contrastive_loss`.
_POSITION, _MARGIN = 0.9, 0.3
# Steps after which a checkpoint is written, when the epoch ends.
_CHECKPOINT_STEPS = 1000


@dataclass(frozen=True)
class InfoDistRecipe:
    """What may differ between trainings of the protocol.

    Attributes:
        epochs: At least 1; warm-up, cosine and moving average stretch or shrink with them.
        loss: "ce" or "joint", the sum of cross-entropy and the boundary-guided contrastive term.
        softmaxes: 1, or 3 for as many as the published code takes: see `recipe_loss` and `class_scores`.
        seed: Of weights, order and augmentation.
        width: Channels of the network.
    """

    epochs: int = PUBLISHED_EPOCHS
    loss: str = "ce"
    softmaxes: int = 1
    seed: int = 0
    width: int = WIDTH


def batch_size_of(image_size: int) -> int:
    """Tiles per batch: 256 of 64 px, as the scripts for that size force, else 64, the code's default."""
    return 256 if image_size == 64 else 64


def epoch_learning_rate(epoch: int, epochs: int) -> float:
    """The learning rate of an epoch: from 1e-7 up in a line to 1e-3 at half of the epochs, then half a cosine to 0.

    Args:
        epoch: From 0.
        epochs: Of the training, at least 1.
    """
    warmup = epochs // 2
    if epoch < warmup:
        return _START + (_PEAK - _START) * epoch / warmup
    return _PEAK * 0.5 * (1 + math.cos(math.pi * (epoch - warmup) / (epochs - warmup)))


def average_decay(epochs: int) -> float:
    """What the moving average keeps of itself each epoch: 0.995 of 1,000 epochs, and as much over all of fewer."""
    return _AVERAGE_DECAY ** (PUBLISHED_EPOCHS / epochs)


def recipe_loss(logits: torch.Tensor, labels: torch.Tensor, loss: str = "ce", softmaxes: int = 1) -> torch.Tensor:
    """The loss of a batch.

    With `softmaxes=3`, cross-entropy is that of the published code, which takes the network's probabilities for
    logits, so that a softmax stands before its own: it cannot fall below ln(1 + (C − 1)/e), which is 1.37 for nine
    classes. The contrastive term of "joint" is of the probabilities after one softmax in either case; its weight is 1.

    Args:
        logits: float N×C.
        labels: int64 N.
        loss: "ce" or "joint".
        softmaxes: 1 or 3.

    Returns:
        A float32 scalar.
    """
    logits = logits.float()
    total = F.cross_entropy(logits.softmax(dim=1) if softmaxes == 3 else logits, labels)
    if loss == "joint":
        total = total + boundary_contrastive_loss(logits, labels, _POSITION, _MARGIN)
    return total


def class_scores(logits: torch.Tensor, softmaxes: int = 1) -> torch.Tensor:
    """What is scored, float32 N×C: probabilities after a softmax, or with `softmaxes=3` after one more.

    The last of the three changes which image has the higher score of a class, and so AUC; ACC and F1 stay.
    """
    probabilities = logits.float().softmax(dim=1)
    return probabilities.softmax(dim=1) if softmaxes == 3 else probabilities


def steps_of_epoch(num_tiles: int, image_size: int) -> int:
    """Batches of an epoch: each tile once, the last batch being what is left."""
    return math.ceil(num_tiles / batch_size_of(image_size))


def train_by_recipe(
    recipe: InfoDistRecipe,
    train: Tiles,
    num_classes: int,
    accelerator: Accelerator,
    *,
    checkpoint_dir: Path | None = None,
    on_steps: Callable[[int], object] | None = None,
) -> InfoDistConvNet:
    """Trains a network by the recipe. The last epoch counts, and of its weights the moving average.

    Args:
        recipe: How.
        train: The tiles to train on.
        num_classes: C.
        accelerator: Decides device and precision, for this process alone; it is emptied at the end.
        checkpoint_dir: Where checkpoints go about every 1,000 steps, and are gone on from; None writes none.
        on_steps: Called with the number of steps that an epoch, or a checkpoint, has brought.

    Returns:
        The moving average, on the accelerator's device, in evaluation mode.

    Raises:
        InputError: For a loss that is not finite, or a checkpoint of another training.
    """
    image_size, labels = train.images.shape[1], torch.from_numpy(train.labels)
    steps = steps_of_epoch(len(train), image_size)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(torch_seed("weights of InfoDist's recipe", recipe.seed))
        network = InfoDistConvNet(image_size, num_classes, recipe.width)
    average = copy.deepcopy(network).eval().to(accelerator.device)
    optimizer = torch.optim.SGD(network.parameters(), lr=_PEAK, momentum=_MOMENTUM, weight_decay=_WEIGHT_DECAY)
    model, optimizer = accelerator.prepare(network, optimizer)
    trained: InfoDistConvNet = accelerator.unwrap_model(model)
    modules: dict[str, torch.nn.Module] = {"network": trained, "average": average}

    first_epoch = 0
    settings: dict[str, Any] = {}
    if checkpoint_dir is not None:
        settings = {**dataclasses.asdict(recipe), "num_classes": num_classes, "train": train.fingerprint()}
        state = resume_training(checkpoint_dir, "latest", settings, modules, optimizer, accelerator.scaler)
        first_epoch = 0 if state is None else state["epoch"]
    if first_epoch and on_steps is not None:
        on_steps(first_epoch * steps)
    decay, every = average_decay(recipe.epochs), math.ceil(_CHECKPOINT_STEPS / steps)
    model.train()
    for epoch in range(first_epoch, recipe.epochs):
        set_learning_rate(optimizer, epoch_learning_rate(epoch, recipe.epochs))
        order = stream("epoch of InfoDist's recipe", recipe.seed, epoch).permutation(len(train))
        total = torch.zeros((), device=accelerator.device)
        for number, rows in enumerate(np.array_split(order, range(0, len(order), batch_size_of(image_size))[1:])):
            generator = step_generator("augmentation of InfoDist's recipe", recipe.seed, epoch * steps + number)
            images = augment(to_model_input(train.images[rows], accelerator.device), generator)
            loss = recipe_loss(model(images), to_device(labels[rows], images.device), recipe.loss, recipe.softmaxes)
            accelerator.backward(loss)
            optimizer.step()
            optimizer.zero_grad()
            total += loss.detach()
        if not math.isfinite(total.item()):
            raise InputError(f"the loss is {total.item()} in epoch {epoch + 1} of {recipe.epochs}: it diverged")
        with torch.no_grad():
            for mean, weight in zip(average.parameters(), trained.parameters(), strict=True):
                mean.lerp_(weight, 1 - decay)
        done = epoch + 1
        if checkpoint_dir is not None and done % every == 0 and done < recipe.epochs:
            kept = {"epoch": done}
            save_checkpoint(checkpoint_dir, done * steps, settings, modules, optimizer, kept, accelerator.scaler)
        if on_steps is not None:
            on_steps(steps)
    accelerator.free_memory()
    return average


@torch.no_grad()
def predict_scores(network: InfoDistConvNet, images: Images, softmaxes: int = 1) -> np.ndarray:
    """`class_scores` of images, in float32.

    Args:
        network: In evaluation mode.
        images: uint8 N×S×S×3, at least one; read in batches.
        softmaxes: 1 or 3.

    Returns:
        float32 N×C.
    """
    device = network.head.weight.device
    parts: list[Any] = [
        class_scores(network(to_model_input(batch, device)), softmaxes).cpu().numpy()
        for batch in batches(images, usual_batch_size(images.shape[1]))
    ]
    return np.concatenate(parts)
