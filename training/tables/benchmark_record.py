"""benchmark.json, the results table, as cards take it: what is known is read by a schema."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import Field, model_validator

from histodistill.hub_cards.audit_record import Count, Share
from histodistill.hub_cards.contents import about
from histodistill.hub_cards.documents import Known, Seed, read_document
from histodistill.hub_cards.errors import ContentError
from histodistill.hub_cards.rendering import format_steps
from histodistill.training.evaluation.results_file import Architecture
from histodistill.training.evaluation.run_records import shown_value
from histodistill.training.evaluation.verdicts import BENCHMARK
from histodistill.training.running.errors import InputError
from histodistill.training.tables.rows import FIXED_ROWS, parse_row


class Margin(Known):
    """How much higher an accuracy is than another."""

    mean: Annotated[float, Field(ge=-1, le=1)]
    # An interval of few seeds is wider than the scores are.
    low: Annotated[float, Field(ge=-100, le=100)] | None
    high: Annotated[float, Field(ge=-100, le=100)] | None

    @model_validator(mode="after")
    def _is_interval(self) -> Self:
        if (self.low is None) != (self.high is None):
            raise ValueError("low and high must be there both, or neither")
        return self


class BenchmarkScore(Known):
    """A score of the results table."""

    mean: Share | None
    std: Share | None
    margins: dict[str, Margin | None] = Field(default_factory=dict)


class BenchmarkScores(Known):
    """The scores of a row on one split."""

    accuracy: BenchmarkScore
    auc: BenchmarkScore
    f1: BenchmarkScore


class BenchmarkRow(Known):
    """A row of the results table."""

    row: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.,:=@+-]{1,200}$")]
    architecture: Architecture
    size: Annotated[Count, Field(ge=1)] | None
    seeds: Annotated[tuple[Seed, ...], Field(min_length=1, max_length=1000)]
    # Of a probe there are no steps; a table of before may not say how many tiles each took.
    steps: Annotated[Count, Field(ge=1)] | None = None
    batch_size: Annotated[Count, Field(ge=1)] | None = None
    test: BenchmarkScores

    def title(self) -> str:
        """What it was trained on, in words that are made of its name.

        Raises:
            ContentError: If that is the name of no row.
        """
        try:
            row = parse_row(self.row)
        except InputError as error:
            raise ContentError("holds a row that the results table does not have") from error
        options = "".join(f", {name}={_shown_option(name, value)}" for name, value in row.recipe.items())
        if row.peer:
            tiles = f"images that {row.tiles} makes of real tiles"
        elif row.guided:
            tiles = f"images sampled by {row.tiles}"
        else:
            tiles = FIXED_ROWS.get(row.tiles, f"pool images chosen by {row.tiles}")
        return tiles + options

    def steps_text(self) -> str:
        """Its number of steps: see `format_steps`."""
        return format_steps(self.steps, self.batch_size)


class Benchmark(Known):
    """benchmark.json: the results table."""

    rows: Annotated[tuple[BenchmarkRow, ...], Field(max_length=1000)]

    @model_validator(mode="after")
    def _has_each_row_once(self) -> Self:
        if len({(row.row, row.architecture, row.size) for row in self.rows}) < len(self.rows):
            raise ValueError("a row is there twice")
        return self


def _shown_option(name: str, value: Any) -> str:
    """The value of an option as the name of a row has it: 0 and 1 stand for false and true."""
    return f"{value:g}" if isinstance(value, int | float) else shown_value(name, value)


def read_benchmark(run: Path) -> tuple[BenchmarkRow, ...]:
    """The rows of the results table of a run; none where there is no table.

    Raises:
        InputError: If the file holds something else than a results table.
    """
    path = run / BENCHMARK
    if not path.is_file():
        return ()
    try:
        return read_document(path.read_bytes(), Benchmark).rows
    except (OSError, ContentError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(
            f"{path} cannot be read ({reason}): delete it and run histodistill benchmark again"
        ) from error


def benchmark_rows(run: Path, records: Mapping[str, bytes], n_per_class: int) -> list[dict[str, Any]]:
    """Test scores of the rows of the results table with as many images per class as the distilled set, or all.

    `margin` is that over random pool images: those of the row's recipe, or plain ones where these were not trained.

    Args:
        run: Folder of the run, for messages.
        records: Files of it, path → content; without a results table there are no rows.
        n_per_class: Images of each class of the distilled set.

    Raises:
        ContentError: For a row that the table does not have, and for what says something else than it can.
    """
    if BENCHMARK not in records:
        return []
    rows = []
    with about(run, BENCHMARK):
        for row in read_document(records[BENCHMARK], Benchmark).rows:
            if row.size in (n_per_class, None):
                scores = row.test.model_dump()
                margin = scores["accuracy"]["margins"].get("random")
                rows.append(
                    {
                        "title": row.title(),
                        "architecture": row.architecture,
                        "size": row.size,
                        "seeds": list(row.seeds),
                        "steps": row.steps_text(),
                        **scores,
                        "margin": margin,
                    }
                )
    return rows
