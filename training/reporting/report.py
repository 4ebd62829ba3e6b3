"""Writes the report of a run, `RUN/report.html`, again.

    histodistill report runs/phantom

The page shows scores as charts and tables, the audit's verdict, distilled images and how they were chosen, times and
settings. It needs nothing else: its images are in it, only synthetic ones, it has no script and loads nothing. It
follows dark mode and can be printed.
"""

from __future__ import annotations

from pathlib import Path

from histodistill.training.running.claims import claiming
from histodistill.training.running.options import StepConfig, StepParser, config, option, run_script


@config
class ReportConfig(StepConfig):
    """Options of `report`."""

    run: Path = option(
        "folder that histodistill distill left", positional=True, also_named=True, setting=False, claimed=True
    )


def make_parser() -> StepParser[ReportConfig]:
    """The parser of the command line."""
    return StepParser(ReportConfig, prog="histodistill report", description=__doc__)


@claiming
def run(config: ReportConfig) -> Path:
    """Writes the report and says where it is.

    Returns:
        The path of the page.

    Raises:
        InputError: If there is no distilled set, or a JSON file of the run cannot be read.
    """
    from histodistill.training.data.image_dataset import require_shards

    require_shards(config.run / "distilled")  # before the libraries are imported, which takes seconds

    from histodistill.training.reporting.report_page import write_report

    path = write_report(config.run)
    print(f"report: {path}")
    return path


if __name__ == "__main__":
    run_script(make_parser, run)
