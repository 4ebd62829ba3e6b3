"""A run that was selected, with the models that its tiles are known by."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from histodistill.training.distillation import distilled_set, select
from histodistill.training.distillation.select import SelectConfig


@pytest.fixture(scope="session")
def selected_run(tmp_path_factory, tiny_autoencoder, tiny_pipeline, tiny_pool, tiny_teacher) -> Path:
    """Three images of each of five classes; to be copied, not changed."""
    folder = tmp_path_factory.mktemp("selected") / "run"
    with pytest.MonkeyPatch.context() as patch:
        for picture in ("community_map", "community_tiles"):
            patch.setattr(distilled_set, picture, lambda *_: None)
        select.run(SelectConfig(pool=tiny_pool, teacher=tiny_teacher, n_per_class=3, output=folder))
    for part in (tiny_autoencoder, tiny_pipeline):
        (folder / part.name).symlink_to(part)
    return folder


@pytest.fixture
def reviewed_run(selected_run, tmp_path) -> Path:
    """A copy of it, to be reviewed."""
    return shutil.copytree(selected_run, tmp_path / "run", symlinks=True)
