"""Selects the distilled set from the pool: embeddings, neighbour graph, Infomap communities, exactly N per class.

    histodistill select --pool runs/phantom/pool --teacher runs/phantom/teacher --output runs/phantom

Leaves `selector/` (a `DistillSelector`) and `distilled/` (a dataset that `load_dataset` opens) in the output folder.
The teacher is a classifier trained on the real tiles: its probabilities become the column soft_label, and its
penultimate features are the embeddings, unless `--embedder` names another model.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from histodistill.selection import QUOTA_RULES, SELECTOR_NAMES, WEIGHTINGS
from histodistill.training.launch import run_module
from histodistill.training.options import HelpFormatter


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Reads the command line; the selector checks the values."""
    parser = argparse.ArgumentParser(
        prog="histodistill select", description=__doc__, allow_abbrev=False, formatter_class=HelpFormatter
    )
    parser.add_argument("--pool", type=Path, required=True, help="folder that generate left")
    parser.add_argument("--teacher", type=Path, required=True, help="folder of a classifier trained on the real tiles")
    parser.add_argument(
        "--embedder", default=None, help="a transformers vision model; default: the teacher's features"
    )
    parser.add_argument("--output", type=Path, required=True, help="folder for selector/ and distilled/")
    parser.add_argument("--selector", choices=SELECTOR_NAMES, default="infomap", help="how to select")
    parser.add_argument("--n-per-class", type=int, default=100, help="images to keep of each class")
    parser.add_argument("--seed", type=int, default=0, help="seed of the selector")
    infomap = parser.add_argument_group("infomap")
    infomap.add_argument("--n-neighbors", type=int, default=15, help="neighbours of each image in the graph")
    infomap.add_argument("--weighting", choices=WEIGHTINGS, default="local_gaussian", help="weights of the links")
    infomap.add_argument("--markov-time", type=float, default=1.0, help="larger finds fewer, larger communities")
    infomap.add_argument("--num-trials", type=int, default=5, help="searches, of which the best counts")
    infomap.add_argument("--quota", choices=QUOTA_RULES, default="proportional", help="images per community")
    return parser.parse_args(argv)


def main(argv: list[str]) -> None:
    """Checks the options, then runs `histodistill.training.select` with them."""
    parse_args(argv)
    run_module("histodistill.training.select", argv)
