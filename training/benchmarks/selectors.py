"""Measures how long selectors take, and how much memory.

    python -m histodistill.training.benchmarks.selectors --selectors kernel_herding kernel_ridge --sizes 1000 4000

Each selector chooses from embeddings that lie as the features of a classifier do: seeded Gaussian clusters. Every
measurement is a process of its own, so its peak memory is its own: that of the libraries and of the embeddings is in
it. Seconds are by the clock and, which other work disturbs less, by the processor's time of all threads.
"""

from __future__ import annotations

import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from histodistill.selection import SELECTOR_NAMES
from histodistill.training.running.options import StepConfig, StepParser, config, option, run_script


@config
class SelectorsConfig(StepConfig):
    """Options of `selectors`."""

    selectors: tuple[str, ...] = option(
        "what chooses", default=("kernel_herding", "kernel_ridge"), choices=SELECTOR_NAMES
    )
    classes: int = option("classes, of which each has so many images", default=9, at_least=1)
    sizes: tuple[int, ...] = option("images of a class", default=(1000,), at_least=1)
    dimensions: int = option("width of the embeddings", default=1152, at_least=1)
    n_per_class: int = option("images to choose of each class", default=100, at_least=1)
    seed: int = option("of the embeddings and of the selectors", default=0, at_least=0, below=2**31)
    output: Path | None = option("JSON file with all figures", default=None)


def make_parser() -> StepParser[SelectorsConfig]:
    """The parser of the command line."""
    return StepParser(
        SelectorsConfig, prog="python -m histodistill.training.benchmarks.selectors", description=__doc__
    )


def run(config: SelectorsConfig) -> list[dict[str, Any]]:
    """Measures everything, and prints a table.

    Returns:
        For each selector and size: `selector`, `classes`, `size`, `seconds`, `processor_seconds` and `peak_memory` in
        bytes, None where the system does not tell; the JSON file holds them, too.
    """
    from histodistill.training.running.files import format_size, write_json

    print(f"{'selector':<20}{'images':>14}{'seconds':>10}{'of processor':>14}{'memory':>10}", flush=True)
    rows = []
    for selector in config.selectors:
        for size in config.sizes:
            # A process that measured before would have had its memory, too.
            with ProcessPoolExecutor(max_workers=1, mp_context=get_context("spawn")) as process:
                row = process.submit(measure, config, selector, size).result()
            rows.append(row)
            memory = "–" if row["peak_memory"] is None else format_size(row["peak_memory"])
            print(
                f"{selector:<20}{f'{config.classes} × {size:,}':>14}{row['seconds']:>10.1f}"
                f"{row['processor_seconds']:>14.1f}{memory:>10}",
                flush=True,
            )
    if config.output is not None:
        write_json(config.output, rows)
    return rows


def measure(config: SelectorsConfig, selector: str, size: int) -> dict[str, Any]:
    """Lets a selector choose in this process, once before on a few images, which loads the libraries.

    Raises:
        InputError: Where a class has fewer images than are to be chosen.
    """
    import warnings

    import numpy as np

    from histodistill.selection import SELECTORS
    from histodistill.selection.benchmark import make_embeddings
    from histodistill.training.running.errors import InputError
    from histodistill.training.running.memory import peak_memory

    warnings.simplefilter("ignore")  # of communities that are none, which is nothing here
    few = make_embeddings(20, config.dimensions, config.seed)
    SELECTORS[selector](n_per_class=1, random_state=config.seed).fit(few, np.arange(20) % 2)
    embeddings = np.concatenate(
        [make_embeddings(size, config.dimensions, config.seed, label) for label in range(config.classes)]
    )
    labels = np.repeat(np.arange(config.classes), size)
    started, used = time.perf_counter(), time.process_time()
    try:
        SELECTORS[selector](n_per_class=config.n_per_class, random_state=config.seed).fit(embeddings, labels)
    except ValueError as error:
        raise InputError(str(error)) from error
    return {
        "selector": selector,
        "classes": config.classes,
        "size": size,
        "seconds": time.perf_counter() - started,
        "processor_seconds": time.process_time() - used,
        "peak_memory": peak_memory(),
    }


if __name__ == "__main__":
    run_script(make_parser, run)
