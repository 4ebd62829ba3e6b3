"""Measures how fast histodistill trains and samples beside diffusers-style code, in one run on one machine.

    python -m histodistill.training.benchmarks.speed runs/phantom --data phantom

Training: `train_diffusion` against a loop built like diffusers' example for unconditional images, for the same new
U-Net, autoencoder, tiles, batch size and number of steps; each training is a process of its own. Sampling: the run's
pipeline with its pool's settings, and with other numbers of steps, against diffusers' `DiTPipeline` around the same
weights, with 50 steps in float32. How near the images come to real validation tiles stands beside each speed, since
speeds compare only at equal quality. Peers take turns with histodistill, and each figure is the median of the repeats.
"""

from __future__ import annotations

import contextlib
import functools
import os
import platform
from pathlib import Path
from typing import Any

from histodistill.selection.versions import installed_versions
from histodistill.training.benchmarks.training_speed import PRECISION_NAMES, measure_training
from histodistill.training.evaluation.plans import require_once
from histodistill.training.running.errors import InputError, param
from histodistill.training.running.options import StepConfig, StepParser, config, option, run_script


# Packages whose versions decide the speed.
_PACKAGES = ("histodistill", "torch", "diffusers", "accelerate", "datasets", "numpy", "pillow")


@config
class SpeedConfig(StepConfig):
    """Options of `speed`."""

    run: Path = option("folder with autoencoder/, pipeline/, pool/ and teacher/", positional=True, also_named=True)
    data: str | Path = option("the real tiles: the source that the run was made from")
    image_size: int | None = option("side in pixels; default: the size tiles have", default=None)
    steps: int = option("optimizer steps of each training; some hundreds on a GPU", default=60, at_least=1)
    batch_size: int = option("tiles per step", default=64, at_least=1)
    num_workers: tuple[int, ...] = option(
        "DataLoader processes of the peers; each is tried", default=(0, 2), at_least=0
    )
    num_images: int = option("images of each sampler and repeat", default=512, at_least=1)
    repeats: int = option("times that everything is measured", default=3, at_least=1)
    output: Path | None = option("JSON file; default: RUN/benchmark.json", default=None)

    def check(self) -> None:
        """Checks that no number of processes is named twice, and that the file can be one."""
        require_once("num_workers", self.num_workers)
        if self.file.is_dir():
            raise InputError(
                f"{param('output')}={self.file} is a folder: give a file, such as {self.file / 'benchmark.json'}"
            )

    @functools.cached_property
    def file(self) -> Path:
        """The JSON file."""
        return self.output or self.run / "benchmark.json"


def make_parser() -> StepParser[SpeedConfig]:
    """The parser of the command line."""
    return StepParser(SpeedConfig, prog="python -m histodistill.training.benchmarks.speed", description=__doc__)


def run(config: SpeedConfig) -> dict[str, Any]:
    """Measures training and sampling, prints the table, and writes the JSON file.

    Returns:
        What the file holds.

    Raises:
        InputError: For a run that is not finished, tiles that it was not made from, or too few to compare.
    """
    from histodistill.training.benchmarks.sampling import check_sampling, measure_sampling
    from histodistill.training.data.audit_tiles import audit_share_of
    from histodistill.training.data.sources import load_tiles
    from histodistill.training.engine.accelerator import make_accelerator
    from histodistill.training.running.files import write_json
    from histodistill.training.running.source_options import source_options_of_run
    from histodistill.training.running.stages import require_parts

    pipeline = config.run / "pipeline"
    records = require_parts(config.run, "pipeline", "pool", "autoencoder", "teacher")
    settings, pool = records["pipeline"]["settings"], records["pool"]["settings"]
    source = load_tiles(
        config.data,
        image_size=config.image_size,
        audit_share=audit_share_of(config.run),
        **source_options_of_run(config.run),
    )
    if source.fingerprint() != settings["data"]:
        raise InputError(
            f"{param('data')}={config.data} does not hold the tiles that {pipeline} was trained on: give the same "
            f"source, with the same {param('image_size')}"
        )
    # All that can be wrong is to show before the first training, not after the last.
    per_class = check_sampling(source, config.num_images, pool["guidance_scale"])
    accelerator = make_accelerator(pool["mixed_precision"])
    training = measure_training(
        config.run,
        config.data,
        source.image_size,
        settings,
        steps=config.steps,
        batch_size=config.batch_size,
        num_workers=config.num_workers,
        repeats=config.repeats,
    )
    num_tiles = {name: len(tiles) for name, tiles in source.splits.items()}
    results = {
        "machine": machine_facts(),
        "data": {"name": source.name, "image_size": source.image_size, "num_tiles": num_tiles},
        "repeats": config.repeats,
        "training": training,
        "sampling": measure_sampling(config.run, pool, source, per_class, config.repeats, accelerator),
    }
    print("\n".join(table_lines(results)))
    write_json(config.file, results)
    print(f"benchmark: saved to {config.file}")
    accelerator.end_training()
    return results


def machine_facts() -> dict[str, Any]:
    """What the speeds were measured on; nothing that tells whose machine it is."""
    import torch

    return {
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else _processor_name(),
        "cpu_count": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "versions": {"python": platform.python_version(), **installed_versions(_PACKAGES)},
    }


def _processor_name() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def table_lines(results: dict[str, Any]) -> list[str]:
    """The results, as `run` returns them, as text."""
    training, sampling = results["training"], results["sampling"]
    ours = training["histodistill"]
    name = f"histodistill, {PRECISION_NAMES[ours['mixed_precision']]}"
    rows = [["", "images/s", "histodistill is"], [name, f"{ours['images_per_second']:.1f}", ""]]
    for peer in training["peers"]:
        rows.append([peer["name"], f"{peer['images_per_second']:.1f}", f"{peer['speedup']:.2f}× as fast"])
    lines = [f"training: {training['steps']} steps of {training['batch_size']} tiles", *_aligned(rows), ""]

    peers = list(sampling["samplers"][0]["speedup"])
    rows = [["", "precision", "images/s", "Fréchet", "coverage", *(f"÷ [{i}]" for i in range(1, len(peers) + 1))]]
    for sampler in sampling["samplers"]:
        name = sampler["name"]
        if name in peers:
            name = f"[{peers.index(name) + 1}] {name}"
        elif sampler["is_pool_setting"]:
            name += " (the pool's)"
        speedups = [f"{sampler['speedup'][peer]:.2f}×" for peer in peers]
        figures = [f"{sampler['images_per_second']:.1f}", f"{sampler['frechet_distance']:.3g}"]
        precision = PRECISION_NAMES[sampler["mixed_precision"]]
        rows.append([name, precision, *figures, f"{sampler['coverage']:.3f}", *speedups])
    lines.append(
        f"sampling: {sampling['num_images']} images, {sampling['chunk_size']} at a time; "
        f"{sampling['num_images_compared']} compared with as many validation tiles"
    )
    return [*lines, *_aligned(rows)]


def _aligned(rows: list[list[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip() for row in rows]


if __name__ == "__main__":
    run_script(make_parser, run)
