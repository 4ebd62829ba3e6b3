"""Tests of `training/models/reconstruction.py`."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from histodistill.training.data.pixels import to_model_input
from histodistill.training.models import reconstruction
from histodistill.training.models.autoencoder import build_autoencoder
from histodistill.training.models.reconstruction import Lost, reconstruct_tiles, what_is_lost


@pytest.fixture
def autoencoder():
    torch.manual_seed(0)
    return build_autoencoder(16, [4, 4], latent_channels=2, layers_per_block=1).eval()


@pytest.fixture
def images() -> np.ndarray:
    rng = np.random.default_rng(0)
    return np.clip(128 + 40 * gaussian_filter(rng.standard_normal((30, 16, 16, 3)), (0, 2, 2, 0)) * 6, 0, 255).astype(
        np.uint8
    )


def test_reconstruction_is_the_decoded_latent():
    torch.manual_seed(0)
    autoencoder = build_autoencoder(16, [4, 4], latent_channels=2, layers_per_block=1).eval()
    images = np.random.default_rng(0).integers(0, 256, (7, 16, 16, 3), dtype=np.uint8)
    before = images.copy()
    found = np.concatenate(list(reconstruct_tiles(autoencoder, images)))
    assert (found.dtype, found.shape) == (np.uint8, images.shape)
    assert np.array_equal(images, before)
    with torch.no_grad():
        expected = autoencoder(to_model_input(images)).sample
    expected = (expected.numpy().transpose(0, 2, 3, 1) + 1) * 127.5
    assert np.abs(found - expected.clip(0, 255)).max() < 0.5 + 1e-3
    # Not one grey for all: the images must differ for the next lines to tell anything.
    assert len(np.unique(found.reshape(7, -1), axis=0)) == 7 and np.ptp(found) > 10
    for batch_size in (1, 3):
        # The sums of a convolution may be ordered otherwise, which can turn a rounding over.
        again = np.concatenate(list(reconstruct_tiles(autoencoder, images, batch_size)))
        assert np.abs(again.astype(int) - found).max() <= 1


def wang(first: np.ndarray, second: np.ndarray) -> float:
    """SSIM as Wang et al. wrote it down: moments under a Gaussian of 1.5 px in windows of 11, none over the edge."""
    found = []
    for x, y in zip(first.astype(float), second.astype(float), strict=True):

        def mean(values):
            blurred = gaussian_filter(values, (1.5, 1.5, 0), truncate=3.5)
            return blurred[5:-5, 5:-5]

        mx, my = mean(x), mean(y)
        vx, vy, cov = mean(x * x) - mx**2, mean(y * y) - my**2, mean(x * y) - mx * my
        c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
        found.append(((2 * mx * my + c1) * (2 * cov + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2))).mean())
    return float(np.mean(found))


def test_figures_are_those_of_their_definitions(autoencoder, images, monkeypatch):
    monkeypatch.setattr(reconstruction, "usual_batch_size", lambda _: 8)
    left = np.concatenate(list(reconstruct_tiles(autoencoder, images)))
    found = what_is_lost(autoencoder, images)
    assert (found.num_tiles, found.agreement, found.points_lost, found.warning()) == (30, None, None, None)
    error = np.square(images.astype(float) - left).mean()
    assert found.psnr == pytest.approx(10 * np.log10(255**2 / error))
    assert found.ssim == pytest.approx(wang(images, left), abs=2e-5)  # it is reckoned in float32
    assert 0 < abs(found.ssim) < 0.99


def test_tiles_smaller_than_the_window_have_no_ssim(autoencoder, images):
    found = what_is_lost(autoencoder, images[:, :8, :8])
    assert found.ssim is None and found.words() == "" and found.record() == {}


def test_what_a_classifier_says_before_and_after(autoencoder, images, monkeypatch):
    monkeypatch.setattr(reconstruction, "usual_batch_size", lambda _: 8)
    left = np.concatenate(list(reconstruct_tiles(autoencoder, images)))
    threshold = np.median(images.mean(axis=(1, 2, 3)))

    def predict(tiles):
        bright = tiles.mean(axis=(1, 2, 3)) > threshold
        return np.stack([~bright, bright], axis=1).astype(float)

    before, after = (predict(tiles).argmax(axis=1) for tiles in (images, left))
    labels = np.where(np.arange(30) < 3, 1 - before, before)
    found = what_is_lost(autoencoder, images, labels, predict)
    assert found.accuracy == pytest.approx(0.9)
    assert found.accuracy_reconstructed == pytest.approx((after == labels).mean())
    assert found.agreement == pytest.approx((before == after).mean())
    assert found.points_lost == pytest.approx(100 * (found.accuracy - found.accuracy_reconstructed))


def test_more_than_a_point_is_warned_of():
    assert Lost(1000, 30.0, 0.9, 0.98, 0.95, 0.941).warning() is None
    warning = Lost(1000, 30.0, 0.9, 0.98, 0.95, 0.925).warning()
    assert warning.startswith("the autoencoder loses 2.5 points of the teacher's accuracy on 1,000 validation tiles")
    assert "more latent channels" in warning and "\n" not in warning
    # It may gain some, too.
    assert Lost(1000, 30.0, 0.9, 0.98, 0.95, 0.97).warning() is None
