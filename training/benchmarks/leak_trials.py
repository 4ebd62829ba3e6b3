"""One trial of the study of leaks: tiles of drawn patients, images with a planted leak or none, and two audits.

One audit goes by patient, as tiles with groups are audited; the other takes the same images and tiles as if nobody
knew of patients, and holds out single tiles.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from histodistill.selection.audit_verdict import judge_set
from histodistill.selection.image_audit import audit, find_copies
from histodistill.selection.real_tiles import LabelledImages
from histodistill.selection.streams import stream
from histodistill.training.data.audit_tiles import labelled, real_tiles
from histodistill.training.data.phantom import PHANTOM_CLASSES, phantom_tiles
from histodistill.training.data.phantom_leaks import copied_looks, duplicate_tiles, neighbouring_tiles
from histodistill.training.data.phantom_patients import draw_patients
from histodistill.training.data.splits import hold_out_for_audit
from histodistill.training.data.tiles import Tiles, TileSource


#: What can be planted: nothing; looks of training patients in new places; places next to training tiles.
LEAKS = ("none", "looks", "neighbours")
#: The points of a verdict that are about the images; the others are about the audit itself, whether it finds copies
#: that are planted, and say nothing of patients.
POINTS = ("copies", "overfitting", "membership", "dominance", "attributes")
# Added to the number of a trial, where patients are drawn that nobody has seen.
_UNSEEN = 1_000_000
# Validation patients, and their tiles of each class.
_VALIDATION_PATIENTS, _VALIDATION_TILES = 24, 1


@dataclass(frozen=True)
class Sizes:
    """How large a trial is.

    Attributes:
        patients: Patients of the training tiles, held-out ones included.
        tiles: Tiles of each class that each has.
        audit_share: Share of the patients that is held out.
        images: Synthetic images of each class.
        image_size: Side in pixels.
    """

    patients: int
    tiles: int
    audit_share: float
    images: int
    image_size: int


@dataclass(frozen=True)
class Trial:
    """What is planted.

    Attributes:
        leak: One of `LEAKS`.
        share: Share of the images that leak.
        duplicated: Share of the real tiles that stand for near copies of others.
        number: Trials of a number have the same patients and tiles, but for neighbours, which are cut otherwise.
        by_tile: Whether to audit tile by tile, too.
    """

    leak: str
    share: float
    duplicated: float
    number: int
    by_tile: bool

    @property
    def name(self) -> str:
        """Of the trial's file."""
        return f"{self.leak}-{self.share:g}-duplicated-{self.duplicated:g}-{self.number:03d}"


def run_trial(trial: Trial, sizes: Sizes) -> dict[str, Any]:
    """Draws tiles and images, drops images that look like copies, as `distill` does, and audits the others.

    Returns:
        The trial, `num_images` that were audited, and for each audit (`by_patient`, and `by_tile` or None) what
        `_verdict` gives; as JSON can hold it.
    """
    source, images = make_trial(trial, sizes)
    seen = hold_out_for_audit(source, sizes.audit_share)
    # Copies are looked for among all real tiles, whichever were held out.
    is_copy, _ = find_copies(images.images, real_tiles(seen), _EMBEDDINGS, trial.number)
    published = labelled(images)[~is_copy]
    record = {**asdict(trial), "num_images": len(published), "by_tile": None}
    record["by_patient"] = _verdict(published, seen, trial.number)
    if trial.by_tile:
        unknown = {name: replace(tiles, groups=None) for name, tiles in source.splits.items()}
        tiles = hold_out_for_audit(replace(source, splits=unknown, group_kind=None), sizes.audit_share)
        record["by_tile"] = _verdict(published, tiles, trial.number)
    return record


def make_trial(trial: Trial, sizes: Sizes) -> tuple[TileSource, Tiles]:
    """The real tiles of a trial, with nothing held out yet, and its synthetic images with the patients they show.

    Leaks are of patients who are not held out by `hold_out_for_audit`.
    """
    seed, size = trial.number, sizes.image_size
    patients = draw_patients("train", sizes.patients, seed)
    others = draw_patients("validation", _VALIDATION_PATIENTS, seed)
    unseen = draw_patients("validation", sizes.patients, _UNSEEN + seed)
    beside = None
    if trial.leak == "neighbours":
        train, beside = neighbouring_tiles(patients, sizes.tiles, image_size=size, seed=seed)
        validation, _ = neighbouring_tiles(others, _VALIDATION_TILES, image_size=size, seed=_UNSEEN + seed)
    else:
        count = sizes.patients * sizes.tiles
        train = phantom_tiles("train", count, image_size=size, seed=seed, patients=patients)
        count = _VALIDATION_PATIENTS * _VALIDATION_TILES
        validation = phantom_tiles("validation", count, image_size=size, seed=seed, patients=others)
    if trial.duplicated:
        train = duplicate_tiles(train, trial.duplicated, seed)
    splits = {"train": train, "validation": validation}
    source = TileSource("phantom", list(PHANTOM_CLASSES), splits, size, group_kind="patient")
    known = np.unique(np.asarray(hold_out_for_audit(source, sizes.audit_share).split("train").groups))
    if beside is None:
        mine = patients[np.isin(patients.names, known)]
        return source, copied_looks(mine, trial.share, sizes.images, image_size=size, seed=_UNSEEN + seed)
    next_to_known = beside.subset(np.flatnonzero(np.isin(np.asarray(beside.groups), known)))
    foreign, _ = neighbouring_tiles(unseen, sizes.tiles, image_size=size, seed=2 * _UNSEEN + seed)
    return source, _mixed(next_to_known, foreign, trial.share, sizes.images, seed)


def _mixed(mine: Tiles, foreign: Tiles, share: float, n_per_class: int, seed: int) -> Tiles:
    """`n_per_class` images of each class: a share of them of the one, the rest of the other, at random."""
    rng = stream("images beside training tiles", seed)
    copied = round(share * n_per_class)
    parts = []
    for tiles, count in ((mine, copied), (foreign, n_per_class - copied)):
        rows = [rng.permutation(np.flatnonzero(tiles.labels == label))[:count] for label in np.unique(tiles.labels)]
        parts.append(tiles.subset(np.concatenate(rows)))
    return Tiles(
        np.concatenate([part.images for part in parts]),
        np.concatenate([part.labels for part in parts]),
        groups=np.concatenate([np.asarray(part.groups) for part in parts]),
    )


def colours(images: np.ndarray) -> np.ndarray:
    """Mean and deviation of red, green and blue of images uint8 N×S×S×3: float32 N×6, a cheap embedding."""
    pixels = images.reshape(len(images), -1, 3).astype(np.float32)
    return np.concatenate([pixels.mean(axis=1), pixels.std(axis=1)], axis=1)


# The spaces beside pixels.
_EMBEDDINGS = {"colours": colours}


def _verdict(published: LabelledImages, source: TileSource, seed: int) -> dict[str, Any]:
    """What an audit says of the images: whether they pass, which points fail, and p-values, AUCs and shares."""
    real = real_tiles(source)
    kind = source.group_kind or "group"
    result = audit(published, published, real, _EMBEDDINGS, group_kind=kind, n_planted=0, seed=seed)
    findings = [finding for finding in judge_set(result) if finding.name in POINTS]
    attacks = {
        f"{attack}, {space}": found
        for space, by_name in result.published.membership.items()
        for attack, found in by_name.items()
    }
    tests = result.published.tests
    return {
        "passed": all(finding.passed for finding in findings),
        "failed": [finding.name for finding in findings if not finding.passed],
        "aucs": {name: attack.main.auc.value for name, attack in attacks.items()},
        "p_values": {name: attack.p_value for name, attack in attacks.items()},
        "overfitting": {
            space: {"share": found.share.value, "p_value": found.p_value}
            for space, found in result.published.overfitting.items()
        },
        "tests": None if tests is None else asdict(tests),
    }
