from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from histodistill.selection import SELECTOR_NAMES, DistillSelector, FacilityLocationSelector, RandomSelector
from histodistill.training.distillation.pool_selection import SelectionInputs, fit_selector, make_selector
from histodistill.training.distillation.select import SelectConfig, make_parser
from histodistill.training.distillation.selector_options import SelectorConfig
from histodistill.training.running.errors import InputError


NAMES = ["fat", "gland"]


def options(*argv: object) -> SelectConfig:
    folders = ["--pool", "p", "--teacher", "t", "--output", "o", "--data", "phantom"]
    own = ["--selector", "infomap", "--n-per-class", "2", "--n-neighbors", "3"]
    return make_parser().read([*folders, *own, *map(str, argv)])


@pytest.fixture(scope="module")
def inputs() -> SelectionInputs:
    """Eight images of each of two classes, of which image i is recognised with (i + 1) / 10, and twelve real tiles."""
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1], 8)
    own = np.tile(np.arange(1, 9) / 10, 2)
    probabilities = np.where(labels[:, None] == [0, 1], own[:, None], 1 - own[:, None]).astype(np.float32)
    return SelectionInputs(
        embeddings=rng.normal(size=(16, 3)).astype(np.float32),
        labels=labels,
        probabilities=probabilities,
        real_embeddings=rng.normal(size=(12, 3)).astype(np.float32),
        real_labels=np.repeat([0, 1], 6),
    )


# The selector.


def test_the_selector_takes_the_options():
    config = options(
        "--seed", 5, "--markov-time", 2, "--num-trials", 3, "--quota", "uniform", "--weighting", "cosine"
    )  # fmt: skip
    selector = make_selector(config)
    assert type(selector) is DistillSelector
    assert selector.get_params() == {
        "n_per_class": 2,
        "n_neighbors": 3,
        "weighting": "cosine",
        "markov_time": 2.0,
        "num_trials": 3,
        "quota": "uniform",
        "ranking": "modular_centrality",
        "random_state": 5,
    }
    selector = make_selector(options("--selector", "facility_location", "--seed", 1))
    assert type(selector) is FacilityLocationSelector
    assert selector.get_params() == {"n_per_class": 2, "random_state": 1}
    assert make_selector(options("--ranking", "random")).ranking == "random"
    # Options of other selectors are no matter.
    selector = make_selector(options("--selector", "random", "--quota", "sqrt", "--seed", 7))
    assert type(selector) is RandomSelector
    assert selector.get_params() == {"n_per_class": 2, "random_state": 7}


@pytest.mark.parametrize("name", SELECTOR_NAMES)
def test_every_selector_is_fitted(name, inputs):
    selection = fit_selector(options("--selector", name), inputs, NAMES)
    chosen = selection.selector.selected_indices_
    assert len(set(chosen.tolist())) == 4
    assert np.bincount(inputs.labels[chosen]).tolist() == [2, 2]
    assert selection.candidates.all() and len(selection.candidates) == 16


# Filters.


def test_images_that_the_teacher_does_not_recognise_are_dropped(inputs):
    selection = fit_selector(options("--selector", "random", "--min-probability", 0.55), inputs, NAMES)
    # Of each class the last three: 0.6, 0.7 and 0.8.
    assert np.flatnonzero(selection.candidates).tolist() == [5, 6, 7, 13, 14, 15]
    assert selection.candidates[selection.selector.selected_indices_].all()
    assert selection.notes == []


def test_images_far_from_real_tiles_are_dropped(inputs):
    # Real tiles at 0 … 5 on a line, those of the other class at 100 … 105. From a tile to the fifth nearest it is 3 to
    # 5, and from the images of each class 2.5, 5, 5.5, 5, 4, 3, 5.5 and about 100.
    line = np.array([2.5, 6, 6.5, -1, 5, 4, -1.5, 102])
    real = np.concatenate([np.arange(6.0), np.arange(100.0, 106)])[:, None]
    lying = replace(inputs, embeddings=np.concatenate([line, line + 100])[:, None], real_embeddings=real)
    selection = fit_selector(options("--selector", "herding", "--typical-share", 1), lying, NAMES)
    assert np.flatnonzero(selection.candidates).tolist() == [0, 1, 3, 4, 5, 8, 9, 11, 12, 13]
    assert selection.candidates[selection.selector.selected_indices_].all()
    selection = fit_selector(options("--selector", "herding", "--typical-share", 0), lying, NAMES)
    assert np.flatnonzero(selection.candidates).tolist() == [0, 5, 8, 13]
    assert selection.notes == []


def test_both_filters_together(inputs):
    embeddings = inputs.embeddings.copy()
    embeddings[[7, 15]] += 100
    argv = ["--selector", "random", "--min-probability", 0.35, "--typical-share", 1]
    far = replace(inputs, embeddings=embeddings, real_embeddings=inputs.real_embeddings * 3)
    alone = fit_selector(options(*argv[:4]), far, NAMES).candidates
    assert np.flatnonzero(alone).tolist() == [3, 4, 5, 6, 7, 11, 12, 13, 14, 15]
    both = fit_selector(options(*argv), far, NAMES).candidates
    assert not both[[7, 15]].any()
    assert not (both & ~alone).any() and both.sum() >= 4


def test_where_too_few_pass_the_best_recognised_are_taken_back(inputs):
    probabilities = inputs.probabilities.copy()
    # Class 1: none is recognised, and images 9 and 12 are so least badly, not in the order of their index.
    own = np.array([0.2, 0.35, 0.1, 0.0, 0.4, 0.3, 0.2, 0.1])
    probabilities[8:] = np.stack([1 - own, own], axis=1)
    # Class 0: one alone passes, the last; the next best is the one before it.
    few = replace(inputs, probabilities=probabilities)
    selection = fit_selector(options("--selector", "kmeans", "--min-probability", 0.75), few, NAMES)
    assert np.flatnonzero(selection.candidates).tolist() == [6, 7, 9, 12]
    assert sorted(selection.selector.selected_indices_) == [6, 7, 9, 12]
    assert [note.split(", so those")[0] for note in selection.notes] == [
        "class 0 (fat): 1 of 8 images pass the filter",
        "class 1 (gland): 0 of 8 images pass the filter",
    ]
    assert all("recognises best fill the 2 places" in note for note in selection.notes)

    # Only the class that lacks images is filled and named.
    selection = fit_selector(options("--selector", "kmeans", "--min-probability", 0.65), few, NAMES)
    assert np.flatnonzero(selection.candidates).tolist() == [6, 7, 9, 12]
    assert [note.split(":")[0] for note in selection.notes] == ["class 1 (gland)"]


def test_a_filter_that_drops_everything_still_gives_exact_numbers(inputs):
    selection = fit_selector(options("--min-probability", 1), inputs, NAMES)
    assert np.flatnonzero(selection.candidates).tolist() == [6, 7, 14, 15]
    assert selection.selector.module_labels_[:6].tolist() == [-1] * 6
    assert np.bincount(inputs.labels[selection.selector.selected_indices_]).tolist() == [2, 2]


# Notes and errors.


def test_degenerate_graphs_are_noted(inputs):
    alike = replace(inputs, embeddings=np.zeros((16, 3), np.float32))
    selection = fit_selector(options("--n-neighbors", 7), alike, NAMES)
    assert [note.split(":")[0] for note in selection.notes] == ["class 0", "class 1"]
    assert np.bincount(inputs.labels[selection.selector.selected_indices_]).tolist() == [2, 2]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--n-per-class", 9], "class 0 has 8 images but n_per_class=9: lower n_per_class or generate more"),
        (["--n-per-class", 9, "--min-probability", 1], "class 0 has 8 images but n_per_class=9"),
    ],
)
def test_what_the_selector_refuses(inputs, argv, message):
    with pytest.raises(InputError) as error:
        fit_selector(options(*argv), inputs, NAMES)
    assert str(error.value).startswith(message) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_per_class": 0}, "n_per_class=0 is out of range: it must be at least 1"),
        ({"n_neighbors": 0}, "n_neighbors=0 is out of range: it must be at least 1"),
        ({"seed": -1}, "seed=-1 is out of range: it must be at least 0 and below 2^31"),
    ],
)
def test_what_no_selector_takes(options, message):
    with pytest.raises(InputError) as error:
        SelectorConfig(**options)
    assert str(error.value) == message


def test_a_class_without_real_tiles(inputs):
    lacking = replace(inputs, real_labels=np.zeros(12, int))
    with pytest.raises(InputError, match="class 1 has no real tile"):
        fit_selector(options("--typical-share", 0.9), lacking, NAMES)
