"""The work of the study of several sites: each distils its tiles, and classifiers are trained on what comes of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from histodistill.training.benchmarks.sites import federated_averaging, join
from histodistill.training.benchmarks.sites_table import MERGED
from histodistill.training.data.image_dataset import read_image_dataset
from histodistill.training.data.tiles import Tiles, TileSource, sample_per_class
from histodistill.training.end_to_end.distill import DistillConfig, open_run, stages
from histodistill.training.engine.accelerator import make_accelerator
from histodistill.training.engine.classifier_config import ClassifierConfig
from histodistill.training.engine.scoring import predict_shared, score_probabilities
from histodistill.training.evaluation.cells import read_cell, train_cell
from histodistill.training.running.files import write_json
from histodistill.training.running.launch import run_module
from histodistill.training.running.stages import Stage, is_complete
from histodistill.training.tables.results_summary import SPLITS


if TYPE_CHECKING:
    from accelerate import Accelerator

# Folders of the stages that no site needs: nothing is published, and the study has a comparison of its own.
_LEFT_OUT = ("audit", "comparison")


def write_tiles(file: Path, source: TileSource, own: Tiles) -> None:
    """Writes the tiles of one site as a `.npz` file: its own to train on, those of the source to be scored on."""
    arrays: dict[str, Any] = {"class_names": np.array(source.class_names)}
    for name, split in (("train", own), ("val", source.split("validation")), ("test", source.split("test"))):
        arrays |= {f"{name}_images": split.images, f"{name}_labels": split.labels[:, None]}
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(".tiles.tmp.npz")
    np.savez(temporary, **arrays)
    temporary.replace(file)


def distil_site(options: DistillConfig, source: TileSource, own: Tiles, max_train_steps: Mapping[str, int]) -> Tiles:
    """Distils the tiles of one site, where that is not done yet.

    Args:
        options: Of the site; its `data` is the file for the site's tiles, which lies in the site's folder.
        source: The real tiles of all sites.
        own: Those of this site.
        max_train_steps: Optimizer steps by the name of the step, in place of the preset's.

    Returns:
        The distilled set.
    """
    tiles = Path(options.data)
    if not tiles.is_file():
        write_tiles(tiles, source, own)
    for stage in stages(options, open_run(options, max_train_steps)):
        if stage.folder in _LEFT_OUT or is_complete(options.output / stage.folder):
            continue
        print(f"{tiles.parent.name}: {stage.title}", flush=True)
        run_module(stage.module, stage.argv, stage.num_processes)
    images, columns, _ = read_image_dataset(options.output / "distilled")
    return Tiles(images, columns["label"])


def training_sets(
    train: Tiles, real: Sequence[Tiles], distilled: Sequence[Tiles], as_many: int, seed: int
) -> dict[str, Tiles | None]:
    """What each row trains on, in the order of the table; None for federated averaging, which takes all sites.

    Args:
        train: The real tiles of all sites.
        real: Those of each site.
        distilled: The distilled set of each site.
        as_many: Random real tiles of each class for the row `sampled`.
        seed: Of these.
    """
    return {
        "pooled": train,
        MERGED: join(distilled),
        "sampled": train.subset(sample_per_class(train.labels, as_many, seed)),
        **{f"site-{number}": site for number, site in enumerate(real, 1)},
        **{f"distilled-{number}": site for number, site in enumerate(distilled, 1)},
        "federated": None,
    }


def train_cells(
    stage: Stage,
    recipe: ClassifierConfig,
    seeds: Sequence[int],
    source: TileSource,
    real: Sequence[Tiles],
    distilled: Sequence[Tiles],
    *,
    as_many: int,
    num_rounds: int,
    mixed_precision: str,
) -> list[dict[str, Any]]:
    """Trains what is missing of the study's cells.

    Args:
        stage: The study's; its folder holds the cells.
        recipe: How to train, with any seed.
        seeds: One training of each row for each.
        source: The real tiles of all sites.
        real: Those of each site, to train on.
        distilled: The distilled set of each site.
        as_many: See `training_sets`.
        num_rounds: Of federated averaging.
        mixed_precision: "no", "bf16" or "fp16".

    Returns:
        All cells, seed by seed: see `cells.train_cell` and `federated_cell`.
    """
    accelerator = make_accelerator(mixed_precision)
    score_on = {split: source.split(split) for split in SPLITS}
    cells = []
    for seed in seeds:
        config = replace(recipe, seed=seed)
        for row, tiles in training_sets(source.split("train"), real, distilled, as_many, seed).items():
            path = stage.folder / "cells" / f"{row}-seed{seed}.json"
            cell = read_cell(path)
            if cell is None:
                print(f"{row}, seed {seed}", flush=True)
                shared = (score_on, accelerator, source.class_names)
                if tiles is None:
                    cell = federated_cell(path, config, real, *shared, num_rounds)
                else:
                    cell = train_cell(path, row, config, tiles, None, *shared)
                stage.save_progress()
            cells.append(cell)
    return cells


def federated_cell(
    path: Path,
    config: ClassifierConfig,
    sites: Sequence[Tiles],
    score_on: dict[str, Tiles],
    accelerator: Accelerator,
    class_names: list[str],
    num_rounds: int,
) -> dict[str, Any]:
    """Trains by federated averaging, scores, and writes the cell.

    Args:
        path: JSON file of the cell.
        config: How to train.
        sites: The real tiles of each site.
        score_on: Tiles that are scored, by the name of their split.
        accelerator: Shared by all processes.
        class_names: Names of the labels.
        num_rounds: Of federated averaging.

    Returns:
        The cell: row, seed, num_train, scores by name of the split, and the config.
    """
    model = federated_averaging(config, sites, accelerator, class_names=class_names, num_rounds=num_rounds)
    cell = {
        "row": "federated",
        "seed": config.seed,
        "num_train": sum(map(len, sites)),
        **{
            split: score_probabilities(predict_shared(model, tiles.images, accelerator), tiles.labels)
            for split, tiles in score_on.items()
        },
        "config": asdict(config),
    }
    write_json(path, cell)
    return cell
