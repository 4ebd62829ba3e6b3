"""Shares cells of the results table out to several processes, on GPUs or cores."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import active_children, get_context

import torch

from histodistill.training.models.devices import best_device, gpu_names
from histodistill.training.running.errors import InputError, param
from histodistill.training.running.launch import usable_cores
from histodistill.training.running.notes import tell
from histodistill.training.running.progress import Progress
from histodistill.training.running.stages import Stage
from histodistill.training.tables.cell_workers import TableOptions, run_cell
from histodistill.training.tables.planned_cells import Cell
from histodistill.training.tables.worker_start import start_worker


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
        futures = [workers.submit(run_cell, cell) for cell in cells]
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
