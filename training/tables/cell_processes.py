"""Shares cells of the results table out to several processes, on GPUs or cores."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import active_children, get_context
from typing import Any, TypeVar

import torch

from histodistill.training.models.architectures import is_probe
from histodistill.training.models.devices import best_device, gpu_names
from histodistill.training.running.errors import InputError, param
from histodistill.training.running.notes import tell
from histodistill.training.running.progress import Progress, about
from histodistill.training.running.signals import interrupts_wait
from histodistill.training.running.stages import Stage
from histodistill.training.running.threads import usable_cores
from histodistill.training.tables.cell_workers import Outcome, TableOptions, run_cell, time_training
from histodistill.training.tables.planned_cells import Cell
from histodistill.training.tables.schedule import Schedule
from histodistill.training.tables.worker_start import start_worker


_Result = TypeVar("_Result")
# Seconds of a cell whose time is not known.
_MOMENT = 1.0


def train_cells(config: TableOptions, schedule: Schedule, stage: Stage) -> list[str]:
    """Trains cells in `config.jobs` processes, and writes their files.

    On a machine with GPUs each process works on one, and the processes are dealt out to them in turn. Before, it tells
    how long that will take at most.

    Args:
        config: Of the table; it travels to the processes.
        schedule: Says which cells, at least one.
        stage: Keeps the time spent after each of them.

    Returns:
        Why some were left out, a sentence for each reason.

    Raises:
        InputError: Where a process was killed.
    """
    notes: list[str] = []
    remaining = schedule.remaining()
    jobs = min(config.jobs or usual_jobs(), len(remaining))
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
        _Workers(jobs, mp_context=processes, initializer=start_worker, initargs=(config, threads, gpus)) as workers,
    ):
        try:
            cost = _Cost(workers, remaining)
            most = cost.of(remaining)
            tell(
                f"expected: {about(most / jobs)} with {jobs} at a time at most, and less where more steps do not help"
            )
            with Progress(round(most), "benchmark", "seconds of training") as progress:
                counted = 0
                for outcome in _outcomes(workers, schedule, jobs):
                    if outcome.note and outcome.note not in notes:
                        notes.append(outcome.note)
                        tell(outcome.note)
                    stage.save_progress()
                    # What turned out not to be needed counts as done.
                    done = round(most - cost.of(schedule.remaining()))
                    progress.update(done - counted)
                    counted = done
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


class _Workers(ProcessPoolExecutor):
    """Processes in which Ctrl-C waits for ever: a terminal sends it to them, too, and who starts them ends them."""

    def submit(self, fn: Callable[..., _Result], /, *args: Any, **kwargs: Any) -> Future[_Result]:
        """As elsewhere; it is here that processes are started."""
        with interrupts_wait():
            return super().submit(fn, *args, **kwargs)


def _outcomes(workers: Executor, schedule: Schedule, jobs: int) -> Iterator[Outcome]:
    """Has cells trained, so many at a time, and tells the schedule and the caller what came of each."""
    running: dict[Future[Outcome], Cell] = {}
    while True:
        while len(running) < jobs and (cell := schedule.take()) is not None:
            running[workers.submit(run_cell, cell)] = cell
        if not running:
            return
        for future in wait(running, return_when=FIRST_COMPLETED).done:
            outcome = future.result()
            schedule.finish(running.pop(future), outcome.score)
            yield outcome


class _Cost:
    """Seconds that cells take, by steps of their classifiers that the workers have timed.

    Args:
        workers: Which time them, beside each other as they will train.
        cells: Whose classifiers these are.
    """

    def __init__(self, workers: Executor, cells: Sequence[Cell]):
        configs = {cell.config.architecture: cell.config for cell in cells if not is_probe(cell.config.architecture)}
        timed = {name: workers.submit(time_training, config) for name, config in configs.items()}
        self._seconds: dict[str, float] = {}
        for name, future in timed.items():
            # What cannot be trained says so when it is.
            with contextlib.suppress(InputError):
                self._seconds[name] = future.result()

    def of(self, cells: Iterable[Cell]) -> float:
        """Seconds of all these cells together; of probes, which take a moment, one each."""
        return sum(
            self._seconds.get(cell.config.architecture, 0.0) * (cell.steps or 0) * cell.config.batch_size or _MOMENT
            for cell in cells
        )


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
