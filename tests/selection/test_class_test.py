from __future__ import annotations

import numpy as np
import pytest

from histodistill.selection.class_test import class_p_value
from histodistill.selection.permutation import highest_test, redraw_within, shares_of_draws


CLASSES = np.arange(200) % 4
HELD = np.arange(200) < 40


def p_value(nearest: np.ndarray, labels: np.ndarray, within=()) -> float:
    draws = redraw_within(HELD, CLASSES, 999, np.random.default_rng(0))
    return class_p_value({"pixels": nearest}, labels, {"pixels": np.ones(200, np.int64)}, within, draws)


def test_a_class_that_leaks_is_seen_among_others_that_do_not():
    rng = np.random.default_rng(1)
    nearest, labels = rng.integers(0, 200, 400), np.arange(400) % 4
    honest = p_value(nearest, labels)
    training = np.flatnonzero(~HELD & (CLASSES == 2))
    leaking = nearest.copy()
    leaking[labels == 2] = rng.choice(training, 100)
    # Another class is nearer to held-out tiles, and all together seem as they should be.
    others = np.flatnonzero(HELD & (CLASSES != 2))
    leaking[np.flatnonzero(labels == 3)[:20]] = rng.choice(others, 20)
    shares = shares_of_draws(leaking, np.ones(200, np.int64), redraw_within(HELD, CLASSES, 999, rng))
    assert honest > 0.05 and (shares >= shares[0]).mean() > 0.05
    assert p_value(leaking, labels) == pytest.approx(1 / 1000, abs=1e-9)


def test_an_attack_within_a_class_counts():
    rng = np.random.default_rng(2)
    nearest, labels = rng.integers(0, 200, 400), np.arange(400) % 4
    units = np.flatnonzero(CLASSES == 1)
    assert p_value(nearest, labels, [(units, (~HELD[units]).astype(float))]) == pytest.approx(1 / 1000, abs=1e-9)
    assert p_value(nearest, labels, [(units, rng.standard_normal(len(units)))]) > 0.05


def test_no_more_fail_by_chance_than_the_level_says():
    """Whatever is nearest to what: each draw of who was held out is as likely, so p-values are spread evenly."""
    rng = np.random.default_rng(3)
    nearest, labels = rng.integers(0, 200, 400), np.arange(400) % 4
    found = []
    for _ in range(200):
        held = redraw_within(HELD, CLASSES, 1, rng)[1]
        draws = redraw_within(held, CLASSES, 199, rng)
        found.append(class_p_value({"a": nearest}, labels, {"a": np.ones(200, np.int64)}, (), draws))
    assert np.mean(np.array(found) <= 0.1) < 0.17
    assert np.mean(found) == pytest.approx(0.5, abs=0.08)


def test_redraws_keep_how_many_of_each_class_were_held_out():
    draws = redraw_within(HELD, CLASSES, 20, np.random.default_rng(4))
    assert (draws[0] == HELD).all() and len({row.tobytes() for row in draws}) == 21
    for label in range(4):
        assert (draws[:, label == CLASSES].sum(axis=1) == 10).all()


def test_what_never_varies_tells_nothing():
    assert highest_test(np.ones((50, 3))) == 1.0
    column = np.zeros(50)
    column[0] = 1.0
    assert highest_test(np.column_stack([np.ones(50), column])) == pytest.approx(1 / 50)


def test_images_that_are_near_to_no_unit_do_not_count():
    draws = redraw_within(HELD, CLASSES, 50, np.random.default_rng(5))
    nearest = np.random.default_rng(6).integers(0, 200, 100)
    tiles = np.ones(200, np.int64)
    assert (
        shares_of_draws(np.append(nearest, [-1, -1]), tiles, draws) == shares_of_draws(nearest, tiles, draws)
    ).all()
    assert (shares_of_draws(np.array([-1]), tiles, draws) == 0).all()
