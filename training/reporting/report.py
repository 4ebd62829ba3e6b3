"""The report of a run: one HTML page with everything in it, and the few lines that a run ends with."""

from __future__ import annotations

import base64
import json
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, StrictUndefined
from PIL import Image

from histodistill.hub_cards.card_facts import ARCHITECTURES
from histodistill.hub_cards.gate import AUDIT_FORMAT, files_to_audit, hash_files
from histodistill.training.data.image_dataset import read_image_dataset
from histodistill.training.data.images import png_bytes
from histodistill.training.reporting.run_facts import package_versions, privacy_facts, read_optional, source_name
from histodistill.training.running.files import write_text
from histodistill.training.running.stages import read_record


REPORT = "report.html"
IMAGES_PER_CLASS = 24
# Larger images are shown smaller, so that the page stays a few megabytes.
_LARGEST_SIDE = 96
# What a selection may leave in `selector/`: the file, what it shows, and how to read it.
SELECTION_PICTURES = (
    (
        "community_map.png",
        "Maps of the pool",
        "One panel is one class, one dot one of its generated images. Images that the embedding finds alike lie close "
        "together (t-SNE). Dots of one colour that a thin line joins are one community; colours repeat, so the same "
        "colour elsewhere is another one. Large dots with a dark ring are the chosen images: they should lie in all "
        "parts of the cloud. Light grey dots, if any, were dropped before the selection. Only closeness means "
        "something, not the directions and not the width of a gap.",
    ),
    (
        "community_tiles.png",
        "Images of the largest communities",
        "One row is one community, its number of images on the left. First come its most central images, those most "
        "typical of it, and after the gap its least central ones; a small community shows each image once. Chosen "
        "images have a green frame. A row should look alike, and the rows of a class unlike each other.",
    ),
)
# The same for `histodistill benchmark` and `benchmark/`.
BENCHMARK_PICTURES = (
    (
        "accuracy_by_size.png",
        "Accuracy against images per class",
        "Test tiles, mean and standard deviation over seeds. Dashed lines are sets of a fixed size.",
    ),
    (
        "confusion.png",
        "Which class is taken for which",
        "A row is a true class, a column a predicted one; the numbers are per cent of the row's test tiles.",
    ),
    ("per_class_f1.png", "F1 of each class", "Test tiles, mean and standard deviation over seeds."),
    (
        "reliability.png",
        "How far confidence can be relied on",
        "Test tiles of all seeds, in ten ranges of confidence. On the grey line a classifier is right as often as it "
        "says; below it, less often. ECE is the mean distance from it.",
    ),
)
# Communities shown one by one; more would be too thin to see.
_COMMUNITIES = 30

_METRICS = ("accuracy", "auc", "f1")
_STAGES = {
    "autoencoder": "Autoencoder",
    "pipeline": "Diffusion model",
    "teacher": "Teacher classifier",
    "pool": "Pool of generated images",
    "distilled": "Selection",
    "audit": "Privacy audit",
    "comparison": "Comparison of classifiers",
}
# What a stage may have measured, and how to say it.
_FACTS = {
    "validation_psnr": "validation PSNR {:.1f} dB",
    "validation_loss": "validation loss {:.4f}",
    "test_accuracy": "test ACC {:.3f}",
    "num_images": "{:,} images",
}


def write_report(run: str | Path) -> Path:
    """Writes `run/report.html`: scores, distilled images, communities, times and settings on one page.

    The page needs nothing else: its images are in it (only synthetic ones), it has no script and loads nothing. Of the
    run's files only `distilled/` must be there; where another is missing (`run.json`, `results.json`, the `stage.json`
    of a stage), the section says so. The pictures of the communities in `selector/` are shown where they are there.

    Args:
        run: folder of a run.

    Returns:
        The path of the page.

    Raises:
        InputError: If there is no distilled set, or a JSON file of the run cannot be read.
    """
    run = Path(run)
    # Autoescaped: names of classes and of data come from outside.
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = resources.files("histodistill.training.reporting").joinpath("report.html.jinja")
    source = template.read_text(encoding="utf-8")
    path = run / REPORT
    write_text(path, environment.from_string(source).render(_page(run)))
    return path


def summary_lines(run: str | Path) -> list[str]:
    """What a run ends with, as lines of plain text: ACC, AUC and F1 by row and architecture, recovery, where to look.

    Raises:
        InputError: If results.json cannot be read.
    """
    run = Path(run)
    results = read_optional(run / "results.json")
    lines = []
    if results and results["rows"]:
        width = max(len(row["title"]) for row in results["rows"]) + 2
        for table in score_tables(results):
            lines.append(f"{table['architecture']:<{width + 2}}{'images':>8}{'ACC':>16}{'AUC':>16}{'F1':>16}")
            for row in table["rows"]:
                scores = (s["mean"] + (f" ± {s['std']}" if s["std"] else "") for s in row["scores"])
                lines.append(f"  {row['title']:<{width}}{row['num_train']:>8,}" + "".join(f"{s:>16}" for s in scores))
            lines.append("")
        lines += results.get("notes", [])
        lines += [item["sentence"] for item in recoveries(results)]
    else:
        lines.append("No scores yet: histodistill compare makes them.")
    lines.append(f"Distilled set: {run / 'distilled'}")
    if (run / REPORT).is_file():
        lines.append(f"Report:        {run / REPORT}")
    return lines


def _page(run: Path) -> dict[str, Any]:
    """All that the template shows."""
    images, columns, class_names = read_image_dataset(run / "distilled")
    about = read_optional(run / "run.json") or {}
    results = read_optional(run / "results.json")
    records = {name: read_record(run / name) or {} for name in _STAGES}
    return {
        "name": about.get("data") or (results or {}).get("data") or run.resolve().name,
        "phantom": source_name(run) == "phantom",
        "num_images": len(images),
        "num_tiles": about.get("num_tiles"),
        "image_size": images.shape[1],
        "recovery": recoveries(results) if results else [],
        "tables": score_tables(results) if results else [],
        "result_notes": results.get("notes", []) if results else [],
        "classes": _classes(images, columns["label"], class_names),
        "quality": _pool_quality(read_optional(run / "evaluation" / "metrics.json")),
        "audit": _audit(run, read_optional(run / "audit.json")),
        "privacy": privacy_facts(records["pipeline"], records["distilled"]),
        "communities": _communities(records["distilled"].get("community_sizes", {}), columns, class_names),
        "dropped": [(name, n) for name, n in records["distilled"].get("dropped", {}).items() if n],
        "copies_dropped": sum((records["distilled"].get("copies_dropped") or {}).values()),
        "pictures": read_pictures(run / "selector", SELECTION_PICTURES),
        "benchmark_pictures": read_pictures(run / "benchmark", BENCHMARK_PICTURES),
        "selection_notes": records["distilled"].get("warnings", []),
        "stages": [_stage(title, records[name]) for name, title in _STAGES.items()],
        "total": _duration(sum(record.get("seconds", 0) for record in records.values())),
        "run": _flat({key: value for key, value in about.items() if key != "settings"}),
        "run_settings": _flat(about.get("settings", {})),
        "versions": package_versions(records).items(),
    }


def score_tables(results: dict[str, Any]) -> list[dict[str, Any]]:
    """What results.json holds as one table for each architecture, numbers already as text."""
    tables = []
    for architecture in dict.fromkeys(row["architecture"] for row in results["rows"]):
        mine = [row for row in results["rows"] if row["architecture"] == architecture]
        rows = [
            {
                "title": row["title"],
                "num_train": row["num_train"],
                "own": row["row"] == results["recovery_row"],
                "scores": [format_score(row[metric]) for metric in _METRICS],
            }
            for row in mine
        ]
        seeds = max(len(row["seeds"]) for row in mine)
        tables.append({"architecture": architecture_title(architecture), "seeds": seeds, "rows": rows})
    return tables


def format_score(score: dict[str, Any]) -> dict[str, str | None]:
    """Mean and standard deviation of a score as text; None for the latter where there is one seed."""
    mean, std = ("–" if score["mean"] is None else f"{score['mean']:.3f}"), score.get("std")
    return {"mean": mean, "std": None if std is None else f"{std:.3f}"}


def recoveries(results: dict[str, Any]) -> list[dict[str, Any]]:
    """The recovery of each architecture, and what it means in one sentence."""
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


def _pool_quality(metrics: dict[str, Any] | None) -> dict[str, Any] | None:
    """What `histodistill evaluate-pool` measured, numbers already as text; None where it was not run."""
    if not metrics:
        return None
    from histodistill.training.evaluation.pool_figures import CANDIDATES, DISTANCES, format_distance

    rows = [
        {
            "name": record["class"] or "All classes",
            "num_images": record["num_images"],
            "values": [[format_distance(name, record[c][name]) for c in CANDIDATES] for name in DISTANCES],
        }
        for record in metrics["distances"]
    ]
    scores = []
    for row in metrics["rows"]:
        share = metrics["accuracy_score"].get(row["architecture"], {}).get(row["row"])
        sentence = f"{architecture_title(row['architecture'])} trained on: {row['title'].lower()}, validation ACC "
        sentence += format_score(row["accuracy"])["mean"]
        scores.append(f"{sentence} ({100 * share:.1f}% of all real tiles)" if share else sentence)
    return {"titles": [title for title, _ in DISTANCES.values()], "rows": rows, "scores": scores}


def audit_outcome(folder: Path, verdict: dict[str, Any]) -> str:
    """What a verdict of `audit.json` is worth: "passed", "failed", or "outdated" for files that it is not about.

    Args:
        folder: The audited part of a run, which may be gone by now.
        verdict: Of that part: whether it passed, and the SHA-256 of its files.
    """
    if not folder.is_dir() or hash_files(folder, files_to_audit(folder)) != verdict["files"]:
        return "outdated"
    return "passed" if verdict["passed"] else "failed"


def _audit(run: Path, audit: dict[str, Any] | None) -> dict[str, Any] | None:
    """What `histodistill audit` found, numbers already as text; None where this version of it was not run."""
    if not audit or audit.get("format") != AUDIT_FORMAT:
        return None
    figures, verdicts = audit["figures"], audit["parts"]
    attacks = []
    for space, by_name in figures["published"]["membership"].items():
        for name, attack in by_name.items():
            rate = attack["main"]["true_positives"]
            attacks.append(
                {
                    "name": f"{name.replace('_', ' ')}, {space}",
                    "main": _interval(attack["main"]["auc"]),
                    "control": _interval(attack["control"]["auc"]),
                    "rates": [_interval(rate[level]) for level in ("0.01", "0.001")],
                }
            )
    if figures["weights"]:
        rate = figures["weights"]["true_positives"]
        attacks.append(
            {
                "name": "with the weights of the model",
                "main": _interval(figures["weights"]["auc"]),
                "control": "–",
                "rates": [_interval(rate[level]) for level in ("0.01", "0.001")],
            }
        )
    return {
        "verdicts": [(part, audit_outcome(run / part, verdict)) for part, verdict in verdicts.items()],
        "findings": max((verdict["findings"] for verdict in verdicts.values()), key=len),
        "attacks": attacks,
        "held_out_at_random": audit["held_out_at_random"],
    }


def _interval(interval: dict[str, float] | None) -> str:
    if interval is None:
        return "too few tiles"
    return f"{interval['value']:.3f} [{interval['low']:.3f}, {interval['high']:.3f}]"


def architecture_title(name: str) -> str:
    """What an architecture is called in texts."""
    return ARCHITECTURES.get(name, name)


def _classes(images: np.ndarray, labels: np.ndarray, class_names: list[str]) -> list[dict[str, Any]]:
    """Count and first images of each class; the rows of a distilled set are in rank order within a class."""
    classes = []
    for label, name in enumerate(class_names):
        members = np.flatnonzero(labels == label)
        pngs = [_base64_png(images[i]) for i in members[:IMAGES_PER_CLASS]]
        classes.append({"name": name, "count": len(members), "pngs": pngs})
    return classes


def _base64_png(pixels: np.ndarray) -> str:
    image = Image.fromarray(pixels)
    if max(image.size) > _LARGEST_SIDE:
        image.thumbnail((_LARGEST_SIDE, _LARGEST_SIDE), Image.Resampling.LANCZOS)
    return base64.b64encode(png_bytes(image)).decode()


def _communities(
    sizes: dict[str, list[int]], columns: dict[str, np.ndarray], class_names: list[str]
) -> list[dict[str, Any]]:
    items = []
    for label, name in enumerate(class_names):
        if not sizes.get(name):
            continue
        chosen = columns["community"][columns["label"] == label] if "community" in columns else []
        items.append(
            {
                "name": name,
                "sizes": sizes[name],
                "total": sum(sizes[name]),
                "used": len(np.unique(chosen)),
                "shown": sizes[name][:_COMMUNITIES],
                "rest_count": len(sizes[name][_COMMUNITIES:]),
                "rest_total": sum(sizes[name][_COMMUNITIES:]),
            }
        )
    return items


def read_pictures(folder: Path, pictures: tuple[tuple[str, str, str], ...]) -> list[dict[str, str]]:
    """Title, caption and base64 PNG of those pictures (file, title, caption) that are in `folder`."""
    found = []
    for file, title, caption in pictures:
        if (folder / file).is_file():
            png = base64.b64encode((folder / file).read_bytes()).decode()
            found.append({"title": title, "caption": caption, "png": png})
    return found


def _stage(title: str, record: dict[str, Any]) -> dict[str, Any]:
    facts = [text.format(record[name]) for name, text in _FACTS.items() if record.get(name) is not None]
    if record and not record["complete"]:
        facts.append("not finished")
    return {
        "title": title,
        "duration": _duration(record["seconds"]) if record else "not run",
        "fact": ", ".join(facts),
        "settings": _flat(record.get("settings", {})),
    }


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {seconds:02} s"


def _flat(settings: dict[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Keys and values as text, in order; a nested key is `outer.inner`."""
    pairs = []
    for key, value in settings.items():
        if isinstance(value, dict):
            pairs += _flat(value, f"{prefix}{key}.")
        elif isinstance(value, list):
            plain = all(isinstance(item, str | int | float) for item in value)
            pairs.append((f"{prefix}{key}", ", ".join(map(str, value)) if plain else json.dumps(value)))
        else:
            pairs.append((f"{prefix}{key}", "–" if value is None else str(value)))
    return pairs
