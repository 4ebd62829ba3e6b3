from __future__ import annotations

import numpy as np
import pytest
import torch

from histodistill.training.benchmarks import input_path as script
from histodistill.training.running.files import read_json


def test_steps_through_few_tiles_and_many(run_main, least_preset, tmp_path, monkeypatch, capsys):
    shown = []
    monkeypatch.setattr(script, "perf_counter", lambda: shown.append(1) or float(len(shown)))
    run_main(
        script, "--tiles", 60, 20, "--image-size", 16, "--preset", least_preset, "--mixed-precision", "no",
        "--steps", 1, "--rounds", 2, "--output", tmp_path / "figures.json",
    )  # fmt: skip
    result = read_json(tmp_path / "figures.json")
    trainings = ("autoencoder", "diffusion", "classifier")
    assert list(result["figures"]) == [f"{kind}, {what}" for kind in trainings for what in ("batches", "steps")]
    for name, rows in result["figures"].items():
        # A round takes 1 s by this clock.
        per_round = 10 if name.endswith("batches") else 1
        assert rows == {"20": {"per_second": per_round, "ratio": 1}, "60": {"per_second": per_round, "ratio": 1}}
    assert result["settings"]["tiles"] == [60, 20] and result["device"] == "cpu"
    assert "classifier, steps                 60           1.0   1.000" in capsys.readouterr().out


def test_fewer_tiles_are_the_first_of_more(tmp_path):
    config = script.InputPathConfig(tiles=(30, 10), image_size=16)
    sources = script.make_sources(config, tmp_path / "tiles.npy")
    assert list(sources) == [10, 30]
    few, many = (source.split("train") for source in sources.values())
    assert (len(few), len(many)) == (10, 30)
    np.testing.assert_array_equal(few.images[:], many.images[:10])
    np.testing.assert_array_equal(few.labels, many.labels[:10])
    assert len(np.unique(many.images[:], axis=0)) == 30
    assert isinstance(many.images.base, np.memmap)


def test_ratio_is_that_of_speeds(monkeypatch):
    now, order = [0.0], []

    def stepper(seconds):
        def step():
            now[0] += seconds
            order.append(seconds)

        return step

    monkeypatch.setattr(script, "perf_counter", lambda: now[0])
    found = script.alternate({10: stepper(1.0), 1000: stepper(1.25)}, 2, 3, torch.device("cpu"))
    assert found[10] == {"per_second": 1, "ratio": 1}
    assert found[1000] == pytest.approx({"per_second": 0.8, "ratio": 0.8})
    assert order == [1.0, 1.0, 1.25, 1.25, 1.25, 1.25, 1.0, 1.0] * 2  # each is the first in turn
