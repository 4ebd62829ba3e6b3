from __future__ import annotations

import numpy as np
import pytest

from histodistill.selection.image_rows import ImageRows, rows_of
from histodistill.training.data import scratch_images
from histodistill.training.data.scratch_images import decode_once, keep_images
from histodistill.training.data.tile_store import TileStore


class Elsewhere(ImageRows):
    """Images of which it is known which were read."""

    def __init__(self, images: np.ndarray):
        super().__init__(images.shape)
        self.images, self.asked = images, []

    def read(self, rows: np.ndarray) -> np.ndarray:
        self.asked += rows.tolist()
        return self.images[rows]


@pytest.fixture(params=["few", "many"])
def limit(request, monkeypatch):
    """Whether images go into memory, or into a file."""
    monkeypatch.setattr(scratch_images, "FEW_BYTES", {"few": 2**20, "many": 100}[request.param])
    return request.param


@pytest.fixture
def images():
    return np.random.default_rng(0).integers(0, 256, (20, 4, 4, 3), dtype=np.uint8)


def test_parts_become_one_array_and_nothing_stays_on_the_disk(tmp_path, images, limit):
    kept = keep_images((images[start : start + 7] for start in range(0, 20, 7)), images.shape, tmp_path)
    assert type(kept) is np.ndarray and kept.dtype == np.uint8
    np.testing.assert_array_equal(kept, images)
    np.testing.assert_array_equal(kept[[3, 1, 3]], images[[3, 1, 3]])
    assert list(tmp_path.iterdir()) == []


def test_images_are_read_once(tmp_path, images, limit):
    elsewhere = Elsewhere(images)
    kept = decode_once(elsewhere, tmp_path)
    for _ in range(2):
        np.testing.assert_array_equal(kept, images)
    assert elsewhere.asked == list(range(20))


def test_of_a_view_what_it_shows_is_read_once_and_in_order(tmp_path, images, limit):
    elsewhere = Elsewhere(images)
    rows = [7, 2, 19, 2, 0]
    kept = decode_once(rows_of(elsewhere, rows), tmp_path)
    np.testing.assert_array_equal(kept[:], images[rows])
    np.testing.assert_array_equal(kept[np.array([4, 0])], images[[0, 7]])
    assert elsewhere.asked == [0, 2, 7, 19]


def test_arrays_and_views_of_them_stay_as_they_are(images):
    assert decode_once(images) is images
    view = rows_of(images, [1, 2])
    assert decode_once(view) is view


def test_tiles_that_are_unpacked_already_stay_where_they_are():
    store = TileStore(np.zeros((4, 8, 8, 3), np.uint8))
    for images in (store, rows_of(store, [2, 0])):
        assert decode_once(images) is images
