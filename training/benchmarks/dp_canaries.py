"""Looks for leaks in training with differential privacy by patient: canaries, in small runs of one training each.

    python -m histodistill.training.benchmarks.dp_canaries --runs 20

This is the one-run audit of Steinke, Nasr and Jagielski 2023 (arXiv:2305.08846). Each canary is a patient with a
direction of its own, in which all its tiles pull as hard as they can; a fair coin tells whether it takes part.
Somebody who sees the noisy sums of all steps guesses that those whose directions stand out most took part, and that
those that stand out least did not. From how many guesses are right follows a bound from below on ε, with a confidence
of 95 %. It must lie below the ε that is claimed. A variant that is broken on purpose clips each tile by itself, with
noise for one: its bound must lie above, or the audit would see nothing.

The model is linear and its gradients do not depend on its weights: nothing but sampling, clipping, noise and
accountant is at stake, and these are the ones of `engine/privacy.py`.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from histodistill.training.running.options import StepConfig, StepParser, config, option, run_script
from histodistill.training.running.training_options import MOST_TILES_PER_GROUP


if TYPE_CHECKING:
    import numpy as np

    from histodistill.training.engine.privacy import PrivacyPlan

# Guesses are made on this share of the canaries: half of them those that stand out most, half those that do least.
_GUESSED = 0.5
# The error of the bound from below.
_ERROR = 0.05
# A bound is looked for up to this ε.
_LARGEST_EPSILON = 50.0


@config
class DpCanariesConfig(StepConfig):
    """Options of `dp_canaries`."""

    runs: int = option("trainings of either variant", default=20, at_least=1)
    epsilon: float = option("the ε that is claimed", default=1.0, above=0)
    delta: float = option("the δ that is claimed", default=1e-5, above=0, below=1)
    canaries: int = option("patients that take part by a coin", default=120, at_least=4)
    patients: int = option("patients that always take part", default=20, at_least=0)
    tiles: int = option(
        "tiles of each patient, all of which may take part in a step",
        default=16,
        at_least=1,
        at_most=MOST_TILES_PER_GROUP,
    )
    steps: int = option("steps of a training", default=3, at_least=1)
    sample_rate: float = option("probability that a patient takes part in a step", default=0.7, above=0, at_most=1)
    seed: int = option("of all draws", default=0, at_least=0, below=2**31)
    output: Path | None = option("JSON file with all figures", default=None)


def make_parser() -> StepParser[DpCanariesConfig]:
    """The parser of the command line."""
    return StepParser(
        DpCanariesConfig, prog="python -m histodistill.training.benchmarks.dp_canaries", description=__doc__
    )


def run(config: DpCanariesConfig) -> dict[str, list[float]]:
    """Audits both variants, and prints what was found.

    Returns:
        `by_patient` and `per_tile`, the bounds from below on ε, one for each run; the second is of the variant that is
        broken. The JSON file holds them, too.

    Raises:
        InputError: If Opacus is missing, or no noise is enough for the ε.
    """
    from histodistill.training.engine.privacy import noise_multiplier
    from histodistill.training.running.files import write_json

    sigma = noise_multiplier(config.epsilon, config.delta, config.sample_rate, config.steps, "prv")
    print(f"claimed: ε = {config.epsilon:g} and δ = {config.delta:g} for each patient, with σ = {sigma:.3g}")
    found: dict[str, list[float]] = {}
    for name, is_broken in (("by_patient", False), ("per_tile", True)):
        bounds = found[name] = [_one_run(config, number, sigma, is_broken) for number in range(config.runs)]
        above = sum(bound > config.epsilon for bound in bounds)
        print(f"{name}: ε is at least {min(bounds):.2f} to {max(bounds):.2f}, above what is claimed in {above} runs")
    if config.output is not None:
        write_json(config.output, found)
    return found


def _one_run(config: DpCanariesConfig, number: int, sigma: float, is_broken: bool) -> float:
    """The bound from below on ε of one training."""
    import numpy as np

    from histodistill.selection.streams import stream

    rng = stream("canaries of differential privacy", config.seed, number)
    took_part = rng.random(config.canaries) < 0.5
    scores = _scores(config, took_part, rng, sigma, is_broken)
    order, of_a_kind = np.argsort(scores), round(_GUESSED * config.canaries / 2)
    right = int(took_part[order[-of_a_kind:]].sum() + (~took_part[order[:of_a_kind]]).sum())
    return epsilon_at_least(right, 2 * of_a_kind, config.canaries, config.delta)


def _scores(
    config: DpCanariesConfig, took_part: np.ndarray, rng: np.random.Generator, sigma: float, is_broken: bool
) -> np.ndarray:
    """How much the noisy sums of a training stand out in the direction of each canary, float64 N."""
    import numpy as np
    import torch

    from histodistill.training.engine.privacy import PrivacyPlan, set_private_gradients

    # Rows are the gradients of the patients' tiles, far beyond the norm to which they are clipped.
    canaries = 100 * np.eye(config.canaries)[took_part]
    others = rng.normal(size=(config.patients, config.canaries))
    tiles = torch.from_numpy(np.repeat(np.concatenate([canaries, others]), config.tiles, axis=0)).float()
    num_units = len(tiles) // config.tiles
    plan = PrivacyPlan(
        epsilon=config.epsilon,
        delta=config.delta,
        max_grad_norm=1.0,
        noise_multiplier=sigma,
        units_per_step=config.sample_rate * num_units,
        num_units=num_units,
        steps=config.steps,
        unit="patient",
        groups=list(np.arange(len(tiles)).reshape(num_units, config.tiles)),
        tiles_per_group=config.tiles,
        accountant="prv",
    )
    if is_broken:
        plan = _clipped_by_tile(plan)
    model = torch.nn.Linear(config.canaries, 1, bias=False)
    key, scores = rng.bytes(32), np.zeros(config.canaries)
    for step in range(config.steps):
        set_private_gradients(model, lambda call, x: call(x).sum(), lambda rows: [tiles[rows]], plan, key, step)
        assert model.weight.grad is not None
        scores += plan.units_per_step * model.weight.grad[0].double().numpy()
    return scores


def _clipped_by_tile(plan: PrivacyPlan) -> PrivacyPlan:
    """The same, but broken: the tiles of the patients that are drawn are taken for units of their own."""
    import dataclasses

    class ClippedByTile(type(plan)):  # type: ignore[misc]
        def draw(self, key: bytes, step: int) -> list[np.ndarray]:
            return [tile for unit in super().draw(key, step) for tile in unit[:, None]]

    return ClippedByTile(**{field.name: getattr(plan, field.name) for field in dataclasses.fields(plan)})


def epsilon_at_least(right: int, guesses: int, canaries: int, delta: float) -> float:
    """The largest ε that so many right guesses refute with a confidence of 95 %.

    Args:
        right: Guesses that are right.
        guesses: Canaries of which it was guessed whether they took part.
        canaries: Canaries, each of which took part by a fair coin.
        delta: δ.

    Returns:
        At least 0; of an (ε, δ)-private training it is above ε in one of twenty cases at most.
    """
    low, high = 0.0, _LARGEST_EPSILON
    while high - low > 1e-3:
        middle = (low + high) / 2
        if _chance(right, guesses, canaries, middle, delta) < _ERROR:
            low = middle
        else:
            high = middle
    return low


def _chance(right: int, guesses: int, canaries: int, epsilon: float, delta: float) -> float:
    """How probable so many right guesses are under (ε, δ), at most: theorem 5.2 of Steinke et al."""
    import numpy as np
    from scipy.stats import binom

    # By ε alone each guess is right with this probability at most.
    probability = 1 / (1 + np.exp(-epsilon))
    of_as_many = binom.sf(right - 1, guesses, probability)
    fewer = np.arange(1, canaries + 1)
    more = (binom.sf(right - fewer - 1, guesses, probability) - of_as_many) / fewer
    return float(of_as_many + 2 * canaries * delta * more.max())


if __name__ == "__main__":
    run_script(make_parser, run)
