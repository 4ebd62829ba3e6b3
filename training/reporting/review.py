"""Writes a page on which people look through a distilled set and leave images out; and a blinded sheet.

    histodistill review runs/mine                                leaves runs/mine/review/review.html
    histodistill review runs/mine --data TILES                   and runs/mine/review/blinded.html
    histodistill review runs/mine --answers answers-1a2b3c4d.json

The page shows the set by class, with a box to leave an image out and a field for a note. It needs nothing else and
sends nothing: a button saves a file, which `histodistill select --exclude` takes, from one reviewer or several.

With `--data` there is a blinded sheet, too: generated images and real tiles that no model was trained on, as many of
both, in random order. It must not leave the house. Readers say of each image whether it is real, and save a file;
`--answers` scores these files: the share that was right, with a 95 % interval, of all, of each class and of each
reader. Which image is what is in runs/mine/review/blinded_key.json: keep it from readers.
"""

from __future__ import annotations

from pathlib import Path

from histodistill.training.evaluation.audit import AuditConfig
from histodistill.training.running.claims import claiming
from histodistill.training.running.errors import InputError, param
from histodistill.training.running.options import StepParser, config, like, option, run_script
from histodistill.training.running.source_options import SourceOptions


@config
class ReviewConfig(SourceOptions):
    """Options of `review`."""

    run: Path = option("folder with a finished distilled/", positional=True, setting=False, claimed=True)
    answers: tuple[Path, ...] = option(
        "files that readers of the blinded sheet saved: scores them, and makes no page",
        default=(),
        metavar="FILE",
        setting=False,
    )
    data: str | Path | None = option(
        "the real tiles, the source that the run was made from: makes the blinded sheet, too",
        default=None,
        setting=False,
    )
    audit_share: float | None = like(AuditConfig, "audit_share")
    per_class: int = option(
        "generated images of each class on the blinded sheet, and as many real tiles", default=10, at_least=1
    )
    seed: int | None = option(
        "seed of the images on the blinded sheet and of their order, which readers must not know; default: that of "
        "the sheet that is there, or a secret one",
        default=None,
        at_least=0,
        below=2**31,
    )

    def check(self) -> None:
        """Checks that one thing is asked for."""
        if self.answers and self.data is not None:
            raise InputError(f"{param('answers')} are to the sheet that is there: leave {param('data')} out")


def make_parser() -> StepParser[ReviewConfig]:
    """The parser of the command line."""
    return StepParser(ReviewConfig, prog="histodistill review", description=__doc__)


@claiming
def run(config: ReviewConfig) -> Path:
    """Writes the page, and with real tiles the blinded sheet; or with answers, scores them.

    Returns:
        The path of the page of the set; of the scores, where answers are scored.

    Raises:
        InputError: For a run without a finished selection, tiles that it was not made from, or answers that are not
            to its sheet.
    """
    from histodistill.training.running.stages import require_parts

    # Before the libraries are imported, which takes seconds.
    require_parts(config.run, "distilled")
    if config.answers:
        from histodistill.training.reporting.blinded_sheet import SCORES, score_answers, score_lines
        from histodistill.training.reporting.review_page import REVIEW_FOLDER

        print("\n".join(score_lines(score_answers(config.run, config.answers))))
        return config.run / REVIEW_FOLDER / SCORES
    if config.data is not None:
        from histodistill.training.data.sources import check_source

        pipeline = require_parts(config.run, "pipeline")["pipeline"]
        check_source(config.data, config.source_options(config.run).get("labels"))

        from histodistill.training.evaluation.run_audit import load_run_tiles
        from histodistill.training.reporting.blinded_sheet import write_sheet

        options = config.source_options(config.run)
        source = load_run_tiles(config.run, config.data, config.audit_share, pipeline, options)
        sheet = write_sheet(config.run, source, config.per_class, config.seed)
        print(f"review: {sheet} shows real tiles and must not leave the house")

    from histodistill.training.reporting.review_page import write_review_page

    path = write_review_page(config.run)
    print(f"review: {path}")
    return path


if __name__ == "__main__":
    run_script(make_parser, run)
