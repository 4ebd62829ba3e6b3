from __future__ import annotations

import numpy as np
import pytest

from histodistill.hub_cards.tables import (
    COLUMNS,
    MAX_VIEWS,
    are_label_codes,
    decode_soft_label_views,
    encode_soft_label_views,
    round_significant,
    round_soft_labels,
)
from histodistill.selection.names import MAX_LABEL_VIEWS


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


@pytest.mark.parametrize("classes", [1, 2, 9, 100])
def test_codes_of_soft_labels_are_off_by_the_factor_that_is_told(classes):
    exact = np.random.default_rng(0).dirichlet(np.full(classes, 0.2), (100, 3)).astype(np.float32)
    codes = encode_soft_label_views(exact)
    assert codes.dtype == np.uint8 and are_label_codes(codes).all()
    told, seen = 2 ** (-codes.astype(float) / 8), exact >= 2.5e-10
    assert np.abs(np.log2(told[seen] / exact[seen])).max() <= 1 / 16 + 1e-6
    found = decode_soft_label_views(codes)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, told / told.sum(axis=2, keepdims=True), rtol=1e-6)


def test_codes_of_known_probabilities():
    probabilities = np.array([[1, 0.5, 0.25, 2**-10, 1e-9, 0]])
    assert encode_soft_label_views(probabilities).tolist() == [[0, 8, 16, 80, 239, 255]]


@pytest.mark.parametrize(
    ("codes", "expected"),
    [([0, 255, 255], True), ([8, 8, 255], True), ([0, 36, 255], True), ([0, 24, 255], False), ([1, 255, 255], False),
     ([9, 8, 200], True), ([9, 9, 200], False), ([255] * 3, False)],
)  # fmt: skip
def test_codes_of_other_sums_are_known(codes, expected):
    assert are_label_codes(np.array([[codes]], np.uint8)).tolist() == [[expected]]


def test_gate_and_options_have_one_limit():
    assert MAX_VIEWS == MAX_LABEL_VIEWS


def test_centralities_are_rounded_to_four_digits():
    values = np.array([0.0165462955, -123456.7, 1e-300, 0.0, -0.0, 0.1 + 0.2])
    rounded = round_significant(values)
    assert rounded.tolist() == [0.01655, -123500.0, 1e-300, 0.0, 0.0, 0.3]
    assert not np.signbit(rounded[4])
    np.testing.assert_array_equal(round_significant(rounded), rounded)


def test_every_column_is_on_the_card():
    from histodistill.hub_cards.dataset_card import _COLUMNS, _MERGED_COLUMNS

    assert {"image", *COLUMNS} == _COLUMNS.keys() | _MERGED_COLUMNS.keys()
