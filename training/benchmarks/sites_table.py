"""Sums up the cells of the study of several sites, and shows them as text."""

from __future__ import annotations

from typing import Any

import numpy as np

from histodistill.hub_cards.rendering import format_score
from histodistill.training.evaluation.cells import METRICS, spread
from histodistill.training.tables.results_summary import SPLITS, margin_text, paired_margin


# Scores of a row by split and metric, one for each seed.
_Scores = dict[tuple[str, str], list[float | None]]
# The row that margins are over.
MERGED = "merged"


def summarise_sites(cells: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Sums up the cells of each row.

    Args:
        cells: As `site_cells.train_cells` returns them.

    Returns:
        For each row, in order of appearance, a dict of row, seeds, num_train, and for each split the `spread` of each
        metric over seeds, and how much higher (`margin`, None for the row itself) the merged distilled sets score.
        The mean of all sites alone follows as `sites`, seed by seed; its num_train is None.
    """
    by_row: dict[str, list[dict[str, Any]]] = {}
    for cell in cells:
        by_row.setdefault(cell["row"], []).append(cell)
    scores = {
        row: {(split, metric): [cell[split][metric] for cell in mine] for split in SPLITS for metric in METRICS}
        for row, mine in by_row.items()
    }
    scores["sites"] = _mean_of_sites([values for row, values in scores.items() if row.startswith("site-")])
    rows = []
    for row, mine in scores.items():
        record: dict[str, Any] = {"row": row, "seeds": [cell["seed"] for cell in by_row[MERGED]]}
        record["num_train"] = by_row[row][0]["num_train"] if row in by_row else None
        for split in SPLITS:
            record[split] = {metric: spread(mine[split, metric]) for metric in METRICS}
            merged, own = (np.array(values[split, "accuracy"]) for values in (scores[MERGED], mine))
            record[split]["margin"] = None if row == MERGED else paired_margin(merged, own)
        rows.append(record)
    return rows


def _mean_of_sites(sites: list[_Scores]) -> _Scores:
    """The mean over sites of each score, seed by seed; None where it is undefined for one of them."""
    return {
        which: [
            None if None in values else float(np.mean(values))
            for values in zip(*(site[which] for site in sites), strict=True)
        ]
        for which in sites[0]
    }


def titles(num_sites: int, num_rounds: int, as_many: int, is_cut: bool) -> dict[str, str]:
    """What the rows are called.

    Args:
        num_sites: Number of sites.
        num_rounds: Of federated averaging.
        as_many: Tiles of each class that `sampled` has.
        is_cut: Whether that is less than the merged sets have.
    """
    named = {
        "pooled": "all real tiles of all sites together",
        MERGED: "the merged distilled sets",
        "sampled": "random real tiles of all sites together, "
        + (f"{as_many} of each class, as the rarest has no more" if is_cut else "as many as merged"),
        "federated": f"federated averaging, {num_rounds} rounds",
        "sites": "the real tiles of one site, mean over sites",
    }
    for number in range(1, num_sites + 1):
        named[f"site-{number}"] = f"the real tiles of site {number}"
        named[f"distilled-{number}"] = f"the distilled set of site {number}"
    return named


def site_table(counts: list[list[int]], class_names: list[str]) -> str:
    """How many tiles of each class each site has, as Markdown.

    Args:
        counts: Tiles of each class, for each site.
        class_names: Names of the classes.
    """
    lines = [f"| tiles | {' | '.join(class_names)} | all |", "|" + "---|" * (len(class_names) + 2)]
    for number, mine in enumerate(counts, 1):
        lines.append(f"| site {number} | {' | '.join(map(str, mine))} | {sum(mine)} |")
    return "\n".join(lines) + "\n"


def score_table(rows: list[dict[str, Any]], named: dict[str, str]) -> str:
    """The scores of all rows as Markdown, validation tiles and then test tiles.

    Args:
        rows: As `summarise_sites` returns them.
        named: What each row is called.
    """
    blocks = []
    for split in SPLITS:
        lines = [
            f"| trained on, {split} tiles | images | ACC | AUC | macro F1 | ACC of merged over it, 95 % interval |",
            "|---|---|---|---|---|---|",
        ]
        for row in rows:
            scores = " | ".join(format_score(row[split][metric]) for metric in METRICS)
            margin = row[split]["margin"]
            text = "" if margin is None else margin_text(margin)
            images = row["num_train"] or ""
            lines.append(f"| {named[row['row']]} | {images} | {scores} | {text} |")
        blocks.append("\n".join(lines) + "\n")
    return "\n".join(blocks)
