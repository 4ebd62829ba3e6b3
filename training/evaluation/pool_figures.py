"""What `histodistill evaluate-pool` shows: its distances as lines of text and as a figure, and tiles side by side."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.figure import Figure

from histodistill.training.data.images import figure_png
from histodistill.training.data.tiles import Tiles
from histodistill.training.engine.steps import spread_indices


# What is compared with the validation tiles, and how it is called in figures.
CANDIDATES = {"pool": "pool", "real_train": "real training tiles"}
# Title of each distance in figures and text, and the format of its value there.
DISTANCES = {
    "frechet_distance": ("Fréchet distance", ".2f"),
    "kernel_distance": ("Kernel distance × 1000", ".2f"),
    "precision": ("Precision", ".3f"),
    "recall": ("Recall", ".3f"),
    "density": ("Density", ".3f"),
    "coverage": ("Coverage", ".3f"),
}
# Tiles of each class, and of each kind, that stand side by side in a figure.
TILES_PER_CLASS = 10
# Colours of the bars, in the order of `CANDIDATES`: the pool stands out, and its ceiling is grey.
_COLOURS = ("#8e3b73", "#b9bfc7")


def distance_lines(records: list[dict[str, Any]]) -> list[str]:
    """The distances as lines of text: each of the pool, with that of the real training tiles after a stroke.

    Args:
        records: As `pool_quality.compare_with_validation` gives them.

    Returns:
        Two lines of titles, then one for each record.
    """
    width = max(len(record["class"] or "all classes") for record in records) + 2
    lines = ["pool / real training tiles, both against validation tiles", " " * width + "  images"]
    lines[1] += "".join(f"{title:>26}" for title, _ in DISTANCES.values())
    for record in records:
        line = f"{record['class'] or 'all classes':<{width}}{record['num_images']:>8,}"
        for name in DISTANCES:
            pair = [format_distance(name, record[candidate][name]) for candidate in CANDIDATES]
            line += f"{' / '.join(pair):>26}"
        lines.append(line)
    return lines


def format_distance(name: str, value: float | None) -> str:
    """The value of a distance as it is shown: times 1000 for the kernel distance, – where it could not be measured."""
    if value is None:
        return "–"
    return format(1000 * value if name == "kernel_distance" else value, DISTANCES[name][1])


def draw_distances(records: list[dict[str, Any]]) -> bytes:
    """Draws one panel per distance, with bars for all classes together and for each, pool beside real tiles.

    Args:
        records: As `pool_quality.compare_with_validation` gives them.

    Returns:
        A PNG.
    """
    figure = Figure(figsize=(13, 1.2 + 0.62 * len(records)), layout="constrained")
    panels = figure.subplots(1, len(DISTANCES), sharey=True)
    rows = np.arange(len(records))
    for panel, (name, (title, _)) in zip(panels, DISTANCES.items(), strict=True):
        for offset, (candidate, colour) in enumerate(zip(CANDIDATES, _COLOURS, strict=True)):
            values = [record[candidate][name] for record in records]
            values = [np.nan if v is None else 1000 * v if name == "kernel_distance" else v for v in values]
            panel.barh(rows + 0.4 * offset - 0.2, values, height=0.38, color=colour, label=CANDIDATES[candidate])
        panel.set_title(title, fontsize=10)
        panel.spines[["top", "right"]].set_visible(False)
    panels[0].set_yticks(rows, [record["class"] or "all classes" for record in records])
    # Downwards, and with room for a class without bars.
    panels[0].set_ylim(len(records) - 0.4, -0.6)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False)
    return figure_png(figure)


def draw_tiles(real: Tiles, generated: Tiles, class_names: list[str]) -> bytes:
    """Draws for each class a row of real tiles, and a row of generated ones below it.

    Args:
        real: Real tiles, such as those for validation.
        generated: Tiles of the pool, of the same classes.
        class_names: Names of the labels.

    Returns:
        A PNG.
    """
    figure = Figure(figsize=(1.1 * TILES_PER_CLASS + 2.2, 2.3 * len(class_names)), layout="constrained")
    axes = figure.subplots(2 * len(class_names), TILES_PER_CLASS, squeeze=False)
    for label, name in enumerate(class_names):
        for below, (kind, tiles) in enumerate((("real", real), ("generated", generated))):
            members = np.flatnonzero(tiles.labels == label)
            # Spread over all, since tiles often lie in the order of their slides.
            shown = members[spread_indices(len(members), TILES_PER_CLASS)]
            row = axes[2 * label + below]
            for axis in row:
                axis.set_axis_off()
            for axis, image in zip(row, tiles.images[shown], strict=False):
                axis.imshow(image, interpolation="nearest")
            row[0].text(-0.15, 0.5, f"{name}\n{kind}", transform=row[0].transAxes, ha="right", va="center", fontsize=9)
    return figure_png(figure)
