"""Mixing the tiles of a batch in pairs: mixup (Zhang et al., ICLR 2018) and CutMix (Yun et al., ICCV 2019).

As in `augment`, what is random is drawn first for the whole batch, so that it is the same however the batch is split
over processes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from histodistill.training.data.pixels import to_device


@dataclass(frozen=True)
class MixingPlan:
    """The random choices for a batch of N images, on the CPU; slicing it gives the plan of that part of the batch.

    Attributes:
        partners: int64 N, places in the whole batch.
        shares: float32 N in [0, 1], the share of an image's own pixels and label in the mixture.
        boxes: int64 N×4 (top, bottom, left, right) in px, what CutMix fills with the partner; None for mixup.
    """

    partners: torch.Tensor
    shares: torch.Tensor
    boxes: torch.Tensor | None

    def __getitem__(self, part: slice) -> MixingPlan:
        return MixingPlan(self.partners[part], self.shares[part], None if self.boxes is None else self.boxes[part])


def draw_mixing(
    num_images: int, image_size: int, generator: torch.Generator, *, mixup: float = 0.0, cutmix: float = 0.0
) -> MixingPlan | None:
    """Draws partners and shares for a batch of square images.

    Shares are drawn from Beta(a, a), one for each image, with a the value of `mixup` or `cutmix`; where both are
    above 0, half of the batches get one, half the other.

    Args:
        num_images: Images of the batch.
        image_size: Their side in px.
        generator: A CPU generator.
        mixup: a for blended tiles; 0 for none.
        cutmix: a for tiles with a box of another; 0 for none.

    Returns:
        The plan; None where both are 0.
    """
    kinds = [(name, value) for name, value in (("mixup", mixup), ("cutmix", cutmix)) if value > 0]
    if not kinds:
        return None
    name, concentration = kinds[torch.randint(len(kinds), (), generator=generator)]
    partners = torch.randperm(num_images, generator=generator)
    # Beta(a, a) as a ratio of gammas; torch's own sampler of them takes a generator.
    gammas = torch._standard_gamma(torch.full((2, num_images), float(concentration)), generator=generator)
    shares = (gammas[0] / gammas.sum(dim=0).clamp(min=1e-30)).float()
    if name == "mixup":
        return MixingPlan(partners, shares, None)
    sides = (image_size * (1 - shares).sqrt()).round().long()
    centres = torch.randint(0, image_size, (num_images, 2), generator=generator)
    low = (centres - (sides // 2)[:, None]).clamp(min=0)
    high = (centres - (sides // 2)[:, None] + sides[:, None]).clamp(max=image_size)
    boxes = torch.stack([low[:, 0], high[:, 0], low[:, 1], high[:, 1]], dim=1)
    area = (high - low).prod(dim=1)
    return MixingPlan(partners, 1 - area / image_size**2, boxes)


def mix(values: torch.Tensor, partners: torch.Tensor, plan: MixingPlan) -> torch.Tensor:
    """Blends values with those of their partners.

    Args:
        values: float N×… : labels as N×C, or the images of mixup.
        partners: The same of the partners.
        plan: Its shares count.

    Returns:
        float N×…, on the device of `values`.
    """
    shares = to_device(plan.shares, values.device).reshape(-1, *[1] * (values.ndim - 1))
    return shares * values + (1 - shares) * partners


def mix_images(images: torch.Tensor, partners: torch.Tensor, plan: MixingPlan) -> torch.Tensor:
    """Mixes images with those of their partners: blended, or with a box of the partner pasted in.

    Args:
        images, partners: float N×3×S×S.
        plan: Shares, and boxes where there are any.

    Returns:
        float N×3×S×S, on the device of `images`.
    """
    if plan.boxes is None:
        return mix(images, partners, plan)
    top, bottom, left, right = (edge[:, None] for edge in to_device(plan.boxes, images.device).unbind(dim=1))
    place = torch.arange(images.shape[2], device=images.device)
    rows, columns = (place >= top) & (place < bottom), (place >= left) & (place < right)
    inside = rows[:, None, :, None] & columns[:, None, None, :]
    return torch.where(inside, partners, images)
