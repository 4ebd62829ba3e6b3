"""Names of the classifiers and what goes with each, cheap to read: nothing here imports torch.

An architecture is one of `ARCHITECTURES`, or says what is taken from elsewhere:

- `MODEL`, the folder or Hub id of an image classifier of `transformers`: its weights are trained on, with a new head;
- `scratch:MODEL`: the same network with new weights;
- `probe:ENCODER`: logistic regression on what an encoder makes of a tile, where `ENCODER` is what
  `embedders.load_embedder` takes, or `teacher` or `autoencoder` for that of the run.
"""

from __future__ import annotations

from pathlib import Path

from histodistill.training.running.errors import InputError, param
from histodistill.training.running.suggestions import did_you_mean


#: The networks that a `Classifier` can be, beside what is taken from elsewhere.
ARCHITECTURES = ("convnet", "resnet18", "vit")
#: Base width of each: channels of a ConvNet's layers and of a ResNet's first stage, dimensions of a ViT's tokens.
DEFAULT_WIDTHS = {"convnet": 128, "resnet18": 64, "vit": 192}
#: Those whose features are maps of the tile, to which a denoiser can be aligned.
WITH_MAPS = ("convnet", "resnet18")
#: Peak learning rate of AdamW for each. Found on validation tiles: see docs/trainings.md.
LEARNING_RATES = {"convnet": 3e-3, "resnet18": 1e-3, "vit": 1e-3}
#: The same for other networks: with new weights, and with pretrained ones, which large steps would spoil.
NEW_LEARNING_RATE, PRETRAINED_LEARNING_RATE = 1e-3, 1e-4
#: What stands before the encoder of a probe, before a model of which the network alone is taken, and before a name of
#: timm.
PROBE, SCRATCH, TIMM = "probe:", "scratch:", "timm:"
#: What texts call these kinds of names, beside those of `ARCHITECTURES`.
KINDS = "MODEL, scratch:MODEL or probe:ENCODER"


def is_probe(architecture: str) -> bool:
    """Whether it is trained by logistic regression, which knows no steps."""
    return architecture.startswith(PROBE)


def steps_of(architecture: str, max_train_steps: int) -> int | None:
    """The optimizer steps of a training; None for a probe, which knows none."""
    return None if is_probe(architecture) else max_train_steps


def is_from_elsewhere(architecture: str) -> bool:
    """Whether its network is not one of `ARCHITECTURES`."""
    return architecture not in ARCHITECTURES


def split_architecture(architecture: str) -> tuple[str, str]:
    """`probe:` or `scratch:` or nothing, and what follows."""
    prefix = next((prefix for prefix in (PROBE, SCRATCH) if architecture.startswith(prefix)), "")
    return prefix, architecture.removeprefix(prefix)


def usual_learning_rate(architecture: str) -> float:
    """The peak learning rate where none is given."""
    if architecture in LEARNING_RATES:
        return LEARNING_RATES[architecture]
    is_new = architecture.startswith((PROBE, SCRATCH))
    return NEW_LEARNING_RATE if is_new else PRETRAINED_LEARNING_RATE


def check_architecture(architecture: str, where: str | None = None) -> None:
    """Sees that a text can be the name of an architecture; whether there is such a model shows when it is loaded.

    Args:
        architecture: The text.
        where: What the sentence of an error begins with; by default the option.

    Raises:
        InputError: For one that can not.
    """
    prefix, model = split_architecture(architecture)
    if model in ARCHITECTURES and not prefix:
        return
    if model and prefix == PROBE:
        return
    # Ids of the Hub have an owner; a single word is one of our names, or a folder.
    if model and not model.startswith(TIMM) and ("/" in model or Path(model).is_dir()):
        return
    meant = did_you_mean(architecture, ARCHITECTURES)
    begin = (
        f"{where}: the architecture{meant}"
        if where
        else f"{param('architecture')}={architecture} is unknown{meant}: it"
    )
    raise InputError(
        f"{begin} must be one of {', '.join(ARCHITECTURES)}, or {KINDS} with the folder or Hub id of a model"
    )
