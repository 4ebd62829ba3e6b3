"""Measures writing and reading a pool larger than memory should hold: time, and memory that no file can take back.

    python -m histodistill.training.benchmarks.large_pool --gib 3 --output DIR

`generate` writes the pool with its own writer, of pictures of random pixels in place of a model's: nothing packs
worse, so that the files have as many bytes as the pixels. The process is killed on the way, and another goes on. A
third reads all images in batches, some in any order, and sees that they are those of their seeds. Of each the most
private memory is told (RssAnon, which Linux alone tells, every 20 ms), and of one that only imports what they do; what
is mapped from files is not in it.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from histodistill.training.running.errors import InputError, param
from histodistill.training.running.memory import private_memory
from histodistill.training.running.options import StepConfig, StepParser, config, option, run_script


if TYPE_CHECKING:
    import numpy as np
    import torch

    from histodistill.training.engine.pool import Shard

# The names of the classes, which take turns.
_NAMES = ["adipose", "glands", "mucus"]
# Images that are read in any order, and seconds between two looks at a process.
_ANYWHERE, _SECONDS = 900, 0.02
# The first process is killed when so large a share of the pool is in shards.
_KILLED_AT = 0.4


@config
class LargePoolConfig(StepConfig):
    """Options of `large_pool`."""

    gib: float = option("pixels of the pool in GiB", default=3.0, at_least=0.001)
    image_size: int = option("side of the pictures in pixels", default=224, at_least=8)
    chunk_size: int = option("images that are generated together", default=100, at_least=1)
    shard_mib: int | None = option("pixels of a shard in MiB, in place of generate's own", default=None, at_least=1)
    output: Path = option("folder for the pool, which is new")

    @property
    def per_class(self) -> int:
        """Images of each class."""
        return max(1, round(self.gib * 2**30 / (self.image_size**2 * 3 * len(_NAMES))))

    def check(self) -> None:
        """Sees that the folder is new."""
        if self.output.exists():
            raise InputError(f"{param('output')} {self.output} is there already: give a new folder, or delete it")


def make_parser() -> StepParser[LargePoolConfig]:
    """The parser of the command line."""
    return StepParser(
        LargePoolConfig, prog="python -m histodistill.training.benchmarks.large_pool", description=__doc__
    )


def run(config: LargePoolConfig) -> dict[str, Any]:
    """Writes, kills, goes on, reads, and prints the figures.

    Returns:
        The figures.

    Raises:
        InputError: If a process fails.
    """
    importing = _watched(_import, config)
    first = _watched(_write, config, stop=lambda: _share_written(config) >= _KILLED_AT)
    written = _share_written(config)
    second = _watched(_write, config)
    reading = _watched(_read, config)
    files = sorted((config.output / "data").iterdir())
    figures = {
        "images": config.per_class * len(_NAMES),
        "gib": sum(path.stat().st_size for path in files) / 2**30,
        "files": len(files),
        "importing": importing,
        "killed": {**first, "share_in_shards": written},
        "resumed": second,
        "reading": {**reading, **json.loads((config.output / "read.json").read_text(encoding="utf-8"))},
    }
    print(json.dumps(figures, indent=2))
    return figures


def _shards(config: LargePoolConfig) -> list[Shard]:
    """The plan of the pool."""
    from histodistill.training.engine import pool

    if config.shard_mib is not None:
        pool.SHARD_BYTES = config.shard_mib * 2**20
    labels, seeds = pool.plan_pool(len(_NAMES), config.per_class, 0)
    chunks = pool.cut_into_chunks(config.output / "chunks", labels, seeds, config.chunk_size)
    return pool.gather_into_shards(config.output / "shards", chunks, config.image_size)


def _share_written(config: LargePoolConfig) -> float:
    shards = _shards(config)
    return sum(shard.path.exists() for shard in shards) / len(shards)


def _watched(
    work: Callable[[LargePoolConfig], None], config: LargePoolConfig, stop: Callable[[], bool] = lambda: False
) -> dict[str, float]:
    """Works in a process of its own, which is killed when `stop` says so.

    Returns:
        Seconds, and the most private memory in MiB.
    """
    started, peak = time.perf_counter(), 0
    process = get_context("spawn").Process(target=work, args=(config,))
    process.start()
    while process.is_alive():
        peak = max(peak, private_memory(process.pid or 0))
        if stop():
            process.kill()
            break
        process.join(_SECONDS)
    process.join()
    if process.exitcode and not stop():
        raise InputError("a process failed: its own words are above")
    return {"seconds": round(time.perf_counter() - started, 1), "peak_private_mib": round(peak / 2**20, 1)}


def random_pictures(image_size: int, seeds: list[int]) -> np.ndarray:
    """A picture of random pixels for each seed: float32 N×S×S×3 in [0, 1]."""
    import numpy as np

    from histodistill.selection.streams import stream

    shape = (image_size, image_size, 3)
    pixels = [stream("random pictures", int(seed)).integers(0, 256, size=shape, dtype=np.uint8) for seed in seeds]
    return np.stack(pixels) / np.float32(255)


class RandomPictures:
    """What is called as a pipeline, and draws random pixels.

    Args:
        image_size: Side of the pictures in pixels.
    """

    class_names, num_classes = _NAMES, len(_NAMES)

    def __init__(self, image_size: int):
        self.image_size = image_size

    def __call__(self, labels: list[int], generator: list[torch.Generator], **_: Any) -> SimpleNamespace:
        """A picture for each generator, which counts by its seed alone."""
        return SimpleNamespace(images=random_pictures(self.image_size, [each.initial_seed() for each in generator]))


def _import(config: LargePoolConfig) -> None:
    """Imports what writing and reading import, and nothing else."""
    _shards(config)


def _write(config: LargePoolConfig) -> None:
    """Generates what is missing of the pool."""
    from histodistill.training.engine.accelerator import make_accelerator
    from histodistill.training.generate import GenerateConfig, make_pool
    from histodistill.training.running.stages import Stage

    _shards(config)  # of the size that was asked for
    options = GenerateConfig(
        pipeline=config.output, output=config.output, per_class=config.per_class, chunk_size=config.chunk_size
    )
    stage = Stage(config.output, {"stage": "pool", **options.settings()})
    make_pool(options, RandomPictures(config.image_size), config.image_size, make_accelerator("no"), stage)


def _read(config: LargePoolConfig) -> None:
    """Reads the pool, and writes how long it took."""
    import numpy as np

    from histodistill.selection.image_rows import batches
    from histodistill.selection.streams import stream
    from histodistill.training.data.image_dataset import open_image_table

    def drawn(rows: np.ndarray) -> np.ndarray:
        pictures = random_pictures(config.image_size, table.columns["seed"][rows].tolist())
        return (pictures * 255).round().astype(np.uint8)

    times = [time.perf_counter()]
    table = open_image_table(config.output)
    times.append(time.perf_counter())
    count = 0
    for batch in batches(table.images, 256):
        if not np.array_equal(batch[:1], drawn(np.array([count]))):
            raise InputError(f"image {count} is not that of its seed")
        count += len(batch)
    times.append(time.perf_counter())
    rows = stream("images that are read in any order", 0).permutation(len(table))[:_ANYWHERE]
    images = table.images[rows]
    times.append(time.perf_counter())
    if count != len(table) or not np.array_equal(images[:100], drawn(rows[:100])):
        raise InputError("images are not those of their seeds")
    opening, in_order, anywhere = np.diff(times).round(2).tolist()
    seconds = {"seconds_to_open": opening, "seconds_in_order": in_order, f"seconds_of_{_ANYWHERE}_anywhere": anywhere}
    (config.output / "read.json").write_text(json.dumps(seconds), encoding="utf-8")


if __name__ == "__main__":
    run_script(make_parser, run)
