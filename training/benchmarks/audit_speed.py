"""Measures time and peak memory of the privacy audit of a run's images among many real tiles.

    python -m histodistill.training.benchmarks.audit_speed --run RUN --data SRC --num-images 10000 --num-tiles 90000

Few sources have so many tiles, so tiles are blended: each is the mean of two of the source, the second of them turned,
drawn with a seed. They stand for the real tiles: eight tenths to train on, a tenth held out, and a tenth for
validation. Others, from test tiles, stand for the generated images, 500 of which are the set to publish. All else is
as `histodistill audit` does it: spaces, attacks, planted copies, the attack with the weights. What the audit says of
such tiles means nothing; that planted copies are found does.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import sys
from pathlib import Path
from time import perf_counter

import numpy as np
import torch

from histodistill.selection.image_audit import LabelledImages, RealTiles, audit
from histodistill.selection.planting import MUST_FIND
from histodistill.training.data.sources import load_tiles
from histodistill.training.data.tiles import Tiles
from histodistill.training.evaluation.run_audit import measure_losses
from histodistill.training.models.embedders import named_embeddings
from histodistill.training.running.files import write_json
from histodistill.training.running.options import HelpFormatter, check_option, run_script
from histodistill.training.running.stages import require_complete


NUM_PUBLISHED = 500


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Reads and checks the command line; ends with code 2 and one sentence where it is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False, formatter_class=HelpFormatter)
    parser.add_argument("--run", type=Path, required=True, help="folder with pipeline/ and autoencoder/")
    parser.add_argument("--data", required=True, help="tiles of the same size, with test tiles")
    parser.add_argument("--num-images", type=int, default=10_000, help="generated images")
    parser.add_argument("--num-tiles", type=int, default=90_000, help="real tiles")
    parser.add_argument("--plant", type=int, default=100, help="copies of each kind to plant")
    parser.add_argument("--weight-tiles", type=int, default=2000, help="tiles of either kind whose loss is measured")
    parser.add_argument("--seed", type=int, default=0, help="seed of all that is random")
    parser.add_argument("--output", type=Path, default=None, help="JSON file with all figures")
    args = parser.parse_args(argv)
    for name, least in {"num_images": 1, "num_tiles": 100, "plant": 1, "weight_tiles": 2, "seed": 0}.items():
        check_option(args, name, getattr(args, name) >= least, f"it must be at least {least}")
    return args


def blended(tiles: Tiles, count: int, rng: np.random.Generator) -> LabelledImages:
    """Means of two tiles each, the second of them turned by 180°.

    Args:
        tiles: N, of S×S pixels.
        count: how many.
        rng: draws the pairs.

    Returns:
        uint8 count×S×S×3, with the class of the first tile of each.
    """
    first, second = rng.integers(len(tiles), size=(2, count))
    images = (tiles.images[first].astype(np.uint16) + tiles.images[second][:, ::-1, ::-1]) // 2
    return LabelledImages(images.astype(np.uint8), tiles.labels[first])


def main(args: argparse.Namespace) -> None:
    """Makes the tiles, audits them by the clock, and prints the figures."""
    require_complete(args.run / "pipeline", "pipeline", "run train_diffusion first")
    source = load_tiles(args.data)
    rng = np.random.default_rng(args.seed)
    few = args.num_tiles // 10
    train, held_out = (blended(source.split("train"), n, rng) for n in (args.num_tiles - 2 * few, few))
    real = RealTiles(train, held_out, blended(source.split("validation"), few, rng))
    pool = blended(source.split("test"), args.num_images, rng)
    published = pool[np.arange(min(NUM_PUBLISHED, len(pool)))]
    start = perf_counter()
    losses = measure_losses(args.run / "pipeline", real, args.weight_tiles, args.seed)
    weights = perf_counter() - start
    embeddings = named_embeddings(["untrained", str(args.run / "autoencoder")])
    result = audit(published, pool, real, embeddings, n_planted=args.plant, weight_losses=losses, seed=args.seed)
    total = perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    figures = {
        "settings": {name: value for name, value in vars(args).items() if name not in ("run", "output")},
        "image_size": source.image_size,
        "seconds": {"weights": weights, "images": total - weights, "total": total},
        "peak_memory_gib": peak / 2**30,
        "threads": torch.get_num_threads(),
        "cpu_count": os.cpu_count(),
        "planted": {kind: result.planted[kind].value for kind in MUST_FIND},
        "false_alarms": result.limits.false_alarms,
    }
    if args.output is not None:
        write_json(args.output, figures)
    print(json.dumps(figures, indent=2))


if __name__ == "__main__":
    run_script(parse_args, main)
