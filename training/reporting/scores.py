"""Scores of a run as texts: the tables of `results.json`, and recovery in a sentence."""

from __future__ import annotations

from typing import Any

from histodistill.hub_cards.card_facts import architecture_title
from histodistill.hub_cards.rendering import ScoreText
from histodistill.training.evaluation.compare import SOFT_ROW, headline_row
from histodistill.training.reporting.charts import Score, bar_chart


# The scores of a table, from left to right.
_METRICS = ("accuracy", "auc", "f1")


def rows_by_architecture(results: dict[str, Any]) -> dict[str, dict[str, dict[str, Any]]]:
    """The rows of results.json: architecture → name of a row → the row, in the order of the file.

    Args:
        results: What `read_results` returned.
    """
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for row in results["rows"]:
        found.setdefault(row["architecture"], {})[row["row"]] = row
    return found


def score_tables(results: dict[str, Any]) -> list[dict[str, Any]]:
    """What results.json holds as one table for each architecture.

    Args:
        results: What `read_results` returned.

    Returns:
        Tables of `architecture`, `seeds` (the largest number of them) and `rows` of `title`, `num_train` images,
        `own` (whether it stands for the distilled set) and `scores`: ACC, AUC and macro F1 as `ScoreText`.
    """
    tables = []
    for architecture, mine in rows_by_architecture(results).items():
        own = headline_row(mine, results["recovery_row"])
        rows = [
            {
                "title": row["title"],
                "num_train": row["num_train"],
                "own": name == own,
                "scores": [ScoreText.of(row[metric]) for metric in _METRICS],
            }
            for name, row in mine.items()
        ]
        seeds = max(len(row["seeds"]) for row in mine.values())
        tables.append({"architecture": architecture_title(architecture), "seeds": seeds, "rows": rows})
    return tables


def recoveries(results: dict[str, Any]) -> list[dict[str, Any]]:
    """What each architecture recovers by the recommended way, beside as many random real tiles, in one sentence.

    The recommended way is the teacher's soft labels, where there are such scores.

    Args:
        results: What `read_results` returned.

    Returns:
        Dicts of `architecture`, `value` (1 is the accuracy of all real tiles) and `sentence`; none for an architecture
        without scores of all real tiles.
    """
    items = []
    for name, rows in rows_by_architecture(results).items():
        own, full = rows.get(headline_row(rows, results["recovery_row"])), rows.get("real_all")
        if own and full and own["accuracy"]["mean"] is not None and full["accuracy"]["mean"]:
            value = own["accuracy"]["mean"] / full["accuracy"]["mean"]
            sentence = _headline(name, own, full, rows.get("real_random"))
            items.append({"architecture": architecture_title(name), "value": value, "sentence": sentence})
    return items


def _headline(name: str, own: dict[str, Any], full: dict[str, Any], random: dict[str, Any] | None) -> str:
    """The score of distilled images in one sentence with what random real tiles give."""
    accuracy, ceiling = own["accuracy"]["mean"], full["accuracy"]["mean"]
    how = "with the teacher's soft labels" if own["row"] == SOFT_ROW else "by their labels"
    text = (
        f"{architecture_title(name)} trained on the {own['num_train']:,} distilled images {how} gets {accuracy:.3f} "
        f"of the test tiles right, {100 * accuracy / ceiling:.1f}% of what all {full['num_train']:,} real training "
        f"tiles give ({ceiling:.3f})"
    )
    if random and random["accuracy"]["mean"] is not None:
        text += (
            f"; {random['num_train']:,} random real tiles give {random['accuracy']['mean']:.3f}, but real "
            "tiles may not be shared"
        )
    seeds = own["seeds"]
    told = f"mean of {len(seeds)} seeds" if len(seeds) > 1 else "one seed: another may differ by some points"
    return f"{text} ({told})."


def headline_figures(results: dict[str, Any]) -> dict[str, Any] | None:
    """The accuracies to see first: of the distilled set, random real tiles and all real tiles, first architecture.

    Args:
        results: What `read_results` returned.

    Returns:
        `architecture`; and `figures`, dicts of `kind`, `title`, `num_train` and `accuracy`. None where the distilled
        set has no score.
    """
    for architecture, by_name in rows_by_architecture(results).items():
        own = headline_row(by_name, results["recovery_row"])
        shown = [by_name[name] for name in (own, "real_random", "real_all") if name in by_name]
        shown = [row for row in shown if row["accuracy"]["mean"] is not None]
        if shown and shown[0]["row"] == own:
            figures = [
                {
                    "kind": row_kind(row["row"]),
                    "title": row["title"],
                    "num_train": row["num_train"],
                    "accuracy": row["accuracy"]["mean"],
                }
                for row in shown
            ]
            return {"architecture": architecture_title(architecture), "figures": figures}
    return None


def score_charts(results: dict[str, Any]) -> list[dict[str, Any]]:
    """Accuracy by row as a chart for each architecture, in the order of `score_tables`: see `bar_chart`.

    What random real tiles give, which is what the others are compared with, is marked on every bar.

    Args:
        results: What `read_results` returned.
    """
    charts = []
    for mine in rows_by_architecture(results).values():
        own = headline_row(mine, results["recovery_row"])
        bars = [
            {
                "title": row["title"],
                "text": str(ScoreText.of(row["accuracy"])),
                "score": Score(row["accuracy"]["mean"], row["accuracy"]["std"]),
                "kind": row_kind(name),
                "own": name == own,
            }
            for name, row in mine.items()
            if row["accuracy"]["mean"] is not None
        ]
        random = mine.get("real_random")
        charts.append(bar_chart(bars, random["accuracy"]["mean"] if random else None))
    return charts


def row_kind(name: str) -> str:
    """What decides the colour of a row: `distilled` however it was trained, or its name."""
    return "distilled" if name.startswith("distilled") else name
