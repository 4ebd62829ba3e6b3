from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from accelerate.state import AcceleratorState

from histodistill.hub_cards.tables import encode_soft_label_views
from histodistill.selection.real_tiles import LabelledImages, RealTiles
from histodistill.training.distillation import select as select_script
from histodistill.training.evaluation import audit as script
from histodistill.training.evaluation import label_attack
from histodistill.training.evaluation.audit import AuditConfig
from histodistill.training.evaluation.label_attack import attack_labels, labelled_set, summary_line
from histodistill.training.running.errors import InputError
from histodistill.training.running.files import read_json


@pytest.fixture(autouse=True)
def _no_state_is_left():
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def leaky_run(leaks: bool) -> SimpleNamespace:
    """A run whose images are its training tiles, all noise, of which soft labels tell the classes where they leak."""
    rng = np.random.default_rng(0)
    tiles = rng.integers(0, 256, (60, 8, 8, 3), dtype=np.uint8)
    labels = np.arange(60) % 2
    train, held_out = (LabelledImages(tiles[rows], labels[rows]) for rows in (slice(30), slice(30, 60)))
    soft = np.eye(2)[labels[:30]] if leaks else np.full((30, 2), 0.5)
    columns = {
        "label": rng.permutation(np.arange(30) % 2),  # labels say nothing of what an image shows
        "soft_label": soft.astype(np.float32),
    }
    return SimpleNamespace(
        real=RealTiles(train, held_out, held_out),
        published=LabelledImages(tiles[:30], columns["label"]),
        contents=SimpleNamespace(distilled=SimpleNamespace(table=SimpleNamespace(columns=columns))),
        class_names=["a", "b"],
        facts={"data": "noise", "num_tiles": {}},
        source=SimpleNamespace(name="noise", group_kind=None),
    )


RECIPE = {"width": 32, "max_train_steps": 150, "max_shift": 0, "stain_strength": 0.0, "learning_rate": 1e-2}


def test_labels_that_give_training_tiles_away_are_seen():
    found = attack_labels(leaky_run(leaks=True), 1, 100, seed=0, **RECIPE)["auc"]
    assert found["by_soft_labels"]["value"] > 0.7 and found["difference"]["low"] > 0
    assert found["by_labels"]["low"] < 0.5 < found["by_labels"]["high"]
    record = attack_labels(leaky_run(leaks=False), 1, 100, seed=0, **RECIPE)
    difference = record["auc"]["difference"]
    assert difference["low"] <= 0 <= difference["high"]
    assert "no more than chance may" in summary_line(record)


def test_a_set_with_and_without_soft_labels():
    images = np.zeros((4, 8, 8, 3), np.uint8)
    columns = {"label": np.arange(4) % 2, "soft_label": np.full((4, 2), 0.5, np.float32)}
    assert labelled_set(columns, images).label_views is None
    codes = encode_soft_label_views(np.full((4, 3, 2), 0.5))
    views = labelled_set({**columns, "soft_label_views": codes, "rank": np.array([1, 1, 2, 2])}, images).label_views
    np.testing.assert_array_equal(views.codes, codes)
    assert views.ranks.tolist() == [1, 1, 2, 2]
    with pytest.raises(InputError, match="the distilled set has no soft labels: leave label_attack out"):
        labelled_set({"label": columns["label"]}, images)


def test_the_command_leaves_its_figures(tmp_path, tiny_pool, tiny_teacher, tiny_npz, run_main, capsys, monkeypatch):
    monkeypatch.setattr(label_attack, "STEPS", 2)
    for name in ("autoencoder", "pipeline", "pool"):
        (tmp_path / name).symlink_to(tiny_pool.with_name(name))
    argv = ["--pool", tiny_pool, "--teacher", tiny_teacher, "--n-per-class", 2, "--soft-label-views", 4]
    run_main(select_script, *argv, "--output", tmp_path)
    run_main(script, tmp_path, "--data", tiny_npz, "--label-attack", 2, "--weight-tiles", 12)
    record = read_json(tmp_path / "audit_labels.json")
    assert (record["num_training"], record["num_held_out"], record["num_views"]) == (12, 12, 4)
    assert (record["num_students"], record["unit"], record["held_out_at_random"]) == (2, "tile", False)
    assert record["config"]["soft_label_views"] == 4 and set(record["auc"]) == {
        "by_labels", "by_soft_labels", "difference",
    }  # fmt: skip
    out = capsys.readouterr().out
    assert summary_line(record) in out and "by soft labels of 4 views" in out
    assert not (tmp_path / "audit.json").exists()
    with pytest.raises(InputError, match="label_attack=1 is about the run's own set: leave merged out"):
        AuditConfig(run=tmp_path, data="phantom", label_attack=1, merged=tmp_path)
