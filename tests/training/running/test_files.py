from __future__ import annotations

import errno
import itertools
import os
from pathlib import Path

import pytest

from histodistill.training.running.errors import InputError
from histodistill.training.running.files import (
    format_size,
    new_files,
    new_folder,
    read_json,
    read_kept,
    remove,
    sha256_of,
    write_bytes,
    write_json,
    write_refusal,
    write_text,
)
from histodistill.training.running.system_errors import find_refusal, refusal_sentence


def test_files_are_written_with_their_folders(tmp_path):
    write_bytes(tmp_path / "a" / "b" / "data", b"\x00\x01")
    assert (tmp_path / "a" / "b" / "data").read_bytes() == b"\x00\x01"
    write_text(tmp_path / "text", "Gewebe: Drüsen")
    assert (tmp_path / "text").read_bytes() == "Gewebe: Drüsen".encode()


def test_json_comes_back(tmp_path):
    value = {"steps": [1, 2.5, None, True], "name": "x"}
    write_json(tmp_path / "x.json", value)
    assert read_json(tmp_path / "x.json") == value
    assert (tmp_path / "x.json").read_text().endswith("}\n")


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe{}", b"[" * 200_000, b"{'a': 1}"], ids=lambda c: str(c)[:12])
def test_damaged_json_is_one_sentence(content, tmp_path):
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(InputError, match=r"x\.json cannot be read \(.+\): delete it and run the command"):
        read_json(tmp_path / "x.json")


def test_nan_is_refused_and_the_old_file_stays(tmp_path):
    write_json(tmp_path / "x.json", 1)
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "x.json", float("nan"))
    assert read_json(tmp_path / "x.json") == 1


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    write_bytes(tmp_path / "data", b"old")

    def fail(*_):
        raise OSError("no space left")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="no space left"):
        write_bytes(tmp_path / "data", b"new")
    assert [path.name for path in tmp_path.iterdir()] == ["data"]
    assert (tmp_path / "data").read_bytes() == b"old"


def test_new_folder_appears_whole(tmp_path):
    target = tmp_path / "deep" / "result"
    with new_folder(target) as folder:
        (folder / "file").write_text("1")
        assert not target.exists()
        assert folder.parent == target.parent
    assert [path.name for path in target.iterdir()] == ["file"]
    assert list(target.parent.iterdir()) == [target]


def test_new_folder_takes_the_place_of_the_old_one(tmp_path):
    target = tmp_path / "result"
    target.mkdir()
    (target / "old").write_text("1")
    with new_folder(target) as folder:
        (folder / "new").write_text("2")
    assert [path.name for path in target.iterdir()] == ["new"]


def test_new_folder_vanishes_on_errors(tmp_path):
    target = tmp_path / "result"
    target.mkdir()
    (target / "old").write_text("1")
    with pytest.raises(KeyboardInterrupt), new_folder(target) as folder:
        (folder / "new").write_text("2")
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == [target]
    assert [path.name for path in target.iterdir()] == ["old"]


def test_sizes_in_words():
    assert [format_size(n) for n in (7, 1500, 2_340_000, 5 * 10**9)] == ["7 B", "1.5 kB", "2.3 MB", "5.0 GB"]


@pytest.mark.parametrize("content", [b"", b'{"row": "real', bytes(40), b"\xff\xfe", b"NaN,"])
def test_what_was_kept_and_is_damaged_counts_as_none(tmp_path, capsys, content):
    path = tmp_path / "cell.json"
    assert read_kept(path) is None
    assert capsys.readouterr().err == ""
    path.write_bytes(content)
    assert read_kept(path) is None
    assert capsys.readouterr().err == f"warning: {path} is damaged (it is no JSON): it is made anew\n"
    write_json(path, {"row": "real_all"})
    assert read_kept(path) == {"row": "real_all"}


def test_remove_takes_what_is_there(tmp_path):
    (tmp_path / "folder" / "within").mkdir(parents=True)
    (tmp_path / "file").write_text("kept")
    (tmp_path / "link").symlink_to("folder")
    (tmp_path / "dead").symlink_to("nowhere")
    for name in ("link", "dead", "nothing"):
        remove(tmp_path / name)
    assert {path.name for path in tmp_path.iterdir()} == {"folder", "file"}
    remove(tmp_path / "folder")
    remove(tmp_path / "file")
    assert not any(tmp_path.iterdir())


def test_new_folder_takes_the_place_of_anything(tmp_path):
    (tmp_path / "target").mkdir()
    for make in (lambda path: path.write_text("x"), lambda path: path.symlink_to("target"), lambda path: path.mkdir()):
        make(tmp_path / "new")
        with new_folder(tmp_path / "new") as folder:
            (folder / "a").write_text("b")
        assert (tmp_path / "new" / "a").read_text() == "b" and not (tmp_path / "new").is_symlink()
        remove(tmp_path / "new")
    assert not any((tmp_path / "target").iterdir())


def test_new_files_join_what_is_there(tmp_path):
    (tmp_path / "part").mkdir()
    for name in ("kept", "old", "part/old"):
        (tmp_path / name).write_text("0")
    with new_files(tmp_path) as new:
        (new / "part").mkdir()
        for name in ("old", "new", "part/new"):
            (new / name).write_text("1")
        assert (tmp_path / "old").read_text() == "0"
    found = {str(path.relative_to(tmp_path)): path.read_text() for path in tmp_path.rglob("*") if path.is_file()}
    assert found == {"kept": "0", "old": "1", "new": "1", "part/new": "1"}


def test_new_files_that_fail_leave_what_was_there(tmp_path):
    (tmp_path / "kept").write_text("0")
    with pytest.raises(ZeroDivisionError), new_files(tmp_path) as new:
        (new / "kept").write_text("1")
        raise ZeroDivisionError
    assert [path.name for path in tmp_path.iterdir()] == ["kept"] and (tmp_path / "kept").read_text() == "0"


@pytest.mark.parametrize("refused", [0, 1])
@pytest.mark.parametrize("writing", [new_folder, lambda path: new_files(path.parent)])
def test_what_was_there_stays_where_a_disk_does_not_rename_folders(writing, refused, tmp_path, monkeypatch):
    (tmp_path / "part").mkdir()
    (tmp_path / "part" / "old").write_text("0")
    rename, numbers = os.replace, itertools.count()

    def refuse(old, new):
        if next(numbers) == refused:
            raise OSError(errno.EXDEV, os.strerror(errno.EXDEV), str(old))
        rename(old, new)

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(OSError) as raised, writing(tmp_path / "part") as new:
        new = new if writing is new_folder else new / "part"
        new.mkdir(exist_ok=True)
        (new / "new").write_text("1")
    assert "this disk cannot rename folders" in refusal_sentence(find_refusal(raised.value))
    assert {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")} == {"part", "part/old"}


def test_text_with_a_name_that_is_not_utf8(tmp_path):
    write_text(tmp_path / "text", "run r\udce9sultats")
    assert (tmp_path / "text").read_bytes() == b"run r\\udce9sultats"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no pipes")
def test_json_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "stage.json")
    for path in (tmp_path / "stage.json", Path(os.devnull)):
        for read in (read_json, sha256_of):
            with pytest.raises(OSError, match="no ordinary file"):
                read(path)


def test_whether_a_folder_can_be_written(tmp_path):
    assert write_refusal(tmp_path) is None
    assert write_refusal(tmp_path / "not" / "there") is None
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").touch()
    refusal = write_refusal(tmp_path / "file" / "folder")
    assert refusal is not None and refusal.strerror == "Not a directory"
