"""Reads what the cards of a run say from the records that its stages left."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from histodistill.hub_cards import PrivacyFacts, RunFacts
from histodistill.hub_cards.card_facts import PRIVATE_TILES, PretrainedFacts
from histodistill.hub_cards.contents import about
from histodistill.hub_cards.documents import check_document, parse_json
from histodistill.hub_cards.group_facts import GroupFacts
from histodistill.hub_cards.privacy_ledger import Ledger
from histodistill.training.data.medmnist import MEDMNIST, public_name
from histodistill.training.evaluation.compare import headline_row
from histodistill.training.evaluation.results_file import Results
from histodistill.training.evaluation.run_records import (
    RunRecord,
    StageRecord,
    TeacherResults,
    by_class,
    stage_settings,
)
from histodistill.training.models.encoder_names import UNTRAINED, UNTRAINED_SEVERAL


# Folders of the stages that cards tell of, and what they call them.
_STAGES = {
    "autoencoder": "autoencoder",
    "pipeline": "denoiser",
    "teacher": "teacher",
    "pool": "pool",
    "distilled": "selection",
}
# What the record of a stage says of its result: stage and key → what a card calls it, and how it writes the number.
_VALIDATION = {
    ("autoencoder", "validation_psnr"): ("PSNR of reconstructed real validation tiles", "{:.1f} dB"),
    ("autoencoder", "validation_ssim"): ("SSIM of reconstructed real validation tiles", "{:.3f}"),
    ("teacher", "teacher_agreement"): (
        "real validation tiles of which the teacher says the same before and after the autoencoder",
        "{:.1%}",
    ),
    ("teacher", "teacher_accuracy"): ("accuracy of the teacher on these tiles", "{:.3f}"),
    ("teacher", "teacher_accuracy_reconstructed"): (
        "its accuracy on what the autoencoder leaves of them",
        "{:.3f}",
    ),
    ("pipeline", "validation_loss"): ("loss of the denoiser on real validation tiles", "{:.4f}"),
    ("teacher", "test_accuracy"): ("accuracy of the teacher on real test tiles", "{:.3f}"),
}


@dataclass(frozen=True, repr=False)
class RunRecords:
    """What the records of a run say, as far as cards tell of it.

    Attributes:
        folder: The run, for messages.
        run: What run.json says, where there is one.
        source: What the stages call the real tiles, which may be the name of a file; None where none of them says.
        results: The scores, where they were measured.
        stages: Folder of a stage → its record.
    """

    folder: Path
    run: RunRecord | None
    source: str | None
    results: Results | None
    stages: dict[str, StageRecord]

    @property
    def num_tiles(self) -> dict[str, int] | None:
        """Real tiles of each split, where known."""
        if self.run is None or self.run.num_tiles is None:
            return None
        return {str(split): number for split, number in self.run.num_tiles.items()}

    @property
    def groups(self) -> GroupFacts | None:
        """Their groups, such as patients, where known."""
        return self.run.groups if self.run else None

    @classmethod
    def read(cls, folder: Path, files: Mapping[str, bytes]) -> RunRecords:
        """What the files of a run say; one that is not there says nothing.

        Args:
            folder: The run, for messages.
            files: Path relative to it → content.

        Raises:
            ContentError: For a file that says something else than it can.
        """

        def parse(name: str, schema: type[Any]) -> Any:
            with about(folder, name):
                return check_document(parse_json(files[name]), schema) if name in files else None

        run, results = parse("run.json", RunRecord), parse("results.json", Results)
        teacher = parse("teacher/results.json", TeacherResults)
        sources = [run and run.data, results and results.data, teacher and teacher.data.train]
        stages = {stage: parse(f"{stage}/stage.json", StageRecord) for stage in _STAGES}
        return cls(
            folder,
            run=run,
            source=next(filter(None, sources), None),
            results=results,
            stages={stage: record for stage, record in stages.items() if record},
        )


def read_run_facts(
    records: RunRecords,
    repos: Mapping[str, str],
    name: str,
    class_names: list[str],
    image_size: int,
    num_distilled: int,
    license: str | None = None,
    attribution: str | None = None,
) -> RunFacts:
    """All that the cards of a run have in common; what the audit says of each repository is not in it.

    Args:
        records: Of the run.
        repos: Id of each repository that is published.
        name: What to call the real tiles.
        class_names: Names of the labels.
        image_size: Side of the images in pixels.
        num_distilled: Distilled images of all classes together.
        license, attribution: Of the real tiles; by default those of MedMNIST where they are its tiles.

    Raises:
        ContentError: For a setting that no option takes.
    """
    known = public_name(records.source, class_names)
    if known in MEDMNIST:
        license = license or MEDMNIST[known].license.lower().replace(" ", "-")
        attribution = attribution or MEDMNIST[known].attribution
    stages = {stage: records.stages[stage] for stage in _STAGES if stage in records.stages}
    settings = {}
    for stage, record in stages.items():
        with about(records.folder, f"{stage}/stage.json"):
            settings[_STAGES[stage]] = stage_settings(record, stage)
    plain = {stage: record.model_dump(exclude_none=True) for stage, record in stages.items()}
    facts = RunFacts(
        repos=repos,
        name=name,
        is_phantom=known == "phantom",
        test_tiles=describe_test_tiles(known, name, records.num_tiles),
        test_tiles_id=known or PRIVATE_TILES,
        class_names=class_names,
        image_size=image_size,
        num_distilled=num_distilled,
        num_tiles=records.num_tiles,
        groups=checked_groups(records, class_names),
        license=license,
        attribution=attribution,
        results=[row.for_card() for row in records.results.rows] if records.results else [],
        own_row=own_row(records.results),
        validation={
            title: text.format(plain[stage][key])
            for (stage, key), (title, text) in _VALIDATION.items()
            if plain.get(stage, {}).get(key) is not None
        },
        settings=settings,
        versions=package_versions(plain),
        privacy=privacy_facts(plain.get("pipeline", {}), plain.get("distilled", {})),
        warm_start="pipeline" in stages and stages["pipeline"].settings.get("init_from") is not None,
        pretrained=pretrained_facts(plain.get("autoencoder", {})),
    )
    ledger = records.run.privacy if records.run else None
    return facts if ledger is None else within_budget(facts, ledger)


def within_budget(facts: RunFacts, ledger: Ledger) -> RunFacts:
    """The same of a run under differential privacy: what is of real tiles outside the budget is left out."""
    privacy = PrivacyFacts(epsilon=ledger.epsilon, delta=ledger.delta, unit=ledger.unit, ledger=ledger)
    return replace(facts, privacy=privacy, num_tiles=None, groups=None, results=[], own_row=None, validation={})


def checked_groups(records: RunRecords, class_names: list[str]) -> GroupFacts | None:
    """The groups of a run's tiles; ContentError where their numbers are of other classes."""
    if records.groups:
        with about(records.folder, "run.json"):
            by_class(records.groups.per_class, class_names)
    return records.groups


def describe_test_tiles(known: str | None, name: str, num_tiles: Mapping[str, int] | None) -> str:
    """What a model index calls the tiles that scores were measured on.

    Args:
        known: The name of the source where everybody knows it.
        name: What the tiles are called in public.
        num_tiles: Tiles of each split, where known.
    """
    number = f"{num_tiles['test']:,} " if num_tiles and "test" in num_tiles else ""
    if known == "phantom":
        return f"phantom: {number}test tiles that a program drew"
    if known is not None:
        return f"{MEDMNIST[known].title} of MedMNIST: {number}test tiles"
    return f"{name}: {number}private test tiles"


def own_row(results: Results | None) -> str | None:
    """The row of the scores that stands for the distilled set: training on soft labels, which is recommended.

    Where that was not measured, the one that the recovery is of.
    """
    return headline_row([row.row for row in results.rows], results.recovery_row) if results else None


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
        ("review", "from which reviewers, who may have seen real tiles, left out what they would"),
    ]
    uncovered += [
        f"The choice of the images of the distilled set, {how}." for name, how in looks_at_tiles if settings.get(name)
    ]
    if settings.get("embedder", UNTRAINED) not in (UNTRAINED, UNTRAINED_SEVERAL):
        uncovered.append("The choice of the images, if what embedded them was trained on the real tiles.")
    return PrivacyFacts(
        epsilon=record["total"]["epsilon"],
        delta=record["total"]["delta"],
        unit=record.get("unit", "tile"),
        public_autoencoder=record["autoencoder"] == "public",
        public_init=record.get("init") == "public",
        uncovered=uncovered,
    )


def pretrained_facts(autoencoder: dict[str, Any]) -> PretrainedFacts | None:
    """What the cards say of an autoencoder from elsewhere; None where it was trained on the tiles alone.

    Args:
        autoencoder: Record of that stage, empty where there is none.
    """
    record = autoencoder.get("pretrained")
    return PretrainedFacts(**record) if record else None


def package_versions(records: dict[str, dict[str, Any]]) -> dict[str, str]:
    """Versions by package, from the records of stages; several where stages ran with different ones."""
    found: dict[str, list[str]] = {}
    for record in records.values():
        for package, version in record.get("versions", {}).items():
            if version not in found.setdefault(package, []):
                found[package].append(version)
    return {package: " and ".join(versions) for package, versions in found.items()}
