from __future__ import annotations

import json

import numpy as np
import pytest
from scipy.stats import binom

from histodistill.training.benchmarks.dp_canaries import DpCanariesConfig, epsilon_at_least, run
from histodistill.training.engine import privacy


def test_no_run_refutes_the_claim_and_a_broken_variant_is_caught(tmp_path, monkeypatch, capsys):
    # What the accountant says of this ε, and takes seconds for.
    monkeypatch.setattr(privacy, "noise_multiplier", lambda *_: 4.8828125)
    config = DpCanariesConfig(runs=20, canaries=80, patients=10, output=tmp_path / "found.json")
    found = run(config)
    assert len(found["by_patient"]) == len(found["per_tile"]) == 20
    assert max(found["by_patient"]) < config.epsilon < min(found["per_tile"])
    assert json.loads(config.output.read_text()) == found
    assert "by_patient: ε is at least 0.00" in capsys.readouterr().out


def test_bound_from_below():
    # Without δ: the ε at which so many right guesses have a probability of 5 %.
    for right, guesses in ((30, 30), (70, 100), (90, 120)):
        epsilon = epsilon_at_least(right, guesses, 200, 0.0)
        assert binom.sf(right - 1, guesses, 1 / (1 + np.exp(-epsilon))) == pytest.approx(0.05, abs=2e-3)
        assert epsilon_at_least(right, guesses, 200, 1e-3) < epsilon  # δ explains some of it
        assert epsilon_at_least(right, guesses, 200, 1e-12) == pytest.approx(epsilon, abs=2e-3)
    assert epsilon_at_least(50, 100, 100, 0.0) == 0.0  # as a coin would guess
    assert epsilon_at_least(100, 100, 100, 0.0) == pytest.approx(np.log(1 / (0.05 ** (-1 / 100) - 1)), abs=2e-3)


def test_bound_holds_where_guesses_are_as_good_as_epsilon_allows():
    """Each canary answers for itself with the best that ε allows: randomised response."""
    rng, epsilon, above = np.random.default_rng(0), 1.0, 0
    for _ in range(50):
        right = rng.binomial(150, 1 / (1 + np.exp(-epsilon)))
        above += epsilon_at_least(int(right), 150, 150, 0.0) > epsilon
    assert above <= 7  # 5 % of 50 are 2.5
