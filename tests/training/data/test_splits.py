"""Splits never divide a group, nor a tile and its near copies."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from histodistill.selection.near_copies import near_pairs
from histodistill.training.data.grouping import Grouping
from histodistill.training.data.make_source import make_source
from histodistill.training.data.source_checks import check_groups
from histodistill.training.data.splits import hold_out_for_audit, make_missing_splits
from histodistill.training.data.tiles import HELD_OUT, Tiles, TileSource
from histodistill.training.running.errors import InputError
from histodistill.training.running.findings import settle


def noise(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, 8, 8, 3), dtype=np.uint8)


def tiles(labels, groups=None, seed: int = 0) -> Tiles:
    labels = np.asarray(labels)
    return Tiles(noise(len(labels), seed), labels, groups=None if groups is None else np.asarray(groups))


def source(train: Tiles, grouping: Grouping | None = None, **splits: Tiles) -> TileSource:
    names = [f"c{i}" for i in range(int(train.labels.max()) + 1)]
    return make_source("x", names, {"train": train, **splits}, grouping=grouping)


def rows_of(part: Tiles, whole: Tiles) -> list[int]:
    """Which tiles of the whole a split holds."""
    known = {image.tobytes(): row for row, image in enumerate(whole.images)}
    return [known[image.tobytes()] for image in part.images]


@st.composite
def grouped(draw) -> Tiles:
    """Tiles of random groups and classes, of which some are turned copies of others."""
    classes = draw(st.integers(2, 4))
    count = draw(st.integers(classes * 2, 60))
    labels = draw(st.lists(st.integers(0, classes - 1), min_size=count, max_size=count))
    labels[:classes] = range(classes)
    groups = draw(st.none() | st.lists(st.sampled_from("abcdefghijkl"), min_size=count, max_size=count))
    found = tiles(labels, groups, draw(st.integers(0, 1000)))
    for one, other in draw(st.lists(st.tuples(st.integers(0, count - 1), st.integers(0, count - 1)), max_size=8)):
        if one != other:
            found.images[other] = np.rot90(found.images[one])
    return found


@settings(max_examples=150, deadline=None)
@given(grouped(), st.none() | st.integers(0, 5), st.sampled_from([0, 0.1, 0.3]), st.booleans())
def test_no_group_and_no_copy_is_in_two_splits_that_we_make(train, seed, share, has_test):
    given_splits = {"test": tiles(np.unique(train.labels), seed=5)} if has_test else {}
    try:
        made = hold_out_for_audit(source(train, Grouping(split_seed=seed), **given_splits), share)
    except InputError:  # too few
        return
    ours = {name: part for name, part in made.splits.items() if name not in given_splits}
    assert sum(map(len, ours.values())) == len(train)
    assert sorted(np.concatenate([part.labels for part in ours.values()])) == sorted(train.labels)
    assert set(made.splits["train"].labels) == set(train.labels)
    of_row = np.repeat(np.arange(len(ours)), [len(part) for part in ours.values()])
    pairs = near_pairs([part.images for part in ours.values()])
    assert (of_row[pairs[:, 0]] == of_row[pairs[:, 1]]).all()
    if train.groups is not None:
        seen = [group for part in ours.values() for group in set(part.groups)]
        assert len(seen) == len(set(seen))
    assert all(len(part) for part in ours.values())


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.sampled_from("abcdef"), min_size=2, max_size=12),
    st.lists(st.sampled_from("abcdef"), min_size=2, max_size=12),
)
def test_a_group_in_two_given_splits_is_refused_without_the_flag(first, second):
    splits = {
        "train": tiles(np.arange(len(first)) % 2, first),
        "validation": tiles(np.arange(len(second)) % 2, second, seed=1),
        "test": tiles([0, 1], ["y", "z"], seed=2),
    }
    shared = set(first) & set(second)
    if shared:
        with pytest.raises(InputError, match=r"in both train and validation .* allow_shared_groups"):
            source(**splits)
    assert source(grouping=Grouping(allow_shared=True), **splits).shared_groups == len(shared)


def test_a_tenth_of_the_groups_with_about_a_tenth_of_each_class():
    groups = np.repeat([f"p{i}" for i in range(50)], 10)
    labels = np.tile([0, 0, 0, 0, 0, 0, 1, 1, 1, 2], 50)
    made = source(tiles(labels, groups))
    assert made.made == ("validation", "test") and made.group_kind == "group"
    assert [len(np.unique(made.splits[name].groups)) for name in ("validation", "test")] == [5, 5]
    for name in ("validation", "test"):
        np.testing.assert_array_equal(np.bincount(made.splits[name].labels), [30, 15, 5])


def test_the_seed_decides_which_groups_are_taken():
    train = tiles(np.tile([0, 1], 60), np.repeat([f"p{i}" for i in range(30)], 4))
    chosen = [set(source(train, Grouping(split_seed=seed)).splits["test"].groups) for seed in (None, 0, 1, 2)]
    assert chosen[0] == chosen[1] and len({frozenset(found) for found in chosen}) > 1


def test_without_groups_the_last_tiles_of_each_class_are_taken():
    train = tiles([0] * 20 + [1] * 10)
    made = source(train)
    assert rows_of(made.splits["validation"], train) == [18, 19, 29]
    assert rows_of(made.splits["test"], train) == [16, 17, 28]


def test_without_groups_a_seed_takes_a_random_tenth():
    train = tiles([0] * 200)
    train.labels[:100] = 1
    found = [rows_of(source(train, Grouping(split_seed=seed)).splits["validation"], train) for seed in (0, 0, 1)]
    assert found[0] == found[1] != found[2] and [len(rows) for rows in found] == [20, 20, 20]


def test_copies_go_with_the_tile_that_is_taken():
    train = tiles([0] * 10 + [1] * 10)
    train.images[3] = np.rot90(train.images[9])
    made = source(train, test=tiles([0, 1], seed=1))
    assert len(made.splits["validation"]) == 3
    assert made.splits["validation"].labels.tolist() == [0, 0, 1]


@pytest.mark.parametrize("groups", [None, list("aabb")])
def test_a_split_that_is_there_is_not_made(groups):
    train = tiles([0, 1, 0, 1], groups)
    assert source(train, validation=tiles([0, 1], seed=1), test=tiles([0, 1], seed=2)).made == ()


def test_there_is_no_test_split_where_a_class_has_none_to_give():
    assert source(tiles([0] * 9 + [1, 1])).made == ("validation",)
    with pytest.raises(InputError, match=r"no validation split and too few tiles .* at least 2 tiles per class"):
        source(tiles([0, 1]))


def test_one_group_gives_no_validation_split():
    with pytest.raises(InputError, match="no validation split and too few groups"):
        make_missing_splits("x", {"train": tiles([0, 1] * 5, ["a"] * 10)})


def test_a_class_of_one_group_keeps_it():
    groups = np.repeat(list("abcdefgh"), 4)
    labels = np.where(groups == "c", 1, 0)
    made = source(tiles(labels, groups))
    assert "c" in made.splits["train"].groups and made.splits["validation"].labels.tolist() == [0] * 4


def test_groups_of_the_train_split_alone_are_warned_of(capsys):
    train = tiles([0, 1] * 10, np.repeat(list("abcde"), 4))
    source(train, validation=tiles([0, 1], seed=1), test=tiles([0, 1], ["y", "z"], seed=2))
    assert capsys.readouterr().err == (
        "warning: the validation split of x has no groups: whether groups of other splits are in it is not known\n"
    )


@pytest.mark.parametrize(
    ("grouping", "message"),
    [
        (Grouping(column="patient"), "x has no groups by group_column=patient: leave it out"),
        (Grouping(pattern="(?P<group>a)"), "x has no groups by group_pattern="),
        (
            Grouping(kind="slide"),
            "group_kind=slide is given and x has no groups: say where they are",
        ),
    ],
)
def test_groups_that_were_asked_for_and_are_not_there(grouping, message):
    with pytest.raises(InputError) as raised:
        settle(check_groups("x", {"train": tiles([0, 1])}, grouping))
    assert str(raised.value).startswith(message)


def test_whole_groups_are_held_out_for_the_audit():
    train = tiles(np.tile([0, 1], 100), np.repeat([f"p{i}" for i in range(40)], 5))
    held = hold_out_for_audit(source(train, validation=tiles([0, 1], seed=1), test=tiles([0, 1], seed=2)), 0.1)
    assert len(np.unique(held.splits[HELD_OUT].groups)) == 5
    assert not set(held.splits[HELD_OUT].groups) & set(held.splits["train"].groups)
    again = hold_out_for_audit(source(train, validation=tiles([0, 1], seed=1), test=tiles([0, 1], seed=2)), 0.1)
    assert set(again.splits[HELD_OUT].groups) == set(held.splits[HELD_OUT].groups)


def test_tiles_without_copies_are_held_out_as_they_always_were():
    train = tiles([0] * 30 + [1] * 20)
    held = hold_out_for_audit(source(train, validation=tiles([0, 1], seed=1), test=tiles([0, 1], seed=2)), 0.1)
    # By the draw of the first version that held tiles out.
    expected = [np.random.default_rng(0).permutation(30)[:3], 30 + np.random.default_rng(1).permutation(20)[:2]]
    assert rows_of(held.splits[HELD_OUT], train) == sorted(np.concatenate(expected).tolist())


def test_one_group_cannot_be_held_out():
    train = tiles([0, 1] * 5, ["a"] * 10)
    made = source(train, validation=tiles([0, 1], seed=1), test=tiles([0, 1], seed=2))
    with pytest.raises(InputError, match=r"groups of x cannot be held out for the audit .*only one.* audit_share 0"):
        hold_out_for_audit(made, 0.1)
