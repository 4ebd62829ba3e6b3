from __future__ import annotations

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from histodistill.training.evaluation import generation_metrics
from histodistill.training.evaluation.generation_metrics import (
    Neighbourhoods,
    frechet_distance,
    kernel_distance,
    neighbourhoods,
)
from histodistill.training.running.errors import InputError


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


def column(*values: float) -> np.ndarray:
    return np.array(values, np.float64)[:, None]


# Neighbourhoods.


def dense_neighbourhoods(real: np.ndarray, generated: np.ndarray, k: int) -> Neighbourhoods:
    """The definitions, word by word, with every difference in memory."""

    def distances(first: np.ndarray, second: np.ndarray) -> np.ndarray:
        return np.sqrt(((first[:, None].astype(np.float64) - second[None].astype(np.float64)) ** 2).sum(-1))

    def radii(points: np.ndarray) -> np.ndarray:
        return np.sort(distances(points, points), axis=1)[:, k]  # the nearest is the point itself

    between = distances(generated, real)
    in_real, in_generated = between < radii(real), between < radii(generated)[:, None]
    return Neighbourhoods(
        precision=in_real.any(axis=1).mean(),
        recall=in_generated.any(axis=0).mean(),
        density=in_real.sum() / (k * len(generated)),
        coverage=in_real.any(axis=0).mean(),
    )


def assert_same(found: Neighbourhoods, expected: Neighbourhoods) -> None:
    assert vars(found) == pytest.approx(vars(expected), abs=1e-12)


def test_by_hand_on_a_line():
    # The nearest other points make these balls around the real ones: (-1, 1), (0, 2), (1, 5), (3, 17).
    real = column(0, 1, 3, 10)
    # And these around the generated ones: (-0.5, 1.5), (0.5, 2.5), (19, 21), (20, 22), (21, 59).
    generated = column(0.5, 1.5, 20, 21, 40)
    # 0.5 lies in two real balls, 1.5 in two, the rest in none; the ball around 10 is empty, and generated balls hold
    # 0 and 1 of the real points.
    expected = Neighbourhoods(precision=2 / 5, recall=2 / 4, density=4 / 5, coverage=3 / 4)
    assert_same(neighbourhoods(real, generated, 1), expected)


def test_the_edge_of_a_neighbourhood_lies_outside():
    assert_same(neighbourhoods(column(0, 1), column(2, 3), 1), Neighbourhoods(0, 0, 0, 0))
    assert_same(neighbourhoods(column(0, 1), column(1.75, 2.75), 1), Neighbourhoods(0.5, 0.5, 0.5, 0.5))


# Whole numbers, few of them: many duplicates and ties, and all distances exact.
lattices = st.integers(6, 30).flatmap(
    lambda rows: st.lists(st.lists(st.integers(0, 3), min_size=2, max_size=2), min_size=rows, max_size=rows)
)


@given(real=lattices, generated=lattices, k=st.integers(1, 5), block=st.sampled_from([1, 40, 2**25]))
@settings(max_examples=60, deadline=None)
def test_equal_to_the_definitions_whatever_the_block(real, generated, k, block):
    real, generated = np.array(real, np.float32), np.array(generated, np.float32)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(generation_metrics, "_BLOCK", block)
        found = neighbourhoods(real, generated, k)
    assert_same(found, dense_neighbourhoods(real, generated, k))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("block", [1, 500, 2**25])
def test_equal_to_the_definitions_for_embeddings(dtype, block, monkeypatch):
    monkeypatch.setattr(generation_metrics, "_BLOCK", block)
    real, generated = normal(50, 8).astype(dtype), 0.8 * normal(70, 8, seed=1).astype(dtype) + dtype(0.3)
    expected = dense_neighbourhoods(real, generated, 5)
    assert len({expected.precision, expected.recall, expected.density, expected.coverage}) == 4
    assert_same(neighbourhoods(real, generated), expected)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_copies_have_neighbourhoods_without_extent(dtype):
    # Eight copies of each of ten points, and twenty points once: more copies than neighbours.
    points = normal(30, 64).astype(dtype)
    points = np.concatenate([points[:20], np.repeat(points[20:], 8, axis=0)])
    assert_same(neighbourhoods(points, points.copy(), 5), dense_neighbourhoods(points, points, 5))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_equal_sets_lie_in_each_other_once(dtype):
    # In each neighbourhood of k lie the point itself and k - 1 more: the k-th is on its edge.
    points = normal(200, 64).astype(dtype)
    assert_same(neighbourhoods(points, points.copy(), 5), Neighbourhoods(1, 1, 1, 1))


def test_sets_that_are_far_apart():
    assert_same(neighbourhoods(normal(20, 4), normal(20, 4, seed=1) + 100, 5), Neighbourhoods(0, 0, 0, 0))


def test_precision_and_recall_change_places_with_the_sets():
    real, generated = normal(60, 6), 0.5 * normal(40, 6, seed=1)
    one, other = neighbourhoods(real, generated, 3), neighbourhoods(generated, real, 3)
    assert (one.precision, one.recall) == (other.recall, other.precision)
    # Generated points near the middle are all plausible, and leave out what lies further away.
    assert one.precision > one.recall


def test_published_figures_of_two_equal_distributions():
    """What the README of `prdc`, the authors' own implementation, shows for this size; the draw is another one."""
    rng = np.random.default_rng(0)
    real, generated = rng.standard_normal((2, 10_000, 1000), dtype=np.float32)
    found = neighbourhoods(real, generated, n_neighbors=5)
    assert found.precision == pytest.approx(0.4772, abs=0.02)
    assert found.recall == pytest.approx(0.4705, abs=0.02)
    assert found.density == pytest.approx(1.0555, abs=0.02)
    assert found.coverage == pytest.approx(0.9735, abs=0.005)


# Fréchet distance.


def sample_with(mean: np.ndarray, covariance: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Points whose mean and (sample) covariance are exactly these."""
    points = normal(count, len(mean), seed=seed)
    points -= points.mean(axis=0)
    points = points @ np.linalg.inv(np.linalg.cholesky(np.cov(points, rowvar=False))).T
    return points @ np.linalg.cholesky(covariance).T + mean


def random_covariance(size: int, seed: int) -> np.ndarray:
    factor = normal(size, size, seed=seed)
    return factor @ factor.T + 0.1 * np.eye(size)


def test_frechet_distance_by_hand():
    # Means 5 apart, and standard deviations that differ by 2 and by 3: 25 + 4 + 9.
    first = sample_with(np.array([0.0, 0.0]), np.diag([1.0, 4.0]), 20, seed=0)
    second = sample_with(np.array([3.0, 4.0]), np.diag([9.0, 25.0]), 30, seed=1)
    assert frechet_distance(first, second) == pytest.approx(38, rel=1e-9)


def test_frechet_distance_is_the_closed_formula():
    means = normal(2, 6, seed=2)
    covariances = [random_covariance(6, seed) for seed in (3, 4)]
    # Both roots in the way that differs most from eigenvalues of the product.
    root = scipy.linalg.sqrtm(covariances[0])
    middle = scipy.linalg.sqrtm(root @ covariances[1] @ root)
    expected = ((means[0] - means[1]) ** 2).sum() + np.trace(covariances[0] + covariances[1] - 2 * middle).real
    first, second = (sample_with(means[i], covariances[i], 40 + i, seed=i) for i in (0, 1))
    assert frechet_distance(first, second) == pytest.approx(expected, rel=1e-8)
    assert frechet_distance(second, first) == pytest.approx(expected, rel=1e-8)


@pytest.mark.parametrize("count", [2, 10, 100])
def test_frechet_distance_of_equal_sets_is_zero(count):
    # Fewer points than dimensions leave a covariance without an inverse.
    points = normal(count, 16).astype(np.float32)
    assert frechet_distance(points, points[::-1].copy()) == pytest.approx(0, abs=1e-4)


def test_a_shift_adds_its_squared_length():
    shift = np.array([1.0, -2.0, 2.0])
    points = normal(50, 3)
    assert frechet_distance(points, points + shift) == pytest.approx(9, rel=1e-6)
    centred = points - points.mean(axis=0)
    wider = frechet_distance(centred, 1.5 * centred)
    assert wider > 0.1
    assert frechet_distance(centred, 1.5 * centred + shift) == pytest.approx(wider + 9, rel=1e-6)


# Kernel distance.


def unbiased_squared_mmd(real: np.ndarray, generated: np.ndarray) -> float:
    def kernel(x: np.ndarray, y: np.ndarray) -> float:
        return (float(x @ y) / real.shape[1] + 1) ** 3

    def mean_over_pairs(points: np.ndarray) -> float:
        return np.mean([kernel(x, y) for i, x in enumerate(points) for j, y in enumerate(points) if i != j])

    across = np.mean([kernel(x, y) for x in real for y in generated])
    return mean_over_pairs(real) + mean_over_pairs(generated) - 2 * across


@pytest.mark.parametrize("subset_size", [20, 1000])
def test_kernel_distance_of_all_is_the_unbiased_estimate(subset_size):
    real, generated = normal(20, 5), 1.2 * normal(20, 5, seed=1) + 0.2
    expected = unbiased_squared_mmd(real, generated)
    assert kernel_distance(real, generated, subset_size=subset_size, num_subsets=3) == pytest.approx(
        expected, rel=1e-9
    )


@pytest.mark.parametrize(("counts", "subsets"), [((9, 9), 1), ((9, 8), 5), ((10, 10), 5)])
def test_kernel_distance_of_all_is_estimated_once(counts, subsets, monkeypatch):
    from torchmetrics.image import kid

    estimated = []
    poly_mmd = kid.poly_mmd
    monkeypatch.setattr(kid, "poly_mmd", lambda *sets: estimated.append(sets) or poly_mmd(*sets))
    real, generated = normal(counts[0], 3), normal(counts[1], 3, seed=1)
    kernel_distance(real, generated, subset_size=9, num_subsets=5)
    assert len(estimated) == subsets


def test_kernel_distance_takes_as_many_as_the_smaller_set_has():
    # Of the larger set, where all are copies of one point, every choice is the same.
    real, generated = normal(6, 3), np.tile(normal(1, 3, seed=1), (30, 1))
    expected = unbiased_squared_mmd(real, generated[:6])
    assert kernel_distance(real, generated, num_subsets=2) == pytest.approx(expected, rel=1e-9)


def test_number_of_images_moves_the_frechet_distance_and_not_the_kernel_distance():
    kernel, frechet = {}, {}
    for count in (10, 40):
        draws = [(normal(count, 4, seed=2 * i), normal(count, 4, seed=2 * i + 1)) for i in range(60)]
        kernel[count] = np.array([kernel_distance(*pair, num_subsets=1) for pair in draws])
        frechet[count] = np.array([frechet_distance(*pair) for pair in draws])
    for values in kernel.values():
        assert abs(values.mean()) < 2 * values.std() / np.sqrt(len(values))
        assert values.min() < 0
    assert frechet[10].mean() > 2 * frechet[40].mean()
    assert frechet[40].min() > 0


def test_choice_of_subsets_depends_on_the_seed_alone():
    real, generated = normal(30, 4), normal(30, 4, seed=1) + 0.5
    torch.manual_seed(7)
    before = torch.get_rng_state()
    found = kernel_distance(real, generated, subset_size=8, num_subsets=2, seed=3)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(8)
    assert kernel_distance(real, generated, subset_size=8, num_subsets=2, seed=3) == found
    assert kernel_distance(real, generated, subset_size=8, num_subsets=2, seed=4) != found


# Errors.


@pytest.mark.parametrize("measure", [frechet_distance, kernel_distance, neighbourhoods])
@pytest.mark.parametrize(
    ("real", "generated", "message"),
    [
        (normal(9), normal(9), r"embeddings are \(9,\) and \(9,\): they must be N×D and M×D"),
        (normal(9, 2), normal(9, 3), r"embeddings are \(9, 2\) and \(9, 3\): they must be N×D and M×D"),
        (normal(9, 2, 1), normal(9, 2), r"embeddings are \(9, 2, 1\) and \(9, 2\): they must be N×D and M×D"),
        (normal(9, 2), np.full((9, 2), np.nan), "generated embeddings hold values that are not finite: embed with"),
        (np.full((9, 2), np.inf), normal(9, 2), "real embeddings hold values that are not finite: embed with another"),
    ],
)
def test_embeddings_that_cannot_be_compared(measure, real, generated, message):
    with pytest.raises(InputError, match=f"^{message}"):
        measure(real, generated)


@pytest.mark.parametrize("measure", [frechet_distance, kernel_distance])
def test_two_images_are_needed_for_a_distance(measure):
    with pytest.raises(InputError, match=r"^there are 1 real embeddings: at least 2 are needed$"):
        measure(normal(1, 3), normal(9, 3))
    with pytest.raises(InputError, match=r"^there are 0 generated embeddings: at least 2 are needed$"):
        measure(normal(9, 3), normal(0, 3))
    assert np.isfinite(measure(normal(2, 3), normal(2, 3, seed=1)))


def test_more_images_than_neighbours_are_needed():
    with pytest.raises(InputError, match=r"^there are 3 real embeddings: at least 4 are needed$"):
        neighbourhoods(normal(3, 2), normal(9, 2), 3)
    with pytest.raises(InputError, match=r"^there are 3 generated embeddings: at least 4 are needed$"):
        neighbourhoods(normal(9, 2), normal(3, 2), 3)
    assert neighbourhoods(normal(4, 2), normal(4, 2), 3).coverage == 1


def test_number_of_neighbours_starts_at_one():
    with pytest.raises(InputError, match=r"^n_neighbors=0 is out of range: it must be at least 1$"):
        neighbourhoods(normal(9, 2), normal(9, 2), 0)
