"""How a classifier is trained, given the tiles: the recipe that every table and script shares."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from histodistill.selection.names import MAX_LABEL_VIEWS
from histodistill.training.models.architectures import (
    ARCHITECTURES,
    check_architecture,
    is_from_elsewhere,
    is_probe,
    usual_learning_rate,
)
from histodistill.training.running.errors import InputError, param
from histodistill.training.running.options import StepConfig, config, option


# Cross-entropy, its sum with the boundary-guided contrastive term, and that term alone: see `losses.py`.
LOSSES = ("ce", "joint", "contrastive")
# What else of a recipe a probe cannot do.
_UNKNOWN_TO_PROBES = ("mixup", "cutmix", "normalize_stain")
# Titles of the groups of options in `--help`.
_MODEL, _LOSS, _OPTIMISATION, _RUNNING = "model", "loss", "optimisation", "running"
_AUGMENTATION = "augmentation, beside the eight symmetries of the square"


@config
class ClassifierConfig(StepConfig):
    """All that decides how a classifier is trained, given the tiles. The defaults suit 500 and 10,000 tiles alike.

    Without a `learning_rate` it becomes that of `usual_learning_rate` for the architecture.
    """

    architecture: str = option(
        "the network: convnet, resnet18 or vit; MODEL, the folder or Hub id of a transformers image classifier, to "
        "train its weights on; scratch:MODEL, the same network with new weights; or probe:ENCODER, logistic "
        "regression on frozen features, of what --embedder of select takes",
        default="convnet",
        suggested=ARCHITECTURES,
        group=_MODEL,
    )
    width: int | None = option(
        "base width; default: 128 for convnet, 64 for resnet18, 192 for vit", default=None, at_least=1, group=_MODEL
    )
    loss: str = option(
        "ce: cross-entropy; contrastive: the boundary-guided contrastive term; joint: their sum",
        default="ce",
        choices=LOSSES,
        group=_LOSS,
    )
    alpha: float = option("weight of the contrastive term", default=1.0, at_least=0, group=_LOSS)
    position: float = option("share of a class on or above its boundary", default=0.9, above=0, at_most=1, group=_LOSS)
    margin: float = option(
        "how far below the boundary the other classes are pushed", default=0.3, at_least=0, below=1, group=_LOSS
    )
    soft_label_weight: float = option(
        "weight of the soft labels that come with the tiles, 0 to 1; the rest is that of the labels",
        default=0.0,
        at_least=0,
        at_most=1,
        group=_LOSS,
    )
    soft_label_views: int = option(
        "fixed views that a tile is shown in, each with its own soft labels that come with the tiles; 1: as it is; "
        "more need --soft-label-weight 1",
        default=1,
        at_least=1,
        at_most=MAX_LABEL_VIEWS,
        group=_LOSS,
        later=True,
    )
    temperature: float = option("at which soft labels and logits are compared", default=4.0, at_least=0.1, group=_LOSS)
    max_train_steps: int = option("optimizer steps", default=1000, at_least=1, group=_OPTIMISATION)
    batch_size: int = option(
        "tiles per batch over all processes; fewer where there are fewer training tiles",
        default=128,
        at_least=1,
        group=_OPTIMISATION,
    )
    gradient_accumulation_steps: int = option("batches per optimizer step", default=1, at_least=1, group=_OPTIMISATION)
    learning_rate: float | None = option(
        "peak learning rate of AdamW; default: by architecture", default=None, above=0, group=_OPTIMISATION
    )
    weight_decay: float = option(
        "weight decay of AdamW; biases and norms are left out", default=5e-4, at_least=0, group=_OPTIMISATION
    )
    warmup: float = option(
        "share of the steps with rising learning rate", default=0.05, at_least=0, at_most=1, group=_OPTIMISATION
    )
    max_grad_norm: float = option("gradients are clipped to this norm", default=1.0, above=0, group=_OPTIMISATION)
    class_balance: float = option(
        "0 draws classes as often as they occur, 1 equally often, between: n^(1 - value)",
        default=0.0,
        at_least=0,
        at_most=1,
        group="data",
    )
    max_shift: int = option("largest shift in pixels", default=2, at_least=0, group=_AUGMENTATION)
    stain_strength: float = option(
        "relative change of the amounts of stain; 0 for none", default=0.1, at_least=0, below=1, group=_AUGMENTATION
    )
    max_blur: float = option(
        "largest standard deviation of a blur in pixels", default=0.0, at_least=0, group=_AUGMENTATION
    )
    mixup: float = option(
        "blends tiles in pairs: Beta(value, value); 0 for none", default=0.0, at_least=0, group=_AUGMENTATION
    )
    cutmix: float = option(
        "pastes a box of another tile: Beta(value, value); 0 for none", default=0.0, at_least=0, group=_AUGMENTATION
    )
    ema_decay: float = option(
        "decay of the moving average of the weights, which is what is kept; 0 for none",
        default=0.0,
        at_least=0,
        below=1,
        group=_MODEL,
    )
    normalize_stain: bool = option(
        "even out the stain of each tile before the classifier sees it", default=False, group=_MODEL
    )
    validation_steps: int = option(
        "steps between validations; the last step is always validated", default=100, at_least=1, group=_RUNNING
    )
    validation_tiles: int = option(
        "validation tiles looked at, at most, drawn at random once", default=10_000, at_least=1, group=_RUNNING
    )
    seed: int = option("seed of weights, order and augmentation", default=0, at_least=0, group=_OPTIMISATION)

    def check(self) -> None:
        """Takes the learning rate of the architecture where none is given, and checks what does not go together."""
        check_architecture(self.architecture)
        if self.learning_rate is None:
            object.__setattr__(self, "learning_rate", usual_learning_rate(self.architecture))
        check_recipe(self)


def check_recipe(config: Any) -> None:
    """Checks the values of a recipe that do not go together.

    Raises:
        InputError: For a loss that has no use for soft labels or mixed tiles, a width of a network that has its own,
            views where labels count, and what logistic regression cannot do.
    """
    if config.width is not None and is_from_elsewhere(config.architecture):
        raise InputError(
            f"{param('width')}={config.width} has no meaning for {param('architecture')}={config.architecture}, whose "
            "config says how wide it is: leave it out"
        )
    unknown = {name: getattr(config, name) for name in _UNKNOWN_TO_PROBES if getattr(config, name)}
    if config.loss != "ce":
        unknown["loss"] = config.loss
    if config.soft_label_views > 1:
        unknown["soft_label_views"] = config.soft_label_views
    if is_probe(config.architecture) and unknown:
        name, value = next(iter(unknown.items()))
        raise InputError(
            f"{param(name)}={value} has no meaning for {param('architecture')}={config.architecture}, which is "
            "logistic regression on tiles as they are: leave it out"
        )
    if config.loss != "ce" and (config.mixup or config.cutmix):
        raise InputError(
            f"{param('loss')}={config.loss} does not go with mixed tiles, which are of no one class: give "
            f"{param('loss')}=ce, or {param('mixup')}=0 and {param('cutmix')}=0"
        )
    if config.soft_label_views > 1 and (config.loss != "ce" or config.soft_label_weight < 1):
        raise InputError(
            f"{param('soft_label_views')}={config.soft_label_views} goes with soft labels alone, since views show "
            f"parts of other tiles: give {param('soft_label_weight')}=1 and {param('loss')}=ce, or 1"
        )
    if config.loss == "contrastive" and config.soft_label_weight:
        raise InputError(
            f"{param('soft_label_weight')}={config.soft_label_weight} has no meaning for "
            f"{param('loss')}=contrastive: give {param('loss')}=ce or joint, or 0"
        )


def recorded_recipe(config: ClassifierConfig, label: str | None = None) -> dict[str, Any]:
    """A recipe as a record has it, without options at their default that earlier versions did not have.

    Args:
        config: The recipe.
        label: Of the architecture, where it is a path; None for it as it is.
    """
    settings = config.settings()
    recipe = {name: value for name, value in asdict(config).items() if name in settings}
    return {**recipe, "architecture": label or config.architecture}
