from __future__ import annotations

import os
import stat
from concurrent.futures import ThreadPoolExecutor

import pytest

from histodistill.selection.files import write_bytes
from histodistill.training.running import files


def test_a_file_has_the_permissions_that_any_other_would_have(tmp_path):
    before = os.umask(0o027)
    try:
        write_bytes(tmp_path / "data", b"new")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "data").stat().st_mode) == 0o640


def test_several_writers_do_not_mix_their_bytes(tmp_path):
    contents = [bytes([i]) * 100_000 for i in range(20)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda content: write_bytes(tmp_path / "data", content), contents))
    assert (tmp_path / "data").read_bytes() in contents
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_a_write_that_fails_leaves_nothing_behind(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError("no space left")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="no space left"):
        write_bytes(tmp_path / "data", b"new")
    assert list(tmp_path.iterdir()) == []


def test_training_writes_with_the_same_function():
    assert files.write_bytes is write_bytes
