"""Rectified flow, which the denoiser learns: its loss, and the random numbers of a batch.

Between data x and noise e it sees z = (1 - s) x + s e and predicts the velocity e - x (Liu et al. 2023,
arXiv:2209.03003; Lipman et al. 2023, arXiv:2210.02747), or the data, of which the velocity is (z - x) / s. Latents of
many channels are learned sooner by the data, since a narrow network need not pass on the noise then (Li and He 2025,
arXiv:2511.13720); nor need it pass on what it sees of little noise where part of z goes straight into the data: see
`add_what_was_seen`. Noise levels s are logit-normal (Esser et al. 2024, arXiv:2403.03206).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from histodistill.pipelines import add_what_was_seen
from histodistill.training.models.denoiser import NUM_TRAIN_TIMESTEPS
from histodistill.training.models.denoiser_output import DATA, DenoiserOutput


#: The loss over noise levels of draw_step, with a mean of 0, of a model that knows of latents only that they have zero
#: mean and unit variance: the mean of 1 / ((1 - s)² + s²), which is the error of the best linear prediction from z.
UNTAUGHT_LOSS = 1.74
# Errors of the data are divided by no smaller noise level than this.
_LEAST_LEVEL = 0.05


def flow_loss(
    denoiser: Callable[..., Any],
    latents: torch.Tensor,
    class_ids: torch.Tensor,
    noise: torch.Tensor,
    noise_levels: torch.Tensor,
    output: DenoiserOutput,
) -> torch.Tensor:
    """Mean squared error of the velocity, whatever is predicted.

    Args:
        denoiser: Takes noisy latents, timesteps in [0, 1000) and class ids.
        latents, noise: float N×C×h×w; normalised latents and standard normal noise.
        class_ids: int64 N, null class included.
        noise_levels: float N in (0, 1).
        output: What the denoiser gives.

    Returns:
        Scalar tensor.
    """
    levels = noise_levels.view(-1, 1, 1, 1)
    noisy = (1 - levels) * latents + levels * noise
    prediction = denoiser(noisy, noise_levels * NUM_TRAIN_TIMESTEPS, class_labels=class_ids).sample
    found, expected = compared(prediction.float(), noisy, latents, noise, levels, output)
    return torch.nn.functional.mse_loss(found, expected)


def compared(
    prediction: torch.Tensor,
    noisy: torch.Tensor,
    latents: torch.Tensor,
    noise: torch.Tensor,
    levels: torch.Tensor | float,
    output: DenoiserOutput,
) -> tuple[torch.Tensor, torch.Tensor]:
    """What a denoiser gave, and what it should have given, so that they differ by the error of the velocity.

    Args:
        prediction: float N×C×h×w.
        noisy: What the denoiser saw, float N×C×h×w.
        latents, noise: See `flow_loss`.
        levels: Noise levels, float N×1×1×1 or one number.
        output: What the denoiser gives.
    """
    if output.prediction_type == DATA:
        prediction = add_what_was_seen(prediction, noisy, levels, output.skip_noise)
        scale = 1 / torch.as_tensor(levels).clamp(min=_LEAST_LEVEL)
        return prediction * scale, latents * scale
    return prediction, noise - latents


def draw_step(
    generator: torch.Generator,
    class_ids: torch.Tensor,
    latent_shape: tuple[int, ...],
    null_class: int,
    dropout: float,
    level_mean: float = 0.0,
    level_range: tuple[float, float] = (0.0, 1.0),
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Random numbers of one batch of N: noise N×C×h×w, noise levels N, and class ids N with some dropped.

    Args:
        generator: Draws them.
        class_ids: int64 N.
        latent_shape: (C, h, w).
        null_class: What the others are dropped for.
        dropout: Share of those that are.
        level_mean: Mean of the logits of noise levels, whose standard deviation is 1.
        level_range: Lowest and highest noise level. The distribution between them is what is left of that without.
    """
    count = len(class_ids)
    noise = torch.randn(count, *latent_shape, generator=generator)
    normal = torch.randn(count, generator=generator)
    if level_range != (0.0, 1.0):
        normal = _within(normal, torch.logit(torch.tensor(level_range, dtype=torch.float64)) - level_mean)
    noise_levels = torch.sigmoid(normal + level_mean).clamp(*level_range)
    dropped = torch.rand(count, generator=generator) < dropout
    return noise, noise_levels, torch.where(dropped, null_class, class_ids)


def _within(normal: torch.Tensor, limits: torch.Tensor) -> torch.Tensor:
    """Standard normal numbers float32 N made such as lie between two limits, float64, by their quantiles."""
    low, high = torch.special.ndtr(limits)
    return torch.special.ndtri(low + (high - low) * torch.special.ndtr(normal.double())).float()
