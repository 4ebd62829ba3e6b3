from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from histodistill.selection.streams import stream
from histodistill.training.engine import steps
from histodistill.training.engine.steps import (
    BatchOrder,
    class_weights,
    cosine_learning_rate,
    process_slice,
    set_learning_rate,
    spread_indices,
    step_generator,
)


def drawn(order: BatchOrder, num_batches: int) -> np.ndarray:
    return np.concatenate([order.indices(step) for step in range(num_batches)])


@settings(max_examples=50, deadline=None)
@given(num_items=st.integers(1, 30), batch_size=st.integers(1, 70), seed=st.integers(0, 5))
def test_an_epoch_has_every_item_once(num_items, batch_size, seed):
    items = drawn(BatchOrder("net", num_items, batch_size, seed), -(-3 * num_items // batch_size))
    for epoch in range(3):
        assert sorted(items[epoch * num_items : (epoch + 1) * num_items]) == list(range(num_items))


def test_epochs_have_different_orders():
    first, second = drawn(BatchOrder("net", 50, 50, seed=0), 2).reshape(2, 50).tolist()
    assert first != second
    assert first != BatchOrder("net", 50, 50, seed=1).indices(0).tolist()


@pytest.mark.parametrize("weights", [None, np.ones(50)])
def test_a_batch_depends_on_seed_and_step_alone(weights):
    order = BatchOrder("net", 50, 7, 3, weights)
    first = [order.indices(step).tolist() for step in range(20)]
    backwards = [order.indices(step).tolist() for step in reversed(range(20))]
    assert backwards[::-1] == first
    assert len({tuple(batch) for batch in first}) == 20
    assert BatchOrder("net", 50, 7, 3, weights).indices(13).tolist() == first[13]


def test_small_batches_are_the_large_one_cut_up():
    small = drawn(BatchOrder("net", 10, 4, seed=0), 6)
    np.testing.assert_array_equal(small, drawn(BatchOrder("net", 10, 8, seed=0), 3))


@settings(max_examples=30, deadline=None)
@given(
    weights=st.lists(st.floats(0, 1e6), min_size=1, max_size=300).filter(lambda values: sum(values) > 0),
    seed=st.integers(0, 3),
    step=st.integers(0, 1000),
)
def test_weighted_batches_are_those_of_numpys_choice(weights, seed, step):
    weights = np.array(weights)
    rng = stream("weighted batch of net", seed, step)
    expected = rng.choice(len(weights), size=50, p=weights / weights.sum())
    found = BatchOrder("net", len(weights), 50, seed, weights).indices(step)
    assert found.dtype == np.int64
    np.testing.assert_array_equal(found, expected)


def test_an_epoch_is_ordered_once_however_many_batches_it_has(monkeypatch):
    made = []
    monkeypatch.setattr(steps, "stream", lambda *key: made.append(key) or stream(*key))
    drawn(BatchOrder("net", 1000, 8, seed=0), 300)  # 2.4 epochs
    assert [epoch for _, _, epoch in made] == [0, 1, 2]


def test_weights_are_obeyed():
    weights = np.array([0.0, 1.0, 3.0])
    found = drawn(BatchOrder("net", 3, 100, 0, weights), 40)
    np.testing.assert_allclose(np.bincount(found, minlength=3) / len(found), [0, 0.25, 0.75], atol=0.03)


@pytest.mark.parametrize(("power", "shares"), [(1.0, [1 / 2, 1 / 2]), (0.5, [3 / 4, 1 / 4])])
def test_class_weights(power, shares):
    labels = np.array([0] * 90 + [1] * 10)
    weights = class_weights(labels, power)
    total = [weights[labels == label].sum() / weights.sum() for label in (0, 1)]
    np.testing.assert_allclose(total, shares)


def test_power_zero_means_plain_epochs():
    assert class_weights(np.array([0, 0, 1]), 0) is None


@pytest.mark.parametrize("count", [8, 9, 1])
@pytest.mark.parametrize("num_processes", [1, 2, 3])
def test_processes_share_a_batch(count, num_processes):
    batch = torch.arange(count)
    shares = [process_slice(batch, index, num_processes) for index in range(num_processes)]
    assert sorted(torch.cat(shares).tolist()) == list(range(count))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_generators_of_steps_differ():
    keys = [
        (purpose, *numbers)
        for purpose in ("noise", "dropout")
        for numbers in [(seed, step, *tile) for seed in range(3) for step in range(3) for tile in ((), (0,), (1,))]
    ]
    numbers = {key: torch.rand(1, generator=step_generator(*key)).item() for key in keys}
    assert len(set(numbers.values())) == len(keys)
    again = {key: torch.rand(1, generator=step_generator(*key)).item() for key in reversed(keys)}
    assert again == numbers


@pytest.mark.parametrize("weights", [None, np.ones(50)])
def test_trainings_of_the_same_seed_have_orders_of_their_own(weights):
    one, other = (BatchOrder(name, 50, 50, 0, weights).indices(0).tolist() for name in ("autoencoder", "denoiser"))
    assert one != other


def test_learning_rate_rises_then_falls_to_zero():
    rates = [cosine_learning_rate(step, 100, 10, peak=2.0) for step in range(101)]
    np.testing.assert_allclose(rates[:10], np.arange(1, 11) / 10 * 2.0)
    assert rates[10] == 2.0
    assert all(later < earlier for earlier, later in pairwise(rates[10:]))
    assert rates[55] == pytest.approx(1.0)
    assert rates[100] == pytest.approx(0.0)
    assert cosine_learning_rate(130, 100, 10, peak=2.0) == pytest.approx(0.0)


def test_learning_rate_without_warmup_begins_at_the_peak():
    assert cosine_learning_rate(0, 10, 0, peak=0.5) == 0.5
    assert math.isfinite(cosine_learning_rate(1, 1, 1, peak=0.5))


def test_set_learning_rate():
    groups = [{"params": [torch.nn.Parameter(torch.zeros(1))]} for _ in range(2)]
    optimizer = torch.optim.SGD(groups, lr=1.0)
    set_learning_rate(optimizer, 0.25)
    assert [group["lr"] for group in optimizer.param_groups] == [0.25, 0.25]


@settings(max_examples=50, deadline=None)
@given(num_items=st.integers(1, 200), at_most=st.integers(1, 250))
def test_spread_indices_cover_all_evenly(num_items, at_most):
    indices = spread_indices(num_items, at_most)
    assert len(indices) == min(num_items, at_most)
    gaps = np.diff(np.append(indices, num_items))
    assert indices[0] == 0
    assert gaps.min() >= 1
    assert gaps.max() - gaps.min() <= 1
