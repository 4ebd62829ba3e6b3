from __future__ import annotations

import hashlib

import numpy as np
import pytest
from PIL import Image

from histodistill.selection import FixedViews
from histodistill.selection.streams import stream
from histodistill.selection.views import apply_symmetry


CLASSES, PER_CLASS, SIZE, VIEWS = 3, 5, 24, 16
LABELS, RANKS = np.repeat(np.arange(CLASSES), PER_CLASS), np.tile(np.arange(1, PER_CLASS + 1), CLASSES)


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (len(LABELS), SIZE, SIZE, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def views() -> FixedViews:
    return FixedViews(LABELS, RANKS, CLASSES, VIEWS)


def make(views: FixedViews, images: np.ndarray, view: int) -> np.ndarray:
    return views.make(images, np.arange(len(images)), np.full(len(images), view))


def test_view_0_is_the_image_and_nothing_changes_the_set(views, images):
    before = images.copy()
    np.testing.assert_array_equal(make(views, images, 0), images)
    for view in range(1, VIEWS):
        made = make(views, images, view)
        assert (made.shape, made.dtype) == (images.shape, np.uint8)
        assert not np.array_equal(made, images)
    np.testing.assert_array_equal(images, before)


def test_turned_views_are_the_symmetries_in_turn(views, images):
    for view, symmetry in zip((1, 4, 7, 10, 13), (1, 2, 3, 4, 5), strict=True):
        np.testing.assert_array_equal(make(views, images, view), apply_symmetry(images, symmetry))
    around = FixedViews(LABELS, RANKS, CLASSES, 23)
    np.testing.assert_array_equal(make(around, images, 22), apply_symmetry(images, 1))


def test_cut_out_views_are_what_the_rule_says(views, images):
    found = make(views, images, 5)
    for row, (label, rank) in enumerate(zip(LABELS, RANKS, strict=True)):
        u = stream("fixed view of a distilled image", 5, label, rank).random(4)
        side = round(SIZE * (0.25 + 0.75 * u[0]) ** 0.5)
        assert SIZE / 2 <= side <= SIZE
        top, left = (int(number * (SIZE - side + 1)) for number in u[1:3])
        part = Image.fromarray(images[row, top : top + side, left : left + side])
        np.testing.assert_array_equal(found[row], part.resize((SIZE, SIZE), Image.Resampling.BICUBIC))


def test_mixed_views_are_what_the_rule_says(views, images):
    found = make(views, images, 6)
    for row, (label, rank) in enumerate(zip(LABELS, RANKS, strict=True)):
        u = stream("fixed view of a distilled image", 6, label, rank).random(4)
        other = (label + 1 + int(u[3] * (CLASSES - 1))) % CLASSES
        (partner,) = np.flatnonzero((other == LABELS) & (rank == RANKS))
        assert other != label
        side, expected = round(SIZE * u[0] ** 0.5), images[row].copy()
        for y in range(SIZE):
            for x in range(SIZE):
                if 0 <= y - int(u[1] * SIZE) + side // 2 < side and 0 <= x - int(u[2] * SIZE) + side // 2 < side:
                    expected[y, x] = images[partner, y, x]
        np.testing.assert_array_equal(found[row], expected)


def test_views_stay_what_they_were(views, images):
    """Published soft labels are of these very views."""
    digest = hashlib.sha256(b"".join(make(views, images, view).tobytes() for view in (1, 3, 4, 6, 9, 12, 15)))
    assert digest.hexdigest() == "ad01cef59834125b63d75fe918afbd4c0cbd2be2faad6c30812c8e9b7ce36c76"


def test_a_smaller_set_and_another_order_have_the_same_views(views, images):
    kept = np.random.default_rng(1).permutation(np.flatnonzero(RANKS <= 2))
    fewer = FixedViews(LABELS[kept], RANKS[kept], CLASSES, 8)
    assert fewer.available.all()
    for view in range(8):
        np.testing.assert_array_equal(make(fewer, images[kept], view), make(views, images, view)[kept])


def test_views_whose_partner_is_missing_are_known(views, images):
    """Without a class, just those are missing that were mixed with it, and what there is stays the same."""
    kept = np.flatnonzero(LABELS != 1)
    fewer = FixedViews(LABELS[kept], RANKS[kept], CLASSES, VIEWS)
    without = images.copy()
    without[LABELS == 1] ^= 255
    for view in range(VIEWS):
        uses = (make(views, images, view) != make(views, without, view)).any(axis=(1, 2, 3))[kept]
        assert not uses[fewer.available[:, view]].any()
        found, expected = make(fewer, images[kept], view), make(views, images, view)[kept]
        np.testing.assert_array_equal(found[fewer.available[:, view]], expected[fewer.available[:, view]])
        np.testing.assert_array_equal(found[~fewer.available[:, view]], images[kept][~fewer.available[:, view]])
    assert fewer.available[:, [0, 1, 2, 4, 5]].all() and 0 < fewer.available[:, 3::3].mean() < 1
    assert not FixedViews(LABELS[:5], RANKS[:5], 1, 4).available[:, 3].any()


def test_rows_and_views_may_be_mixed(views, images):
    rows, wanted = np.array([3, 3, 14, 0, 7]), np.array([6, 0, 5, 15, 1])
    expected = [make(views, images, view)[row] for row, view in zip(rows, wanted, strict=True)]
    np.testing.assert_array_equal(views.make(images, rows, wanted), expected)


def test_two_images_in_one_place_are_refused():
    with pytest.raises(ValueError, match="two images of a class have the same rank"):
        FixedViews(np.array([0, 1, 0]), np.array([1, 1, 1]), 2, 2)
