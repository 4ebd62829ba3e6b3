"""Two processes that Accelerate starts come to what one process comes to."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from histodistill.training import train_autoencoder, train_diffusion
from histodistill.training.data.image_dataset import read_image_dataset
from histodistill.training.running.files import read_json


# What `python -m` does with each of several modules, one after the other: starting the processes takes longer than all
# that they do.
STEPS = """
import json, runpy, sys
from pathlib import Path
from accelerate.state import AcceleratorState, GradientState

for module, argv in json.loads(Path(sys.argv[1]).read_text()):
    sys.argv = [module, *argv]
    runpy.run_module(module, run_name="__main__", alter_sys=True)
    # As in a process of its own.
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
"""
PARQUET = "data/train-00000-of-00001.parquet"


@pytest.fixture(scope="module")
def trainings(autoencoder_argv, diffusion_argv) -> dict[str, list[object]]:
    """Options of the trainings of three steps, without the folder."""
    return {
        "train_autoencoder": [*autoencoder_argv, "--max-train-steps", 3],
        "train_diffusion": [*diffusion_argv, "--max-train-steps", 3],
    }


@pytest.fixture(scope="module")
def two(tmp_path_factory, launch, trainings, pool_argv) -> Path:
    """The folder in which two processes left each step's folder, by its name."""
    folder = tmp_path_factory.mktemp("two")
    steps = [
        (f"histodistill.training.{name}", [*map(str, argv), "--output", str(folder / name)])
        for name, argv in {**trainings, "generate": pool_argv}.items()
    ]
    (folder / "steps.json").write_text(json.dumps(steps))
    (folder / "steps_in_turn.py").write_text(STEPS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(folder), prepend=os.pathsep)
        finished = launch(2, "steps_in_turn", folder / "steps.json")
    assert finished.returncode == 0, finished.stderr[-3000:]
    return folder


def assert_same_weights(one: Path, two: Path) -> None:
    one, two = load_file(one), load_file(two)
    assert one.keys() == two.keys()
    for name in one:
        torch.testing.assert_close(two[name], one[name], atol=1e-4, rtol=0, msg=name)


@pytest.mark.launch
def test_two_processes_train_the_same_autoencoder(tmp_path, two, run_main, trainings):
    two = two / "train_autoencoder"
    assert read_json(two / "stage.json")["num_processes"] == 2
    run_main(train_autoencoder, *trainings["train_autoencoder"], "--output", tmp_path)
    file = "diffusion_pytorch_model.safetensors"
    assert_same_weights(tmp_path / file, two / file)


@pytest.mark.launch
def test_two_processes_train_the_same_denoiser(tmp_path, two, run_main, trainings):
    two = two / "train_diffusion"
    assert read_json(two / "stage.json")["num_processes"] == 2
    run_main(train_diffusion, *trainings["train_diffusion"], "--output", tmp_path)
    # The weights of the last step, which have moved further than their average.
    file = "checkpoints/checkpoint-3/unet.safetensors"
    assert_same_weights(tmp_path / file, two / file)


@pytest.mark.launch
def test_two_processes_make_the_same_pool(two, tiny_pool):
    two = two / "generate"
    assert read_json(two / "stage.json")["num_processes"] == 2
    images, columns, names = read_image_dataset(two)
    expected, expected_columns, expected_names = read_image_dataset(tiny_pool)
    assert names == expected_names
    np.testing.assert_array_equal(columns["seed"], expected_columns["seed"])
    np.testing.assert_array_equal(columns["label"], expected_columns["label"])
    np.testing.assert_array_equal(images, expected)
    assert (two / PARQUET).read_bytes() == (tiny_pool / PARQUET).read_bytes()
