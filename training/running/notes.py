"""Notes to the user beside a step's own output: one line each, on standard error, from one process only."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from multiprocessing import parent_process

from histodistill.training.running.errors import one_line


#: What `distill` adds to the environment of the steps that it starts.
STEP_OF_DISTILL = {"HISTODISTILL_STEP_OF_DISTILL": "1"}
# Whether notes are left out just now.
_hushed = False


def is_step_of_distill() -> bool:
    """Whether `distill` has started this process, and itself tells what all steps would tell alike."""
    return STEP_OF_DISTILL.items() <= os.environ.items()


@contextmanager
def hushed(are_hushed: bool = True) -> Iterator[None]:
    """Leaves out notes, where others tell the same.

    Args:
        are_hushed: Whether they are left out.
    """
    global _hushed
    before, _hushed = _hushed, _hushed or are_hushed
    try:
        yield
    finally:
        _hushed = before


def told_by_distill() -> AbstractContextManager[None]:
    """Leaves out notes in a step that `distill` started: on what all steps load, such as the tiles."""
    return hushed(is_step_of_distill())


def tell(message: str) -> None:
    """Writes one line to standard error, in the main process alone.

    For what a user should know and a program does not need: how many tiles were loaded, what was left out and why.
    Standard output stays what a step itself has to say.

    Args:
        message: One line of text.
    """
    # Several processes load the same tiles and would say the same: those of accelerate and torchrun, which set RANK,
    # and workers that a command starts.
    if os.environ.get("RANK", "0") == "0" and parent_process() is None and not _hushed:
        line = one_line(message)
        if (tqdm := sys.modules.get("tqdm")) and sys.stderr is not None:
            tqdm.tqdm.write(line, file=sys.stderr)  # above a bar, where one stands
            sys.stderr.flush()
        else:
            print(line, file=sys.stderr, flush=True)


def suggest(*words: object) -> None:
    """Tells the words of the command that goes on from what a step has left, but not in `distill`, which goes on."""
    if not is_step_of_distill():
        tell(f"next: {shlex.join(map(str, words))}")


def warn(message: str) -> None:
    """`tell` for what is probably a mistake: the line begins with `warning: `."""
    tell(f"warning: {message}")
