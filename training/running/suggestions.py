"""The name that somebody probably meant, for every sentence that refuses a name."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


# How alike two names must be, from 0 to 1: organmnist is no mistyped dermamnist.
_LIKENESS = 0.75


def did_you_mean(name: object, known: Iterable[str]) -> str:
    """What a sentence that refuses a name says behind "is unknown" or "is no …".

    Args:
        name: What was given.
        known: What could have been given.

    Returns:
        Such as " (did you mean infomap?)", in the spelling of `known`, or nothing where none of them is like it.
    """
    spelled = {_plain(each): each for each in known}
    found = difflib.get_close_matches(_plain(str(name)), spelled, n=1, cutoff=_LIKENESS)
    return f" (did you mean {spelled[found[0]]}?)" if found else ""


def _plain(name: str) -> str:
    """A name without what is easily mistaken: case, and dashes for underscores."""
    return name.casefold().replace("_", "-")
