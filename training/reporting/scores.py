"""Scores of a run as texts: the tables of `results.json`, and recovery in a sentence."""

from __future__ import annotations

from typing import Any

from histodistill.hub_cards.card_facts import ARCHITECTURES
from histodistill.hub_cards.rendering import ScoreText


# The scores of a table, from left to right.
_METRICS = ("accuracy", "auc", "f1")


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
        rows = [
            {
                "title": row["title"],
                "num_train": row["num_train"],
                "own": row["row"] == results["recovery_row"],
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


def architecture_title(name: str) -> str:
    """What an architecture is called in texts."""
    return ARCHITECTURES.get(name, name)
