from __future__ import annotations

import platform

import pytest

from histodistill.training.benchmarks import freed_memory as script
from histodistill.training.benchmarks import input_path
from histodistill.training.running.errors import InputError
from histodistill.training.running.files import read_json


@pytest.fixture(autouse=True)
def nothing_is_set(monkeypatch):
    for name in ("GLIBC_TUNABLES", "MALLOC_ARENA_MAX"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc alone gives memory back like this")
def test_trainings_in_both_ways(run_main, least_preset, tmp_path, monkeypatch, capsys):
    times, ways = [], []
    monkeypatch.setattr(input_path, "perf_counter", lambda: times.append(1) or float(len(times)))
    for name in ("free_as_by_default", "keep_freed_memory"):
        monkeypatch.setattr(script, name, lambda name=name: ways.append(name) or True)
    run_main(
        script, "--image-size", 16, "--preset", least_preset, "--mixed-precision", "no", "--steps", 1, "--rounds", 2,
        "--output", tmp_path / "figures.json",
    )  # fmt: skip
    figures = read_json(tmp_path / "figures.json")["figures"]
    each = {arm: {"per_second": 1, "ratio": 1} for arm in ("given back", "kept")}  # a round takes 1 s by this clock
    assert figures == dict.fromkeys(("autoencoder", "diffusion", "classifier"), each)
    # Once to see that it can be done; then, of each training, three rounds with each way.
    assert ways.count("keep_freed_memory") == 1 + 9 and ways.count("free_as_by_default") == 9
    assert "classifier                kept        1.00   1.000" in capsys.readouterr().out


def test_memory_that_others_manage(monkeypatch):
    monkeypatch.setenv("MALLOC_ARENA_MAX", "2")
    with pytest.raises(InputError, match="memory is not ours to keep here"):
        script.run(script.FreedMemoryConfig())
