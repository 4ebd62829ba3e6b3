"""Tests of `training/running/memory.py`."""

import subprocess
import sys

import psutil

from histodistill.training.running.memory import peak_memory


def test_a_peak_is_seen_after_it_has_passed():
    # In a process of its own: this one may have kept memory that others have freed, and would take it from there.
    program = (
        "from histodistill.training.running.memory import peak_memory\n"
        "before = peak_memory()\n"
        "block = bytearray(b'x') * (200 * 2**20)\n"
        "del block\n"
        "print(peak_memory() - before)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert 150 * 2**20 <= int(done.stdout) <= 400 * 2**20


def test_a_peak_is_in_bytes():
    held_now = psutil.Process().memory_info().rss
    assert held_now * 0.9 <= peak_memory() <= psutil.virtual_memory().total
