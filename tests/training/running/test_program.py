"""What makes a step a program: exit codes, one sentence, and output that every terminal takes."""

from __future__ import annotations

import errno
import os
import subprocess
import sys

import pytest

from histodistill.training.running.errors import InputError, one_line
from histodistill.training.running.program import as_program, end_with, fail, write_any_text


def test_fail(capsys):
    with pytest.raises(SystemExit) as error:
        fail("there is no such thing")
    assert error.value.code == 2
    assert capsys.readouterr().err == "error: there is no such thing\n"


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("Drüse 腺 🔬 ✓ 100%", "Drüse 腺 🔬 ✓ 100%"),
        ("a\nb\r\tc", "a\\nb\\r\\tc"),
        ("\x1b[2J\x07", "\\x1b[2J\\x07"),
        ("r\udce9sultats", "r\\udce9sultats"),
        ("abc\u202edef\u2028", "abc\\u202edef\\u2028"),
    ],
    ids=ascii,
)
def test_one_line(text, line, capsys):
    assert one_line(text) == line
    with pytest.raises(SystemExit):
        fail(f"{text} is no folder")
    assert capsys.readouterr().err == f"error: {line} is no folder\n"


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EACCES])
def test_what_the_system_refuses_is_one_sentence(number, capsys):
    with pytest.raises(SystemExit) as ended, as_program():
        raise OSError(number, os.strerror(number), "some/file")
    assert ended.value.code == 2
    told = capsys.readouterr().err
    assert told.startswith("error: some/file: ") and told.count("\n") == 1


@pytest.mark.parametrize(
    ("number", "told"),
    [
        (errno.ENOSPC, "error: the disk is full: make room, then run the same command again\n"),
        (errno.EACCES, ""),  # what all of them find
    ],
)
def test_any_of_several_processes_tells_of_a_full_disk(number, told, capsys, monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "1")
    refused = InputError("some/folder cannot be written: give another")
    refused.__cause__ = OSError(number, os.strerror(number))
    with pytest.raises(SystemExit) as ended:
        end_with(refused)
    assert ended.value.code == 2
    assert capsys.readouterr().err == told


def test_bugs_show_their_traceback(capsys):
    with pytest.raises(SystemExit) as ended, as_program():
        {}["no such key"]
    assert ended.value.code == 2
    told = capsys.readouterr().err
    assert told.startswith("Traceback") and told.endswith("KeyError: 'no such key'\n")


@pytest.mark.parametrize("code", [0, 1, 2, 130])
def test_other_exit_codes_pass(code):
    with pytest.raises(SystemExit) as ended, as_program():
        raise SystemExit(code)
    assert ended.value.code == code


PRINTS = """
import sys
from histodistill.training.running.options import StepConfig, StepParser, config, option, run_script
from histodistill.training.running.notes import warn

@config
class Config(StepConfig):
    name: str = option("of a class: ä ✓", positional=True)

def run(options):
    print("✓ ≤ ×", options.name)
    warn(options.name)
    from tqdm import tqdm
    for _ in tqdm(range(2), desc=options.name):
        pass

run_script(lambda: StepParser(Config, prog="probe", description="Größe ✓ 腺"), run)
"""


@pytest.mark.parametrize(
    "encoding", ["cp1252", "latin-1", "ascii", "utf-8", "cp437", "ascii:strict", "utf-16", "shift_jis", ""]
)
@pytest.mark.parametrize("name", ["Drüse", "腺癌", "🔬", "a\udce9"], ids=ascii)
def test_output_takes_every_character(encoding, name, tmp_path):
    environment = {**os.environ, "PYTHONIOENCODING": encoding}
    if not encoding:
        environment |= {"LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
        del environment["PYTHONIOENCODING"]
    (tmp_path / "probe.py").write_text(PRINTS, encoding="utf-8")
    for argv in ([name], ["--help"], ["--wrong", name]):
        done = subprocess.run([sys.executable, tmp_path / "probe.py", *argv], env=environment, capture_output=True)
        # Of a name that is not UTF-8, or not for Python in this locale, a sentence says so.
        wrong = argv != ["--help"] and (name.startswith("a") or not encoding)
        assert done.returncode == (2 if argv[0] == "--wrong" or wrong else 0), done.stderr
        assert b"Traceback" not in done.stderr


def test_streams_that_are_not_there(monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    write_any_text()
