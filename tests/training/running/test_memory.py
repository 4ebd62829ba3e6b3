"""Tests of `training/running/memory.py`."""

import os
import subprocess
import sys

import psutil
import pytest

from histodistill.training.running import memory
from histodistill.training.running.memory import held_memory, peak_memory, private_memory


def printed(program: str, *argv: str) -> list[str]:
    """The words that a program prints, in a process of its own."""
    done = subprocess.run([sys.executable, "-c", program, *argv], capture_output=True, text=True, check=True)
    return done.stdout.split()


def test_a_peak_is_seen_after_it_has_passed():
    # In a process of its own: this one may have kept memory that others have freed, and would take it from there.
    program = (
        "from histodistill.training.running.memory import peak_memory\n"
        "before = peak_memory()\n"
        "block = bytearray(b'x') * (200 * 2**20)\n"
        "del block\n"
        "print(peak_memory() - before)\n"
    )
    (held,) = printed(program)
    assert 150 * 2**20 <= int(held) <= 400 * 2**20


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Linux alone forgets a peak")
def test_a_peak_is_forgotten():
    program = (
        "from histodistill.training.running.memory import forget_peak, peak_memory\n"
        "block = bytearray(b'x') * (200 * 2**20)\n"
        "del block\n"
        "before = peak_memory()\n"
        "print(forget_peak(), before - peak_memory())\n"
    )
    forgotten, less = printed(program)
    assert forgotten == "True" and int(less) > 150 * 2**20


def test_a_system_that_forgets_no_peak(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "_FORGET", tmp_path / "there" / "is_none")
    assert memory.forget_peak() is False


def test_a_peak_is_in_bytes():
    assert held_memory() * 0.9 <= peak_memory() <= psutil.virtual_memory().total


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Linux alone tells it")
def test_mapped_files_are_no_part_of_private_memory_nor_of_a_peak(tmp_path):
    # In a process of its own, for the same reason.
    (tmp_path / "file").write_bytes(bytes(2**26))
    program = (
        "import os, sys\n"
        "import numpy as np\n"
        "from histodistill.training.running.memory import peak_memory, private_memory\n"
        "before, peak_before = private_memory(os.getpid()), peak_memory()\n"
        "mapped = np.memmap(sys.argv[1], np.uint8, 'r')\n"
        "assert mapped.sum() == 0\n"
        "after_the_file = private_memory(os.getpid())\n"
        "held = np.ones(2**26, np.uint8)\n"
        "print(after_the_file - before, private_memory(os.getpid()) - before, peak_memory() - peak_before)\n"
    )
    with_the_file, with_the_array, peak = map(int, printed(program, str(tmp_path / "file")))
    assert with_the_file < 2**25 and 0.9 * 2**26 <= with_the_array < 2**27
    assert 0.9 * 2**26 <= peak < 1.5 * 2**26
    assert private_memory(2**22 + 1) == 0


# Blocks as a step of a training frees them and asks for them again.
FAULTS = """
import resource
import numpy as np
from histodistill.training.running.memory import keep_freed_memory
{before}
def use():
    blocks = [np.ones(2**24, np.uint8) for _ in range(8)]
    del blocks
use()
first = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
use()
use()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - first)
"""


def page_faults(before: str, **variables: str) -> int:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    program = FAULTS.format(before=before)
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, env={**environment, **variables}
    )
    return int(done.stdout.splitlines()[-1])


@pytest.mark.skipif(not hasattr(os, "confstr") or "CS_GNU_LIBC_VERSION" not in os.confstr_names, reason="no glibc")
def test_freed_memory_is_used_again():
    assert page_faults("assert keep_freed_memory()") < 2**10
    assert page_faults("") > 2**12


def test_who_sets_glibc_knows_better():
    assert page_faults("assert not keep_freed_memory()", MALLOC_ARENA_MAX="2") >= 0


def test_kept_memory_can_be_given_back():
    program = (
        "import os, psutil\n"
        "import numpy as np\n"
        "from histodistill.training.running.memory import give_back_freed_memory, keep_freed_memory\n"
        "kept = keep_freed_memory()\n"
        "block = np.ones(2**28, np.uint8)\n"
        "del block\n"
        "held = psutil.Process().memory_info().rss\n"
        "give_back_freed_memory()\n"
        "print(kept, (held - psutil.Process().memory_info().rss) // 2**20)\n"
    )
    kept, given_back = printed(program)
    assert kept == "False" or int(given_back) >= 200
