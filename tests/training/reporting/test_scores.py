from __future__ import annotations

from typing import Any

from histodistill.training.reporting.scores import recoveries, score_tables
from histodistill.training.reporting.summary import tile_lines
from histodistill.training.running.files import write_json


def make_row(row: str, num_train: int, accuracy: float | None, seeds: tuple[int, ...] = (0,)) -> dict[str, Any]:
    figures = {name: {"mean": accuracy, "std": None, "values": []} for name in ("accuracy", "auc", "f1")}
    return {
        "row": row, "title": row, "architecture": "convnet", "num_train": num_train, "seeds": list(seeds), **figures,
    }  # fmt: skip


def make_results(*rows: dict[str, Any]) -> dict[str, Any]:
    return {"rows": list(rows), "recovery_row": "distilled_ce", "recovery": {}}


REAL = make_row("real_all", 1500, 0.934)


def test_the_headline_is_the_recommended_way_beside_random_real_tiles():
    results = make_results(
        REAL, make_row("real_random", 100, 0.924), make_row("distilled_ce", 100, 0.886),
        make_row("distilled_soft", 100, 0.925),
    )  # fmt: skip
    (item,) = recoveries(results)
    assert item["value"] == 0.925 / 0.934
    assert item["sentence"] == (
        "ConvNet trained on the 100 distilled images with the teacher's soft labels gets 0.925 of the test tiles "
        "right, 99.0% of what all 1,500 real training tiles give (0.934); 100 random real tiles give 0.924, but real "
        "tiles may not be shared (one seed: another may differ by some points)."
    )
    own = [row["title"] for row in score_tables(results)[0]["rows"] if row["own"]]
    assert own == ["distilled_soft"]


def test_without_soft_labels_the_labels_stand_for_the_set():
    results = make_results(REAL, make_row("distilled_ce", 100, 0.886, (0, 1, 2)))
    (item,) = recoveries(results)
    assert " by their labels gets 0.886 of " in item["sentence"] and "random" not in item["sentence"]
    assert item["sentence"].endswith("(mean of 3 seeds).")
    assert [row["own"] for row in score_tables(results)[0]["rows"]] == [False, True]


def test_no_headline_without_what_it_compares():
    for rows in (
        [REAL],
        [make_row("distilled_soft", 100, 0.9)],
        [REAL, make_row("distilled_soft", 100, None)],
        [make_row("real_all", 1500, 0.0), make_row("distilled_soft", 100, 0.5)],
    ):
        assert recoveries(make_results(*rows)) == []


def test_the_numbers_of_real_tiles_are_reconciled(tmp_path):
    results = make_results(REAL)
    assert tile_lines(tmp_path, results) == []  # steps that were run one by one
    for counts, expected in (
        ({"train": 1350, "held_out": 150}, 1),
        ({"train": 1500}, 0),
        ({"train": 9, "held_out": 1}, 0),
    ):
        write_json(tmp_path / "run.json", {"format": 1, "num_tiles": counts})
        assert len(tile_lines(tmp_path, results)) == expected
    write_json(tmp_path / "run.json", {"format": 1, "num_tiles": {"train": 1350, "held_out": 150}})
    assert tile_lines(tmp_path, results) == [
        "All 1,500 real training tiles are the 1,350 that the models learned from and the 150 that were held out for "
        "the privacy audit."
    ]
