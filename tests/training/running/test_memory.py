"""Tests of `training/running/memory.py`."""

import numpy as np
import psutil

from histodistill.training.running.memory import peak_memory


def test_a_peak_is_seen_after_it_has_passed():
    before = peak_memory()
    held_now = psutil.Process().memory_info().rss
    block = np.ones(max(before - held_now, 0) + 200 * 2**20, np.uint8)
    del block
    assert peak_memory() >= before + 100 * 2**20


def test_a_peak_is_in_bytes():
    held_now = psutil.Process().memory_info().rss
    assert held_now * 0.9 <= peak_memory() <= psutil.virtual_memory().total
