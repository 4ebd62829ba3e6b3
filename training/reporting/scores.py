"""Scores of a run as texts: the tables of `results.json`, and recovery in a sentence."""

from __future__ import annotations

from typing import Any

from histodistill.hub_cards.card_facts import ARCHITECTURES
from histodistill.hub_cards.rendering import ScoreText


#: The row of `histodistill compare` that a user of the set should follow.
RECOMMENDED_ROW = "distilled_soft"
# The scores of a table, from left to right.
_METRICS = ("accuracy", "auc", "f1")


def score_tables(results: dict[str, Any]) -> list[dict[str, Any]]:
    """What results.json holds as one table for each architecture.

    Args:
        results: What `read_results` returned.

    Returns:
        Tables of `architecture`, `seeds` (the largest number of them) and `rows` of `title`, `num_train` images,
        `own` (whether it stands for the distilled set: the recommended way) and `scores`: ACC, AUC and macro F1 as
        `ScoreText`.
    """
    tables = []
    for architecture in dict.fromkeys(row["architecture"] for row in results["rows"]):
        mine = [row for row in results["rows"] if row["architecture"] == architecture]
        has_recommended = any(row["row"] == RECOMMENDED_ROW for row in mine)
        own_row = RECOMMENDED_ROW if has_recommended else results["recovery_row"]
        rows = [
            {
                "title": row["title"],
                "num_train": row["num_train"],
                "own": row["row"] == own_row,
                "scores": [ScoreText.of(row[metric]) for metric in _METRICS],
            }
            for row in mine
        ]
        seeds = max(len(row["seeds"]) for row in mine)
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
    for name in dict.fromkeys(row["architecture"] for row in results["rows"]):
        rows = {row["row"]: row for row in results["rows"] if row["architecture"] == name}
        own, full = rows.get(RECOMMENDED_ROW) or rows.get(results["recovery_row"]), rows.get("real_all")
        if own and full and own["accuracy"]["mean"] is not None and full["accuracy"]["mean"]:
            value = own["accuracy"]["mean"] / full["accuracy"]["mean"]
            sentence = _headline(name, own, full, rows.get("real_random"))
            items.append({"architecture": architecture_title(name), "value": value, "sentence": sentence})
    return items


def _headline(name: str, own: dict[str, Any], full: dict[str, Any], random: dict[str, Any] | None) -> str:
    """The score of distilled images in one sentence with what random real tiles give."""
    accuracy, ceiling = own["accuracy"]["mean"], full["accuracy"]["mean"]
    how = "with the teacher's soft labels" if own["row"] == RECOMMENDED_ROW else "by their labels"
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


def architecture_title(name: str) -> str:
    """What an architecture is called in texts."""
    return ARCHITECTURES.get(name, name)
