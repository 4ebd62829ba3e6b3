from __future__ import annotations

import json

import numpy as np
import pytest

from histodistill.selection.disguises import DISGUISES
from histodistill.training.benchmarks.disguises import FALSE_ALARMS, DisguisesConfig, run, thresholds_of
from histodistill.training.running.errors import InputError


def test_a_row_for_each_disguise(tmp_path, capsys):
    config = DisguisesConfig(data="phantom", number=3, tiles=40, innocent=5, output=tmp_path / "figures.json")
    rows = run(config)
    assert [row["disguise"] for row in rows] == ["none: innocent tiles", *DISGUISES]
    found = {row["disguise"]: row["found"] for row in rows}
    assert found["negative"] == 1 and found["none: innocent tiles"] <= 0.2
    assert set(rows[0]["by"]) == {"structure", "parts", "pixels", "untrained"}
    assert all(row["found"] >= max(row["by"].values()) for row in rows)
    # Of five innocent tiles not one may be found at a rate of 5 % or less.
    assert rows[0]["found_at"] == [0] * len(FALSE_ALARMS)
    assert rows[1 + list(DISGUISES).index("negative")]["found_at"] == [1] * len(FALSE_ALARMS)
    assert json.loads(config.output.read_text()) == rows
    assert len(capsys.readouterr().out.splitlines()) >= len(rows)


def test_thresholds_leave_so_many_innocent_tiles_below_them():
    innocent = np.random.default_rng(0).permutation(1000) / 1000
    thresholds = thresholds_of(innocent)
    assert thresholds.tolist() == list(FALSE_ALARMS)
    assert [(innocent < threshold).mean() for threshold in thresholds] == list(FALSE_ALARMS)
    # Of 40 tiles one is more than 2 %.
    assert [int((innocent[:40] < threshold).sum()) for threshold in thresholds_of(innocent[:40])] == [0, 0, 0, 0, 2]


def test_too_few_tiles_are_refused():
    with pytest.raises(InputError, match="number=50 is out of range"):
        run(DisguisesConfig(data="phantom", number=50, tiles=40))
