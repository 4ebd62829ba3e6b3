"""What the measurements of trainings share."""

from __future__ import annotations

from pathlib import Path

import pytest


PRESET = """
[autoencoder]
channels = [8, 8]
latent_channels = 2
batch_size = 4
[diffusion]
channels = [8]
layers_per_block = 1
attention_levels = 0
max_train_steps = 1
batch_size = 4
[teacher]
width = 8
batch_size = 4
[generate]
per_class = 1
[select]
n_per_class = 1
[compare]
train = []
"""


@pytest.fixture
def least_preset(tmp_path) -> Path:
    """The file of a preset whose models are as small as can be."""
    path = tmp_path / "tiny.toml"
    path.write_text(PRESET)
    return path
