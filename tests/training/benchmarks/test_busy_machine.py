from __future__ import annotations

import json

from histodistill.training.benchmarks import busy_machine
from histodistill.training.benchmarks.busy_machine import BusyMachineConfig, run
from histodistill.training.running import threads


def test_a_row_for_each_policy(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(busy_machine, "POLICIES", {"passive": {"OMP_WAIT_POLICY": "PASSIVE"}})
    monkeypatch.setattr(threads, "usable_cores", lambda: 1)
    rows = run(BusyMachineConfig(seconds=0.05, repeats=1, image_size=8, output=tmp_path / "busy.json"))
    assert {row["policy"] for row in rows} == {"passive"} and rows[0]["of_usual"] == 1
    assert all(row["quiet"] > 0 and row["kept"] == row["busy"] / row["quiet"] for row in rows)
    assert json.loads((tmp_path / "busy.json").read_text()) == rows
    assert len(capsys.readouterr().out.splitlines()) == 2 + len(rows)
