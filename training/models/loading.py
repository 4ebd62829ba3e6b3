"""Loads models from folders, which may come from somebody else: what a folder holds is data.

The installed class builds each model from the numbers of its config and fills it with its weights. No code that lies
in a folder is run, nothing in it chooses a class or a module, weights are safetensors alone, and nothing is fetched.
`from_pretrained` of diffusers, with `trust_remote_code`, is for those who load a published pipeline from the Hub.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, TypeVar

import torch
from diffusers import AutoencoderDC, DPMSolverMultistepScheduler, ModelMixin, UNet2DModel
from pydantic import ConfigDict, Field, ValidationError
from safetensors.torch import load_file

from histodistill.hub_cards.documents import PipelineClasses
from histodistill.pipelines.histology_pipeline import HistologyPipeline
from histodistill.training.models.classifiers import Classifier
from histodistill.training.models.denoiser_output import DATA
from histodistill.training.models.encoder_names import is_own_classifier
from histodistill.training.models.latents import LATENT_MODELS, LatentModel
from histodistill.training.running.errors import InputError, one_line, reason_of
from histodistill.training.running.files import read_json
from histodistill.training.running.notes import warn


# Files as diffusers and huggingface_hub name them.
_CONFIG, _SCHEDULER_CONFIG, _PIPELINE_CONFIG = "config.json", "scheduler_config.json", "model_index.json"
_DIFFUSERS_WEIGHTS, _CLASSIFIER_WEIGHTS = "diffusion_pytorch_model.safetensors", "model.safetensors"
# The code of a pipeline, which travels with it for those who have no histodistill.
_PIPELINE_CODE = "pipeline.py"

# What a class writes into its config beside its parameters, and does not read again.
_NOTES = {"AutoencoderTiny": ("block_out_channels",)}
# The names of a file of weights among several, and of the layers of attention blocks in older versions of diffusers.
_SHARD = re.compile(r"diffusion_pytorch_model-\d{5}-of-\d{5}\.safetensors")
_OLD_ATTENTION = re.compile(r"(attentions\.\d+)\.(query|key|value|proj_attn)\.")
_OF_TODAY = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}

_Model = TypeVar("_Model", bound=ModelMixin)


class PipelineIndex(PipelineClasses):
    """What the `model_index.json` of a pipeline holds: names of classes, and little else that varies."""

    model_config = ConfigDict(populate_by_name=False)

    diffusers_version: str | None = Field(default=None, alias="_diffusers_version")
    id2label: dict[str, str]


def load_pipeline(folder: str | Path) -> HistologyPipeline:
    """The pipeline that `train_diffusion` left, in evaluation mode on the CPU.

    Where the code that travels with it is not that of the installed class, one line on standard error says so.

    Args:
        folder: On this machine; never a Hub id.

    Raises:
        InputError: If it holds no such pipeline, or a damaged one.
    """
    folder = Path(folder)
    index = _read_index(folder / _PIPELINE_CONFIG)
    scheduler = _load_scheduler(folder / "scheduler")
    if index.skip_noise and scheduler.config.prediction_type != DATA:
        raise InputError(f"{folder} has a skip connection, which its scheduler does not go with: train it anew")
    pipeline = HistologyPipeline(
        vae=load_autoencoder(folder / "vae"),
        unet=load_denoiser(folder / "unet"),
        scheduler=scheduler,
        id2label=index.id2label,
        skip_noise=index.skip_noise,
    )
    _check_classes(folder, index, pipeline.num_classes)
    _compare_code(folder / _PIPELINE_CODE)
    return pipeline


def load_named_denoiser(folder: str | Path) -> tuple[UNet2DModel, list[str]]:
    """The denoiser of a pipeline and the names of its classes in their order; no other part is looked at.

    Args:
        folder: Of the pipeline, on this machine; never a Hub id.

    Raises:
        InputError: If it holds no such pipeline, or a damaged one.
    """
    folder = Path(folder)
    index = _read_index(folder / _PIPELINE_CONFIG)
    denoiser = load_denoiser(folder / "unet")
    _check_classes(folder, index, denoiser.config.num_class_embeds - 1)
    return denoiser, [index.id2label[str(label)] for label in range(len(index.id2label))]


def load_autoencoder(folder: str | Path, *, from_elsewhere: bool = False) -> LatentModel:
    """The autoencoder that `train_autoencoder` left, or a pipeline in its `vae`: in evaluation mode on the CPU.

    Args:
        folder: On this machine; never a Hub id.
        from_elsewhere: Whether its weights may also lie there as other programs leave them: in several files with an
            index, in half precision (`.fp16`), or with names that diffusers once had.

    Raises:
        InputError: If it holds none, or a damaged one.
    """
    folder = Path(folder)
    model_class = LATENT_MODELS.get(str(_config_of(folder).get("_class_name")), AutoencoderDC)
    return _load_model(model_class, folder, _weights_from_elsewhere if from_elsewhere else _own_weights)


def load_denoiser(folder: str | Path) -> UNet2DModel:
    """The denoiser of a pipeline, in its `unet`: in evaluation mode on the CPU.

    Args:
        folder: On this machine; never a Hub id.

    Raises:
        InputError: If it holds none, or a damaged one.
    """
    model = _load_model(UNet2DModel, Path(folder))
    if not isinstance(model.config.num_class_embeds, int) or model.config.num_class_embeds < 2:
        raise InputError(f"{folder} holds a denoiser without classes: give the folder that train_diffusion left")
    return model


def load_classifier(folder: str | Path) -> Classifier:
    """The classifier that `train_classifier` left, in evaluation mode on the CPU.

    Args:
        folder: On this machine; never a Hub id.

    Raises:
        InputError: If it holds none, or a damaged one.
    """
    folder = Path(folder)
    config = _read_config(folder / _CONFIG, _parameters(Classifier))
    try:
        model = Classifier(**config)
        model.load_state_dict(load_file(_weights(folder / _CLASSIFIER_WEIGHTS)))
    except Exception as error:  # of any kind: the numbers of a config can be wrong in every way
        raise _cannot_be_loaded(folder, "classifier", error) from error
    return model.eval()


def has_class(folder: str | Path, model_class: type[ModelMixin]) -> bool:
    """Whether a folder says that it holds a model of a diffusers class."""
    return _config_of(folder).get("_class_name") == model_class.__name__


def has_classifier(folder: str | Path) -> bool:
    """Whether a folder says that it holds a `Classifier` of this project."""
    return is_own_classifier(_config_of(folder))


def _config_of(folder: str | Path) -> dict[str, Any]:
    try:
        config = read_json(Path(folder) / _CONFIG)
    except (OSError, ValueError):  # ValueError: damaged, or a name that no path can have
        return {}
    return config if isinstance(config, dict) else {}


def _own_weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(_weights(folder / _DIFFUSERS_WEIGHTS))


def _weights_from_elsewhere(folder: Path) -> dict[str, torch.Tensor]:
    """The weights of a model by name, however diffusers has laid them down, by their names of today."""
    index = folder / f"{_DIFFUSERS_WEIGHTS}.index.json"
    half = folder / "diffusion_pytorch_model.fp16.safetensors"
    files = [folder / _DIFFUSERS_WEIGHTS]
    if not files[0].is_file():
        if index.is_file():
            files = [folder / name for name in _shards(index)]
        elif half.is_file():
            files = [half]
    weights = {name: tensor for file in files for name, tensor in load_file(_weights(file)).items()}
    return {_OLD_ATTENTION.sub(lambda old: f"{old[1]}.{_OF_TODAY[old[2]]}.", name): weights[name] for name in weights}


def _shards(index: Path) -> list[str]:
    """The files that an index names, which lie beside it."""
    names = sorted(set(read_json(index)["weight_map"].values()))
    for name in names:
        if not _SHARD.fullmatch(name):
            raise InputError(f"{index.name} names {one_line(name)}, which is no file of weights: make it again")
    return names


def _load_model(
    model_class: type[_Model], folder: Path, read_weights: Callable[[Path], dict[str, torch.Tensor]] = _own_weights
) -> _Model:
    config = _read_config(folder / _CONFIG, _parameters(model_class), model_class.__name__)
    try:
        # Memory is taken for the weights that there are, whatever sizes a config claims.
        with torch.device("meta"):
            model = model_class.from_config(config)
        model.load_state_dict(read_weights(folder), assign=True)
    except Exception as error:  # of any kind: the numbers of a config can be wrong in every way
        raise _cannot_be_loaded(folder, model_class.__name__, error) from error
    return model.float().eval()


def _load_scheduler(folder: Path) -> DPMSolverMultistepScheduler:
    scheduler_class = DPMSolverMultistepScheduler
    config = _read_config(folder / _SCHEDULER_CONFIG, _parameters(scheduler_class), scheduler_class.__name__)
    try:
        return scheduler_class.from_config(config)
    except Exception as error:  # of any kind: the numbers of a config can be wrong in every way
        raise _cannot_be_loaded(folder, scheduler_class.__name__, error) from error


def _cannot_be_loaded(folder: Path, what: str, error: Exception) -> InputError:
    if isinstance(error, InputError):
        return InputError(f"{folder} holds no {what} that can be loaded: {error.marked()}")
    return InputError(
        f"{folder} holds no {what} that can be loaded ({reason_of(error)}): make it again, or give another folder"
    )


def _weights(path: Path) -> Path:
    """A file of weights that is there, and no pipe, which would be waited for."""
    if not path.is_file():
        raise InputError(f"there is no {path.name}, and weights of other kinds are not read: make it again")
    return path


def _parameters(model_class: type) -> set[str]:
    return set(inspect.signature(model_class).parameters)


def _read_config(path: Path, known: Collection[str], class_name: str | None = None) -> dict[str, Any]:
    """What a config says to the class that builds a model: values by parameter.

    Args:
        path: The JSON file.
        known: The parameters of the class.
        class_name: The name of the class that must stand in it, where one does.

    Raises:
        InputError: If it cannot be read, is that of another class, or has a parameter that this one does not know.
    """
    remedy = "give a folder that histodistill left"
    try:
        config = read_json(path)
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read ({reason_of(error.__cause__ or error)}): {remedy}") from error
    found = config.get("_class_name") if isinstance(config, dict) else None
    if not isinstance(config, dict) or found != class_name:
        raise InputError(f"{path} is that of {found!r}, and must be that of {class_name or 'a classifier'}: {remedy}")
    # Keys with an underscore are notes of diffusers, such as its version and where a model came from.
    notes = _NOTES.get(class_name or "", ())
    values = {name: value for name, value in config.items() if not name.startswith("_") and name not in notes}
    if unknown := sorted(values.keys() - set(known)):
        raise InputError(
            f"{path} has {', '.join(unknown)}, which the installed version does not know: install the version that it "
            "was made with"
        )
    return values


def _read_index(path: Path) -> PipelineIndex:
    remedy = "give a folder that train_diffusion left"
    try:
        return PipelineIndex.model_validate_json(path.read_bytes())
    except (OSError, ValueError) as error:  # ValueError: a name that no path can have, or what is no such index
        reason = reason_of(error)
        if isinstance(error, ValidationError):
            wrong = error.errors()[0]
            reason = f"{'.'.join(map(str, wrong['loc'])) or 'the file'}: {wrong['msg']}"
        raise InputError(f"{path} cannot be read as that of our pipeline ({reason}): {remedy}") from error


def _check_classes(folder: Path, index: PipelineIndex, num_classes: int) -> None:
    """Sees that a pipeline names each class of its denoiser."""
    if set(index.id2label) != {str(label) for label in range(num_classes)}:
        raise InputError(
            f"{folder / _PIPELINE_CONFIG} names {len(index.id2label)} classes, and the denoiser has "
            f"{num_classes}, numbered from 0: train the pipeline anew"
        )


def installed_code() -> bytes:
    """The file of the installed pipeline's class, which travels with a pipeline."""
    return Path(inspect.getfile(HistologyPipeline)).read_bytes()


def _compare_code(shipped: Path) -> None:
    """Tells where the code beside a pipeline is not what was used."""
    if shipped.is_file() and shipped.read_bytes() != installed_code():
        warn(
            f"{shipped} is not the file of the installed histodistill; it was not run: the installed class loaded the "
            "weights"
        )
