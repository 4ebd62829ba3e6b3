"""What whitened pictures agree in: the same, however sharp or strong they are, and little by chance."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from histodistill.selection.whitening import evened, whitened_score


ALL = np.ones((200, 24, 24), dtype=bool)


def pictures(seed: int, sharpness: float = 1.0) -> np.ndarray:
    """Grey levels about 0, with power as of tissue: the less the finer."""
    rng = np.random.default_rng(seed)
    coarse = gaussian_filter(rng.normal(0, 60, (200, 24, 24)), (0, 3, 3))
    return (coarse + sharpness * rng.normal(0, 12, coarse.shape)).astype(np.float32)


def test_of_white_noise_it_is_what_the_correlation_of_so_many_numbers_is_worth():
    rng = np.random.default_rng(0)
    one, other = rng.normal(0, 30, (2, *ALL.shape)).astype(np.float32)
    score = whitened_score(one, other, ALL)
    # −½ n log(1 − r²) of independent numbers is half a chi-squared one with one degree of freedom.
    assert score.mean() == pytest.approx(0.5, rel=0.3) and np.quantile(score, 0.99) < 5
    mixed = (0.8 * one + 0.6 * other).astype(np.float32)
    assert np.median(whitened_score(one, mixed, ALL)) == pytest.approx(-0.5 * 576 * np.log(1 - 0.64), rel=0.1)


@pytest.mark.parametrize(
    "change",
    [
        lambda x: x,
        lambda x: 20 - 0.1 * x,
        lambda x: np.round(gaussian_filter(x, (0, 1, 1))),
        lambda x: x + np.random.default_rng(9).normal(0, 20, x.shape),
    ],
    ids=["the same", "inverted and faint", "blurred", "noisy"],
)
def test_copies_agree_in_detail_and_others_do_not(change):
    one = pictures(0)
    copy = change(one).astype(np.float32)
    score, by_chance = whitened_score(one, copy, ALL), whitened_score(pictures(1), copy, ALL)
    assert score.min() > 2 * by_chance.max()


def test_only_what_is_counted_is_compared():
    one, other, counts = pictures(0), pictures(1), ALL.copy()
    counts[:, :, 12:] = False
    other[:, :, :12] = one[:, :, :12]
    half = whitened_score(one, other, counts)
    assert half.min() > 100
    changed = np.where(counts, other, 99).astype(np.float32)
    assert np.array_equal(whitened_score(one, changed, counts), half)
    assert (whitened_score(one, other, np.zeros_like(counts)) == 0).all()


def test_no_detail_is_no_likeness():
    flat = np.full((1, 24, 24), 3, np.float32)
    assert whitened_score(flat, pictures(0)[:1], ALL[:1]) < 5
    assert whitened_score(flat, flat, ALL[:1]) == 0


def test_evened_pictures_hide_nothing_that_is_faint():
    picture = pictures(0)[:1]
    shade = np.linspace(0, 100, 24, dtype=np.float32)
    even = evened(picture)
    assert even.dtype == np.float32 and even.std() < 60 and abs(even.mean() - 127.5) < 5
    for changed in (picture / 2 + shade, 0.5 * picture + 7, np.where(shade < 50, picture, picture / 4)):
        assert np.corrcoef(evened(changed.astype(np.float32)).ravel(), even.ravel())[0, 1] > 0.9
    pasted = picture.copy()
    pasted[:, 8:16, 8:16] = -255
    assert np.abs(evened(pasted) - 127.5).max() <= 80
