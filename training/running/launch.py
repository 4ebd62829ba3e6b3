"""Starts the scripts of this package as processes of their own, several at a time through Accelerate."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from histodistill.training.running.claims import inherited
from histodistill.training.running.memory import give_back_freed_memory
from histodistill.training.running.precision import has_cuda
from histodistill.training.running.program import ERROR
from histodistill.training.running.progress import has_bars


# What `--help` says of `num_processes`, wherever there is one.
NUM_PROCESSES_HELP = "processes that share the work, which the command line starts"
# What Accelerate is told of this machine.
_ONE_MACHINE = Path(__file__).with_name("one_machine.yaml")
# Seconds that a module has to end by itself after Ctrl-C.
_PATIENCE = 10


def usable_cores() -> int:
    """Cores that this process may run on: of a larger machine, a container or a batch system may give it a few.

    More threads than these wait for each other: a ResNet on one core then takes four times as long with two.
    """
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


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
    environment = {**os.environ, **inherited(), **(variables or {})}
    command = [sys.executable, "-m"]
    if num_processes > 1:
        # Not by the user's own default_config.yaml, which may have these processes wait for those of other machines.
        command += ["accelerate.commands.launch", "--config_file", str(_ONE_MACHINE), "--multi_gpu"]
        command += ["--num_processes", str(num_processes), "-m"]
        # PyTorch's launcher takes from these what it is not told, such as a number of machines.
        environment = {name: value for name, value in environment.items() if not name.startswith("PET_")}
        if not has_cuda():
            # `accelerate launch --cpu --num_processes 2` silently starts one process; this starts two.
            environment["ACCELERATE_USE_CPU"] = "true"
    code = _run([*command, module, *argv], environment)
    if code < 0:
        if has_bars():
            print(file=sys.stderr)  # ends the line of a bar that nobody cleared up
        print(f"error: {module} was killed by signal {-code}: run the same command again to go on", file=sys.stderr)
        raise SystemExit(128 - code)
    # Accelerate's launcher ends with 1 whatever its processes ended with, and 1 is an answer: see `program`.
    if code and num_processes > 1:
        raise SystemExit(ERROR)
    if code:
        raise SystemExit(code)


@contextlib.contextmanager
def on_sigterm(answer: Callable[..., None]) -> Iterator[None]:
    """Has SIGTERM answered by a function as long as the block runs, where this is the main thread.

    Python lets only that thread handle signals.
    """
    handles = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGTERM, answer) if handles else None
    try:
        yield
    finally:
        if handles:
            signal.signal(signal.SIGTERM, before or signal.SIG_DFL)


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
    with on_sigterm(pass_on):
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
