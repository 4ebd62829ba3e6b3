"""The attack of one who has a published set and its soft labels, which come from a teacher that has seen real tiles.

The attacker trains a classifier on the set, and takes a tile for one of the teacher's if its loss is small. Done with
the labels alone and with the soft labels of all views, the difference is what the soft labels give away.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from histodistill.selection.image_rows import Images
from histodistill.selection.label_leak import measure_label_leak
from histodistill.selection.real_tiles import LabelledImages
from histodistill.training.data.tiles import LabelViews, Tiles
from histodistill.training.engine.accelerator import make_accelerator
from histodistill.training.engine.classifier_config import ClassifierConfig, recorded_recipe
from histodistill.training.engine.classifier_training import fit_classifier
from histodistill.training.evaluation.run_audit import AuditedRun, attacked_rows
from histodistill.training.models.classifiers import Classifier
from histodistill.training.models.prediction import predict_proba
from histodistill.training.running.errors import InputError, param


#: Layout of `audit_labels.json`.
LABEL_ATTACK_FORMAT = 1
#: Optimizer steps of an attacker's classifier, and tiles of a batch.
STEPS, BATCH_SIZE = 600, 32


def attack_labels(run: AuditedRun, num_students: int, num_tiles: int, seed: int, **recipe: Any) -> dict[str, Any]:
    """Trains the attackers' classifiers on the distilled set of a run, and sees what they tell of the real tiles.

    Args:
        run: The run.
        num_students: Classifiers of each attacker, whose losses are averaged.
        num_tiles: Tiles of either kind whose loss is measured, at most.
        seed: Of which tiles these are, of the trainings and of the intervals.
        recipe: Options of the classifiers in place of those of `STEPS`, `BATCH_SIZE` and the usual ones.

    Returns:
        What `audit_labels.json` holds.

    Raises:
        InputError: If the set has no soft labels, or there are too few tiles to tell anything.
    """
    published = labelled_set(run.contents.distilled.table.columns, run.published.images)
    rows = attacked_rows(run.real, num_tiles, seed)
    parts = run.real.train, run.real.held_out or run.real.validation
    attacked = [part[chosen] for part, chosen in zip(parts, rows, strict=True)]
    num_views = 1 if published.label_views is None else 1 + published.label_views.codes.shape[1]
    usual = {"max_train_steps": STEPS, "batch_size": BATCH_SIZE, **recipe}
    plain = ClassifierConfig(**usual)
    soft = ClassifierConfig(**usual, soft_label_weight=1.0, soft_label_views=num_views)
    scores = [np.zeros((len(part), 2)) for part in attacked]
    for attacker, config in enumerate((plain, soft)):
        for student in range(num_students):
            own = dataclasses.replace(config, seed=seed + student)
            accelerator = make_accelerator("no")
            model = fit_classifier(own, published, None, accelerator, class_names=run.class_names).model
            for part, of_part in zip(attacked, scores, strict=True):
                of_part[:, attacker] -= _losses(model, part) / num_students
    try:
        (members, others), (groups, other_groups) = scores, [part.groups for part in attacked]
        leak = measure_label_leak(members, others, groups, other_groups, seed=seed)
    except ValueError as error:
        raise InputError(f"the tiles of {run.source.name} are too few for {param('label_attack')}: {error}") from error
    return {
        "format": LABEL_ATTACK_FORMAT,
        **run.facts,
        "held_out_at_random": run.real.held_out is not None,
        "unit": "tile" if run.real.train.groups is None else run.source.group_kind or "group",
        "num_training": len(attacked[0]),
        "num_held_out": len(attacked[1]),
        "num_views": num_views,
        "num_students": num_students,
        "config": recorded_recipe(soft),
        "auc": {name: dataclasses.asdict(interval) for name, interval in vars(leak).items()},
    }


def labelled_set(columns: Mapping[str, np.ndarray], images: Images) -> Tiles:
    """A distilled set with its soft labels, those of further views where it has any.

    Raises:
        InputError: If it has no soft labels.
    """
    if "soft_label" not in columns:
        raise InputError(f"the distilled set has no soft labels: leave {param('label_attack')} out")
    views = None
    if "soft_label_views" in columns:
        views = LabelViews(columns["soft_label_views"], columns["rank"])
    return Tiles(images, columns["label"], columns["soft_label"], label_views=views)


def summary_line(record: Mapping[str, Any]) -> str:
    """What `audit_labels.json` says, for people."""
    auc = record["auc"]
    texts = {name: f"{one['value']:.3f} ({one['low']:.3f} to {one['high']:.3f})" for name, one in auc.items()}
    told = "more than chance" if auc["difference"]["low"] > 0 else "no more than chance may"
    return (
        f"audit of soft labels: from what a classifier learns of the set, training tiles are told with an AUC of "
        f"{texts['by_labels']} by labels and of {texts['by_soft_labels']} by soft labels of {record['num_views']} "
        f"views; the difference is {texts['difference']}, {told}"
    )


def _losses(model: Classifier, tiles: LabelledImages) -> np.ndarray:
    """The cross-entropy of each tile's class: float64 N."""
    said = predict_proba(model, tiles.images)[np.arange(len(tiles)), tiles.labels]
    return -np.log(np.maximum(said.astype(np.float64), 1e-30))
