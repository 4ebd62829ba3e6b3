"""Audits what a run would publish: copies of real tiles, overfitting, and whether training tiles can be told.

    histodistill audit runs/phantom --data phantom

Compares the distilled set and the pool with the real training tiles and, as the control, with tiles that no model was
trained on: those that `--audit-share` held out, or else the validation tiles. Known copies of training tiles are
planted to see whether they would be found. `selection/AUDIT.md` tells what is measured, and how far it carries.

Leaves `RUN/audit.json`: the figures, and for the distilled set, the selector and the pipeline a verdict with the
SHA-256 of every file that it is about. Publishing goes by it. `RUN/audit/` has two pictures of real tiles beside the
generated images that are most like them, of the distilled set and of the pool, and must not be shared.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from histodistill.training.running.launch import run_module
from histodistill.training.running.options import HelpFormatter, check_audit_share, check_option


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Reads and checks the command line; ends with code 2 and one sentence where it is wrong."""
    parser = argparse.ArgumentParser(
        prog="histodistill audit", description=__doc__, allow_abbrev=False, formatter_class=HelpFormatter
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="folder with pipeline/, pool/ and distilled/")
    parser.add_argument("--data", required=True, help="the real tiles: the source that the run was made from")
    parser.add_argument(
        "--audit-share",
        type=float,
        default=None,
        help="share of the training tiles that no model saw; default: what run.json says, or 0",
    )
    parser.add_argument(
        "--plant", type=int, default=100, help="copies of each kind to plant; 0 plants none, and then nothing passes"
    )
    parser.add_argument(
        "--embedders",
        nargs="+",
        default=None,
        help="embedding spaces beside pixels: what --embedder of select takes, but no classifier of these tiles; "
        "default: untrained and RUN/autoencoder",
    )
    parser.add_argument("--weight-tiles", type=int, default=2000, help="tiles of either kind whose loss is measured")
    parser.add_argument("--seed", type=int, default=0, help="seed of all that is random")
    args = parser.parse_args(argv)
    if args.audit_share is not None:
        check_audit_share(args)
    check_option(args, "plant", args.plant >= 0, "it must be at least 0")
    check_option(args, "weight_tiles", args.weight_tiles >= 2, "it must be at least 2")
    check_option(args, "seed", args.seed >= 0, "it must be at least 0")
    if args.embedders is None:
        args.embedders = ["untrained", str(args.run / "autoencoder")]
    return args


def main(argv: list[str]) -> None:
    """Checks the options, then runs `histodistill.training.evaluation.audit` with them."""
    parse_args(argv)
    run_module("histodistill.training.evaluation.audit", argv)
