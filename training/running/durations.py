"""Lengths of time as people write them: 90m, 2h, 1h30m, 5400s."""

from __future__ import annotations

import re

from histodistill.training.running.errors import InputError, param


_UNITS = {"h": 3600, "m": 60, "s": 1}
_FORM = re.compile("".join(rf"(?:(?P<{unit}>\d+(?:\.\d+)?){unit})?" for unit in _UNITS))


def read_duration(name: str, text: str) -> int:
    """The seconds that a text says.

    Args:
        name: Of the option whose value it is.
        text: Numbers with h, m and s behind them, in this order, such as 1h30m; one of them is enough.

    Returns:
        Whole seconds, at least 1.

    Raises:
        InputError: If it is none, or no time at all.
    """
    found = _FORM.fullmatch(text.strip().lower())
    numbers = {} if found is None else {unit: number for unit, number in found.groupdict().items() if number}
    seconds = round(sum(float(number) * _UNITS[unit] for unit, number in numbers.items()))
    if seconds < 1:
        raise InputError(f"{param(name)}={text} is no length of time: write it as in 90m, 2h, 1h30m or 5400s")
    return seconds
