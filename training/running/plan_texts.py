"""One text of a plan of trainings, taken apart: `ARCHITECTURE:STEPS[:ROW,ROW…]`."""

from __future__ import annotations

import re


# A name or a path may hold colons, so the steps are looked for from the end.
_STEPS = re.compile(r"(?P<before>.+):(?P<steps>[0-9]+)(?P<after>:[^:/]*)?")


def split_steps(text: str) -> tuple[str, int, str] | None:
    """Architecture, steps, and the rows with the colon before them, or nothing; None for a text without steps."""
    found = _STEPS.fullmatch(text)
    return None if found is None else (found["before"], int(found["steps"]), found["after"] or "")
