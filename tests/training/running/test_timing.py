from __future__ import annotations

import pytest

from histodistill.training.running import timing
from histodistill.training.running.timing import MOST_CALLS, seconds_of


def test_seconds_are_the_median_without_the_first(monkeypatch):
    ticks = iter([0, 5, 10, 11, 20, 20.4, 30, 30.2])
    monkeypatch.setattr(timing.time, "perf_counter", lambda: next(ticks))
    monkeypatch.setattr(timing, "_ENOUGH", 99)
    calls: list[int] = []
    assert seconds_of(lambda: calls.append(0)) == pytest.approx(0.4)
    assert len(calls) == MOST_CALLS


def test_a_long_call_is_made_once(monkeypatch):
    ticks = iter([0, 7])
    monkeypatch.setattr(timing.time, "perf_counter", lambda: next(ticks))
    assert seconds_of(lambda: None) == 7
