"""Autoencoders from elsewhere: found by folder or id of the Hub, loaded as data, and seen to fit the tiles."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from histodistill.training.data.names import shown
from histodistill.training.models.hub_files import model_folder
from histodistill.training.models.latents import (
    LATENT_MODELS,
    LatentModel,
    compression_of,
    encode_images,
    parameters_of,
    reconstruct,
    shape_of_latent,
)
from histodistill.training.models.loading import has_class, load_autoencoder
from histodistill.training.running.errors import InputError, param, reason_of


# Where a pipeline of diffusers has its autoencoder.
_IN_A_PIPELINE = "vae"
_CONFIG = "config.json"
# What is fetched of weights, the first that there is: full precision in one file or several, or half.
_WEIGHTS = (
    (
        "diffusion_pytorch_model.safetensors",
        "diffusion_pytorch_model.safetensors.index.json",
        "diffusion_pytorch_model-*-of-*.safetensors",
    ),
    ("diffusion_pytorch_model.fp16.safetensors",),
)
# What it is, and can be, for messages.
_WHAT = "diffusers autoencoder"
_KINDS = f"{', '.join([*LATENT_MODELS][:-1])} or {[*LATENT_MODELS][-1]}"


def find_pretrained(name_or_path: str | Path, option: str = "autoencoder") -> Path:
    """The folder that an autoencoder of diffusers lies in, fetched from the Hub where it is not on this machine.

    Only configurations and safetensors are fetched.

    Args:
        name_or_path: A folder that holds one, or a pipeline with one in its `vae`; or the Hub id of either.
        option: What the parameter is called in messages.

    Raises:
        InputError: If there is none, or it cannot be fetched.
    """
    found = _holding(_fetched(name_or_path, option))
    if found is None:
        raise InputError(
            f"{param(option)} {shown(str(name_or_path))} holds no {_KINDS} of diffusers, nor a pipeline with one: "
            "give another"
        )
    return found


def load_pretrained(name_or_path: str | Path, option: str = "autoencoder") -> LatentModel:
    """An autoencoder of diffusers, in evaluation mode on the CPU; none of its code is run.

    Args:
        name_or_path, option: See `find_pretrained`.

    Raises:
        InputError: If there is none, it cannot be fetched, or it is damaged.
    """
    return load_autoencoder(find_pretrained(name_or_path, option), from_elsewhere=True)


def check_fits(autoencoder: LatentModel, image_size: int, option: str = "autoencoder") -> None:
    """Sees that an autoencoder takes tiles and gives them back; nothing is computed for it.

    Args:
        autoencoder: The autoencoder.
        image_size: Side of the tiles in pixels.
        option: What the parameter is called in messages.

    Raises:
        InputError: If it takes other images than RGB, or tiles of another side.
    """
    reduction = compression_of(autoencoder)
    if image_size % reduction:
        fitting = max(1, round(image_size / reduction)) * reduction
        raise InputError(
            f"{param(option)} takes tiles whose side is divisible by {reduction}, and these have {image_size} px: "
            f"give {param('image_size')} {fitting}, or another autoencoder"
        )
    try:
        with torch.device("meta"), torch.no_grad():
            shadow = type(autoencoder).from_config(parameters_of(autoencoder))
            images = torch.empty(1, 3, image_size, image_size)
            latent = tuple(encode_images(shadow, images).shape[1:])
            made = reconstruct(shadow, images).shape
    except Exception as error:  # of any kind: a config can be wrong in every way
        raise InputError(
            f"{param(option)} does not take RGB tiles of {image_size} px ({shown(reason_of(error))}): give another"
        ) from error
    if made != images.shape or latent != shape_of_latent(autoencoder, image_size):
        raise InputError(
            f"{param(option)} makes latents {_shape(latent)} of tiles {_shape(images.shape[1:])}, and of these "
            f"{_shape(made[1:])}: give an autoencoder whose every level after the first halves and doubles the side"
        )


def _shape(sizes: Sequence[int]) -> str:
    return "×".join(map(str, sizes))


def _holding(folder: Path) -> Path | None:
    """The folder itself or its `vae`, where one of them says that it holds an autoencoder."""
    for place in (folder, folder / _IN_A_PIPELINE):
        if any(has_class(place, model) for model in LATENT_MODELS.values()):
            return place
    return None


def _fetched(name: str | Path, option: str) -> Path:
    """The folder itself, or that with what was fetched of a repository of the Hub."""
    folder = model_folder(name, option, _WHAT, [_CONFIG, f"{_IN_A_PIPELINE}/{_CONFIG}"])
    if folder == Path(name):
        return folder
    below = f"{_IN_A_PIPELINE}/" if _holding(folder) == folder / _IN_A_PIPELINE else ""
    for files in _WEIGHTS:
        folder = model_folder(name, option, _WHAT, [f"{below}{file}" for file in files])
        if any((folder / below).glob("*.safetensors")):
            break
    return folder
