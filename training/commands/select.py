"""Selects the distilled set from the pool: embeddings, communities, and exactly N images of each class.

    histodistill select --pool runs/phantom/pool --teacher runs/phantom/teacher --output runs/phantom

Leaves `selector/` (the fitted selector, and pictures of the pool's communities) and `distilled/` (a dataset that
`load_dataset` opens) in the output folder. `selection/README.md` tells what the defaults were chosen from. Whatever
chooses, Infomap finds the communities of the pool; `--selector infomap` also chooses by them, as the paper does.
The teacher is a classifier trained on the real tiles: its probabilities become the column soft_label. Real tiles
(`--data`) are needed only by `--typical-share` and `--drop-copies`, and none of them is written anywhere.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from histodistill.selection import QUOTA_RULES, RANKINGS, SELECTOR_NAMES, WEIGHTINGS
from histodistill.training.running.launch import run_module
from histodistill.training.running.options import HelpFormatter, check_option, fail


def add_selector_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options that say how to choose. The selector checks the values of its own."""
    parser.add_argument("--selector", choices=SELECTOR_NAMES, default="kernel_herding", help="how to select")
    filters = parser.add_argument_group("what may be selected at all")
    filters.add_argument(
        "--min-probability",
        type=float,
        default=0.0,
        help="drop images that the teacher takes for their own class with less; 0 drops none",
    )
    filters.add_argument(
        "--typical-share",
        type=float,
        default=None,
        help="drop images that lie farther from the real tiles of their class than this share of these do from each "
        "other; needs --data; default: drop none",
    )
    filters.add_argument(
        "--drop-copies",
        action="store_true",
        help="drop images that are copies of a real tile, as histodistill audit finds them; needs --data",
    )
    filters.add_argument(
        "--copy-embedders",
        nargs="+",
        default=["untrained"],
        help="embedding spaces, beside pixels, in which copies are looked for; the audit looks in untrained and "
        "RUN/autoencoder unless told otherwise, and distill drops what it finds in these",
    )
    infomap = parser.add_argument_group("communities, and the selector infomap")
    infomap.add_argument("--n-neighbors", type=int, default=15, help="neighbours of each image in the graph")
    infomap.add_argument("--weighting", choices=WEIGHTINGS, default="local_gaussian", help="weights of the links")
    infomap.add_argument("--markov-time", type=float, default=1.0, help="larger finds fewer, larger communities")
    infomap.add_argument("--num-trials", type=int, default=5, help="searches, of which the best counts")
    infomap.add_argument("--quota", choices=QUOTA_RULES, default="proportional", help="images per community")
    infomap.add_argument(
        "--ranking", choices=RANKINGS, default="modular_centrality", help="which images of a community"
    )


def check_selector_options(args: argparse.Namespace) -> None:
    """Checks the options that no selector checks; ends with code 2 and one sentence where one is wrong."""
    check_option(args, "min_probability", 0 <= args.min_probability <= 1, "it must be 0 to 1")
    share = args.typical_share
    check_option(args, "typical_share", share is None or 0 <= share <= 1, "it must be 0 to 1")


def needs_real_tiles(args: argparse.Namespace) -> bool:
    """Whether the options go by real tiles."""
    return args.typical_share is not None or args.drop_copies


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Reads and checks the command line; ends with code 2 and one sentence where it is wrong."""
    parser = argparse.ArgumentParser(
        prog="histodistill select", description=__doc__, allow_abbrev=False, formatter_class=HelpFormatter
    )
    parser.add_argument("--pool", type=Path, required=True, help="folder that generate left")
    parser.add_argument("--teacher", type=Path, required=True, help="folder of a classifier trained on the real tiles")
    parser.add_argument("--data", default=None, help="the real tiles, which --typical-share and --drop-copies go by")
    parser.add_argument(
        "--embedder",
        default="untrained",
        help="untrained: a ConvNet with random weights; teacher: the teacher's features; a transformers vision model; "
        "or the folder of an autoencoder for its latents",
    )
    parser.add_argument("--output", type=Path, required=True, help="folder for selector/ and distilled/")
    parser.add_argument("--n-per-class", type=int, default=100, help="images to keep of each class")
    parser.add_argument("--seed", type=int, default=0, help="seed of the selector")
    add_selector_options(parser)
    args = parser.parse_args(argv)
    check_selector_options(args)
    if needs_real_tiles(args) and args.data is None:
        option = "--drop-copies" if args.drop_copies else "--typical-share"
        fail(f"--data is missing: {option} goes by the real tiles, so name them")
    return args


def main(argv: list[str]) -> None:
    """Checks the options, then runs `histodistill.training.distillation.select` with them."""
    parse_args(argv)
    run_module("histodistill.training.distillation.select", argv)
