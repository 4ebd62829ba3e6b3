import numpy as np
import pytest

from histodistill.selection.image_rows import ImageRows, JoinedImages, batches, join, rows_of


IMAGES = np.random.default_rng(0).integers(0, 256, (7, 4, 4, 3), dtype=np.uint8)


def test_rows_are_read_as_an_array_gives_them():
    view = rows_of(IMAGES, np.arange(7))
    for rows in (3, -1, slice(2, 5), slice(None, None, -2), np.array([4, -4, 0]), IMAGES[:, 0, 0, 0] > 99, [1, 2], []):
        assert np.array_equal(view[rows], IMAGES[rows])
    assert np.array_equal(view[2:, 0, :, 1], IMAGES[2:, 0, :, 1]) and np.array_equal(view[2, 0], IMAGES[2, 0])
    assert view.shape == IMAGES.shape and view.ndim == 4 and view.nbytes == IMAGES.nbytes and len(view) == 7
    assert np.array_equal(np.asarray(view), IMAGES) and np.array_equal(list(view), IMAGES)
    for rows in (7, -8, [0, 7], np.array([-8])):
        with pytest.raises(IndexError):
            view[rows]
    with pytest.raises(IndexError):
        view[np.ones(6, dtype=bool)]


def test_a_few_of_many_images_are_read_without_counting_them_all():
    class Endless(ImageRows):
        def read(self, rows):
            return np.broadcast_to((rows % 256).astype(np.uint8)[:, None, None, None], (len(rows), *self.shape[1:]))

    images = Endless((2**50, 2, 2, 3))  # numbers of all would not go into any memory
    assert images[2**49 + 5, 0, 0, 0] == 5
    assert images[-1, 0, 0, 0] == 255
    assert images[np.array([2**40 + 1, 2**50 - 2])][:, 0, 0, 0].tolist() == [1, 254]
    assert images[2**45 : 2**45 + 3][:, 1, 1, 2].tolist() == [0, 1, 2]


def test_a_view_of_a_view_is_a_view_of_what_it_is_of():
    view = rows_of(rows_of(IMAGES, [5, 3, 1]), np.array([False, True, True]))
    assert view.base is IMAGES and view.rows.tolist() == [3, 1]
    assert np.array_equal(view[:], IMAGES[[3, 1]])


def test_joined_images_are_read_from_all_parts():
    parts = [IMAGES[:2], rows_of(IMAGES, [6, 5]), IMAGES[2:3]]
    joined = join(parts)
    expected = np.concatenate([np.asarray(part) for part in parts])
    assert isinstance(joined, JoinedImages) and joined.shape == expected.shape
    assert np.array_equal(joined[[4, 0, 2, 2]], expected[[4, 0, 2, 2]])
    assert np.array_equal(joined[1], expected[1]) and np.array_equal(np.asarray(joined), expected)
    assert join([IMAGES]) is IMAGES
    with pytest.raises(ValueError, match="one size"):
        join([IMAGES, IMAGES[:, :2]])


def test_batches_are_all_images_in_order():
    found = list(batches(rows_of(IMAGES, np.arange(7)[::-1]), 3))
    assert [len(batch) for batch in found] == [3, 3, 1]
    assert np.array_equal(np.concatenate(found), IMAGES[::-1])
    assert len(list(batches(IMAGES))) == 1
