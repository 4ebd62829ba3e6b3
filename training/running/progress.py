"""How far work has come: a bar on a terminal and in a notebook, a plain line now and then in a file or a pipe.

    with Progress(total=400, name="autoencoder", unit="step") as progress:
        for _ in range(400):
            ...
            progress.update()

All of it goes to standard error. Nothing is shown where the environment has `TQDM_DISABLE`.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Iterator
from typing import Any

from histodistill.training.running.notes import tell


# The variable by which tqdm, and so every library that uses it, shows no bars.
_NO_BARS = "TQDM_DISABLE"
# What a program sets it to, for the libraries alone. Any text will do for tqdm; this one is no user's.
_LIBRARIES_ONLY = "bars of libraries"
# What else a program tells libraries, unless the user has: their remarks are for those who program with them.
_QUIET = {
    "TRANSFORMERS_VERBOSITY": "error",
    "DIFFUSERS_VERBOSITY": "error",
}
# Seconds of work after which lines are written where there is no bar, and between two lines after the last of these.
# Fifteen minutes of work have three lines, and a day of work has 27.
_LINES_AFTER = (60, 300, 900, 1800, 3600)


@contextlib.contextmanager
def quiet_libraries() -> Iterator[None]:
    """Has libraries show no bars and make no remarks, as long as the block runs and where they are imported in it.

    For programs: who imports this package in a notebook decides that for himself. Bars of downloads from the Hub stay
    on a terminal, since huggingface_hub decides about these by itself.
    """
    ours = {name: value for name, value in {_NO_BARS: _LIBRARIES_ONLY, **_QUIET}.items() if not os.environ.get(name)}
    os.environ.update(ours)
    try:
        yield
    finally:
        for name in ours:
            os.environ.pop(name, None)


def is_shown() -> bool:
    """Whether the user wants to see how far work has come: unless the environment has `TQDM_DISABLE`."""
    return os.environ.get(_NO_BARS, "") in ("", _LIBRARIES_ONLY)


def has_bars() -> bool:
    """Whether a line on standard error can be drawn again and again: on a terminal, and in a notebook."""
    return "ipykernel" in sys.modules or (sys.stderr is not None and sys.stderr.isatty())


class Progress:
    """How far one piece of work has come, from entering the context to leaving it.

    Leaving clears up a bar, whatever the reason, so that what is written next has a line of its own.

    Args:
        total: Parts of the work; None where that is not known.
        name: Of the work, in a word or two.
        unit: Of a part.
        initial: Parts that were done before.
        enabled: Whether this process shows anything, such as the main one of several.
        scaled: Whether to write many parts as thousands and millions, as of bytes.
    """

    def __init__(
        self,
        total: int | None,
        name: str,
        unit: str = "step",
        *,
        initial: int = 0,
        enabled: bool = True,
        scaled: bool = False,
    ):
        self.total, self.name, self.unit, self.initial, self.scaled = total, name, unit, initial, scaled
        self._enabled = enabled and is_shown()
        self._done = initial
        self._figures = ""
        self._bar: Any = None
        self._started = 0.0
        self._lines = 0

    def __enter__(self) -> Progress:
        self._started = time.monotonic()
        if self._enabled and has_bars():
            from tqdm.auto import tqdm

            # Said here, `disable` goes before what is in the environment for the libraries.
            self._bar = tqdm(
                total=self.total,
                initial=self.initial,
                desc=self.name,
                unit=self.unit,
                unit_scale=self.scaled,
                disable=False,
                **_shape(),
            )
            # It goes by the clock of the day otherwise, which may jump.
            self._bar._time = time.monotonic
            self._bar.start_t = self._bar.last_print_t = time.monotonic()
        elif self._enabled and 0 < self.initial != self.total:
            tell(f"{self.name}: goes on after {self._amount()}")
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def update(self, parts: int = 1) -> None:
        """Counts parts that are done."""
        self._done += parts
        if self._bar is not None:
            self._bar.update(parts)
        elif self._enabled and self._done != self.total and self._is_time():
            self._lines += 1
            tell(self._line())

    def show(self, **figures: str) -> None:
        """Shows figures beside it, by name, until other ones come."""
        self._figures = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in figures.items())
        if self._bar is not None:
            self._bar.set_postfix_str(self._figures)

    def _is_time(self) -> bool:
        """Whether the next line is due."""
        later = max(0, self._lines - len(_LINES_AFTER) + 1)  # lines after the last that is listed
        due = _LINES_AFTER[min(self._lines, len(_LINES_AFTER) - 1)] + later * _LINES_AFTER[-1]
        return time.monotonic() - self._started >= due

    def _amount(self) -> str:
        if self.scaled:
            from tqdm import tqdm

            done, total = (None if n is None else tqdm.format_sizeof(n) for n in (self._done, self.total))
        else:
            done, total = (None if n is None else f"{n:,}" for n in (self._done, self.total))
        return f"{done} {self.unit}" if total is None else f"{done} of {total} {self.unit}"

    def _line(self) -> str:
        """Such as `autoencoder: 120 of 400 steps, 1:00 so far, about 2 min left, validation psnr 31.05`."""
        spent = time.monotonic() - self._started
        parts = [f"{self.name}: {self._amount()}", f"{clock(spent)} so far"]
        if self.total is not None and self._done > self.initial:
            parts.append(f"{about(spent / (self._done - self.initial) * (self.total - self._done))} left")
        return ", ".join(filter(None, [*parts, self._figures]))


def _shape() -> dict[str, Any]:
    """What tqdm is told of the terminal's size: to follow it, or a usual one where it is said to be 0, as in CI."""
    with contextlib.suppress(OSError):  # in a notebook
        if not all(os.get_terminal_size(sys.stderr.fileno())):
            return {"ncols": 80, "nrows": 24}
    return {"dynamic_ncols": True}


def clock(seconds: float) -> str:
    """A time as minutes and seconds, such as 0:07 or 1:12, from an hour on with hours: 1:02:03."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def about(seconds: float) -> str:
    """A time that nobody knows exactly, such as "less than a minute", "about 4 min" or "about 2 h 10 min"."""
    return "less than a minute" if seconds < 60 else f"about {rounded(seconds)}"


def rounded(seconds: float) -> str:
    """The same in as few words as go into a list: "1 min" at least, "4 min" or "2 h 10 min"."""
    minutes = max(1, round(seconds / 60))
    if minutes >= 60:
        hours, minutes = divmod(round(minutes / 10) * 10, 60)
        return f"{hours} h {minutes} min" if minutes else f"{hours} h"
    return f"{minutes} min"
