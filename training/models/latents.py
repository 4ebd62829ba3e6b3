"""Latents of tiles, whichever of diffusers' autoencoders makes them: their shape and scale, and how they are made."""

from __future__ import annotations

import inspect
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeAlias

import torch
from diffusers import AutoencoderDC, AutoencoderKL, AutoencoderTiny

from histodistill.training.models.batch_sizes import usual_batch_size


#: An autoencoder that latents can come from.
LatentModel: TypeAlias = AutoencoderDC | AutoencoderKL | AutoencoderTiny
#: The classes by their names, as a config of diffusers has them.
LATENT_MODELS: dict[str, type[AutoencoderDC] | type[AutoencoderKL] | type[AutoencoderTiny]] = {
    model.__name__: model for model in (AutoencoderDC, AutoencoderKL, AutoencoderTiny)
}


def parameters_of(autoencoder: LatentModel) -> dict[str, Any]:
    """What it was built from: its configuration without the notes that its class adds to it."""
    known = inspect.signature(type(autoencoder)).parameters
    return {name: value for name, value in autoencoder.config.items() if name in known}


def compression_of(autoencoder: LatentModel) -> int:
    """Pixels of a tile's side for each position of a latent's side."""
    config = autoencoder.config
    # Every level after the first halves the side. AutoencoderTiny's own `spatial_scale_factor` goes by other numbers.
    widths = config.block_out_channels if isinstance(autoencoder, AutoencoderKL) else config.encoder_block_out_channels
    return int(2 ** (len(widths) - 1))


def shape_of_latent(autoencoder: LatentModel, image_size: int) -> tuple[int, int, int]:
    """Channels, height and width of the latent of a tile with this side in pixels."""
    side = image_size // compression_of(autoencoder)
    return int(autoencoder.config.latent_channels), side, side


def encode_images(autoencoder: LatentModel, images: torch.Tensor) -> torch.Tensor:
    """Latents as the autoencoder makes them, N×C×h×w of its own scale: always the same for an image.

    Of an `AutoencoderKL`, whose encoder gives a distribution, they are its mean.

    Args:
        autoencoder: In evaluation mode, on the device of the images.
        images: float N×3×H×W in [-1, 1].
    """
    with _bearable(autoencoder, images.device):
        encoded = autoencoder.encode(images)
    if isinstance(autoencoder, AutoencoderKL):
        return encoded.latent_dist.mean
    return encoded.latents if isinstance(autoencoder, AutoencoderTiny) else encoded.latent


def scale_of_latents(autoencoder: LatentModel) -> tuple[float, float]:
    """Shift and scale of the latents that `normalised_latents` makes."""
    config = autoencoder.config
    return getattr(config, "shift_factor", None) or 0.0, config.scaling_factor


def normalised_latents(autoencoder: LatentModel, images: torch.Tensor) -> torch.Tensor:
    """Latents of images N×3×H×W in [-1, 1] as the denoiser takes them: float32 N×C×h×w.

    (latent - shift_factor) * scaling_factor of the autoencoder's config, which `HistologyPipeline` undoes. No more
    than `usual_batch_size` are encoded at a time: an autoencoder holds many times as much of a tile as a denoiser.
    """
    shift, scale = scale_of_latents(autoencoder)
    parts = images.split(usual_batch_size(images.shape[-1]))
    return (torch.cat([encode_images(autoencoder, part).float() for part in parts]) - shift) * scale


def decode_latents(autoencoder: LatentModel, latents: torch.Tensor) -> torch.Tensor:
    """Images N×3×H×W of normalised latents N×C×h×w; values may lie a little outside of [-1, 1]."""
    shift, scale = scale_of_latents(autoencoder)
    with _bearable(autoencoder, latents.device):
        return autoencoder.decode(latents / scale + shift).sample


def reconstruct(autoencoder: LatentModel, images: torch.Tensor) -> torch.Tensor:
    """Images N×3×H×W in [-1, 1], encoded and decoded again; values may lie a little outside of that range."""
    latents = encode_images(autoencoder, images)
    with _bearable(autoencoder, images.device):
        return autoencoder.decode(latents).sample


def _bearable(autoencoder: LatentModel, device: torch.device) -> AbstractContextManager[Any]:
    """Computes in float32 where float16 is asked for and the autoencoder says that it overflows there."""
    kind = device.type
    if not torch.amp.is_autocast_available(kind) or not getattr(autoencoder.config, "force_upcast", False):
        return nullcontext()
    is_half = torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind) == torch.float16
    return torch.autocast(kind, enabled=False) if is_half else nullcontext()
