"""benchmark.json as cards take it."""

from __future__ import annotations

import json

from histodistill.training.tables.benchmark_record import benchmark_rows
from histodistill.training.tables.results_summary import summarise


def test_rows_of_the_results_table_as_cards_take_them(tmp_path):
    def cell(row, size, seed, accuracy):
        scores = {"accuracy": accuracy, "auc": 0.5, "f1": 0.5}
        about = {"architecture": "convnet", "row": row, "size": size, "seed": seed, "num_train": 9}
        return {**about, "config": {"max_train_steps": 3, "batch_size": 8}, "validation": scores, "test": scores}

    rows = {
        ("real_all@stain_strength=0", None): 0.9,
        ("random", 2): 0.5,
        ("kmeans@loss=joint", 2): 0.75,
        ("peer:dm:steps=9", 2): 0.625,
        ("guided:modes:stop=0.25@loss=joint", 2): 0.5,
        ("random", 3): 1,
        ("random@stain_strength=0", 2): 0.25,
        ("kmeans@stain_strength=0", 2): 0.375,
    }
    cells = [cell(*place, seed, accuracy) for place, accuracy in rows.items() for seed in (0, 1)]
    data = json.dumps({"rows": summarise(cells)}).encode()
    found = benchmark_rows(tmp_path, {"benchmark/benchmark.json": data}, 2)
    assert [(row["title"], row["size"], row["accuracy"]["mean"]) for row in found] == [
        ("all real training tiles, stain_strength=0", None, 0.9),
        ("pool images chosen by random", 2, 0.5),
        ("pool images chosen by kmeans, loss=joint", 2, 0.75),
        ("images that peer:dm:steps=9 makes of real tiles", 2, 0.625),
        ("images sampled by guided:modes:stop=0.25, loss=joint", 2, 0.5),
        ("pool images chosen by random, stain_strength=0", 2, 0.25),
        ("pool images chosen by kmeans, stain_strength=0", 2, 0.375),
    ]
    assert {row["steps"] for row in found} == {"3 of 8"}
    # A table of before may not say how many tiles each step took, or not even how many steps.
    for old, text in ((("batch_size",), "3"), (("batch_size", "steps"), "–")):
        rows_before = [{key: row[key] for key in row if key not in old} for row in json.loads(data)["rows"]]
        before = benchmark_rows(tmp_path, {"benchmark/benchmark.json": json.dumps({"rows": rows_before}).encode()}, 2)
        assert before == [{**row, "steps": text} for row in found]
    # Over random images with the same recipe, where that was trained.
    assert [row["margin"] and row["margin"]["mean"] for row in found] == [None, None, 0.25, 0.125, 0.0, None, 0.125]
    assert benchmark_rows(tmp_path, {}, 2) == []
