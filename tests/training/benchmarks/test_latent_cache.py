from __future__ import annotations

from histodistill.training.benchmarks import input_path
from histodistill.training.benchmarks import latent_cache as script
from histodistill.training.engine import loop
from histodistill.training.running.files import read_json


def test_a_training_with_the_cache_and_one_without(run_main, least_preset, tmp_path, monkeypatch, capsys):
    times, read = [], []
    monkeypatch.setattr(input_path, "perf_counter", lambda: times.append(1) or float(len(times)))
    ready_for = loop.ready_for
    monkeypatch.setattr(
        loop, "ready_for", lambda device, values: read.append(values.dtype) or ready_for(device, values)
    )
    run_main(
        script, "--tiles", 20, "--image-size", 16, "--preset", least_preset, "--mixed-precision", "no",
        "--steps", 1, "--rounds", 2, "--output", tmp_path / "figures.json",
    )  # fmt: skip
    figures = read_json(tmp_path / "figures.json")["figures"]
    for what, per_round in (("inputs", 10), ("steps", 1)):  # a round takes 1 s by this clock
        assert figures[what] == {arm: {"per_second": per_round, "ratio": 1} for arm in ("off", "float16")}
    assert figures["encoding"]["per_second"] > 0
    # Pixels are read by the training without the cache alone.
    assert len(read) == 3 * (10 + 1)
    assert "steps                        float16           1.0   1.000" in capsys.readouterr().out
