"""What makes a training step: which tiles it sees, its learning rate, and its random numbers.

Everything random in a step is a function of (seed, step) alone. A run that was killed and resumed, or split over
another number of processes, therefore sees the same batches, augmentations and noise as one that was not.
"""

from __future__ import annotations

import math
from typing import TypeVar

import numpy as np
import torch

from histodistill.selection.streams import stream, torch_seed


_Batch = TypeVar("_Batch", np.ndarray, torch.Tensor)


class BatchOrder:
    """Which items each batch of a training has.

    Without weights, items come in epochs: every item once in a new random order, then the next epoch, with no item
    dropped at the seam. With weights, items are drawn independently with those probabilities. What takes time in
    proportion to the number of items is done once an epoch, or once a training, and kept: 8 bytes an item.

    Args:
        purpose: What is trained, in words: trainings of the same seed see tiles in orders of their own.
        num_items: Number of items N, at least 1.
        batch_size: Items per batch over all processes.
        seed: Seed of the run, at least 0.
        weights: float N, non-negative sampling weights with a sum above 0; None for epochs.
    """

    def __init__(self, purpose: str, num_items: int, batch_size: int, seed: int, weights: np.ndarray | None = None):
        self.purpose, self.num_items, self.batch_size, self.seed = purpose, num_items, batch_size, seed
        self._cumulative = None if weights is None else _cumulative(weights)
        self._epoch, self._order = -1, np.empty(0, np.int64)

    def indices(self, step: int) -> np.ndarray:
        """Indices of the global batch of one step.

        Args:
            step: Number of the batch from 0.

        Returns:
            int64 array of `batch_size` indices in [0, N), a function of what the order was made of and `step` alone.
        """
        if self._cumulative is not None:
            rng = stream(f"weighted batch of {self.purpose}", self.seed, step)
            # What `rng.choice(N, size=batch_size, p=weights)` gives, which sums up all weights each time.
            return self._cumulative.searchsorted(rng.random(self.batch_size), side="right")
        first, end = step * self.batch_size, (step + 1) * self.batch_size
        parts = []
        while first < end:
            epoch, start = divmod(first, self.num_items)
            parts.append(self._order_of(epoch)[start : start + end - first])
            first += len(parts[-1])
        return np.concatenate(parts)

    def _order_of(self, epoch: int) -> np.ndarray:
        if epoch != self._epoch:
            rng = stream(f"epoch of {self.purpose}", self.seed, epoch)
            self._epoch, self._order = epoch, rng.permutation(self.num_items)
        return self._order


def _cumulative(weights: np.ndarray) -> np.ndarray:
    """The cumulative probabilities float64 N of weights, rounded as `numpy.random.Generator.choice` rounds them."""
    cumulative = np.cumsum(weights / weights.sum())
    return cumulative / cumulative[-1]


def class_weights(labels: np.ndarray, power: float) -> np.ndarray | None:
    """Weights for drawing tiles so that a class of n tiles is drawn in proportion to n^(1 - power).

    Args:
        labels: Class ids int64 N.
        power: 0 draws classes as often as they occur, 1 all equally often.

    Returns:
        float64 N, or None for `power=0`, which means plain epochs.
    """
    if power == 0:
        return None
    counts = np.bincount(labels).astype(np.float64)
    # A class without tiles would have an infinite weight. No tile has that weight, so a count of 1 does as well.
    return (counts.clip(min=1) ** -power)[labels]


def spread_indices(num_items: int, at_most: int) -> np.ndarray:
    """Indices of items that are spread evenly over all.

    Tiles often lie in the order of their classes, so the first ones would show a few classes only.

    Args:
        num_items: Number of items N.
        at_most: How many indices; where there are fewer items, all of them.

    Returns:
        int64, ascending, in [0, N).
    """
    count = min(num_items, at_most)
    return np.arange(count) * num_items // count


def process_slice(global_batch: _Batch, process_index: int, num_processes: int) -> _Batch:
    """The items of a global batch that one process works on: every `num_processes`th, from `process_index` on."""
    return global_batch[process_index::num_processes]


def step_generator(purpose: str, seed: int, step: int, *numbers: int) -> torch.Generator:
    """A CPU generator for the random numbers of one step.

    Args:
        purpose: What is drawn, in words: see `selection.streams`.
        seed: Seed of the run, at least 0.
        step: Number of the step from 0.
        numbers: What else keeps several generators of the purpose apart, such as a tile.
    """
    return torch.Generator().manual_seed(torch_seed(purpose, seed, step, *numbers))


def cosine_learning_rate(step: int, max_steps: int, warmup_steps: int, peak: float) -> float:
    """Linear warm-up to a peak, then half a cosine to zero (Loshchilov & Hutter 2017, arXiv:1608.03983).

    Args:
        step: Number of the step from 0.
        max_steps: Steps of the training, at least 1.
        warmup_steps: Steps that the warm-up takes, 0 to `max_steps`.
        peak: The highest learning rate.
    """
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    progress = (step - warmup_steps) / max(1, max_steps - warmup_steps)
    return peak * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def set_learning_rate(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    """Sets the learning rate of every parameter group."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
