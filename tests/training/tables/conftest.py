from __future__ import annotations

import shutil
from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tiny_pool, tiny_teacher) -> Path:
    """The folder of a run with a pool and a teacher."""
    folder = tmp_path_factory.mktemp("table") / "run"
    shutil.copytree(tiny_pool, folder / "pool")
    shutil.copytree(tiny_teacher, folder / "teacher")
    return folder
