"""What `histodistill doctor` finds, one thing at a time."""

from __future__ import annotations

from dataclasses import dataclass


PASS, WARN, FAIL = "PASS", "WARN", "FAIL"


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        name: What it is, such as "GPU".
        status: `PASS`; `WARN` where the work is slower or a part of it is not possible; `FAIL` where it is not.
        found: What is there, in a few words.
        mend: What to do about it; empty where nothing is to be done.
    """

    name: str
    status: str
    found: str
    mend: str = ""

    def line(self) -> str:
        """The finding as one line for the terminal."""
        mend = f": {self.mend}" if self.mend else ""
        return f"{self.status}  {self.name:<10}  {self.found}{mend}"


def gib(count: float) -> str:
    """A number of bytes in words, such as "1.5 GiB"."""
    return f"{count / 2**30:.1f} GiB"
