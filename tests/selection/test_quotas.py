from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from histodistill.selection import QUOTA_RULES, community_quotas


@pytest.mark.parametrize(
    ("sizes", "n", "rule", "expected"),
    [
        ([50, 30, 20], 10, "proportional", [5, 3, 2]),
        ([50, 30, 20], 5, "proportional", [3, 1, 1]),  # 2.5, 1.5, 1.0: the tie goes to the lower label
        ([1000, 1, 1], 10, "proportional", [10, 0, 0]),
        ([50, 30, 20], 10, "uniform", [4, 3, 3]),
        ([50, 30, 1], 10, "uniform", [5, 4, 1]),  # the last has only one; the others share the rest
        ([5, 5, 5], 2, "uniform", [1, 1, 0]),
        ([100, 25, 4], 17, "sqrt", [10, 5, 2]),
        ([3, 0, 2], 5, "sqrt", [3, 0, 2]),
        ([3, 0, 2], 0, "uniform", [0, 0, 0]),
    ],
)
def test_known_quotas(sizes, n, rule, expected):
    quotas = community_quotas(sizes, n, rule)
    assert quotas.dtype == np.int64
    assert quotas.tolist() == expected


@settings(max_examples=60, deadline=None)
@given(data=st.data(), rule=st.sampled_from(QUOTA_RULES))
def test_quotas_sum_exactly_and_keep_to_the_sizes(data, rule):
    sizes = data.draw(st.lists(st.integers(0, 60), min_size=1, max_size=30))
    n = data.draw(st.integers(0, sum(sizes)))
    quotas = community_quotas(sizes, n, rule)
    assert quotas.sum() == n
    assert (quotas >= 0).all() and (quotas <= sizes).all()
    by_size = {}
    for size, quota in zip(sizes, quotas.tolist(), strict=True):
        by_size.setdefault(size, []).append(quota)
    for of_equal_size in by_size.values():
        assert max(of_equal_size) - min(of_equal_size) <= 1
        assert of_equal_size == sorted(of_equal_size, reverse=True)


@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_proportional_quotas_stay_within_one_of_the_ideal(data):
    sizes = data.draw(st.lists(st.integers(1, 60), min_size=1, max_size=30))
    n = data.draw(st.integers(0, sum(sizes)))
    ideal = n * np.array(sizes) / sum(sizes)
    assert (np.abs(community_quotas(sizes, n) - ideal) < 1 + 1e-9).all()
    assert (community_quotas(sizes, n) >= [math.floor(share + 1e-9) for share in ideal]).all()


@pytest.mark.parametrize(
    ("sizes", "n", "rule", "message"),
    [
        ([1, 2], 4, "proportional", "n=4 is out of range: the communities have only 3 images"),
        ([1, 2], -1, "proportional", "n=-1 is out of range"),
        ([1, -2], 1, "proportional", "sizes is not valid"),
        ([1.5, 2], 1, "proportional", "sizes is not valid"),
        ([1, 2], 1, "fair", "quota='fair' is not known: choose one of proportional, uniform, sqrt"),
    ],
)
def test_bad_input_is_refused_in_one_sentence(sizes, n, rule, message):
    with pytest.raises(ValueError, match=message):
        community_quotas(sizes, n, rule)
