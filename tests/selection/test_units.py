"""What belongs together, and which units are held out."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from histodistill.selection.streams import stream
from histodistill.selection.units import classes_of_units, draw_units, find_units, hold_out_units


def noise(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, 8, 8, 3), dtype=np.uint8)


def test_units_are_groups_joined_by_copies():
    images = noise(6)
    groups = np.array(["a", "b", "c", "a", "d", "c"])
    assert find_units([images], groups).tolist() == [0, 1, 2, 0, 3, 2]
    images[4] = np.rot90(images[1])  # of d, a copy of one of b
    assert find_units([images], groups).tolist() == [0, 1, 2, 0, 1, 2]
    assert find_units([images[:3], images[3:]], groups).tolist() == [0, 1, 2, 0, 1, 2]


def test_without_groups_units_are_tiles_with_their_copies():
    images = noise(4)
    images[3] = images[1]
    assert find_units([images]).tolist() == [0, 1, 2, 1]


def test_the_class_of_a_unit_is_the_commonest_and_the_lowest_of_several():
    units = np.array([0, 0, 0, 1, 1, 2])
    assert classes_of_units(units, np.array([2, 1, 2, 3, 0, 1])).tolist() == [2, 0, 1]
    assert classes_of_units(np.empty(0, np.int64), np.empty(0, np.int64)).tolist() == []


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 3), min_size=1, max_size=40), st.data())
def test_draws_have_their_size_and_are_spread_over_classes(classes, data):
    classes = np.array(classes)
    count = data.draw(st.integers(0, len(classes)))
    drawn = draw_units(classes, count, np.random.default_rng(0))
    assert drawn.sum() == count
    for label in np.unique(classes):  # a systematic draw takes the floor or the ceiling of each class's share
        share = count * (classes == label).mean()
        assert np.floor(share) <= drawn[classes == label].sum() <= np.ceil(share)


def test_each_unit_is_drawn_as_often_as_any_other():
    rng, classes = np.random.default_rng(0), np.array([0] * 7 + [1] * 2 + [2])
    often = np.mean([draw_units(classes, 3, rng) for _ in range(8000)], axis=0)
    np.testing.assert_allclose(often, 0.3, atol=0.02)


def test_whole_units_are_held_out():
    units = np.repeat(np.arange(40), 3)
    labels = np.tile([0, 1, 2], 40)
    held = hold_out_units(units, labels, 0.1, stream("test"))
    assert held.sum() == 15 and len(np.unique(units[held])) == 5
    assert not np.isin(units[held], units[~held]).any()


def test_a_class_keeps_its_only_unit():
    units, labels = np.arange(10), np.array([0] * 9 + [1])
    for seed in range(20):
        assert not hold_out_units(units, labels, 0.5, np.random.default_rng(seed))[9]


@pytest.mark.parametrize(
    ("count", "held"), [(2, 1), (3, 1), (5, 1), (6, 2), (12, 4), (15, 5), (30, 5), (50, 5), (60, 6)]
)
def test_at_least_five_units_or_a_third_are_held_out(count, held):
    assert hold_out_units(np.arange(count), np.zeros(count, int), 0.1, np.random.default_rng(0)).sum() == held


def test_what_cannot_be_held_out_is_said():
    with pytest.raises(ValueError, match="there is only one"):
        hold_out_units(np.zeros(5, int), np.zeros(5, int), 0.1, np.random.default_rng(0))
    with pytest.raises(ValueError, match="a class is left without a training tile"):
        hold_out_units(np.arange(3), np.arange(3), 0.1, np.random.default_rng(0))
