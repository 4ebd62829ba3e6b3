"""Writes the report of a run, `RUN/report.html`, again.

histodistill report --run runs/phantom
"""

from __future__ import annotations

import argparse
from pathlib import Path

from histodistill.training.running.errors import InputError
from histodistill.training.running.options import HelpFormatter, fail


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        prog="histodistill report", description=__doc__, allow_abbrev=False, formatter_class=HelpFormatter
    )
    parser.add_argument("--run", type=Path, required=True, help="folder that histodistill distill left")
    return parser.parse_args(argv)


def main(argv: list[str]) -> None:
    """Writes the report and says where it is."""
    args = parse_args(argv)
    from histodistill.training.reporting.report import write_report

    try:
        print(f"report: {write_report(args.run)}")
    except InputError as error:
        fail(str(error))
