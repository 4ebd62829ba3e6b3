"""Keeps the figures of README and docs true: collects them from finished runs, and writes them where they stand.

    python docs/results.py collect runs/pathmnist_1k --name pathmnist_1k --hardware "2 cores of an AMD EPYC" \\
        --command "histodistill distill …"
    python docs/results.py write

`collect` reads what a run has measured of itself into `docs/results/NAME.json`, and draws its distilled images to
`docs/assets/NAME.png`, if the run passed its privacy audit as it is now. `write` makes the chart and the texts between
`<!-- results: … -->` and `<!-- /results -->` in README.md and in the pages of docs from these files.
"""

from __future__ import annotations

import argparse
import io
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from histodistill.training.running.files import format_size, read_json, write_bytes, write_json


ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "docs" / "results"
ASSETS = ROOT / "docs" / "assets"
# The run whose images and curve stand at the top of the README.
FEATURED = "pathmnist_1k"
# Lines of the chart: row of the results table → title, colour and marker.
LINES = {
    "kernel_herding@soft_label_weight=1": ("distilled, with its soft labels", "#7c4dff", "o"),
    "kernel_herding": ("distilled, by labels", "#00897b", "s"),
    "real_random": ("random real tiles", "#e67700", "^"),
}
CEILING = "real_all"
# Folders of a run in the order in which they are made: what the table of times calls them.
STAGES = {
    "autoencoder": "autoencoder",
    "pipeline": "denoiser",
    "teacher": "teacher",
    "pool": "pool",
    "distilled": "selection",
    "comparison": "comparison",
    "audit": "audit",
}
# What may leave the house.
SHARED = ("pipeline", "selector", "distilled")
_MARK = re.compile(r"(<!-- results: (?P<name>[a-z_ ]+?) -->\n).*?(<!-- /results -->)", re.DOTALL)
# Texts of the chart, readable on white and on black; a browser puts the second in the place of the first in dark mode.
_INK, _DARK_INK = "#3d4450", "#d5dae1"


# Collecting


def collect(run: Path, hardware: str, command: str) -> dict[str, Any]:
    """What a finished run has measured, as `docs/results/NAME.json` holds it.

    Args:
        run: Folder of the run.
        hardware: What it ran on, in words.
        command: What made it.

    Raises:
        SystemExit: If it has not passed its audit, or its files are not those of the audit.
    """
    from histodistill.training.evaluation.verdicts import BENCHMARK, read_run_audit
    from histodistill.training.reporting.audit_texts import audit_outcome

    audit = read_run_audit(run / "audit.json")
    if audit is None:
        sys.exit(f"error: {run} has no audit of this version: run histodistill audit on it")
    outcomes = {part: audit_outcome(run / part, verdict) for part, verdict in audit.parts.items()}
    if set(outcomes.values()) != {"passed"}:
        sys.exit(f"error: {run} did not pass its audit ({outcomes}): nothing of it may be shown")
    record, published = read_json(run / "run.json"), audit.figures.published
    attacks = [attack.main.auc for by_name in published.membership.values() for attack in by_name.values()]
    worst = max(attacks, key=lambda auc: abs(auc.value - 0.5))
    stages = {folder: read_json(run / folder / "stage.json") for folder in STAGES}
    return {
        "command": command,
        "hardware": hardware,
        "preset": record["preset"],
        "image_size": record["image_size"],
        "class_names": record["class_names"],
        "num_tiles": record["num_tiles"],
        "num_distilled": published.copies.num_images,
        "num_pool": stages["pool"]["num_images"],
        "versions": stages["audit"]["versions"],
        "seconds": {title: stages[folder]["seconds"] for folder, title in STAGES.items()},
        "peak_memory": max(stage.get("peak_memory") or 0 for stage in stages.values()),
        "disk": _size_of(run),
        "shared": {part: _size_of(run / part) for part in SHARED},
        "audit": {
            "copies": published.copies.of_training + published.copies.of_others,
            "membership_auc": [worst.value, worst.low, worst.high],
            "weights_auc": [
                audit.figures.weights.auc.value,
                audit.figures.weights.auc.low,
                audit.figures.weights.auc.high,
            ]
            if audit.figures.weights
            else None,
            "held_out": audit.held_out_at_random,
        },
        "scores": [_score(row) for row in read_json(run / "results.json")["rows"]],
        "table": list(_table(run / BENCHMARK)),
    }


def _size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _score(row: dict[str, Any], **more: Any) -> dict[str, Any]:
    """A row of scores on test tiles without what no page shows."""
    return {
        "row": row["row"],
        **more,
        "num_train": row["num_train"],
        "steps": row["steps"],
        "seeds": row["seeds"],
        **{
            name: {key: None if row[name][key] is None else round(row[name][key], 4) for key in ("mean", "std")}
            for name in ("accuracy", "auc", "f1")
        },
    }


def _table(path: Path) -> Iterator[dict[str, Any]]:
    """Rows of the results table, where the run has one."""
    if path.is_file():
        for row in read_json(path)["rows"]:
            yield _score(
                {**row, **row["test"]},
                architecture=row["architecture"],
                size=row["size"],
                validation=round(row["validation"]["accuracy"]["mean"], 4),
            )


# Drawing


def draw_distilled(run: Path, path: Path, per_class: int = 3) -> None:
    """Draws the first distilled images of each class, one column for each, to a PNG file."""
    import numpy as np
    from matplotlib.figure import Figure

    from histodistill.training.data.image_dataset import read_image_dataset

    images, columns, class_names = read_image_dataset(run / "distilled")
    figure = Figure(figsize=(0.95 * len(class_names), 0.95 * per_class + 0.55), dpi=112, facecolor="white")
    grid = figure.subplots(per_class, len(class_names), squeeze=False)
    figure.subplots_adjust(
        left=0.002, right=0.998, bottom=0.004, top=1 - 0.55 / (0.95 * per_class + 0.55), wspace=0.05, hspace=0.05
    )
    for label, name in enumerate(class_names):
        chosen = images[np.flatnonzero(columns["label"] == label)[:per_class]]
        for axes, image in zip(grid[:, label], chosen, strict=True):
            axes.imshow(image, interpolation="lanczos")
            axes.axis("off")
        grid[0, label].set_title(_wrapped(name), fontsize=7.5, color="#1d2126", pad=4)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    write_bytes(path, buffer.getvalue())


def _wrapped(name: str) -> str:
    """A class name in lines short enough for a column."""
    import textwrap

    return "\n".join(textwrap.wrap(name, 15, break_long_words=False)[:3])


def draw_curve(result: dict[str, Any], path: Path) -> None:
    """Draws accuracy against images per class, with random real tiles and all real tiles, to an SVG file.

    It has no background, and its texts follow dark mode.
    """
    import matplotlib
    from matplotlib.figure import Figure

    rows = convnet_rows(result)
    figure = Figure(figsize=(7.6, 2.9))
    axes = figure.subplots()
    for name, (title, colour, marker) in LINES.items():
        mine = [rows[name, size] for size in sizes_of(rows) if (name, size) in rows]
        axes.errorbar(
            [row["size"] for row in mine],
            [row["accuracy"]["mean"] for row in mine],
            [row["accuracy"]["std"] or 0 for row in mine],
            color=colour, marker=marker, markersize=5, linewidth=1.8, capsize=3, label=title,
        )  # fmt: skip
    ceiling = rows[CEILING, None]
    axes.axhline(ceiling["accuracy"]["mean"], color=_INK, linewidth=1.2, linestyle=(0, (4, 3)))
    sizes = sizes_of(rows)
    axes.text(
        sizes[0], ceiling["accuracy"]["mean"], f"all {ceiling['num_train']:,} real tiles",
        color=_INK, fontsize=9, va="bottom",
    )  # fmt: skip
    axes.set(xscale="log", xlabel="images per class", ylabel="accuracy on real test tiles")
    axes.set_xticks(sizes, [str(size) for size in sizes])
    axes.minorticks_off()
    axes.grid(axis="y", color="#8a93a0", alpha=0.3, linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)
    for text in (axes.xaxis.label, axes.yaxis.label, *axes.get_xticklabels(), *axes.get_yticklabels()):
        text.set_color(_INK)
    for spine in axes.spines.values():
        spine.set_color(_INK)
    axes.tick_params(color=_INK)
    axes.legend(loc="lower right", frameon=False, fontsize=9, labelcolor=_INK)
    figure.tight_layout()
    buffer = io.StringIO()
    # The same figures give the same file.
    with matplotlib.rc_context({"svg.hashsalt": "histodistill", "svg.fonttype": "path"}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    style = (
        f'<style>@media (prefers-color-scheme: dark) {{ [style*="fill: {_INK}"] {{ fill: {_DARK_INK} !important }} '
        f'[style*="stroke: {_INK}"] {{ stroke: {_DARK_INK} !important }} }}</style>'
    )
    text = re.sub(r"(<svg[^>]*>)", lambda found: found[1] + style, buffer.getvalue(), count=1)
    write_bytes(path, text.encode())


# Writing


def read_results() -> dict[str, dict[str, Any]]:
    """All that was collected, by name."""
    return {path.stem: read_json(path) for path in sorted(RESULTS.glob("*.json"))}


def convnet_rows(result: dict[str, Any]) -> dict[tuple[str, int | None], dict[str, Any]]:
    """What the ConvNet scored: name of a row and images per class, None for a row of fixed size → the row."""
    return {(row["row"], row["size"]): row for row in result["table"] if row["architecture"] == "convnet"}


def sizes_of(rows: Iterable[tuple[str, int | None]]) -> list[int]:
    """The numbers of images per class that there are, in order."""
    return sorted({size for _, size in rows if size})


def three_numbers(results: dict[str, dict[str, Any]]) -> str:
    """What a reader should remember, from the run whose images are shown."""
    result = results[FEATURED]
    soft, by_labels, full = _mean_accuracies(result)
    num_real = convnet_rows(result)[CEILING, None]["num_train"]
    audit, sizes = result["audit"], result["shared"]
    auc, low, high = audit["membership_auc"]
    per_class = result["num_distilled"] // len(result["class_names"])
    return (
        f"- **{soft:.3f} against {full:.3f}**: test accuracy of a ConvNet trained on the {result['num_distilled']} "
        f"synthetic images with their soft labels, and on all {num_real} real tiles "
        f"({by_labels:.3f} by labels alone; {_seeds(result)} at equal steps, test tiles of another clinic).\n"
        f"- **{audit['copies']} copies**: none of the images is a copy of a real tile, also turned, moved, zoomed or "
        f"stained otherwise, and the best of our attacks on membership has an AUC of {auc:.2f} "
        f"[{low:.2f}, {high:.2f}], where 0.5 is guessing.\n"
        f"- **{format_size(sizes['distilled'])}**: the whole set, {per_class} images of each of "
        f"{len(result['class_names'])} classes, small enough to look at one by one.\n"
    )


def _mean_accuracies(result: dict[str, Any]) -> tuple[float, float, float]:
    """Of the largest distilled set with soft labels and by labels, and of all real tiles."""
    soft_row, row = list(LINES)[:2]
    rows = convnet_rows(result)
    size = max(sizes_of(key for key in rows if key[0] == soft_row))
    found = (rows[soft_row, size], rows[row, size], rows[CEILING, None])
    soft, by_labels, full = (item["accuracy"]["mean"] for item in found)
    return soft, by_labels, full


def _seeds(result: dict[str, Any]) -> str:
    count = len(convnet_rows(result)[CEILING, None]["seeds"])
    return "one seed" if count == 1 else f"means of {count} seeds"


def times(results: dict[str, dict[str, Any]]) -> str:
    """How long whole runs took, on what, and what they needed."""
    lines = ["| tiles | preset | on | time | memory | disk |", "|---|---|---|---:|---:|---:|"]
    for name, result in results.items():
        total = sum(result["num_tiles"].get(split, 0) for split in ("train", "held_out"))
        lines.append(
            f"| `{name}`: {total:,} of {result['image_size']} px in {len(result['class_names'])} classes | "
            f"`{result['preset']}` | {result['hardware']} | {_duration(sum(result['seconds'].values()))} | "
            f"{format_size(result['peak_memory'])} | {format_size(result['disk'])} |"
        )
    return "\n".join(lines) + "\n"


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def curve(results: dict[str, dict[str, Any]]) -> str:
    """The figures of the chart as a table."""
    result = results[FEATURED]
    rows = convnet_rows(result)
    lines = [
        "| images per class | " + " | ".join(title for title, _, _ in LINES.values()) + " |",
        "|---:|" + "---|" * len(LINES),
    ]
    for size in sizes_of(rows):
        cells = [
            _with_spread(rows[name, size]) if (name, size) in rows else "– (some classes have fewer)" for name in LINES
        ]
        lines.append(f"| {size} | " + " | ".join(cells) + " |")
    full = rows[CEILING, None]
    lines.append(f"| all {full['num_train']} real tiles | | | {_with_spread(full)} |")
    return "\n".join(lines) + "\n"


def _with_spread(row: dict[str, Any]) -> str:
    mean, std = row["accuracy"]["mean"], row["accuracy"]["std"]
    return f"{mean:.3f}" if std is None else f"{mean:.3f} ± {std:.3f}"


def stage_times(results: dict[str, dict[str, Any]]) -> str:
    """Seconds of each stage of each run."""
    lines = ["| run | " + " | ".join(STAGES.values()) + " |", "|---|" + "---:|" * len(STAGES)]
    for name, result in results.items():
        cells = [f"{result['seconds'][title]:,.0f} s" for title in STAGES.values()]
        lines.append(f"| `{name}` | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def commands(results: dict[str, dict[str, Any]]) -> str:
    """What made each run."""
    return "".join(f"- `{name}`: `{result['command']}`\n" for name, result in results.items())


# What stands between the marks, by their name.
TEXTS: dict[str, Callable[[dict[str, dict[str, Any]]], str]] = {
    "three numbers": three_numbers,
    "times": times,
    "curve": curve,
    "stage times": stage_times,
    "commands": commands,
}


def filled_in(text: str, results: dict[str, dict[str, Any]]) -> str:
    """A page with what stands between its marks made anew."""
    return _MARK.sub(lambda found: found[1] + TEXTS[found["name"]](results) + found[3], text)


def pages() -> list[Path]:
    """The pages that may have marks."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def main() -> None:
    """Reads the command line and does what it says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    actions = parser.add_subparsers(dest="action", required=True)
    collecting = actions.add_parser("collect")
    collecting.add_argument("run", type=Path, metavar="RUN")
    for option in ("--name", "--hardware", "--command"):
        collecting.add_argument(option, required=True)
    actions.add_parser("write")
    args = parser.parse_args()
    if args.action == "collect":
        write_json(RESULTS / f"{args.name}.json", collect(args.run, args.hardware, args.command))
        draw_distilled(args.run, ASSETS / f"{args.name}.png")
        return
    results = read_results()
    if results[FEATURED]["table"]:
        draw_curve(results[FEATURED], ASSETS / "accuracy.svg")
    for path in pages():
        path.write_text(filled_in(path.read_text(encoding="utf-8"), results), encoding="utf-8")


if __name__ == "__main__":
    main()
