"""The training of the autoencoder: its loss, its figures on validation tiles, and the scale of its latents."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator

from histodistill.selection.image_rows import batches, rows_of
from histodistill.training.data.images import save_grid
from histodistill.training.data.pixels import ready_for, to_model_input
from histodistill.training.data.tiles import TileSource
from histodistill.training.engine.augment import apply_symmetries, draw_symmetries
from histodistill.training.engine.looks import SCALE_TILES
from histodistill.training.engine.loop import GenerativeTraining
from histodistill.training.engine.optimizers import make_optimizer
from histodistill.training.engine.privacy import PrivacyPlan
from histodistill.training.engine.steps import spread_indices
from histodistill.training.models.autoencoder import VariationalAutoencoder, autoencoder_loss, measure_latents
from histodistill.training.models.batch_sizes import usual_batch_size
from histodistill.training.models.classifiers import Classifier
from histodistill.training.models.denoiser import use_plain_attention
from histodistill.training.models.latents import reconstruct, shape_of_latent
from histodistill.training.models.prediction import predict_proba
from histodistill.training.models.reconstruction import Lost, what_is_lost
from histodistill.training.running.training_options import PrivateTrainingConfig


# Validation tiles in a picture of the progress, above their reconstructions.
_SHOWN_TILES = 16


class AutoencoderTraining(GenerativeTraining):
    """Learns to reconstruct tiles from noisy latents.

    Args:
        config, accelerator, plan: See `GenerativeTraining`.
        source: The tiles; the autoencoder is trained on its training tiles and judged by its validation tiles.
        model: The autoencoder, as it is trained.
        frequency_weight: See `reconstruction_loss`.
        kl_weight: Weight of the mean KL divergence per latent value from N(0, 1), in nats.
        equivariance_weight: Weight of what makes halved latents decode into halved tiles; the model then has `halves`.
        crop_size: Side in pixels of the part of a tile that a step shows, anywhere in it; None for the whole tile.
            Validation, and the scale of the latents, are of whole tiles.
    """

    name = "autoencoder"
    model: VariationalAutoencoder

    def __init__(
        self,
        config: PrivateTrainingConfig,
        source: TileSource,
        accelerator: Accelerator,
        plan: PrivacyPlan | None,
        model: VariationalAutoencoder,
        *,
        frequency_weight: float,
        kl_weight: float,
        equivariance_weight: float = 0.0,
        crop_size: int | None = None,
    ):
        super().__init__(config, source.split("train"), accelerator, plan)
        self.model, self.autoencoder = model, model.autoencoder
        self.frequency_weight, self.kl_weight = frequency_weight, kl_weight
        self.equivariance_weight = equivariance_weight
        self.validation = source.split("validation")
        self.image_size, self.crop_size = source.image_size, crop_size or source.image_size
        self.latent_shape = shape_of_latent(self.autoencoder, self.crop_size)
        # Of whole tiles, which are many times what a step shows.
        self.whole_batch_size = min(config.batch_size, usual_batch_size(source.image_size))
        if plan:  # the fused kernel of attention gives no gradients tile by tile
            use_plain_attention(self.autoencoder)
        self.validated = self.validation.subset(spread_indices(len(self.validation), config.validation_tiles))
        self.validation_images = self.validated.images
        self.optimizer = make_optimizer(config, self.autoencoder, betas=(0.9, 0.999))

    def draw_batch(self, indices: np.ndarray, generator: torch.Generator) -> tuple[torch.Tensor, ...]:
        """Random views, and standard normal noise of the shape of the latents.

        A view is a symmetry, int64 N; with crops a symmetry and the place of the upper left corner (row, column) in
        the tile as it is, int64 N×3.
        """
        views = draw_symmetries(len(indices), generator)
        if self.crop_size < self.image_size:
            places = self.image_size - self.crop_size + 1
            corners = torch.randint(0, places, (len(indices), 2), generator=generator)
            views = torch.cat([views[:, None], corners], dim=1)
        return views, torch.randn(len(indices), *self.latent_shape, generator=generator)

    def read_inputs(self, indices: np.ndarray, views: torch.Tensor) -> torch.Tensor:
        """The pixels that views of training tiles show; of a tile that is cropped, no more goes to the device."""
        if views.ndim == 1:
            return super().read_inputs(indices, views)
        size = self.crop_size
        crops = np.empty((len(indices), size, size, 3), np.uint8)
        for crop, index, (_, top, left) in zip(crops, indices, views.tolist(), strict=True):
            crop[:] = self.train.images[int(index)][top : top + size, left : left + size]
        return ready_for(self.accelerator.device, torch.from_numpy(crops))

    def make_inputs(self, read: torch.Tensor, views: torch.Tensor) -> torch.Tensor:
        """What `read_inputs` gave for the same views, turned as they say."""
        symmetries = views if views.ndim == 1 else views[:, 0]
        return apply_symmetries(to_model_input(read, self.accelerator.device), symmetries)

    def loss(self, call: Callable[..., Any], inputs: torch.Tensor, *drawn: torch.Tensor) -> torch.Tensor:
        """See `autoencoder_loss`."""
        with self.accelerator.autocast():
            outputs = call(inputs, *drawn)
        return autoencoder_loss(
            outputs,
            inputs,
            frequency_weight=self.frequency_weight,
            kl_weight=self.kl_weight,
            equivariance_weight=self.equivariance_weight,
        )

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """PSNR in dB and L1 distance, in units of [-1, 1], of reconstructions without noise."""
        self.autoencoder.eval()
        squared, absolute = 0.0, 0.0
        for images in batches(self.validation_images, self.whole_batch_size):
            batch = to_model_input(images, self.accelerator.device)
            with self.accelerator.autocast():
                difference = reconstruct(self.autoencoder, batch).float().clamp(-1, 1) - batch
            squared += difference.square().sum().item()
            absolute += difference.abs().sum().item()
        self.autoencoder.train()
        count = self.validation_images.nbytes  # a byte for each value
        # The range of values is 2, so the peak signal is 2.
        psnr = 10 * math.log10(4 / max(squared / count, 1e-12))
        return {"validation_psnr": psnr, "validation_l1": absolute / count}

    @torch.no_grad()
    def draw_progress(self, path: Path) -> None:
        """Validation tiles, and below them their reconstructions."""
        shown = spread_indices(len(self.validation_images), _SHOWN_TILES)
        originals = to_model_input(self.validation_images[shown], self.accelerator.device)
        left = [reconstruct(self.autoencoder, part) for part in originals.split(self.whole_batch_size)]
        save_grid(torch.cat([originals, *left]), path, columns=_SHOWN_TILES)

    def saved_modules(self) -> dict[str, torch.nn.Module]:
        """The autoencoder."""
        return {"autoencoder": self.autoencoder}

    def what_is_lost(self, teacher: Classifier | None) -> Lost:
        """What the autoencoder, in evaluation mode, loses of validation tiles, and by what a classifier says."""
        if teacher is None:
            return what_is_lost(self.autoencoder, self.validation_images)
        predict = partial(predict_proba, teacher.to(self.accelerator.device))
        return what_is_lost(self.autoencoder, self.validation_images, self.validated.labels, predict)

    def measure_latents(self) -> dict[str, float]:
        """What brings the latents of training tiles to a mean square of 1: see `models.autoencoder.measure_latents`.

        Under differential privacy, where training tiles may be looked at through noisy gradients alone, it is measured
        on validation tiles.
        """
        tiles = self.train if self.config.dp_epsilon is None else self.validation
        measured = spread_indices(len(tiles), SCALE_TILES)
        images = (
            to_model_input(batch, self.accelerator.device)
            for batch in batches(rows_of(tiles.images, measured), self.whole_batch_size)
        )
        return measure_latents(self.autoencoder, images)
