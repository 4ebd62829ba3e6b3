"""Starts the scripts of this package as processes of their own, several at a time through Accelerate."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from histodistill.training.running.claims import inherited
from histodistill.training.running.memory import give_back_freed_memory
from histodistill.training.running.precision import has_cuda
from histodistill.training.running.program import ANSWER_IS_NO, ERROR
from histodistill.training.running.progress import has_bars
from histodistill.training.running.signals import interrupts_wait, on_signal
from histodistill.training.running.threads import thread_variables


# What `--help` says of `num_processes`, wherever there is one.
NUM_PROCESSES_HELP = "processes that share the work, which the command line starts"
# What Accelerate is told of this machine.
_ONE_MACHINE = Path(__file__).with_name("one_machine.yaml")
# What exit codes that tell a signal are above.
_SIGNALS = 128
# Seconds that a module has to end by itself after Ctrl-C.
_PATIENCE = 10


def run_module(
    module: str, argv: list[str], num_processes: int = 1, variables: Mapping[str, str] | None = None
) -> None:
    """Runs `python -m module argv`, and with several processes the same through `accelerate launch`.

    These processes are on this machine, whatever a configuration of Accelerate says of others.

    A process of its own gives its memory back when it ends, and is exactly what a user would start by hand. It does
    not outlive this one: SIGTERM is passed on to it, and after Ctrl-C it is waited for, so that the same command,
    started again, is alone in its folders.

    Args:
        module: Its full name.
        argv: The words of its command line.
        num_processes: How many processes share the work, at least 1.
        variables: What its environment has beside that of this process.

    Raises:
        SystemExit: With the module's exit code where it is not 0, and with 2 for that of several processes; with 128
            and the signal, as shells have it, and one sentence where the module was killed, or this process was told
            to end by SIGTERM.
        KeyboardInterrupt: After Ctrl-C, when the module has ended.
    """
    environment = {**os.environ, **thread_variables(os.environ), **inherited(), **(variables or {})}
    command = [sys.executable, "-m"]
    if num_processes > 1:
        # Not by the user's own default_config.yaml, which may have these processes wait for those of other machines.
        command += ["histodistill.training.running.several", "--config_file", str(_ONE_MACHINE), "--multi_gpu"]
        command += ["--num_processes", str(num_processes), "-m"]
        # PyTorch's launcher takes from these what it is not told, such as a number of machines.
        environment = {name: value for name, value in environment.items() if not name.startswith("PET_")}
        if not has_cuda():
            # `accelerate launch --cpu --num_processes 2` silently starts one process; this starts two.
            environment["ACCELERATE_USE_CPU"] = "true"
    code = _run([*command, module, *argv], environment)
    if code < 0 or code > _SIGNALS:
        number = -code if code < 0 else code - _SIGNALS
        if has_bars():
            print(file=sys.stderr)  # ends the line of a bar that nobody cleared up
        why = ", as the system does where memory is short" if number == signal.SIGKILL else ""
        print(
            f"error: {module} was killed by signal {number}{why}: run the same command again to go on", file=sys.stderr
        )
        raise SystemExit(_SIGNALS + number)
    # 1 is an answer, see `program`, and a process that shares the work has none.
    if code == ANSWER_IS_NO and num_processes > 1:
        raise SystemExit(ERROR)
    if code:
        raise SystemExit(code)


def _run(command: list[str], environment: dict[str, str]) -> int:
    """Runs a command and returns its exit code; minus the signal, where one ended it or was to end this process."""
    process: subprocess.Popen | None = None
    terminated = False

    def pass_on(*_) -> None:
        nonlocal terminated
        terminated = True
        if process is not None:
            process.terminate()

    give_back_freed_memory()
    with on_signal(signal.SIGTERM, pass_on):
        with interrupts_wait():
            process = subprocess.Popen(command, env=environment)
        if terminated:  # while it was being started
            process.terminate()
        code = _wait(process)
    return -signal.SIGTERM if terminated else code


def _wait(process: subprocess.Popen) -> int:
    try:
        return process.wait()
    except KeyboardInterrupt:
        # A terminal sends Ctrl-C to all processes at once. Where only this one was interrupted, or the other one does
        # not end, or Ctrl-C comes again, it is told once more.
        try:
            process.wait(_PATIENCE)
        except (subprocess.TimeoutExpired, KeyboardInterrupt):
            process.terminate()
            process.wait()
        raise
