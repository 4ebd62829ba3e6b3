"""A denoiser whose middle is drawn to the features of a classifier: REPA (Yu et al. 2024, arXiv:2410.06940).

What a denoiser makes of a noisy latent in its middle is projected, and compared with the features that a trained
classifier has of the same tile without noise. It then learns sooner what tells tissues apart. Features are taken once
of each tile, as it is, and kept like latents; where a tile is turned or mirrored, so are its features.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import UNet2DModel
from torch import nn
from torch.nn import functional as F

from histodistill.training.data.pixels import to_model_input
from histodistill.training.data.tile_cache import TileCache
from histodistill.training.data.tiles import Tiles
from histodistill.training.engine.augment import apply_symmetries
from histodistill.training.engine.checkpoints import content_of
from histodistill.training.engine.kept_latents import DTYPES, Encoding, KeptLatents, keep_latents, plan_latents
from histodistill.training.engine.steps import spread_indices
from histodistill.training.models.batch_sizes import usual_batch_size
from histodistill.training.models.classifiers import Classifier
from histodistill.training.running.errors import InputError, param
from histodistill.training.running.notes import tell


# Type of the numbers that features are kept as.
_DTYPE = "float16"
# Tiles that the mean of the features is taken of, at most.
_MEAN_TILES = 2048


@dataclass(frozen=True)
class AlignedOutput:
    """What an aligned denoiser gives.

    Attributes:
        sample: float N×C×h×w, what the denoiser alone gives.
        projected: float N×D×s×s, the middle of the denoiser in the space of the features.
    """

    sample: torch.Tensor
    projected: torch.Tensor


class AlignedDenoiser(nn.Module):
    """A denoiser with a projection of its middle, both of which are trained.

    Args:
        unet: The denoiser.
        num_features: D, channels of the features.
    """

    def __init__(self, unet: UNet2DModel, num_features: int):
        super().__init__()
        self.unet = unet
        width = unet.config.block_out_channels[-1]
        self.projection = nn.Sequential(
            nn.Conv2d(width, 2 * width, 1), nn.SiLU(), nn.Conv2d(2 * width, num_features, 1)
        )
        self._middle: torch.Tensor | None = None
        unet.mid_block.register_forward_hook(self._keep_middle)

    def _keep_middle(self, _module: nn.Module, _inputs: Any, output: torch.Tensor) -> None:
        self._middle = output

    def forward(self, sample: torch.Tensor, timestep: torch.Tensor, class_labels: torch.Tensor) -> AlignedOutput:
        """What the denoiser alone gives, and its middle, projected."""
        given = self.unet(sample, timestep, class_labels=class_labels).sample
        assert self._middle is not None
        middle, self._middle = self._middle, None
        return AlignedOutput(given, self.projection(middle))


class Alignment:
    """What a denoiser is drawn to.

    Args:
        classifier: Whose features they are; it stays as it is.
        weight: Of the term in the loss, in which the error of the velocity has 1.
        side: Side of the denoiser's middle, to which maps of features are brought.

    Attributes:
        num_features: Channels of the features.
        weights: Hash of the classifier's weights.
        kept_in: The folder of features in the cache of tiles, once they are there.

    Raises:
        InputError: For a classifier without maps of features.
    """

    def __init__(self, classifier: Classifier, weight: float, side: int):
        if not hasattr(classifier.backbone, "maps"):
            raise InputError(
                f"{param('align')} is a {classifier.architecture}, which has no maps of features: give a convnet or a "
                "resnet18"
            )
        self.classifier = classifier.eval().requires_grad_(False)
        self.weight, self.side = weight, side
        self.weights = content_of(classifier)
        with torch.no_grad():
            blank = torch.zeros(1, 3, classifier.image_size, classifier.image_size, device=classifier.device)
            self.num_features = self._features(blank).shape[1]
        self.kept_in: list[Path] = []
        # Features of training tiles, as they are: kept, or taken anew.
        self._read: Callable[[np.ndarray], torch.Tensor] | None = None
        self._mean = torch.zeros(self.num_features, 1, 1)

    def _features(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Features float N×D×s×s of tiles float N×3×H×W in [-1, 1]."""
        return F.adaptive_avg_pool2d(self.classifier.feature_maps(pixel_values, self.side), self.side)

    def prepare(
        self, tiles: Tiles, source: str, device: torch.device, cache: TileCache | None, is_shown: bool
    ) -> None:
        """Takes the features of training tiles, once, into the cache of tiles.

        Without a cache, or where that has no room, they are taken in each step, rounded in the same way.

        Args:
            tiles: Which are trained on.
            source: What their source is called.
            device: Where features are computed.
            cache: Where they are kept.
            is_shown: Whether this process shows how far it is.

        Raises:
            InputError: If they are too large for it, or no numbers.
        """
        self.classifier.to(device)

        @torch.no_grad()
        def encode(images: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
            return self._features(to_model_input(images, device))

        shape = (self.num_features, self.side, self.side)

        def encode_some(indices: np.ndarray) -> torch.Tensor:
            parts = np.array_split(indices, -(-len(indices) // usual_batch_size(tiles.images.shape[1])))
            views = (encode(torch.from_numpy(tiles.images[part]), torch.zeros(len(part))) for part in parts)
            return torch.cat([view.to(DTYPES[_DTYPE]).float().cpu() for view in views])

        self._read = encode_some
        if cache is not None:
            encoding = Encoding(encode, ["features", self.weights], shape, 1, device, "features", "align")
            plan = plan_latents(encoding, tiles, source, _DTYPE)
            try:
                stored = keep_latents(cache, encoding, plan, tiles, is_shown)
                self._read, self.kept_in = _reader(KeptLatents(stored, _DTYPE)), [stored.folder]
            except InputError as error:
                tell(f"diffusion: features are taken anew in each step: {error.for_command_line()}")
        self._mean = self._read(spread_indices(len(tiles), _MEAN_TILES)).mean((0, 2, 3)).view(-1, 1, 1)
        if not self._mean.isfinite().all():
            raise InputError(f"{param('align')} gives features that are too large or no numbers: give another")

    def targets(self, indices: np.ndarray, symmetries: torch.Tensor) -> torch.Tensor:
        """Features of training tiles in their symmetries, without what all have in common.

        Args:
            indices: The tiles, int64 N.
            symmetries: int64 N, on the CPU.

        Returns:
            float32 N×D×s×s, on the CPU.
        """
        assert self._read is not None  # `prepare` is called before the first step
        return apply_symmetries(self._read(indices) - self._mean, symmetries)


def _reader(kept: KeptLatents) -> Callable[[np.ndarray], torch.Tensor]:
    """What reads kept features of tiles as they are, float32 N×D×s×s on the CPU."""

    def read(indices: np.ndarray) -> torch.Tensor:
        as_they_are = torch.zeros(len(indices), dtype=torch.int64)
        return kept.read(indices, as_they_are, torch.device("cpu")).float()

    return read


class KeptOutput:
    """Calls a model, and keeps what it gave.

    Args:
        call: The model.

    Attributes:
        output: Of the last call.
    """

    def __init__(self, call: Callable[..., Any]):
        self._call = call
        self.output: Any = None

    def __call__(self, *args: Any, **options: Any) -> Any:
        """Calls the model."""
        self.output = self._call(*args, **options)
        return self.output


def misalignment(projected: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """One minus the mean cosine of the angle between features: 0 where all point alike, at most 2.

    Args:
        projected, targets: float N×D×s×s.

    Returns:
        Scalar tensor.
    """
    return 1 - F.cosine_similarity(projected.float(), targets, dim=1).mean()
