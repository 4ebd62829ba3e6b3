"""The figures of `histodistill benchmark`, all of test tiles."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.figure import Figure

from histodistill.training.data.images import figure_png
from histodistill.training.tables.planned_cells import Place
from histodistill.training.tables.results_summary import row_title


# Colours of the tiles that rows train on: far from each other, on white.
COLOURS = (
    "#8e3b73", "#1f77b4", "#2a9d5c", "#d1761a", "#5b5ea6", "#b33c3c", "#2b8c9e", "#7a6a1e", "#555555", "#e377c2",
    "#17d4a7", "#111111",
)  # fmt: skip
# Markers of the recipes, the options after a row's @; matplotlib's letters.
MARKERS = "osD^vPX*<"
# Dashes of the lines of each recipe; those of a row of fixed size, which has no markers, are longer.
DASHES = ((), (4, 1), (1, 1), (4, 1, 1, 1), (7, 2), (2, 2), (7, 1, 1, 1, 1, 1), (1, 3), (4, 4))
# Ranges of confidence with fewer test tiles would show chance.
FEWEST_TILES = 20


def draw_results(rows: list[dict[str, Any]], cells: list[dict[str, Any]], class_names: list[str]) -> dict[str, bytes]:
    """PNG figures by file name.

    `accuracy_by_size.png` has every row; the other three have `shown_rows` of the first architecture: the tiles that
    all of a row's seeds get right and wrong, the F1 of each class, and how far confidence can be relied on. Without
    rows there are none.

    Args:
        rows: As `results_summary.summarise` returns them.
        cells: The cells that they sum up.
        class_names: Names of the labels.
    """
    if not rows:
        return {}
    architecture = rows[0]["architecture"]
    shown = []
    steps = {(row["row"], row["size"]): row["steps"] for row in rows if row["architecture"] == architecture}
    for row, size in shown_rows(rows):
        line = architecture, row, size, steps[row, size]
        mine = [cell for cell in cells if Place.of(cell)[:-1] == line]
        images = "" if size is None else f", {size} per class"
        shown.append((f"{row_title(row).replace('`', '')}{images}", mine))
    return {
        "accuracy_by_size.png": draw_accuracy(rows),
        "confusion.png": draw_confusion(shown, class_names, architecture),
        "per_class_f1.png": draw_per_class_f1(shown, class_names, architecture),
        "reliability.png": draw_reliability(shown, architecture),
    }


def shown_rows(rows: list[dict[str, Any]], at_most: int = 4) -> list[tuple[str, int | None]]:
    """Row and size of those to look at closely: of the first architecture, at the largest size.

    All real tiles and random ones come first, then the rows of highest validation accuracy among the others.
    """
    mine = [row for row in rows if row["architecture"] == rows[0]["architecture"]]
    largest = max((row["size"] for row in mine if row["size"] is not None), default=None)
    real = [row for row in mine if (row["row"], row["size"]) in (("real_all", None), ("real_random", largest))]
    others = [row for row in mine if row["size"] == largest and row not in real]
    others.sort(key=lambda row: -row["validation"]["accuracy"]["mean"])
    return [(row["row"], row["size"]) for row in (real + others)[:at_most]]


def draw_accuracy(rows: list[dict[str, Any]]) -> bytes:
    """Accuracy against images per class, a panel for each classifier; a level line for each row of fixed size.

    What a row trains on has a colour, and its recipe (the options after its @) a marker and dashes, so that no two of
    some hundred rows look alike.
    """
    architectures = list(dict.fromkeys(row["architecture"] for row in rows))
    names = list(dict.fromkeys(row["row"] for row in rows))
    tiles, recipes = (list(dict.fromkeys(name.partition("@")[part] for name in names)) for part in (0, 2))
    figure = Figure(figsize=(4.6 * len(architectures) + 2.8, max(4.6, 0.22 * len(names) + 1)), layout="constrained")
    panels = figure.subplots(1, len(architectures), sharey=True, squeeze=False)[0]
    handles = {}
    for panel, architecture in zip(panels, architectures, strict=True):
        mine = [row for row in rows if row["architecture"] == architecture]
        sizes = sorted({row["size"] for row in mine if row["size"] is not None})
        for place, name in enumerate(names):
            kind, _, recipe = name.partition("@")
            number = recipes.index(recipe)
            dashes = DASHES[number % len(DASHES)]
            style = {"color": COLOURS[tiles.index(kind) % len(COLOURS)], "linewidth": 1.2}
            line = sorted((row for row in mine if row["row"] == name), key=lambda row: row["size"] or 0)
            if not line:
                continue
            means = [row["test"]["accuracy"]["mean"] for row in line]
            deviations = [row["test"]["accuracy"]["std"] or 0.0 for row in line]
            title = row_title(name).replace("`", "")
            if line[0]["size"] is None:
                longer = tuple(2 * length for length in dashes)
                handles[title] = panel.axhline(means[0], linestyle=(0, longer), label=title, **style)
            else:
                # A little apart, so that the bars can be told from each other.
                places = [row["size"] * (1 + 0.012 * (place - len(names) / 2)) for row in line]
                handles[title] = panel.errorbar(
                    places, means, deviations, marker=MARKERS[number % len(MARKERS)], markersize=4, elinewidth=0.8,
                    linestyle=(0, dashes), label=title, **style,
                )  # fmt: skip
        if sizes:
            panel.set_xscale("log")
            panel.set_xlim(sizes[0] / 1.4, sizes[-1] * 1.4)
            panel.set_xticks(sizes, [str(size) for size in sizes])
            panel.minorticks_off()
        panel.set_title(architecture, fontsize=10)
        panel.set_xlabel("images per class")
        panel.grid(alpha=0.25)
        panel.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("accuracy on test tiles, mean ± deviation over seeds")
    figure.legend(
        handles.values(), handles.keys(), loc="outside right center", frameon=False, fontsize=8, handlelength=4
    )
    return figure_png(figure)


def draw_confusion(shown: list[tuple[str, list[dict]]], class_names: list[str], architecture: str) -> bytes:
    """Confusion matrices over all seeds: of the tiles of a true class (row), the share in each predicted one."""
    side = max(2.6, 0.42 * len(class_names) + 1.4)
    figure = Figure(figsize=(side * len(shown) + 1.6, side + 0.7), layout="constrained")
    panels = figure.subplots(1, len(shown), sharey=True, squeeze=False)[0]
    places = np.arange(len(class_names))
    for panel, (title, cells) in zip(panels, shown, strict=True):
        counts = np.sum([cell["test"]["confusion"] for cell in cells], axis=0)
        shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
        panel.imshow(shares, vmin=0, vmax=1, cmap="Purples")
        for true, predicted in np.argwhere(shares >= 0.005):
            share = shares[true, predicted]
            panel.text(
                predicted, true, f"{100 * share:.0f}", ha="center", va="center", fontsize=7,
                color="white" if share > 0.55 else "black",
            )  # fmt: skip
        panel.set_title(_wrapped(title), fontsize=9)
        panel.set_xticks(places, class_names, rotation=60, ha="right", fontsize=7)
        panel.set_yticks(places, class_names, fontsize=7)
        panel.set_xlabel("predicted", fontsize=8)
    panels[0].set_ylabel("true class, % of its tiles", fontsize=8)
    figure.suptitle(f"{architecture}, test tiles", fontsize=10)
    return figure_png(figure)


def draw_per_class_f1(shown: list[tuple[str, list[dict]]], class_names: list[str], architecture: str) -> bytes:
    """The F1 of each class, bars with the deviation over seeds."""
    figure = Figure(figsize=(8.5, 1.3 + 0.22 * len(class_names) * (len(shown) + 1)), layout="constrained")
    panel = figure.subplots()
    height = 0.85 / len(shown)
    for place, (title, cells) in enumerate(shown):
        scores = np.array([cell["test"]["per_class_f1"] for cell in cells])
        deviation = scores.std(axis=0, ddof=1) if len(scores) > 1 else None
        panel.barh(
            np.arange(len(class_names)) + (place - (len(shown) - 1) / 2) * height,
            scores.mean(axis=0), height=0.9 * height, xerr=deviation, color=COLOURS[place], label=title,
            error_kw={"elinewidth": 0.8},
        )  # fmt: skip
    panel.set_yticks(np.arange(len(class_names)), class_names)
    panel.invert_yaxis()
    panel.set_xlim(0, 1)
    panel.set_xlabel(f"F1 on test tiles, {architecture}, mean ± deviation over seeds")
    panel.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside upper center", ncols=2, frameon=False, fontsize=8)
    return figure_png(figure)


def draw_reliability(shown: list[tuple[str, list[dict]]], architecture: str) -> bytes:
    """Accuracy against confidence over all seeds, with the expected calibration error (mean over seeds).

    Ranges of confidence with fewer than `FEWEST_TILES` tiles have no point.
    """
    figure = Figure(figsize=(6.4, 4.6), layout="constrained")
    panel = figure.subplots()
    panel.plot([0, 1], [0, 1], color="#b9bfc7", linewidth=1)
    for place, (title, cells) in enumerate(shown):
        bins = np.array([cell["test"]["reliability"] for cell in cells])
        counts = bins[:, :, 0].sum(axis=0)
        seen = counts >= FEWEST_TILES
        confidence, accuracy = ((bins[:, :, i] * bins[:, :, 0]).sum(axis=0)[seen] / counts[seen] for i in (1, 2))
        error = np.mean([cell["test"]["ece"] for cell in cells])
        panel.plot(
            confidence, accuracy, marker=MARKERS[place], markersize=4, color=COLOURS[place],
            label=f"{title} (ECE {error:.3f})",
        )  # fmt: skip
    panel.set_xlabel("confidence")
    panel.set_ylabel(f"accuracy on test tiles, {architecture}")
    panel.set_xlim(0, 1)
    panel.set_ylim(0, 1)
    panel.spines[["top", "right"]].set_visible(False)
    panel.legend(frameon=False, fontsize=8)
    return figure_png(figure)


def _wrapped(title: str) -> str:
    return title.replace(", ", ",\n")
