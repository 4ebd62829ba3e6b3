"""A few of the refusals that `refusals.py` deals out: see tests/README.md."""

from __future__ import annotations

import re

from fault_scripts import said_by


def test_a_step_whose_quota_is_used_up_says_so_and_goes_on_later():
    said = said_by("refusals.py", "--fault", "quota", "--moments", "2", "--steps", "train autoencoder")
    assert said.startswith("train autoencoder: quota: 2 of ")
    assert re.search(r" moments, ended [12] times, as undisturbed\n$", said)
