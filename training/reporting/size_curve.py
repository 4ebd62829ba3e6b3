"""The results table of a run, `benchmark/benchmark.json`, as a curve: accuracy against images per class."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from histodistill.hub_cards.card_facts import architecture_title
from histodistill.hub_cards.rendering import ScoreText
from histodistill.training.reporting.charts import MARKERS, Score, line_chart
from histodistill.training.tables.benchmark_record import BenchmarkRow, read_benchmark
from histodistill.training.tables.results_summary import row_title
from histodistill.training.tables.rows import HEADLINE_ROWS


def size_curves(run: Path) -> list[dict[str, Any]]:
    """What the results table says of each architecture: test accuracy by row and images per class.

    Args:
        run: Folder of the run.

    Returns:
        Dicts of `architecture`; `seeds`, the smallest and the largest number of them; `chart`, see `line_chart`, or
        None where no row has a size; `sizes`, the columns of the table, None for all tiles; `has_steps`, whether the
        file says how many steps its rows took; and `rows`, those that are drawn first: dicts of `title`, `marker` (its
        number in the chart, or None), `scores` as `ScoreText` and `steps` as text, None where there is none. Empty
        where there is no table.

    Raises:
        InputError: If the file holds something else than a results table.
    """
    rows = read_benchmark(run)
    return [
        _curve(name, [row for row in rows if row.architecture == name])
        for name in dict.fromkeys(row.architecture for row in rows)
    ]


def _curve(architecture: str, rows: list[BenchmarkRow]) -> dict[str, Any]:
    """Chart and table of one architecture."""
    by_row: dict[str, dict[int | None, BenchmarkRow]] = {}
    for row in rows:
        by_row.setdefault(row.row, {})[row.size] = row
    # Those that matter most come first; as many are drawn as can be told apart.
    order = [name for name in dict.fromkeys((*HEADLINE_ROWS, *by_row)) if name in by_row]
    drawn = order[: len(MARKERS)]
    lines = [
        {
            size: Score(row.test.accuracy.mean, row.test.accuracy.std)
            for size, row in by_row[name].items()
            if row.test.accuracy.mean is not None
        }
        for name in drawn
    ]
    sizes = sorted({row.size for row in rows}, key=lambda size: (size is None, size or 0))
    return {
        "architecture": architecture_title(architecture),
        "seeds": [end(len(row.seeds) for row in rows) for end in (min, max)],
        "chart": line_chart(lines) if any(size is not None for size in sizes) else None,
        "sizes": sizes,
        "has_steps": any(row.steps for row in rows),
        "rows": [
            {
                "title": row_title(name).replace("`", ""),
                "marker": drawn.index(name) if name in drawn else None,
                "scores": [
                    ScoreText.of(by_row[name][size].test.accuracy.model_dump()) if size in by_row[name] else None
                    for size in sizes
                ],
                "steps": [by_row[name][size].steps_text() if size in by_row[name] else None for size in sizes],
            }
            for name in order
        ],
    }
