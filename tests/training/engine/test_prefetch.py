from __future__ import annotations

import threading
import time

import pytest
import torch

from histodistill.training.engine.prefetch import batches_ahead, made_ahead


class Maker:
    """Makes numbers; knows how many, and in which threads."""

    def __init__(self, fails_at: int | None = None):
        self.made, self.threads, self.fails_at = [], set(), fails_at

    def __call__(self, number: int) -> int:
        self.threads.add(threading.current_thread())
        if number == self.fails_at:
            raise OSError(f"tile {number} cannot be read")
        self.made.append(number)
        return number * 10

    @property
    def ended(self) -> bool:
        return not any(thread.is_alive() for thread in self.threads)


def wait_for(condition) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


@pytest.mark.parametrize("ahead", [0, 1, 2, 50])
def test_results_come_in_order(ahead):
    maker = Maker()
    with made_ahead(maker, range(3, 12), ahead) as results:
        assert list(results) == [number * 10 for number in range(3, 12)]
    assert maker.made == list(range(3, 12))
    assert (threading.current_thread() in maker.threads) == (ahead == 0)
    assert len(maker.threads) == 1
    assert ahead == 0 or maker.ended


def test_so_many_are_made_ahead_and_no_more():
    maker = Maker()
    with made_ahead(maker, range(100), 2) as results:
        assert next(results) == 0
        wait_for(lambda: len(maker.made) == 3)
        time.sleep(0.05)
        assert maker.made == [0, 1, 2]
        assert next(results) == 10
        wait_for(lambda: len(maker.made) == 4)
    assert maker.made == [0, 1, 2, 3] and maker.ended


def test_without_a_thread_each_is_made_when_it_is_asked_for():
    maker = Maker()
    with made_ahead(maker, range(100), 0) as results:
        next(results)
        assert maker.made == [0]


@pytest.mark.parametrize("ahead", [0, 2])
def test_what_goes_wrong_is_raised_where_the_result_is_asked_for(ahead):
    maker = Maker(fails_at=2)
    with pytest.raises(OSError, match="tile 2 cannot be read"), made_ahead(maker, range(100), ahead) as results:
        assert [next(results), next(results)] == [0, 10]
        next(results)
    assert ahead == 0 or maker.ended


@pytest.mark.parametrize("reason", [KeyboardInterrupt, SystemExit, ValueError])
def test_thread_ends_whatever_ends_the_training(reason):
    started, go_on = threading.Event(), threading.Event()
    made = []

    def make(number):
        made.append(number)
        if number == 1:
            started.set()
            go_on.wait(10)
        return number

    with pytest.raises(reason), made_ahead(make, range(100), 2) as results:
        next(results)
        started.wait(10)
        threading.Timer(0.05, go_on.set).start()  # the batch that is being made is waited for
        raise reason
    assert made == [0, 1]  # and the next one is not begun
    assert not any(thread.name.startswith("made_ahead") for thread in threading.enumerate())


def test_batches_are_made_ahead_for_devices_beside_the_cpu():
    assert [batches_ahead(torch.device(name)) for name in ("cpu", "cuda", "mps")] == [0, 2, 2]
