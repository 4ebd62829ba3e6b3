"""Notes to the user beside a step's own output: one line each, on standard error, from one process only."""

from __future__ import annotations

import os
import sys

from histodistill.training.running.errors import one_line


def tell(message: str) -> None:
    """Writes one line to standard error, in the main process alone.

    For what a user should know and a program does not need: how many tiles were loaded, what was left out and why.
    Standard output stays what a step itself has to say.

    Args:
        message: One line of text.
    """
    # As accelerate and torchrun set it: several processes load the same tiles and would say the same.
    if os.environ.get("RANK", "0") == "0":
        print(one_line(message), file=sys.stderr, flush=True)


def warn(message: str) -> None:
    """`tell` for what is probably a mistake: the line begins with `warning: `."""
    tell(f"warning: {message}")
