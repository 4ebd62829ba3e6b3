"""Tests of `training/running/memory.py`."""

import os
import subprocess
import sys

import numpy as np
import psutil
import pytest

from histodistill.training.running.memory import peak_memory, private_memory


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


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Linux alone tells it")
def test_private_memory_is_what_no_file_stands_behind(tmp_path):
    (tmp_path / "file").write_bytes(bytes(2**26))
    before = private_memory(os.getpid())
    mapped = np.memmap(tmp_path / "file", np.uint8, "r")
    assert mapped.sum() == 0 and private_memory(os.getpid()) - before < 2**25
    held = np.ones(2**26, np.uint8)
    assert private_memory(os.getpid()) - before >= held.nbytes * 0.9
    assert private_memory(2**22 + 1) == 0
