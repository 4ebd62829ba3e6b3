"""The class-conditional denoiser: a `UNet2DModel` in the latent space of an autoencoder, and its sampler."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from diffusers import DPMSolverMultistepScheduler, UNet2DModel
from diffusers.models.attention_processor import Attention, AttnProcessor

from histodistill.training.models.denoiser_output import DATA, VELOCITY
from histodistill.training.running.errors import InputError, param


#: Timesteps that noise levels 0 to 1 are mapped to: what diffusers' schedulers and time embeddings are made for.
NUM_TRAIN_TIMESTEPS = 1000
# Where the sampler's steps are, by what the denoiser gives: above 1 more of them where there is much noise, in which a
# tile is laid out. Found by trying: see docs/trainings.md.
_FLOW_SHIFT = {VELOCITY: 1.0, DATA: 2.0}


def check_halvings(latent_size: int, channels: Sequence[int]) -> None:
    """Sees that a denoiser with these levels can halve latents of that side.

    Raises:
        InputError: If it cannot be halved once per level after the first.
    """
    if latent_size % 2 ** (len(channels) - 1):
        raise InputError(
            f"latents of {latent_size}×{latent_size} cannot be halved {len(channels) - 1} times: give fewer "
            f"{param('channels')}"
        )


def build_denoiser(
    latent_size: int,
    latent_channels: int,
    num_classes: int,
    channels: Sequence[int],
    layers_per_block: int = 2,
    attention_levels: int = 0,
    dropout: float = 0.0,
) -> UNet2DModel:
    """A new `UNet2DModel` for `num_classes` classes and, as its last class embedding, the null class.

    Args:
        latent_size: Side of the latents.
        latent_channels: Their channels.
        num_classes: Number of classes, without the null class.
        channels: Width of each level; every level after the first halves the size.
        layers_per_block: Residual blocks in each level.
        attention_levels: How many levels, counted from the lowest, have attention.
        dropout: Share of the activations that residual blocks drop in training, 0 to 1.

    Raises:
        InputError: If latent_size cannot be halved once per further level.
    """
    check_halvings(latent_size, channels)
    has_attention = [level >= len(channels) - attention_levels for level in range(len(channels))]
    # Few, wide groups: a norm over one or two channels takes away their mean, and colour is in the means.
    groups = math.gcd(8, *channels)
    return UNet2DModel(
        sample_size=latent_size,
        in_channels=latent_channels,
        out_channels=latent_channels,
        block_out_channels=channels,
        down_block_types=["AttnDownBlock2D" if a else "DownBlock2D" for a in has_attention],
        up_block_types=["AttnUpBlock2D" if a else "UpBlock2D" for a in reversed(has_attention)],
        layers_per_block=layers_per_block,
        attention_head_dim=math.gcd(32, *channels),
        norm_num_groups=groups,
        dropout=dropout,
        # Time and class scale the maps, too, instead of only shifting them (Dhariwal & Nichol 2021, section 3).
        resnet_time_scale_shift="scale_shift",
        num_class_embeds=num_classes + 1,
    )


def use_plain_attention(model: torch.nn.Module) -> None:
    """Makes attention two matrix products and a softmax, which changes nothing that is saved.

    On a CPU, and for the few pixels of a low level, the fused kernel and its backward pass take several times as long.
    """
    for module in model.modules():
        if isinstance(module, Attention):
            module.set_processor(AttnProcessor())


def make_scheduler(prediction_type: str = VELOCITY) -> DPMSolverMultistepScheduler:
    """The sampler that fits the training: second-order DPM-Solver++ on the flow's noise levels.

    Args:
        prediction_type: What the denoiser gives, one of `denoiser_output.PREDICTION_TYPES`.
    """
    return DPMSolverMultistepScheduler(
        num_train_timesteps=NUM_TRAIN_TIMESTEPS,
        prediction_type=prediction_type,
        use_flow_sigmas=True,
        flow_shift=_FLOW_SHIFT[prediction_type],
    )
