"""Runs the scripts of `faults` as a user does."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def said_by(script: str, *argv: str) -> str:
    """What a script of that folder prints, which must end well."""
    done = subprocess.run(
        [sys.executable, Path(__file__).parent / "faults" / script, *argv],
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
