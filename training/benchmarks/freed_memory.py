"""Measures how much faster trainings on a CPU are where the process keeps the memory that it frees.

    python -m histodistill.training.benchmarks.freed_memory --image-size 64

Programs of histodistill have glibc keep what a step of a training frees, for the next step (see `running/memory.py`).
Here the three trainings, with the models of a preset for tiles of the size, make some steps with that and some with
what glibc does by itself at most, in turns: blocks of 32 MB and more are mapped anew each time, and what is free at
the end of the heap is given back from 64 MB on. The tiles are random bytes. A ratio is the median over rounds.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from histodistill.training.benchmarks.input_path import (
    MAKERS,
    InputPathConfig,
    TurnsConfig,
    alternate,
    make_sources,
    steps_of,
    write_figures,
)
from histodistill.training.running.errors import InputError
from histodistill.training.running.memory import free_as_by_default, keep_freed_memory
from histodistill.training.running.options import StepParser, config, like, option, run_script


_TILES = 2000


@config
class FreedMemoryConfig(TurnsConfig):
    """Options of `freed_memory`."""

    steps: int = option("steps in a round", default=2, at_least=1)
    rounds: int = like(TurnsConfig, "rounds", default=10)


def make_parser() -> StepParser[FreedMemoryConfig]:
    """The parser of the command line."""
    return StepParser(
        FreedMemoryConfig, prog="python -m histodistill.training.benchmarks.freed_memory", description=__doc__
    )


def run(config: FreedMemoryConfig) -> dict[str, Any]:
    """Makes the tiles, trains in both ways, and prints a table.

    Returns:
        The figures, which the JSON file holds, too.

    Raises:
        InputError: Without glibc, or where environment variables tell it what to do.
    """
    import torch

    if not keep_freed_memory():
        raise InputError(
            "memory is not ours to keep here: this is for Linux with glibc, and without MALLOC_… and GLIBC_TUNABLES "
            "in the environment"
        )
    figures = {}
    with tempfile.TemporaryDirectory(prefix="histodistill-freed-memory-") as name:
        options = InputPathConfig(
            tiles=(_TILES,),
            image_size=config.image_size,
            preset=config.preset,
            steps=config.steps,
            rounds=config.rounds,
            mixed_precision=config.mixed_precision,
            seed=config.seed,
        )
        source = make_sources(options, Path(name) / "tiles.npy")[_TILES]
        print(f"{torch.get_num_threads()} threads, tiles of {config.image_size} px")
        print(f"{'':<16}{'freed memory':>14}{'per second':>12}{'ratio':>8}", flush=True)
        for kind, make in MAKERS.items():
            training = make(options, source, Path(name))
            device = training.accelerator.device
            with both_ways(training) as steppers:
                figures[kind] = rows = alternate(steppers, config.steps, config.rounds, device)
            for arm, row in rows.items():
                print(f"{kind:<16}{arm:>14}{row['per_second']:>12.2f}{row['ratio']:>8.3f}", flush=True)
    return write_figures(config, device, figures)


@contextlib.contextmanager
def both_ways(training: Any) -> Iterator[dict[str, Callable[[], None]]]:
    """What makes a step of a training while freed memory is given back, and while it is kept."""
    with steps_of(training) as step:

        def given_back() -> None:
            free_as_by_default()
            step()

        def kept() -> None:
            keep_freed_memory()
            step()

        yield {"given back": given_back, "kept": kept}


if __name__ == "__main__":
    run_script(make_parser, run)
