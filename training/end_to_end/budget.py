"""Fits the steps of a distillation to a time: each gets its share, and what one does not need goes to the others."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from histodistill.training.engine.classifier_config import ClassifierConfig
from histodistill.training.evaluation.audit import AuditConfig
from histodistill.training.running.errors import InputError, param
from histodistill.training.running.presets import Changes, Preset
from histodistill.training.running.progress import rounded


# Share of the time that each step gets, of what it does in proportion to its steps or images. Everything comes from
# the denoiser; the autoencoder bounds what it can show; the teacher chooses from the pool and labels it; the
# comparison only tells how good the result is. The audit does as much whatever the time is, but that it can ask the
# denoiser about fewer tiles, which makes its intervals wider.
SHARES = {"diffusion": 0.38, "autoencoder": 0.14, "generate": 0.14, "compare": 0.19, "teacher": 0.1, "audit": 0.05}
# The least that is left of what the preset says: less would be no training any more. The autoencoder costs little, and
# nothing mends what it loses: see docs/trainings.md.
_LEAST, _LEAST_AUTOENCODER = 1 / 20, 1 / 4
# Images of a class in the pool for each one that is kept, at least: some are dropped as copies.
_LEAST_CHOICE = 1.25
# Validation tiles of a classifier, at least.
_LEAST_VALIDATION = 50
# Tiles of either kind that an audit asks the denoiser about, at least.
_LEAST_ASKED = 500
# The options of steps that do less by one of them.
_COUNTED = {"generate": "per_class", "audit": "weight_tiles"}
# Share of the time that is planned with: the rest is for what was not foreseen.
_PLANNED = 0.92
# Halvings of the range in which the factor is looked for.
_ROUNDS = 30


@dataclass(frozen=True)
class Fitted:
    """What was found.

    Attributes:
        changes: The options that change; none where everything fits as it is.
        shares: Step → the part of its preset that it keeps, 1 for all of it.
    """

    changes: Changes
    shares: dict[str, float]

    def line(self, seconds: float) -> str:
        """What the user is told."""
        if not self.changes:
            return f"everything fits into {rounded(seconds)} as it is"
        names = {"diffusion": "denoiser", "generate": "pool", "compare": "comparison", "audit": "privacy audit"}
        told = ", ".join(f"{names.get(step, step)} {share:.0%}" for step, share in self.shares.items())
        return f"fitted to {rounded(seconds)}: of what the preset does, {told}"


def fit(
    preset: Preset, seconds: float, cost: Callable[[Preset], Mapping[str, float]], fixed: Mapping[str, Collection[str]]
) -> Fitted:
    """What of a preset fits into a time.

    Args:
        preset: Fitted to the tiles.
        seconds: The time.
        cost: What the steps of such a preset take: folder of a step → seconds.
        fixed: Step → names of options that stay as they are.

    Raises:
        InputError: If not even the least of everything fits.
    """
    planned = _PLANNED * seconds
    needs = _needs(preset, cost, fixed)

    def at(level: float) -> tuple[dict[str, float], Changes]:
        """What is left where each step gets so many times its share of a second, and the options that say so."""
        kept = {step: min(1.0, max(_least(step), level * SHARES[step] / need)) for step, need in needs.items()}
        return kept, _changes(preset, kept, fixed)

    def total(changes: Changes) -> float:
        return sum(cost(preset.with_changes(changes)).values())

    if total({}) <= planned:
        return Fitted({}, dict.fromkeys(needs, 1.0))
    least = total(at(0.0)[1])
    if least > planned:
        raise InputError(
            f"{param('time_budget')} is too short: the least takes about {rounded(least / _PLANNED)} here: give that, "
            f"a smaller {param('image_size')} or {param('n_per_class')}"
        )
    low, high = 0.0, max(need / SHARES[step] for step, need in needs.items())
    for _ in range(_ROUNDS):
        middle = (low + high) / 2
        low, high = (middle, high) if total(at(middle)[1]) <= planned else (low, middle)
    kept, changes = at(low)
    return Fitted(changes, {step: _left(preset, step, share) for step, share in kept.items()})


def _needs(
    preset: Preset, cost: Callable[[Preset], Mapping[str, float]], fixed: Mapping[str, Collection[str]]
) -> dict[str, float]:
    """Seconds that each step which can do less would be rid of if it did nothing of that; its share goes by them."""
    whole = sum(cost(preset).values())
    needs = {}
    for step in SHARES:
        less = _changes(preset, {step: _least(step)}, fixed)
        saved = whole - sum(cost(preset.with_changes(less)).values()) if less else 0.0
        if saved > 0:
            needs[step] = saved / (1 - _left(preset, step, _least(step)))
    return needs


def _least(step: str) -> float:
    return _LEAST_AUTOENCODER if step == "autoencoder" else _LEAST


def _changes(preset: Preset, kept: Mapping[str, float], fixed: Mapping[str, Collection[str]]) -> Changes:
    """The options of steps that keep so much of what the preset says."""
    changes: dict[str, dict[str, Any]] = {}
    for step, share in kept.items():
        options = {
            name: value for name, value in _less(preset, step, share).items() if name not in fixed.get(step, ())
        }
        if share < 1 and options:
            changes[step] = options
    return changes


def _left(preset: Preset, step: str, share: float) -> float:
    """The part of what one step does that is left by a share of it: more than that where it is less than the least."""
    name = _COUNTED.get(step)
    return _less(preset, step, share)[name] / _whole(preset, step, name) if name else share


def _whole(preset: Preset, step: str, name: str) -> int:
    """What a preset says of an option that `_COUNTED` names, or holds where it says nothing."""
    return int({"weight_tiles": AuditConfig.weight_tiles, **preset.options(step)}[name])


def _less(preset: Preset, step: str, share: float) -> dict[str, Any]:
    """Options of one step by which it does a share of what it does."""

    def part(whole: int, least: int) -> int:
        """A share of a number, but no less than the least of it, if it is as large."""
        return max(min(least, whole), int(share * whole))

    options = preset.options(step)
    if name := _COUNTED.get(step):
        least = math.ceil(_LEAST_CHOICE * preset.select["n_per_class"]) if step == "generate" else _LEAST_ASKED
        return {name: part(_whole(preset, step, name), least)}
    less: dict[str, Any] = {}
    if step == "compare":
        less["train"] = list(preset.with_compared_steps(share).compare)
    for name in ("max_train_steps", "train_pixels"):
        if name in options:
            less[name] = part(options[name], 1)
    if step in ("compare", "teacher"):
        tiles = options.get("validation_tiles", ClassifierConfig.validation_tiles)
        less["validation_tiles"] = part(tiles, _LEAST_VALIDATION)
    return less
