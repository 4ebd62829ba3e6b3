"""What a notebook does: one step after the other in one process, each with its own precision."""

from __future__ import annotations

import subprocess
import sys

from histodistill.training.running.stages import is_complete


CODE = """
import sys
from pathlib import Path
from histodistill.training import generate, train_autoencoder

data, pipeline, folder = map(Path, sys.argv[1:])
options = dict(data=data, channels=[12, 12], latent_channels=2, batch_size=8, max_train_steps=1)
first = train_autoencoder.TrainAutoencoderConfig(**options, output=folder / "bf16", mixed_precision="bf16")
assert train_autoencoder.run(first) == folder / "bf16"
pool = generate.GenerateConfig(pipeline=pipeline, output=folder / "pool", per_class=1, num_inference_steps=1)
assert generate.run(pool) == folder / "pool" and pool.mixed_precision == "no"
second = train_autoencoder.TrainAutoencoderConfig(**options, output=folder / "no", mixed_precision="no")
assert train_autoencoder.run(second) == folder / "no"
# Finished ones say where they are, too.
assert train_autoencoder.run(first) == folder / "bf16" and generate.run(pool) == folder / "pool"
"""


def test_steps_with_other_precisions_follow_each_other(tmp_path, tiny_npz, tiny_pipeline):
    # In a process of its own, whose state of Accelerate no fixture resets.
    argv = [sys.executable, "-c", CODE, str(tiny_npz), str(tiny_pipeline), str(tmp_path)]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert all(is_complete(tmp_path / name) for name in ("bf16", "pool", "no"))
