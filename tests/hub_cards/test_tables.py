from __future__ import annotations

import numpy as np
import pytest

from histodistill.hub_cards.tables import COLUMNS, round_significant, round_soft_labels


@pytest.mark.parametrize("classes", [1, 2, 9, 100])
@pytest.mark.parametrize("sum_", [1, 0.9995, 1.0009])
def test_soft_labels_are_rounded_to_four_digits(classes, sum_):
    exact = (sum_ * np.random.default_rng(0).dirichlet(np.full(classes, 0.2), 300)).astype(np.float32)
    rounded = round_soft_labels(exact)
    assert rounded.dtype == np.float32
    np.testing.assert_array_equal(rounded, [[np.float32(f"{value:.4g}") for value in row] for row in rounded])
    assert np.abs(rounded.sum(axis=1, dtype=np.float64) - 1).max() <= 5.1e-4
    seen = exact >= 1e-11
    np.testing.assert_allclose(rounded[seen], exact[seen] / sum_, rtol=6e-4)
    np.testing.assert_array_equal(round_soft_labels(rounded), rounded)


def test_bits_below_the_precision_are_gone_and_small_probabilities_stay():
    """At temperature 4 a probability of a ten-millionth counts as two hundredths."""
    row = np.array([[0.75, 0.2499999, 1e-7, 3.21e-12, 2e-13, 0]], np.float32)
    expected = np.array([[0.75, 0.25, 1e-7, 3.21e-12, 0, 0]], np.float32)
    for changed in (row, np.nextafter(row, np.float32(1)), np.nextafter(row, np.float32(-1)).clip(0)):
        np.testing.assert_array_equal(round_soft_labels(changed), expected)
    assert at_temperature_4(round_soft_labels(row)) == pytest.approx(at_temperature_4(row), abs=5e-4)


def at_temperature_4(probabilities):
    powers = probabilities.astype(np.float64) ** 0.25
    return powers / powers.sum(axis=1, keepdims=True)


def test_centralities_are_rounded_to_four_digits():
    values = np.array([0.0165462955, -123456.7, 1e-300, 0.0, -0.0, 0.1 + 0.2])
    rounded = round_significant(values)
    assert rounded.tolist() == [0.01655, -123500.0, 1e-300, 0.0, 0.0, 0.3]
    assert not np.signbit(rounded[4])
    np.testing.assert_array_equal(round_significant(rounded), rounded)


def test_every_column_is_on_the_card():
    from histodistill.hub_cards.dataset_card import _COLUMNS, _MERGED_COLUMNS

    assert {"image", *COLUMNS} == _COLUMNS.keys() | _MERGED_COLUMNS.keys()
