"""Starts a process that trains cells, on a GPU of its own where there are several.

Nothing here imports torch: whatever asks it for GPUs settles which ones the process will ever see.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Protocol


if TYPE_CHECKING:
    from histodistill.training.tables.cell_workers import TableOptions


class Names(Protocol):
    """A queue of names, from which each process takes one."""

    def get(self) -> str: ...


def start_worker(config: TableOptions, threads: int, gpus: Names | None) -> None:
    """What a new process does first.

    Args:
        config: Of the table.
        threads: Of the process.
        gpus: What `CUDA_VISIBLE_DEVICES` calls the GPUs of the processes that are still to start; None without GPUs.
    """
    if gpus is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpus.get()
    from histodistill.training.tables.cell_workers import become_worker

    become_worker(config, threads)
