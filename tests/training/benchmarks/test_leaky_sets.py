from __future__ import annotations

import json

import pytest

from histodistill.training.benchmarks.leaky_sets import LeakySetsConfig, run
from histodistill.training.running.errors import InputError


def test_a_set_of_tiles_that_were_seen_fails_and_an_innocent_one_need_not(tmp_path, capsys):
    output = tmp_path / "verdicts.json"
    found = run(LeakySetsConfig(data="phantom", sets=1, tiles=60, validation=60, images=20, share=1.0, output=output))
    assert [verdict["leaky"] for verdict in found] == [False, True]
    innocent, leaky = found
    assert not leaky["passed"] and "copies" in leaky["failed"]
    assert leaky["num_left_out"] >= 10 > 5 >= innocent["num_left_out"]
    assert json.loads(output.read_text()) == found
    assert "0 of 1 leaky sets pass" in capsys.readouterr().out


def test_too_many_are_refused():
    with pytest.raises(InputError, match=r"images=\d+ is out of range: there are \d+ test tiles"):
        run(LeakySetsConfig(data="phantom", images=10**6))
