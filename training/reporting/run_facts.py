"""Reads what the cards of a run say from the records that its stages left."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from histodistill.hub_cards import PrivacyFacts, RunFacts
from histodistill.training.data.medmnist import MEDMNIST
from histodistill.training.reporting.run_files import read_optional, read_results, read_run_record
from histodistill.training.running.stages import read_record
from histodistill.training.tables.rows import FIXED_ROWS


# Folders of the stages that cards tell of, and what they call them.
_STAGES = {
    "autoencoder": "autoencoder",
    "pipeline": "denoiser",
    "teacher": "teacher",
    "pool": "pool",
    "distilled": "selection",
}
# Fingerprints: that of private tiles is nobody's business, and the others say nothing to a reader.
_FINGERPRINTS = {
    "stage", "data", "eval_data", "autoencoder", "pipeline", "pool", "teacher", "embedder", "copy_embedders",
}  # fmt: skip
# What the record of a stage says of its result: stage and key → what a card calls it, and how it writes the number.
_VALIDATION = {
    ("autoencoder", "validation_psnr"): ("PSNR of reconstructed real validation tiles", "{:.1f} dB"),
    ("pipeline", "validation_loss"): ("loss of the denoiser on real validation tiles", "{:.4f}"),
    ("teacher", "test_accuracy"): ("accuracy of the teacher on real test tiles", "{:.3f}"),
}


def source_name(run: Path) -> str | None:
    """What the stages call the real tiles, which may be the name of a file; None where none of them says."""
    for read in (read_run_record, read_results):
        if name := (read(run) or {}).get("data"):
            return name
    return ((read_optional(run / "teacher" / "results.json") or {}).get("data") or {}).get("train")


def public_name(name: str | None, class_names: list[str]) -> str | None:
    """The name itself where it is one that everybody knows, and otherwise None: names of files stay private."""
    is_medmnist = name in MEDMNIST and list(MEDMNIST[name].class_names) == class_names
    return name if is_medmnist or name == "phantom" else None


def read_run_facts(
    run: Path,
    repos: dict[str, str],
    name: str,
    class_names: list[str],
    image_size: int,
    num_distilled: int,
    license: str | None = None,
    attribution: str | None = None,
) -> RunFacts:
    """All that the cards of a run have in common; what the audit says of each repository is not in it.

    Args:
        run: Folder of the run.
        repos: Id of each repository that is published.
        name: What to call the real tiles.
        class_names: Names of the labels.
        image_size: Side of the images in pixels.
        num_distilled: Distilled images of all classes together.
        license, attribution: Of the real tiles; by default those of MedMNIST where they are its tiles.

    Raises:
        InputError: If a file of the run cannot be read or is of a later format.
    """
    known = public_name(source_name(run), class_names)
    if known in MEDMNIST:
        license = license or MEDMNIST[known].license.lower().replace(" ", "-")
        attribution = attribution or MEDMNIST[known].attribution
    results = read_results(run) or {}
    records = {stage: read_record(run / stage) or {} for stage in _STAGES}
    return RunFacts(
        repos=repos,
        name=name,
        is_phantom=known == "phantom",
        class_names=class_names,
        image_size=image_size,
        num_distilled=num_distilled,
        num_tiles=(read_run_record(run) or {}).get("num_tiles"),
        license=license,
        attribution=attribution,
        results=results.get("rows", []),
        own_row=results.get("recovery_row"),
        benchmark=benchmark_rows(run, num_distilled // len(class_names)),
        validation={
            title: text.format(records[stage][key])
            for (stage, key), (title, text) in _VALIDATION.items()
            if records[stage].get(key) is not None
        },
        settings={_STAGES[stage]: _settings(record) for stage, record in records.items() if record},
        versions=package_versions(records),
        privacy=privacy_facts(records["pipeline"], records["distilled"]),
    )


def privacy_facts(pipeline: dict[str, Any], distilled: dict[str, Any]) -> PrivacyFacts | None:
    """What the cards say of differential privacy; None where the denoiser was trained without.

    Args:
        pipeline, distilled: Records of these stages, empty where there is none.
    """
    record = pipeline.get("privacy")
    if not record:
        return None
    settings = distilled.get("settings", {})
    uncovered = []
    if settings:
        uncovered.append(
            "The soft labels of the distilled set: the classifier that gave them was trained on the real tiles "
            "without differential privacy. Without that column, and but for what follows here, the images are covered."
        )
    looks_at_tiles = [
        ("drop_copies", "which dropped images that are too near to a real tile"),
        ("typical_share", "which dropped images that are too far from real tiles"),
        ("min_probability", "which went by a classifier trained on the real tiles without differential privacy"),
    ]
    uncovered += [
        f"The choice of the images of the distilled set, {how}." for name, how in looks_at_tiles if settings.get(name)
    ]
    if settings.get("embedder", "untrained") != "untrained":
        uncovered.append("The choice of the images, if what embedded them was trained on the real tiles.")
    return PrivacyFacts(
        epsilon=record["total"]["epsilon"],
        delta=record["total"]["delta"],
        public_autoencoder=record["autoencoder"] == "public",
        uncovered=uncovered,
    )


def _settings(record: dict[str, Any]) -> dict[str, str]:
    plain = {name: value for name, value in record["settings"].items() if name not in _FINGERPRINTS}
    return {name: value if isinstance(value, str) else json.dumps(value) for name, value in plain.items()}


def package_versions(records: dict[str, dict[str, Any]]) -> dict[str, str]:
    """Versions by package, from the records of stages; several where stages ran with different ones."""
    found: dict[str, list[str]] = {}
    for record in records.values():
        for package, version in record.get("versions", {}).items():
            if version not in found.setdefault(package, []):
                found[package].append(version)
    return {package: " and ".join(versions) for package, versions in found.items()}


def benchmark_rows(run: Path, n_per_class: int) -> list[dict[str, Any]]:
    """Test scores of the rows of the results table with as many images per class as the distilled set, or all.

    `margin` is that over random pool images: those of the row's recipe, or plain ones where these were not trained.
    """
    table = read_optional(run / "benchmark" / "benchmark.json") or {"rows": []}
    rows = []
    for row in table["rows"]:
        if row["size"] in (n_per_class, None):
            tiles, at, recipe = row["row"].partition("@")
            title = FIXED_ROWS.get(tiles, f"pool images chosen by {tiles}") + (f", {recipe}" if at else "")
            common = {name: row[name] for name in ("architecture", "size", "seeds")}
            scores = {metric: row["test"][metric] for metric in ("accuracy", "auc", "f1")}
            rows.append({"title": title, **common, **scores, "margin": scores["accuracy"]["margins"].get("random")})
    return rows
