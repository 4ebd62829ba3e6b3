"""Augmentation of a batch of tiles at once: symmetries of the square, small shifts, changes of stain, light blur.

What is random is drawn first, as a plan for the whole batch, and then applied. A process that holds a part of the
batch applies its part of the plan, so the images are the same however the batch is split.

Plans are on the CPU, and images may be elsewhere: what must be known of a plan is asked of the CPU, so that nothing
here waits for the device.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch.nn import functional as F

from histodistill.training.data.pixels import to_device
from histodistill.training.models.stain import change_stains
from histodistill.training.running.options import require


@dataclass(frozen=True)
class AugmentationPlan:
    """The random choices for a batch of N images, on the CPU; slicing it gives the plan of that part of the batch.

    Attributes:
        symmetries: int64 N in [0, 8): see `apply_symmetries`.
        shifts: int64 N×2 (down, right) in px.
        stain_scales, stain_offsets: float32 N×3 (haematoxylin, eosin, DAB); None for no change of stain.
        blurs: float32 N, standard deviations in px; None for no blur.
    """

    symmetries: torch.Tensor
    shifts: torch.Tensor
    stain_scales: torch.Tensor | None
    stain_offsets: torch.Tensor | None
    blurs: torch.Tensor | None = None

    def __len__(self) -> int:
        return len(self.symmetries)

    def __getitem__(self, part: slice | torch.Tensor) -> AugmentationPlan:
        optional = (self.stain_scales, self.stain_offsets, self.blurs)
        return AugmentationPlan(
            self.symmetries[part], self.shifts[part], *(None if value is None else value[part] for value in optional)
        )


def draw_plan(
    num_images: int,
    generator: torch.Generator,
    *,
    symmetries: bool = True,
    max_shift: int = 2,
    stain_strength: float = 0.0,
    max_blur: float = 0.0,
) -> AugmentationPlan:
    """Draws the random choices for a batch.

    Args:
        num_images: Images of the batch.
        generator: A CPU generator.
        symmetries: Whether images are turned and mirrored.
        max_shift: The largest shift in px along each axis; it must be smaller than the side of the images.
        stain_strength: With s, every stain's density is multiplied by a number in [1 − s, 1 + s] and raised by one in
            [−s, s]; 0 leaves the colours alone.
        max_blur: Each image is blurred by a Gaussian whose standard deviation, in px, is in [0, max_blur].

    Raises:
        InputError: For a negative shift or blur, or a strength outside [0, 1).
    """
    require(max_shift >= 0, "max_shift", max_shift, "it must be at least 0")
    require(0 <= stain_strength < 1, "stain_strength", stain_strength, "it must be at least 0 and below 1")
    require(max_blur >= 0, "max_blur", max_blur, "it must be at least 0")
    scales = offsets = blurs = None
    chosen = torch.randint(0, 8 if symmetries else 1, (num_images,), generator=generator)
    shifts = torch.randint(-max_shift, max_shift + 1, (num_images, 2), generator=generator)
    if stain_strength > 0:
        scales = 1 + stain_strength * (2 * torch.rand(num_images, 3, generator=generator) - 1)
        offsets = stain_strength * (2 * torch.rand(num_images, 3, generator=generator) - 1)
    if max_blur > 0:
        blurs = max_blur * torch.rand(num_images, generator=generator)
    return AugmentationPlan(chosen, shifts, scales, offsets, blurs)


def apply_plan(images: torch.Tensor, plan: AugmentationPlan) -> torch.Tensor:
    """Augments images.

    Args:
        images: float N×3×S×S in [-1, 1].
        plan: What `draw_plan` drew for N images, or the part of it that belongs to these.

    Returns:
        A new tensor of the same shape, type and range.

    Raises:
        ValueError: For images that are not square, or a plan for another number of images.
    """
    if images.ndim != 4 or images.shape[2] != images.shape[3]:
        raise ValueError(f"images {tuple(images.shape)} must be (N, 3, S, S): only a square has these symmetries")
    if len(plan) != len(images):
        raise ValueError(f"a plan for {len(plan)} images can't be applied to {len(images)}")
    images = shift_reflected(apply_symmetries(images, plan.symmetries), plan.shifts)
    if plan.stain_scales is not None and plan.stain_offsets is not None:
        images = change_stains(images, plan.stain_scales, plan.stain_offsets)
    if plan.blurs is not None:
        images = blur(images, plan.blurs)
    return images


def draw_symmetries(num_images: int, generator: torch.Generator) -> torch.Tensor:
    """One of the square's eight symmetries for each image, int64 N, drawn with a CPU generator."""
    return torch.randint(0, 8, (num_images,), generator=generator)


def apply_symmetries(images: torch.Tensor, symmetries: torch.Tensor) -> torch.Tensor:
    """Turns image i (of N×C×S×S) by symmetries[i] % 4 quarter turns, then mirrors it when symmetries[i] ≥ 4.

    Args:
        images: Of any type, on any device.
        symmetries: int64 N in [0, 8), on the CPU.
    """
    result = torch.empty_like(images)
    counts = torch.bincount(symmetries, minlength=8).tolist()
    groups = to_device(torch.argsort(symmetries), images.device).split(counts)
    for symmetry, group in enumerate(groups):
        turned = torch.rot90(images[group], symmetry % 4, dims=(2, 3))
        result[group] = turned.flip(3) if symmetry >= 4 else turned
    return result


def shift_reflected(images: torch.Tensor, shifts: torch.Tensor) -> torch.Tensor:
    """Moves image i (of N×C×H×W) shifts[i] = (down, right) px; what comes in at the edge is the image's reflection.

    The same as padding by reflection and cropping. A shift must be smaller than the side; shifts are on the CPU.
    """
    count, _, height, width = images.shape
    shifts = to_device(shifts, images.device)
    rows = _reflect(torch.arange(height, device=images.device) - shifts[:, :1], height)
    columns = _reflect(torch.arange(width, device=images.device) - shifts[:, 1:], width)
    each = torch.arange(count, device=images.device)[:, None, None]
    # Indexing around the channel axis puts that axis last.
    return images[each, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2).contiguous()


def _reflect(positions: torch.Tensor, size: int) -> torch.Tensor:
    positions = positions.abs()
    return torch.where(positions >= size, 2 * (size - 1) - positions, positions)


def blur(images: torch.Tensor, deviations: torch.Tensor) -> torch.Tensor:
    """Blurs image i (of N×C×H×W) by a Gaussian of standard deviation deviations[i] px; edges are reflected.

    An image's kernel reaches three times its deviation, rounded up, and at most the edge of the image. Deviations are
    on the CPU.
    """
    count, channels, height, width = images.shape
    reach = min(math.ceil(3 * float(deviations.max())), height - 1, width - 1)
    place = torch.arange(-reach, reach + 1, dtype=torch.float32)
    # A deviation of 0 leaves the middle of the kernel alone: the image as it is.
    deviations = deviations[:, None]
    kernels = torch.exp(-(place**2) / (2 * deviations**2).clamp(min=1e-12))
    # Cut off by its own deviation, so that an image is the same whatever else is in the batch.
    kernels = kernels * (place.abs() <= (3 * deviations).ceil())
    kernels = (kernels / kernels.sum(dim=1, keepdim=True)).to(images.dtype)
    kernels = to_device(kernels, images.device).repeat_interleave(channels, dim=0)
    padded = F.pad(images, (reach,) * 4, mode="reflect")
    result = padded.reshape(1, count * channels, *padded.shape[2:])
    result = F.conv2d(result, kernels[:, None, :, None], groups=count * channels)
    result = F.conv2d(result, kernels[:, None, None, :], groups=count * channels)
    return result.reshape(images.shape)
