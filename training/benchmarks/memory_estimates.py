"""Follows a training step of the models through on torch's "meta" device, and counts what would be kept in memory.

`memory` tells what is counted, and what is not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import AutoencoderDC
from torch.overrides import TorchFunctionMode

from histodistill.training.end_to_end.tile_checks import check_image_size
from histodistill.training.end_to_end.work import fitted_autoencoder
from histodistill.training.engine.flow import flow_loss
from histodistill.training.models.autoencoder import VariationalAutoencoder, autoencoder_loss, build_autoencoder
from histodistill.training.models.denoiser import build_denoiser
from histodistill.training.models.latents import shape_of_latent
from histodistill.training.running.presets import Preset
from histodistill.training.train_autoencoder import TrainAutoencoderConfig
from histodistill.training.train_diffusion import TrainDiffusionConfig


# Bytes of the unit that the table is in.
MIB = 2**20
# What autocast makes of a precision: None leaves float32.
DTYPES = {"no": None, "bf16": torch.bfloat16, "fp16": torch.float16}
# float32 copies of a model that is trained: parameters, gradients and the two moments of AdamW.
TRAINED_COPIES = 4
# Those that the moving average adds: the shadow of `EMAModel`, and the model with the averaged weights.
AVERAGED_COPIES = 2
# Stands for files that a training would read or write.
_UNUSED = Path("unused")


@dataclass(frozen=True)
class MemoryEstimate:
    """What a training holds on the device between the forward and the backward pass of a step.

    Attributes:
        model: "autoencoder" or "denoiser".
        image_size: Side of a tile in pixels.
        latent_shape: Channels, height and width of a latent.
        batch_size: Tiles in a batch.
        num_parameters: Parameters of the model that is trained.
        weight_bytes: Weights and optimizer; they do not depend on the batch.
        activation_bytes: Tensors kept for the backward pass; they grow in proportion to the batch.
    """

    model: str
    image_size: int
    latent_shape: tuple[int, int, int]
    batch_size: int
    num_parameters: int
    weight_bytes: int
    activation_bytes: int

    @property
    def total_bytes(self) -> int:
        """Weights, optimizer and activations together."""
        return self.weight_bytes + self.activation_bytes


class GpuAutocast(TorchFunctionMode):
    """What `torch.autocast("cuda")` and fused attention do to the functions that these models call, for meta tensors.

    Attributes:
        dtype: The 16-bit type, or None for float32 throughout.
        weight_copies: The 16-bit copy of each weight. Autocast, too, makes one of each and keeps it to the end.
    """

    _LOW_PRECISION = (F.conv2d, F.linear, F.scaled_dot_product_attention)
    # Of what autocast runs in float32, the models also call exp, pow and rsqrt, but with float32 already: diffusers'
    # RMSNorm converts its input by itself, and what it returns is float32 again.
    _FLOAT32 = (F.group_norm,)

    def __init__(self, dtype: torch.dtype | None):
        super().__init__()
        self.dtype = dtype
        self.weight_copies: dict[torch.nn.Parameter, torch.Tensor] = {}

    def __torch_function__(self, func, types, args=(), kwargs=None):
        """Casts the arguments where autocast would, and calls `func`."""
        kwargs = kwargs or {}
        if self.dtype is not None and func in self._LOW_PRECISION + self._FLOAT32:
            dtype = self.dtype if func in self._LOW_PRECISION else torch.float32
            args = [self._cast(value, dtype) for value in args]
            kwargs = {name: self._cast(value, dtype) for name, value in kwargs.items()}
        if func is F.scaled_dot_product_attention:
            func = _fused_attention
        return func(*args, **kwargs)

    def _cast(self, value: Any, dtype: torch.dtype) -> Any:
        if not isinstance(value, torch.Tensor) or not value.is_floating_point() or value.dtype == dtype:
            return value
        if not isinstance(value, torch.nn.Parameter):
            return value.to(dtype)
        if value not in self.weight_copies:
            self.weight_copies[value] = value.to(dtype)
        return self.weight_copies[value]


class _FusedAttention(torch.autograd.Function):
    """The shapes of a fused kernel, which keeps its inputs, its output, and one float32 per query and head.

    On meta tensors torch would write attention out, and save maps of query by key that a fused kernel never holds.
    """

    @staticmethod
    def forward(ctx, query, key, value):
        out, log_sums = torch.empty_like(query), query.new_empty(query.shape[:-1], dtype=torch.float32)
        ctx.save_for_backward(query, key, value, out, log_sums)
        return out


def _fused_attention(query, key, value, *args, **kwargs):
    return _FusedAttention.apply(query, key, value)


def saved_bytes(step: Callable[[], object], weights: Callable[[], Iterable[torch.Tensor]]) -> int:
    """Bytes of what autograd keeps for the backward pass of `step()`.

    Args:
        step: Runs a forward pass, on any device.
        weights: Called after it, returns the tensors that do not count.

    Returns:
        The sum over distinct storages, however many of the saved tensors are views of one. Single numbers, such as the
        2 of `x / 2`, do not count: they stay with the host.
    """
    storages: set[torch.UntypedStorage] = set()

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.dim():
            storages.add(tensor.untyped_storage())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        step()
    return sum(storage.nbytes() for storage in storages - {tensor.untyped_storage() for tensor in weights()})


def estimate_autoencoder(
    preset: Preset, image_size: int, *, mixed_precision: str = "bf16", batch_size: int | None = None
) -> MemoryEstimate:
    """Memory of `train_autoencoder`.

    Args:
        preset: As `load_preset` returns it; it is fitted to the image size here.
        image_size: Side of a tile in pixels.
        mixed_precision: "no", "bf16" or "fp16".
        batch_size: Tiles in a batch; the preset's by default.

    Raises:
        InputError: If the preset's models cannot halve tiles of that size.
    """
    check_image_size(preset, image_size)
    config = _autoencoder_config(preset.for_image_size(image_size))
    batch_size = config.batch_size if batch_size is None else batch_size
    autocast = GpuAutocast(DTYPES[mixed_precision])
    with torch.device("meta"):
        autoencoder = _build_autoencoder(config, image_size)
        shown = fitted_autoencoder(config, image_size).crop_size
        model = VariationalAutoencoder(autoencoder, config.posterior_std, halves=config.equivariance_weight > 0)
        images = torch.empty(batch_size, 3, shown, shown)
        noise = torch.empty(batch_size, *shape_of_latent(autoencoder, shown))

    def step() -> torch.Tensor:
        with autocast:
            outputs = model(images, noise)
        # Outside of autocast, as in the training.
        return autoencoder_loss(
            outputs,
            images,
            frequency_weight=config.frequency_weight,
            kl_weight=config.kl_weight,
            equivariance_weight=config.equivariance_weight,
        )

    return _estimate("autoencoder", autoencoder, autoencoder, image_size, batch_size, step, autocast)


def estimate_denoiser(
    preset: Preset, image_size: int, num_classes: int, *, mixed_precision: str = "bf16", batch_size: int | None = None
) -> MemoryEstimate:
    """Memory of `train_diffusion`.

    Args:
        preset: As `load_preset` returns it; it is fitted to the image size here.
        image_size: Side of a tile in pixels.
        num_classes: Classes of the tiles, at least 1.
        mixed_precision: "no", "bf16" or "fp16".
        batch_size: Tiles in a batch; the preset's by default.

    Raises:
        InputError: If the preset's models cannot halve tiles of that size.
    """
    check_image_size(preset, image_size)
    preset = preset.for_image_size(image_size)
    # What the preset leaves open has the default of the training.
    config = TrainDiffusionConfig(**preset.diffusion, data=_UNUSED, output=_UNUSED, autoencoder=_UNUSED)
    batch_size = config.batch_size if batch_size is None else batch_size
    autocast = GpuAutocast(DTYPES[mixed_precision])
    with torch.device("meta"):
        autoencoder = _build_autoencoder(_autoencoder_config(preset), image_size)
        latent_shape = shape_of_latent(autoencoder, image_size)
        denoiser = build_denoiser(
            latent_shape[1],
            latent_shape[0],
            num_classes,
            config.channels,
            config.layers_per_block,
            config.attention_levels,
            config.dropout,
        )
        latents = torch.empty(batch_size, *latent_shape)
        class_ids, noise_levels = torch.empty(batch_size, dtype=torch.int64), torch.empty(batch_size)

    def step() -> torch.Tensor:
        with autocast:
            noise = torch.empty_like(latents)
            return flow_loss(denoiser, latents, class_ids, noise, noise_levels, config.denoiser_output)

    return _estimate("denoiser", denoiser, autoencoder, image_size, batch_size, step, autocast)


def _autoencoder_config(preset: Preset) -> TrainAutoencoderConfig:
    # What the preset leaves open has the default of the training.
    return TrainAutoencoderConfig(**preset.autoencoder, data=_UNUSED, output=_UNUSED)


def _build_autoencoder(config: TrainAutoencoderConfig, image_size: int) -> AutoencoderDC:
    return build_autoencoder(
        image_size, config.channels, config.latent_channels, config.layers_per_block, config.plain_finest
    )


def _estimate(
    name: str,
    model: torch.nn.Module,
    autoencoder: AutoencoderDC,
    image_size: int,
    batch_size: int,
    step: Callable[[], object],
    autocast: GpuAutocast,
) -> MemoryEstimate:
    activation_bytes = saved_bytes(step, lambda: [*model.parameters(), *autocast.weight_copies.values()])
    weight_bytes = TRAINED_COPIES * _num_bytes(model.parameters()) + _num_bytes(autocast.weight_copies.values())
    if model is not autoencoder:
        weight_bytes += AVERAGED_COPIES * _num_bytes(model.parameters()) + _num_bytes(autoencoder.parameters())
    return MemoryEstimate(
        model=name,
        image_size=image_size,
        latent_shape=shape_of_latent(autoencoder, image_size),
        batch_size=batch_size,
        num_parameters=sum(parameter.numel() for parameter in model.parameters()),
        weight_bytes=weight_bytes,
        activation_bytes=activation_bytes,
    )


def _num_bytes(tensors: Iterable[torch.Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def table_lines(estimates: Iterable[MemoryEstimate]) -> list[str]:
    """A table with one line per estimate below its heading; memory is in MiB."""
    rows: list[tuple[str, ...]] = [
        ("tiles", "model", "parameters", "latents", "batch", "weights+optimizer", "saved activations", "total")
    ]
    for estimate in estimates:
        parts = (estimate.weight_bytes, estimate.activation_bytes, estimate.total_bytes)
        rows.append(
            (
                f"{estimate.image_size} px",
                estimate.model,
                f"{estimate.num_parameters / 1e6:.2f} M",
                "×".join(map(str, estimate.latent_shape)),
                str(estimate.batch_size),
                *(f"{part / MIB:,.0f} MiB" for part in parts),
            )
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(word.rjust(width) for word, width in zip(row, widths, strict=True)) for row in rows]
