from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from histodistill.selection import HerdingSelector, KernelHerdingSelector, RandomSelector, kernel_herding


def squared_distances(one, other):
    return np.square(one[:, None].astype(float) - other[None].astype(float)).sum(axis=2)


def discrepancy(images, chosen, scale):
    """Squared maximum mean discrepancy of the chosen images and all, by its definition."""
    kernel = np.exp(-squared_distances(images, images) / scale)
    return kernel.mean() + kernel[np.ix_(chosen, chosen)].mean() - 2 * kernel[:, chosen].mean()


def kernel_herding_by_definition(images, n):
    """Chen, Welling and Smola (2010), equation 8: greedy in E[k(x, ·)] − (1 / (t + 1)) Σ k(x, chosen)."""
    distances = squared_distances(images, images)
    kernel = np.exp(-distances / np.median(distances))
    chosen: list[int] = []
    while len(chosen) < n:
        score = [
            -np.inf if i in chosen else kernel[i].mean() - sum(kernel[i, j] for j in chosen) / (len(chosen) + 1)
            for i in range(len(images))
        ]
        chosen.append(int(np.argmax(score)))
    return chosen


def cloud(seed, n=40, width=3):
    rng = np.random.default_rng(seed)
    images = rng.normal(size=(n, width)) + 3 * rng.integers(0, 3, size=(n, 1))
    return images.astype(np.float32)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_kernel_herding_by_its_definition(seed):
    images = cloud(seed)
    selector = KernelHerdingSelector(n_per_class=12).fit(images, np.zeros(40, int))
    assert selector.selected_indices_.tolist() == kernel_herding_by_definition(images, 12)


def test_linear_herding_keeps_the_mean_and_kernel_herding_the_distribution():
    images, labels = cloud(3, n=300), np.zeros(300, int)
    scale = np.median(squared_distances(images, images))
    chosen = {
        "linear": HerdingSelector(n_per_class=15).fit(images, labels).selected_indices_,
        "gaussian": KernelHerdingSelector(n_per_class=15).fit(images, labels).selected_indices_,
    }
    at_random = [RandomSelector(15, seed).fit(images, labels).selected_indices_ for seed in range(20)]
    off_mean = {name: np.linalg.norm(images[rows].mean(0) - images.mean(0)) for name, rows in chosen.items()}
    assert off_mean["linear"] < min(np.linalg.norm(images[rows].mean(0) - images.mean(0)) for rows in at_random)
    differs = {name: discrepancy(images, rows, scale) for name, rows in chosen.items()}
    assert differs["gaussian"] < differs["linear"]
    assert differs["gaussian"] < min(discrepancy(images, rows, scale) for rows in at_random)


def test_a_kernel_on_one_spot_goes_by_index():
    selector = KernelHerdingSelector(n_per_class=3).fit(np.ones((6, 2)), np.zeros(6, int))
    assert selector.selected_indices_.tolist() == [0, 1, 2]


def test_kernel_herding_holds_the_distances_once():
    images, labels = cloud(0, n=1000, width=2), np.zeros(1000, int)
    tracemalloc.start()
    try:
        KernelHerdingSelector(n_per_class=2).fit(images, labels)
        assert tracemalloc.get_traced_memory()[1] < 1.5 * 8 * len(images) ** 2
    finally:
        tracemalloc.stop()


def test_of_many_images_some_say_what_all_are_like(monkeypatch):
    images, labels = cloud(5, n=600), np.zeros(600, int)
    scale = np.median(squared_distances(images, images))
    at_random = [RandomSelector(15, seed).fit(images, labels).selected_indices_ for seed in range(20)]
    monkeypatch.setattr(kernel_herding, "_MOST_FOR_MEDIAN", 100)
    monkeypatch.setattr(kernel_herding, "_MOST_KNOWN", 300)
    monkeypatch.setattr(kernel_herding, "_BLOCK_VALUES", 7000)  # blocks, the last of which is smaller
    chosen = [KernelHerdingSelector(15, seed).fit(images, labels).selected_indices_ for seed in (0, 0, 1)]
    assert chosen[0].tolist() == chosen[1].tolist() != chosen[2].tolist()
    for rows in chosen:
        assert discrepancy(images, rows, scale) < min(discrepancy(images, other, scale) for other in at_random)


@pytest.mark.parametrize("count", [1, 50, 599, 600])
def test_screened_in_blocks_images_are_distributed_as_all(monkeypatch, count):
    images = cloud(5, n=600)
    monkeypatch.setattr(kernel_herding, "_SCREENED_AT_ONCE", 100)
    chosen = kernel_herding.screen(images, count, np.random.default_rng(0))
    assert len(set(chosen)) == count and np.array_equal(chosen, np.sort(chosen))
    if count == 50:
        scale = np.median(squared_distances(images, images))
        at_random = [RandomSelector(50, seed).fit(images, np.zeros(600, int)).selected_indices_ for seed in range(20)]
        assert discrepancy(images, chosen, scale) < min(discrepancy(images, rows, scale) for rows in at_random)


def test_equal_images_that_rounding_tells_apart_go_by_index(monkeypatch):
    images = np.repeat(cloud(1, n=30), 3, axis=0)
    exact = kernel_herding.squared_distances_by_products
    noise = np.random.default_rng(0)
    monkeypatch.setattr(
        kernel_herding,
        "squared_distances_by_products",
        lambda one, other: exact(one, other) * (1 + 1e-13 * noise.random((len(one), len(other)))),
    )
    chosen = KernelHerdingSelector(n_per_class=12).fit(images, np.zeros(90, int)).selected_indices_
    # Of three equal ones the first, before the second and the third.
    for place, row in enumerate(chosen):
        assert all(earlier in chosen[:place] for earlier in range(row - row % 3, row))
