"""What changes the weights of a generative model: AdamW, or Muon with AdamW for what is no matrix."""

from __future__ import annotations

import torch

from histodistill.training.engine.muon import Muon, is_matrix, matrix_ratio
from histodistill.training.running.training_options import PrivateTrainingConfig


def make_optimizer(
    config: PrivateTrainingConfig, model: torch.nn.Module, betas: tuple[float, float]
) -> torch.optim.Optimizer:
    """The optimizer of all weights of a model that are trained, as the options have it.

    Args:
        config: Of the training.
        model: An autoencoder or a denoiser, aligned or not.
        betas: Of AdamW.
    """
    learning_rate, weight_decay = config.learning_rate, config.weight_decay
    named = [(name, weight) for name, weight in model.named_parameters() if weight.requires_grad]
    if config.optimizer == "adamw":
        weights = [weight for _, weight in named]
        return torch.optim.AdamW(weights, lr=learning_rate, weight_decay=weight_decay, betas=betas, fused=True)
    matrices: list[torch.nn.Parameter] = []
    others: list[torch.nn.Parameter] = []
    for weight_name, weight in named:
        (matrices if is_matrix(weight_name, weight) else others).append(weight)
    ratio = matrix_ratio(config.max_train_steps)
    return Muon(matrices, others, lr=learning_rate, ratio=ratio, weight_decay=weight_decay, betas=betas)
