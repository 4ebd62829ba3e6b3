"""Makes the results table: classifiers trained on real tiles and on what each selector chooses, scored on real tiles.

    histodistill benchmark runs/phantom --data phantom --rows real_random random infomap infomap:quota=sqrt \\
        --sizes 10 50 --train convnet:600 --seeds 0 1 2 3 4

Every row has the same recipe and number of optimizer steps; the last step counts, so validation tiles play no part in
training and are scored beside the test tiles. A seed is that of the selection and of the training. Cells are trained
in several processes and kept, so a killed benchmark goes on where it was, and rows, sizes and seeds can be added.
Leaves `RUN/benchmark/` with benchmark.json and benchmark.md, whose margins over `random` are paired by seed.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
from pathlib import Path

from histodistill.selection import SELECTOR_NAMES
from histodistill.training.commands.compare import check_cell_options
from histodistill.training.commands.select import add_selector_options, check_selector_options
from histodistill.training.launch import run_module
from histodistill.training.options import HelpFormatter, check_option, fail


# Rows whose tiles are not selected, and what they are.
FIXED_ROWS = {
    "real_all": "all real training tiles",
    "pool_all": "the whole pool",
    "real_random": "random real training tiles",
}
# Those that do not depend on the number of images per class.
WHOLE_ROWS = ("real_all", "pool_all")


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Reads and checks the command line; ends with code 2 and one sentence where it is wrong."""
    parser = argparse.ArgumentParser(
        prog="histodistill benchmark",
        description=__doc__,
        epilog="rows: "
        + "; ".join(f"{name}: {title}" for name, title in FIXED_ROWS.items())
        + "; SELECTOR[:OPTION=VALUE,…] with a selector and options of histodistill select, such as infomap:quota=sqrt",
        allow_abbrev=False,
        formatter_class=HelpFormatter,
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="folder with pool/ and teacher/")
    parser.add_argument("--data", required=True, help="the real tiles: the source that the run was made from")
    parser.add_argument("--image-size", type=int, default=None, help="side in pixels; default: the size tiles have")
    parser.add_argument("--output", type=Path, default=None, help="folder for the result; default: RUN/benchmark")
    parser.add_argument(
        "--rows",
        nargs="+",
        default=[*FIXED_ROWS, *SELECTOR_NAMES],
        metavar="ROW",
        help="what classifiers are trained on",
    )
    parser.add_argument("--sizes", type=int, nargs="+", default=[10, 50, 100], help="images per class")
    parser.add_argument(
        "--train",
        nargs="+",
        default=["convnet:600"],
        metavar="ARCHITECTURE:STEPS",
        help="what to train for how many steps",
    )
    parser.add_argument("--embedder", default="untrained", help="as for histodistill select")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4], help="one training each")
    parser.add_argument("--batch-size", type=int, default=32, help="tiles per batch")
    parser.add_argument("--mixed-precision", choices=["no", "bf16", "fp16"], default="bf16", help="fp16 needs a GPU")
    parser.add_argument(
        "--jobs", type=int, default=os.cpu_count(), help="trainings at a time, each in one process of so many threads"
    )
    args = parser.parse_args(argv)
    check_option(args, "jobs", args.jobs >= 1, "it must be at least 1")
    check_option(args, "sizes", min(args.sizes) >= 1, "each must be at least 1")
    check_option(args, "sizes", len(set(args.sizes)) == len(args.sizes), "each may be named once")
    for text in args.train:
        if text.count(":") > 1:
            fail(f"--train={text}: write ARCHITECTURE:STEPS, as in convnet:600; --rows says what to train on")
    args.num_processes = 1
    check_cell_options(args, [])
    args.specs = {row: parse_row(row) for row in args.rows}
    if len(args.specs) < len(args.rows):
        fail("--rows names a row twice: name each once")
    args.output = args.output or args.run / "benchmark"
    return args


def parse_row(row: str) -> argparse.Namespace | None:
    """The options of `histodistill select` that a row stands for; None for a row that is not selected."""
    if row in FIXED_ROWS:
        return None
    selector, _, rest = row.partition(":")
    argv = ["--selector", selector]
    for item in rest.split(",") if rest else []:
        name, equals, value = item.partition("=")
        if not equals or name == "selector":
            fail(f"--rows {row}: {item!r} is not OPTION=VALUE: write a row as in infomap:quota=sqrt,n_neighbors=10")
        argv += [f"--{name.replace('_', '-')}", value]
    parser = _RowParser(prog=f"--rows {row}", add_help=False, allow_abbrev=False)
    add_selector_options(parser)
    options = parser.parse_args(argv)
    check_selector_options(options)
    return options


class _RowParser(argparse.ArgumentParser):
    def error(self, message: str) -> None:
        fail(f"{self.prog}: {message}")


def file_name(row: str) -> str:
    """A row's name as part of a file's name; rows that differ have names that differ."""
    plain = re.sub(r"[^\w.]+", "-", row)
    return plain if plain == row else f"{plain}-{hashlib.sha256(row.encode()).hexdigest()[:8]}"


def main(argv: list[str]) -> None:
    """Checks the options, then runs `histodistill.training.results_table` with them."""
    parse_args(argv)
    run_module("histodistill.training.results_table", argv)
