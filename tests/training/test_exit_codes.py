"""The table of exit codes, for every command: 0 done, 1 the answer is no, 2 could not be done, 128 and the signal."""

from __future__ import annotations

import errno
import os
import signal
from importlib import import_module

import pytest

from histodistill.training import cli
from histodistill.training.publishing.verify import Verification
from histodistill.training.running.errors import InputError
from histodistill.training.running.options import StepConfig, StepParser, config, option


# The commands that can answer no: what they judged does not pass, or is not there.
CAN_ANSWER_NO = {"audit", "doctor", "holds", "inspect", "verify"}


@config
class NoOptions(StepConfig):
    """Stands for the options of a step."""

    num_processes: int = option("how many", default=1)


@pytest.fixture
def end(monkeypatch):
    """`end(command, step)` runs a command with another function in place of its step, and returns its exit code."""

    def run(name: str, step) -> int:
        module = import_module(f"histodistill.training.{cli.COMMANDS[name].step}")
        monkeypatch.setattr(module, "make_parser", lambda: StepParser(NoOptions, prog=f"histodistill {name}"))
        monkeypatch.setattr(module, "run", step)
        try:
            cli.main(name.split())
        except SystemExit as ended:
            return ended.code
        return 0

    return run


def bad_input(_):
    raise InputError("tiles.npz does not exist: give another")


def full_disk(_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def bug(_):
    return {}["no such key"]


def interrupted(_):
    raise KeyboardInterrupt


def terminated(_):
    signal.raise_signal(signal.SIGTERM)


@pytest.mark.parametrize("name", cli.COMMANDS)
@pytest.mark.parametrize(
    ("step", "code"), [(bad_input, 2), (full_disk, 2), (bug, 2), (interrupted, 130), (terminated, 143)]
)
def test_what_ends_a_command(name, step, code, end, capsys):
    assert end(name, step) == code
    told = capsys.readouterr().err
    assert told.startswith("Traceback" if step is bug else "error: ")
    assert step is bug or told.count("\n") == 1


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_usage_that_is_wrong(name, capsys):
    for argv in ([*name.split(), "--no-such-option"], [*name.split(), "--seed", "many"]):
        with pytest.raises(SystemExit) as ended:
            cli.main(argv)
        assert ended.value.code == 2
    capsys.readouterr()


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_which_commands_can_answer_no(name):
    module = import_module(f"histodistill.training.{cli.COMMANDS[name].step}")
    assert hasattr(module, "exit_code") == (name in CAN_ANSWER_NO)


@pytest.mark.parametrize("name", sorted(cli.COMMANDS.keys() - CAN_ANSWER_NO))
def test_what_is_done_ends_with_0(name, end):
    assert end(name, lambda _: {"parts": {"distilled": {"passed": False}}}) == 0


@pytest.mark.parametrize(
    ("passed", "code"),
    [([True, True, True], 0), ([True], 0), ([True, False, True], 1), ([False], 1), (["no"], 1), ([1], 1), ([None], 1)],
    ids=str,
)
def test_audit_ends_with_0_only_where_all_passes(passed, code, end):
    record = {"parts": {str(number): {"passed": value} for number, value in enumerate(passed)}}
    assert end("audit", lambda _: record) == code


@pytest.mark.parametrize(("findings", "code"), [((), 0), (("a file is missing",), 1)])
def test_verify_ends_with_1_where_something_does_not_agree(findings, code, end):
    assert end("verify", lambda _: Verification(findings, "0" * 32, True)) == code
