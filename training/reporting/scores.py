"""Scores of a run as texts: the tables of `results.json`, and recovery in a sentence."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from histodistill.hub_cards.card_facts import ARCHITECTURES
from histodistill.hub_cards.rendering import ScoreText
from histodistill.training.reporting.charts import Score, bar_chart


# The scores of a table, from left to right.
_METRICS = ("accuracy", "auc", "f1")
# The way to train on a distilled set that is recommended.
_RECOMMENDED_ROW = "distilled_soft"


def score_tables(results: dict[str, Any]) -> list[dict[str, Any]]:
    """What results.json holds as one table for each architecture.

    Args:
        results: What `read_results` returned.

    Returns:
        Tables of `architecture`, `seeds` (the largest number of them) and `rows` of `title`, `num_train` images,
        `own` (whether it stands for the distilled set) and `scores`: ACC, AUC and macro F1 as `ScoreText`.
    """
    tables = []
    for architecture in dict.fromkeys(row["architecture"] for row in results["rows"]):
        mine = [row for row in results["rows"] if row["architecture"] == architecture]
        own = headline_row([row["row"] for row in mine], results["recovery_row"])
        rows = [
            {
                "title": row["title"],
                "num_train": row["num_train"],
                "own": row["row"] == own,
                "scores": [ScoreText.of(row[metric]) for metric in _METRICS],
            }
            for row in mine
        ]
        seeds = max(len(row["seeds"]) for row in mine)
        tables.append({"architecture": architecture_title(architecture), "seeds": seeds, "rows": rows})
    return tables


def recoveries(results: dict[str, Any]) -> list[dict[str, Any]]:
    """The recovery of each architecture, and what it means in one sentence.

    Args:
        results: What `read_results` returned.

    Returns:
        Dicts of `architecture`, `value` (1 is the accuracy of all real tiles) and `sentence`.
    """
    by_place = {(row["architecture"], row["row"]): row for row in results["rows"]}
    items = []
    for name, value in results.get("recovery", {}).items():
        own, full = by_place[name, results["recovery_row"]], by_place[name, "real_all"]
        sentence = (
            f"{architecture_title(name)} trained on the {own['num_train']:,} distilled images reaches "
            f"{100 * value:.1f}% of the test accuracy that all {full['num_train']:,} real training tiles give "
            f"({own['accuracy']['mean']:.3f} of {full['accuracy']['mean']:.3f})"
        )
        random = by_place.get((name, "real_random"))
        if random and random["accuracy"]["mean"] is not None:
            share = random["accuracy"]["mean"] / full["accuracy"]["mean"]
            sentence += f"; {random['num_train']:,} random real tiles reach {100 * share:.1f}%"
        items.append({"architecture": architecture_title(name), "value": value, "sentence": f"{sentence}."})
    return items


def headline_row(names: Collection[str], recovery_row: str) -> str:
    """The row that stands for the distilled set at first sight: trained the recommended way where it was.

    Args:
        names: Of the rows that an architecture has.
        recovery_row: What `results.json` measures recovery by.
    """
    return _RECOMMENDED_ROW if _RECOMMENDED_ROW in names else recovery_row


def headline_figures(results: dict[str, Any]) -> dict[str, Any] | None:
    """The accuracies to see first: of the distilled set, random real tiles and all real tiles, first architecture.

    Args:
        results: What `read_results` returned.

    Returns:
        `architecture`; `seeds`, the largest number of them; and `figures`, dicts of `kind`, `title`, `num_train` and
        `accuracy`. None where the distilled set has no score.
    """
    for architecture in dict.fromkeys(row["architecture"] for row in results["rows"]):
        by_name = {row["row"]: row for row in results["rows"] if row["architecture"] == architecture}
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
            seeds = max(len(row["seeds"]) for row in shown)
            return {"architecture": architecture_title(architecture), "seeds": seeds, "figures": figures}
    return None


def score_charts(results: dict[str, Any]) -> list[dict[str, Any]]:
    """Accuracy by row as a chart for each architecture, in the order of `score_tables`: see `bar_chart`.

    What random real tiles give, which is what the others are compared with, is marked on every bar.

    Args:
        results: What `read_results` returned.
    """
    charts = []
    for architecture in dict.fromkeys(row["architecture"] for row in results["rows"]):
        mine = {row["row"]: row for row in results["rows"] if row["architecture"] == architecture}
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
        charts.append(bar_chart(bars, random and random["accuracy"]["mean"]))
    return charts


def row_kind(name: str) -> str:
    """What decides the colour of a row: `distilled` however it was trained, or its name."""
    return "distilled" if name.startswith("distilled") else name


def architecture_title(name: str) -> str:
    """What an architecture is called in texts."""
    return ARCHITECTURES.get(name, name)
