"""Batches that are made in the background while a device works on the ones before."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch


_Number = TypeVar("_Number")
_Made = TypeVar("_Made")

# Batches that wait ready for a device. One would do if all took equally long; the second makes up for a slow one.
_AHEAD = 2


def batches_ahead(device: torch.device) -> int:
    """How many batches are to be made ahead for work on a device.

    None for the CPU: reading takes a thousandth of a step there, and a thread for it made the three trainings of
    `cpu-demo` no faster by the clock, at up to 9 % more of the processor's time.
    """
    return 0 if device.type == "cpu" else _AHEAD


@contextlib.contextmanager
def made_ahead(make: Callable[[_Number], _Made], numbers: Iterable[_Number], ahead: int) -> Iterator[Iterator[_Made]]:
    """Calls `make` for each of the numbers in a thread of its own, before what it makes is asked for.

    What `make` raises is raised where its result is asked for. When the context is left, by whatever way, nothing more
    is made, and the thread has ended.

    Args:
        make: Called in the order of the numbers, never twice at a time. It must depend on nothing that the caller
            changes meanwhile.
        numbers: What is made.
        ahead: How many results may wait, at most; with 0, each is made when it is asked for, without a thread.

    Yields:
        An iterator over the results.
    """
    if ahead == 0:
        yield map(make, numbers)
        return
    with ThreadPoolExecutor(1, thread_name_prefix="made_ahead") as thread:
        try:
            yield _results(thread, make, numbers, ahead)
        finally:
            thread.shutdown(cancel_futures=True)


def _results(
    thread: ThreadPoolExecutor, make: Callable[[_Number], _Made], numbers: Iterable[_Number], ahead: int
) -> Iterator[_Made]:
    waiting: deque[Future[_Made]] = deque()
    for number in numbers:
        waiting.append(thread.submit(make, number))
        if len(waiting) > ahead:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()
