"""A tiny run, made once: tiles → autoencoder → pipeline → pool → teacher. Its files are read, never changed."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import datasets.config
import numpy as np
import pytest
from accelerate.state import AcceleratorState, GradientState

from histodistill.training.data.phantom import phantom_source


SIZE = 16
AUTOENCODER_OPTIONS = ["--channels", "12", "12", "--latent-channels", "2", "--mixed-precision", "no"]
# A width that makes groups of several channels for the group norms: with one channel in a group, the biases before it
# have no effect, and AdamW moves them by rounding errors.
DIFFUSION_OPTIONS = [
    "--channels", "12", "--layers-per-block", "1", "--attention-levels", "1", "--mixed-precision", "no",
]  # fmt: skip

#: Environment variable that, set to 1, says that no test may be skipped.
NO_SKIPS = "HISTODISTILL_NO_SKIPPED_PAGE_TESTS"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    """Turns a skip into a failure where `.ci/page-tests` runs the tests, which installs what they need."""
    report = yield
    if report.skipped and os.environ.get(NO_SKIPS) == "1":
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
        report.outcome = "failed"
        report.longrepr = f"{item.nodeid} was skipped, and with {NO_SKIPS}=1 none may be: {reason}"
    return report


def _reset_accelerate() -> None:
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


@pytest.fixture(scope="session", autouse=True)
def caches(tmp_path_factory) -> Iterator[Path]:
    """What `datasets` caches goes with the other temporary files."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("cache")
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", str(folder))
        yield folder


@pytest.fixture
def fresh_accelerate() -> Iterator[None]:
    """For tests that start a script in this process by other means than `run_main`."""
    _reset_accelerate()
    yield
    _reset_accelerate()


@pytest.fixture(scope="session")
def run_main() -> Callable[..., None]:
    """Runs a script in this process: `run_main(module, "--option", value, …)`."""

    def run(module: ModuleType, *argv: object) -> None:
        # Accelerate keeps its state for the whole process; each run is to begin as in a process of its own.
        _reset_accelerate()
        try:
            module.run(module.make_parser().read([str(word) for word in argv]))
        finally:
            _reset_accelerate()

    return run


@pytest.fixture(scope="session")
def launch() -> Callable[..., subprocess.CompletedProcess]:
    """Runs a script as a user does: `launch(num_processes, module, "--option", value, …)`."""

    def run(num_processes: int, module: str, *argv: object) -> subprocess.CompletedProcess:
        launcher = [str(Path(sys.executable).with_name("accelerate")), "launch", "--num_processes", str(num_processes)]
        environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
        if num_processes > 1:
            launcher += ["--multi_gpu", "--main_process_port", "0"]
        return subprocess.run(
            [*launcher, "-m", module, *map(str, argv)],
            env=environment, capture_output=True, text=True, check=False, timeout=900,  # processes may wait for ever
        )  # fmt: skip

    return run


@pytest.fixture(scope="session")
def tiny_npz(tmp_path_factory) -> Path:
    """120 phantom tiles of 16 pixels in 5 classes, 40 for validation and 20 for testing, as a `.npz` file."""
    source = phantom_source(image_size=SIZE, sizes={"train": 24, "validation": 8, "test": 4})
    arrays = {"class_names": np.array(source.class_names)}
    for split, prefix in (("train", "train"), ("validation", "val"), ("test", "test")):
        tiles = source.split(split)
        arrays |= {f"{prefix}_images": tiles.images, f"{prefix}_labels": tiles.labels}
    path = tmp_path_factory.mktemp("tiles") / "tiny.npz"
    np.savez(path, **arrays)
    return path


@pytest.fixture(scope="session")
def autoencoder_argv(tiny_npz) -> list[str]:
    """Options of a tiny autoencoder; output and number of steps are missing."""
    return ["--data", str(tiny_npz), "--batch-size", "8", *AUTOENCODER_OPTIONS]


@pytest.fixture(scope="session")
def tiny_autoencoder(tmp_path_factory, run_main, autoencoder_argv) -> Path:
    """The folder of an autoencoder after 60 steps."""
    from histodistill.training import train_autoencoder

    folder = tmp_path_factory.mktemp("run") / "autoencoder"
    run_main(
        train_autoencoder, *autoencoder_argv, "--output", folder, "--max-train-steps", 60,
        "--validation-steps", 10, "--learning-rate", 3e-4, "--checkpointing-steps", 25,
    )  # fmt: skip
    return folder


@pytest.fixture(scope="session")
def diffusion_argv(tiny_npz, tiny_autoencoder) -> list[str]:
    """Options of a tiny denoiser; output and number of steps are missing."""
    return ["--data", str(tiny_npz), "--autoencoder", str(tiny_autoencoder), "--batch-size", "8", *DIFFUSION_OPTIONS]


@pytest.fixture(scope="session")
def tiny_pipeline(tiny_autoencoder, run_main, diffusion_argv) -> Path:
    """The folder of a pipeline after 6 steps."""
    from histodistill.training import train_diffusion

    folder = tiny_autoencoder.with_name("pipeline")
    run_main(train_diffusion, *diffusion_argv, "--output", folder, "--max-train-steps", 6, "--validation-steps", 3)
    return folder


@pytest.fixture(scope="session")
def pool_argv(tiny_pipeline) -> list[str]:
    """Options of a tiny pool of 5 × 6 images in 4 chunks; the output is missing."""
    return [
        "--pipeline", str(tiny_pipeline), "--per-class", "6", "--chunk-size", "8", "--num-inference-steps", "2",
    ]  # fmt: skip


@pytest.fixture(scope="session")
def tiny_pool(tiny_pipeline, run_main, pool_argv) -> Path:
    """The folder of a pool."""
    from histodistill.training import generate

    folder = tiny_pipeline.with_name("pool")
    run_main(generate, *pool_argv, "--output", folder)
    return folder


@pytest.fixture(scope="session")
def tiny_teacher(tmp_path_factory, tiny_npz) -> Path:
    """The folder of a classifier of the tiny tiles; untrained, since only its shape matters."""
    import torch

    from histodistill.training.data.sources import load_tiles
    from histodistill.training.models.classifiers import Classifier
    from histodistill.training.running.files import write_json
    from histodistill.training.running.stages import Stage

    folder = tmp_path_factory.mktemp("teacher")
    torch.manual_seed(0)
    names = load_tiles(tiny_npz).class_names
    Classifier("convnet", image_size=SIZE, class_names=names, width=8).save_pretrained(folder)
    write_json(folder / "results.json", {"data": {"train": "tiny"}})
    Stage(folder, {"stage": "classifier"}).finish()
    return folder
