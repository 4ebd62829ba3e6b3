"""Latents of the training tiles, encoded once before a denoiser is trained on them, and kept as 16-bit numbers."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch

from histodistill.training.data.latent_store import Block, LatentsPlan, StoredLatents, open_latents
from histodistill.training.data.pixels import ready_for
from histodistill.training.data.tile_cache import TileCache
from histodistill.training.data.tile_store import folders_of
from histodistill.training.data.tiles import Tiles
from histodistill.training.running.errors import InputError, param


#: Types of the numbers by their names.
DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16}
# Grows when the same tiles would be encoded otherwise.
_FORMAT = 1
# Pixels of the images that are encoded at a time, and how many images that are at most.
_PIXELS_PER_BATCH, _LARGEST_BATCH = 2**20, 256
# Batches of tiles in a block: what a process does at a time, and a killed one loses.
_BATCHES_PER_BLOCK = 4


@dataclass(frozen=True)
class Encoding:
    """How latents are made.

    Attributes:
        encode: Makes latents float N×C×h×w of tiles uint8 N×H×W×3 in symmetries int64 N.
        decides: What decides the latents beside the tiles, such as the autoencoder's weights; JSON can hold it.
        latent_shape: (C, h, w).
        symmetries: Views of each tile: 8, or 1 for the tile as it is.
        device: Where they are made.
        what, option: What messages call them, and the parameter that says what makes them.
    """

    encode: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
    decides: Sequence[Any]
    latent_shape: tuple[int, int, int]
    symmetries: int
    device: torch.device
    what: str = "latents"
    option: str = "autoencoder"


def plan_latents(encoding: Encoding, tiles: Tiles, source: str, dtype: str) -> LatentsPlan:
    """Which latents are to be kept.

    Args:
        encoding: How they are made.
        tiles: Whose they are.
        source: What the source of the tiles is called.
        dtype: One of `DTYPES`.
    """
    side = tiles.images.shape[1]
    shape = (len(tiles), encoding.symmetries, *encoding.latent_shape)
    device = torch.cuda.get_device_name(encoding.device) if encoding.device.type == "cuda" else encoding.device.type
    # Other software and other devices round otherwise.
    made_by = [_FORMAT, torch.__version__, diffusers.__version__, device, _batch_size(side)]
    decides = [made_by, tiles.fingerprint(), shape, dtype, *encoding.decides]
    key = hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()
    return LatentsPlan(key, source, side, shape, dtype, _BATCHES_PER_BLOCK * _batch_size(side), encoding.what)


def _batch_size(side: int) -> int:
    """Images of a size that are encoded at a time, which may decide how sums are rounded."""
    return max(1, min(_LARGEST_BATCH, _PIXELS_PER_BATCH // side**2))


def make_block(encoding: Encoding, tiles: Tiles, dtype: str, first: int, stop: int) -> Block:
    """The latents of tiles from `first` up to `stop`, rounded, and what that costs.

    Raises:
        InputError: For latents that the type cannot hold.
    """
    bits = np.empty((stop - first, encoding.symmetries, *encoding.latent_shape), np.int16)
    largest, squares = 0.0, 0.0
    for start in range(first, stop, _batch_size(tiles.images.shape[1])):
        end = min(start + _batch_size(tiles.images.shape[1]), stop)
        # torch cannot take read-only arrays without a warning.
        images = torch.from_numpy(np.require(tiles.images[start:end], requirements=["C", "W"]))
        for symmetry in range(encoding.symmetries):
            latents = encoding.encode(images, torch.full((end - start,), symmetry)).float()
            rounded = latents.to(DTYPES[dtype])
            errors = (rounded.float() - latents).abs()
            largest = max(largest, errors.max().item())
            squares += errors.double().square().sum().item()
            if not math.isfinite(squares):
                another = f"{param('latent_cache')}, or another " if encoding.what == "latents" else ""
                raise InputError(
                    f"{encoding.what} of these tiles cannot be kept as {dtype}, since some are too large or no "
                    f"numbers: give another {another}{param(encoding.option)}"
                )
            bits[start - first : end - first, symmetry] = rounded.cpu().contiguous().view(torch.int16).numpy()
    return Block(bits, largest, squares)


def keep_latents(
    cache: TileCache,
    encoding: Encoding,
    plan: LatentsPlan,
    tiles: Tiles,
    is_shown: bool,
    beside: Collection[Path] = (),
) -> StoredLatents:
    """Latents of tiles in the cache; what is not there is made.

    Args:
        cache: The cache.
        encoding: How they are made.
        plan: Which ones: see `plan_latents`.
        tiles: Whose they are.
        is_shown: Whether this process shows how far it is.
        beside: Folders of what else the training reads, which is not taken out to make room.

    Raises:
        InputError: If they cannot be kept.
    """
    return open_latents(
        cache,
        plan,
        lambda first, stop: make_block(encoding, tiles, plan.dtype, first, stop),
        keep=[*folders_of([tiles.images]), *beside],
        is_shown=is_shown,
    )


class KeptLatents:
    """Latents that a training reads.

    Args:
        stored: Where they are.
        dtype: One of `DTYPES`, the type of their numbers.
    """

    def __init__(self, stored: StoredLatents, dtype: str):
        self.stored, self.dtype = stored, dtype

    def read(self, indices: np.ndarray, symmetries: torch.Tensor, device: torch.device) -> torch.Tensor:
        """Latents of tiles in their symmetries, N×C×h×w on the CPU, ready for a device.

        Args:
            indices: The tiles, int64 N.
            symmetries: int64 N, on the CPU.
            device: Where they are to be.
        """
        bits = torch.from_numpy(self.stored.read(indices, symmetries.numpy()))
        return ready_for(device, bits.view(DTYPES[self.dtype]))
