"""Which tiles are the same but for small differences."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from histodistill.selection.image_rows import rows_of
from histodistill.selection.names import SYMMETRIES
from histodistill.selection.near_copies import (
    TOLERANCE,
    connected,
    find_near_copies,
    in_order,
    near_pairs,
    tile_keys,
)
from histodistill.selection.units import find_units
from histodistill.selection.views import LEAST_CONTENT, apply_symmetry


def tissue(n: int, size: int = 16, seed: int = 0) -> np.ndarray:
    """Blotches, whose neighbouring pixels are alike as in tissue."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(60, 230, (n, 5, 5, 3)).astype(np.float64)
    rows = np.linspace(0, 4, size).round().astype(int)
    return coarse[:, rows][:, :, rows].astype(np.uint8)


def brute_force(images: np.ndarray, tolerance: float) -> set[tuple[int, int]]:
    """All pairs by definition, for images with something on them."""
    views = np.stack([apply_symmetry(images, s) for s in range(SYMMETRIES)]).astype(int)
    apart = np.abs(images[:, None, None].astype(int) - views.swapaxes(0, 1)[None]).mean(axis=(3, 4, 5)).min(axis=2)
    return {(i, j) for i, j in np.argwhere(apart <= tolerance).tolist() if i < j}


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(8, 21), st.floats(0, 12), st.integers(0, 6))
def test_all_pairs_are_found_and_no_others(seed, size, noise, repeated):
    rng = np.random.default_rng(seed)
    images = tissue(12, size, seed)
    symmetries = rng.integers(0, SYMMETRIES, 12)
    turned = np.concatenate([apply_symmetry(images[i : i + 1], s) for i, s in enumerate(symmetries)])
    copies = np.clip(turned + rng.normal(0, noise, turned.shape), 0, 255).astype(np.uint8)
    both = np.concatenate([images, copies])
    both[rng.permutation(24)[:repeated]] = both[5]
    found = near_pairs([both[:10], both[10:]])
    expected = brute_force(both, TOLERANCE)
    assert {tuple(pair) for pair in found.tolist()} <= expected
    # Of tiles that are the same, not all pairs are told, but all that they stand for.
    assert copies_in_sets(found) == copies_in_sets(expected)
    np.testing.assert_array_equal(connected(found, 24), connected(np.array(sorted(expected)).reshape(-1, 2), 24))
    if len(np.unique(both, axis=0)) == 24 and noise > 1:
        assert {tuple(pair) for pair in found.tolist()} == expected


def copies_in_sets(pairs) -> set[tuple[int, bool]]:
    """Each tile with the sets in which it has a copy, of two sets of which the first has 10 tiles."""
    return {(tile, other >= 10) for pair in pairs for tile, other in (tuple(pair), tuple(pair)[::-1])}


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 8), st.integers(0, 4), st.sampled_from([0.0, 2.0, 6.0]))
def test_one_search_tells_of_any_parts(seed, kinds, parts, noise):
    rng = np.random.default_rng(seed)
    originals = tissue(kinds, 8, seed)
    originals[0] = 240  # of one colour
    originals[1] = rng.integers(238, 243, originals[1].shape)  # with nothing on it
    images = originals[rng.integers(0, kinds, 30)]
    symmetries = rng.integers(0, SYMMETRIES, 30)
    images = np.concatenate([apply_symmetry(images[i : i + 1], s) for i, s in enumerate(symmetries)])
    moved = rng.random(30) < 0.5
    images[moved] = np.clip(images[moved] + rng.normal(0, noise, images[moved].shape), 0, 255).astype(np.uint8)
    copies = find_near_copies(images)
    order = rng.permutation(30)[: rng.integers(0, 31)]
    drawn = rng.integers(0, 4, len(order))
    sets = [order[drawn == part] for part in range(parts)]
    found = copies.pairs_among(sets)
    np.testing.assert_array_equal(found, near_pairs([images[rows] for rows in sets]))
    np.testing.assert_array_equal(found, near_pairs([rows_of(images, rows) for rows in sets]))
    joined = images[np.concatenate([np.empty(0, np.int64), *sets]).astype(int)]
    if len(joined):
        of_these, anew = copies.at(np.concatenate(sets)), find_near_copies(joined)
        np.testing.assert_array_equal(of_these.first, anew.first)
        np.testing.assert_array_equal(of_these.pairs, anew.pairs)
    told = {tuple(pair) for pair in found.tolist()}
    expected = {(i, j) for i, j in brute_force(joined, 0) if len(np.unique(joined[i].reshape(-1, 3), axis=0)) > 1}
    shows = joined.mean(axis=3).std(axis=(1, 2)) >= LEAST_CONTENT if len(joined) else []
    expected |= {(i, j) for i, j in brute_force(joined, TOLERANCE) if shows[i] and shows[j]}
    assert told <= expected
    of = np.array(sorted(expected), dtype=np.int64).reshape(-1, 2)
    np.testing.assert_array_equal(connected(found, len(joined)), connected(of, len(joined)))


def test_the_first_of_the_same_and_pairs_of_firsts_are_kept():
    images = tissue(8)
    images[3], images[6] = np.rot90(images[1]), images[1]
    images[5] = np.clip(images[6].astype(int) + 2, 0, 255)
    images[7] = images[5, :, ::-1]
    copies = find_near_copies(images)
    assert copies.first.tolist() == [0, 1, 2, 1, 4, 5, 1, 5]
    assert copies.pairs.tolist() == [[1, 5]]
    # 6 is the first of its kind here, and all of a kind are told once in each set.
    assert copies.pairs_among([np.array([6, 3]), np.array([0, 7])]).tolist() == [[0, 1], [0, 3], [1, 3]]


def test_keys_tell_tiles_apart_whatever_way_they_are_turned():
    images = tissue(20)
    keys = tile_keys(images)
    assert len(np.unique(keys)) == 20
    for symmetry in range(SYMMETRIES):
        np.testing.assert_array_equal(tile_keys(apply_symmetry(images, symmetry)), keys)
    images[:, 3, 4, 1] ^= 1
    assert not set(tile_keys(images).tolist()) & set(keys.tolist())


def test_very_many_tiles_with_nothing_on_them_are_not_compared_with_each_other():
    images = np.random.default_rng(0).integers(238, 243, (3000, 8, 8, 3)).astype(np.uint8)
    images[2999] = images[7, ::-1]
    assert near_pairs([images]).tolist() == [[7, 2999]]


def test_very_many_equal_tiles_take_no_time():
    images = np.repeat(tissue(2), 3000, axis=0)
    pairs = near_pairs([images[:4000], images[4000:]])
    assert len(pairs) < 3 * len(images)
    np.testing.assert_array_equal(np.bincount(find_units([images])), [3000, 3000])


@pytest.mark.parametrize("size", [8, 13, 28, 41])
@pytest.mark.parametrize("symmetry", range(SYMMETRIES))
def test_turned_copies_between_sets(size, symmetry):
    images, others = tissue(6, size), tissue(6, size, seed=1)
    others[2] = apply_symmetry(images[4:5], symmetry)[0]
    assert near_pairs([images, others]).tolist() == [[4, 8]]
    assert near_pairs([images, others], tolerance=0).tolist() == [[4, 8]]


def test_a_difference_in_one_corner_counts_by_its_size():
    images = tissue(2)
    images[1] = images[0]
    images[1, :4, :4] = 255 - images[0, :4, :4]
    mean = np.abs(images[0].astype(int) - images[1]).mean()
    assert 3 < mean < 30
    assert len(near_pairs([images], tolerance=mean + 0.01)) == 1
    assert len(near_pairs([images], tolerance=mean - 0.01)) == 0


def test_tiles_with_nothing_on_them_are_copies_only_where_they_are_equal():
    rng = np.random.default_rng(0)
    pale = np.clip(rng.normal(240, 2, (5, 16, 16, 3)), 0, 255).astype(np.uint8)
    pale[3] = np.rot90(pale[1])
    assert near_pairs([pale]).tolist() == [[1, 3]]
    assert len(near_pairs([np.full((4, 16, 16, 3), 255, np.uint8)])) == 0


def test_clusters_are_chains_numbered_by_their_first_tile():
    images = tissue(5).astype(int)
    images[3] = images[0] + 5
    images[4] = images[0] + 10  # near to 3 alone
    clusters = find_units([images.clip(0, 255).astype(np.uint8)])
    assert clusters.tolist() == [0, 1, 2, 0, 0]


@pytest.mark.parametrize("sets", [[], [np.empty((0, 8, 8, 3), np.uint8)]])
def test_no_tiles_have_no_copies(sets):
    assert near_pairs(sets).shape == (0, 2) and find_units(sets).shape == (0,)


def test_partitions_in_order():
    assert in_order(np.array(["b", "a", "b", "c"])).tolist() == [0, 1, 0, 2]
    assert in_order(np.array([], dtype=str)).tolist() == []


def test_all_tiles_are_told_of_as_compared():
    counts = []
    find_near_copies(np.random.default_rng(0).integers(0, 256, (600, 8, 8, 3), dtype=np.uint8), seen=counts.append)
    assert sum(counts) == 600 and len(counts) > 2
