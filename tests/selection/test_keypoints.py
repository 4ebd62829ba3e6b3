from __future__ import annotations

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter, rotate

from histodistill.selection.keypoints import REACH, describe, find_keypoints, harmonics_at, turns_between


@pytest.fixture(scope="module")
def pictures() -> np.ndarray:
    """Eight pictures of smoothed noise, odd-sided, so that there is a pixel in the middle."""
    noise = np.random.default_rng(0).normal(size=(8, 57, 57))
    smooth = gaussian_filter(noise, (0, 2, 2))
    return (128 + 40 * smooth / smooth.std()).astype(np.float32)


def test_keypoints_keep_off_the_edges_and_are_extrema(pictures):
    found = find_keypoints(pictures)
    assert len(found.picture) > 8 * 20
    assert (np.diff(found.picture) >= 0).all()
    assert found.place.min() >= REACH and found.place.max() < 57 - REACH
    assert found.harmonics.dtype == np.complex64 and np.isfinite(found.harmonics).all()
    spot = np.full((1, 31, 31), 200, np.float32)
    spot[0, 12:15, 16:19] = 20
    assert [13, 17] in find_keypoints(spot).place.tolist()


@pytest.mark.parametrize("side", [REACH, 2 * REACH, 40])
def test_pictures_with_nothing_on_them_or_too_small_have_none(side):
    found = find_keypoints(np.full((3, side, side), 99, np.float32))
    assert len(found.picture) == len(found.place) == len(found.harmonics) == 0


@pytest.mark.parametrize("change", ["quarter", "mirror", "negative", "brighter", "shade", "contrast"])
def test_descriptors_stay_as_they_are(pictures, change):
    changed = {
        "quarter": lambda x: np.rot90(x, axes=(1, 2)),
        "mirror": lambda x: x[:, :, ::-1],
        "negative": lambda x: 255 - x,
        "brighter": lambda x: x + 30,
        "shade": lambda x: x + np.linspace(0, 200, 57, dtype=np.float32) - np.linspace(0, 90, 57)[:, None],
        "contrast": lambda x: 3 * x,
    }[change](pictures)
    middle = np.full((8, 2), 28)
    own, _ = harmonics_at(pictures, np.arange(8), middle)
    other, _ = harmonics_at(np.ascontiguousarray(changed, np.float32), np.arange(8), middle)
    # Contrast is divided by with something added, so that noise is not blown up.
    tolerance = 0.15 if change == "contrast" else 1e-3
    np.testing.assert_allclose(describe(other), describe(own), rtol=tolerance, atol=tolerance)


def test_descriptors_tell_places_apart_and_know_them_turned_by_any_angle(pictures):
    turned = np.stack([rotate(picture, 33, reshape=False, order=3, mode="reflect") for picture in pictures])
    middle = np.full((8, 2), 28)
    own, other = (describe(harmonics_at(x, np.arange(8), middle)[0]) for x in (pictures, turned))
    distances = np.linalg.norm(own[:, None] - other[None], axis=2)
    assert distances.argmin(axis=1).tolist() == list(range(8))


@pytest.mark.parametrize("quarters", range(4))
@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("sign", [1, -1])
def test_turns_between(pictures, quarters, mirrored, sign):
    # Rows reversed, and then turned from the direction of columns to that of rows.
    shown = np.rot90(pictures[:, ::-1] if mirrored else pictures, -quarters, axes=(1, 2))
    shown = np.ascontiguousarray(128 + sign * (shown - 128))
    middle = np.full((8, 2), 28)
    harmonics = [harmonics_at(x, np.arange(8), middle)[0] for x in (shown, pictures)]
    turn, flipped = turns_between(*harmonics)
    assert flipped.tolist() == [mirrored] * 8
    apart = np.abs(np.angle(np.exp(1j * (turn - quarters * np.pi / 2))))
    assert apart.max() < 0.06
