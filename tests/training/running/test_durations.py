from __future__ import annotations

import pytest

from histodistill.training.running.durations import read_duration
from histodistill.training.running.errors import InputError


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90m", 5400), ("2h", 7200), ("1h30m", 5400), ("5400s", 5400), (" 1H ", 3600), ("1.5h", 5400), ("1m30s", 90)],
)
def test_lengths_of_time(text, seconds):
    assert read_duration("time_budget", text) == seconds


@pytest.mark.parametrize("text", ["", "2", "h", "30m1h", "2 hours", "-1h", "0m", "1d", "nan"])
def test_what_is_none(text):
    with pytest.raises(InputError) as raised:
        read_duration("time_budget", text)
    assert raised.value.for_command_line() == (
        f"--time-budget={text} is no length of time: write it as in 90m, 2h, 1h30m or 5400s"
    )
