"""Measures how much faster a denoiser is trained on latents of the cache than on tiles that are encoded in each step.

    python -m histodistill.training.benchmarks.latent_cache --preset cpu

Both trainings have the models of a preset, untrained, and the same tiles, which are random bytes. They take turns, a
round of some steps each, and each in turn is the first. Three things are measured:

    encoding   views of tiles per second, while the cache is filled; it is done once, and is not in the other figures
    inputs     what the denoiser takes of a batch, read and brought to the device; without the cache, encoded
    steps      whole optimizer steps, with the moving average, without validations and checkpoints

A ratio is the median over rounds of the speed with the cache over that without, so that what else the machine does
hits both. The latents lie in a temporary folder (`TMPDIR` says where) and have just been written: the program is
measured, not the disk.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

from histodistill.training.benchmarks.input_path import (
    InputPathConfig,
    TurnsConfig,
    make_sources,
    steps_of,
    take_turns,
    write_figures,
)
from histodistill.training.running.options import StepParser, config, like, option, run_script
from histodistill.training.running.presets import load_preset
from histodistill.training.train_diffusion import LATENT_CACHES


if TYPE_CHECKING:
    from histodistill.training.data.tiles import TileSource
    from histodistill.training.engine.diffusion_training import DiffusionTraining

# Inputs of a round for each of its steps, since they take so much less time.
_INPUTS_PER_STEP = 10


@config
class LatentCacheConfig(TurnsConfig):
    """Options of `latent_cache`."""

    tiles: int = option("training tiles", default=200, at_least=1)
    latent_cache: str = option("what latents are kept as", default=LATENT_CACHES[0], choices=LATENT_CACHES[:-1])
    steps: int = option(f"steps in a round, and {_INPUTS_PER_STEP} times as many inputs", default=1, at_least=1)
    rounds: int = like(TurnsConfig, "rounds", default=40)


def make_parser() -> StepParser[LatentCacheConfig]:
    """The parser of the command line."""
    return StepParser(
        LatentCacheConfig, prog="python -m histodistill.training.benchmarks.latent_cache", description=__doc__
    )


def run(config: LatentCacheConfig) -> dict[str, Any]:
    """Makes the tiles, trains with the cache and without, and prints a table.

    Returns:
        The figures, which the JSON file holds, too.

    Raises:
        InputError: If the preset's models cannot halve tiles of the size.
    """
    import torch

    with tempfile.TemporaryDirectory(prefix="histodistill-latent-cache-") as name:
        trainings = _trainings(config, Path(name))
        device = trainings["off"].accelerator.device
        print(f"{device}, {torch.get_num_threads()} threads, {config.tiles:,} tiles of {config.image_size} px")
        started = perf_counter()
        trainings[config.latent_cache].prepare()
        encoding = 8 * config.tiles / (perf_counter() - started)
        print(f"encoding {encoding:.1f} views per second")
        print(f"{'':<24}{'latents':>12}{'per second':>14}{'ratio':>8}", flush=True)
        figures: dict[str, Any] = {"encoding": {"per_second": encoding}}
        stepper: Callable[..., contextlib.AbstractContextManager[Callable[[], object]]]
        for what, stepper, steps in (
            ("inputs", inputs_of, config.steps * _INPUTS_PER_STEP),
            ("steps", steps_of, config.steps),
        ):
            figures[what] = rows = take_turns(trainings, stepper, steps, config.rounds, device)
            for arm, row in rows.items():
                print(f"{what:<24}{arm:>12}{row['per_second']:>14.1f}{row['ratio']:>8.3f}", flush=True)
    return write_figures(config, device, figures)


def _trainings(config: LatentCacheConfig, folder: Path) -> dict[str, DiffusionTraining]:
    """The training without the cache and the one with it, which has not been filled."""
    from histodistill.training.engine.accelerator import make_accelerator
    from histodistill.training.models.autoencoder import build_autoencoder
    from histodistill.training.train_diffusion import TrainDiffusionConfig, make_training

    preset = load_preset(config.preset).for_image_size(config.image_size)
    options = preset.options("autoencoder")
    layers, plain = options.get("layers_per_block", 1), options.get("plain_finest", False)
    autoencoder = build_autoencoder(config.image_size, options["channels"], options["latent_channels"], layers, plain)
    autoencoder.save_pretrained(folder / "autoencoder")
    # Long enough for all that is measured, and for the cache to be worth it.
    least = (config.rounds + 1) * config.steps * _INPUTS_PER_STEP
    batch_size = preset.options("diffusion")["batch_size"]
    changes = {
        "max_train_steps": max(least, -(-8 * config.tiles // batch_size)),
        "seed": config.seed,
        "mixed_precision": config.mixed_precision,
        "data": "random",
        "output": folder,
        "autoencoder": folder / "autoencoder",
        "cache_dir": folder / "cache",
    }
    source = _source(config, folder)
    trainings = {}
    for arm in ("off", config.latent_cache):
        recipe = TrainDiffusionConfig(**{**preset.options("diffusion"), **changes, "latent_cache": arm})
        trainings[arm] = make_training(recipe, source, make_accelerator(config.mixed_precision, tf32=True), None)
    return trainings


def _source(config: LatentCacheConfig, folder: Path) -> TileSource:
    tiles = InputPathConfig(tiles=(config.tiles,), image_size=config.image_size, seed=config.seed)
    return make_sources(tiles, folder / "tiles.npy")[config.tiles]


@contextlib.contextmanager
def inputs_of(training: DiffusionTraining) -> Iterator[Callable[[], object]]:
    """What makes the next inputs of a denoiser, on the device."""
    import torch

    from histodistill.training.engine.loop import drawn_batches

    with drawn_batches(training) as batches:

        @torch.no_grad()
        def make_inputs() -> torch.Tensor:
            batch = next(batches)
            with training.accelerator.autocast():
                return training.make_inputs(batch.read, batch.views)

        yield make_inputs


if __name__ == "__main__":
    run_script(make_parser, run)
