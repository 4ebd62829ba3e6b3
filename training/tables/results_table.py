"""Trains and scores the cells of the results table: what `histodistill benchmark` runs."""

from __future__ import annotations

import argparse
import os
import threading
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, replace
from multiprocessing import get_context, parent_process
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm

from histodistill.training.commands.benchmark import file_name, parse_args
from histodistill.training.data.image_dataset import read_image_dataset
from histodistill.training.data.sources import load_tiles
from histodistill.training.data.tiles import Tiles, TileSource, sample_per_class
from histodistill.training.distillation.pool_selection import SelectionInputs, fit_selector, make_selector
from histodistill.training.engine.accelerator import make_accelerator
from histodistill.training.engine.classifier_config import ClassifierConfig
from histodistill.training.evaluation.cells import check_same_kind, read_cell, train_cell
from histodistill.training.models.classifiers import Classifier
from histodistill.training.models.embedders import embed_images, embedder_fingerprint, resolve_embedder
from histodistill.training.models.prediction import predict_proba
from histodistill.training.running.allocator import keep_freed_memory
from histodistill.training.running.errors import InputError
from histodistill.training.running.files import write_bytes, write_json, write_text
from histodistill.training.running.launch import usable_cores
from histodistill.training.running.options import run_script
from histodistill.training.running.stages import Stage, first_difference, require_complete
from histodistill.training.tables.results_figures import draw_results
from histodistill.training.tables.results_summary import SPLITS, markdown_table, summarise


@dataclass(frozen=True)
class Cell:
    """One training: how, on which row, and with how many images per class (None for a row of fixed size)."""

    config: ClassifierConfig
    row: str
    size: int | None

    def path(self, folder: Path) -> Path:
        """The file that holds its scores."""
        size = "all" if self.size is None else self.size
        name = f"{self.config.architecture}-{file_name(self.row)}-{size}-seed{self.config.seed}.json"
        return folder / "cells" / name


def plan_cells(args: argparse.Namespace) -> list[Cell]:
    """All cells that the options name: seed by seed, so that a table is whole after the first."""
    return [Cell(replace(config, seed=seed), row, size) for seed in args.seeds for config, row, size in args.plan]


def missing_cells(cells: list[Cell], folder: Path) -> list[Cell]:
    """Those that are not in the folder.

    Raises:
        InputError: Where a cell that is there was trained in another way than the planned ones of its row, or of its
            classifier, but for what the row changes: one table has one recipe.
    """
    planned = {(cell.config.architecture, cell.row): _recipe(cell.config) for cell in cells}
    common: dict[str, dict[str, Any]] = {}
    for cell in cells:
        if "@" not in cell.row:
            common.setdefault(cell.config.architecture, _recipe(cell.config))
    own = {cell.path(folder) for cell in cells}
    for path in sorted((folder / "cells").glob("*.json"), key=lambda path: (path not in own, path)):
        kept = read_cell(path)
        recipe = {name: value for name, value in kept["config"].items() if name != "seed"}
        place = kept["architecture"], kept["row"]
        wanted = planned.get(place) or ("@" not in kept["row"] and common.get(kept["architecture"])) or recipe
        if recipe != wanted:
            raise InputError(
                f"{path} was trained with another recipe ({first_difference(recipe, wanted)}): give another --output, "
                "or delete it"
            )
    return [cell for cell in cells if not cell.path(folder).is_file()]


def _recipe(config: ClassifierConfig) -> dict[str, Any]:
    return {name: value for name, value in asdict(config).items() if name != "seed"}


def kept_cells(folder: Path, order: list[str]) -> list[dict[str, Any]]:
    """All cells in the folder, in the order of these rows and then by name, each row's by size and seed."""
    cells = [read_cell(path) for path in sorted((folder / "cells").glob("*.json"))]
    places = {row: place for place, row in enumerate(order)}
    return sorted(
        cells,
        key=lambda cell: (
            cell["architecture"],
            places.get(cell["row"], len(order)),
            cell["row"],
            cell["size"] or 0,
            cell["seed"],
        ),
    )


class Worker:
    """What trains cells: holds the tiles and embeddings, which each process reads once."""

    def __init__(self, args: argparse.Namespace):
        self.args = args
        self.source = load_tiles(args.data, image_size=args.image_size)
        images, columns, self.class_names = read_image_dataset(args.run / "pool")
        self.inputs, real_probabilities = read_inputs(args.output, columns["label"], self.source.split("train").labels)
        self.pool = Tiles(images, columns["label"], self.inputs.probabilities)
        train = self.source.split("train")
        self.real = Tiles(train.images, train.labels, real_probabilities)
        self.accelerator = make_accelerator(args.mixed_precision)

    def training_tiles(self, cell: Cell) -> Tiles:
        """The tiles that a cell trains on. Raises InputError where there are too few, or for a selector's refusal."""
        spec, seed = self.args.specs[cell.row], cell.config.seed
        if spec.tiles == "real_all":
            return self.real
        if spec.tiles == "pool_all":
            return self.pool
        if spec.tiles == "real_random":
            return self.real.subset(sample_per_class(self.real.labels, cell.size, seed))
        options = argparse.Namespace(**vars(spec.options), n_per_class=cell.size, seed=seed)
        selection = fit_selector(options, self.inputs, self.class_names)
        return self.pool.subset(selection.selector.selected_indices_)

    def run(self, cell: Cell) -> str | None:
        """Trains and scores a cell and writes its file; returns why it was left out, or None.

        One that cannot be trained, or diverges, does not take the others with it.
        """
        try:
            tiles = self.training_tiles(cell)
            score_on = {split: self.source.split(split) for split in SPLITS}
            train_cell(
                cell.path(self.args.output), cell.row, cell.config, tiles, None, score_on, self.accelerator,
                self.class_names, progress=False, size=cell.size,
            )  # fmt: skip
        except InputError as error:
            size = "all" if cell.size is None else f"{cell.size} per class"
            return f"{cell.row}, {size}, {cell.config.architecture}: left out, since {error}"
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
    """Embeds the pool, and the real training tiles where a row goes by them; kept in `inputs.npz`.

    Beside the embeddings there is what the teacher says of the pool, and of the real training tiles where a row has
    their soft labels.
    """
    file = args.output / "inputs.npz"
    needed = {"embeddings", "probabilities"}
    if any(spec.options is not None and spec.options.typical_share is not None for spec in args.specs.values()):
        needed.add("real_embeddings")
    for config, row, _ in args.plan:
        if config.soft_label_weight > 0 and args.specs[row].options is None:
            needed.add("real_probabilities")
    arrays = {}
    if file.is_file():
        with np.load(file) as kept:
            arrays = dict(kept)
    if needed <= set(arrays):
        return
    embedder = resolve_embedder(args.embedder, args.run / "teacher")
    teacher = Classifier.from_pretrained(args.run / "teacher")
    real = source.split("train").images
    make = {
        "embeddings": lambda: embed_images(embedder, pool.images),
        "probabilities": lambda: predict_proba(teacher, pool.images),
        "real_embeddings": lambda: embed_images(embedder, real),
        "real_probabilities": lambda: predict_proba(teacher, real),
    }
    arrays |= {name: make[name]() for name in sorted(needed - set(arrays))}
    args.output.mkdir(parents=True, exist_ok=True)
    temporary = args.output / ".inputs.tmp.npz"
    np.savez(temporary, **arrays)
    os.replace(temporary, file)


def read_inputs(
    folder: Path, labels: np.ndarray, real_labels: np.ndarray
) -> tuple[SelectionInputs, np.ndarray | None]:
    """What `write_inputs` kept, with the labels of the pool and of the real tiles; and these tiles' soft labels."""
    with np.load(folder / "inputs.npz") as kept:
        inputs = SelectionInputs(
            kept["embeddings"], labels, kept["probabilities"], kept.get("real_embeddings"), real_labels
        )
        return inputs, kept.get("real_probabilities")


def main(args: argparse.Namespace) -> None:
    """Trains the cells that are missing, several at a time, and writes the table of all that are there."""
    pool_record = require_complete(args.run / "pool", "pool", "run histodistill generate first")
    teacher_record = require_complete(args.run / "teacher", "classifier", "run train_classifier first")
    source = load_tiles(args.data, image_size=args.image_size)
    for split in SPLITS:
        source.split(split)
    images, columns, class_names = read_image_dataset(args.run / "pool")
    check_same_kind(args.run / "pool", images, class_names, source)
    # Rows, sizes, seeds and classifiers may be added; what would change a cell may not.
    settings = {
        "stage": "benchmark",
        "data": source.fingerprint(),
        "pool": pool_record["fingerprint"],
        "teacher": teacher_record["fingerprint"],
        "embedder": embedder_fingerprint(args.embedder),
        "mixed_precision": args.mixed_precision,
    }
    stage = Stage(args.output, settings, remedy="give another --output, or delete it")
    make_accelerator(args.mixed_precision)  # refuses what this machine cannot do
    for _, row, size in args.plan:
        options = args.specs[row].options
        if options is not None:
            make_selector(argparse.Namespace(**vars(options), n_per_class=size, seed=0))
    cells = plan_cells(args)
    missing = missing_cells(cells, args.output)
    write_inputs(args, Tiles(images, columns["label"]), source)
    stage.begin()

    notes = train_cells(args, missing, stage) if missing else []
    rows = list(dict.fromkeys(cell.row for cell in cells))
    kept = kept_cells(args.output, rows)
    table = summarise(kept)
    results = {"data": source.name, "class_names": class_names, "rows": table, "notes": notes}
    write_json(args.output / "benchmark.json", results)
    tables = [f"## {split.capitalize()} tiles\n\n{markdown_table(table, split)}" for split in SPLITS]
    write_text(args.output / "benchmark.md", "\n".join(tables))
    for name, png in draw_results(table, kept, class_names).items():
        write_bytes(args.output / name, png)
    stage.finish(num_cells=len(kept))
    print(tables[0])
    print(f"benchmark: saved to {args.output}")


def train_cells(args: argparse.Namespace, cells: list[Cell], stage: Stage) -> list[str]:
    """Trains cells in several processes and writes their files; returns why some were left out.

    Raises:
        InputError: Where a process was killed.
    """
    notes: list[str] = []
    jobs = min(args.jobs, len(cells))
    threads = max(1, usable_cores() // jobs)
    # Read by the numerical libraries when a process of the pool imports them.
    os.environ["OMP_NUM_THREADS"] = str(threads)
    with ProcessPoolExecutor(
        jobs, mp_context=get_context("spawn"), initializer=_start_worker, initargs=(args, threads)
    ) as workers:
        futures = [workers.submit(_run_cell, cell) for cell in cells]
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
    return notes


if __name__ == "__main__":
    run_script(parse_args, main)
