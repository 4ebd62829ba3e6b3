"""Augmentation of a batch of tiles at once: symmetries of the square, small shifts, light changes of stain.

What is random is drawn first, as a plan for the whole batch, and then applied. A process that holds a part of the
batch applies its part of the plan, so the images are the same however the batch is split.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from histodistill.training.errors import InputError


# Optical densities (red, green, blue) of haematoxylin, eosin and DAB: Ruifrok & Johnston, Analytical and
# Quantitative Cytology and Histology 23, 2001. Rows are scaled to length one.
_STAINS = torch.tensor([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11], [0.27, 0.57, 0.78]])
RGB_FROM_HED = _STAINS / _STAINS.norm(dim=1, keepdim=True)
HED_FROM_RGB = torch.linalg.inv(RGB_FROM_HED)
_DARKEST = 1 / 255


@dataclass(frozen=True)
class AugmentationPlan:
    """The random choices for a batch of N images; slicing it gives the plan of that part of the batch.

    `symmetries` int64 N in [0, 8); `shifts` int64 N×2 (down, right) in px; `stain_scales` and `stain_offsets`
    float32 N×3 (H, E, DAB), or None for no change of stain.
    """

    symmetries: torch.Tensor
    shifts: torch.Tensor
    stain_scales: torch.Tensor | None
    stain_offsets: torch.Tensor | None

    def __len__(self) -> int:
        return len(self.symmetries)

    def __getitem__(self, part: slice) -> AugmentationPlan:
        return AugmentationPlan(
            self.symmetries[part],
            self.shifts[part],
            None if self.stain_scales is None else self.stain_scales[part],
            None if self.stain_offsets is None else self.stain_offsets[part],
        )


def draw_plan(
    num_images: int,
    generator: torch.Generator,
    *,
    symmetries: bool = True,
    max_shift: int = 2,
    stain_strength: float = 0.0,
) -> AugmentationPlan:
    """Draws the random choices for `num_images` images from `generator` (a CPU generator).

    `max_shift` is the largest shift in px along each axis. With `stain_strength` s, every stain's density is
    multiplied by a number in [1 − s, 1 + s] and raised by one in [−s, s]; 0 leaves the colours alone.

    Raises
    ------
    InputError : for a negative shift, or a strength outside [0, 1).
    """
    if max_shift < 0:
        raise InputError(f"max_shift={max_shift} is out of range: it must be at least 0")
    if not 0 <= stain_strength < 1:
        raise InputError(f"stain_strength={stain_strength} is out of range: it must be at least 0 and below 1")
    scales = offsets = None
    chosen = torch.randint(0, 8 if symmetries else 1, (num_images,), generator=generator)
    shifts = torch.randint(-max_shift, max_shift + 1, (num_images, 2), generator=generator)
    if stain_strength > 0:
        scales = 1 + stain_strength * (2 * torch.rand(num_images, 3, generator=generator) - 1)
        offsets = stain_strength * (2 * torch.rand(num_images, 3, generator=generator) - 1)
    return AugmentationPlan(chosen, shifts, scales, offsets)


def apply_plan(images: torch.Tensor, plan: AugmentationPlan) -> torch.Tensor:
    """Augments `images`, float N×3×S×S in [-1, 1]; returns a new tensor of the same shape, type and range.

    Raises
    ------
    ValueError : for images that aren't square, or a plan for another number of images.
    """
    if images.ndim != 4 or images.shape[2] != images.shape[3]:
        raise ValueError(f"images {tuple(images.shape)} must be (N, 3, S, S): only a square has these symmetries")
    if len(plan) != len(images):
        raise ValueError(f"a plan for {len(plan)} images can't be applied to {len(images)}")
    images = shift_reflected(apply_symmetries(images, plan.symmetries), plan.shifts)
    if plan.stain_scales is not None and plan.stain_offsets is not None:
        images = change_stains(images, plan.stain_scales, plan.stain_offsets)
    return images


def augment(
    images: torch.Tensor,
    generator: torch.Generator,
    *,
    symmetries: bool = True,
    max_shift: int = 2,
    stain_strength: float = 0.0,
) -> torch.Tensor:
    """Draws a plan for `images` (float N×3×S×S in [-1, 1]) and applies it: see `draw_plan` and `apply_plan`."""
    options = {"symmetries": symmetries, "max_shift": max_shift, "stain_strength": stain_strength}
    return apply_plan(images, draw_plan(len(images), generator, **options))


def random_symmetry(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Gives each image (of N×C×S×S, any type) one of the square's eight symmetries, drawn from a CPU `generator`."""
    return apply_symmetries(images, torch.randint(0, 8, (len(images),), generator=generator))


def apply_symmetries(images: torch.Tensor, symmetries: torch.Tensor) -> torch.Tensor:
    """Turns image i (of N×C×S×S) by symmetries[i] % 4 quarter turns, then mirrors it when symmetries[i] ≥ 4."""
    result = torch.empty_like(images)
    symmetries = symmetries.to(images.device)
    for symmetry in range(8):
        group = torch.nonzero(symmetries == symmetry).squeeze(1)
        turned = torch.rot90(images[group], symmetry % 4, dims=(2, 3))
        result[group] = turned.flip(3) if symmetry >= 4 else turned
    return result


def shift_reflected(images: torch.Tensor, shifts: torch.Tensor) -> torch.Tensor:
    """Moves image i (of N×C×H×W) shifts[i] = (down, right) px; what comes in at the edge is the image's reflection.

    The same as padding by reflection and cropping. A shift must be smaller than the side.
    """
    count, _, height, width = images.shape
    shifts = shifts.to(images.device)
    rows = _reflect(torch.arange(height, device=images.device) - shifts[:, :1], height)
    columns = _reflect(torch.arange(width, device=images.device) - shifts[:, 1:], width)
    each = torch.arange(count, device=images.device)[:, None, None]
    # Indexing around the channel axis puts that axis last.
    return images[each, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2).contiguous()


def _reflect(positions: torch.Tensor, size: int) -> torch.Tensor:
    positions = positions.abs()
    return torch.where(positions >= size, 2 * (size - 1) - positions, positions)


def change_stains(images: torch.Tensor, scales: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
    """Changes the amounts of stain in image i: densities × scales[i] + offsets[i] (N×3: H, E, DAB).

    `images` is float N×3×H×W in [-1, 1]. The colours are taken apart by Beer–Lambert with the stain vectors of
    Ruifrok & Johnston (2001); the change is that of Tellez et al. (IEEE TMI 2018).
    """
    to_hed, to_rgb = HED_FROM_RGB.to(images), RGB_FROM_HED.to(images)
    density = -((images + 1) / 2).clamp(min=_DARKEST).log()
    stains = torch.einsum("nchw,cs->nshw", density, to_hed)
    stains = stains * scales.to(images)[:, :, None, None] + offsets.to(images)[:, :, None, None]
    colours = torch.einsum("nshw,sc->nchw", stains, to_rgb).neg().exp()
    return colours.clamp(max=1) * 2 - 1
