"""The contract that every selector keeps."""

from __future__ import annotations

import os
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
from histodistill.selection import (
    SELECTOR_NAMES,
    SELECTORS,
    BaseSelector,
    ClasswiseSelector,
    DegenerateGraphWarning,
    DistillSelector,
    JointSelector,
)


# Every selector as it stands, and a kind of one.
VARIANTS = {name: (name, {}) for name in SELECTOR_NAMES} | {
    "infomap, random images": ("infomap", {"ranking": "random"}),
}

every_selector = pytest.mark.parametrize("name", SELECTOR_NAMES)
every_variant = pytest.mark.parametrize("name", VARIANTS)
# Of the first kind of the contract: those that choose in each class by itself.
every_classwise_variant = pytest.mark.parametrize(
    "name", [name for name, (selector, _) in VARIANTS.items() if issubclass(SELECTORS[selector], ClasswiseSelector)]
)


def pool(seed=0, per_class=90, n_classes=3, width=12):
    rng = np.random.default_rng(seed)
    embeddings = rng.normal(size=(per_class * n_classes, width)).astype(np.float32)
    embeddings += 4 * rng.normal(size=(6, width))[rng.integers(0, 6, size=len(embeddings))].astype(np.float32)
    labels = rng.permutation(np.repeat(np.arange(n_classes) * 2, per_class))
    return embeddings, labels


def make(name, **params):
    selector, own = VARIANTS[name]
    if selector == "infomap":
        own = {"n_neighbors": 6, **own}
    return SELECTORS[selector](**own, **params)


def same_attributes(one, two):
    """Asserts that two mappings name → attribute hold equal values of equal types."""
    assert one.keys() == two.keys()
    for name, value in one.items():
        assert type(value) is type(two[name])
        np.testing.assert_array_equal(value, two[name])


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


@every_variant
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


@every_variant
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


@every_variant
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


def test_every_selector_is_of_one_of_the_two_kinds():
    kinds = {
        name: (issubclass(of, ClasswiseSelector), issubclass(of, JointSelector)) for name, of in SELECTORS.items()
    }
    assert {name for name, kind in kinds.items() if kind == (False, True)} == {"kernel_ridge"}
    assert set(kinds.values()) == {(True, False), (False, True)}


@every_classwise_variant
def test_classes_are_independent(name):
    embeddings, labels = pool()
    together = make(name, n_per_class=10).fit(embeddings, labels)
    rows = np.flatnonzero(labels == 2)
    alone = make(name, n_per_class=10).fit(embeddings[rows], labels[rows])
    np.testing.assert_array_equal(rows[alone.selected_indices_], together.selected_indices_[10:20])


# What the labels 0, 2 and 4 of `pool` are called where they are texts.
NAMES = np.array(["fat", "", "stroma", "", "tumour"])


@every_variant
def test_labels_may_be_texts(name):
    embeddings, labels = pool()
    texts = NAMES[labels]
    selector = make(name, n_per_class=10).fit(embeddings, texts)
    np.testing.assert_array_equal(texts[selector.selected_indices_], np.repeat(["fat", "stroma", "tumour"], 10))
    assert selector.classes_.tolist() == ["fat", "stroma", "tumour"]
    # However texts are held, all that is learned is the same.
    for same in (texts.tolist(), texts.astype(object), texts.astype("U50"), texts.astype(np.dtypes.StringDType())):
        same_attributes(vars(selector), vars(make(name, n_per_class=10).fit(embeddings, same)))


@pytest.mark.parametrize("name", [name for name in VARIANTS if "random" not in name and name != "kmeans"])
def test_without_chance_texts_choose_as_whole_numbers_do(name):
    embeddings, labels = pool()
    by_number = make(name, n_per_class=10).fit(embeddings, labels)
    by_text = make(name, n_per_class=10).fit(embeddings, NAMES[labels])
    assert by_text.classes_.tolist() == ["fat", "stroma", "tumour"]
    same_attributes(
        {name: value for name, value in vars(by_text).items() if name != "classes_"},
        {name: value for name, value in vars(by_number).items() if name != "classes_"},
    )


@every_classwise_variant
def test_classes_named_by_texts_are_independent(name):
    embeddings, labels = pool()
    texts = NAMES[labels]
    together = make(name, n_per_class=10).fit(embeddings, texts)
    rows = np.flatnonzero(texts == "stroma")
    alone = make(name, n_per_class=10).fit(embeddings[rows], texts[rows])
    np.testing.assert_array_equal(rows[alone.selected_indices_], together.selected_indices_[10:20])


def test_the_choice_by_texts_is_the_same_in_any_process():
    code = (
        "from histodistill.selection import RandomSelector as R;"
        "print(R(n_per_class=3).fit([[0.0]] * 40, ['Fettgewebe'] * 20 + ['Drüse'] * 20).selected_indices_.tolist())"
    )
    printed = {
        subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "PYTHONHASHSEED": seed},
        ).stdout
        for seed in ("1", "2")
    }
    assert len(printed) == 1


@pytest.mark.parametrize("name", [name for name in VARIANTS if "random" not in name])
def test_of_equal_images_the_first_is_taken(name):
    embeddings, _ = pool(per_class=60, n_classes=1)
    twice = np.concatenate([embeddings, embeddings])
    selector = make(name, n_per_class=12).fit(twice, np.zeros(120, dtype=int))
    selected = selector.selected_indices_
    copies = selected[selected >= 60]
    assert np.isin(copies - 60, selected).all()
    assert (selected < 60).any()


@every_variant
@pytest.mark.filterwarnings("ignore::histodistill.selection.DegenerateGraphWarning")
def test_identical_images(name):
    selector = make(name, n_per_class=5).fit(np.ones((20, 3)), np.zeros(20, dtype=int))
    selected = selector.selected_indices_
    assert len(np.unique(selected)) == 5
    if VARIANTS[name][0] not in ("infomap", "random"):  # which have more to go by than the embedding
        assert selected.tolist() == [0, 1, 2, 3, 4]


ANY_NUMBER = st.floats(-(2.0**99), 2.0**99, width=32) | st.integers(-2, 2).map(float)


@every_variant
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_any_input_is_chosen_from_exactly_or_refused_in_one_sentence(name, data):
    shape = st.tuples(st.integers(1, 24), st.integers(1, 3))
    embeddings = data.draw(hnp.arrays(np.float32, shape, elements=ANY_NUMBER))
    n_images = len(embeddings)
    labels = data.draw(hnp.arrays(np.int64, n_images, elements=st.integers(0, 2)))
    candidates = data.draw(st.none() | hnp.arrays(bool, n_images, fill=st.just(True)))
    classes = np.unique(labels)
    left = [int(((labels == label) & (True if candidates is None else candidates)).sum()) for label in classes]
    n_per_class = data.draw(st.integers(1, max(1, min(left)) + data.draw(st.sampled_from([0, 0, 1, 20]))))

    expected_error = None
    if min(left) < n_per_class:
        first = int(np.argmax(np.array(left) < n_per_class))
        expected_error = f"class {classes[first]} has {left[first]} .*but n_per_class={n_per_class}: lower"

    selector = make(name, n_per_class=n_per_class)
    options = {"candidates": candidates}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DegenerateGraphWarning)
        if expected_error is not None:
            with pytest.raises(ValueError, match=expected_error) as caught:
                selector.fit(embeddings, labels, **options)
            assert "\n" not in str(caught.value)
            return
        selected = selector.fit(embeddings, labels, **options).selected_indices_
    assert len(np.unique(selected)) == len(selected)
    np.testing.assert_array_equal(labels[selected], np.repeat(classes, n_per_class))
    assert candidates is None or candidates[selected].all()


@every_variant
@pytest.mark.parametrize("as_list", [False, True])
def test_the_choice_is_as_if_images_that_are_no_candidates_were_not_there(name, as_list):
    embeddings, labels = pool()
    everything = make(name, n_per_class=10).fit(embeddings, labels)
    candidates = np.random.default_rng(5).random(len(labels)) < 0.5
    candidates[everything.selected_indices_[::2]] = False
    assert min(np.bincount(labels[candidates])[::2]) >= 10

    rows = np.flatnonzero(candidates)
    alone = make(name, n_per_class=10).fit(embeddings[rows], labels[rows])
    selector = make(name, n_per_class=10)
    selector.fit(embeddings, labels, candidates=candidates.tolist() if as_list else candidates)
    assert candidates[selector.selected_indices_].all()
    np.testing.assert_array_equal(selector.selected_indices_, rows[alone.selected_indices_])

    # What is known of each image or class is that of the candidates too; the other images have −1 or 0.
    learned = {key: value for key, value in vars(selector).items() if key.endswith("_")}
    assert learned.keys() == {key for key in vars(alone) if key.endswith("_")}
    for key in learned.keys() - {"selected_indices_"}:
        value, expected = learned[key], getattr(alone, key)
        if np.shape(value) == (len(labels),):
            assert (value[~candidates] == (-1 if value.dtype.kind == "i" else 0)).all()
            value = value[candidates]
        np.testing.assert_array_equal(value, expected)


@every_variant
def test_all_candidates_are_the_same_as_none_given(name):
    embeddings, labels = pool()
    without = make(name, n_per_class=10).fit(embeddings, labels)
    given_all = make(name, n_per_class=10).fit(embeddings, labels, candidates=np.ones(len(labels), bool))
    same_attributes(vars(without), vars(given_all))


@every_variant
def test_exactly_as_many_candidates_as_places_are_all_chosen(name):
    embeddings, labels = pool(n_classes=2)
    candidates = np.zeros(len(labels), dtype=bool)
    for label in (0, 2):
        candidates[np.flatnonzero(labels == label)[10:18]] = True
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DegenerateGraphWarning)
        selector = make(name, n_per_class=8).fit(embeddings, labels, candidates=candidates)
    np.testing.assert_array_equal(np.sort(selector.selected_indices_), np.flatnonzero(candidates))


@every_variant
@pytest.mark.parametrize(
    ("candidates", "message"),
    [
        (np.ones(269, bool), r"candidates has shape \(269,\) and dtype bool: .* one bool for each of the 270 emb"),
        (np.ones((270, 1), bool), r"candidates has shape \(270, 1\) and dtype bool: .*one bool for each of the 270"),
        (np.ones(270, int), r"candidates has shape \(270,\) and dtype int64: .*one bool for each of the 270"),
        (np.ones(270), r"candidates has shape \(270,\) and dtype float64: .*one bool for each of the 270"),
        (True, r"candidates has shape \(\) and dtype bool: .*one bool for each of the 270"),
        (np.arange(270) >= 9, "class 0 has 2 candidates among its 3 images but n_per_class=3: lower n_per_class"),
        (np.zeros(270, bool), "class 0 has 0 candidates among its 3 images but n_per_class=3: lower n_per_class"),
        (np.arange(270) % 90 < 89, "class 4 has 2 candidates among its 3 images but n_per_class=3: lower n_per_class"),
    ],
)
@pytest.mark.filterwarnings("ignore::histodistill.selection.DegenerateGraphWarning")
def test_bad_candidates_are_refused_in_one_sentence(name, candidates, message):
    embeddings, _ = pool()
    labels = np.full(270, 2)
    labels[[8, 30, 60]] = 0
    labels[[100, 179, 190]] = 4
    selector = make(name, n_per_class=3).fit(embeddings, labels)
    before = dict(vars(selector))
    with pytest.raises(ValueError, match=message) as caught:
        selector.fit(embeddings[::-1], labels, candidates=candidates)
    assert "\n" not in str(caught.value)
    same_attributes(vars(selector), before)


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
        (np.zeros((4, 2)), ["a"] * 3, {}, "one label for each of the 4 embeddings"),
        (np.zeros((4, 2)), [["a"]] * 4, {}, "one-dimensional"),
        (
            np.zeros((4, 2)),
            ["a", "a", "a", 1],
            {},
            "labels has the value 1 at index 3: it must hold whole numbers alo",
        ),
        (np.zeros((4, 2)), np.array(["a", None, "a", "a"]), {}, "labels has the value None at index 1"),
        (np.zeros((4, 2)), [b"a"] * 4, {}, r"labels has dtype \|S1"),
        (
            np.zeros((4, 2)),
            ["a", "a", "a", "b"],
            {"n_per_class": 2},
            "class b has 1 images but n_per_class=2: lower n_p",
        ),
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
        ({"ranking": "flow"}, "ranking='flow' is not known: choose one of modular_centrality, random"),
    ],
)
def test_options_of_the_distill_selector_are_checked(params, message):
    with pytest.raises(ValueError, match=message):
        DistillSelector(n_per_class=1, **params).fit(*pool())
