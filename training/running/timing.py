"""How long a call takes, told by a few of them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable


#: Calls that are made, at most: the first is not counted.
MOST_CALLS = 4
# Seconds after which no more are made.
_ENOUGH = 1.0
# A first call that takes so many seconds is long enough to be the only one.
_LONG = 6.0


def seconds_of(call: Callable[[], object]) -> float:
    """How long a call takes: the median of a few, without the first, unless that is long by itself.

    Args:
        call: What is timed, at most `MOST_CALLS` times.
    """
    times = [_seconds_of_one(call)]
    if times[0] < _LONG:
        times = [_seconds_of_one(call)]
        while len(times) < MOST_CALLS - 1 and sum(times) < _ENOUGH:
            times.append(_seconds_of_one(call))
    return statistics.median(times)


def _seconds_of_one(call: Callable[[], object]) -> float:
    import torch

    begun = time.perf_counter()
    call()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - begun
