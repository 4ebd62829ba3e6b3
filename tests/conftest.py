"""One tiny run of `histodistill distill`, killed in the middle and finished by the same command, which tests read."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from filelock import FileLock

from histodistill.training.data.phantom import phantom_source
from histodistill.training.running.stages import read_record


# Nothing here is trained enough to be good: only the way through counts.
TINY_PRESET = """
[autoencoder]
channels = [8, 8]
latent_channels = 2
max_train_steps = 150
batch_size = 8
validation_steps = 150
checkpointing_steps = 5

[diffusion]
align_weight = 0.5
optimizer = "muon"
channels = [8]
layers_per_block = 1
attention_levels = 1
max_train_steps = 10
batch_size = 8

[teacher]
architecture = "convnet"
width = 8
max_train_steps = 10
batch_size = 20

[generate]
per_class = 8
num_inference_steps = 2
guidance_scale = 1.5
chunk_size = 20

[select]
n_per_class = 3
n_neighbors = 3

[compare]
train = ["convnet:2:real_all,real_random,distilled_ce"]
"""


# The file that takes longest of those that read `tiny_run`: it begins at once, and the others find the run made.
FIRST = "test_on_the_hub.py"


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Orders the files for several processes, which take them one by one (`--dist loadfile`).

    One process makes `tiny_run`; the other files that read it come last, so that none waits for it.
    """
    readers = {item.path for item in items if "tiny_run" in getattr(item, "fixturenames", ())}
    items.sort(key=lambda item: (item.path.name != FIRST, item.path in readers))


@dataclass(frozen=True)
class TinyRun:
    """What a run left, and what was seen while it was made.

    Attributes:
        folder: Folder of the run.
        data: The tiles: a `.npz` of 16-pixel phantom tiles, 12 / 4 / 4 per class.
        argv: What `distill` was started with.
        environment: Environment variables for a process that reads the run.
        when_killed: The autoencoder's record after the first process was killed.
        output, progress: Standard output and standard error of the second process.
    """

    folder: Path
    data: Path
    argv: list[str]
    environment: dict[str, str]
    when_killed: dict
    output: str
    progress: str


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory):
    """Tiles that tests decode are kept where no user's are; processes that tests start keep theirs there, too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HISTODISTILL_CACHE", str(tmp_path_factory.mktemp("cache") / "histodistill"))
        yield


@pytest.fixture(scope="session")
def tiny_preset(tmp_path_factory) -> Path:
    """The file of the preset of `tiny_run`, which is called "tiny"."""
    path = tmp_path_factory.mktemp("preset") / "tiny.toml"
    path.write_text(TINY_PRESET)
    return path


@pytest.fixture(scope="session")
def tiny_tiles(tmp_path_factory) -> Path:
    """16-pixel phantom tiles as a `.npz` file: 12 for training, 4 for validation and 4 for testing per class."""
    source = phantom_source(image_size=16, sizes={"train": 12, "validation": 4, "test": 4})
    arrays = {"class_names": np.array(source.class_names)}
    for split, prefix in (("train", "train"), ("validation", "val"), ("test", "test")):
        tiles = source.split(split)
        arrays |= {f"{prefix}_images": tiles.images, f"{prefix}_labels": tiles.labels[:, None]}
    path = tmp_path_factory.mktemp("tiny") / "tiles.npz"
    np.savez(path, **arrays)
    return path


@pytest.fixture(scope="session")
def offline_environment(tmp_path_factory) -> dict[str, str]:
    """For processes of their own: no network, and caches that go with the other temporary files."""
    cache = str(tmp_path_factory.mktemp("huggingface"))
    return {**os.environ, "OMP_NUM_THREADS": "1", "HF_HOME": cache, "HF_HUB_OFFLINE": "1"}


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory, tiny_tiles, tiny_preset, offline_environment) -> TinyRun:
    """A whole run, made by two processes: one that was killed while it trained, and the same command again.

    Where tests run in several processes, the first that needs it makes it for all.
    """
    place = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        place = place.parent  # each process has a folder of its own in there
    place, record = place / "distill", place / "distill.json"
    with FileLock(f"{record}.lock"):
        if not record.is_file():
            place.mkdir()
            record.write_text(json.dumps(make_tiny_run(place, tiny_tiles, tiny_preset, offline_environment)))
    known = json.loads(record.read_text())
    return TinyRun(
        folder=place / "run",
        data=Path(known["data"]),
        argv=known["argv"],
        environment=offline_environment,
        when_killed=known["when_killed"],
        output=known["output"],
        progress=known["progress"],
    )


def make_tiny_run(place: Path, tiles: Path, preset: Path, environment: dict[str, str]) -> dict[str, Any]:
    """Makes the run in `place / "run"`, and returns what was seen while it was made."""
    folder = place / "run"
    # Many processors have no arithmetic of their own for bfloat16, the default, and are slow with it.
    argv = ["--data", str(tiles), "--output", str(folder), "--preset", str(preset), "--mixed-precision", "no"]
    command = [sys.executable, "-m", "histodistill.training.cli", "distill", *argv]

    with open(place / "first.log", "w") as log:
        first = subprocess.Popen(command, env=environment, cwd=place, stdout=log, stderr=log, start_new_session=True)
        deadline = time.monotonic() + 600
        while not any((folder / "autoencoder" / "checkpoints").glob("checkpoint-*")):
            assert first.poll() is None and time.monotonic() < deadline, (place / "first.log").read_text()
            time.sleep(0.01)
        # The command and the training that it started.
        os.killpg(first.pid, signal.SIGKILL)
        first.wait()
    when_killed = read_record(folder / "autoencoder")

    second = subprocess.run(command, env=environment, cwd=place, capture_output=True, text=True, check=False)
    assert second.returncode == 0, second.stdout + second.stderr
    return {
        "data": str(tiles),
        "argv": argv,
        "when_killed": when_killed,
        "output": second.stdout,
        "progress": second.stderr,
    }
