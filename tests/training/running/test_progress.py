"""Bars and lines that show how far work has come."""

import os
import pty
import re
import subprocess
import sys
import termios

import pytest

from histodistill.training.running import progress
from histodistill.training.running.progress import Progress, about, clock, quiet_libraries


@pytest.fixture
def time_passes(monkeypatch):
    """`time_passes(seconds)` moves the clock that progress goes by; there is no terminal."""
    now = [1000.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    monkeypatch.delenv("TQDM_DISABLE", raising=False)

    def pass_by(seconds: float) -> None:
        now[0] += seconds

    return pass_by


def work(time_passes, seconds: float, steps: int = 1000, **options) -> None:
    """Work that takes so long, in steps that take alike."""
    with Progress(steps, "autoencoder", "steps", **options) as shown:
        for step in range(options.get("initial", 0), steps):
            time_passes(seconds / steps)
            shown.update()
            if step == 10:
                shown.show(validation_psnr="31.05")


def test_a_bar_does_not_mind_a_clock_that_jumps(time_passes, capsys, monkeypatch):
    monkeypatch.setattr(progress, "has_bars", lambda: True)
    with Progress(100, "autoencoder", "steps") as shown:
        for _ in range(50):
            time_passes(1)
            shown.update()
    bar = capsys.readouterr().err.split("\r")[-2]
    assert "50/100 [00:50<00:50," in bar, bar


def test_short_work_writes_nothing(time_passes, capsys):
    work(time_passes, 59)
    assert capsys.readouterr() == ("", "")


def test_a_line_off_a_terminal(time_passes, capsys):
    work(time_passes, 240, steps=480)
    out, err = capsys.readouterr()
    assert out == ""
    assert err == "autoencoder: 120 of 480 steps, 1:00 so far, about 3 min left, validation psnr 31.05\n"


@pytest.mark.parametrize(
    ("minutes", "lines"), [(4, 1), (6, 2), (15.1, 3), (31, 4), (61, 5), (121, 6), (24 * 60 + 1, 27)]
)
def test_number_of_lines(minutes, lines, time_passes, capsys):
    """A demo of seven steps, five of which take a quarter of an hour each, has room for them in 60 lines."""
    work(time_passes, 60 * minutes)
    assert capsys.readouterr().err.count("\n") == lines


def test_one_late_step_writes_one_line(time_passes, capsys):
    with Progress(3, "pool", "images") as shown:
        time_passes(100)
        shown.update()
        shown.update()
    assert capsys.readouterr().err == "pool: 1 of 3 images, 1:40 so far, about 3 min left\n"


def test_resumed_work_says_where_it_goes_on(time_passes, capsys):
    work(time_passes, 100, steps=100, initial=45)
    assert capsys.readouterr().err == "autoencoder: goes on after 45 of 100 steps\n"
    work(time_passes, 300, steps=100, initial=50)
    # What was done before took this process no time.
    assert "autoencoder: 70 of 100 steps, 1:00 so far, about 2 min left" in capsys.readouterr().err
    with Progress(100, "autoencoder", initial=100):
        pass
    assert capsys.readouterr().err == ""


def test_bytes_of_unknown_number(time_passes, capsys):
    with Progress(None, "tiles.npz", "B", scaled=True) as shown:
        time_passes(61)
        shown.update(2_500_000)
    assert capsys.readouterr().err == "tiles.npz: 2.50M B, 1:01 so far\n"


def test_nothing_is_shown_where_it_is_not_wanted(time_passes, capsys, monkeypatch):
    work(time_passes, 1000, enabled=False)
    monkeypatch.setenv("TQDM_DISABLE", "1")
    work(time_passes, 1000)
    with quiet_libraries():
        work(time_passes, 1000)
    assert capsys.readouterr() == ("", "")


def test_libraries_are_quiet_in_programs_only(monkeypatch, time_passes, capsys):
    monkeypatch.setenv("DIFFUSERS_VERBOSITY", "info")
    monkeypatch.delenv("TRANSFORMERS_VERBOSITY", raising=False)
    before = dict(os.environ)
    with quiet_libraries():
        assert os.environ["TQDM_DISABLE"] and os.environ["TRANSFORMERS_VERBOSITY"] == "error"
        assert os.environ["DIFFUSERS_VERBOSITY"] == "info"  # as the user has it
        work(time_passes, 61, steps=10_000)
    assert capsys.readouterr().err.startswith("autoencoder: ")
    assert dict(os.environ) == before


ON_A_TERMINAL = """
import time, warnings
from histodistill.training.running.notes import tell
from histodistill.training.running.progress import Progress
from histodistill.training.running.program import as_program

with as_program():
    from tqdm.auto import tqdm
    list(tqdm(range(3), desc="of a library"))
    with Progress(4, "autoencoder", "steps") as shown:
        shown.update()
        shown.show(psnr="31.05")
        tell("a note")
        warnings.warn("of Python")
        shown.update(1)
        raise RuntimeError("what went wrong")
"""


@pytest.mark.parametrize("size", [(24, 100), (0, 0)], ids=str)
def test_what_comes_while_a_bar_stands_has_its_own_line(size):
    """On a terminal: every bar is drawn from the beginning of a line, and cleared before anything else is written."""
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, size)
    environment = {name: value for name, value in os.environ.items() if name != "TQDM_DISABLE"}
    done = subprocess.Popen([sys.executable, "-c", ON_A_TERMINAL], env=environment, stderr=theirs, stdout=theirs)
    os.close(theirs)
    seen = b""
    try:
        while piece := os.read(ours, 4096):
            seen += piece
    except OSError:  # how Linux says that the other end is closed
        pass
    os.close(ours)
    assert done.wait(60) == 2
    text = seen.decode().replace("\r\n", "\n")
    assert "of a library" not in text
    # What is left on each line when all that was drawn over it is gone.
    lines = [line.rstrip("\r").rpartition("\r")[2].rstrip() for line in text.split("\n")]
    assert lines[:2] == ["a note", "warning: of Python"]
    assert re.match(r"autoencoder:  50%.* 2/4 \[.*psnr 31\.05\]$", lines[2])
    assert lines[3].startswith("Traceback") and "RuntimeError: what went wrong" in lines


@pytest.mark.parametrize(
    ("seconds", "precise", "rough"),
    [
        (7, "0:07", "less than a minute"),
        (72, "1:12", "about 1 min"),
        (270, "4:30", "about 4 min"),
        (3599.7, "1:00:00", "about 1 h"),
        (3722, "1:02:02", "about 1 h"),
        (7900, "2:11:40", "about 2 h 10 min"),
    ],
)
def test_times(seconds, precise, rough):
    assert (clock(seconds), about(seconds)) == (precise, rough)
