"""Notes to the user beside a step's own output: one line each, on standard error, from one process only."""

from __future__ import annotations

import os
import sys
from multiprocessing import parent_process

from histodistill.training.running.errors import one_line


def tell(message: str) -> None:
    """Writes one line to standard error, in the main process alone.

    For what a user should know and a program does not need: how many tiles were loaded, what was left out and why.
    Standard output stays what a step itself has to say.

    Args:
        message: One line of text.
    """
    # Several processes load the same tiles and would say the same: those of accelerate and torchrun, which set RANK,
    # and workers that a command starts.
    if os.environ.get("RANK", "0") == "0" and parent_process() is None:
        print(one_line(message), file=sys.stderr, flush=True)


def warn(message: str) -> None:
    """`tell` for what is probably a mistake: the line begins with `warning: `."""
    tell(f"warning: {message}")
