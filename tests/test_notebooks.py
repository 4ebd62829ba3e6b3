"""The notebooks of `docs/notebooks/` run from the first cell to the last, and hold nothing that a run left in them."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest


NOTEBOOKS = sorted((Path(__file__).parents[1] / "docs" / "notebooks").glob("*.ipynb"))
# Trainings this short are for the test alone; every other line is run as it stands.
STEPS = 5


def read(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


def code_of(path: Path) -> list[str]:
    return ["".join(cell["source"]) for cell in read(path)["cells"] if cell["cell_type"] == "code"]


def test_there_are_two():
    assert [path.stem for path in NOTEBOOKS] == ["python_way", "train_on_a_published_set"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_they_hold_no_outputs(path):
    notebook = read(path)
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    ids = [cell["id"] for cell in notebook["cells"]]
    assert len(ids) == len(set(ids))
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            assert cell["outputs"] == [] and cell["execution_count"] is None and cell["metadata"] == {}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_they_run(path, tmp_path, offline_environment):
    # Cells are plain Python, so that no kernel is needed: one program, whose pictures go nowhere.
    program, replaced = re.subn(r"^STEPS = \d+", f"STEPS = {STEPS}", "\n".join(code_of(path)), flags=re.MULTILINE)
    assert replaced == 1
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**offline_environment, "MPLBACKEND": "agg"}, cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    scores = re.findall(r"accuracy (\d\.\d{3})", done.stdout)
    assert len(scores) == 2
    assert all(0.1 < float(score) <= 1 for score in scores)
