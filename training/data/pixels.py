"""Pixels as files hold them, uint8, and as models take them, float in [-1, 1]; and the way to a device."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from histodistill.training.running.errors import InputError


if TYPE_CHECKING:
    import torch


def to_model_input(images: np.ndarray | torch.Tensor, device: torch.device | None = None) -> torch.Tensor:
    """Images uint8 N×H×W×3 to float32 N×3×H×W in [-1, 1] (`x / 127.5 - 1`).

    Args:
        images: On any device.
        device: Where they are to be; they travel as uint8, a quarter of the bytes. None for where they are.

    Raises:
        InputError: Another dtype or shape.
    """
    import torch

    if not isinstance(images, torch.Tensor):
        # torch cannot take read-only or negatively strided arrays without a copy or a warning.
        images = torch.from_numpy(np.require(images, requirements=["C", "W"]))
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[-1] != 3:
        raise InputError(f"images are {images.dtype} of shape {tuple(images.shape)}: they must be uint8 N x H x W x 3")
    if device is not None:
        images = to_device(images, device)
    return images.permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.contiguous_format).div_(127.5).sub_(1)


def to_device(values: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Values on a device, without waiting for what it is doing."""
    return ready_for(device, values).to(device, non_blocking=device.type == "cuda")


def ready_for(device: torch.device, values: torch.Tensor) -> torch.Tensor:
    """Values in such memory that a device can fetch them by itself: for CUDA pages that stay in their place.

    From other memory CUDA copies through a buffer, and first waits until all is done that it was told to do.
    """
    return values.pin_memory() if device.type == "cuda" and values.device.type == "cpu" else values


def to_uint8(pixels: np.ndarray | torch.Tensor) -> np.ndarray:
    """The inverse of `to_model_input`: float N×3×H×W to uint8 N×H×W×3 on the CPU, rounded; what exceeds is clipped.

    Raises:
        InputError: Another dtype or shape, or values that are not finite.
    """
    import torch

    pixels = torch.as_tensor(pixels)
    if not pixels.is_floating_point() or pixels.ndim != 4 or pixels.shape[1] != 3:
        raise InputError(f"pixels are {pixels.dtype} of shape {tuple(pixels.shape)}: they must be float N x 3 x H x W")
    if not torch.isfinite(pixels).all():
        raise InputError("pixels hold NaN or infinity: they must be numbers in [-1, 1]")
    scaled = pixels.detach().to(torch.float32).add(1).mul(127.5).round().clamp(0, 255)
    return scaled.to(torch.uint8).permute(0, 2, 3, 1).contiguous().cpu().numpy()
