"""The card in a run's own folder, which the audit makes anew."""

from __future__ import annotations

import shutil

import pytest
from audits import audit_of
from datasets import load_dataset
from loopback_hub.card_rules import card_errors

from histodistill.training.distillation.site_sets import read_card
from histodistill.training.evaluation.run_contents import RunFiles
from histodistill.training.evaluation.set_card import renew_card
from histodistill.training.running.files import read_json, write_json


@pytest.fixture
def run(tiny_run, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(tiny_run.folder, folder)
    return folder


def renew(run, **figures) -> str:
    files = RunFiles.read(run)
    renew_card(files, files.check(), audit_of(run, **figures))
    return (run / "distilled" / "README.md").read_text()


def test_distill_leaves_a_card_that_knows_verdict_and_scores(tiny_run):
    text = (tiny_run.folder / "distilled" / "README.md").read_text()
    passed = read_json(tiny_run.folder / "audit.json")["parts"]["distilled"]["passed"]
    assert ("The privacy audit passed" if passed else "The privacy audit did not pass") in text
    assert "no privacy audit has been made" not in text
    for row in read_json(tiny_run.folder / "results.json")["rows"]:
        assert f"| {row['title']} | {row['num_train']} | convnet | {row['accuracy']['mean']:.3f} |" in text


def test_the_folder_opens_and_tells_of_itself_as_before(run, tmp_path):
    path = run / "distilled" / "README.md"
    before = read_card(path)
    text = renew(run)
    assert card_errors(text, "dataset") == ([], [])
    assert read_card(path) == before
    rows = load_dataset(str(run / "distilled"), split="train", cache_dir=str(tmp_path / "cache"))
    assert rows.features["label"].names == read_json(run / "run.json")["class_names"]
    # What is not beside it, and where it is not yet, is not told of.
    assert "assets/" not in text and "huggingface.co" not in text and str(run) not in text
    assert 'load_dataset("path/to/this/folder", split="train")' in text


@pytest.mark.parametrize(
    ("copies", "words"), [(0, "**The privacy audit passed**"), (9, "**The privacy audit did not pass.**")]
)
def test_the_card_tells_the_verdict(run, copies, words):
    text = renew(run, copies=copies)
    assert words in text and f"{copies} of 15 images are copies of real tiles." in text
    assert "published although" not in text


def test_a_card_is_no_file_that_a_verdict_is_about(run):
    before = RunFiles.read(run).part_hashes()
    renew(run)
    assert RunFiles.read(run).part_hashes() == before


def test_a_run_that_no_card_can_tell_of_keeps_its_card(run, capsys):
    path = run / "distilled" / "README.md"
    before = path.read_text()
    record = read_json(run / "teacher" / "stage.json")
    write_json(run / "teacher" / "stage.json", record | {"test_accuracy": 7})
    assert renew(run) == before
    warned = capsys.readouterr().err
    assert (
        warned.startswith(f"warning: {path} does not tell what the audit found: ") and "teacher/stage.json" in warned
    )
