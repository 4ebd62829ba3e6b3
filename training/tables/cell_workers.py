"""Trains cells of the results table, one after the other, in a process that reads the tiles once."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from multiprocessing import parent_process
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch

from histodistill.training.data.image_dataset import open_image_table
from histodistill.training.data.scratch_images import decode_once
from histodistill.training.data.sources import load_tiles
from histodistill.training.data.tiles import Tiles, sample_per_class
from histodistill.training.distillation.guided_sampling import GUIDED_FOLDER, read_guided
from histodistill.training.distillation.label_views import label_views, places_in_classes
from histodistill.training.distillation.made_sets import made_set_file
from histodistill.training.distillation.peers import PEER_FOLDER, read_peer
from histodistill.training.distillation.pool_selection import SelectionInputs, fit_selector
from histodistill.training.engine.accelerator import make_accelerator
from histodistill.training.engine.classifier_config import ClassifierConfig
from histodistill.training.engine.timing import seconds_of_tile, short_training
from histodistill.training.evaluation.cells import train_cell
from histodistill.training.models.architectures import is_probe
from histodistill.training.models.loading import load_classifier
from histodistill.training.running.errors import InputError
from histodistill.training.running.memory import keep_freed_memory
from histodistill.training.tables.planned_cells import Cell
from histodistill.training.tables.results_summary import SPLITS
from histodistill.training.tables.table_inputs import inputs_file, read_inputs


class TableOptions(Protocol):
    """What workers go by of the options of a table.

    Attributes:
        run: Folder with pool/ and teacher/.
        runs: This and further ones.
        folder: Folder of the table.
        data, image_size, source_options: The real tiles: see `load_tiles`.
        mixed_precision: Of the trainings.
        jobs: Trainings at a time; None for as many as this machine has accelerators, or else cores.
    """

    @property
    def run(self) -> Path: ...
    @property
    def runs(self) -> Sequence[Path]: ...
    @property
    def folder(self) -> Path: ...
    @property
    def data(self) -> str | Path: ...
    @property
    def image_size(self) -> int | None: ...
    def source_options(self, run: Path | None = None) -> dict[str, Any]: ...
    @property
    def mixed_precision(self) -> str: ...
    @property
    def jobs(self) -> int | None: ...


@dataclass(frozen=True)
class Distillation:
    """What a worker takes of one run.

    Attributes:
        pool: Its pool, with the teacher's soft labels.
        real: The real training tiles, with the teacher's soft labels where a row needs them.
        inputs: What selections go by.
        folder: Where what is decoded once is kept.
        teacher: Folder of its teacher.
    """

    pool: Tiles
    real: Tiles
    inputs: SelectionInputs
    folder: Path
    teacher: Path

    @cached_property
    def decoded_pool(self) -> Tiles:
        """The pool, as it can be trained on: see `decode_once`."""
        return replace(self.pool, images=decode_once(self.pool.images, self.folder))


class Outcome(NamedTuple):
    """What came of a cell.

    Attributes:
        score: Its accuracy on the validation tiles; None where it was left out.
        note: Why it was left out.
    """

    score: float | None
    note: str | None = None


class Worker:
    """What trains cells, one after the other.

    Args:
        config: Of the table, whose folder holds the inputs that `write_inputs` wrote.

    Attributes:
        source: The real tiles.
        class_names: Names of the labels.
        distillations: Of the runs of the table; seeds take them in turn.
        accelerator: Of this process.
    """

    def __init__(self, config: TableOptions):
        self.folder = config.folder
        self.source = load_tiles(config.data, image_size=config.image_size, **config.source_options(config.run))
        self.class_names = self.source.class_names
        self.distillations = [self._read(run, number) for number, run in enumerate(config.runs)]
        self.accelerator = make_accelerator(config.mixed_precision)

    def _read(self, run: Path, number: int) -> Distillation:
        train = self.source.split("train")
        pool = open_image_table(run / "pool")
        labels = pool.columns["label"]
        inputs, real_probabilities = read_inputs(inputs_file(self.folder, number), labels, train.labels)
        return Distillation(
            Tiles(pool.images, labels, inputs.probabilities),
            Tiles(train.images, train.labels, real_probabilities),
            inputs,
            self.folder,
            run / "teacher",
        )

    def training_tiles(self, cell: Cell) -> Tiles:
        """The tiles that a cell trains on, with soft labels of their views where it learns from these.

        Raises:
            InputError: Where a class has too few, or for a selector's refusal.
        """
        tiles, num_views = self._tiles_as_they_are(cell), cell.config.soft_label_views
        if num_views == 1:
            return tiles
        teacher = load_classifier(self._distillation_of(cell).teacher).to(self.accelerator.device)
        return replace(tiles, label_views=label_views(teacher, tiles, places_in_classes(tiles.labels), num_views))

    def _distillation_of(self, cell: Cell) -> Distillation:
        return self.distillations[cell.config.seed % len(self.distillations)]

    def _tiles_as_they_are(self, cell: Cell) -> Tiles:
        row, seed = cell.row, cell.config.seed
        distillation = self._distillation_of(cell)
        if row.tiles == "real_all":
            return distillation.real
        if row.tiles == "pool_all":
            return distillation.decoded_pool
        assert cell.size is not None
        if row.tiles == "real_random":
            return distillation.real.subset(sample_per_class(distillation.real.labels, cell.size, seed))
        if row.peer is not None:
            return read_peer(made_set_file(self.folder, PEER_FOLDER, row.file_name, cell.size, seed))
        if row.guided is not None:
            return read_guided(made_set_file(self.folder, GUIDED_FOLDER, row.file_name, cell.size, seed))
        selection = fit_selector(row.selection(cell.size, seed), distillation.inputs, self.class_names)
        chosen = distillation.pool.subset(selection.selector.selected_indices_)
        return replace(chosen, images=decode_once(chosen.images, self.folder))

    def run(self, cell: Cell) -> Outcome:
        """Trains and scores a cell, and writes its file.

        One that cannot be trained, or diverges, does not take the others with it.
        """
        try:
            tiles = self.training_tiles(cell)
            score_on = {split: self.source.split(split) for split in SPLITS}
            # The last step counts. A probe has none, and chooses its penalty on the validation tiles.
            choose_on = score_on["validation"] if is_probe(cell.config.architecture) else None
            trained = train_cell(
                cell.path(self.folder), cell.row.name, cell.config, tiles, choose_on, score_on, self.accelerator,
                self.class_names, progress=False, size=cell.size, label=cell.label,
            )  # fmt: skip
        except InputError as error:
            size = "all" if cell.size is None else f"{cell.size} per class"
            return Outcome(None, f"{cell.row.name}, {size}, {cell.shown}: left out, since {error}")
        return Outcome(trained["validation"]["accuracy"])

    def seconds_of(self, config: ClassifierConfig) -> float:
        """Seconds that a training takes for each tile of a step: see `seconds_of_tile`."""
        training = short_training(
            config, self.source.split("train"), self.accelerator, self.class_names, config.batch_size
        )
        seconds = seconds_of_tile(training, config.batch_size)
        self.accelerator.free_memory()
        return seconds


# The one of this process, which the pool of processes starts and then sends cells to.
_worker: Worker | None = None


def become_worker(config: TableOptions, threads: int) -> None:
    """Makes this process one that trains cells: see `start_worker`, which chooses its GPU before."""
    global _worker
    torch.set_num_threads(threads)
    keep_freed_memory()
    # A benchmark that is killed must not leave its processes behind.
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _worker = Worker(config)


def _end_with_parent() -> None:
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def run_cell(cell: Cell) -> Outcome:
    """What came of a cell that this process's `Worker` has run."""
    assert _worker is not None
    return _worker.run(cell)


def time_training(config: ClassifierConfig) -> float:
    """What this process's `Worker` says of a training's time."""
    assert _worker is not None
    return _worker.seconds_of(config)
