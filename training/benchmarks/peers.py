"""Times a training of a run's denoiser as diffusers' users mostly do it: what `speed` measures histodistill against.

    python -m histodistill.training.benchmarks.peers RUN --data SRC --output FILE.json

`speed` starts each such training in a process of its own.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from histodistill.training.running.options import StepConfig, StepParser, config, option, run_script


@config
class PeerConfig(StepConfig):
    """Options of `peers`."""

    run: Path = option("folder with autoencoder/ and pipeline/", positional=True, also_named=True)
    data: str | Path = option("the source that the run was made from")
    image_size: int | None = option("side in pixels; default: the size tiles have", default=None)
    output: Path = option("JSON file for the speed")
    batch_size: int = option("tiles per step", default=64, at_least=1)
    steps: int = option("optimizer steps that are timed", default=60, at_least=1)
    warmup_steps: int = option("steps before them that are not", default=5, at_least=0)
    mixed_precision: str = option("no is float32", default="no", choices=("no", "bf16"))
    num_workers: int = option("processes of the DataLoader", default=0, at_least=0)


def make_parser() -> StepParser[PeerConfig]:
    """The parser of the command line."""
    return StepParser(PeerConfig, prog="python -m histodistill.training.benchmarks.peers", description=__doc__)


def run(config: PeerConfig) -> dict[str, Any]:
    """Trains a denoiser of the run's kind from new weights, and writes how fast it went.

    Returns:
        What `diffusers_style.train_peer` returns.

    Raises:
        InputError: For a folder without a finished pipeline, or tiles that cannot be loaded.
    """
    import random

    import torch
    from diffusers import UNet2DModel

    from histodistill.training.benchmarks.diffusers_style import make_dataset, train_peer
    from histodistill.training.data.sources import load_tiles
    from histodistill.training.models.loading import load_autoencoder, load_denoiser
    from histodistill.training.running.files import write_json
    from histodistill.training.running.source_options import source_options_of_run
    from histodistill.training.running.stages import require_parts

    record = require_parts(config.run, "pipeline")["pipeline"]
    autoencoder = load_autoencoder(config.run / "autoencoder")
    torch.manual_seed(0)
    random.seed(0)
    denoiser = UNet2DModel.from_config(load_denoiser(config.run / "pipeline" / "unet").config)
    source = load_tiles(config.data, image_size=config.image_size, **source_options_of_run(config.run))
    result = train_peer(
        denoiser,
        autoencoder,
        make_dataset(source.split("train"), source.class_names),
        batch_size=config.batch_size,
        steps=config.steps,
        warmup_steps=config.warmup_steps,
        mixed_precision=config.mixed_precision,
        num_workers=config.num_workers,
        class_dropout=record["settings"]["class_dropout"],
    )
    write_json(config.output, result)
    print(f"benchmark_peers: {result['images_per_second']:.1f} images/s")
    return result


if __name__ == "__main__":
    run_script(make_parser, run)
