"""The one error that `training` raises for bad input."""

from __future__ import annotations


class InputError(ValueError):
    """Something that the user gave cannot be used.

    The message is one sentence that names the option or file, the rule and the remedy. The command line prints it
    alone, with no traceback, and exits with code 2.
    """
