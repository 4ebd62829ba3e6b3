"""The one error that `training` raises for bad input."""

from __future__ import annotations

import re
from collections.abc import Mapping


# Around a parameter's name: characters of Unicode's private use area, which text from outside does not hold.
_OPEN, _CLOSE = "\ue000", "\ue001"
# Characters of what a library says that a sentence quotes, at most.
_LONGEST_REASON = 300
# A parameter's name between them.
_MARKED = re.compile(f"{_OPEN}([a-z0-9_]+){_CLOSE}")


def param(name: str) -> str:
    """What stands for a parameter in the message of an `InputError`.

    Whoever calls a function reads the parameter's name, as in `n_per_class=0 is out of range`; whoever types a command
    reads the option's, as in `--n-per-class=0 is out of range`.
    """
    return f"{_OPEN}{name}{_CLOSE}"


class InputError(ValueError):
    """Something that the user gave cannot be used.

    The message is one sentence that names the parameter or file, the rule and the remedy. The command line prints it
    alone, with options in place of parameters and no traceback, and exits with code 2.

    Args:
        message: The sentence; parameters in it are written as `param` returns them.
    """

    def __init__(self, message: str):
        self._marked = message
        super().__init__(_MARKED.sub(r"\1", message))

    def __reduce__(self) -> tuple[type[InputError], tuple[str]]:
        return type(self), (self._marked,)

    def marked(self) -> str:
        """The message with its parameters as `param` wrote them, for a longer message that quotes it."""
        return self._marked

    def for_command_line(self, called: Mapping[str, str] | None = None) -> str:
        """The message with options in place of parameters.

        Args:
            called: What the command line calls some parameters, where that is not `--name-with-dashes`.
        """
        called = called or {}
        return _MARKED.sub(lambda match: called.get(match[1], option_string(match[1])), self._marked)


def one_line(text: str) -> str:
    """A text as one line that a terminal can show: line breaks and other characters without a look are escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text)


def reason_of(error: BaseException) -> str:
    """What an exception of a library says, for a sentence that quotes it: its first line, or else its kind.

    It may quote what a file holds, so that characters without a look are escaped, and no more than 300 are shown.
    """
    lines = str(error).strip().splitlines()
    if not lines:
        return type(error).__name__
    text = one_line(lines[0].rstrip(":."))
    return text if len(text) <= _LONGEST_REASON else text[: _LONGEST_REASON - 1] + "…"


def option_string(name: str) -> str:
    """What the command line calls a parameter: `n_per_class` is `--n-per-class`."""
    return f"--{name.replace('_', '-')}"
