"""Differential privacy of a training: DP-SGD (Abadi et al. 2016, arXiv:1607.00133), accounted for by Opacus.

What is protected is a unit: a group, which is all training tiles of a patient, or a single tile where nothing is known
of groups. In each step every unit takes part with the same probability, independently of the others (Poisson
sampling), a group with some of its tiles. The gradient of each unit, which is the mean of its tiles' gradients, is
clipped to a norm of C, the clipped gradients are summed up, Gaussian noise of standard deviation σC is added to the
sum, and the sum is divided by the expected number of units. The result tells little about whether any one unit took
part: (ε, δ) bounds how little, over all steps together. What is made of the noisy gradients (moments of the optimizer,
moving averages, generated images) costs nothing more.

Queries may come before the steps (see `central_images.py`). Each is a step of another model, with σ and probability of
its own, and all queries and steps are one composition for the accountant.

Two sets of tiles are neighbours here where one of them lacks one unit; the number of units is taken as known.

Which units and tiles take part and the noise must stay secret, or the bound is void. They are functions of a random
key of 256 bits and the step, through SHAKE-256, and never of the seed, which cards publish. The key lies in the output
folder while a training lasts, so that a resumed training equals an uninterrupted one, and is deleted in the end.
Symmetries, noise levels and noise of a tile's views are functions of the seed, the step and the tile, so that one tile
more or less changes nothing about the others.
"""

from __future__ import annotations

import hashlib
import itertools
import secrets
import struct
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.func import functional_call, grad, vmap

from histodistill.selection.near_copies import in_order
from histodistill.training.data.tiles import TileSource
from histodistill.training.engine.steps import step_generator
from histodistill.training.running.errors import InputError, param
from histodistill.training.running.files import write_bytes
from histodistill.training.running.notes import tell, told_by_distill
from histodistill.training.running.training_options import MOST_TILES_PER_GROUP, PrivateTrainingConfig


# The key's file in the output folder, which no card, checkpoint or upload may hold.
KEY_FILE = "private.key"
# 256 bits: nobody guesses it.
_KEY_BYTES = 32
# Renyi differential privacy: an upper bound without numerical integration, at the price of 4 to 7 % more noise. And
# privacy loss random variables (Gopi et al. 2021, arXiv:2106.02848): the noise that is needed, from above, up to
# rounding.
_RDP, _PRV = "rdp", "prv"
# What the key is used for, so that no number serves twice: drawing the units of a step, its noise, and drawing the
# tiles of a group. And for a key of the queries, which draws all of these anew.
_SAMPLING, _NOISE, _MEMBERS, _QUERIES = 0, 1, 2, 3
# How many queries for central images there are, and with which probability a unit takes part in each.
_NUM_QUERIES, _QUERY_RATE = 10, 0.2
# How σ is searched for where queries come first: as Opacus does it where none do.
_FIRST_SIGMA, _LARGEST_SIGMA, _EPSILON_TOLERANCE = 20.0, 1e6, 0.01


class Queries(NamedTuple):
    """What is asked of the units before the first step, in the order in which accountants take it.

    Attributes:
        noise_multiplier: σ of the noise on each answer.
        sample_rate: Probability that a unit takes part in a query.
        num_queries: Queries.
    """

    noise_multiplier: float
    sample_rate: float
    num_queries: int


@dataclass(frozen=True)
class PrivacyPlan:
    """How a training spends its budget.

    Attributes:
        epsilon, delta: The budget, for all steps together.
        max_grad_norm: C, the norm to which the gradient of a unit is clipped.
        noise_multiplier: σ; the noise on the sum of clipped gradients has a standard deviation of σC.
        units_per_step: Expected number of units in a step.
        num_units: Units that the training tiles are of.
        steps: Steps.
        views: Views of a tile whose mean gradient is the gradient of the tile.
        unit: What a unit is: "tile", or one of `GROUP_KINDS`.
        groups: The tiles of each group, int64; None where units are single tiles.
        tiles_per_group: Tiles of a group that take part in a step, at most.
        accountant: What Opacus calls the accountant by which σ was found.
        queries: What comes before the steps and is part of the budget; None where nothing does.
    """

    epsilon: float
    delta: float
    max_grad_norm: float
    noise_multiplier: float
    units_per_step: float
    num_units: int
    steps: int
    views: int = 1
    unit: str = "tile"
    groups: Sequence[np.ndarray] | None = None
    tiles_per_group: int = 1
    accountant: str = _RDP
    queries: Queries | None = None

    @property
    def sample_rate(self) -> float:
        """Probability that a unit takes part in a step."""
        return self.units_per_step / self.num_units

    def draw(self, key: bytes, step: int) -> list[np.ndarray]:
        """The tiles of each unit that takes part in a step, int64.

        Args:
            key: See `secret_key`.
            step: Number of the step from 0.
        """
        units = poisson_indices(self.num_units, self.sample_rate, key, step)
        if self.groups is None:
            return list(units[:, None])
        return [draw_members(self.groups[unit], self.tiles_per_group, key, step, int(unit)) for unit in units]


def plan_privacy(
    config: PrivateTrainingConfig, source: TileSource, num_processes: int = 1, central_share: float = 0.0
) -> PrivacyPlan | None:
    """The plan of a training with `dp_epsilon`, and None without; tells what it protects.

    Args:
        config: Options of the training.
        source: The tiles.
        num_processes: Processes that train.
        central_share: Share of ε that queries for central images would spend alone, 0 to below 1; 0 for no queries.

    Raises:
        InputError: If Opacus is missing, there are no groups where they are to be protected, or a batch, δ, share or
            number of processes is out of range.
    """
    if config.dp_epsilon is None:
        return None
    if num_processes > 1:
        raise InputError(f"{param('dp_epsilon')} trains in one process, and here are {num_processes}: start one")
    train, groups, unit, tiles_per_unit = source.split("train"), None, "tile", 1
    if config.unit_of(train.groups is not None) == "group":
        assert train.groups is not None
        groups, unit = members_of(train.groups), source.group_kind or "group"
        tiles_per_unit = config.dp_tiles_per_group
    num_units = len(train) if groups is None else len(groups)
    if config.batch_size > num_units * tiles_per_unit:
        of_each = "" if groups is None else f" times {param('dp_tiles_per_group')}"
        raise InputError(
            f"{param('batch_size')}={config.batch_size} is out of range: with {param('dp_epsilon')} it must be at "
            f"most {num_units * tiles_per_unit}, the number of training {unit}s{of_each}"
        )
    delta = 0.1 / num_units if config.dp_delta is None else config.dp_delta
    if delta >= 1 / num_units:
        raise InputError(
            f"{param('dp_delta')}={delta:g} is out of range: it must be below 1 / number of training {unit}s, "
            f"{1 / num_units:.2g}"
        )
    units_per_step = config.batch_size / tiles_per_unit
    queries = _plan_queries(config.dp_epsilon, delta, central_share) if central_share else None
    budget = (config.dp_epsilon, delta, units_per_step / num_units, config.max_train_steps)
    accountant, sigma = _RDP, None
    if groups is not None:
        try:
            accountant, sigma = _PRV, noise_multiplier(*budget, _PRV, queries)
        except InputError:  # where its numbers fail, or nothing is enough, which the other one then tells
            accountant = _RDP
    if sigma is None:
        sigma = noise_multiplier(*budget, _RDP, queries)
    asked = f", after {queries.num_queries} queries with σ = {queries.noise_multiplier:.3g}" if queries else ""
    alone = ", since nothing is known of groups" if train.groups is None else ""
    with told_by_distill():  # which has said so before it began
        tell(
            f"differential privacy: ε = {config.dp_epsilon:g} and δ = {delta:.2g} for each of {num_units:,} training "
            f"{unit}s{alone}; each takes part in a step with probability {units_per_step / num_units:.3g}, "
            f"σ = {sigma:.3g}{asked}"
        )
    return PrivacyPlan(
        epsilon=config.dp_epsilon,
        delta=delta,
        max_grad_norm=config.dp_max_grad_norm,
        noise_multiplier=sigma,
        units_per_step=units_per_step,
        num_units=num_units,
        steps=config.max_train_steps,
        views=config.dp_views,
        unit=unit,
        groups=groups,
        tiles_per_group=tiles_per_unit,
        accountant=accountant,
        queries=queries,
    )


def _plan_queries(epsilon: float, delta: float, share: float) -> Queries:
    """The queries that alone would spend this share of ε, by privacy loss random variables.

    The other accountant knows no ε as small as that.

    Raises:
        InputError: If Opacus is missing, or no noise is enough.
    """
    load_opacus()
    try:
        sigma = noise_multiplier(share * epsilon, delta, _QUERY_RATE, _NUM_QUERIES, _PRV)
    except InputError as error:
        raise InputError(
            f"{param('dp_central_share')}={share:g} is out of reach: with {param('dp_epsilon')} {epsilon:g} no noise "
            "is enough for so small a share; give a larger one, or 0"
        ) from error
    return Queries(sigma, _QUERY_RATE, _NUM_QUERIES)


def members_of(groups: np.ndarray) -> list[np.ndarray]:
    """The tiles of each group, int64 in ascending order, of the groups' names, text N."""
    codes = in_order(groups)
    return np.split(np.argsort(codes, kind="stable"), np.cumsum(np.bincount(codes))[:-1])


def load_opacus() -> tuple[ModuleType, ModuleType]:
    """Opacus' accountants, and what it has beside them; `InputError` where it is not installed."""
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


def noise_multiplier(
    epsilon: float,
    delta: float,
    sample_rate: float,
    steps: int,
    accountant: str = _RDP,
    queries: Queries | None = None,
) -> float:
    """The σ with which so many steps spend no more than (ε, δ), by Opacus' accountant.

    Args:
        epsilon: ε, above 0.
        delta: δ, above 0 and below 1.
        sample_rate: Probability that a unit takes part in a step, above 0 and at most 1.
        steps: Steps, at least 1.
        accountant: Its name: "rdp" or "prv".
        queries: What comes before the steps and spends its part of (ε, δ).

    Raises:
        InputError: If Opacus is missing, no noise is enough, or the accountant's numbers fail.
    """
    _, utils = load_opacus()
    try:
        with warnings.catch_warnings(), np.errstate(all="ignore"):  # as where every unit takes part in each step
            # That the best order is at the end of the range: the bound holds, and could be a little tighter.
            warnings.filterwarnings("ignore", message="Optimal order")
            if queries:
                return _noise_after(queries, epsilon, delta, sample_rate, steps, accountant)
            return utils.get_noise_multiplier(
                target_epsilon=epsilon,
                target_delta=delta,
                sample_rate=sample_rate,
                steps=steps,
                accountant=accountant,
            )
    except (ValueError, RuntimeError) as error:
        raise InputError(
            f"{param('dp_epsilon')}={epsilon:g} is out of reach: give more, or fewer {param('max_train_steps')}"
        ) from error


def _noise_after(
    queries: Queries, epsilon: float, delta: float, sample_rate: float, steps: int, accountant: str
) -> float:
    """`noise_multiplier` where queries come first, which Opacus does not search for; as exact as its search.

    Raises:
        ValueError: If no noise is enough.
    """

    def spent(sigma: float) -> float:
        return epsilon_spent(sigma, delta, sample_rate, steps, accountant, queries)

    low, high = 0.0, _FIRST_SIGMA
    while (found := spent(high)) > epsilon:
        high *= 2
        if high > _LARGEST_SIGMA:
            raise ValueError("the queries leave nothing")
    while epsilon - found > _EPSILON_TOLERANCE:
        middle = (low + high) / 2
        of_middle = spent(middle)
        if of_middle <= epsilon:
            high, found = middle, of_middle
        else:
            low = middle
    return high


def epsilon_spent(
    sigma: float,
    delta: float,
    sample_rate: float,
    steps: int,
    accountant: str = _RDP,
    queries: Queries | None = None,
) -> float:
    """The ε that so many steps with noise σ, and what comes before them, spend at δ, by Opacus' accountant.

    Args:
        sigma: See `PrivacyPlan.noise_multiplier`.
        delta, sample_rate, steps, accountant, queries: See `noise_multiplier`.

    Raises:
        InputError: If Opacus is missing.
    """
    accountants, _ = load_opacus()
    of_all = accountants.create_accountant(accountant)
    of_all.history = [*([queries] if queries else []), (sigma, sample_rate, steps)]
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.filterwarnings("ignore", message="Optimal order")
        return float(of_all.get_epsilon(delta=delta))


def privacy_record(plan: PrivacyPlan) -> dict[str, Any]:
    """What a stage's record says of the budget: what was spent, on what, and by which accountant."""
    from importlib import metadata

    budget = (plan.noise_multiplier, plan.delta, plan.sample_rate, plan.steps, plan.accountant, plan.queries)
    of_queries = {}
    if plan.queries:
        sigma, rate, num_queries = plan.queries
        # What they would spend alone, by the accountant that they were planned with.
        alone = epsilon_spent(sigma, plan.delta, rate, num_queries, _PRV)
        of_queries = {"central_images": {**plan.queries._asdict(), "epsilon_alone": alone}}
    of_groups = {} if plan.groups is None else {"tiles_per_group": plan.tiles_per_group}
    return {
        "epsilon": epsilon_spent(*budget),
        "delta": plan.delta,
        "unit": plan.unit,
        "num_units": plan.num_units,
        "neighbours": f"with or without one training {plan.unit}",
        **of_groups,
        "noise_multiplier": plan.noise_multiplier,
        "max_grad_norm": plan.max_grad_norm,
        "sample_rate": plan.sample_rate,
        "steps": plan.steps,
        "views": plan.views,
        **of_queries,
        "accountant": f"{plan.accountant}, opacus {metadata.version('opacus')}",
    }


def compose(*records: dict[str, Any]) -> dict[str, float]:
    """ε and δ of several stages on the same units: by basic composition, their sums.

    Args:
        records: See `privacy_record`; of each, `epsilon` and `delta` count.

    Returns:
        A dict with `epsilon` and `delta`.
    """
    return {name: sum(record[name] for record in records) for name in ("epsilon", "delta")}


def autoencoder_privacy(
    record: dict[str, Any], data: str, is_public: bool, unit: str = "tile"
) -> dict[str, Any] | None:
    """What the autoencoder of a private denoiser has spent; None where its tiles are public.

    Args:
        record: The autoencoder's stage record.
        data: Fingerprint of the denoiser's tiles.
        is_public: Whether the user says that the autoencoder's tiles are public.
        unit: See `PrivacyPlan`, of the denoiser.

    Returns:
        The `privacy_record` in the autoencoder's record, or None.

    Raises:
        InputError: If it is neither private nor public, protects another unit, or saw other tiles, or public ones
            that are these.
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
    spent_on = record["privacy"].get("unit", "tile")  # of earlier versions always that
    if spent_on != unit:
        raise InputError(
            f"the autoencoder spent its budget on each {spent_on}, and the denoiser is to spend it on each {unit}: "
            f"train both with the same {param('dp_unit')}"
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


def key_of_queries(key: bytes) -> bytes:
    """The key of what comes before the steps, so that no step shares noise or sampling with a query.

    Args:
        key: See `secret_key`.

    Returns:
        32 bytes, which without the key cannot be told from random ones.
    """
    return hashlib.shake_256(key + struct.pack("<Q", _QUERIES)).digest(_KEY_BYTES)


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


def draw_members(members: np.ndarray, most: int, key: bytes, step: int, group: int) -> np.ndarray:
    """The tiles of a group that take part in a step: all, or `most` of them, drawn at random.

    Args:
        members: The tiles of the group, int64.
        most: At least 1.
        key: See `secret_key`.
        step: Number of the step from 0.
        group: Number of the group from 0.
    """
    if len(members) <= most:
        return members
    order = np.argsort(_uniform(len(members), key, _MEMBERS, step, group), kind="stable")
    return np.sort(members[order[:most]])


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
    sizes: Iterable[Sequence[int]] | None = None,
) -> dict[str, torch.Tensor]:
    """Sum over units of the gradient of each, clipped to `max_norm` over all parameters together.

    The gradient of a unit is the mean of those of its tiles.

    Args:
        module: Its layers must treat the tiles of a batch apart, as all but batch norms do.
        loss: `loss(call, *tile)` gives the scalar loss of one tile; `call` stands for the module. Autocast belongs
            in here: the sum of gradients must not be rounded.
        chunks: Tensors with one entry per tile, as many tiles at a time as fit into memory.
        max_norm: Above 0. A gradient that is not finite counts as 0.
        sizes: Of each chunk, how many of its tiles, one after the other, each unit has; None where each is a unit.

    Returns:
        Tensors like the parameters, by name.
    """
    parameters = {name: value.detach() for name, value in module.named_parameters() if value.requires_grad}
    sums = {name: torch.zeros_like(value) for name, value in parameters.items()}

    def loss_of_tile(values: dict[str, torch.Tensor], *tile: torch.Tensor) -> torch.Tensor:
        return loss(lambda *args, **kwargs: functional_call(module, values, args, kwargs), *tile)

    for tiles, of_units in zip(chunks, itertools.repeat(None) if sizes is None else sizes, strict=False):
        gradients = vmap(grad(loss_of_tile), in_dims=(None, *(0 for _ in tiles)))(parameters, *tiles)
        if of_units is not None:
            gradients = {
                name: torch.stack([unit.mean(dim=0) for unit in value.split(list(of_units))])
                for name, value in gradients.items()
            }
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
    parts = list(in_chunks(plan.draw(key, step)))
    sums = clipped_gradient_sum(
        module,
        loss,
        (make_tiles(np.concatenate(units)) for units in parts),
        plan.max_grad_norm,
        None if plan.groups is None else [[len(unit) for unit in units] for units in parts],
    )
    deviation = plan.noise_multiplier * plan.max_grad_norm
    parameters = dict(module.named_parameters())
    for part, (name, total) in enumerate(sums.items()):
        noisy = total.double().cpu() + deviation * gaussian(total.shape, key, step, part)
        # Divided by the expected number of units, since the real one is not to be told. The gradient lies in memory
        # as its parameter does, which fused optimizers rely on.
        parameters[name].grad = torch.empty_like(parameters[name]).copy_(noisy / plan.units_per_step)


def in_chunks(units: Sequence[np.ndarray]) -> Iterator[list[np.ndarray]]:
    """Units one after the other, each with its tiles, as many at a time as have gradients that fit into memory."""
    chunk: list[np.ndarray] = []
    for unit in units:
        if chunk and sum(map(len, chunk)) + len(unit) > MOST_TILES_PER_GROUP:
            yield chunk
            chunk = []
        chunk.append(unit)
    if chunk:
        yield chunk
