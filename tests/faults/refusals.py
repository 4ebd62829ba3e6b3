"""Has the system refuse what every step asks of it, from a random moment on, and has the step go on afterwards.

    python tests/faults/refusals.py [--fault NAME] [--moments 10] [--steps NAME …] [--seed 0]

A disk refuses to make or to rename files and folders; or the clock jumps by a month. Each step works in a folder and
with a cache of its own, first with nothing refused, and then so many times with all that it asks from some moment on.
It must end with 2 and one sentence, leave nothing half-written and what it was given as it was, and begun again leave
what it leaves without any of this, byte for byte but for times, versions and memory in JSON; or not mind. Prints a
line for each step; the exit code is 1 where one is not as it should be.
"""

from __future__ import annotations

import errno
import mmap
import os
import random
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from disks import wrong_said
from kills import Ended, Steps, content, differences, parser_of, try_steps


# Seconds by which the clock jumps: more than anything is kept for.
_MONTH = 30 * 86400


@dataclass(frozen=True)
class Refusal:
    """What a disk refuses.

    Attributes:
        number: The error.
        in_cache: Whether it is the disk of the cache, and not of the run.
        folders: Whether it refuses to rename folders alone.
    """

    number: int
    in_cache: bool = False
    folders: bool = False

    def is_asked(self, event: str, args: tuple[Any, ...], place: Path) -> bool:
        """Whether it is what an event of Python's is about: see https://docs.python.org/3/library/audit_events.html."""
        if self.folders:
            return event == "os.rename" and _is_in(args[0], place) and os.path.isdir(args[0])
        if event == "open":
            return bool(args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)) and _is_in(args[0], place)
        return event in ("os.mkdir", "os.rename", "os.truncate") and _is_in(args[0], place)


#: What a disk may refuse, by name.
REFUSALS = {
    "quota": Refusal(errno.EDQUOT),
    "failing-disk": Refusal(errno.EIO),
    "no-rename-of-folders": Refusal(errno.EXDEV, folders=True),
    "unsupported-rename-of-folders": Refusal(errno.ENOTSUP, folders=True),
    "full-cache": Refusal(errno.ENOSPC, in_cache=True),
    "read-only-cache": Refusal(errno.EROFS, in_cache=True),
}
#: By how many seconds a clock jumps, by name.
JUMPS = {"clock-forth": _MONTH, "clock-back": -_MONTH}


def _is_in(path: Any, place: Path) -> bool:
    return isinstance(path, str | os.PathLike) and os.fspath(path).startswith(f"{place}{os.sep}")


class Disk:
    """Counts what is asked of the disk by a step and the processes that it starts, and refuses it from then on."""

    def __init__(self) -> None:
        self._asked = mmap.mmap(-1, 8)  # that of all processes

    @property
    def asked(self) -> int:
        """How often something was asked that it may refuse."""
        return int.from_bytes(self._asked[:], "little")

    def refusing(self, refusal: Refusal, place: Path, moment: int | None) -> Callable[[], None]:
        """What a process does first that is refused all from the moment on: the number of what was asked before."""
        self._asked[:] = bytes(8)

        def watch(event: str, args: tuple[Any, ...]) -> None:
            if refusal.is_asked(event, args, place):
                asked = self.asked
                self._asked[:] = (asked + 1).to_bytes(8, "little")
                if moment is not None and asked >= moment:
                    raise OSError(refusal.number, os.strerror(refusal.number), os.fspath(args[0]))

        return lambda: sys.addaudithook(watch)


def jumping(seconds: float, after: float) -> Callable[[], None]:
    """What a process does first whose clock jumps after a while."""
    usual, moment = time.time, time.monotonic() + after

    def now() -> float:
        return usual() + (seconds if time.monotonic() >= moment else 0)

    def put_in_place() -> None:
        for module in list(sys.modules.values()):
            if getattr(module, "time", None) is usual:
                module.time = now  # type: ignore[attr-defined]

    return put_in_place


class Trial:
    """A step that is tried with one fault again and again."""

    def __init__(self, steps: Steps, name: str):
        self.steps, self.name = steps, name
        self.cache, self._number = steps.place / "cache", 0
        self.run = steps.fresh(name, steps.place / "run")
        self.wrong: list[str] = []

    def begin(self) -> None:
        """A new run, and a cache with nothing in it."""
        self.steps.fresh(self.name, self.run)
        self._number += 1
        os.environ["HISTODISTILL_CACHE"] = str(self.steps.place / "cache" / str(self._number))

    def undisturbed(self, first: Callable[[], None] | None = None) -> Ended:
        """Runs it with nothing refused."""
        self.begin()
        self.usual = self.steps.run(self.name, self.run, first=first)
        self.wanted = content(self.run)
        return self.usual

    def disturbed(self, first: Callable[[], None], where: str) -> bool:
        """Runs it with a fault, and again without; returns whether it ended by it."""
        self.begin()
        given = content(self.run)
        now = self.steps.run(self.name, self.run, first=first)
        if now.code != self.usual.code:
            self.wrong += wrong_said(now.code, now.said, where)
            left = content(self.run)
            # An audit writes the card of the set anew, which is no loss if it is that which it leaves in the end.
            lost = (path for path in given if left.get(path) not in (given[path], self.wanted.get(path)))
            self.wrong += [f"{where}: {path} is lost" for path in lost]
            self.wrong += [f"{where}: left {path}" for path in left if path.endswith(".lock") or ".tmp" in path]
            last = self.steps.run(self.name, self.run)
            if last.code != self.usual.code:
                self.wrong.append(f"{where}: it does not go on: {last.code}: {last.said[-300:]}")
        elif "Traceback" in now.said:
            self.wrong.append(f"{where}: {now.said[-300:]}")
        self.wrong += [f"{where}: {each} differs" for each in differences(self.wanted, content(self.run))]
        return now.code != self.usual.code


def refuse(steps: Steps, name: str, refusal: Refusal, moments: int, draw: random.Random) -> tuple[str, list[str]]:
    """Tries a step with a disk that refuses something from so many moments on, all of them where there are fewer."""
    trial, disk = Trial(steps, name), Disk()

    def place() -> Path:
        return trial.cache if refusal.in_cache else trial.run

    trial.undisturbed(disk.refusing(refusal, place(), None))
    asked = disk.asked
    tried = sorted(draw.sample(range(asked), min(moments, asked)))
    ended = sum(trial.disturbed(disk.refusing(refusal, place(), moment), f"{moment} of {asked}") for moment in tried)
    return f"{len(tried)} of {asked} moments, ended {ended} times", trial.wrong


def jump(steps: Steps, name: str, seconds: float, moments: int, draw: random.Random) -> tuple[str, list[str]]:
    """Tries a step with a clock that jumps at so many moments."""
    trial = Trial(steps, name)
    usual = trial.undisturbed()
    ended = 0
    for _ in range(moments):
        after = draw.uniform(0, 1) * usual.seconds
        ended += trial.disturbed(jumping(seconds, after), f"after {after:.2f} s")
    return f"{moments} moments, ended {ended} times", trial.wrong


def main() -> None:
    """Runs what the command line asks for."""
    parser = parser_of(__doc__)
    parser.add_argument("--fault", default="quota", choices=[*REFUSALS, *JUMPS])
    parser.add_argument("--moments", type=int, default=10)
    args = parser.parse_args()

    def attempt(steps: Steps, name: str, draw: random.Random) -> tuple[str, list[str]]:
        if args.fault in JUMPS:
            done, wrong = jump(steps, name, JUMPS[args.fault], args.moments, draw)
        else:
            done, wrong = refuse(steps, name, REFUSALS[args.fault], args.moments, draw)
        return f"{args.fault}: {done}", wrong

    try_steps(args, attempt, "as undisturbed")


if __name__ == "__main__":
    main()
