"""Trains cells of the results table in several processes, each of which reads the tiles once."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from functools import cached_property
from multiprocessing import active_children, get_context, parent_process
from pathlib import Path
from typing import Any, Protocol

import torch

from histodistill.training.data.image_dataset import open_image_table
from histodistill.training.data.scratch_images import decode_once
from histodistill.training.data.sources import load_tiles
from histodistill.training.data.tiles import Tiles, sample_per_class
from histodistill.training.distillation.pool_selection import fit_selector
from histodistill.training.engine.accelerator import make_accelerator
from histodistill.training.evaluation.cells import train_cell
from histodistill.training.models.architectures import is_probe
from histodistill.training.models.devices import best_device, gpu_names
from histodistill.training.running.allocator import keep_freed_memory
from histodistill.training.running.errors import InputError, param
from histodistill.training.running.launch import usable_cores
from histodistill.training.running.notes import tell
from histodistill.training.running.progress import Progress
from histodistill.training.running.stages import Stage
from histodistill.training.tables.planned_cells import Cell
from histodistill.training.tables.results_summary import SPLITS
from histodistill.training.tables.table_inputs import read_inputs
from histodistill.training.tables.worker_start import start_worker


class TableOptions(Protocol):
    """What workers go by of the options of a table.

    Attributes:
        run: Folder with pool/ and teacher/.
        folder: Folder of the table.
        data, image_size, source_options: The real tiles: see `load_tiles`.
        mixed_precision: Of the trainings.
        jobs: Trainings at a time; None for as many as this machine has accelerators, or else cores.
    """

    @property
    def run(self) -> Path: ...
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


def train_cells(config: TableOptions, cells: list[Cell], stage: Stage) -> list[str]:
    """Trains cells in `config.jobs` processes, and writes their files.

    On a machine with GPUs each process works on one, and the processes are dealt out to them in turn.

    Args:
        config: Of the table; it travels to the processes.
        cells: Those that are missing, at least one.
        stage: Keeps the time spent after each of them.

    Returns:
        Why some were left out, a sentence for each reason.

    Raises:
        InputError: Where a process was killed.
    """
    notes: list[str] = []
    jobs = min(config.jobs or usual_jobs(), len(cells))
    threads = max(1, usable_cores() // jobs)
    processes = get_context("spawn")
    gpus = None
    if names := gpu_names():
        gpus = processes.SimpleQueue()
        for number in range(jobs):
            gpus.put(names[number % len(names)])
    with (
        # Read by the numerical libraries when a worker imports them.
        _environment("OMP_NUM_THREADS", str(threads)),
        ProcessPoolExecutor(
            jobs, mp_context=processes, initializer=start_worker, initargs=(config, threads, gpus)
        ) as workers,
    ):
        futures = [workers.submit(_run_cell, cell) for cell in cells]
        try:
            with Progress(len(futures), "benchmark", "trainings") as progress:
                for future in as_completed(futures):
                    note = future.result()
                    if note and note not in notes:
                        notes.append(note)
                        tell(note)
                    stage.save_progress()
                    progress.update()
        except BrokenProcessPool as error:
            raise InputError(
                f"a process of {param('jobs')}={jobs} was killed, perhaps for want of memory: run the same "
                f"command again to go on, with fewer {param('jobs')}"
            ) from error
        except BaseException:
            # Cells that are being trained have checkpoints, and may take hours: nobody waits for them.
            workers.shutdown(wait=False, cancel_futures=True)
            for worker in active_children():
                worker.terminate()
            raise
    return notes


def usual_jobs() -> int:
    """How many trainings are made at a time where nothing else is asked for.

    A training keeps an accelerator busy, so that several on one only take its memory; of cores, each trains alone.
    """
    if best_device().type == "cpu":
        return usable_cores()
    return torch.accelerator.device_count()


@contextlib.contextmanager
def _environment(name: str, value: str) -> Iterator[None]:
    """Sets a variable of the environment, which processes that are started meanwhile inherit."""
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


class Worker:
    """What trains cells, one after the other.

    Args:
        config: Of the table, whose folder holds the inputs that `write_inputs` wrote.

    Attributes:
        source: The real tiles.
        class_names: Names of the labels.
        pool: The pool, with the teacher's soft labels.
        real: The real training tiles, with the teacher's soft labels where a row needs them.
        inputs: What selections go by.
        accelerator: Of this process.
    """

    def __init__(self, config: TableOptions):
        self.folder = config.folder
        self.source = load_tiles(config.data, image_size=config.image_size, **config.source_options(config.run))
        train = self.source.split("train")
        pool = open_image_table(config.run / "pool")
        self.class_names, labels = pool.class_names, pool.columns["label"]
        self.inputs, real_probabilities = read_inputs(self.folder, labels, train.labels)
        self.pool = Tiles(pool.images, labels, self.inputs.probabilities)
        self.real = Tiles(train.images, train.labels, real_probabilities)
        self.accelerator = make_accelerator(config.mixed_precision)

    def training_tiles(self, cell: Cell) -> Tiles:
        """The tiles that a cell trains on.

        Raises:
            InputError: Where a class has too few, or for a selector's refusal.
        """
        row, seed = cell.row, cell.config.seed
        if row.tiles == "real_all":
            return self.real
        if row.tiles == "pool_all":
            return self.decoded_pool
        assert cell.size is not None
        if row.tiles == "real_random":
            return self.real.subset(sample_per_class(self.real.labels, cell.size, seed))
        selection = fit_selector(row.selection(cell.size, seed), self.inputs, self.class_names)
        chosen = self.pool.subset(selection.selector.selected_indices_)
        return replace(chosen, images=decode_once(chosen.images, self.folder))

    @cached_property
    def decoded_pool(self) -> Tiles:
        """The pool, as it can be trained on: see `decode_once`."""
        return replace(self.pool, images=decode_once(self.pool.images, self.folder))

    def run(self, cell: Cell) -> str | None:
        """Trains and scores a cell, and writes its file.

        One that cannot be trained, or diverges, does not take the others with it.

        Returns:
            Why it was left out, or None.
        """
        try:
            tiles = self.training_tiles(cell)
            score_on = {split: self.source.split(split) for split in SPLITS}
            # The last step counts. A probe has none, and chooses its penalty on the validation tiles.
            choose_on = score_on["validation"] if is_probe(cell.config.architecture) else None
            train_cell(
                cell.path(self.folder), cell.row.name, cell.config, tiles, choose_on, score_on, self.accelerator,
                self.class_names, progress=False, size=cell.size, label=cell.label,
            )  # fmt: skip
        except InputError as error:
            size = "all" if cell.size is None else f"{cell.size} per class"
            return f"{cell.row.name}, {size}, {cell.shown}: left out, since {error}"
        return None


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


def _run_cell(cell: Cell) -> str | None:
    assert _worker is not None
    return _worker.run(cell)
