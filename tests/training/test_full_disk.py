"""A disk that fills while a stage writes: one sentence, nothing half-written, and the same command goes on."""

from __future__ import annotations

import resource
from pathlib import Path
from types import ModuleType

import pytest

from histodistill.training import generate, train_autoencoder, train_classifier
from histodistill.training.data.image_dataset import read_image_dataset
from histodistill.training.distillation import select
from histodistill.training.running.options import run_script
from histodistill.training.running.stages import is_complete, read_record


# Bytes that a file may have: the first record fails, then weights or chunks, then what is written last.
ROOM = (100, 4_000, 12_000, 50_000)


def run_with_room(module: ModuleType, argv: list[str], size: int | None) -> int:
    """Runs a script where no file may be larger, which meets a writer just as a full disk does."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        if size is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
        run_script(module.make_parser, module.run, argv)
    except SystemExit as ended:
        return ended.code
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    return 0


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def fill(capsys, fresh_accelerate, tmp_path):
    """`fill(module, argv, stage)` runs a script with more and more room until it is finished; returns how it ended."""

    def run(module: ModuleType, argv: list[object], stage: str) -> list[int]:
        output = tmp_path / "run" / stage
        argv = [str(word) for word in argv]
        codes = []
        for size in (*ROOM, None):
            codes.append(run_with_room(module, argv, size))
            told = capsys.readouterr().err.splitlines()
            left = files(tmp_path)
            assert not [name for name in left if ".tmp" in name or "/." in name]
            if not codes[-1]:
                assert is_complete(output)
                return codes
            assert told[-1].startswith("error: ") and "raise the limit (ulimit -f)" in told[-1]
            assert not any(line.startswith("Traceback") for line in told)
            record = read_record(output)
            assert record is None or not record["complete"]
        raise AssertionError(codes)

    return run


def test_pool(fill, pool_argv, tiny_pool, tmp_path):
    codes = fill(generate, [*pool_argv, "--output", tmp_path / "run" / "pool"], "pool")
    assert codes[:2] == [2, 2] and codes[-1] == 0
    ours, theirs = (read_image_dataset(folder)[0] for folder in (tmp_path / "run" / "pool", tiny_pool))
    assert (ours == theirs).all()


def test_autoencoder(fill, autoencoder_argv, tmp_path):
    argv = [*autoencoder_argv, "--max-train-steps", 2, "--validation-steps", 1, "--resume", "latest"]
    codes = fill(train_autoencoder, [*argv, "--output", tmp_path / "run" / "autoencoder"], "autoencoder")
    assert codes[:2] == [2, 2] and codes[-1] == 0


def test_classifier(fill, tiny_npz, tmp_path):
    argv = ["--data", tiny_npz, "--width", 8, "--max-train-steps", 2, "--validation-steps", 1, "--batch-size", 8]
    argv += ["--mixed-precision", "no", "--resume", "latest"]
    codes = fill(train_classifier, [*argv, "--output", tmp_path / "run" / "classifier"], "classifier")
    assert codes[:2] == [2, 2] and codes[-1] == 0


def test_selection(fill, tiny_pool, tiny_teacher, tmp_path):
    argv = ["--pool", tiny_pool, "--teacher", tiny_teacher, "--n-per-class", 2, "--n-neighbors", 3]
    codes = fill(select, [*argv, "--output", tmp_path / "run"], "distilled")
    assert codes[0] == 2 and codes[-1] == 0
