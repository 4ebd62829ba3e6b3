"""Findings as lines and as refusals."""

from __future__ import annotations

import pytest

from histodistill.training.running.errors import InputError, param
from histodistill.training.running.findings import FAIL, PASS, WARN, Finding, count_line, exit_code, settle


GOOD = Finding("sizes", PASS, "28x28 pixels")
ODD = Finding("sizes", WARN, "two sizes", f"give {param('image_size')}")
BAD = Finding(
    "groups", FAIL, "1 group is in two splits", "move it", private="1 group (such as 'P7') is in two: move it"
)


def test_a_line_names_options_and_shows_what_is_private():
    assert GOOD.line(6) == "PASS  sizes   28x28 pixels"
    assert ODD.line(6) == "WARN  sizes   two sizes: give --image-size"
    assert BAD.line(6) == "FAIL  groups  1 group (such as 'P7') is in two: move it"


def test_what_fails_is_refused_and_the_rest_is_warned_of(capsys):
    with pytest.raises(InputError, match=r"^1 group \(such as 'P7'\) is in two: move it; also, it is odd$"):
        settle([GOOD, ODD, BAD, Finding("sizes", FAIL, "it is odd")])
    assert capsys.readouterr().err == ""
    settle([GOOD, ODD])
    assert capsys.readouterr().err == "warning: two sizes: give --image-size\n"


def test_an_error_becomes_what_was_found_and_its_remedy():
    error = InputError(f"tiles are odd: give {param('image_size')}: a number")
    found = Finding.of_error("sizes", error).for_command_line()
    assert found == Finding("sizes", FAIL, "tiles are odd", "give --image-size: a number")


def test_counts_and_exit_code():
    assert count_line([GOOD, ODD, BAD, GOOD]) == "2 PASS, 1 WARN, 1 FAIL"
    assert (exit_code([GOOD, ODD]), exit_code([GOOD, BAD])) == (0, 1)
