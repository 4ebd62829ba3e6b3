"""A few of the refusals that `refusals.py` deals out: see tests/README.md."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path


def test_a_step_whose_quota_is_used_up_says_so_and_goes_on_later():
    argv = ["--fault", "quota", "--moments", "2", "--steps", "train autoencoder"]
    done = subprocess.run(
        [sys.executable, Path(__file__).with_name("refusals.py"), *argv],
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith("train autoencoder: quota: 2 of ")
    assert re.search(r" moments, ended [12] times, as undisturbed\n$", done.stdout)
