"""How long a distillation will still take, roughly: what its steps cost beside each other, and what they have taken.

What a step costs is reckoned from its options. The factors are seconds of one core of a server, measured with the
presets `cpu-demo` and `cpu`; on other machines all steps are faster or slower by about as much, which the first ones
show.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from histodistill.training.end_to_end.steps import StageCall
from histodistill.training.models.architectures import DEFAULT_WIDTHS
from histodistill.training.running.stages import read_record


# Twice as wide a network takes not four times as long, as its products would have it, but about this power of two.
_WIDTH_POWER = 1.5
# Seconds for one tile in one step of a training, by pixel and width.
_AUTOENCODER, _DENOISER = 4.5e-8, 1.4e-7
_CLASSIFIERS = {"convnet": 2.5e-9, "resnet18": 5.0e-8, "vit": 3.5e-9}
# A denoising step has no backward pass, but is often made twice, with and without a class.
_DENOISING = _DENOISER / 2
# Seconds for one image of the pool, or one real tile, that the selection and the audit look at.
_SELECTED, _AUDITED = 0.012, 0.02
# Seconds that every step takes at least, and the audit for its attacks, which depend on neither number.
_LEAST, _ATTACKS = 3.0, 40.0


def costs(plan: Sequence[StageCall], run: Mapping[str, Any]) -> dict[str, float]:
    """What each step costs, by its folder, in seconds of a machine that does not matter.

    Args:
        plan: The steps.
        run: What run.json holds.
    """
    by_folder = {stage.folder: stage for stage in plan}
    size, tiles = run["image_size"], run["num_tiles"]["train"]
    configs: dict[str, Any] = {folder: stage.config for folder, stage in by_folder.items()}
    autoencoder, denoiser, teacher = configs["autoencoder"], configs["pipeline"], configs["teacher"]
    pool, compare = configs["pool"], configs["comparison"]
    reduction = 2 ** (len(autoencoder.channels) - 1)
    autoencoder, latent_size = autoencoder.for_tiles(size, reduction), size / reduction
    images = pool.per_class * len(run["class_names"])
    recipe = teacher.recipe
    work = {
        "autoencoder": _AUTOENCODER
        * _tiles_shown(autoencoder)
        * _network(autoencoder.channels, autoencoder.crop_size),
        "pipeline": _DENOISER * _tiles_shown(denoiser) * _network(denoiser.channels, latent_size),
        "teacher": _classifier(recipe.architecture, recipe.width, size) * _tiles_shown(recipe),
        "pool": _DENOISING * images * pool.num_inference_steps * _network(denoiser.channels, latent_size),
        "distilled": _SELECTED * (images + tiles),
        "comparison": sum(
            _classifier(planned.architecture, None, size)
            * planned.steps
            * compare.batch_size
            * len(planned.rows)
            * len(compare.seeds)
            for planned in compare.plan
        ),
        "audit": _ATTACKS + _AUDITED * (images + tiles),
    }
    return {folder: _LEAST + work[folder] / stage.num_processes for folder, stage in by_folder.items()}


def seconds_left(
    folder: Path, plan: Sequence[StageCall], run: Mapping[str, Any], finished: Collection[str]
) -> float | None:
    """How long the steps that are not finished will take, by what the finished ones took beside what they cost.

    Args:
        folder: Of the run.
        plan: All steps.
        run: What run.json holds.
        finished: The folders of the steps that are finished.

    Returns:
        Seconds; None where no step is finished.
    """
    cost = costs(plan, run)
    records = {stage.folder: read_record(folder / stage.folder) for stage in plan}
    spent = {name: float(record["seconds"]) if record else 0.0 for name, record in records.items()}
    if not finished:
        return None
    speed = sum(spent[name] for name in finished) / sum(cost[name] for name in finished)
    # A step that was killed has a part of its work behind it.
    return sum(max(0.0, speed * cost[name] - spent[name]) for name in cost.keys() - set(finished))


def _tiles_shown(config: Any) -> float:
    """Tiles in all batches of a training."""
    return config.max_train_steps * config.batch_size * getattr(config, "gradient_accumulation_steps", 1)


def _network(channels: Sequence[int], size: float) -> float:
    """What one image of `size` pixels costs a network each of whose levels after the first halves it."""
    return sum((size / 2**level) ** 2 * width**_WIDTH_POWER for level, width in enumerate(channels))


def _classifier(architecture: str, width: int | None, size: float) -> float:
    """What one tile of `size` pixels costs a classifier."""
    return _CLASSIFIERS[architecture] * size**2 * (width or DEFAULT_WIDTHS[architecture]) ** _WIDTH_POWER
