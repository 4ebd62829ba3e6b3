from __future__ import annotations

import dataclasses
import json
import shutil
import warnings

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Image, List, Value, load_dataset
from PIL import Image as PILImage
from transformers import ViTConfig, ViTModel

from histodistill.hub_cards.tables import round_significant, round_soft_labels
from histodistill.selection import (
    BaseSelector,
    DegenerateGraphWarning,
    DistillSelector,
    FixedViews,
    KCenterSelector,
    KernelHerdingSelector,
    RandomSelector,
    at_least,
    typical,
)
from histodistill.training.data.image_dataset import read_image_dataset
from histodistill.training.data.sources import load_tiles
from histodistill.training.distillation import distilled_set
from histodistill.training.distillation import select as script
from histodistill.training.distillation.community_discs import community_discs
from histodistill.training.distillation.distilled_set import count_communities
from histodistill.training.distillation.select import SelectConfig
from histodistill.training.models.classifiers import Classifier
from histodistill.training.models.embedders import embed_images, embed_pool
from histodistill.training.models.prediction import embed, predict_proba
from histodistill.training.running.errors import InputError
from histodistill.training.running.files import read_json, write_json
from histodistill.training.running.options import run_script
from histodistill.training.running.stages import Stage


@pytest.fixture(scope="module")
def select_argv(tiny_pool, tiny_teacher) -> list[str]:
    """Options of a selection by Infomap among the teacher's features."""
    argv = ["--pool", str(tiny_pool), "--teacher", str(tiny_teacher), "--n-per-class", "2", "--n-neighbors", "3"]
    return [*argv, "--selector", "infomap", "--embedder", "teacher"]


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
        "rank": Value("int64"),
    }
    assert np.bincount(dataset["label"]).tolist() == [2] * 5
    assert list(dataset["rank"]) == [1, 2] * 5
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
    np.testing.assert_array_equal(
        distilled["modular_centrality"], round_significant(selector.modular_centrality_[chosen])
    )
    assert (selector.n_per_class, selector.n_neighbors) == (2, 3)

    teacher = Classifier.from_pretrained(tiny_teacher)
    np.testing.assert_allclose(distilled["soft_label"], predict_proba(teacher, images), rtol=1e-3)
    np.testing.assert_array_equal(distilled["soft_label"], round_soft_labels(distilled["soft_label"]))
    np.testing.assert_allclose(distilled["soft_label"].sum(axis=1), 1, atol=6e-4)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DegenerateGraphWarning)
        again = DistillSelector(n_per_class=2, n_neighbors=3).fit(embed(teacher, pool_images), pool["label"])
    np.testing.assert_array_equal(again.selected_indices_, chosen)


def test_soft_labels_of_views_are_what_the_teacher_says_of_them(
    selected, tmp_path, run_main, select_argv, tiny_teacher
):
    run_main(script, *select_argv, "--soft-label-views", 7, "--output", tmp_path)
    images, columns, _ = read_image_dataset(tmp_path / "distilled")
    assert columns["soft_label_views"].shape == (10, 6, 5)
    teacher, views = Classifier.from_pretrained(tiny_teacher), FixedViews(columns["label"], columns["rank"], 5, 7)
    assert views.available.all()
    for view in range(1, 7):
        said = predict_proba(teacher, views.make(images, np.arange(10), np.full(10, view)))
        told = 2 ** (-columns["soft_label_views"][:, view - 1].astype(float) / 8)
        np.testing.assert_allclose(told, said.clip(2.5e-10), rtol=0.045)
    # All else is what it is without them, and one view is the set as it was.
    before_images, before, _ = read_image_dataset(selected / "distilled")
    np.testing.assert_array_equal(images, before_images)
    assert columns.keys() - before.keys() == {"soft_label_views"}
    assert all(np.array_equal(columns[name], before[name]) for name in before)
    card = (tmp_path / "distilled" / "README.md").read_text()
    assert "5 numbers of 8 bits for each of 6 views" in card and "FixedViews" in card
    assert read_json(tmp_path / "distilled" / "stage.json")["settings"]["soft_label_views"] == 7
    assert "soft_label_views" not in read_json(selected / "distilled" / "stage.json")["settings"]
    # A training reads them with the images.
    train = load_tiles(tmp_path / "distilled", hold_out_validation=False).split("train")
    np.testing.assert_array_equal(train.label_views.codes, columns["soft_label_views"])
    np.testing.assert_array_equal(train.label_views.ranks, columns["rank"])
    assert train.subset([3, 1]).label_views.ranks.tolist() == [2, 2]
    assert train.fingerprint() != dataclasses.replace(train, label_views=None).fingerprint()


@pytest.mark.parametrize("number", [0, 17])
def test_a_number_of_views_out_of_range_is_refused(tmp_path, number):
    with pytest.raises(InputError, match=r"soft_label_views=\d+ is out of range: it must be 1 to 16"):
        SelectConfig(pool=tmp_path, teacher=tmp_path, output=tmp_path, soft_label_views=number)


def test_record_and_card(selected, tiny_npz):
    names = load_tiles(tiny_npz).class_names
    record = read_json(selected / "distilled" / "stage.json")
    assert (record["complete"], record["num_images"]) == (True, 10)
    assert list(record["community_sizes"]) == names
    for name, sizes in record["community_sizes"].items():
        assert sum(sizes) == 6
        assert sizes == sorted(sizes, reverse=True)
        assert sum(record["community_chosen"][name]) == 2
    assert community_discs(record["community_sizes"], record["community_chosen"])
    assert all(note.startswith("class ") for note in record["warnings"])
    card = (selected / "distilled" / "README.md").read_text()
    assert card.startswith("---\n")
    assert all(name in card for name in names)
    assert "tiny" not in card  # the name of the tiles' file, which stays here
    assert record["dropped"] == dict.fromkeys(names, 0)
    assert {path.name for path in selected.iterdir()} == {"distilled", "selector"}


def test_figures_of_the_communities(selected, tmp_path, run_main, select_argv):
    run_main(script, *select_argv, "--selector", "herding", "--output", tmp_path)
    for folder in (selected / "selector", tmp_path / "selector"):
        for name in ("community_map.png", "community_tiles.png"):
            with PILImage.open(folder / name) as figure:
                assert figure.format == "PNG" and min(figure.size) > 100
    # They mark the images that were chosen, and herding chooses others.
    for name in ("community_map.png", "community_tiles.png"):
        assert (selected / "selector" / name).read_bytes() != (tmp_path / "selector" / name).read_bytes()


def test_communities_are_those_of_the_pool_whatever_chooses(selected, tmp_path, run_main, select_argv, tiny_pool):
    run_main(script, *select_argv, "--selector", "random", "--output", tmp_path)
    _, distilled, _ = read_image_dataset(tmp_path / "distilled")
    assert np.bincount(distilled["label"]).tolist() == [2] * 5
    chosen = RandomSelector.from_pretrained(tmp_path / "selector").selected_indices_
    np.testing.assert_array_equal(distilled["seed"], read_image_dataset(tiny_pool)[1]["seed"][chosen])
    infomap = DistillSelector.from_pretrained(selected / "selector")
    np.testing.assert_array_equal(distilled["community"], infomap.module_labels_[chosen])
    np.testing.assert_array_equal(
        distilled["modular_centrality"], round_significant(infomap.modular_centrality_[chosen])
    )
    sizes = [read_json(folder / "distilled" / "stage.json")["community_sizes"] for folder in (tmp_path, selected)]
    assert sizes[0] == sizes[1]


def test_defaults_are_kernel_herding_on_untrained_features(tmp_path, run_main, tiny_pool, tiny_teacher):
    argv = ["--pool", tiny_pool, "--teacher", tiny_teacher, "--n-per-class", 2, "--output", tmp_path]
    run_main(script, *argv)
    images, pool, _ = read_image_dataset(tiny_pool)
    expected = KernelHerdingSelector(n_per_class=2).fit(embed_images("untrained", images), pool["label"])
    selector = BaseSelector.from_pretrained(tmp_path / "selector")
    assert type(selector) is KernelHerdingSelector
    np.testing.assert_array_equal(selector.selected_indices_, expected.selected_indices_)
    np.testing.assert_array_equal(read_image_dataset(tmp_path / "distilled")[0], images[expected.selected_indices_])
    card = (tmp_path / "distilled" / "README.md").read_text()
    assert "KernelHerdingSelector" in card and "convolutional network with random weights" in card


def test_from_python_it_takes_a_configuration_and_returns_the_folder(selected, tiny_pool, tiny_teacher, capsys):
    config = SelectConfig(
        pool=tiny_pool,
        teacher=str(tiny_teacher),
        n_per_class=2,
        n_neighbors=3,
        selector="infomap",
        embedder="teacher",
        output=selected,
    )
    assert script.run(config) == selected / "distilled"
    assert "already finished" in capsys.readouterr().out
    with pytest.raises(InputError, match=r"^data is missing: drop_copies goes by the real tiles, so name them$"):
        SelectConfig(pool=tiny_pool, teacher=tiny_teacher, output=selected, drop_copies=True)


def test_settings_are_what_decides_the_choice():
    config = SelectConfig(pool="p", teacher="t", output="o", data="phantom", embedder="e", copy_embedders=["c"])
    assert config.settings() == {
        "drop_copies": False,
        "markov_time": 1.0,
        "min_probability": 0.0,
        "n_neighbors": 15,
        "n_per_class": 100,
        "num_trials": 5,
        "quota": "proportional",
        "ranking": "modular_centrality",
        "seed": 0,
        "selector": "kernel_herding",
        "typical_share": None,
        "weighting": "local_gaussian",
    }


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
        (["--n-per-class", "0"], "--n-per-class=0 is out of range: it must be at least 1"),
        (["--n-neighbors", "0"], "--n-neighbors=0 is out of range: it must be at least 1"),
        (["--markov-time", "0"], "--markov-time=0.0 is out of range: it must be above 0"),
        (["--markov-time", "inf"], "--markov-time=inf is out of range: it must be a finite number above 0"),
        (["--seed", "-1"], "--seed=-1 is out of range: it must be at least 0 and below 2^31"),
        (["--pool", "/no/such"], "/no/such holds no finished pool: run histodistill generate first"),
        (["--teacher", "/no/such"], "/no/such holds no finished classifier: run train_classifier"),
        (["--embedder", "/no/such"], "--embedder /no/such cannot be loaded"),
        (["--min-probability", "-0.1"], "--min-probability=-0.1 is out of range: it must be 0 to 1"),
        (["--min-probability", "1.1"], "--min-probability=1.1 is out of range: it must be 0 to 1"),
        (["--typical-share", "-1"], "--typical-share=-1.0 is out of range: it must be 0 to 1"),
        (["--typical-share", "nan"], "--typical-share=nan is out of range: it must be 0 to 1"),
        (["--typical-share", "0.9", "--data", "/no/such"], "/no/such does not exist: a source is "),
    ],
)
def test_bad_input_ends_with_one_sentence(tmp_path, select_argv, argv, message, capsys):
    output = tmp_path / "output"
    with pytest.raises(SystemExit) as error:
        run_script(script.make_parser, script.run, [*select_argv, "--output", str(output), *argv])
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
    Stage(tmp_path / "teacher", {"stage": "classifier"}).finish()
    with pytest.raises(InputError, match=message):
        run_main(script, *select_argv, "--teacher", tmp_path / "teacher", "--output", tmp_path / "output")
    assert not (tmp_path / "output").exists()


def test_teacher_that_is_no_classifier(tmp_path, tiny_autoencoder, run_main, select_argv):
    with pytest.raises(InputError, match="holds no finished classifier: run train_classifier on the real tiles first"):
        run_main(script, *select_argv, "--teacher", tiny_autoencoder, "--output", tmp_path / "output")
    assert not (tmp_path / "output").exists()


@pytest.mark.parametrize("text", [None, "{", "[]", '{"data": null}'])
def test_teacher_without_results_is_refused_before_anything_is_written(
    tmp_path, tiny_teacher, run_main, select_argv, text
):
    teacher = shutil.copytree(tiny_teacher, tmp_path / "teacher")
    (teacher / "results.json").unlink()
    if text is not None:
        (teacher / "results.json").write_text(text)
    with pytest.raises(InputError, match=r"teacher/results\.json is missing or damaged: give a classifier with all"):
        run_main(script, *select_argv, "--teacher", teacher, "--output", tmp_path / "output")
    assert not (tmp_path / "output").exists()


def test_unfinished_pool_is_refused(tmp_path, tiny_pool, run_main, select_argv):
    shutil.copytree(tiny_pool, tmp_path / "pool")
    record = read_json(tmp_path / "pool" / "stage.json")
    (tmp_path / "pool" / "stage.json").write_text(json.dumps({**record, "complete": False}))
    with pytest.raises(InputError, match="holds no finished pool: run histodistill generate first"):
        run_main(script, *select_argv, "--pool", tmp_path / "pool", "--output", tmp_path / "output")
    assert not (tmp_path / "output").exists()


# Filters, and options that go by real tiles.


@pytest.fixture(scope="module")
def teacher(tiny_teacher) -> Classifier:
    return Classifier.from_pretrained(tiny_teacher)


def embedded(teacher, tiny_pool, tiny_npz) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Embeddings and labels of the pool and of the real training tiles."""
    images, columns, _ = read_image_dataset(tiny_pool)
    real = load_tiles(tiny_npz).split("train")
    return embed(teacher, images), columns["label"], embed(teacher, real.images), real.labels


def test_real_tiles_are_known_by_their_content(tmp_path, run_main, select_argv, tiny_npz, capsys):
    output = tmp_path / "output"
    argv = [*select_argv, "--typical-share", 0.9, "--output", output]
    run_main(script, *argv, "--data", tiny_npz)
    record = read_json(output / "distilled" / "stage.json")
    assert record["settings"]["data"] == load_tiles(tiny_npz).fingerprint()
    with np.load(tiny_npz) as arrays:
        arrays = dict(arrays)
    np.savez(tmp_path / "same.npz", **arrays)
    run_main(script, *argv, "--data", tmp_path / "same.npz")
    assert "already finished" in capsys.readouterr().out
    arrays["train_images"] = arrays["train_images"].copy()
    arrays["train_images"][0, 0, 0, 0] ^= 1
    np.savez(tmp_path / "other.npz", **arrays)
    with pytest.raises(InputError, match=r"was made with other settings \(data was "):
        run_main(script, *argv, "--data", tmp_path / "other.npz")
    assert read_json(output / "distilled" / "stage.json") == record


def test_real_tiles_of_other_classes(tmp_path, run_main, select_argv, tiny_npz):
    with np.load(tiny_npz) as arrays:
        np.savez(tmp_path / "other.npz", **{**arrays, "class_names": np.array(["a", "b", "c", "d", "e"])})
    argv = [*select_argv, "--typical-share", "0.9", "--data", tmp_path / "other.npz", "--output", tmp_path / "output"]
    message = r"other\.npz has other classes than the pool \(a, b, c, d, … and not adipose, .*: give the tiles that "
    with pytest.raises(InputError, match=message):
        run_main(script, *argv)
    assert not (tmp_path / "output").exists()


def test_real_tiles_that_no_option_goes_by_are_not_read(selected, run_main, select_argv, capsys):
    run_main(script, *select_argv, "--data", "/no/such", "--output", selected)
    assert "already finished" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "counts"), [(["--drop-copies"], [30]), (["--drop-copies", "--typical-share", 0.9], [30, 120])]
)
def test_real_tiles_are_embedded_only_for_what_goes_by_their_embeddings(
    tmp_path, run_main, select_argv, tiny_npz, monkeypatch, argv, counts
):
    embedded = []

    def embed_and_note(name, pool, real):
        embedded.extend(len(images) for images in (pool, real) if images is not None)
        return embed_pool(name, pool, real)

    monkeypatch.setattr(distilled_set, "embed_pool", embed_and_note)
    # Copies are looked for in embeddings of their own.
    monkeypatch.setattr(distilled_set, "find_copies", lambda images, *others: (np.zeros(len(images), bool), None))
    run_main(script, *select_argv, *argv, "--data", tiny_npz, "--output", tmp_path)
    assert embedded == counts


def test_features_of_several_networks_choose(tmp_path, run_main, tiny_pool, tiny_teacher):
    argv = ["--pool", tiny_pool, "--teacher", tiny_teacher, "--n-per-class", 2, "--output", tmp_path]
    run_main(script, *argv, "--embedder", "untrained_several")
    images, pool, _ = read_image_dataset(tiny_pool)
    features, _ = embed_pool("untrained_several", images)
    expected = KernelHerdingSelector(n_per_class=2).fit(features, pool["label"])
    chosen = BaseSelector.from_pretrained(tmp_path / "selector").selected_indices_
    np.testing.assert_array_equal(chosen, expected.selected_indices_)
    assert "networks of two architectures with random weights" in (tmp_path / "distilled" / "README.md").read_text()


def test_missing_real_tiles_are_refused_before_anything_is_loaded(tmp_path, capsys):
    folders = ["--pool", "/no/such", "--teacher", "/no/such", "--output", str(tmp_path / "output")]
    with pytest.raises(SystemExit) as error:
        run_script(
            script.make_parser, lambda config: pytest.fail("the step was run"), [*folders, "--typical-share", "0.9"]
        )
    assert error.value.code == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == "error: --data is missing: --typical-share goes by the real tiles, so name them\n"
    assert not (tmp_path / "output").exists()


@pytest.mark.parametrize(
    ("argv", "needs"),
    [
        ([], False),
        (["--min-probability", "0.5"], False),
        (["--typical-share", "0", "--selector", "kmeans"], True),
    ],
)
def test_which_options_go_by_real_tiles(select_argv, argv, needs):
    config = script.make_parser().read([*select_argv, "--data", "phantom", "--output", "out", *argv])
    assert config.needs_real_tiles is needs


def test_only_images_that_the_teacher_recognises(tmp_path, run_main, select_argv, teacher, tiny_pool, capsys):
    images, pool, names = read_image_dataset(tiny_pool)
    labels = pool["label"]
    own = predict_proba(teacher, images)[np.arange(30), labels]
    # In some classes two or more images pass, in others fewer, so that both places have to be filled.
    second = np.sort([np.sort(own[labels == label])[-2] for label in range(5)])
    threshold = float((second[2] + second[3]) / 2)
    passes = own >= threshold
    lacking = [label for label in range(5) if passes[labels == label].sum() < 2]
    assert len(lacking) == 3

    run_main(script, *select_argv, "--min-probability", threshold, "--output", tmp_path)
    selector = DistillSelector.from_pretrained(tmp_path / "selector")
    candidates = at_least(passes, own, labels, 2)
    np.testing.assert_array_equal(selector.module_labels_ >= 0, candidates)
    assert candidates[selector.selected_indices_].all()
    _, distilled, _ = read_image_dataset(tmp_path / "distilled")
    assert np.bincount(distilled["label"]).tolist() == [2] * 5
    assert (distilled["community"] >= 0).all()

    record = read_json(tmp_path / "distilled" / "stage.json")
    assert record["dropped"] == {name: int((~candidates[labels == label]).sum()) for label, name in enumerate(names)}
    assert record["settings"]["min_probability"] == threshold
    notes = [note for note in record["warnings"] if "pass the filter" in note]
    assert [note.partition(" (")[0] for note in notes] == [f"class {label}" for label in lacking]
    printed = capsys.readouterr().out
    assert all(f"warning: {note}\n" in printed for note in record["warnings"])


def test_only_images_that_are_typical(tmp_path, run_main, select_argv, teacher, tiny_pool, tiny_npz):
    embeddings, labels, real_embeddings, real_labels = embedded(teacher, tiny_pool, tiny_npz)
    filtered = {
        share: typical(embeddings, labels, real_embeddings, real_labels, share) for share in (0.1, 0.3, 0.5, 0.7, 0.9)
    }
    share, passes = next((share, passes) for share, passes in filtered.items() if 0 < passes.sum() < 30)
    images, _, names = read_image_dataset(tiny_pool)
    own = predict_proba(teacher, images)[np.arange(30), labels]
    candidates = at_least(passes, own, labels, 2)

    argv = [*select_argv, "--selector", "random", "--typical-share", share, "--data", tiny_npz]
    run_main(script, *argv, "--output", tmp_path)
    record = read_json(tmp_path / "distilled" / "stage.json")
    dropped = {name: int((~candidates[labels == label]).sum()) for label, name in enumerate(names)}
    assert record["dropped"] == dropped and sum(dropped.values()) > 0
    # A dropped image is in no community, and none was chosen.
    assert sum(map(sum, record["community_sizes"].values())) == candidates.sum()
    _, distilled, _ = read_image_dataset(tmp_path / "distilled")
    assert np.bincount(distilled["label"]).tolist() == [2] * 5
    assert (distilled["community"] >= 0).all()


def test_latents_of_an_autoencoder_may_be_the_embeddings(tmp_path, run_main, select_argv, tiny_autoencoder, tiny_pool):
    argv = [*select_argv, "--selector", "k_center", "--embedder", tiny_autoencoder, "--output", tmp_path]
    run_main(script, *argv)
    images, pool, _ = read_image_dataset(tiny_pool)
    expected = KCenterSelector(n_per_class=2).fit(embed_images(tiny_autoencoder, images), pool["label"])
    selector = KCenterSelector.from_pretrained(tmp_path / "selector")
    np.testing.assert_array_equal(selector.selected_indices_, expected.selected_indices_)
    assert selector.n_features_in_ == 2 * 8 * 8


def test_a_pool_of_copies_says_what_may_mend_it():
    labels = np.repeat([0, 1], 5)
    copies = np.array([1, 1, 1, 1, 0, 0, 0, 0, 0, 1], dtype=bool)
    distilled_set.require_enough(copies, labels, ["fat", "gland"], 1)
    with pytest.raises(InputError, match=r"leaves 1 of the 5 images of fat, fewer than n_per_class=2: the"):
        distilled_set.require_enough(copies, labels, ["fat", "gland"], 2)


def test_communities_are_counted_with_the_chosen_images_of_each():
    communities, labels = np.array([0, 0, 1, 1, 1, -1, 5, 5]), np.array([0, 0, 0, 0, 0, 0, 1, 1])
    sizes, chosen = count_communities(communities, labels, np.array([1, 6]), ["a", "b", "c"])
    assert sizes == {"a": [3, 2], "b": [2], "c": []}
    assert chosen == {"a": [0, 1], "b": [1], "c": []}


def test_the_teacher_works_on_the_accelerator(tiny_npz, tiny_teacher, monkeypatch):
    device = torch.device("meta")
    monkeypatch.setattr(distilled_set, "best_device", lambda: device)
    assert distilled_set.load_teacher(tiny_teacher, load_tiles(tiny_npz).class_names).device == device


def test_a_model_from_elsewhere_is_named_with_its_licence(tmp_path, run_main, select_argv, capsys):
    folder = tmp_path / "secret"
    config = ViTConfig(
        image_size=16, patch_size=8, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8
    )
    ViTModel(config).save_pretrained(folder)
    (folder / "README.md").write_text("---\nlicense: cc-by-nc-nd-4.0\n---\n")
    run_main(script, *select_argv, "--selector", "k_center", "--embedder", folder, "--output", tmp_path / "out")
    (encoder,) = read_json(tmp_path / "out" / "distilled" / "stage.json")["encoders"]
    assert encoder["name"].startswith("vit-") and encoder["license"] == "cc-by-nc-nd-4.0"
    assert f"made with {encoder['name']}, whose licence is cc-by-nc-nd-4.0; whether it" in capsys.readouterr().err
    card = (tmp_path / "out" / "distilled" / "README.md").read_text()
    assert "whether it binds this set is for you to check" in card and "cc" in card
