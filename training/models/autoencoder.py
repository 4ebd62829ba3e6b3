"""The autoencoder: diffusers' `AutoencoderDC`, built for a size of tiles, and as the variational one that is trained.

The network is that of the Deep Compression Autoencoder (Chen et al. 2024, arXiv:2410.10733): it halves and doubles the
size by moving pixels to channels and back, with shortcuts that lose nothing.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence

import torch
from diffusers import AutoencoderDC
from diffusers.models.autoencoders.autoencoder_dc import ResBlock
from torch.nn.functional import avg_pool2d

from histodistill.training.models.latents import LatentModel, encode_images
from histodistill.training.running.errors import InputError, param


# The least mean square of latents that is divided by: latents that are all 0 have no scale.
_LEAST_MEAN_SQUARE = 1e-12


def build_autoencoder(
    image_size: int, channels: Sequence[int], latent_channels: int, layers_per_block: int, plain_finest: bool = False
) -> AutoencoderDC:
    """A new `AutoencoderDC` that maps image_size to image_size / 2^(levels - 1).

    The decoder has twice the residual blocks of the encoder. All blocks begin as the identity.

    Args:
        image_size: Side of the tiles in pixels.
        channels: Width of each level; every level after the first halves the size.
        latent_channels: Channels of the latents.
        layers_per_block: Residual blocks in each level of the encoder.
        plain_finest: Whether the finest level, of two or more, has none: it then only halves and doubles, and its
            width says nothing.

    Raises:
        InputError: If image_size cannot be halved that often, or the shortcuts cannot share out the channels.
    """
    factor = 2 ** (len(channels) - 1)
    if image_size % factor:
        raise InputError(
            f"image size {image_size} is not divisible by {factor}: give {param('image_size')} "
            f"{max(factor, round(image_size / factor) * factor)}, or fewer {param('channels')}"
        )
    for width, next_width in itertools.pairwise(channels):
        if 4 * width % next_width or next_width % 4:
            suitable = 4 * width if width % 2 else 2 * width
            raise InputError(
                f"{param('channels')} {' '.join(map(str, channels))} cannot be joined by shortcuts: every width "
                f"after the first must be divisible by 4 and divide 4 times the width before it; give {suitable} "
                f"after {width}"
            )
    levels = len(channels)
    blocks = [layers_per_block] * levels
    if plain_finest:
        blocks[0] = 0
    has_shortcut = channels[-1] % latent_channels == 0
    autoencoder = AutoencoderDC(
        latent_channels=latent_channels,
        encoder_block_out_channels=channels,
        decoder_block_out_channels=channels,
        encoder_layers_per_block=blocks,
        decoder_layers_per_block=[2 * number for number in blocks],
        # Scales of the attention blocks, one list for each level; there are no such blocks.
        encoder_qkv_multiscales=[[]] * levels,
        decoder_qkv_multiscales=[[]] * levels,
        encoder_out_shortcut=has_shortcut,
        decoder_in_shortcut=has_shortcut,
    )
    for module in autoencoder.modules():
        if isinstance(module, ResBlock):
            torch.nn.init.zeros_(module.norm.weight)
    return autoencoder


def has_batch_norms(autoencoder: LatentModel) -> bool:
    """Whether an autoencoder has layers whose result for an image depends on the others of its batch."""
    return any(isinstance(module, torch.nn.modules.batchnorm._BatchNorm) for module in autoencoder.modules())


class VariationalAutoencoder(torch.nn.Module):
    """Encoder, posterior sample and decoder as one forward pass, which is what DistributedDataParallel wraps.

    Args:
        autoencoder: Its latents are the means of the posterior.
        posterior_std: Standard deviation of the posterior.
        halves: Whether latents of half the size are decoded, too.
    """

    def __init__(self, autoencoder: LatentModel, posterior_std: float, halves: bool = False):
        super().__init__()
        self.autoencoder = autoencoder
        self.posterior_std, self.halves = posterior_std, halves

    def forward(self, images: torch.Tensor, noise: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Reconstructs images N×3×H×W in [-1, 1] from latents drawn with standard normal `noise` N×C×h×w.

        Returns:
            Reconstruction N×3×H×W, and what varies of the mean KL divergence per latent value from N(0, 1), in nats:
            half the mean square of the latents. The rest depends on the fixed standard deviation alone. With `halves`
            also what is decoded from latents whose means were halved in size, N×3×H/2×W/2.
        """
        mean = encode_images(self.autoencoder, images).float()
        latents = mean + self.posterior_std * noise
        decoded = self.autoencoder.decode(latents.to(images.dtype)).sample
        divergence = 0.5 * mean.square().mean()
        if not self.halves:
            return decoded, divergence
        # The mean of four draws, times two, is one again.
        halved = avg_pool2d(mean, 2) + self.posterior_std * 2 * avg_pool2d(noise, 2)
        return decoded, divergence, self.autoencoder.decode(halved.to(images.dtype)).sample


def autoencoder_loss(
    outputs: Sequence[torch.Tensor],
    images: torch.Tensor,
    *,
    frequency_weight: float,
    kl_weight: float,
    equivariance_weight: float,
) -> torch.Tensor:
    """The distance of the reconstruction, in pixels and frequencies, and the KL divergence of the latents.

    Args:
        outputs: What a `VariationalAutoencoder` returns.
        images: float N×3×H×W in [-1, 1].
        frequency_weight: See `reconstruction_loss`.
        kl_weight: Weight of the divergence.
        equivariance_weight: Weight of the distance of what is decoded from halved latents to halved images, where the
            model has `halves` (Skorokhodov et al. 2025, arXiv:2502.14831).

    Returns:
        Scalar tensor.
    """
    reconstruction, divergence, *halved = outputs
    loss = reconstruction_loss(reconstruction, images, frequency_weight) + kl_weight * divergence
    for smaller in halved:
        loss = loss + equivariance_weight * reconstruction_loss(smaller, avg_pool2d(images, 2), frequency_weight)
    return loss


def reconstruction_loss(reconstruction: torch.Tensor, images: torch.Tensor, frequency_weight: float) -> torch.Tensor:
    """L1 distance of pixels plus `frequency_weight` times the L1 distance of orthonormal 2-D Fourier transforms.

    Args:
        reconstruction, images: float N×3×H×W in [-1, 1].
        frequency_weight: Weight of the second term, at least 0.

    Returns:
        Scalar tensor.
    """
    difference = reconstruction.float() - images.float()
    loss = difference.abs().mean()
    if frequency_weight:
        loss = loss + frequency_weight * torch.fft.rfft2(difference, norm="ortho").abs().mean()
    return loss


@torch.no_grad()
def measure_latents(autoencoder: LatentModel, batches: Iterable[torch.Tensor]) -> dict[str, float]:
    """What brings latents to a mean square of 1, and where a class has a shift to a mean of 0, too.

    Args:
        autoencoder: In evaluation mode, on the device of the batches.
        batches: Images, float N×3×H×W in [-1, 1].

    Returns:
        By the names of its config, so that (latent - shift_factor) * scaling_factor is what a denoiser takes:
        `scaling_factor`, a number above 0, and `shift_factor` of an `AutoencoderKL` or `AutoencoderTiny`.
    """
    count, total, squares = 0, 0.0, 0.0
    for images in batches:
        latents = encode_images(autoencoder, images).double()
        count += latents.numel()
        total += latents.sum().item()
        squares += latents.square().sum().item()
    shift = total / count if "shift_factor" in autoencoder.config else 0.0
    scale = 1 / math.sqrt(max(squares / count - shift**2, _LEAST_MEAN_SQUARE))
    return {"scaling_factor": scale, **({"shift_factor": shift} if "shift_factor" in autoencoder.config else {})}
