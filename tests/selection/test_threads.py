"""Work in several threads: its results in order, one thread of each library in each, and errors that end it."""

import threading
import time

import faiss
import numpy as np
import pytest
from textures import textures
from threadpoolctl import threadpool_info

from histodistill.selection.parts import PartIndex
from histodistill.selection.repeats import find_repeats
from histodistill.selection.threads import in_threads
from histodistill.selection.views import shift


@pytest.fixture
def of_openmp():
    """Sets how many threads OpenMP has, until the test ends."""
    before = faiss.omp_get_max_threads()
    yield faiss.omp_set_num_threads
    faiss.omp_set_num_threads(before)


@pytest.mark.parametrize("threads", [1, 3])
def test_results_come_in_order(of_openmp, threads):
    of_openmp(threads)
    last = threading.Event()

    def square(number):
        # With several threads the first part is the last one to be done.
        if threads > 1 and number == 0:
            assert last.wait(20)
        elif number == 19:
            last.set()
        return number**2

    assert list(in_threads(square, range(20))) == [number**2 for number in range(20)]
    assert list(in_threads(square, [])) == []


def test_each_thread_has_one_thread_of_each_library(of_openmp):
    of_openmp(2)
    before = {pool["filepath"]: pool["num_threads"] for pool in threadpool_info()}

    both = threading.Barrier(2)

    def look(part):
        if part < 2:
            both.wait(20)
        blas = {pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"}
        return threading.get_ident(), faiss.omp_get_max_threads(), blas

    found = list(in_threads(look, range(8)))
    assert len({thread for thread, _, _ in found}) == 2
    assert all(openmp == 1 and blas <= {1} for _, openmp, blas in found)
    assert {pool["filepath"]: pool["num_threads"] for pool in threadpool_info()} == before
    # Of a single part, faiss has all of its threads.
    assert next(in_threads(look, [2]))[:2] == (threading.get_ident(), 2)


@pytest.mark.parametrize("threads", [1, 2])
def test_an_error_ends_the_work(of_openmp, threads):
    of_openmp(threads)
    before = threadpool_info()
    begun = []

    def fail(number):
        begun.append(number)
        if number == 1:
            raise ValueError("the second part")
        time.sleep(0.01)

    with pytest.raises(ValueError, match="the second part"):
        list(in_threads(fail, range(100)))
    assert len(begun) < 50
    assert threadpool_info() == before


def test_parts_and_repeats_are_the_same_with_any_number_of_threads(of_openmp):
    tiles = textures(300, 0)
    images = np.concatenate([textures(60, 1), tiles[40:80, ::-1]])
    tiles[200:220] = shift(tiles[:20], 1, 2)
    found = []
    for threads in (1, 3):
        of_openmp(threads)
        parts = PartIndex(tiles, np.arange(0, 300, 4)).search(images, 300)
        found.append((parts.score, parts.tile, parts.box, parts.placement, find_repeats(tiles).pairs))
    for one, other in zip(*found, strict=True):
        np.testing.assert_array_equal(one, other)
    assert len(found[0][-1]) >= 18 and (found[0][1][60:] == np.arange(40, 80)).all()
