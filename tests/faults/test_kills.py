"""A few of the kills that `kills.py` deals out by the hundred: see tests/README.md."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize("number", ["KILL", "TERM"])
def test_a_training_that_is_ended_at_random_moments_goes_on_as_if_nobody_had(number):
    argv = ["--kills", "2", "--signal", number, "--steps", "train autoencoder"]
    done = subprocess.run(
        [sys.executable, Path(__file__).with_name("kills.py"), *argv],
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout == f"train autoencoder: ended 2 times by SIG{number}, as undisturbed\n"
