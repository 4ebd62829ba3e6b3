"""Encoders and image classifiers by name or folder: what `transformers`, or `timm`, takes from a folder or the Hub.

No code of a model is run, weights are safetensors alone, and what lies on this machine is looked for nowhere else.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from safetensors.torch import load_file

from histodistill.training.models.architectures import TIMM
from histodistill.training.models.encoder_names import is_own_classifier
from histodistill.training.models.encoders import (
    ClassifierBody,
    Encoder,
    TimmEncoder,
    VisionEncoder,
    config_to_data,
    for_training,
    load_timm,
    network_class,
    own_parameters,
    refuse_foreign,
)
from histodistill.training.models.preprocessing import IMAGENET_MEAN, IMAGENET_STD, USUAL_SIDE, Preprocessing
from histodistill.training.running.errors import InputError, one_line, param, reason_of
from histodistill.training.running.files import read_json
from histodistill.training.running.hub_cache import cache_problem
from histodistill.training.running.notes import tell


# Weights that files may lack: poolers that were never trained, which are not used then, and masks, which no tile has.
_DISPENSABLE = ("pooler", "mask_token")
# What `timm` calls the filters of `Preprocessing`.
_TIMM_FILTERS = ("bilinear", "bicubic")
_CONFIG, _WEIGHTS = "config.json", "model.safetensors"


def load_vision_encoder(name_or_path: str | Path, option: str = "embedder") -> Encoder:
    """A vision model without a head, in evaluation mode on the CPU.

    Args:
        name_or_path: The folder or Hub id of a model of `transformers` or, if its config is one of `timm`, of that;
            or `timm:NAME` for a Hub id of `timm`, or NAME of its own repositories.
        option: What the user gave it as, for messages.

    Raises:
        InputError: If there is no such model, one that lacks weights, or whose library is not installed.
    """
    with _errors_of(name_or_path, option):
        if timm_folder := _timm_config(name_or_path):
            return _load_timm_encoder(*timm_folder).eval()
        return _load_transformers_encoder(name_or_path).eval()


def load_classifier_body(name_or_path: str | Path) -> ClassifierBody:
    """The network and the weights of an image classifier of `transformers`, on which a new head is to be trained.

    Raises:
        InputError: If there is no such model, one of a kind that is no classifier, or none of its weights.
    """
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING

    with _errors_of(name_or_path, "architecture"), torch.random.fork_rng(devices=[]):
        options = _options(name_or_path)
        config = for_training(_as_vit(_read_config(name_or_path)))
        model_class = network_class(config, MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING)
        if _is_folder_without_weights(name_or_path):
            raise InputError(
                f"it holds no {_WEIGHTS}: write scratch:{name_or_path} to train the network of its config with new "
                "weights"
            )
        with _quietly():
            model, info = model_class.from_pretrained(
                name_or_path,
                config=config,
                use_safetensors=True,
                output_loading_info=True,
                ignore_mismatched_sizes=True,
                dtype=torch.float32,
                **options,
            )
        num_missing, num_arrays = len(info["missing_keys"]), len(model.state_dict())
        if num_missing > num_arrays / 2:
            raise InputError(f"it lacks {num_missing} of the {num_arrays} arrays of weights: give the whole model")
        return ClassifierBody(model, _preprocessing(name_or_path, config))


def new_classifier_body(name_or_path: str | Path) -> ClassifierBody:
    """The network of an image classifier of `transformers` with new weights, drawn from the global random numbers.

    Where nothing says to what size tiles are brought, they are taken as they are.

    Raises:
        InputError: If there is no such config, or one of a kind that is no classifier.
    """
    with _errors_of(name_or_path, "architecture"):
        config = _as_vit(_read_config(name_or_path))
        return ClassifierBody.of(config, _preprocessing(name_or_path, config, usual_side=None))


@contextlib.contextmanager
def _errors_of(name_or_path: str | Path, option: str) -> Iterator[None]:
    """Has whatever goes wrong told in one sentence about what was asked for."""
    shown = one_line(str(name_or_path))
    try:
        yield
    except InputError as error:
        raise InputError(f"{param(option)} {shown} cannot be loaded: {error.marked()}") from error
    except Exception as error:  # of any kind: a folder can be damaged in every way
        if _is_gated(error):
            raise InputError(
                f"{param(option)} {shown} is gated on the Hub: ask for access on the page of the model, and log in "
                "with `hf auth login`"
            ) from error
        if not Path(name_or_path).exists() and (problem := cache_problem()):
            raise InputError(f"{param(option)} {shown} cannot be fetched, since {problem}") from error
        raise InputError(
            f"{param(option)} {shown} cannot be loaded: give a folder that train_classifier or "
            "train_autoencoder left, or the folder or Hub id of a transformers vision model"
        ) from error


def _is_gated(error: BaseException | None) -> bool:
    from huggingface_hub.errors import GatedRepoError

    while error is not None:
        if isinstance(error, GatedRepoError) or "gated repo" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


def _options(name_or_path: str | Path) -> dict[str, Any]:
    return {"trust_remote_code": False, "local_files_only": Path(name_or_path).exists()}


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Leaves out what `transformers` says of weights that are missing or left over, which we judge ourselves."""
    from transformers.utils import logging

    level, has_bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if has_bars:
            logging.enable_progress_bar()


def _is_folder_without_weights(name_or_path: str | Path) -> bool:
    folder = Path(name_or_path)
    return folder.is_dir() and not any(folder.glob("*.safetensors"))


def _read_config(name_or_path: str | Path) -> Any:
    """The config of a model, which comes whole."""
    from transformers import AutoConfig

    with _quietly():
        config = AutoConfig.from_pretrained(name_or_path, **_options(name_or_path))
    if config.model_type == "timm_wrapper":
        raise InputError(f"it is a model of timm, which can be an encoder alone: write {TIMM}{name_or_path}")
    return refuse_foreign(config)


def _as_vit(config: Any) -> Any:
    """The config of a ViT for that of MAE, whose encoder is one and would mask most of what it sees."""
    from transformers import ViTConfig

    if config.model_type != "vit_mae":
        return config
    values = config_to_data(config)
    return ViTConfig(**{name: values[name] for name in own_parameters(ViTConfig) & values.keys()})


def _load_transformers_encoder(name_or_path: str | Path) -> VisionEncoder:
    from transformers.models.auto.modeling_auto import MODEL_MAPPING

    config = _as_vit(_read_config(name_or_path))
    config = getattr(config, "vision_config", None) or config
    model_class = network_class(config, MODEL_MAPPING)
    if model_class.main_input_name != "pixel_values":
        raise InputError(f"a network of the kind {config.model_type} takes no pictures: give a vision model")
    with _quietly(), torch.random.fork_rng(devices=[]):
        model, info = model_class.from_pretrained(
            name_or_path,
            config=config,
            use_safetensors=True,
            output_loading_info=True,
            dtype=torch.float32,
            **_options(name_or_path),
        )
    missing = sorted(info["missing_keys"])
    if lacking := [key for key in missing if not any(part in key for part in _DISPENSABLE)]:
        raise InputError(
            f"it lacks {len(lacking)} arrays of weights, such as {one_line(lacking[0])}: give the whole model"
        )
    # A pooler that the files do not hold is made at random, another one each time: leave it out.
    pooled = not any("pooler" in key for key in missing)
    return VisionEncoder(model, _preprocessing(name_or_path, config), pooled)


def _preprocessing(name_or_path: str | Path, config: Any, usual_side: int | None = USUAL_SIDE) -> Preprocessing:
    """What tiles go through before a model, by its own processor; where it has none, that of most models.

    Args:
        name_or_path: The model.
        config: Its config.
        usual_side: To which tiles are brought where neither says a size.
    """
    from transformers import AutoImageProcessor

    options = _options(name_or_path)
    settings = _processor_settings(name_or_path)
    if not settings:
        side = _config_side(config) or usual_side
        size = "as large as they are" if side is None else f"brought to {side} px"
        tell(
            f"{one_line(Path(name_or_path).name)} has no image processor: tiles are {size}, normalised as for ImageNet"
        )
        return Preprocessing(side)
    try:
        with _quietly():
            processor = AutoImageProcessor.from_pretrained(name_or_path, **options)
    except ImportError:  # of a processor that is there for torchvision alone: its settings tell what it does
        return Preprocessing.of_settings(SimpleNamespace(**_USUAL_SETTINGS | settings))
    return Preprocessing.of(processor)


def _processor_settings(name_or_path: str | Path) -> dict[str, Any]:
    """The settings of a model's image processor, by itself or within those of a processor; empty where it has none.

    `get_image_processor_config` gives them, too, but before transformers 5.16 it overlooks a file of its own.
    """
    from transformers.utils import IMAGE_PROCESSOR_NAME, PROCESSOR_NAME, cached_file

    for name, key in ((PROCESSOR_NAME, "image_processor"), (IMAGE_PROCESSOR_NAME, None)):
        file = cached_file(
            name_or_path,
            name,
            local_files_only=_options(name_or_path)["local_files_only"],
            _raise_exceptions_for_gated_repo=False,
            _raise_exceptions_for_missing_entries=False,
        )
        content = read_json(Path(file)) if file else None
        settings = content.get(key) if key and isinstance(content, dict) else content
        if isinstance(settings, dict):
            return settings
    return {}


# What processors do where their settings do not say otherwise.
_USUAL_SETTINGS = {
    "do_resize": True,
    "size": {"height": USUAL_SIDE, "width": USUAL_SIDE},
    "resample": 2,
    "do_center_crop": False,
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": IMAGENET_MEAN,
    "image_std": IMAGENET_STD,
}


def _config_side(config: Any) -> int | None:
    """The side in pixels that a config says; None where it says none."""
    size = getattr(getattr(config, "vision_config", None) or config, "image_size", None)
    sides = set(size) if isinstance(size, list | tuple) else {size}
    return sides.pop() if len(sides) == 1 else None


def _timm_config(name_or_path: str | Path) -> tuple[dict[str, Any], Callable[[], Path]] | None:
    """The config of a model of `timm`, and what gives the file of its weights; None for a model of another library."""
    text = str(name_or_path)
    if text.startswith(TIMM):
        name = text.removeprefix(TIMM)
        if not Path(name).is_dir():
            from huggingface_hub import hf_hub_download

            load_timm()  # before anything is fetched
            repo = name if "/" in name else f"timm/{name}"
            config = read_json(Path(hf_hub_download(repo, _CONFIG)))
            return config, lambda: Path(hf_hub_download(repo, _WEIGHTS))
        text = name
    folder = Path(text)
    if not (folder / _CONFIG).is_file():
        return None
    config = read_json(folder / _CONFIG)
    is_of_timm = isinstance(config, dict) and "architecture" in config and not is_own_classifier(config)
    return (config, lambda: folder / _WEIGHTS) if is_of_timm else None


def _load_timm_encoder(config: dict[str, Any], weights: Callable[[], Path]) -> TimmEncoder:
    """A model of `timm` by its config, and the file of its weights."""
    expected = {**config, **(config.get("pretrained_cfg") or {})}
    side = int(expected.get("input_size", (3, USUAL_SIDE, USUAL_SIDE))[-1])
    share = float(expected.get("crop_pct") or 1)
    filter = expected.get("interpolation", "bicubic")
    if filter not in _TIMM_FILTERS:
        raise InputError(f"tiles for it are resized in a way that torch does not know ({filter}): give another model")
    data = {
        "kind": TimmEncoder.kind,
        "architecture": config["architecture"],
        "model_args": dict(config.get("model_args") or {}),
        "preprocessing": {
            "side": int(side / share),
            "crop": side,
            "filter": filter,
            "mean": expected.get("mean", IMAGENET_MEAN),
            "std": expected.get("std", IMAGENET_STD),
        },
    }
    with torch.random.fork_rng(devices=[]):
        encoder = TimmEncoder.from_data(data)
    path = weights()
    if not path.is_file():
        raise InputError(f"there is no {_WEIGHTS}, and weights of other kinds are not read: save them as that")
    try:
        found = encoder.model.load_state_dict(load_file(path), strict=False)
    except RuntimeError as error:
        raise InputError(
            f"its weights do not fit the network of its config ({reason_of(error)}): give a model whose config.json "
            "says in model_args how it is made"
        ) from error
    if found.missing_keys:
        raise InputError(
            f"it lacks {len(found.missing_keys)} arrays of weights, such as {one_line(found.missing_keys[0])}: give a "
            "model whose config.json says in model_args how it is made"
        )
    return encoder
