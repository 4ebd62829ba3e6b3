"""The same work on one part of some data after the other, in as many threads as there are."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from threadpoolctl import threadpool_limits


Part = TypeVar("Part")
Result = TypeVar("Result")

# Threads at most: what each works at takes memory.
_MOST_THREADS = 8


def in_threads(function: Callable[[Part], Result], parts: Sequence[Part]) -> Iterator[Result]:
    """What a function gives for each part, in order, whatever the number of threads.

    Much of what NumPy does is in one thread, and its products of small matrices take as long in several, which wait
    for each other. So each thread takes parts of its own, as many threads as OpenMP has and 8 at most, and no library
    has further ones in it. A single part is worked at as if it were not for this.

    Args:
        function: What it gives must depend on its part alone.
        parts: All are begun at once, so those that are large are better read by `function`.

    Raises:
        Exception: What `function` raises, for the first part that it raises it for.
    """
    import faiss

    threads = min(faiss.omp_get_max_threads(), _MOST_THREADS, len(parts))
    if threads < 2:
        yield from map(function, parts)
        return
    with threadpool_limits(limits=1, user_api="blas"):
        pool = ThreadPoolExecutor(threads, initializer=faiss.omp_set_num_threads, initargs=(1,))
        try:
            yield from pool.map(function, parts)
        finally:
            pool.shutdown(cancel_futures=True)
