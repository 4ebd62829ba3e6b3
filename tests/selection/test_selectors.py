"""The contract that every selector keeps."""

from __future__ import annotations

import subprocess
import sys
import warnings

import faiss
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn.base import clone
from threadpoolctl import threadpool_limits

import histodistill.selection
from histodistill.selection import SELECTOR_NAMES, SELECTORS, BaseSelector, DegenerateGraphWarning, DistillSelector


every_selector = pytest.mark.parametrize("name", SELECTOR_NAMES)


def pool(seed=0, per_class=90, n_classes=3, width=12):
    rng = np.random.default_rng(seed)
    embeddings = rng.normal(size=(per_class * n_classes, width)).astype(np.float32)
    embeddings += 4 * rng.normal(size=(6, width))[rng.integers(0, 6, size=len(embeddings))].astype(np.float32)
    labels = rng.permutation(np.repeat(np.arange(n_classes) * 2, per_class))
    return embeddings, labels


def make(name, **params):
    if name == "infomap":
        params = {"n_neighbors": 6, **params}
    return SELECTORS[name](**params)


def test_the_names_agree():
    assert tuple(SELECTORS) == SELECTOR_NAMES
    assert all(issubclass(selector, BaseSelector) for selector in SELECTORS.values())


def test_everything_announced_exists():
    for name in histodistill.selection.__all__:
        assert getattr(histodistill.selection, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        histodistill.selection.nonsense  # noqa: B018


def test_importing_the_package_loads_no_heavy_library():
    code = (
        "import sys, histodistill.selection as s; s.SELECTOR_NAMES;"
        "print([m for m in ('faiss', 'infomap', 'sklearn', 'scipy', 'torch', 'huggingface_hub') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@every_selector
@pytest.mark.parametrize("n_per_class", [1, 7, 90])
def test_exactly_n_per_class_without_repeats_grouped_by_class(name, n_per_class):
    embeddings, labels = pool()
    selector = make(name, n_per_class=n_per_class)
    assert selector.fit(embeddings, labels) is selector
    selected = selector.selected_indices_
    assert selected.dtype == np.int64
    assert len(np.unique(selected)) == len(selected)
    np.testing.assert_array_equal(labels[selected], np.repeat([0, 2, 4], n_per_class))
    np.testing.assert_array_equal(selector.classes_, [0, 2, 4])
    assert selector.n_features_in_ == 12


@every_selector
def test_same_seed_same_choice(name):
    embeddings, labels = pool()
    first = make(name, n_per_class=10, random_state=3).fit(embeddings, labels)
    again = make(name, n_per_class=10, random_state=3).fit(embeddings.astype(np.float64), labels.tolist())
    np.testing.assert_array_equal(first.selected_indices_, again.selected_indices_)
    np.testing.assert_array_equal(first.fit(embeddings, labels).selected_indices_, again.selected_indices_)


@pytest.mark.parametrize("name", ["random", "kmeans"])
def test_another_seed_another_choice(name):
    embeddings, labels = pool()
    one, two = (make(name, n_per_class=10, random_state=seed).fit(embeddings, labels) for seed in (0, 1))
    assert not np.array_equal(one.selected_indices_, two.selected_indices_)


@every_selector
def test_the_choice_does_not_depend_on_threads(name):
    embeddings, labels = pool(per_class=400, n_classes=2, width=32)
    threads = faiss.omp_get_max_threads()
    chosen = []
    try:
        for count in (1, 2):
            with threadpool_limits(limits=count):
                faiss.omp_set_num_threads(count)
                chosen.append(make(name, n_per_class=20).fit(embeddings, labels).selected_indices_)
    finally:
        faiss.omp_set_num_threads(threads)
    np.testing.assert_array_equal(*chosen)


@every_selector
def test_classes_are_independent(name):
    embeddings, labels = pool()
    together = make(name, n_per_class=10).fit(embeddings, labels)
    rows = np.flatnonzero(labels == 2)
    alone = make(name, n_per_class=10).fit(embeddings[rows], labels[rows])
    np.testing.assert_array_equal(rows[alone.selected_indices_], together.selected_indices_[10:20])


@pytest.mark.parametrize("name", ["infomap", "kmeans", "herding", "k_center"])
def test_of_equal_images_the_first_is_taken(name):
    embeddings, _ = pool(per_class=60, n_classes=1)
    twice = np.concatenate([embeddings, embeddings])
    selected = make(name, n_per_class=12).fit(twice, np.zeros(120, dtype=int)).selected_indices_
    copies = selected[selected >= 60]
    assert np.isin(copies - 60, selected).all()
    assert (selected < 60).any()


@every_selector
@pytest.mark.filterwarnings("ignore::histodistill.selection.DegenerateGraphWarning")
def test_identical_images(name):
    selector = make(name, n_per_class=5).fit(np.ones((20, 3)), np.zeros(20, dtype=int))
    selected = selector.selected_indices_
    assert len(np.unique(selected)) == 5
    if name in ("kmeans", "herding", "k_center"):  # the others have more to go by than the embedding
        assert selected.tolist() == [0, 1, 2, 3, 4]


@every_selector
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_any_input_is_chosen_from_exactly(name, data):
    embeddings = data.draw(
        hnp.arrays(
            np.float32,
            st.tuples(st.integers(1, 24), st.integers(1, 3)),
            elements=st.floats(-(2.0**99), 2.0**99, width=32) | st.integers(-2, 2).map(float),
        )
    )
    labels = data.draw(hnp.arrays(np.int64, len(embeddings), elements=st.integers(0, 2)))
    n_per_class = data.draw(st.integers(1, int(np.unique(labels, return_counts=True)[1].min())))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DegenerateGraphWarning)
        selected = make(name, n_per_class=n_per_class).fit(embeddings, labels).selected_indices_
    assert len(np.unique(selected)) == len(selected)
    np.testing.assert_array_equal(labels[selected], np.repeat(np.unique(labels), n_per_class))


@every_selector
def test_scikit_learn_clone_and_params(name):
    selector = make(name, n_per_class=4, random_state=9)
    copy = clone(selector)
    assert copy.get_params() == selector.get_params()
    assert copy.set_params(n_per_class=6).n_per_class == 6
    assert selector.n_per_class == 4
    assert not hasattr(clone(selector.fit(*pool())), "selected_indices_")
    assert SELECTORS[name]().n_per_class == 100


@every_selector
@pytest.mark.parametrize(
    ("embeddings", "labels", "params", "message"),
    [
        (np.zeros((4, 2)), [0, 0, 0, 3], {"n_per_class": 2}, "class 3 has 1 images but n_per_class=2: lower n_per"),
        (np.zeros(4), [0] * 4, {}, r"embeddings has shape \(4,\): it must be \(N, D\)"),
        (np.full((4, 2), np.nan), [0] * 4, {}, "NaN"),
        (np.zeros((4, 2)), [0] * 3, {}, "one label for each of the 4 embeddings"),
        (np.zeros((4, 2)), [[0]] * 4, {}, "one-dimensional"),
        (np.zeros((4, 2)), [0.5] * 4, {}, "labels has dtype float64"),
        (np.zeros((4, 2)), [0, 0, 0, -1], {}, "labels has the value -1: labels must be at least 0"),
        (np.zeros((4, 2)), [0] * 4, {"n_per_class": 0}, "n_per_class=0 is out of range: it must be at least 1"),
        (np.zeros((4, 2)), [0] * 4, {"n_per_class": 1.5}, "n_per_class=1.5 is not valid"),
        (np.zeros((4, 2)), [0] * 4, {"random_state": None}, "random_state=None is not valid"),
        (np.zeros((4, 2)), [0] * 4, {"random_state": 2**31}, "random_state=2147483648 is out of range"),
    ],
)
def test_bad_input_is_refused_in_one_sentence(name, embeddings, labels, params, message):
    selector = make(name, **{"n_per_class": 1, **params})
    with pytest.raises(ValueError, match=message) as caught:
        selector.fit(embeddings, labels)
    assert "\n" not in str(caught.value)
    assert not hasattr(selector, "selected_indices_")


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"n_neighbors": 0}, "n_neighbors=0 is out of range"),
        ({"weighting": "none"}, "weighting='none' is not known"),
        ({"markov_time": -1.0}, "markov_time=-1.0 is not valid"),
        ({"num_trials": True}, "num_trials=True is not valid"),
        ({"quota": None}, "quota=None is not known"),
    ],
)
def test_options_of_the_distill_selector_are_checked(params, message):
    with pytest.raises(ValueError, match=message):
        DistillSelector(n_per_class=1, **params).fit(*pool())
