"""What a look at something finds, one thing at a time: as it should be, or not and how to mend it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from histodistill.training.running.errors import InputError, one_line
from histodistill.training.running.notes import warn
from histodistill.training.running.program import ANSWER_IS_NO


PASS, WARN, FAIL = "PASS", "WARN", "FAIL"


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        name: What it is, such as "GPU".
        status: `PASS`; `WARN` where the work is slower, a part of it is not possible, or its result means less; `FAIL`
            where it is not possible.
        found: What is there, in a few words; parameters in it are written as `param` returns them.
        mend: What to do about it; empty where nothing is to be done.
        private: The same as one sentence with names from the data in it, such as a patient's or a file's: for the
            owner's terminal alone. Where it is empty there are none.
    """

    name: str
    status: str
    found: str
    mend: str = ""
    private: str = ""

    @classmethod
    def of_error(cls, name: str, error: InputError) -> Finding:
        """The `FAIL` of what is refused: the sentence of the error, whose remedy is behind the colon."""
        found, _, mend = error.marked().partition(": ")
        return cls(name, FAIL, found, mend)

    def sentence(self) -> str:
        """What was found and how to mend it, as an `InputError` says it."""
        return self.private or (f"{self.found}: {self.mend}" if self.mend else self.found)

    def for_command_line(self) -> Finding:
        """The same with options in place of parameters."""
        texts = {name: getattr(self, name) for name in ("found", "mend", "private")}
        return replace(self, **{name: InputError(text).for_command_line() for name, text in texts.items()})

    def line(self, width: int = 10) -> str:
        """The finding as one line for the terminal.

        Args:
            width: Characters of the column with its name.
        """
        return f"{self.status}  {self.name:<{width}}  {one_line(self.for_command_line().sentence())}"


def settle(findings: Iterable[Finding]) -> None:
    """Refuses what fails, and otherwise warns of each `WARN`.

    Raises:
        InputError: For all that fails.
    """
    findings = list(findings)
    refuse(findings)
    warn_of(findings)


def refuse(findings: Iterable[Finding]) -> None:
    """Refuses what fails.

    Raises:
        InputError: For all of it.
    """
    if failing := [finding.sentence() for finding in findings if finding.status == FAIL]:
        raise InputError("; also, ".join(failing))


def warn_of(findings: Iterable[Finding]) -> None:
    """Warns of each `WARN`."""
    for finding in findings:
        if finding.status == WARN:
            warn(finding.for_command_line().sentence())


def count_line(findings: Iterable[Finding]) -> str:
    """How many there are of each status, such as "11 PASS, 1 WARN, 0 FAIL"."""
    statuses = [finding.status for finding in findings]
    return ", ".join(f"{statuses.count(status)} {status}" for status in (PASS, WARN, FAIL))


def exit_code(findings: Iterable[Finding]) -> int:
    """1 where something fails, else 0."""
    return ANSWER_IS_NO if any(finding.status == FAIL for finding in findings) else 0
