"""Sums up the cells of a results table: means over seeds, recovery, margins, and the table as text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from scipy import stats

from histodistill.hub_cards.card_facts import classifier_name
from histodistill.hub_cards.rendering import format_score, format_steps
from histodistill.training.evaluation.cells import METRICS, summarise_seeds
from histodistill.training.tables.planned_cells import Place
from histodistill.training.tables.rows import FIXED_ROWS
from histodistill.training.tables.schedule import best_steps, settling_seed


# Splits of the real tiles that the table scores on, in the order in which they are shown.
SPLITS = ("validation", "test")
# The rows that margins are over, and what they are called in the table.
BASELINES = {"random": "random pool images", "real_random": "random real tiles"}
# The row whose accuracy is 100 % of recovery.
CEILING = "real_all"
# What stands below a table.
_NOTE = (
    "Recovery and margins are over the seeds in common with the baseline of the same recipe (the options beside a "
    "row's name); † marks those over the plain baseline, where none of that recipe was trained."
)


def summarise(cells: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One dict for each architecture, row and size, in order of appearance.

    Args:
        cells: As `train_cell` returns them.

    Returns:
        Dicts of architecture, row, size, num_train, steps, batch_size, seeds, `ladder`, `against`, and for each split
        and metric the mean, the standard deviation (None for one seed), the values, and `margins` over the rows of
        `BASELINES` of the same architecture and size on the seeds that both have: see `paired_margin`, None where
        there is nothing to compare. Each split also has `recovery`: the mean accuracy over that of the row `CEILING`
        of the same architecture, on the seeds that both have, or None.

        Where a row was trained for several numbers of steps, its scores are those of `best_steps`, and so are those of
        a baseline; `ladder` has a dict for each that its `settling_seed` has tried: the steps, all seeds that were
        trained for so many, and the validation accuracy of the one that settles.

        A row `X@R`, where R are the options of its recipe, is compared with the row `BASELINE@R`, and with the plain
        `BASELINE` only where that was not trained; so is its recovery. `against` maps each of `BASELINES` and
        `CEILING` to the row that was taken, or None. A baseline has no margin over itself, whatever its recipe.
    """
    lines: dict[tuple, dict[Place, dict]] = {}
    for cell in cells:
        place = Place.of(cell)
        lines.setdefault(place.line, {})[place] = cell
    groups: dict[tuple, dict[int, dict]] = {}
    for key, found in lines.items():
        steps = best_steps({place: cell["validation"]["accuracy"] for place, cell in found.items()})
        groups[key] = {place.seed: cell for place, cell in found.items() if place.steps == steps}
    rows = []
    for (architecture, row, size), by_seed in groups.items():
        tiles, _, recipe = row.partition("@")
        sizes = {**{name: size for name in BASELINES if name != tiles}, CEILING: None}
        against = {name: _counterpart(groups, architecture, name, recipe, of) for name, of in sizes.items()}
        mine = [by_seed[seed] for seed in sorted(by_seed)]
        summary = summarise_seeds(mine, SPLITS)
        scores = {split: summary.pop(split) for split in SPLITS}
        baselines = {
            name: groups.get((architecture, against[name], size), {}) for name in BASELINES if name in against
        }
        ceiling = groups.get((architecture, against[CEILING], None), {})
        for split in SPLITS:
            for metric in METRICS:
                scores[split][metric]["margins"] = {
                    name: _margin(by_seed, baseline, split, metric) for name, baseline in baselines.items()
                }
            scores[split]["recovery"] = _recovery(by_seed, ceiling, split)
        more = {
            "batch_size": mine[0]["config"]["batch_size"],
            "ladder": _ladder(lines[architecture, row, size]),
            "against": against,
        }
        rows.append({"architecture": architecture, "row": row, "size": size, **summary, **more, **scores})
    return rows


def _ladder(cells: Mapping[Place, dict[str, Any]]) -> list[dict[str, Any]]:
    """What the seed that settles a line's steps gave by their number, ascending."""
    settles = settling_seed(cells)
    rungs = sorted((place for place in cells if place.seed == settles), key=lambda place: place.steps or 0)
    return [
        {
            "steps": rung.steps,
            "seeds": sorted(place.seed for place in cells if place.steps == rung.steps),
            "validation": cells[rung]["validation"]["accuracy"],
        }
        for rung in rungs
    ]


def _counterpart(groups: dict[tuple, Any], architecture: str, name: str, recipe: str, size: int | None) -> str | None:
    """The row `name` with this recipe where it was trained, or else the plain one; None where neither was."""
    names = [f"{name}@{recipe}", name] if recipe else [name]
    return next((name for name in names if (architecture, name, size) in groups), None)


def _recovery(mine: dict[int, dict], ceiling: dict[int, dict], split: str) -> float | None:
    both = sorted(mine.keys() & ceiling.keys())
    own, whole = (sum(cells[seed][split]["accuracy"] for seed in both) for cells in (mine, ceiling))
    return own / whole if whole else None


def _margin(mine: dict[int, dict], baseline: dict[int, dict], split: str, metric: str) -> dict[str, Any] | None:
    both = sorted(mine.keys() & baseline.keys())
    scores, theirs = ([cells[seed][split][metric] for seed in both] for cells in (mine, baseline))
    if not both or None in scores + theirs:
        return None
    return paired_margin(np.array(scores), np.array(theirs))


def paired_margin(scores: np.ndarray, baseline: np.ndarray) -> dict[str, float | None]:
    """How much higher scores are than a baseline's of the same seeds.

    Args:
        scores, baseline: float S, pairs.

    Returns:
        The mean difference, its 95 % confidence interval (low, high) and the p-value of the two-sided paired t-test
        that it is 0; None where one pair or equal differences leave these open.
    """
    difference = scores - baseline
    margin = {"mean": float(difference.mean()), "low": None, "high": None, "p_value": None}
    if np.ptp(difference) > 1e-9:  # beyond rounding
        test = stats.ttest_rel(scores, baseline)
        interval = test.confidence_interval(0.95)
        margin |= {"low": float(interval.low), "high": float(interval.high), "p_value": float(test.pvalue)}
    return margin


def markdown_table(rows: list[dict[str, Any]], split: str) -> str:
    """The table of one split: a block for each architecture and size, rows in their order, and a note below it."""
    over = [f"ACC over {title}, 95 % interval | p" for title in BASELINES.values()]
    header = ["classifier", "images per class", "trained on", "steps", "ACC", "AUC", "macro F1", "recovery", *over]
    lines = [f"| {' | '.join(header)} |", "|" + "---|" * (8 + 2 * len(BASELINES))]
    for architecture in dict.fromkeys(row["architecture"] for row in rows):
        sizes = dict.fromkeys(row["size"] for row in rows)
        for size in sorted(sizes, key=lambda size: (size is not None, size or 0)):
            for row in rows:
                if (row["architecture"], row["size"]) != (architecture, size):
                    continue
                scores = " | ".join(format_score(row[split][metric]) for metric in METRICS)
                recovery = row[split]["recovery"]
                # A baseline that is plain where the row is not.
                marks = {name: "†" for name, other in row["against"].items() if "@" in row["row"] and other == name}
                share = "–" if recovery is None else f"{100 * recovery:.1f} %{marks.get(CEILING, '')}"
                found = row[split]["accuracy"]["margins"]
                margins = " | ".join(_margin_cells(found.get(name), marks.get(name, "")) for name in BASELINES)
                images = "all" if size is None else size
                steps = format_steps(row["steps"], row["batch_size"])
                line = f"| {classifier_name(architecture)} | {images} | {row_title(row['row'])} | {steps} | {scores} |"
                lines.append(f"{line} {share} | {margins} |")
    return "\n".join([*lines, "", _NOTE]) + "\n"


def row_title(row: str) -> str:
    """A row as it is called in tables: fixed ones by what they are, others by their name."""
    tiles, at, recipe = row.partition("@")
    title = FIXED_ROWS.get(tiles, f"`{tiles}`")
    return f"{title}, `{recipe}`" if at else title


def margin_text(margin: dict[str, Any], mark: str = "") -> str:
    """A margin as +0.150, with its interval where there is one: `+0.150 (-0.485 to +0.785)`.

    Args:
        margin: As `paired_margin` returns it.
        mark: What follows.
    """
    interval = "" if margin["low"] is None else f" ({margin['low']:+.3f} to {margin['high']:+.3f})"
    return f"{margin['mean']:+.3f}{interval}{mark}"


def _margin_cells(margin: dict[str, Any] | None, mark: str) -> str:
    """The two cells of a table that show a margin: with its interval, and the p-value."""
    if margin is None:
        return " | "
    p_value = "" if margin["p_value"] is None else f"{margin['p_value']:.3f}"
    return f"{margin_text(margin, mark)} | {p_value}"
