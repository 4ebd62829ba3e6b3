"""Central images: noisy mean latents of each class, which a denoiser learns before its private steps.

DP-FETA (Li et al. 2025, arXiv:2504.01395) has a denoiser learn from easy to hard: first a few means of random tiles,
which cost little of the budget, then the tiles. Here the means are of latents, which have fewer numbers than pixels
and so less noise in all.

A query is a step of DP-SGD of a linear model whose gradient for a tile is what the tile contributes: its latent, and
that it is one, at the place of its class. So units are drawn, clipped and covered with noise by
`privacy.set_private_gradients`, as in the steps of the denoiser. The rest needs no tile and spends nothing.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import torch

from histodistill.training.data.pixels import to_device
from histodistill.training.engine.flow import draw_step
from histodistill.training.engine.privacy import PrivacyPlan, key_of_queries, set_private_gradients
from histodistill.training.engine.steps import cosine_learning_rate, set_learning_rate, step_generator
from histodistill.training.running.errors import param
from histodistill.training.running.notes import warn
from histodistill.training.running.progress import Progress


if TYPE_CHECKING:
    from histodistill.training.engine.diffusion_training import DiffusionTraining

# What a tile contributes has its latent, divided so that one of the usual size has a norm of 1, and this number, whose
# sums tell how many units a class has. A tile of the usual size is just not clipped.
_ONE = 0.5
MAX_NORM = math.sqrt(1 + _ONE**2)
# A class has at least this part of what each would have if all were alike, whatever the noise says.
_LEAST_SHARE = 0.25
# Noise on the mean of a class over all queries, as a multiple of a latent of the usual size, above which it is told:
# in a study of 90 patients central images did harm with 0.8 and more.
_MOST_NOISE = 0.5
# Steps on central images, for each of the private ones that follow.
_WARM_UP = 0.25
# Mean of the logits of noise levels. Of a tile under much noise its class tells the most, and the best guess is the
# mean; under little noise means would teach that tiles have no details.
_LEVEL_MEAN = 2.0
# Squares that numbers are divided by are no smaller.
_TINY = torch.finfo(torch.float32).tiny


def ask_for_latents(
    latents_of: Callable[[np.ndarray], torch.Tensor],
    labels: np.ndarray,
    num_classes: int,
    latent_shape: tuple[int, int, int],
    plan: PrivacyPlan,
    key: bytes,
) -> torch.Tensor:
    """Central latents of each class, made of noisy sums alone.

    Args:
        latents_of: Gives the latents float N×C×h×w of tiles with given indices, each by itself.
        labels: Class ids of all tiles, int64.
        num_classes: Number of classes K.
        latent_shape: (C, h, w).
        plan: Of the training, with M queries.
        key: The secret key of the training.

    Returns:
        float32 M×K×C×h×w on the CPU.
    """
    of_queries = plan_of_queries(plan)
    deviation = of_queries.noise_multiplier * of_queries.max_grad_norm / of_queries.units_per_step
    # Of a class of the usual size, over all its numbers and all queries.
    noise = deviation * num_classes * math.sqrt(math.prod(latent_shape) / of_queries.steps)
    if noise > _MOST_NOISE:
        warn(
            f"the central images of {of_queries.num_units:,} training {of_queries.unit}s have noise that is "
            f"{noise:.1f} times as large as a latent, and will hardly help: leave out {param('dp_central_share')}"
        )
    answers = noisy_means(latents_of, labels, num_classes, latent_shape, of_queries, key)
    return central_latents(answers, latent_shape, deviation)


def plan_of_queries(plan: PrivacyPlan) -> PrivacyPlan:
    """The queries of a training, as a training of their own of the same units, of which each query is a step."""
    assert plan.queries is not None
    return dataclasses.replace(
        plan,
        max_grad_norm=MAX_NORM,
        noise_multiplier=plan.queries.noise_multiplier,
        units_per_step=plan.queries.sample_rate * plan.num_units,
        steps=plan.queries.num_queries,
        queries=None,
    )


def noisy_means(
    latents_of: Callable[[np.ndarray], torch.Tensor],
    labels: np.ndarray,
    num_classes: int,
    latent_shape: tuple[int, int, int],
    of_queries: PrivacyPlan,
    key: bytes,
) -> torch.Tensor:
    """The answers to the queries: noisy sums over units, divided by the expected number of units.

    Args:
        latents_of, labels, num_classes, latent_shape, key: See `ask_for_latents`.
        of_queries: See `plan_of_queries`.

    Returns:
        float32 M×K×(D + 1), of which the last number of each class tells of its size.
    """
    size = math.prod(latent_shape)
    answer = torch.nn.Linear(num_classes * (size + 1), 1, bias=False)

    def contributions(indices: np.ndarray) -> list[torch.Tensor]:
        latents = latents_of(indices).flatten(1).float().cpu()
        row = torch.cat([latents / math.sqrt(size), torch.full((len(latents), 1), _ONE)], dim=1)
        at_class = torch.nn.functional.one_hot(torch.from_numpy(labels[indices]), num_classes)
        return [(at_class[:, :, None] * row[:, None]).flatten(1)]

    answers, key = [], key_of_queries(key)
    with Progress(of_queries.steps, "central images", "queries") as progress:
        for number in range(of_queries.steps):
            set_private_gradients(answer, lambda call, x: call(x).sum(), contributions, of_queries, key, number)
            assert answer.weight.grad is not None
            answers.append(answer.weight.grad.view(num_classes, size + 1))
            progress.update()
    return torch.stack(answers)


def central_latents(answers: torch.Tensor, latent_shape: tuple[int, int, int], deviation: float) -> torch.Tensor:
    """Latents of what queries answered, drawn to 0 the more, the more of them is noise (James and Stein 1961).

    That is done for the means over a latent and for what differs from them by themselves, as most is known of means.
    Shares of classes, by which sums are divided, are drawn to equal ones before.

    Args:
        answers: See `noisy_means`.
        latent_shape: (C, h, w).
        deviation: Standard deviation of the noise on the answers.

    Returns:
        float32 M×K×C×h×w.
    """
    num_queries, num_classes = answers.shape[:2]
    # How many units a class has does not differ between queries, but for chance.
    unlike = answers[:, :, -1].mean(dim=0) / _ONE - 1 / num_classes
    of_noise = (deviation / _ONE) ** 2 / num_queries / unlike.square().mean().clamp(min=_TINY)
    shares = (1 / num_classes + unlike * (1 - of_noise).clamp(min=0)).clamp(min=_LEAST_SHARE / num_classes)
    shares = shares.view(-1, 1, 1, 1)
    scale = math.sqrt(math.prod(latent_shape)) / shares
    latents = answers[:, :, :-1].unflatten(2, latent_shape) * scale
    variance = (deviation * scale).square()
    means, of_mean = latents.mean(dim=(3, 4), keepdim=True), 1 / math.prod(latent_shape[1:])
    return _drawn_to_zero(means, variance * of_mean) + _drawn_to_zero(latents - means, variance * (1 - of_mean))


def _drawn_to_zero(values: torch.Tensor, variance: torch.Tensor) -> torch.Tensor:
    """Values M×K×C×h×w with noise of a variance K×1×1×1, times what part of their square is none of it, by class."""
    power = values.square().mean(dim=(0, 2, 3, 4), keepdim=True)[0].clamp(min=_TINY)
    return values * (1 - variance / power).clamp(min=0)


def warm_up(training: DiffusionTraining, latents: torch.Tensor, optimizer: torch.optim.Optimizer) -> None:
    """Has the denoiser learn central latents by its loss, with noise of which more is much than in its steps.

    Args:
        training: Whose denoiser it is; what is random is a function of its seed, and of nothing that is secret.
        latents: See `ask_for_latents`.
        optimizer: Of the denoiser, a new one.
    """
    config, device = training.config, training.accelerator.device
    num_queries, num_classes = latents.shape[:2]
    class_ids = torch.arange(num_classes).repeat(num_queries)
    latents, steps = latents.flatten(0, 1), math.ceil(_WARM_UP * config.max_train_steps)
    training.model.train()
    with Progress(steps, "central images", "steps") as progress:
        for step in range(steps):
            rising = math.ceil(config.warmup * steps)
            set_learning_rate(optimizer, cosine_learning_rate(step, steps, rising, config.learning_rate))
            generator = step_generator("central images of the denoiser", config.seed, step)
            shown = torch.randint(len(latents), (config.batch_size,), generator=generator)
            drawn = draw_step(
                generator,
                class_ids[shown],
                training.latent_shape,
                training.null_class,
                training.class_dropout,
                _LEVEL_MEAN,
            )
            inputs = to_device(latents[shown], device).contiguous(memory_format=training.layout)
            training.loss(training.model, inputs, *(to_device(part, device) for part in drawn)).backward()
            # The norm of the private steps: the one of ordinary trainings has no effect here.
            torch.nn.utils.clip_grad_norm_(training.model.parameters(), config.dp_max_grad_norm)
            optimizer.step()
            optimizer.zero_grad()
            progress.update()
