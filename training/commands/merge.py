"""Joins the distilled sets of several sites into one, so that a classifier can be trained on all of them.

    histodistill merge runs/site_a runs/site_b --names north south --output merged

A site is a run folder or a distilled set itself; all must have the same classes, image size and columns. The result is
a distilled set too: rows grouped by class, within a class by site, and a column that names the site. Its card and its
record say what came from where. The tiles, pools and models of the sites are not needed.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from histodistill.training.running.launch import run_module
from histodistill.training.running.options import HelpFormatter, fail


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Reads and checks the command line; ends with code 2 and one sentence where it is wrong."""
    parser = argparse.ArgumentParser(
        prog="histodistill merge", description=__doc__, allow_abbrev=False, formatter_class=HelpFormatter
    )
    parser.add_argument(
        "sites", type=Path, nargs="+", metavar="SITE", help="run folder with distilled/, or a distilled set itself"
    )
    parser.add_argument("--output", type=Path, required=True, help="folder for the merged set")
    parser.add_argument(
        "--names",
        nargs="+",
        default=None,
        metavar="NAME",
        help="what to call the sites, in their order; this is published; default: the names of their folders",
    )
    args = parser.parse_args(argv)
    if len(args.sites) < 2:
        fail(f"SITE={args.sites[0]} is the only one: name at least two sites to merge")
    if args.names is not None:
        names = " ".join(args.names)
        if len(args.names) != len(args.sites):
            fail(f"--names={names} does not fit {len(args.sites)} sites: give one name for each")
        if len(set(args.names)) < len(args.names) or not all(name.strip() for name in args.names):
            fail(f"--names={names} has a name twice or an empty one: give each site a name of its own")
    return args


def main(argv: list[str]) -> None:
    """Checks the options, then runs `histodistill.training.distillation.merge` with them."""
    parse_args(argv)
    run_module("histodistill.training.distillation.merge", argv)
