"""The attack of one who holds the weights: a model knows the tiles that it was trained on by their smaller loss."""

from __future__ import annotations

import numpy as np
import torch

from histodistill.pipelines import HistologyPipeline
from histodistill.training.data.pixels import to_model_input
from histodistill.training.data.tiles import Tiles
from histodistill.training.engine.flow import compared
from histodistill.training.engine.looks import NOISE_LEVELS
from histodistill.training.engine.steps import step_generator
from histodistill.training.models.denoiser import NUM_TRAIN_TIMESTEPS
from histodistill.training.models.denoiser_output import DenoiserOutput
from histodistill.training.models.latents import normalised_latents


@torch.no_grad()
def denoising_losses(pipeline: HistologyPipeline, tiles: Tiles, seed: int = 0, batch_size: int = 128) -> np.ndarray:
    """How badly the denoiser of a pipeline tells the velocity of each tile, given its class.

    Every tile gets the same noise, so that tiles differ and chance does not. (Carlini et al. 2023, arXiv:2301.13188,
    and Matsumoto et al. 2023, arXiv:2302.03262, attack diffusion models by their losses.)

    Args:
        pipeline: As `train_diffusion` leaves it.
        tiles: Of the pipeline's size.
        seed: Of the noise.
        batch_size: Tiles at a time.

    Returns:
        float64 N×L, mean squared errors, one column for each of `NOISE_LEVELS`.
    """
    device, unet = pipeline.unet.device, pipeline.unet
    output = DenoiserOutput.of(pipeline)
    size = unet.config.sample_size
    shape = (len(NOISE_LEVELS), unet.config.in_channels, size, size)
    noises = torch.randn(shape, generator=step_generator("noise of the attack on weights", seed, 0)).to(device)
    losses = np.empty((len(tiles), len(NOISE_LEVELS)))
    for start in range(0, len(tiles), batch_size):
        rows = slice(start, start + batch_size)
        latents = normalised_latents(pipeline.vae, to_model_input(tiles.images[rows]).to(device))
        class_ids = torch.from_numpy(tiles.labels[rows]).to(device)
        for column, (level, noise) in enumerate(zip(NOISE_LEVELS, noises, strict=True)):
            timesteps = torch.full((len(latents),), level * NUM_TRAIN_TIMESTEPS, device=device)
            noisy = (1 - level) * latents + level * noise
            predicted = unet(noisy, timesteps, class_labels=class_ids).sample.float()
            found, expected = compared(predicted, noisy, latents, noise, level, output)
            losses[rows, column] = (found - expected).square().mean(dim=(1, 2, 3)).cpu().numpy()
    return losses


def attack_scores(members: np.ndarray, non_members: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """One loss for each tile from those at several levels (N×L and M×L), each level weighing alike: N and M."""
    usual = np.concatenate([members, non_members]).mean(axis=0)
    return (members / usual).mean(axis=1), (non_members / usual).mean(axis=1)
