from __future__ import annotations

import json

import pytest

from histodistill.training.reporting.run_facts import RunRecords, benchmark_rows, privacy_facts
from histodistill.training.tables.results_summary import summarise


def pipeline_record(**changes) -> dict:
    own = {"epsilon": 2.0, "delta": 1e-5}
    return {"privacy": {**own, "autoencoder": own, "total": {"epsilon": 4.0, "delta": 2e-5}, **changes}}


def test_without_private_training_there_is_nothing_to_say():
    assert privacy_facts({}, {}) is None
    assert privacy_facts({"settings": {"dp_epsilon": None}}, {"settings": {"drop_copies": True}}) is None


def test_what_is_told_is_the_total():
    facts = privacy_facts(pipeline_record(), {})
    assert (facts.epsilon, facts.delta, facts.public_autoencoder) == (4.0, 2e-5, False)
    assert privacy_facts(pipeline_record(autoencoder="public"), {}).public_autoencoder


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"drop_copies": False, "typical_share": None, "min_probability": 0.0, "embedder": "untrained"}, []),
        ({"drop_copies": True}, ["too near to a real tile"]),
        ({"typical_share": 0.9, "min_probability": 0.5}, ["too far from real tiles", "went by a classifier"]),
        ({"embedder": "teacher"}, ["if what embedded them was trained on the real tiles"]),
    ],
)
def test_what_looked_at_real_tiles_is_told(settings, words):
    first, *others = privacy_facts(pipeline_record(), {"settings": settings}).uncovered
    assert first.startswith("The soft labels of the distilled set")
    assert len(others) == len(words)
    assert all(word in sentence for word, sentence in zip(words, others, strict=True))


def test_rows_of_the_results_table_as_cards_take_them(tmp_path):
    def cell(row, size, seed, accuracy):
        scores = {"accuracy": accuracy, "auc": 0.5, "f1": 0.5}
        about = {"architecture": "convnet", "row": row, "size": size, "seed": seed, "num_train": 9}
        return {**about, "config": {"max_train_steps": 3}, "validation": scores, "test": scores}

    rows = {
        ("real_all@stain_strength=0", None): 0.9,
        ("random", 2): 0.5,
        ("kmeans@loss=joint", 2): 0.75,
        ("random", 3): 1,
        ("random@stain_strength=0", 2): 0.25,
        ("kmeans@stain_strength=0", 2): 0.375,
    }
    cells = [cell(*place, seed, accuracy) for place, accuracy in rows.items() for seed in (0, 1)]
    data = json.dumps({"rows": summarise(cells)}).encode()
    found = benchmark_rows(RunRecords.read(tmp_path, {"benchmark/benchmark.json": data}), 2)
    assert [(row["title"], row["size"], row["accuracy"]["mean"]) for row in found] == [
        ("all real training tiles, stain_strength=0", None, 0.9),
        ("pool images chosen by random", 2, 0.5),
        ("pool images chosen by kmeans, loss=joint", 2, 0.75),
        ("pool images chosen by random, stain_strength=0", 2, 0.25),
        ("pool images chosen by kmeans, stain_strength=0", 2, 0.375),
    ]
    # Over random images with the same recipe, where that was trained.
    assert [row["margin"] and row["margin"]["mean"] for row in found] == [None, None, 0.25, None, 0.125]
    assert benchmark_rows(RunRecords.read(tmp_path, {}), 2) == []
