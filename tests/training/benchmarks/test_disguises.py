from __future__ import annotations

import json

import pytest

from histodistill.selection.disguises import DISGUISES
from histodistill.training.benchmarks.disguises import DisguisesConfig, run
from histodistill.training.running.errors import InputError


def test_a_row_for_each_disguise(tmp_path, capsys):
    config = DisguisesConfig(data="phantom", number=3, tiles=40, innocent=5, output=tmp_path / "figures.json")
    rows = run(config)
    assert [row["disguise"] for row in rows] == ["none: innocent tiles", *DISGUISES]
    found = {row["disguise"]: row["found"] for row in rows}
    assert found["negative"] == 1 and found["none: innocent tiles"] <= 0.2
    assert set(rows[0]["by"]) == {"structure", "parts", "pixels", "untrained"}
    assert all(row["found"] >= max(row["by"].values()) for row in rows)
    assert json.loads(config.output.read_text()) == rows
    assert len(capsys.readouterr().out.splitlines()) >= len(rows)


def test_too_few_tiles_are_refused():
    with pytest.raises(InputError, match="number=50 is out of range"):
        run(DisguisesConfig(data="phantom", number=50, tiles=40))
