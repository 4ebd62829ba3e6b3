"""What the training scripts share: which tiles a step sees, its learning rate, and its random numbers.

Everything random in a step is a function of (seed, step) alone. A run that was killed and resumed, or split over
another number of processes, therefore sees the same batches, augmentations and noise as one that was not.
"""

from __future__ import annotations

import math

import numpy as np
import torch


def batch_indices(num_items: int, batch_size: int, step: int, seed: int, weights: np.ndarray | None = None):
    """Indices of the global batch of one step.

    Without `weights`, items come in epochs: every item once in a new random order, then the next epoch, with no item
    dropped at the seam. With `weights`, items are drawn independently with those probabilities.

    Args:
        num_items: Number of items N, at least 1.
        batch_size: Items per step over all processes.
        step: Step number from 0.
        seed: Seed of the run.
        weights: float N, non-negative sampling weights.

    Returns:
        int64 array of `batch_size` indices in [0, N).
    """
    if weights is not None:
        rng = np.random.default_rng((seed, step, 1))
        return rng.choice(num_items, size=batch_size, p=weights / weights.sum())
    positions = np.arange(step * batch_size, (step + 1) * batch_size)
    epochs = positions // num_items
    orders = {epoch: np.random.default_rng((seed, epoch)).permutation(num_items) for epoch in np.unique(epochs)}
    return np.array([orders[epoch][position % num_items] for epoch, position in zip(epochs, positions, strict=True)])


def class_weights(labels: np.ndarray, power: float) -> np.ndarray | None:
    """Sampling weights that make classes of n tiles weigh n^(1 - power): 0 as they are, 1 all classes alike.

    Returns:
        float64 N, or None for `power=0`, which means plain epochs.
    """
    if power == 0:
        return None
    # A class without tiles has a weight that nobody asks for.
    return (np.bincount(labels).clip(min=1).astype(np.float64) ** -power)[labels]


def spread_indices(num_items: int, at_most: int) -> np.ndarray:
    """Indices of `at_most` items spread evenly over all (int64, ascending), or of all where there are no more.

    Tiles often lie in the order of their classes, so the first ones would show a few classes only.
    """
    count = min(num_items, at_most)
    return np.arange(count) * num_items // count


def process_slice(global_batch, process_index: int, num_processes: int):
    """The share of a global batch (array or tensor) that one process works on."""
    return global_batch[process_index::num_processes]


def step_generator(seed: int, step: int, stream: int = 0) -> torch.Generator:
    """A CPU generator for the random numbers of one step; `stream` keeps several uses in a step apart."""
    state = np.random.SeedSequence((seed, step, stream)).generate_state(2, np.uint32)
    return torch.Generator().manual_seed(int(state[0]) << 32 | int(state[1]))


def cosine_learning_rate(step: int, max_steps: int, warmup_steps: int, peak: float) -> float:
    """Linear warm-up to `peak`, then half a cosine to zero (Loshchilov & Hutter 2017, arXiv:1608.03983)."""
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    progress = (step - warmup_steps) / max(1, max_steps - warmup_steps)
    return peak * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def set_learning_rate(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    """Sets the learning rate of every parameter group."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
