"""A few of the kills that `kills.py` deals out by the hundred: see tests/README.md."""

from __future__ import annotations

import pytest
from fault_scripts import said_by


@pytest.mark.parametrize("number", ["KILL", "TERM"])
def test_a_training_that_is_ended_at_random_moments_goes_on_as_if_nobody_had(number):
    said = said_by("kills.py", "--kills", "2", "--signal", number, "--steps", "train autoencoder")
    assert said == f"train autoencoder: ended 2 times by SIG{number}, as undisturbed\n"
