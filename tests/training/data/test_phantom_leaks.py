"""Planted leaks hold the looks of patients and none of their tiles."""

from __future__ import annotations

import numpy as np
import pytest

from histodistill.selection.near_copies import near_pairs
from histodistill.training.data.phantom import phantom_tiles
from histodistill.training.data.phantom_leaks import copied_looks, duplicate_tiles, neighbouring_tiles
from histodistill.training.data.phantom_patients import draw_patients
from histodistill.training.running.errors import InputError


@pytest.mark.parametrize(("share", "copied"), [(0, 0), (0.25, 5), (0.5, 10), (1, 20)])
def test_a_share_of_each_class_has_looks_of_known_patients(share, copied):
    known = draw_patients("train", 6)
    images = copied_looks(known, share, 20, image_size=16, seed=1)
    assert np.bincount(images.labels).tolist() == [20] * 5
    for label in range(5):
        assert np.isin(images.groups[images.labels == label], known.names).sum() == copied
    again = copied_looks(known, share, 20, image_size=16, seed=1)
    assert images.fingerprint() == again.fingerprint()
    assert images.fingerprint() != copied_looks(known, share, 20, image_size=16, seed=2).fingerprint()


def test_copied_looks_are_no_copies_of_tiles():
    patients = draw_patients("train", 4)
    tiles = phantom_tiles("train", 12, image_size=16, patients=patients)
    assert not len(near_pairs([tiles.images, copied_looks(patients, 1, 12, image_size=16, seed=0).images]))


def test_neighbours_show_the_same_place():
    first, second = neighbouring_tiles(draw_patients("train", 3), 2, image_size=20)
    assert first.images.shape == (30, 20, 20, 3) and first.groups.tolist() == second.groups.tolist()
    assert np.array_equal(first.images[:, 6:, 6:], second.images[:, :14, :14])
    assert not len(near_pairs([first.images, second.images]))


def test_duplicates_stand_for_as_many_tiles():
    tiles = phantom_tiles("train", 10, image_size=16)
    found = duplicate_tiles(tiles, 0.2)
    assert len(found) == 50
    pairs = near_pairs([found.images])
    assert len(pairs) == 10
    for values in (found.labels, found.groups, found.attributes["site"]):
        assert np.array_equal(values[pairs[:, 0]], values[pairs[:, 1]])
    assert duplicate_tiles(tiles, 0).fingerprint() == tiles.fingerprint()
    with pytest.raises(InputError, match=r"^share=0.6 is out of range: it must be 0 to 0.5"):
        duplicate_tiles(tiles, 0.6)
