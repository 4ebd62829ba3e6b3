"""Copies among tiles, and tiles with nothing on them."""

from __future__ import annotations

import numpy as np

from histodistill.selection.near_copies import near_pairs
from histodistill.training.data.pixel_checks import count_duplicates, look_at_pixels
from histodistill.training.data.tiles import Tiles
from histodistill.training.running.findings import WARN


def noise(count: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 12, 12, 3), dtype=np.uint8)


def test_copies_and_empty_tiles_are_counted():
    train, test = noise(6, 0), noise(5, 1)
    train[3] = np.rot90(train[0])  # within
    test[1] = train[2][:, ::-1]  # across, the same
    test[4] = np.clip(train[5].astype(int) + 2, 0, 255)  # across, a little lighter
    test[0] = 240  # nothing on it
    splits = {
        "train": Tiles(train, np.array([0, 0, 0, 0, 1, 1])),
        "test": Tiles(test, np.array([0, 1, 0, 1, 1])),
    }
    found = count_duplicates(splits, near_pairs([train, test]))
    assert found.within == {"train": 1, "test": 0}
    assert found.across == {("train", "test"): 2} and found.exact == {("train", "test"): 1}
    assert found.several_labels == 2
    assert found.to_json() == {
        "within": {"train": 1, "test": 0},
        "across": [{"splits": ["train", "test"], "tiles": 2, "exact": 1}],
        "several_labels": 2,
    }
    told = [finding.found for finding in look_at_pixels(splits, found) if finding.status == WARN]
    assert told == [
        "2 of 5 test tiles are near copies of train tiles, 1 of them the same but for being turned or mirrored",
        "1 of 6 train tiles are near copies of another one in it",
        "2 tiles have a near copy of another class",
        "1 of 5 test tiles show next to nothing",
    ]


def test_nothing_is_wrong_with_different_tiles():
    splits = {name: Tiles(noise(4, seed), np.array([0, 0, 1, 1])) for seed, name in enumerate(("train", "test"))}
    found = count_duplicates(splits, near_pairs([tiles.images for tiles in splits.values()]))
    assert not any(finding.status == WARN for finding in look_at_pixels(splits, found))
