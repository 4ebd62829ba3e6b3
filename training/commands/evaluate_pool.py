"""Measures how good the generated pool is, against real validation tiles.

    histodistill evaluate-pool runs/phantom --data phantom

Two questions are asked, and each figure stands beside that of the real training tiles, which is its ceiling:

- are the generated tiles distributed as the real ones are? Fréchet and kernel distance, precision, recall, density
  and coverage, overall and for each class, in the feature space of the run's teacher or of `--embedder`;
- does a classifier trained on them know real tiles (classification accuracy score, Ravuri & Vinyals 2019)? Also
  trained on real tiles that the autoencoder has reconstructed, which tells what is lost there.

Test tiles are not touched. Leaves `RUN/evaluation/` with metrics.json, metrics.png, and tiles.png, which shows real
tiles beside generated ones and must not be shared.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from histodistill.training.commands.compare import add_cell_options, check_cell_options
from histodistill.training.running.launch import run_module
from histodistill.training.running.options import HelpFormatter, check_option


ROWS = {
    "real_all": "All real tiles",
    "reconstructed": "All real tiles, reconstructed by the autoencoder",
    "pool_all": "The whole pool",
}


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Reads and checks the command line; ends with code 2 and one sentence where it is wrong."""
    parser = argparse.ArgumentParser(
        prog="histodistill evaluate-pool",
        description=__doc__,
        epilog="rows: " + "; ".join(f"{name}: {title}" for name, title in ROWS.items()),
        allow_abbrev=False,
        formatter_class=HelpFormatter,
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="folder with pipeline/, teacher/ and pool/")
    parser.add_argument("--data", required=True, help="the real tiles: the source that the run was made from")
    parser.add_argument("--pool", type=Path, default=None, help="another pool of the same pipeline; default: RUN/pool")
    parser.add_argument("--output", type=Path, default=None, help="folder for the result; default: RUN/evaluation")
    parser.add_argument("--image-size", type=int, default=None, help="side in pixels; default: the size tiles have")
    parser.add_argument(
        "--embedder",
        default=None,
        help="untrained: a ConvNet with random weights; a transformers vision model; or the folder of a classifier or "
        "an autoencoder; default: the features of RUN/teacher",
    )
    parser.add_argument("--n-neighbors", type=int, default=5, help="of precision, recall, density and coverage")
    parser.add_argument(
        "--train",
        nargs="*",
        default=["resnet18:300"],
        metavar="ARCHITECTURE:STEPS[:ROW,ROW…]",
        help="what to train for how many steps on which rows, all rows where none is named; nothing after it trains "
        "none",
    )
    add_cell_options(parser)
    args = parser.parse_args(argv)
    check_option(args, "n_neighbors", args.n_neighbors >= 1, "it must be at least 1")
    check_cell_options(args, list(ROWS))
    args.pool = args.pool or args.run / "pool"
    args.output = args.output or args.run / "evaluation"
    return args


def main(argv: list[str]) -> None:
    """Checks the options, then runs `histodistill.training.evaluation.evaluate_pool` with them."""
    run_module("histodistill.training.evaluation.evaluate_pool", argv, parse_args(argv).num_processes)
