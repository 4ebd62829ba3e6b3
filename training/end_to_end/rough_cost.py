"""What a distillation needs of time and disk, roughly, before it has begun.

Both are reckoned from the options of its steps. The factors were measured with the presets `cpu-demo` and `cpu` on
28-pixel tiles; a machine may easily be twice as fast or as slow.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from histodistill.training.end_to_end.remaining import costs
from histodistill.training.end_to_end.steps import StageCall
from histodistill.training.models.architectures import DEFAULT_WIDTHS


# Weights of a network by the square of its widths, summed over its levels, or of the only one.
_AUTOENCODER, _DENOISER = 75, 190
_CLASSIFIERS = {"convnet": 19, "resnet18": 2700, "vit": 73}
# How often the weights of each are kept: the result, and in two checkpoints those that are trained, what they were at
# best or on average, and the two moments of AdamW. The autoencoder has no average, and a second copy in the pipeline.
_COPIES, _COPIES_OF_AUTOENCODER = 1 + 2 * 4, 2 + 2 * 3
_BYTES_PER_WEIGHT = 4
# Bytes of a PNG by those of its pixels, and how often each image of the pool is there while it is put together.
_PACKED, _TIMES = 0.8, 2
# Bytes of what is left beside: embeddings and probabilities of an image, and the report and its pictures.
_PER_IMAGE, _REPORT = 1000, 10_000_000


@dataclass(frozen=True)
class RoughCost:
    """What a distillation needs.

    Attributes:
        seconds: Of one core of a server.
        disk: Bytes that the run has at its largest.
    """

    seconds: float
    disk: int


def rough_cost(plan: Sequence[StageCall], run: Mapping[str, Any]) -> RoughCost:
    """What the steps of a distillation need together.

    Args:
        plan: The steps.
        run: What `costs` reads of run.json.
    """
    configs: dict[str, Any] = {stage.folder: stage.config for stage in plan}
    recipe = configs["teacher"].recipe
    width = recipe.width or DEFAULT_WIDTHS[recipe.architecture]
    weights = (
        _COPIES_OF_AUTOENCODER * _AUTOENCODER * _squares(configs["autoencoder"].channels)
        + _COPIES * _DENOISER * _squares(configs["pipeline"].channels)
        + _COPIES * _CLASSIFIERS[recipe.architecture] * width**2
    )
    images = configs["pool"].per_class * len(run["class_names"])
    pixels = 3 * run["image_size"] ** 2
    disk = _BYTES_PER_WEIGHT * weights + images * (_TIMES * _PACKED * pixels + _PER_IMAGE) + _REPORT
    return RoughCost(sum(costs(plan, run).values()), round(disk))


def _squares(channels: Sequence[int]) -> int:
    return sum(width**2 for width in channels)
