from __future__ import annotations

import pytest

from histodistill.training.running.suggestions import did_you_mean


SELECTORS = ("random", "kernel_herding", "infomap", "facility_location")


@pytest.mark.parametrize(
    ("name", "meant"),
    [("infomp", "infomap"), ("Infomap", "infomap"), ("kernel-herding", "kernel_herding"), ("RANDOM", "random")],
)
def test_what_is_nearly_a_name(name, meant):
    assert did_you_mean(name, SELECTORS) == f" (did you mean {meant}?)"


@pytest.mark.parametrize("name", ["", "zebra", "mapinfo", "x" * 1000, 3])
def test_what_is_like_none(name):
    assert did_you_mean(name, SELECTORS) == ""


def test_among_nothing():
    assert did_you_mean("infomap", []) == ""
