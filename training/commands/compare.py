"""Trains classifiers on the distilled set and on real tiles, and scores them on real test tiles.

    histodistill compare --run runs/phantom --data phantom --train convnet:1000

Each combination is one training; finished ones are kept in `RUN/comparison/`. All rows of an architecture share the
same recipe and number of steps; the best step is chosen on the validation tiles, and the test tiles are scored once.
Leaves `RUN/results.json`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from histodistill.training.running.launch import add_launch_option, run_module
from histodistill.training.running.options import HelpFormatter, check_option, fail


ROWS = {
    "real_all": "All real tiles",
    "real_random": "Random real tiles, as many as distilled",
    "pool_random": "Random synthetic tiles, as many as distilled",
    "distilled_ce": "Distilled, cross-entropy",
    "distilled_joint": "Distilled, joint loss",
    "distilled_soft": "Distilled, soft labels of the teacher",
}
# The row whose accuracy is divided by that of real_all.
RECOVERY_ROW = "distilled_ce"


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Reads and checks the command line; ends with code 2 and one sentence where it is wrong."""
    parser = argparse.ArgumentParser(
        prog="histodistill compare",
        description=__doc__,
        epilog="rows: " + "; ".join(f"{name}: {title}" for name, title in ROWS.items()),
        allow_abbrev=False,
        formatter_class=HelpFormatter,
    )
    parser.add_argument("--run", type=Path, required=True, help="folder with pool/ and distilled/")
    parser.add_argument("--data", required=True, help="the real tiles: any source that train_classifier takes")
    parser.add_argument("--image-size", type=int, default=None, help="side in pixels; default: the size tiles have")
    parser.add_argument(
        "--train",
        nargs="+",
        default=["convnet:1000"],
        metavar="ARCHITECTURE:STEPS[:ROW,ROW…]",
        help="what to train for how many steps on which rows, all rows where none is named",
    )
    add_cell_options(parser)
    args = parser.parse_args(argv)
    check_cell_options(args, list(ROWS))
    return args


def add_cell_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options, beside `--train`, of a table whose cells are trainings."""
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="one training each")
    parser.add_argument("--batch-size", type=int, default=128, help="tiles per batch")
    parser.add_argument("--mixed-precision", choices=["no", "bf16", "fp16"], default="bf16", help="fp16 needs a GPU")
    add_launch_option(parser)


def check_cell_options(args: argparse.Namespace, known_rows: list[str]) -> None:
    """Checks those options, and reads `--train` into `args.plan`; ends with code 2 where one is wrong."""
    for name in ("batch_size", "num_processes"):
        check_option(args, name, getattr(args, name) >= 1, "it must be at least 1")
    check_option(args, "seeds", min(args.seeds) >= 0, "each must be at least 0")
    check_option(args, "seeds", len(set(args.seeds)) == len(args.seeds), "each may be named once")
    args.plan = parse_plan(args.train, known_rows)


def parse_plan(texts: list[str], known_rows: list[str]) -> list[tuple[str, int, list[str]]]:
    """Architecture, steps and rows of each `ARCHITECTURE:STEPS[:ROW,ROW…]`; ends with code 2 where one is wrong."""
    from histodistill.training.models.architectures import ARCHITECTURES

    plan = []
    for text in texts:
        architecture, _, rest = text.partition(":")
        steps, _, rows = rest.partition(":")
        names = rows.split(",") if rows else known_rows
        if architecture not in ARCHITECTURES:
            fail(f"--train={text}: the architecture must be one of {', '.join(ARCHITECTURES)}")
        if not steps.isdecimal() or int(steps) < 1:
            fail(f"--train={text}: after the architecture comes the number of steps, at least 1, as in convnet:1000")
        unknown = [name for name in names if name not in known_rows]
        if unknown:
            fail(f"--train={text}: {unknown[0]!r} is no row: use {', '.join(known_rows)}")
        if len(set(names)) < len(names):
            fail(f"--train={text} names a row twice: name each once")
        if architecture in (other for other, _, _ in plan):
            fail(f"--train names {architecture} twice: all rows of an architecture are trained for the same steps")
        plan.append((architecture, int(steps), names))
    return plan


def main(argv: list[str]) -> None:
    """Checks the options, then runs `histodistill.training.evaluation.compare` with them."""
    run_module("histodistill.training.evaluation.compare", argv, parse_args(argv).num_processes)
