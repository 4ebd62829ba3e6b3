from __future__ import annotations

import json

import numpy as np
import pytest

from histodistill.selection.planting import MUST_FIND
from histodistill.training.benchmarks import audit_speed as script
from histodistill.training.data.sources import load_tiles
from histodistill.training.running.files import read_json


def test_measures_the_whole_audit(tiny_pool, tiny_npz, run_main, tmp_path, capsys):
    sizes = ["--num-images", 12, "--num-tiles", 100, "--plant", 2, "--weight-tiles", 8]
    run_main(script, tiny_pool.parent, "--data", tiny_npz, *sizes, "--output", tmp_path / "figures.json")
    figures = read_json(tmp_path / "figures.json")
    assert json.loads(capsys.readouterr().out.partition("{")[2].join(["{", ""])) == figures
    seconds = figures["seconds"]
    assert 0 < seconds["weights"] < seconds["total"] and seconds["images"] > 0 and seconds["repeats"] > 0
    assert figures["peak_memory_gib"] > 0.1
    assert set(figures["planted"]) == set(MUST_FIND) and figures["planted"]["exact"] == 1
    assert str(tmp_path) not in json.dumps(figures)


def test_blends_are_means_of_two_tiles(tiny_npz):
    train = load_tiles(tiny_npz).split("train")
    blends = script.blended(train, 5, np.random.default_rng(3))
    first, second = np.random.default_rng(3).integers(len(train), size=(2, 5))
    expected = (train.images[first].astype(int) + np.rot90(train.images[second], 2, axes=(1, 2))) // 2
    np.testing.assert_array_equal(blends.images, expected)
    np.testing.assert_array_equal(blends.labels, train.labels[first])


@pytest.mark.parametrize(("option", "rule"), [("--num-tiles=99", "at least 100"), ("--weight-tiles=1", "at least 2")])
def test_bad_sizes_are_one_sentence(option, rule, capsys):
    with pytest.raises(SystemExit):
        script.make_parser().read(["r", "--data", "d", option])
    assert rule in capsys.readouterr().err
