"""Measures time and peak memory of the privacy audit of a run's images among many real tiles.

    python -m histodistill.training.benchmarks.audit_speed RUN --data SRC --num-images 10000 --num-tiles 90000

Few sources have so many tiles, so tiles are blended: each is the mean of two of the source, the second of them turned,
drawn with a seed. They stand for the real tiles: eight tenths to train on, a tenth held out, and a tenth for
validation. Others, from test tiles, stand for the generated images, 500 of which are the set to publish. All else is
as `histodistill audit` does it: spaces, attacks, planted copies, the attack with the weights, and that repeated tiles
have been found before, once for all runs, when tiles were decoded; the time of that is told by itself. What the audit
says of such tiles means nothing; that planted copies are found does.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, replace
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np

from histodistill.training.running.options import StepConfig, StepParser, config, option, run_script


if TYPE_CHECKING:
    from histodistill.selection.real_tiles import LabelledImages, RealTiles
    from histodistill.training.data.tiles import Tiles, TileSource

# Images of the set to publish, the first ones of the generated images.
NUM_PUBLISHED = 500
# The share of the real tiles that is held out, and that which is for validation, is one in so many.
_ONE_IN = 10


@config
class AuditSpeedConfig(StepConfig):
    """Options of `audit_speed`."""

    run: Path = option("folder with pipeline/ and autoencoder/", positional=True, also_named=True)
    data: str | Path = option("tiles of the same size, with test tiles")
    num_images: int = option("generated images", default=10_000, at_least=1)
    num_tiles: int = option("real tiles", default=90_000, at_least=100)
    plant: int = option("copies of each kind to plant", default=100, at_least=1)
    weight_tiles: int = option("tiles of either kind whose loss is measured", default=2000, at_least=2)
    seed: int = option("seed of all that is random", default=0, at_least=0)
    output: Path | None = option("JSON file with all figures", default=None)


def make_parser() -> StepParser[AuditSpeedConfig]:
    """The parser of the command line."""
    return StepParser(
        AuditSpeedConfig, prog="python -m histodistill.training.benchmarks.audit_speed", description=__doc__
    )


def run(config: AuditSpeedConfig) -> dict[str, Any]:
    """Makes the tiles, audits them by the clock, and prints the figures.

    Returns:
        The figures, which the JSON file holds, too.

    Raises:
        InputError: For a run without a finished pipeline, or tiles without a split that is needed.
    """
    import torch

    from histodistill.hub_cards.part_files import read_part
    from histodistill.selection.image_audit import audit
    from histodistill.selection.planting import MUST_FIND
    from histodistill.selection.repeats import find_repeats
    from histodistill.training.data.sources import load_tiles
    from histodistill.training.evaluation.run_audit import measure_losses
    from histodistill.training.models.embedders import named_embeddings
    from histodistill.training.running.files import write_json
    from histodistill.training.running.memory import peak_memory
    from histodistill.training.running.stages import require_parts

    require_parts(config.run, "pipeline")
    source = load_tiles(config.data)
    real, pool = make_tiles(source, config.num_tiles, config.num_images, config.seed)
    published = pool[np.arange(min(NUM_PUBLISHED, len(pool)))]
    start = perf_counter()
    found = find_repeats(real.all_images)
    repeats = perf_counter() - start
    real = replace(real, look_up_repeats=lambda: found)
    start = perf_counter()
    losses = measure_losses(read_part(config.run / "pipeline"), real, config.weight_tiles, config.seed)
    weights = perf_counter() - start
    embeddings = named_embeddings(["untrained", str(config.run / "autoencoder")])
    result = audit(published, pool, real, embeddings, n_planted=config.plant, weight_losses=losses, seed=config.seed)
    total = perf_counter() - start
    figures = {
        "settings": {name: value for name, value in asdict(config).items() if name not in ("run", "output")},
        "image_size": source.image_size,
        "seconds": {"repeats": repeats, "weights": weights, "images": total - weights, "total": total},
        "peak_memory_gib": (peak_memory() or 0) / 2**30,
        "threads": torch.get_num_threads(),
        "cpu_count": os.cpu_count(),
        "planted": {kind: result.planted[kind].value for kind in MUST_FIND},
        "false_alarms": result.limits.false_alarms,
    }
    if config.output is not None:
        write_json(config.output, figures)
    print(json.dumps(figures, indent=2))
    return figures


def make_tiles(source: TileSource, num_tiles: int, num_images: int, seed: int) -> tuple[RealTiles, LabelledImages]:
    """Blends what stands for the real tiles, and what stands for the generated images.

    Args:
        source: With tiles for training, validation and testing.
        num_tiles: Real tiles in all.
        num_images: Generated images.
        seed: Of the pairs that are blended.
    """
    from histodistill.selection.real_tiles import RealTiles
    from histodistill.selection.streams import stream

    rng = stream("blended tiles of the speed of audits", seed)
    few = num_tiles // _ONE_IN
    train, held_out = (blended(source.split("train"), count, rng) for count in (num_tiles - 2 * few, few))
    real = RealTiles(train, held_out, blended(source.split("validation"), few, rng))
    return real, blended(source.split("test"), num_images, rng)


def blended(tiles: Tiles, count: int, rng: np.random.Generator) -> LabelledImages:
    """Means of two tiles each, the second of them turned by 180°.

    Args:
        tiles: N, of S×S pixels.
        count: How many.
        rng: Draws the pairs.

    Returns:
        uint8 count×S×S×3, with the class of the first tile of each.
    """
    from histodistill.selection.real_tiles import LabelledImages

    first, second = rng.integers(len(tiles), size=(2, count))
    images = (tiles.images[first].astype(np.uint16) + tiles.images[second][:, ::-1, ::-1]) // 2
    return LabelledImages(images.astype(np.uint8), tiles.labels[first])


if __name__ == "__main__":
    run_script(make_parser, run)
