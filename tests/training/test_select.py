from __future__ import annotations

import json
import shutil
import warnings

import numpy as np
import pytest
from datasets import ClassLabel, Image, List, Value, load_dataset

from histodistill.selection import DegenerateGraphWarning, DistillSelector
from histodistill.training import select as script
from histodistill.training.classifiers import Classifier
from histodistill.training.data import load_tiles
from histodistill.training.errors import InputError
from histodistill.training.files import read_json, write_json
from histodistill.training.image_dataset import read_image_dataset
from histodistill.training.options import run_script
from histodistill.training.scoring import embed, predict_proba
from histodistill.training.stages import Stage


@pytest.fixture(scope="module")
def select_argv(tiny_pool, tiny_teacher) -> list[str]:
    return ["--pool", str(tiny_pool), "--teacher", str(tiny_teacher), "--n-per-class", "2", "--n-neighbors", "3"]


@pytest.fixture(scope="module")
def selected(tmp_path_factory, run_main, select_argv):
    folder = tmp_path_factory.mktemp("selected")
    run_main(script, *select_argv, "--output", folder)
    return folder


def test_distilled_set_loads_with_its_columns(selected, tiny_npz):
    names = load_tiles(tiny_npz).class_names
    dataset = load_dataset(str(selected / "distilled"), split="train")
    assert dict(dataset.features) == {
        "image": Image(),
        "label": ClassLabel(names=names),
        "soft_label": List(Value("float32"), length=5),
        "seed": Value("int64"),
        "community": Value("int64"),
        "modular_centrality": Value("float64"),
    }
    assert np.bincount(dataset["label"]).tolist() == [2] * 5
    assert len(set(dataset["seed"])) == 10


def test_distilled_images_are_those_that_the_selector_chose(selected, tiny_pool, tiny_teacher):
    pool_images, pool, _ = read_image_dataset(tiny_pool)
    images, distilled, _ = read_image_dataset(selected / "distilled")
    selector = DistillSelector.from_pretrained(selected / "selector")
    chosen = selector.selected_indices_
    np.testing.assert_array_equal(images, pool_images[chosen])
    for name in ("label", "seed"):
        np.testing.assert_array_equal(distilled[name], pool[name][chosen])
    np.testing.assert_array_equal(distilled["community"], selector.module_labels_[chosen])
    np.testing.assert_array_equal(distilled["modular_centrality"], selector.modular_centrality_[chosen])
    assert (selector.n_per_class, selector.n_neighbors) == (2, 3)

    teacher = Classifier.from_pretrained(tiny_teacher)
    np.testing.assert_allclose(distilled["soft_label"], predict_proba(teacher, images), atol=1e-5)
    np.testing.assert_allclose(distilled["soft_label"].sum(axis=1), 1, atol=1e-5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DegenerateGraphWarning)
        again = DistillSelector(n_per_class=2, n_neighbors=3).fit(embed(teacher, pool_images), pool["label"])
    np.testing.assert_array_equal(again.selected_indices_, chosen)


def test_record_and_card(selected, tiny_npz):
    names = load_tiles(tiny_npz).class_names
    record = read_json(selected / "distilled" / "stage.json")
    assert (record["complete"], record["num_images"]) == (True, 10)
    assert list(record["community_sizes"]) == names
    for sizes in record["community_sizes"].values():
        assert sum(sizes) == 6
        assert sizes == sorted(sizes, reverse=True)
    assert all(note.startswith("class ") for note in record["warnings"])
    card = (selected / "distilled" / "README.md").read_text()
    assert card.startswith("---\n")
    assert all(name in card for name in names)
    assert "tiny" in card  # the tiles that the teacher was trained on
    assert {path.name for path in selected.iterdir()} == {"distilled", "selector"}


def test_baselines_have_no_communities(tmp_path, run_main, select_argv):
    run_main(script, *select_argv, "--selector", "random", "--output", tmp_path)
    _, distilled, _ = read_image_dataset(tmp_path / "distilled")
    assert np.bincount(distilled["label"]).tolist() == [2] * 5
    assert not distilled["community"].any()
    assert not distilled["modular_centrality"].any()


def test_finished_selection_is_left_alone(selected, run_main, select_argv, capsys):
    before = {path: path.stat().st_mtime_ns for path in selected.rglob("*")}
    run_main(script, *select_argv, "--output", selected)
    assert "already finished" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in selected.rglob("*")} == before


def test_other_settings_in_the_same_folder_are_refused(selected, run_main, select_argv):
    before = {path: path.stat().st_mtime_ns for path in selected.rglob("*")}
    with pytest.raises(InputError, match=r"was made with other settings \(n_per_class was 2 and is now 3\)"):
        run_main(script, *select_argv, "--n-per-class", 3, "--output", selected)
    assert {path: path.stat().st_mtime_ns for path in selected.rglob("*")} == before


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--n-per-class", "7"], "class 0 has 6 images but n_per_class=7: lower n_per_class or generate more"),
        (["--n-per-class", "0"], "n_per_class=0 is out of range"),
        (["--n-neighbors", "0"], "n_neighbors=0 is out of range"),
        (["--markov-time", "0"], "markov_time=0.0 is not valid: it must be a finite number above 0"),
        (["--pool", "/no/such"], "/no/such holds no finished pool: run histodistill generate first"),
        (["--teacher", "/no/such"], "/no/such holds no finished classifier: run train_classifier"),
        (["--embedder", "/no/such"], "--embedder /no/such cannot be loaded"),
    ],
)
def test_bad_input_ends_with_one_sentence(tmp_path, select_argv, argv, message, capsys):
    output = tmp_path / "output"
    with pytest.raises(SystemExit) as error:
        run_script(script.parse_args, script.main, [*select_argv, "--output", str(output), *argv])
    assert error.value.code == 2
    captured = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert len(captured) == 1
    assert captured[0].startswith(f"error: {message}")
    assert not output.exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"class_names": ["a", "b"], "image_size": 16}, r"knows other classes than the pool \(a, b and not "),
        ({"image_size": 8}, "images are 16 by 16 px and the classifier takes 8 px"),
    ],
)
def test_teacher_of_other_tiles(tmp_path, tiny_npz, run_main, select_argv, options, message):
    options = {"class_names": load_tiles(tiny_npz).class_names, "width": 8, **options}
    Classifier(**options).save_pretrained(tmp_path / "teacher")
    write_json(tmp_path / "teacher" / "results.json", {"data": {"train": "other"}})
    Stage(tmp_path / "teacher", {}).finish()
    with pytest.raises(InputError, match=message):
        run_main(script, *select_argv, "--teacher", tmp_path / "teacher", "--output", tmp_path / "output")
    assert not (tmp_path / "output").exists()


def test_teacher_that_is_no_classifier(tmp_path, tiny_autoencoder, run_main, select_argv):
    with pytest.raises(InputError, match="is no classifier: give a folder that train_classifier left"):
        run_main(script, *select_argv, "--teacher", tiny_autoencoder, "--output", tmp_path / "output")
    assert not (tmp_path / "output").exists()


def test_unfinished_pool_is_refused(tmp_path, tiny_pool, run_main, select_argv):
    shutil.copytree(tiny_pool, tmp_path / "pool")
    record = read_json(tmp_path / "pool" / "stage.json")
    (tmp_path / "pool" / "stage.json").write_text(json.dumps({**record, "complete": False}))
    with pytest.raises(InputError, match="holds no finished pool: run histodistill generate first"):
        run_main(script, *select_argv, "--pool", tmp_path / "pool", "--output", tmp_path / "output")
    assert not (tmp_path / "output").exists()


def test_make_selector_takes_the_options(select_argv):
    argv = [*select_argv, "--output", "out", "--seed", "5", "--markov-time", "2", "--num-trials", "3"]
    argv += ["--quota", "uniform", "--weighting", "cosine"]
    assert script.make_selector(script.parse_args(argv)).get_params() == {
        "n_per_class": 2,
        "n_neighbors": 3,
        "weighting": "cosine",
        "markov_time": 2.0,
        "num_trials": 3,
        "quota": "uniform",
        "random_state": 5,
    }
