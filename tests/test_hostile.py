"""A share of the bad input of `tests/hostile`: every file that is read ends in a sentence or in what it holds."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest


pytest.importorskip("openslide", reason="needs histodistill[slides]")
pytest.importorskip("h5py", reason="needs histodistill[slides]")
pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="each input is read in a fork of one process")

TESTS = Path(__file__).parent
# One input of so many, so that it takes some seconds.
PART = 50


def test_bad_input_ends_in_a_sentence():
    paths = [str(TESTS), *([os.environ["PYTHONPATH"]] if "PYTHONPATH" in os.environ else [])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "hostile", "--light", "--part", str(PART)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    *_, total, _, _ = done.stdout.splitlines()
    assert total.startswith("| all |") and total.endswith("| 0 |")
    # As many as there should be, and none of them alone in its outcome.
    inputs, refused, read, _ = (int(cell) for cell in total.strip("|").split("|")[2:])
    assert inputs == refused + read >= 100 and refused > read > 0
