"""A full disk and its kind: which errors are one, and what the user reads of it."""

from __future__ import annotations

import errno
import os
import resource
from contextlib import contextmanager

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from datasets import Dataset
from safetensors.torch import save_file

from histodistill.selection.files import write_bytes
from histodistill.training.engine.pool import write_chunk
from histodistill.training.models.classifiers import Classifier
from histodistill.training.running.errors import InputError
from histodistill.training.running.files import new_files, new_folder, write_json
from histodistill.training.running.system_errors import find_refusal, is_full_disk, machine_sentence, refusal_sentence


@contextmanager
def little_room(size: int = 2000):
    """No file may be larger than so many bytes, which meets a writer just as a full disk does."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


NUMBERS = np.random.default_rng(0).random(10_000)
IMAGES = np.zeros((20, 16, 16, 3), np.uint8)


def write_two_files(folder) -> None:
    with new_files(folder) as new:
        (new / "small").write_text("1")
        Classifier("convnet", num_classes=2, image_size=16, width=8).save_pretrained(new)


def write_folder(folder) -> None:
    with new_folder(folder / "data") as new:
        pq.write_table(pa.table({"a": NUMBERS}), new / "x.parquet")


# What our steps write with: how, and whether the path is told.
WRITERS = {
    "bytes": (lambda folder: write_bytes(folder / "x", bytes(5000)), True),
    "json": (lambda folder: write_json(folder / "x.json", NUMBERS.tolist()), True),
    "chunk of a pool": (lambda folder: write_chunk(folder / "x.npz", IMAGES, NUMBERS[:20], NUMBERS[:20]), True),
    "model": (write_two_files, False),
    "parquet": (write_folder, False),
}
# What libraries raise.
LIBRARIES = {
    "safetensors": lambda folder: save_file({"a": torch.zeros(10_000)}, folder / "x.safetensors"),
    "zip": lambda folder: np.savez(folder / "x.npz", a=NUMBERS),
    "pyarrow": lambda folder: pq.write_table(pa.table({"a": NUMBERS}), folder / "x.parquet"),
    "datasets": lambda folder: Dataset.from_dict({"a": NUMBERS}).to_parquet(folder / "x.parquet"),
    "memory map": lambda folder: np.memmap(folder / "x", mode="w+", shape=(10_000,)),
}


@pytest.mark.parametrize("name", WRITERS)
def test_nothing_half_written_is_left_and_the_disk_is_named(name, tmp_path):
    write, names_path = WRITERS[name]
    write_json(tmp_path / "earlier.json", "work")
    with little_room(), pytest.raises(Exception) as raised:  # each library has its own
        write(tmp_path)
    refusal = find_refusal(raised.value)
    assert refusal.errno == errno.EFBIG and is_full_disk(refusal)
    sentence = refusal_sentence(refusal)
    assert sentence.endswith("raise the limit (ulimit -f), then run it again")
    assert sentence.startswith(str(tmp_path / "x")) == names_path and ".tmp" not in sentence
    assert [path.name for path in tmp_path.iterdir()] == ["earlier.json"]
    # There is room again.
    write(tmp_path)
    assert len(list(tmp_path.iterdir())) > 1


@pytest.mark.parametrize("name", LIBRARIES)
def test_what_libraries_raise_is_understood(name, tmp_path):
    with little_room(), pytest.raises(Exception) as raised:
        LIBRARIES[name](tmp_path)
    assert is_full_disk(find_refusal(raised.value))


@pytest.mark.parametrize(
    ("number", "words", "full"),
    [
        (errno.ENOSPC, "the disk is full: make room", True),
        (errno.EDQUOT, "your quota of the disk is used up: make room", True),
        (errno.EROFS, "this disk can only be read", False),
        (errno.EXDEV, "this disk cannot rename folders", False),
        (errno.ENOTSUP, "this disk cannot do what is asked of it", False),
        (errno.EIO, "the disk failed", False),
        (errno.EACCES, "permission denied", False),
        (errno.ESTALE, "the network disk has lost the file", False),
        (errno.ENAMETOOLONG, "the name is too long", False),
        (errno.EMFILE, "too many files are open", False),
    ],
    ids=lambda value: errno.errorcode.get(value) if isinstance(value, int) else None,
)
def test_sentences(number, words, full):
    for path in (None, "some/file", b"some/file"):
        refusal = find_refusal(OSError(number, os.strerror(number), path))
        assert refusal_sentence(refusal).startswith(("some/file: " if path else "") + words)
        assert is_full_disk(refusal) == full


def test_cause_is_found_below_what_was_raised_on_top():
    try:
        try:
            raise OSError(errno.ENOSPC, "No space left on device")
        except OSError as error:
            raise InputError("x cannot be written") from error
    except InputError as error:
        assert find_refusal(error).errno == errno.ENOSPC
    try:
        try:
            raise OSError(errno.ENOSPC, "No space left on device")
        finally:
            raise ValueError("Can't close the ZIP file")
    except ValueError as error:
        assert find_refusal(error).errno == errno.ENOSPC


@pytest.mark.parametrize(
    "error",
    [
        FileNotFoundError(errno.ENOENT, "No such file or directory", "x"),
        IsADirectoryError(errno.EISDIR, "Is a directory", "x"),
        OSError("of no number"),
        RuntimeError("the disk is full of surprises"),
        ValueError("(os error 2)"),
        KeyError("x"),
    ],
    ids=repr,
)
def test_what_may_be_a_bug_is_no_refusal(error):
    assert find_refusal(error) is None


def test_memory_that_is_short_and_processes_that_are_lost_are_no_bugs(monkeypatch):
    with pytest.raises(RuntimeError) as raised:
        torch.empty(2**60)
    for error in (raised.value, MemoryError(), torch.OutOfMemoryError("CUDA out of memory. Tried to allocate")):
        assert machine_sentence(error).startswith("memory is short: ")
    lost = RuntimeError("[../third_party/gloo/gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]")
    assert machine_sentence(lost) is None and machine_sentence(RuntimeError("shapes do not fit")) is None
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert machine_sentence(lost).startswith("another process that shares the work has ended: ")
