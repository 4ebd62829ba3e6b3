"""The work of the study of differential privacy: public models, and one denoiser with all that is measured of it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from histodistill.hub_cards.part_files import read_part
from histodistill.selection.image_audit import audit
from histodistill.training.data.audit_tiles import labelled, real_tiles
from histodistill.training.data.image_dataset import read_image_dataset
from histodistill.training.data.images import make_grid, png_bytes
from histodistill.training.data.tiles import Tiles, TileSource, sample_per_class
from histodistill.training.distillation.pool_selection import make_selector
from histodistill.training.distillation.selector_options import SelectorConfig
from histodistill.training.engine.accelerator import make_accelerator
from histodistill.training.engine.classifier_config import ClassifierConfig
from histodistill.training.evaluation.cells import read_cell, summarise_seeds, train_cell
from histodistill.training.evaluation.run_audit import measure_losses
from histodistill.training.generate import GenerateConfig
from histodistill.training.generate import run as generate
from histodistill.training.models.embedders import embed_images
from histodistill.training.models.encoder_names import UNTRAINED
from histodistill.training.models.loading import load_named_denoiser
from histodistill.training.running.files import read_kept, write_bytes, write_json
from histodistill.training.running.presets import Preset, load_preset
from histodistill.training.running.stages import require_complete
from histodistill.training.tables.results_summary import SPLITS
from histodistill.training.train_autoencoder import TrainAutoencoderConfig
from histodistill.training.train_autoencoder import run as train_autoencoder
from histodistill.training.train_diffusion import TrainDiffusionConfig
from histodistill.training.train_diffusion import run as train_diffusion


if TYPE_CHECKING:
    from histodistill.training.benchmarks.dp_study import DpStudyConfig

# What arms add to a training that begins from the public denoiser.
_OPTIONS: dict[str, dict[str, Any]] = {
    "pretrained": {},
    "embeddings": {"trained_weights": "embeddings"},
    "adapters": {"trained_weights": "adapters"},
    "noisy": {"noise_level_mean": 1.0},
    # Nothing is spent on what is large in a tile, nor on what is small.
    "middle": {"noise_level_range": (0.3, 0.8)},
    "batches": {},
    "central": {},
}
# How many times as many tiles the steps of that arm have.
_LARGER = 4
# Share of ε that queries for central images would spend alone in that arm. Squares add up, so steps lose little.
_CENTRAL_SHARE = 0.3
# Images of each class in a picture.
_SHOWN = 10


@dataclass(frozen=True)
class PublicModels:
    """What is made of public tiles, once.

    Attributes:
        preset: Fitted to the tiles; how these models are trained, and what the others share with them.
        autoencoder: Folder of the autoencoder.
        pipeline: Folder of a pipeline of public tiles; None where no arm begins from one.
    """

    preset: Preset
    autoencoder: Path
    pipeline: Path | None

    @classmethod
    def make(cls, config: DpStudyConfig, source: TileSource) -> PublicModels:
        """Trains them where that is not done yet.

        Args:
            config: Of the study.
            source: The real tiles, of whose size they are.
        """
        preset = load_preset(config.preset).under_privacy().for_image_size(source.image_size)
        for step, steps in (("autoencoder", config.autoencoder_steps), ("diffusion", config.public_steps)):
            if steps is not None:
                preset = preset.with_options(step, {"max_train_steps": steps})
        folder = config.output / "public"
        common = {
            "data": config.public_data,
            "image_size": source.image_size,
            "resume": "latest",
            "seed": config.seed,
            "mixed_precision": config.mixed_precision,
        }
        autoencoder, pipeline = folder / "autoencoder", None
        train_autoencoder(TrainAutoencoderConfig(**{**preset.autoencoder, **common, "output": autoencoder}))
        if set(config.arms) & _OPTIONS.keys():
            pipeline = folder / "pipeline"
            options = {**preset.diffusion, **common, "autoencoder": autoencoder, "output": pipeline}
            train_diffusion(TrainDiffusionConfig(**options))
        return cls(preset, autoencoder, pipeline)


def make_arm(
    config: DpStudyConfig, source: TileSource, public: PublicModels, arm: str, text: str, epsilon: float | None
) -> dict[str, Any]:
    """Trains one denoiser, where that is not done yet, and measures it.

    Args:
        config: Of the study.
        source: The real tiles, of which some are held out.
        public: What it is made with.
        arm: How it is trained, one of `dp_study.ARMS`.
        text: The budget as the folder's name has it.
        epsilon: The same as a number; None without differential privacy.

    Returns:
        `arm`, `epsilon`, `privacy` of the stage's record or None, `validation_loss`, `seconds` of the training,
        `scores` by row as `summarise_seeds` returns them, and `attack`, see `attack_weights`.
    """
    folder = config.output / "arms" / f"{arm}-{text}"
    train_diffusion(arm_config(config, public, arm, epsilon, folder / "pipeline"))
    record = require_complete(folder / "pipeline", "pipeline", "make it anew")
    rows = pool_rows(config, public.preset, folder / "pipeline", folder)
    attack = read_kept(folder / "attack.json")
    if attack is None:
        smallest = rows[f"set-{min(config.n_per_class)}"]
        attack = attack_weights(folder / "pipeline", source, smallest, config.weight_tiles, config.seed)
        write_json(folder / "attack.json", attack)
    return {
        "arm": arm,
        "epsilon": epsilon,
        "privacy": record.get("privacy"),
        "validation_loss": record["validation_loss"],
        "seconds": record["seconds"],
        "scores": score_rows(config, source, rows, folder / "cells"),
        "attack": attack,
    }


def score_public(config: DpStudyConfig, source: TileSource, public: PublicModels) -> dict[str, Any] | None:
    """What the denoiser of public tiles is worth as it is, which spends nothing: `scores` as those of an arm.

    Returns:
        None where there is no such denoiser, or its classes are others.
    """
    if public.pipeline is None:
        return None
    if load_named_denoiser(public.pipeline)[1] != source.class_names:
        return None
    folder = public.pipeline.parent
    return score_rows(config, source, pool_rows(config, public.preset, public.pipeline, folder), folder / "cells")


def pool_rows(config: DpStudyConfig, preset: Preset, pipeline: Path, folder: Path) -> dict[str, Tiles]:
    """The pool that a pipeline makes, where that is not done yet, and what is chosen from it.

    Args:
        config: Of the study.
        preset: How it is made.
        pipeline: The pipeline's folder.
        folder: Where `pool` and `pool.png` come.

    Returns:
        `pool`, and `set-10` and the like, of so many images of each class.
    """
    options = {**preset.generate, "per_class": config.per_class, "seed": config.seed}
    generate(GenerateConfig(**{**options, "pipeline": pipeline, "output": folder / "pool"}))
    images, columns, _ = read_image_dataset(folder / "pool")
    pool = Tiles(images, columns["label"])
    shown = [row for label in range(pool.labels.max() + 1) for row in np.flatnonzero(pool.labels == label)[:_SHOWN]]
    write_bytes(folder / "pool.png", png_bytes(make_grid(images[shown], min(_SHOWN, config.per_class), scale=2)))
    embeddings = embed_images(UNTRAINED, images)
    rows = {"pool": pool}
    for size in config.n_per_class:
        selector = make_selector(SelectorConfig(n_per_class=size, seed=config.seed)).fit(embeddings, pool.labels)
        rows[f"set-{size}"] = pool.subset(selector.selected_indices_)
    return rows


def arm_config(
    config: DpStudyConfig, public: PublicModels, arm: str, epsilon: float | None, output: Path
) -> TrainDiffusionConfig:
    """How the denoiser of an arm is trained.

    All tiles are drawn alike, with differential privacy and without.
    """
    larger = _LARGER if arm == "batches" else 1
    options: dict[str, Any] = {
        **public.preset.diffusion,
        "data": config.data,
        "image_size": config.image_size,
        "audit_share": config.audit_share,
        "autoencoder": public.autoencoder,
        "output": output,
        "max_train_steps": config.steps // larger,
        "validation_steps": config.steps // larger,
        "batch_size": config.batch_size * larger,
        "learning_rate": config.learning_rate,
        "class_balance": 0.0,
        "seed": config.seed,
        "mixed_precision": config.mixed_precision,
        "resume": "latest",
    }
    if arm in _OPTIONS:
        options |= {"init_from": public.pipeline, **_OPTIONS[arm]}
    if epsilon is not None:
        options |= {"dp_epsilon": epsilon, "dp_views": config.views, "dp_public_autoencoder": True}
        options["dp_public_init"] = "init_from" in options
        options["dp_central_share"] = _CENTRAL_SHARE if arm == "central" else 0.0
    return TrainDiffusionConfig(**options)


def attack_weights(pipeline: Path, source: TileSource, images: Tiles, weight_tiles: int, seed: int) -> dict[str, Any]:
    """The attack of one who holds the weights.

    Args:
        pipeline: The pipeline's folder.
        source: The real tiles, of which some are held out.
        images: Some images for the audit; the attack does not depend on them.
        weight_tiles: Tiles of either kind, at most.
        seed: Of the attack.

    Returns:
        `unit`, that is attacked, `auc` with its interval, and `p_value`, None where units are tiles.
    """
    real, kind = real_tiles(source), source.group_kind or "group"
    losses = measure_losses(read_part(pipeline), real, weight_tiles, seed)
    shown = labelled(images)
    result = audit(shown, shown, real, {}, group_kind=kind, n_planted=0, weight_losses=losses, seed=seed)
    assert result.weights is not None
    test = result.weights_test
    return {
        "unit": "tile" if test is None else kind,
        "auc": asdict(result.weights.auc),
        "p_value": None if test is None else test.p_value,
    }


def score_real(config: DpStudyConfig, source: TileSource) -> dict[str, Any]:
    """Scores of real training tiles, all and as many of each class as the sets have: see `score_rows`."""
    train = source.split("train")
    rows = {"real": train}
    for size in config.n_per_class:
        rows[f"real-{size}"] = train.subset(sample_per_class(train.labels, size, config.seed))
    return score_rows(config, source, rows, config.output / "real")


def score_rows(config: DpStudyConfig, source: TileSource, rows: dict[str, Tiles], folder: Path) -> dict[str, Any]:
    """Trains what is missing of the ConvNets, and scores them on real tiles.

    Args:
        config: Of the study.
        source: The real tiles.
        rows: What is trained on, by the name of its row.
        folder: Keeps the cells.

    Returns:
        Row → what `summarise_seeds` says of it.
    """
    accelerator = make_accelerator(config.mixed_precision)
    score_on = {split: source.split(split) for split in SPLITS}
    scores = {}
    for row, tiles in rows.items():
        cells = []
        for seed in config.seeds:
            path = folder / f"{row}-seed{seed}.json"
            recipe = ClassifierConfig(
                max_train_steps=config.classifier_steps,
                batch_size=min(32, len(tiles)),
                validation_steps=config.classifier_steps,
                seed=seed,
            )
            cell = read_cell(path)
            if cell is None:
                cell = train_cell(path, row, recipe, tiles, None, score_on, accelerator, source.class_names)
            cells.append(cell)
        scores[row] = summarise_seeds(cells, SPLITS)
    return scores
