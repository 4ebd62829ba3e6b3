"""The page of a run's report: what the run left, put into the template `report.html.jinja`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from histodistill.hub_cards.card_facts import PrivacyFacts, architecture_title
from histodistill.hub_cards.documents import check_document
from histodistill.hub_cards.privacy_ledger import Ledger
from histodistill.training.data.image_dataset import read_image_dataset
from histodistill.training.data.images import base64_png
from histodistill.training.distillation.reviews import SETTING as REVIEW_SETTING
from histodistill.training.evaluation.run_facts import package_versions, privacy_facts
from histodistill.training.evaluation.verdicts import read_run_audit
from histodistill.training.reporting.audit_texts import audit_texts
from histodistill.training.reporting.class_scores import class_scores
from histodistill.training.reporting.group_texts import group_sentences
from histodistill.training.reporting.pictures import (
    ACCURACY_PICTURE,
    BENCHMARK_PICTURES,
    SELECTION_PICTURES,
    read_pictures,
)
from histodistill.training.reporting.run_files import REPORT, read_optional, read_results, read_run_record, source_name
from histodistill.training.reporting.scores import (
    ScoreText,
    headline_figures,
    recoveries,
    score_charts,
    score_tables,
)
from histodistill.training.reporting.selector_texts import selector_text
from histodistill.training.reporting.size_curve import size_curves
from histodistill.training.reporting.summary import tile_lines
from histodistill.training.reporting.templates import render_page
from histodistill.training.running.files import write_text
from histodistill.training.running.stages import read_record


#: Distilled images of each class that the page shows, the best ranked first: more would make it slow to open.
IMAGES_PER_CLASS = 24
# In pixels. Larger images are shown smaller, so that the page stays a few megabytes.
_LARGEST_SIDE = 96
# Communities of a class that are drawn one by one, the largest first; more would be too thin to see.
_COMMUNITIES = 30
# Folders of the stages, in the order in which a run makes them, and what the page calls them.
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
    "validation_ssim": "SSIM {:.3f}",
    "validation_loss": "validation loss {:.4f}",
    "test_accuracy": "test ACC {:.3f}",
    "teacher_agreement": "says the same of {:.1%} of the reconstructed validation tiles",
    "num_images": "{:,} images",
}


def write_report(run: str | Path) -> Path:
    """Writes `run/report.html`: scores and the audit's verdict at first sight, and all else of a run on one page.

    The page needs nothing else: its images are in it (only synthetic ones), it has no script and loads nothing. Of the
    run's files only `distilled/` must be there; where another is missing (`run.json`, `results.json`, the `stage.json`
    of a stage), the section says so. Where they are there it shows, too, the scores of single classes in
    `comparison/`, the table in `benchmark/`, and the pictures of the communities in `selector/`.

    Args:
        run: Folder of a run.

    Returns:
        The path of the page.

    Raises:
        InputError: If there is no distilled set, or a JSON file of the run cannot be read or is of a later format.
    """
    run = Path(run)
    path = run / REPORT
    write_text(path, render_page("report.html.jinja", _page(run)))
    return path


def _privacy(about: dict[str, Any], records: dict[str, dict[str, Any]]) -> PrivacyFacts | None:
    """What the page says of differential privacy; None where there is none."""
    if "privacy" not in about:
        return privacy_facts(records["pipeline"], records["distilled"])
    ledger = check_document(about["privacy"], Ledger)
    return PrivacyFacts(epsilon=ledger.epsilon, delta=ledger.delta, unit=ledger.unit, ledger=ledger)


def _page(run: Path) -> dict[str, Any]:
    """All that the template shows."""
    images, columns, class_names = read_image_dataset(run / "distilled")
    about = read_run_record(run) or {}
    results = read_results(run)
    records = {name: read_record(run / name) or {} for name in _STAGES}
    audit = read_run_audit(run / "audit.json")
    curves = size_curves(run)
    # The picture that shows the same as the curves is only for tables that hold none.
    benchmark_pictures = [shown for shown in BENCHMARK_PICTURES if not (curves and shown[0] == ACCURACY_PICTURE)]
    return {
        "name": about.get("data") or (results or {}).get("data") or run.resolve().name,
        "phantom": source_name(run) == "phantom",
        "num_images": len(images),
        "num_tiles": about.get("num_tiles"),
        "groups": group_sentences(about),
        "image_size": images.shape[1],
        "headline": headline_figures(results) if results else None,
        "recovery": recoveries(results) if results else [],
        "tables": score_tables(results) if results else [],
        "score_charts": score_charts(results) if results else [],
        "tile_lines": tile_lines(run, results) if results else [],
        "result_notes": results.get("notes", []) if results else [],
        "class_scores": class_scores(run, results) if results else None,
        "classes": _classes(images, columns["label"], class_names),
        "quality": _pool_quality(read_optional(run / "evaluation" / "metrics.json")),
        "closest": (run / "audit" / "closest_distilled.png").is_file(),
        "audit": audit_texts(run, audit),
        "is_audit_old": audit is None and (run / "audit.json").is_file(),
        "privacy": _privacy(about, records),
        "selector": selector_text(records["distilled"].get("settings", {})),
        "communities": _communities(records["distilled"].get("community_sizes", {}), columns, class_names),
        "dropped": [(name, n) for name, n in records["distilled"].get("dropped", {}).items() if n],
        "copies_dropped": sum((records["distilled"].get("copies_dropped") or {}).values()),
        "pictures": read_pictures(run / "selector", SELECTION_PICTURES),
        "curves": curves,
        "benchmark_pictures": read_pictures(run / "benchmark", benchmark_pictures),
        "selection_notes": records["distilled"].get("warnings", []),
        "stages": [_stage(title, records[name]) for name, title in _STAGES.items()],
        "total": _duration(sum(record.get("seconds", 0) for record in records.values())),
        "run": _flat({key: value for key, value in about.items() if key not in ("format", "settings")}),
        "run_settings": _flat(_without_paths(about.get("settings", {}))),
        "versions": package_versions(records).items(),
    }


def _pool_quality(metrics: dict[str, Any] | None) -> dict[str, Any] | None:
    """What `evaluation/metrics.json` says of the pool, numbers already as text; None where it was not run."""
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
        sentence += ScoreText.of(row["accuracy"]).mean
        scores.append(f"{sentence} ({100 * share:.1f}% of all real tiles)" if share else sentence)
    return {"titles": [title for title, _ in DISTANCES.values()], "rows": rows, "scores": scores}


def _classes(images: np.ndarray, labels: np.ndarray, class_names: list[str]) -> list[dict[str, Any]]:
    """Count and first images of each class; the rows of a distilled set are in rank order within a class."""
    classes = []
    for label, name in enumerate(class_names):
        members = np.flatnonzero(labels == label)
        pngs = [base64_png(images[i], _LARGEST_SIDE) for i in members[:IMAGES_PER_CLASS]]
        classes.append({"name": name, "count": len(members), "pngs": pngs})
    return classes


def _communities(
    sizes: dict[str, list[int]], columns: dict[str, np.ndarray], class_names: list[str]
) -> list[dict[str, Any]]:
    """The communities of each class that has some.

    Args:
        sizes: Images of each community, the largest first, by the name of the class.
        columns: Of the distilled set, with the community of each image where it says.
        class_names: Names of the labels.
    """
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


def _stage(title: str, record: dict[str, Any]) -> dict[str, Any]:
    """Duration, measured facts and settings of a stage, from its record, which is empty where it was not run.

    Seeds of what reviewers saw and left out would fill a page, and are not shown.
    """
    facts = [text.format(record[name]) for name, text in _FACTS.items() if record.get(name) is not None]
    if record and not record["complete"]:
        facts.append("not finished")
    return {
        "title": title,
        "duration": _duration(record["seconds"]) if record else "not run",
        "fact": ", ".join(facts),
        "settings": _flat({name: said for name, said in record.get("settings", {}).items() if name != REVIEW_SETTING}),
    }


def _duration(seconds: float) -> str:
    """Seconds as text: `12.3 s`, `1 min 15 s` or `1 h 01 min`."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {seconds:02} s"


def _without_paths(settings: dict[str, Any]) -> dict[str, Any]:
    """A run's settings, but for where a table of labels lies on this machine."""
    reading = settings.get("reading")
    if not isinstance(reading, dict) or "labels" not in reading:
        return settings
    return {**settings, "reading": {**reading, "labels": "a table"}}


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
