"""Tests of `training/running/memory.py`."""

import subprocess
import sys

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
    # In a process of its own, for the same reason.
    (tmp_path / "file").write_bytes(bytes(2**26))
    program = (
        "import os, sys\n"
        "import numpy as np\n"
        "from histodistill.training.running.memory import private_memory\n"
        "before = private_memory(os.getpid())\n"
        "mapped = np.memmap(sys.argv[1], np.uint8, 'r')\n"
        "assert mapped.sum() == 0\n"
        "after_the_file = private_memory(os.getpid())\n"
        "held = np.ones(2**26, np.uint8)\n"
        "print(after_the_file - before, private_memory(os.getpid()) - before)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "file")], capture_output=True, text=True, check=True
    )
    with_the_file, with_the_array = map(int, done.stdout.split())
    assert with_the_file < 2**25 and 0.9 * 2**26 <= with_the_array < 2**27
    assert private_memory(2**22 + 1) == 0
