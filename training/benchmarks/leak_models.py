"""Pairs of trained models for the study of leaks: of many patients and few steps, and of few patients and many steps.

The first can hardly know whom it was trained on; the second knows each of its few tiles by heart. The attack is that
of one who holds the weights. All models share an autoencoder of public tiles, so that only the denoisers differ.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from histodistill.hub_cards.part_files import read_part
from histodistill.selection.audit_verdict import judge_weights
from histodistill.selection.image_audit import audit
from histodistill.selection.real_tiles import RealTiles
from histodistill.training.data.audit_tiles import labelled
from histodistill.training.data.phantom import PHANTOM_CLASSES, phantom_tiles
from histodistill.training.data.phantom_leaks import copied_looks
from histodistill.training.data.phantom_patients import draw_patients
from histodistill.training.data.tiles import Tiles
from histodistill.training.evaluation.run_audit import measure_losses
from histodistill.training.running.stages import is_complete
from histodistill.training.train_autoencoder import TrainAutoencoderConfig
from histodistill.training.train_autoencoder import run as train_autoencoder
from histodistill.training.train_diffusion import TrainDiffusionConfig
from histodistill.training.train_diffusion import run as train_diffusion


# Pixels along a side: the fewest that the phantom draws.
_SIZE = 16
# Tiles of each class and patient.
_TILES = 2
# Patients whom a model has not seen.
_HELD_OUT = 16
# Seed of public tiles, for the autoencoder; and what is added to the number of a pair, for its own.
_PUBLIC, _OWN = 1_000_000, 2_000_000
# Tiles of each class that the autoencoder is trained on, and validated on.
_PUBLIC_SIZES = (("train", 60), ("validation", 12))


@dataclass(frozen=True)
class Recipe:
    """How one model of a pair is trained.

    Attributes:
        patients: Whose tiles it is trained on.
        steps: Of the denoiser.
        symmetries: Whether each tile is shown in all eight.
    """

    patients: int
    steps: int
    symmetries: bool


def train_shared_autoencoder(folder: Path, steps: int) -> Path:
    """Trains the autoencoder in `folder` on patients of its own, where that is not done yet; returns its folder."""
    output = folder / "autoencoder"
    if not is_complete(output):
        tiles = folder / "public.npz"
        _write_tiles(tiles, *(phantom_tiles(s, n, image_size=_SIZE, seed=_PUBLIC) for s, n in _PUBLIC_SIZES))
        train_autoencoder(
            TrainAutoencoderConfig(
                data=tiles, output=output, max_train_steps=steps, channels=(16, 32), mixed_precision="no"
            )
        )
    return output


def attack_model(folder: Path, autoencoder: Path, recipe: Recipe, number: int) -> dict[str, Any]:
    """Trains a model and attacks it, where that is not done yet.

    Args:
        folder: Of the model.
        autoencoder: Of all models.
        recipe: How to train.
        number: Of the pair.

    Returns:
        `auc` of patients, `p_value` of the test, `passed` and `sentence` of the verdict's point, as JSON can hold it.
    """
    real = _real_tiles(recipe, number)
    tiles = folder / "tiles.npz"
    _write_tiles(tiles, real["train"], real["validation"])
    train_diffusion(
        TrainDiffusionConfig(
            data=tiles,
            autoencoder=autoencoder,
            output=folder / "pipeline",
            channels=(32, 64),
            layers_per_block=1,
            batch_size=32,
            max_train_steps=recipe.steps,
            learning_rate=1e-3,
            ema_decay=0.99,
            symmetries=recipe.symmetries,
            seed=number,
            mixed_precision="no",
        )
    )
    train, held_out, validation = (labelled(real[name]) for name in ("train", "held_out", "validation"))
    known = RealTiles(train, held_out, validation)
    losses = measure_losses(read_part(folder / "pipeline"), known, len(known), number)
    # The point on the weights does not depend on the images.
    images = labelled(
        copied_looks(draw_patients("train", 4, _OWN + number), 0, 4, image_size=_SIZE, seed=_OWN + number)
    )
    result = audit(images, images, known, {}, group_kind="patient", n_planted=0, weight_losses=losses, seed=number)
    (point,) = (finding for finding in judge_weights(result) if finding.name == "weights")
    assert result.weights is not None and result.weights_test is not None
    return {
        "auc": result.weights.auc.value,
        "p_value": result.weights_test.p_value,
        "passed": point.passed,
        "sentence": point.sentence,
    }


def _real_tiles(recipe: Recipe, number: int) -> dict[str, Tiles]:
    """Tiles by role: patients who are trained on, as many others as ever, and validation patients."""
    count = recipe.patients + _HELD_OUT
    patients = draw_patients("train", count, _OWN + number)
    tiles = phantom_tiles("train", count * _TILES, image_size=_SIZE, seed=_OWN + number, patients=patients)
    is_seen = np.isin(np.asarray(tiles.groups), patients.names[: recipe.patients])
    return {
        "train": tiles.subset(np.flatnonzero(is_seen)),
        "held_out": tiles.subset(np.flatnonzero(~is_seen)),
        "validation": phantom_tiles("validation", 24, image_size=_SIZE, seed=_OWN + number),
    }


def _write_tiles(file: Path, train: Tiles, validation: Tiles) -> None:
    """Writes tiles as a `.npz` file, without their patients: what is held out was put aside before."""
    arrays: dict[str, Any] = {"class_names": np.array(PHANTOM_CLASSES)}
    for name, tiles in (("train", train), ("val", validation)):
        arrays |= {f"{name}_images": tiles.images, f"{name}_labels": tiles.labels[:, None]}
    file.parent.mkdir(parents=True, exist_ok=True)
    np.savez(file, **arrays)
