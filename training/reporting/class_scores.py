"""What a run's comparison says of single classes: F1, and which class is taken for which.

`results.json` sums classes up, and is what cards tell of. The cells of the comparison hold more, and stay in the run.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import Field

from histodistill.hub_cards.audit_record import Count, Share
from histodistill.hub_cards.card_facts import architecture_title
from histodistill.hub_cards.documents import Known, check_document, parse_json
from histodistill.hub_cards.errors import ContentError
from histodistill.hub_cards.rendering import ScoreText
from histodistill.training.evaluation.cells import spread
from histodistill.training.evaluation.compare import headline_row
from histodistill.training.evaluation.plans import PlannedCell
from histodistill.training.reporting.charts import mark_chart
from histodistill.training.reporting.scores import row_kind, rows_by_architecture


class _ClassScores(Known):
    """Scores of one training on the tiles of a split."""

    per_class_f1: Annotated[tuple[Share, ...], Field(max_length=10_000)]
    confusion: Annotated[tuple[tuple[Count, ...], ...], Field(max_length=10_000)]


class _Cell(Known):
    """A cell of the comparison, as far as it is read here."""

    num_train: Count
    test: _ClassScores


def class_scores(run: Path, results: dict[str, Any]) -> dict[str, Any] | None:
    """F1 of each class for the first architecture's most telling rows, and the confusion of the first of them.

    Args:
        run: Folder of the run.
        results: What `read_results` returned.

    Returns:
        `architecture`; `rows`, what was trained on, as titles; `chart` of F1, see `mark_chart`; `table`, for each
        class a dict of `name` and `scores`, F1 as `ScoreText`; and `confusion`, of the first row: for each class, the
        per cent of its test tiles that are taken for each one. None where no row's cells say so much.
    """
    if not results["rows"]:
        return None
    names, (architecture, by_name) = results["class_names"], next(iter(rows_by_architecture(results).items()))
    shown = dict.fromkeys([headline_row(by_name, results["recovery_row"]), "real_random", "real_all"])
    found = {
        name: cells for name in shown if name in by_name and (cells := _read_cells(run, by_name[name], len(names)))
    }
    if not found:
        return None
    f1 = [np.array([cell.per_class_f1 for cell in cells]) for cells in found.values()]
    counts = np.sum([cell.confusion for cell in next(iter(found.values()))], axis=0)
    shares = 100 * counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    return {
        "architecture": architecture_title(architecture),
        "rows": [by_name[name]["title"] for name in found],
        "chart": mark_chart(
            names, {row_kind(name): s.mean(axis=0).tolist() for name, s in zip(found, f1, strict=True)}
        ),
        "table": [
            {"name": name, "scores": [ScoreText.of(spread(scores[:, label].tolist())) for scores in f1]}
            for label, name in enumerate(names)
        ],
        "confusion": [
            {"name": name, "shares": [round(share) for share in row]}
            for name, row in zip(names, shares.tolist(), strict=True)
        ],
    }


def _read_cells(run: Path, row: dict[str, Any], num_classes: int) -> list[_ClassScores]:
    """The test scores of each seed of a row of results.json; none where one of them does not say them."""
    cells = []
    for seed in row["seeds"]:
        place = PlannedCell(row["architecture"], row.get("steps"), row["row"], seed)
        try:
            cell = check_document(parse_json((run / "comparison" / place.file_name).read_bytes()), _Cell)
        except (OSError, ContentError):  # the page does without what is not there, or was cut off
            return []
        shapes = {len(cell.test.per_class_f1), len(cell.test.confusion), *map(len, cell.test.confusion)}
        if shapes != {num_classes} or cell.num_train != row["num_train"]:
            return []
        cells.append(cell.test)
    return cells
