"""Figures of README and docs are those that runs have measured: see `docs/results.py`."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from xml.etree import ElementTree

import pytest
from audits import add_audit

from histodistill.training.running.files import write_json


ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def results():
    spec = importlib.util.spec_from_file_location("results", ROOT / "docs" / "results.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def make_result(**accuracies: float) -> dict:
    rows = {"soft": "kernel_herding@soft_label_weight=1", "labels": "kernel_herding", "random": "real_random"}
    table = [
        {
            "row": rows.get(name, "real_all"), "architecture": "convnet", "size": None if name == "all" else 50,
            "num_train": 850 if name == "all" else 450, "steps": 600, "seeds": [0, 1],
            "accuracy": {"mean": accuracy, "std": 0.0123},
        }
        for name, accuracy in accuracies.items()
    ]  # fmt: skip
    return {
        "command": "histodistill distill --data x", "hardware": "one core", "preset": "cpu", "image_size": 28,
        "class_names": list("abcdefghi"), "num_tiles": {"train": 766, "held_out": 84, "test": 359},
        "num_distilled": 900, "seconds": {"autoencoder": 60.0, "denoiser": 3601.0}, "peak_memory": 1_500_000_000,
        "disk": 20_000_000, "shared": {"distilled": 2_000_000}, "table": table,
        "audit": {"copies": 0, "membership_auc": [0.55, 0.46, 0.64]},
    }  # fmt: skip


def test_pages_say_what_was_measured(results):
    collected = results.read_results()
    assert results.FEATURED in collected
    for path in results.pages():
        text = path.read_text(encoding="utf-8")
        assert results.filled_in(text, collected) == text, f"{path}: run python docs/results.py write"


def test_a_page_is_filled_in_again_and_again(results):
    mark = "<!-- results: {} -->\n{}<!-- /results -->\n".format
    page = "before\n" + mark("times", "old\n") + "between\n" + mark("curve", "")
    collected = {results.FEATURED: make_result(soft=0.81, labels=0.75, random=0.76, all=0.8)}
    once = results.filled_in(page, collected)
    assert "old" not in once and "\nbetween\n" in once
    assert "| 850 of 28 px in 9 classes" in once.replace("`pathmnist_1k`: ", "")
    assert "1 h 01 min" in once and "1.5 GB" in once
    assert "| 50 | 0.810 ± 0.012 | 0.750 ± 0.012 | 0.760 ± 0.012 |" in once
    assert results.filled_in(once, collected) == once


def test_the_three_numbers(results):
    text = results.three_numbers({results.FEATURED: make_result(soft=0.81, labels=0.75, random=0.76, all=0.8)})
    assert "**0.810 against 0.800**" in text and "0.750 by labels alone; means of 2 seeds" in text
    assert "**0 copies**" in text and "0.55 [0.46, 0.64]" in text
    assert "**2.0 MB**" in text and "100 images of each of 9 classes" in text


def test_the_chart_is_an_image_that_follows_dark_mode(results, tmp_path):
    result = make_result(soft=0.81, labels=0.75, random=0.76, all=0.8)
    for name in ("one.svg", "two.svg"):
        results.draw_curve(result, tmp_path / name)
    text = (tmp_path / "one.svg").read_text()
    assert text == (tmp_path / "two.svg").read_text()
    assert ElementTree.fromstring(text).tag.endswith("svg") and "prefers-color-scheme: dark" in text


def test_nothing_is_shown_of_a_run_that_did_not_pass(results, tmp_path):
    with pytest.raises(SystemExit, match="has no audit of this version"):
        results.collect(tmp_path, "one core", "command")
    write_json(tmp_path / "distilled" / "stage.json", {})
    add_audit(tmp_path, copies=2)
    with pytest.raises(SystemExit, match="did not pass its audit"):
        results.collect(tmp_path, "one core", "command")
    add_audit(tmp_path)
    write_json(tmp_path / "distilled" / "stage.json", {"other": "than audited"})
    with pytest.raises(SystemExit, match="did not pass its audit"):
        results.collect(tmp_path, "one core", "command")
