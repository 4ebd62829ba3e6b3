"""A command line whose mistakes are told in one sentence each, with the option that was probably meant."""

from __future__ import annotations

import argparse
import itertools
import shutil
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from histodistill.training.running.program import ERROR, fail, speaks
from histodistill.training.running.suggestions import did_you_mean


# Characters of a line of `--help`, at most: longer ones are hard to read where a terminal is wider.
_HELP_WIDTH = 119


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Keeps the lines of a module's docstring, and its own short enough to be read.

    Args:
        prog: What the user typed.
    """

    def __init__(self, prog: str):
        # argparse, too, leaves two columns free.
        super().__init__(prog, width=min(_HELP_WIDTH, shutil.get_terminal_size().columns - 2))


class SentenceParser(argparse.ArgumentParser):
    """A parser of a command line.

    Args:
        prog: What the user typed.
        description: For `--help`.
        epilog: What stands below the options.
    """

    def __init__(self, *, prog: str, description: str | None = None, epilog: str | None = None):
        super().__init__(
            prog=prog, description=description, epilog=epilog, allow_abbrev=False, formatter_class=HelpFormatter
        )

    def parse_args(  # type: ignore[override]  # argparse has overloads for namespaces of one's own
        self, args: Sequence[str] | None = None, namespace: Any = None
    ) -> Any:
        """What argparse reads, after a look for what is no option, which tells more than what is missing.

        Raises:
            SystemExit: With code 2 where the words are wrong, after one sentence about them.
        """
        words = sys.argv[1:] if args is None else list(args)
        names = self.option_strings()
        for word in itertools.takewhile(lambda word: word != "--", words):
            name = word.partition("=")[0]
            # As argparse has it, a word with a space in it is a value.
            if word.startswith("--") and " " not in word and name not in names:
                meant = did_you_mean(name, names)
                self.end(f"{name} is no option of {self.prog}{meant}: {self.prog} --help lists them")
        return super().parse_args(words, namespace)

    def option_strings(self) -> list[str]:
        """All options as they are written on a command line, such as `--seed`."""
        return [name for action in self._actions for name in action.option_strings]

    def error(self, message: str) -> NoReturn:
        """Ends the program with one sentence about what argparse found."""
        message = message.removeprefix("argument ")
        required = message.removeprefix("the following arguments are required: ")
        sentence = message if required == message else f"{required} must be given"
        self.end(f"{sentence}: {self.prog} --help tells how")

    def end(self, sentence: str) -> NoReturn:
        """Ends the program with one sentence and code 2; one of several processes speaks for all."""
        if not speaks():
            raise SystemExit(ERROR)
        fail(sentence)
