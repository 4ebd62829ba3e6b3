"""Scores classifiers trained on distilled and on real tiles: what `histodistill compare` runs."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np

from histodistill.training.commands.compare import RECOVERY_ROW, ROWS, parse_args
from histodistill.training.data.image_dataset import read_image_dataset
from histodistill.training.data.sources import load_tiles
from histodistill.training.data.tiles import Tiles, TileSource, sample_per_class
from histodistill.training.engine.accelerator import make_accelerator
from histodistill.training.evaluation.cells import check_same_kind, read_cell, summarise_rows, train_cell
from histodistill.training.running.errors import InputError
from histodistill.training.running.files import write_json
from histodistill.training.running.formats import RESULTS_FORMAT
from histodistill.training.running.options import run_script
from histodistill.training.running.stages import Stage, require_complete
from histodistill.training.train_classifier import ClassifierConfig


def training_tiles(row: str, run: Path, source: TileSource, n_per_class: int, seed: int) -> Tiles:
    """The tiles that a row trains on.

    Raises:
        InputError: If a class has fewer tiles than the row needs, or the distilled set lacks the soft labels.
    """
    if row == "real_all":
        return source.split("train")
    if row == "real_random":
        train = source.split("train")
        return train.subset(sample_per_class(train.labels, n_per_class, seed))
    images, columns, _ = read_image_dataset(run / ("pool" if row == "pool_random" else "distilled"))
    if row == "distilled_soft" and "soft_label" not in columns:
        raise InputError("the distilled set has no soft labels: run histodistill select anew")
    tiles = Tiles(images, columns["label"], columns["soft_label"] if row == "distilled_soft" else None)
    return tiles.subset(sample_per_class(tiles.labels, n_per_class, seed)) if row == "pool_random" else tiles


def summarise(cells: list[dict[str, Any]], source: TileSource, n_per_class: int, notes: list[str]) -> dict[str, Any]:
    """Mean, standard deviation and single values of each row and architecture over seeds, and the recovery."""
    rows = summarise_rows(cells, ROWS, "test")
    accuracy = {(r["architecture"], r["row"]): r["accuracy"]["mean"] for r in rows}
    recovery = {
        architecture: accuracy[architecture, RECOVERY_ROW] / accuracy[architecture, "real_all"]
        for architecture in dict.fromkeys(r["architecture"] for r in rows)
        if accuracy.get((architecture, "real_all")) and (architecture, RECOVERY_ROW) in accuracy
    }
    return {
        "format": RESULTS_FORMAT,
        "data": source.name,
        "class_names": source.class_names,
        "n_per_class": n_per_class,
        "rows": rows,
        "recovery": recovery,
        "recovery_row": RECOVERY_ROW,
        "notes": notes,
    }


def main(args: argparse.Namespace) -> None:
    """Trains what is missing, one combination after the other, and sums all up in results.json."""
    distilled_record = require_complete(args.run / "distilled", "distilled set", "run histodistill select first")
    pool_record = require_complete(args.run / "pool", "pool", "run histodistill generate first")
    source = load_tiles(args.data, image_size=args.image_size)
    images, columns, class_names = read_image_dataset(args.run / "distilled")
    check_same_kind(args.run / "distilled", images, class_names, source)
    n_per_class = int(np.bincount(columns["label"]).min())
    settings = {
        "stage": "comparison",
        "data": source.fingerprint(),
        "pool": pool_record["fingerprint"],
        "distilled": distilled_record["fingerprint"],
        "train": args.train,
        "seeds": args.seeds,
        "batch_size": args.batch_size,
        "mixed_precision": args.mixed_precision,
    }
    folder = args.run / "comparison"
    # There is no other output folder to give: a run has one comparison.
    stage = Stage(folder, settings, remedy=f"delete {folder} to compare anew")
    accelerator = make_accelerator(args.mixed_precision)
    accelerator.wait_for_everyone()
    if stage.complete and (args.run / "results.json").is_file():
        accelerator.print(f"compare: {folder} is already finished")
        return
    if accelerator.is_main_process:
        stage.begin()

    cells, notes = [], []
    for architecture, steps, rows in args.plan:
        for row in rows:
            for seed in args.seeds:
                path = folder / f"{architecture}-{row}-seed{seed}.json"
                if cell := read_cell(path):
                    cells.append(cell)
                    continue
                try:
                    train = training_tiles(row, args.run, source, n_per_class, seed)
                except InputError as error:
                    note = f"{ROWS[row]}: left out, since {error}"
                    if note not in notes:
                        notes.append(note)
                        accelerator.print(note)
                    continue
                accelerator.print(f"{architecture} on {len(train)} tiles: {ROWS[row]}, seed {seed}")
                config = ClassifierConfig(
                    architecture=architecture,
                    loss="joint" if row == "distilled_joint" else "ce",
                    soft_label_weight=1.0 if row == "distilled_soft" else 0.0,
                    seed=seed,
                    max_train_steps=steps,
                    batch_size=args.batch_size,
                    validation_steps=max(1, steps // 10),
                )
                validation, test = source.split("validation"), source.split("test")
                cell = train_cell(
                    path, row, config, train, validation, {"test": test}, accelerator, source.class_names
                )
                cells.append(cell)
                if accelerator.is_main_process:
                    stage.save_progress()
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        results = summarise(cells, source, n_per_class, notes)
        write_json(args.run / "results.json", results)
        stage.finish(recovery=results["recovery"], num_processes=accelerator.num_processes)
    accelerator.end_training()


if __name__ == "__main__":
    run_script(parse_args, main)
