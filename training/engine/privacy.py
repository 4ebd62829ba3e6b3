"""Differential privacy of a training: DP-SGD (Abadi et al. 2016, arXiv:1607.00133), accounted for by Opacus.

In each step every training tile takes part with the same probability, independently of the others (Poisson sampling).
The gradient of each tile is clipped to a norm of C, the clipped gradients are summed up, Gaussian noise of standard
deviation σC is added to the sum, and the sum is divided by the expected size of the batch. The result tells little
about whether any one tile took part: (ε, δ) bounds how little, over all steps together. What is made of the noisy
gradients (moments of the optimizer, moving averages, generated images) costs nothing more.

Two sets of tiles are neighbours here where one of them lacks one training tile; the number of tiles is taken as known.

Which tiles take part and the noise must stay secret, or the bound is void. Both are therefore functions of a random
key of 256 bits and the step, through SHAKE-256, and never of the seed, which cards publish. The key lies in the output
folder while a training lasts, so that a resumed training equals an uninterrupted one, and is deleted in the end.
Symmetries, noise levels and noise of a tile's views are functions of the seed, the step and the tile, so that one tile
more or less changes nothing about the others.
"""

from __future__ import annotations

import hashlib
import secrets
import struct
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch.func import functional_call, grad, vmap

from histodistill.training.engine.steps import step_generator
from histodistill.training.running.errors import InputError, param
from histodistill.training.running.files import write_bytes
from histodistill.training.running.training_options import PrivateTrainingConfig


# The key's file in the output folder, which no card, checkpoint or upload may hold.
KEY_FILE = "private.key"
# 256 bits: nobody guesses it.
_KEY_BYTES = 32
# Renyi differential privacy: an upper bound without numerical integration, at the price of 4 to 7 % more noise.
_ACCOUNTANT = "rdp"
# Tiles whose gradients are in memory at the same time; each takes as much as the weights.
_CHUNK = 16
# What the key is used for, so that no number serves twice: drawing the tiles of a step, and its noise.
_SAMPLING, _NOISE = 0, 1


@dataclass(frozen=True)
class PrivacyPlan:
    """How a training spends its budget.

    Attributes:
        epsilon, delta: The budget, for all steps together.
        max_grad_norm: C, the norm to which the gradient of a tile is clipped.
        noise_multiplier: σ; the noise on the sum of clipped gradients has a standard deviation of σC.
        batch_size: Expected number of tiles in a step.
        num_tiles: Training tiles.
        steps: Steps.
        views: Views of a tile whose mean gradient is the gradient of the tile.
    """

    epsilon: float
    delta: float
    max_grad_norm: float
    noise_multiplier: float
    batch_size: int
    num_tiles: int
    steps: int
    views: int = 1

    @property
    def sample_rate(self) -> float:
        """Probability that a tile takes part in a step."""
        return self.batch_size / self.num_tiles


def plan_privacy(config: PrivateTrainingConfig, num_tiles: int, num_processes: int = 1) -> PrivacyPlan | None:
    """The plan of a training with `dp_epsilon`, and None without.

    Args:
        config: Options of the training.
        num_tiles: Training tiles.
        num_processes: Processes that train.

    Raises:
        InputError: If Opacus is missing, or a batch, δ or number of processes is out of range.
    """
    if config.dp_epsilon is None:
        return None
    if num_processes > 1:
        raise InputError(f"{param('dp_epsilon')} trains in one process, and here are {num_processes}: start one")
    if config.batch_size > num_tiles:
        raise InputError(
            f"{param('batch_size')}={config.batch_size} is out of range: with {param('dp_epsilon')} it must be at "
            f"most {num_tiles}, the number of training tiles"
        )
    delta = 0.1 / num_tiles if config.dp_delta is None else config.dp_delta
    if delta >= 1 / num_tiles:
        raise InputError(
            f"{param('dp_delta')}={delta:g} is out of range: it must be below 1 / number of training tiles, "
            f"{1 / num_tiles:.2g}"
        )
    return PrivacyPlan(
        epsilon=config.dp_epsilon,
        delta=delta,
        max_grad_norm=config.dp_max_grad_norm,
        noise_multiplier=noise_multiplier(
            config.dp_epsilon, delta, config.batch_size / num_tiles, config.max_train_steps
        ),
        batch_size=config.batch_size,
        num_tiles=num_tiles,
        steps=config.max_train_steps,
        views=config.dp_views,
    )


def _opacus() -> tuple[ModuleType, ModuleType]:
    """Opacus' accountants, and what it has beside them."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what it says while it is imported is about its own code
            from opacus import accountants
            from opacus.accountants import utils
    except ImportError as error:
        raise InputError(
            f"{param('dp_epsilon')} needs opacus, which is not installed: pip install 'histodistill[dp]', or pip "
            "install opacus"
        ) from error
    return accountants, utils


def noise_multiplier(epsilon: float, delta: float, sample_rate: float, steps: int) -> float:
    """The σ with which so many steps spend no more than (ε, δ), by Opacus' accountant.

    Args:
        epsilon: ε, above 0.
        delta: δ, above 0 and below 1.
        sample_rate: Probability that a tile takes part in a step, above 0 and at most 1.
        steps: Steps, at least 1.

    Raises:
        InputError: If Opacus is missing, or no noise is enough.
    """
    _, utils = _opacus()
    try:
        with warnings.catch_warnings():
            # That the best order is at the end of the range: the bound holds, and could be a little tighter.
            warnings.filterwarnings("ignore", message="Optimal order")
            return utils.get_noise_multiplier(
                target_epsilon=epsilon,
                target_delta=delta,
                sample_rate=sample_rate,
                steps=steps,
                accountant=_ACCOUNTANT,
            )
    except ValueError as error:
        raise InputError(
            f"{param('dp_epsilon')}={epsilon:g} is out of reach: give more, or fewer {param('max_train_steps')}"
        ) from error


def epsilon_spent(sigma: float, delta: float, sample_rate: float, steps: int) -> float:
    """The ε that so many steps with noise σ spend at δ, by Opacus' accountant.

    Args:
        sigma: See `PrivacyPlan.noise_multiplier`.
        delta, sample_rate, steps: See `noise_multiplier`.

    Raises:
        InputError: If Opacus is missing.
    """
    accountants, _ = _opacus()
    accountant = accountants.create_accountant(_ACCOUNTANT)
    accountant.history = [(sigma, sample_rate, steps)]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Optimal order")
        return float(accountant.get_epsilon(delta=delta))


def privacy_record(plan: PrivacyPlan) -> dict[str, Any]:
    """What a stage's record says of the budget: what was spent, on what, and by which accountant."""
    from importlib import metadata

    return {
        "epsilon": epsilon_spent(plan.noise_multiplier, plan.delta, plan.sample_rate, plan.steps),
        "delta": plan.delta,
        "neighbours": "with or without one training tile",
        "noise_multiplier": plan.noise_multiplier,
        "max_grad_norm": plan.max_grad_norm,
        "sample_rate": plan.sample_rate,
        "steps": plan.steps,
        "views": plan.views,
        "accountant": f"{_ACCOUNTANT}, opacus {metadata.version('opacus')}",
    }


def compose(*records: dict[str, Any]) -> dict[str, float]:
    """ε and δ of several stages on the same tiles: by basic composition, their sums.

    Args:
        records: See `privacy_record`; of each, `epsilon` and `delta` count.

    Returns:
        A dict with `epsilon` and `delta`.
    """
    return {name: sum(record[name] for record in records) for name in ("epsilon", "delta")}


def autoencoder_privacy(record: dict[str, Any], data: str, is_public: bool) -> dict[str, Any] | None:
    """What the autoencoder of a private denoiser has spent; None where its tiles are public.

    Args:
        record: The autoencoder's stage record.
        data: Fingerprint of the denoiser's tiles.
        is_public: Whether the user says that the autoencoder's tiles are public.

    Returns:
        The `privacy_record` in the autoencoder's record, or None.

    Raises:
        InputError: If it is neither private nor public, or saw other tiles, or public ones that are these.
    """
    same = record["settings"]["data"] == data
    if is_public:
        # One from elsewhere that was taken as it is has seen of these tiles what its latents were measured on.
        if record["settings"].get("measured_on") == "validation":
            return None
        if same:
            raise InputError(
                f"{param('dp_public_autoencoder')} contradicts the autoencoder's record, by which it was trained on "
                f"these very tiles: train it with {param('dp_epsilon')}, or on public tiles"
            )
        return None
    if "privacy" not in record:
        raise InputError(
            f"the autoencoder was trained without differential privacy: train it with {param('dp_epsilon')}, or give "
            f"{param('dp_public_autoencoder')} where its tiles are public"
        )
    if not same:
        raise InputError(
            "the autoencoder was trained on other tiles than these: train it on the same, with the same "
            f"{param('audit_share')}"
        )
    return record["privacy"]


def secret_key(folder: str | Path) -> bytes:
    """The key of a training, from its output folder; a new one from the operating system where there is none.

    Args:
        folder: The output folder of the training.

    Returns:
        32 bytes.

    Raises:
        InputError: If the file is damaged.
    """
    path = Path(folder) / KEY_FILE
    try:
        key = path.read_bytes()
    except FileNotFoundError:
        key = secrets.token_bytes(_KEY_BYTES)
        write_bytes(path, key, private=True)
    if len(key) != _KEY_BYTES:
        raise InputError(f"{path} is damaged: delete it together with the checkpoints beside it, and begin anew")
    return key


def forget_key(folder: str | Path) -> None:
    """Deletes the key of a finished training: nobody needs to make its noise again."""
    (Path(folder) / KEY_FILE).unlink(missing_ok=True)


def poisson_indices(num_items: int, sample_rate: float, key: bytes, step: int) -> np.ndarray:
    """The items that take part in a step: each with the same probability, independently of the others.

    Args:
        num_items: Number of items N.
        sample_rate: The probability, 0 to 1.
        key: See `secret_key`.
        step: Number of the step from 0.

    Returns:
        Indices int64, ascending; their number differs from step to step and can be 0.
    """
    return np.flatnonzero(_uniform(num_items, key, _SAMPLING, step, 0) < sample_rate)


def gaussian(shape: Sequence[int], key: bytes, step: int, part: int) -> torch.Tensor:
    """Standard normal numbers (Box & Muller 1958).

    Args:
        shape: Of the result.
        key: See `secret_key`.
        step: Number of the step from 0.
        part: Keeps the tensors of a step apart, from 0.

    Returns:
        float64 of that shape, on the CPU.
    """
    count = int(np.prod(shape))
    radii, angles = _uniform(2 * ((count + 1) // 2), key, _NOISE, step, part).reshape(2, -1)
    radii, angles = np.sqrt(-2 * np.log(radii)), 2 * np.pi * angles
    numbers = np.concatenate([radii * np.cos(angles), radii * np.sin(angles)])[:count]
    return torch.from_numpy(numbers.reshape(tuple(shape)))


def _uniform(count: int, key: bytes, purpose: int, step: int, part: int) -> np.ndarray:
    """Uniform numbers float64 in (0, 1] of 53 bits, which without the key cannot be told from random ones."""
    message = key + struct.pack("<QQQ", purpose, step, part)
    words = np.frombuffer(hashlib.shake_256(message).digest(8 * count), dtype="<u8")
    return ((words >> np.uint64(11)).astype(np.float64) + 1) * 2.0**-53


def tile_generators(training: str, seed: int, step: int, indices: Iterable[int]) -> list[torch.Generator]:
    """A CPU generator for the views of each tile in one step, whichever other tiles take part.

    Args:
        training: What is trained, in words.
        seed: Seed of the run, at least 0.
        step: Number of the step from 0.
        indices: The tiles.
    """
    return [step_generator(f"views of a tile of the {training}", seed, step, int(index)) for index in indices]


def clipped_gradient_sum(
    module: torch.nn.Module,
    loss: Callable[..., torch.Tensor],
    chunks: Iterable[Sequence[torch.Tensor]],
    max_norm: float,
) -> dict[str, torch.Tensor]:
    """Sum over tiles of the gradient of each, clipped to `max_norm` over all parameters together.

    Args:
        module: Its layers must treat the tiles of a batch apart, as all but batch norms do.
        loss: `loss(call, *tile)` gives the scalar loss of one tile; `call` stands for the module. Autocast belongs
            in here: the sum of gradients must not be rounded.
        chunks: Tensors with one entry per tile, as many tiles at a time as fit into memory.
        max_norm: Above 0. A gradient that is not finite counts as 0.

    Returns:
        Tensors like the parameters, by name.
    """
    parameters = {name: value.detach() for name, value in module.named_parameters() if value.requires_grad}
    sums = {name: torch.zeros_like(value) for name, value in parameters.items()}

    def loss_of_tile(values: dict[str, torch.Tensor], *tile: torch.Tensor) -> torch.Tensor:
        return loss(lambda *args, **kwargs: functional_call(module, values, args, kwargs), *tile)

    for tiles in chunks:
        gradients = vmap(grad(loss_of_tile), in_dims=(None, *(0 for _ in tiles)))(parameters, *tiles)
        norms = sum(value.flatten(1).double().square().sum(dim=1) for value in gradients.values()).sqrt()
        finite = torch.isfinite(norms)
        all_finite = bool(finite.all())  # which waits for the device: once, not for each parameter
        # A little less than the norm, so that rounding does not exceed it.
        factors = torch.where(finite, (1 - 1e-6) * max_norm / norms, 0).clamp(max=1).float()
        for name, value in gradients.items():
            if not all_finite:
                value = torch.where(finite.view(-1, *[1] * (value.ndim - 1)), value, 0)
            sums[name] += torch.tensordot(factors.to(value.dtype), value, dims=1)
    return sums


def set_private_gradients(
    module: torch.nn.Module,
    loss: Callable[..., torch.Tensor],
    make_tiles: Callable[[np.ndarray], Sequence[torch.Tensor]],
    plan: PrivacyPlan,
    key: bytes,
    step: int,
) -> None:
    """Gives each parameter of a module its noisy gradient of one step.

    Args:
        module, loss: See `clipped_gradient_sum`.
        make_tiles: Makes the tensors of the tiles with given indices; what it makes of a tile must not depend on the
            others.
        plan: Of the training.
        key: See `secret_key`.
        step: Number of the step from 0.
    """
    indices = poisson_indices(plan.num_tiles, plan.sample_rate, key, step)
    chunks = (make_tiles(indices[first : first + _CHUNK]) for first in range(0, len(indices), _CHUNK))
    sums = clipped_gradient_sum(module, loss, chunks, plan.max_grad_norm)
    deviation = plan.noise_multiplier * plan.max_grad_norm
    parameters = dict(module.named_parameters())
    for part, (name, total) in enumerate(sums.items()):
        noisy = total.double().cpu() + deviation * gaussian(total.shape, key, step, part)
        # Divided by the expected size of the batch, since the real one is not to be told. The gradient lies in memory
        # as its parameter does, which fused optimizers rely on.
        parameters[name].grad = torch.empty_like(parameters[name]).copy_(noisy / plan.batch_size)
