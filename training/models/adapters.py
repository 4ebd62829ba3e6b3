"""Low-rank adapters of a denoiser (LoRA, Hu et al. 2021, arXiv:2106.09685), by the library peft.

Beside the weight of a layer, which stays as it was, two matrices are trained whose product is of a low rank, and is
added to it. Under differential privacy each number that is trained bears noise, and these are few.
"""

from __future__ import annotations

import copy
from types import ModuleType
from typing import Any

import torch
from diffusers import UNet2DModel

from histodistill.training.running.errors import InputError, param


# Adapters then have a twelfth of the numbers of a U-Net 64-128. Hu et al. gained little by larger ranks (section 7.2),
# and under differential privacy a larger one means more noise.
_RANK = 8


def add_adapters(denoiser: UNet2DModel) -> str:
    """Puts adapters beside the weights of convolutions and linear layers, in place; it gives what it gave before.

    They are trained, together with what was trained; the weights that they are beside are not. Layers so narrow that
    an adapter would have as many numbers as the weight have none.

    Args:
        denoiser: Without adapters. Those that it gets are random by torch's global generator.

    Returns:
        How many numbers they have, as a line for the user.

    Raises:
        InputError: If peft is missing, or all layers are so narrow.
    """
    peft = load_peft()
    trained = [weight for weight in denoiser.parameters() if weight.requires_grad]
    layers = [
        name
        for name, layer in denoiser.named_modules()
        if isinstance(layer, (torch.nn.Conv2d, torch.nn.Linear))
        and _RANK * sum(layer.weight.flatten(1).shape) < layer.weight.numel()
    ]
    if not layers:
        raise InputError(
            f"{param('trained_weights')}=adapters is of no use, since no layer is wide enough for rank "
            f"{_RANK}: give embeddings or all"
        )
    # Their scale is 1, that is alpha / rank.
    peft.inject_adapter_in_model(
        peft.LoraConfig(r=_RANK, lora_alpha=_RANK, lora_dropout=0.0, target_modules=layers), denoiser
    )
    for weight in trained:
        weight.requires_grad_(True)
    count = sum(weight.numel() for name, weight in denoiser.named_parameters() if ".lora_" in name)
    return (
        f"warm start: to {len(layers)} of the others matrices of rank {_RANK} are added, of which {count:,} numbers "
        "are trained, too"
    )


def has_adapters(denoiser: UNet2DModel) -> bool:
    """Whether `add_adapters` was called for a denoiser."""
    return hasattr(denoiser, "peft_config")


def merge_adapters(denoiser: UNet2DModel) -> UNet2DModel:
    """A denoiser without adapters that gives the same, up to rounding: a copy, or where there are none itself."""
    if not has_adapters(denoiser):
        return denoiser
    lora_layer = load_peft().tuners.lora.LoraLayer
    merged = copy.deepcopy(denoiser)
    adapted: dict[str, Any] = {name: layer for name, layer in merged.named_modules() if isinstance(layer, lora_layer)}
    for name, layer in adapted.items():
        layer.merge()
        merged.set_submodule(name, layer.get_base_layer())
    del merged.peft_config
    return merged


def load_peft() -> ModuleType:
    """peft; `InputError` where it is not installed."""
    try:
        import peft
    except ImportError as error:
        raise InputError(
            f"{param('trained_weights')}=adapters needs peft, which is not installed: pip install "
            "'histodistill[adapters]', or pip install peft"
        ) from error
    return peft
