"""Trains and scores the cells of the results table: what `histodistill benchmark` runs."""

from __future__ import annotations

import argparse
import os
import threading
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context, parent_process
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import stats
from tqdm.auto import tqdm

from histodistill.training.accelerator import make_accelerator
from histodistill.training.allocator import keep_freed_memory
from histodistill.training.cells import METRICS, check_same_kind, read_cell, spread, train_cell
from histodistill.training.classifiers import Classifier
from histodistill.training.commands.benchmark import FIXED_ROWS, WHOLE_ROWS, file_name, parse_args
from histodistill.training.commands.select import needs_real_tiles
from histodistill.training.data import load_tiles, sample_per_class
from histodistill.training.embedders import embed_images, embedder_fingerprint, resolve_embedder
from histodistill.training.errors import InputError
from histodistill.training.files import write_json, write_text
from histodistill.training.image_dataset import read_image_dataset
from histodistill.training.options import run_script
from histodistill.training.scoring import predict_proba
from histodistill.training.selecting import SelectionInputs, fit_selector, make_selector
from histodistill.training.stages import Stage, require_complete
from histodistill.training.tiles import Tiles, TileSource
from histodistill.training.train_classifier import ClassifierConfig


SPLITS = ("validation", "test")
# The row that margins are over.
BASELINE = "random"


@dataclass(frozen=True)
class Cell:
    """One training: a classifier, a row, the images per class (None for a row of fixed size) and the seed."""

    architecture: str
    steps: int
    row: str
    size: int | None
    seed: int

    def path(self, folder: Path) -> Path:
        """The file that holds its scores."""
        size = "all" if self.size is None else self.size
        return folder / "cells" / f"{self.architecture}-{file_name(self.row)}-{size}-seed{self.seed}.json"


def plan_cells(args: argparse.Namespace) -> list[Cell]:
    """All cells that the options name: seed by seed, so that a table is whole after the first."""
    return [
        Cell(architecture, steps, row, size, seed)
        for seed in args.seeds
        for architecture, steps, _ in args.plan
        for row in args.rows
        for size in ([None] if row in WHOLE_ROWS else args.sizes)
    ]


class Worker:
    """What trains cells: holds the tiles and embeddings, which each process reads once."""

    def __init__(self, args: argparse.Namespace):
        self.args = args
        self.source = load_tiles(args.data, image_size=args.image_size)
        images, columns, self.class_names = read_image_dataset(args.run / "pool")
        self.pool = Tiles(images, columns["label"])
        self.inputs = read_inputs(args.output, self.pool.labels, self.source.split("train").labels)
        self.accelerator = make_accelerator(args.mixed_precision)

    def training_tiles(self, cell: Cell) -> Tiles:
        """The tiles that a cell trains on. Raises InputError where there are too few, or for a selector's refusal."""
        train = self.source.split("train")
        if cell.row == "real_all":
            return train
        if cell.row == "pool_all":
            return self.pool
        if cell.row == "real_random":
            return train.subset(sample_per_class(train.labels, cell.size, cell.seed))
        options = argparse.Namespace(**vars(self.args.specs[cell.row]), n_per_class=cell.size, seed=cell.seed)
        selection = fit_selector(options, self.inputs, self.class_names)
        return self.pool.subset(selection.selector.selected_indices_)

    def run(self, cell: Cell) -> str | None:
        """Trains and scores a cell and writes its file; returns why it was left out, or None."""
        try:
            tiles = self.training_tiles(cell)
        except InputError as error:
            return f"{cell.row}, {cell.size} per class: left out, since {error}"
        config = ClassifierConfig(
            architecture=cell.architecture,
            seed=cell.seed,
            max_train_steps=cell.steps,
            batch_size=self.args.batch_size,
            validation_steps=cell.steps,
        )
        score_on = {split: self.source.split(split) for split in SPLITS}
        train_cell(
            cell.path(self.args.output), cell.row, config, tiles, None, score_on, self.accelerator, self.class_names,
            progress=False,
        )  # fmt: skip
        return None


_worker: Worker | None = None


def _start_worker(args: argparse.Namespace, threads: int) -> None:
    global _worker
    torch.set_num_threads(threads)
    keep_freed_memory()
    # A benchmark that is killed must not leave its processes behind.
    threading.Thread(target=lambda: (parent_process().join(), os._exit(1)), daemon=True).start()
    _worker = Worker(args)


def _run_cell(cell: Cell) -> str | None:
    return _worker.run(cell)


def write_inputs(args: argparse.Namespace, pool: Tiles, source: TileSource) -> None:
    """Embeds the pool, and the real training tiles where a row goes by them; kept in `inputs.npz`."""
    file = args.output / "inputs.npz"
    embedder = resolve_embedder(args.embedder, args.run / "teacher")
    with_real = any(options is not None and needs_real_tiles(options) for options in args.specs.values())
    if file.is_file():
        with np.load(file) as kept:
            if "real_embeddings" in kept or not with_real:
                return
    arrays = {
        "embeddings": embed_images(embedder, pool.images),
        "probabilities": predict_proba(Classifier.from_pretrained(args.run / "teacher"), pool.images),
    }
    if with_real:
        arrays["real_embeddings"] = embed_images(embedder, source.split("train").images)
    args.output.mkdir(parents=True, exist_ok=True)
    temporary = args.output / ".inputs.tmp.npz"
    np.savez(temporary, **arrays)
    os.replace(temporary, file)


def read_inputs(folder: Path, labels: np.ndarray, real_labels: np.ndarray) -> SelectionInputs:
    """What `write_inputs` kept, with the labels of the pool and of the real training tiles."""
    with np.load(folder / "inputs.npz") as kept:
        return SelectionInputs(
            kept["embeddings"], labels, kept["probabilities"], kept.get("real_embeddings"), real_labels
        )


def summarise(cells: list[tuple[Cell, dict[str, Any]]]) -> list[dict[str, Any]]:
    """One dict for each architecture, row and size, in order of appearance.

    Returns:
        Dicts of architecture, row, size, num_train, steps, seeds, and for each split and metric the mean, the standard
        deviation (None for one seed), the values, and the `margin`: see `paired_margin`, over the row `BASELINE` of
        the same architecture and size on the seeds that both have, or None.
    """
    groups: dict[tuple, dict[int, dict]] = {}
    for cell, scores in cells:
        groups.setdefault((cell.architecture, cell.row, cell.size), {})[cell.seed] = scores
    rows = []
    for (architecture, row, size), by_seed in groups.items():
        seeds = sorted(by_seed)
        first = by_seed[seeds[0]]
        record = {
            "architecture": architecture,
            "row": row,
            "size": size,
            "num_train": first["num_train"],
            "steps": first["config"]["max_train_steps"],
            "seeds": seeds,
        }
        baseline = groups.get((architecture, BASELINE, size), {})
        both = [seed for seed in seeds if seed in baseline]
        for split in SPLITS:
            record[split] = {metric: spread([by_seed[seed][split][metric] for seed in seeds]) for metric in METRICS}
            for metric in METRICS:
                mine, theirs = ([scores[seed][split][metric] for seed in both] for scores in (by_seed, baseline))
                comparable = row != BASELINE and both and None not in mine + theirs
                margin = paired_margin(np.array(mine), np.array(theirs)) if comparable else None
                record[split][metric]["margin"] = margin
        rows.append(record)
    return rows


def paired_margin(scores: np.ndarray, baseline: np.ndarray) -> dict[str, float | None]:
    """How much higher scores are than a baseline's of the same seeds.

    Args:
        scores, baseline: float S, pairs.

    Returns:
        The mean difference, its 95 % confidence interval (low, high) and the p-value of the two-sided paired t-test
        that it is 0; None where one pair or equal differences leave these open.
    """
    difference = scores - baseline
    margin = {"mean": float(difference.mean()), "low": None, "high": None, "p_value": None}
    if np.ptp(difference) > 1e-9:  # beyond rounding
        test = stats.ttest_rel(scores, baseline)
        interval = test.confidence_interval(0.95)
        margin |= {"low": float(interval.low), "high": float(interval.high), "p_value": float(test.pvalue)}
    return margin


def markdown_table(rows: list[dict[str, Any]], split: str) -> str:
    """The table of one split: a block for each architecture and size, rows in their order."""
    lines = [
        "| classifier | images per class | trained on | ACC | AUC | macro F1 | ACC over random, 95 % interval | p |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for architecture in dict.fromkeys(row["architecture"] for row in rows):
        sizes = dict.fromkeys(row["size"] for row in rows)
        for size in sorted(sizes, key=lambda size: (size is not None, size or 0)):
            for row in rows:
                if (row["architecture"], row["size"]) != (architecture, size):
                    continue
                name = FIXED_ROWS.get(row["row"], f"`{row['row']}`")
                scores = " | ".join(_score(row[split][metric]) for metric in METRICS)
                images = "all" if size is None else size
                lines.append(
                    f"| {architecture} | {images} | {name} | {scores} | {_margin(row[split]['accuracy']['margin'])} |"
                )
    return "\n".join(lines) + "\n"


def _score(score: dict[str, Any]) -> str:
    if score["mean"] is None:
        return "–"
    spread = "" if score["std"] is None else f" ± {score['std']:.3f}"
    return f"{score['mean']:.3f}{spread}"


def _margin(margin: dict[str, Any] | None) -> str:
    if margin is None:
        return " | "
    if margin["low"] is None:
        return f"{margin['mean']:+.3f} | "
    return f"{margin['mean']:+.3f} ({margin['low']:+.3f} to {margin['high']:+.3f}) | {margin['p_value']:.3f}"


def main(args: argparse.Namespace) -> None:
    """Trains the cells that are missing, several at a time, and writes the table of all that the options name."""
    pool_record = require_complete(args.run / "pool", "pool", "run histodistill generate first")
    teacher_record = require_complete(args.run / "teacher", "classifier", "run train_classifier first")
    source = load_tiles(args.data, image_size=args.image_size)
    for split in SPLITS:
        source.split(split)
    images, columns, class_names = read_image_dataset(args.run / "pool")
    check_same_kind(args.run / "pool", images, class_names, source)
    # Rows, sizes and seeds may be added; what would change a cell may not.
    settings = {
        "stage": "benchmark",
        "data": source.fingerprint(),
        "pool": pool_record["fingerprint"],
        "teacher": teacher_record["fingerprint"],
        "embedder": embedder_fingerprint(args.embedder),
        "steps": {architecture: steps for architecture, steps, _ in args.plan},
        "batch_size": args.batch_size,
        "mixed_precision": args.mixed_precision,
    }
    stage = Stage(args.output, settings, remedy="give another --output, or delete it")
    make_accelerator(args.mixed_precision)  # refuses what this machine cannot do
    for options in args.specs.values():
        if options is not None:
            make_selector(argparse.Namespace(**vars(options), n_per_class=min(args.sizes), seed=0))
    write_inputs(args, Tiles(images, columns["label"]), source)
    stage.begin()

    cells = plan_cells(args)
    missing = [cell for cell in cells if not cell.path(args.output).is_file()]
    notes = []
    if missing:
        jobs = min(args.jobs, len(missing))
        threads = max(1, (os.cpu_count() or 1) // jobs)
        # Read by the numerical libraries when a process of the pool imports them.
        os.environ["OMP_NUM_THREADS"] = str(threads)
        with ProcessPoolExecutor(
            jobs, mp_context=get_context("spawn"), initializer=_start_worker, initargs=(args, threads)
        ) as workers:
            futures = [workers.submit(_run_cell, cell) for cell in missing]
            try:
                for future in tqdm(as_completed(futures), total=len(futures), desc="benchmark", unit="training"):
                    note = future.result()
                    if note and note not in notes:
                        notes.append(note)
                        tqdm.write(note)
                    stage.save_progress()
            except BrokenProcessPool as error:
                raise InputError(
                    f"a process of --jobs={args.jobs} was killed, perhaps for want of memory: run the same command "
                    "again to go on, with fewer --jobs"
                ) from error
            except BaseException:
                workers.shutdown(cancel_futures=True)
                raise
    done = [(cell, scores) for cell in cells if (scores := read_cell(cell.path(args.output)))]
    rows = summarise(done)
    results = {"data": source.name, "class_names": class_names, "rows": rows, "notes": notes}
    write_json(args.output / "benchmark.json", results)
    tables = [f"## {split.capitalize()} tiles\n\n{markdown_table(rows, split)}" for split in SPLITS]
    write_text(args.output / "benchmark.md", "\n".join(tables))
    stage.finish(num_cells=len(done))
    print(tables[0])
    print(f"benchmark: saved to {args.output}")


if __name__ == "__main__":
    run_script(parse_args, main)
