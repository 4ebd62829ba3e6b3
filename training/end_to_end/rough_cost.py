"""What a distillation needs of time and disk, roughly, before anything of it was measured.

Both are reckoned from the options of its steps. The factors are seconds of one core of a server, measured with the
presets `cpu-demo` and `cpu` on 28-pixel tiles; a machine may easily be twice as fast or as slow.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from histodistill.training.end_to_end import work
from histodistill.training.end_to_end.steps import StageCall
from histodistill.training.evaluation.plans import planned_cells
from histodistill.training.models.architectures import DEFAULT_WIDTHS
from histodistill.training.models.encoder_names import SEARCHED_SIDE, UNTRAINED_SIDE


# Twice as wide a network takes not four times as long, as its products would have it, but about this power of two.
_WIDTH_POWER = 1.5
# Seconds for one tile in one step of a training, by pixel and width. What is not trained has no backward pass, which
# takes twice as long as the other: of an autoencoder, a third of the rest is the encoder.
_AUTOENCODER, _DENOISER = 4.5e-8, 1.4e-7
_CLASSIFIERS = {"convnet": 3.1e-9, "resnet18": 5.0e-8, "vit": 3.5e-9}
# Residual blocks in a level of the denoiser that `_DENOISER` is of, and what the rest of a level costs, in blocks.
_USUAL_BLOCKS, _OTHER_BLOCKS = 2, 1.5
# What a network that is none of these is taken to be like.
_LIKE_OTHERS = "resnet18"
_FORWARD, _ENCODER, _DECODER = 1 / 3, 1 / 9, 2 / 9
# A denoising step is often made twice, with and without a class.
_PASSES = 1.5
# The stem of a ResNet-18 for tiles of more than this side in pixels leaves a sixteenth of the pixels to the rest.
_LARGEST_WITH_WHOLE_STEM, _STEM = 64, 1 / 16
# Seconds for one image that is compared with real tiles, for one of these made ready, for one selected; for a step
# that does nothing, and for an audit whatever it is about.
_COMPARED, _INDEXED, _SELECTED, _START, _ATTACK = 0.006, 0.001, 0.001, 3.0, 12.0
# Seconds to write a pixel of an image.
_WRITTEN = 2e-7

# Weights of a network by the square of its widths, summed over its levels, or of the only one.
_AUTOENCODER_WEIGHTS, _DENOISER_WEIGHTS = 75, 190
_CLASSIFIER_WEIGHTS = {"convnet": 19, "resnet18": 2700, "vit": 73}
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
        run: What run.json holds: see `work_of`.
    """
    return RoughCost(sum(costs(plan, run).values()), run_bytes(plan, run))


def costs(
    plan: Sequence[StageCall],
    run: Mapping[str, Any],
    unit_seconds: Mapping[str, float] | None = None,
    *,
    shared: bool = True,
) -> dict[str, float]:
    """What each step costs, by its folder, in seconds.

    Args:
        plan: The steps.
        run: What run.json holds: see `work_of`.
        unit_seconds: What units of work cost on this machine, as far as that was measured; the rest is taken to be as
            much slower or faster than usual as what was measured.
        shared: Whether several processes are so many times as fast as one: not on a CPU, all cores of which one
            process uses already.
    """
    usual = usual_seconds(plan, run)
    known = {kind: seconds for kind, seconds in (unit_seconds or {}).items() if kind in usual}
    speed = sum(known.values()) / sum(usual[kind] for kind in known) if known else 1.0
    seconds = {kind: known.get(kind, speed * cost) for kind, cost in usual.items()}
    seconds[work.START] = known.get(work.START, usual[work.START])  # which waits for the disk more than it reckons
    processes = {stage.folder: stage.num_processes for stage in plan}
    return {
        folder: sum(
            seconds[kind] * units / (processes[folder] if shared and kind != work.START else 1)
            for kind, units in kinds.items()
        )
        for folder, kinds in work.work_of(plan, run).items()
    }


def usual_seconds(plan: Sequence[StageCall], run: Mapping[str, Any]) -> dict[str, float]:
    """What a unit of each kind of work that the steps have costs one core of a server, in seconds."""
    configs: dict[str, Any] = {stage.folder: stage.config for stage in plan}
    size, denoiser, pool = run["image_size"], configs["pipeline"], configs["pool"]
    autoencoder = work.fitted_autoencoder(configs["autoencoder"], size)
    latent_size = size / 2 ** (len(autoencoder.channels) - 1)
    whole = _AUTOENCODER * _autoencoder(autoencoder, size)
    depth = (_OTHER_BLOCKS + denoiser.layers_per_block) / (_OTHER_BLOCKS + _USUAL_BLOCKS)
    shown = _DENOISER * depth * _network(denoiser.channels, latent_size)
    generated = _PASSES * _FORWARD * pool.num_inference_steps * shown + _DECODER * whole + _WRITTEN * size**2
    seconds = {
        work.TRAIN_AUTOENCODER: _AUTOENCODER * _autoencoder(autoencoder, autoencoder.crop_size),
        work.ENCODE: _ENCODER * whole,
        work.DECODE: _DECODER * whole,
        work.TRAIN_DENOISER: shown,
        work.DENOISE: _FORWARD * shown,
        work.GENERATE: generated,
        work.EMBED_LATENTS: _ENCODER * _AUTOENCODER * _autoencoder(autoencoder, min(size, SEARCHED_SIDE)),
        work.EMBED_UNTRAINED: _FORWARD * _classifier("convnet", None, min(size, UNTRAINED_SIDE)),
        work.COMPARE: _COMPARED,
        work.INDEX: _INDEXED,
        work.SELECT: _SELECTED,
        work.START: _START,
        work.ATTACK: _ATTACK,
    }
    for name in work.embedders_of(configs):
        kind = work.embed_of(name, configs)
        seconds.setdefault(kind, _FORWARD * _classifier(_LIKE_OTHERS, None, size))
    recipe, compare = configs["teacher"].recipe, configs["comparison"]
    cells = planned_cells(compare.plan, compare.seeds, compare.run)
    for architecture, width in {(recipe.architecture, recipe.width), *((cell.architecture, None) for cell in cells)}:
        trained = _classifier(architecture, width, size)
        seconds[work.train_of(architecture, width)] = trained
        seconds[work.predict_of(architecture, width)] = _FORWARD * trained
    return seconds


def run_bytes(plan: Sequence[StageCall], run: Mapping[str, Any]) -> int:
    """Bytes on the disk that a run has at its largest."""
    configs: dict[str, Any] = {stage.folder: stage.config for stage in plan}
    recipe = configs["teacher"].recipe
    like = recipe.architecture if recipe.architecture in DEFAULT_WIDTHS else _LIKE_OTHERS
    width = recipe.width or DEFAULT_WIDTHS[like]
    weights = (
        _COPIES_OF_AUTOENCODER * _AUTOENCODER_WEIGHTS * _squares(configs["autoencoder"].channels)
        + _COPIES * _DENOISER_WEIGHTS * _squares(configs["pipeline"].channels)
        + _COPIES * _CLASSIFIER_WEIGHTS[like] * width**2
    )
    images = configs["pool"].per_class * len(run["class_names"])
    pixels = 3 * run["image_size"] ** 2
    return round(_BYTES_PER_WEIGHT * weights + images * (_TIMES * _PACKED * pixels + _PER_IMAGE) + _REPORT)


def _squares(channels: Sequence[int]) -> int:
    return sum(width**2 for width in channels)


def _network(channels: Sequence[int], size: float) -> float:
    """What one image of `size` pixels costs a network each of whose levels after the first halves it."""
    return sum((size / 2**level) ** 2 * width**_WIDTH_POWER for level, width in enumerate(channels))


def _autoencoder(options: Any, size: float) -> float:
    """What one image of `size` pixels costs an autoencoder: at a level without residual blocks, next to nothing."""
    finest = 0 if options.plain_finest else options.channels[0]
    return _network([finest, *options.channels[1:]], size)


def _classifier(architecture: str, width: int | None, size: float) -> float:
    """What one tile of `size` pixels costs a classifier in a step of its training."""
    if architecture not in _CLASSIFIERS:
        architecture = _LIKE_OTHERS
    cost = _CLASSIFIERS[architecture] * size**2 * (width or DEFAULT_WIDTHS[architecture]) ** _WIDTH_POWER
    return cost * _STEM if architecture == "resnet18" and size > _LARGEST_WITH_WHOLE_STEM else cost
