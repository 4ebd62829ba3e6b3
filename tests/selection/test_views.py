from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from histodistill.selection.planting import MUST_FIND, plant
from histodistill.selection.stains import change_stains, optical_density
from histodistill.selection.views import (
    apply_symmetry,
    blend,
    compress_jpeg,
    crop_and_resize,
    grey_pictures,
    has_content,
    resample,
    resize,
    shear,
    shift,
)
from histodistill.training.data.pixels import to_model_input, to_uint8
from histodistill.training.engine import augment


@pytest.fixture(scope="module")
def tiles() -> np.ndarray:
    return np.random.default_rng(0).integers(30, 250, (6, 16, 16, 3), dtype=np.uint8)


def as_tensor(images: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(images).permute(0, 3, 1, 2)


@pytest.mark.parametrize("symmetry", range(8))
def test_symmetries_are_those_of_the_training(tiles, symmetry):
    expected = augment.apply_symmetries(as_tensor(tiles), torch.full((6,), symmetry)).permute(0, 2, 3, 1).numpy()
    np.testing.assert_array_equal(apply_symmetry(tiles, symmetry), expected)


@pytest.mark.parametrize("steps", [(0, 0), (2, -1), (-2, 2), (1, 0)])
def test_shifts_are_those_of_the_training(tiles, steps):
    expected = augment.shift_reflected(as_tensor(tiles), torch.tensor([steps] * 6)).permute(0, 2, 3, 1).numpy()
    np.testing.assert_array_equal(shift(tiles, *steps), expected)


def test_changes_of_stain_are_those_of_the_training(tiles):
    rng = np.random.default_rng(1)
    scales, offsets = 1 + 0.2 * rng.uniform(-1, 1, (6, 3)), 0.2 * rng.uniform(-1, 1, (6, 3))
    expected = augment.change_stains(to_model_input(tiles), torch.tensor(scales), torch.tensor(offsets))
    difference = change_stains(tiles, scales, offsets).astype(int) - to_uint8(expected).astype(int)
    assert np.abs(difference).max() <= 1
    np.testing.assert_array_equal(change_stains(tiles, np.ones((6, 3)), np.zeros((6, 3))), tiles)


def test_means_over_whole_fields_are_those_of_pillow(tiles):
    found = resample(tiles, 4)
    for image, small in zip(tiles, found, strict=True):
        np.testing.assert_allclose(small, np.asarray(Image.fromarray(image).reduce(4)), atol=0.51)
    np.testing.assert_allclose(found, tiles.reshape(6, 4, 4, 4, 4, 3).mean(axis=(2, 4)), rtol=1e-5)


def test_windows(tiles):
    np.testing.assert_array_equal(resample(tiles, 16), tiles)
    np.testing.assert_allclose(resample(tiles, 8, 0.5, 0.25, 0.5), tiles[:, 4:12, 8:], rtol=1e-5)
    # Beyond an edge comes the reflection, edge pixel first.
    moved = resample(tiles, 16, 1.0, -2 / 16, 3 / 16)
    np.testing.assert_allclose(moved[:, 2:, :13], tiles[:, :14, 3:], rtol=1e-4)
    np.testing.assert_allclose(moved[:, 1, :13], tiles[:, 0, 3:], rtol=1e-4)


def test_other_copies(tiles):
    assert compress_jpeg(tiles).shape == tiles.shape and (compress_jpeg(tiles) != tiles).any()
    corners = np.tile([1, 2], (6, 1))
    flat = np.full_like(tiles, 77)
    np.testing.assert_array_equal(crop_and_resize(flat, 14, corners), flat)
    assert blend(flat, np.full_like(tiles, 127))[0, 0, 0, 0] == 87
    np.testing.assert_allclose(optical_density(np.array([[[[255, 94, 0]]]], np.uint8)).ravel()[:2], [0, 1], atol=0.01)


def test_planted_copies_are_of_the_tiles_that_they_name(tiles):
    many = np.concatenate([tiles] * 4)
    planted = plant(many, 3, seed=2)
    assert planted.kinds.tolist() == [kind for kind in MUST_FIND for _ in range(3)]
    assert len(set(planted.sources.tolist())) == len(planted.sources)
    exact = planted.kinds == "exact"
    np.testing.assert_array_equal(planted.images[exact], many[planted.sources[exact]])
    for image, source in zip(planted.images, planted.sources, strict=True):
        if not np.array_equal(image, many[source]):
            assert image.shape == many[source].shape
    symmetric = planted.kinds == "symmetric"
    for image, source in zip(planted.images[symmetric], planted.sources[symmetric], strict=True):
        same = [np.array_equal(image, apply_symmetry(many[source][None], s)[0]) for s in range(8)]
        assert any(same[1:]) and not same[0]
    changed = planted.images[~exact] != many[planted.sources[~exact]]
    assert changed.any(axis=(1, 2, 3)).all()


def test_planting_depends_on_the_seed_and_uses_usable_tiles_only(tiles):
    usable = np.array([True, False, True, True, False, True])
    first, again, other = (plant(tiles, 2, seed, usable) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first.images, again.images)
    assert not np.array_equal(first.sources, other.sources)
    assert set(first.sources.tolist()) <= {0, 2, 3, 5}
    with pytest.raises(ValueError, match="n_per_kind=0 is out of range"):
        plant(tiles, 0)


def test_empty_tiles_have_no_content(tiles):
    images = np.concatenate([tiles[:2], np.full((2, 16, 16, 3), 200, np.uint8)])
    assert has_content(images).tolist() == [True, True, False, False]


@pytest.mark.parametrize("times", [2, 4, 8])
def test_halving_is_what_the_weights_give(times):
    images = np.random.default_rng(0).integers(0, 256, (5, 7 * times, 7 * times, 3), dtype=np.uint8)
    np.testing.assert_array_equal(resample(images, 7), resample(images.astype(np.float32), 7))


def test_resized_pictures():
    ramp = np.broadcast_to(np.arange(28, dtype=np.float32), (2, 28, 28))
    assert resize(ramp, 28) is ramp
    for size in (14, 40, 56):
        resized = resize(ramp, size)
        assert resized.shape == (2, size, size) and resized.dtype == np.float32
        # A ramp stays one away from the edges, where its reflection follows.
        expected = (np.arange(size) + 0.5) * 28 / size - 0.5
        edge = size // 5
        np.testing.assert_allclose(resized[0, 3, edge:-edge], expected[edge:-edge], atol=1e-3)
        np.testing.assert_allclose(resize(np.full((1, 28, 28), 7, np.float32), size), 7, rtol=1e-5)
        noise = np.random.default_rng(0).normal(size=(1, 28, 28)).astype(np.float32)
        np.testing.assert_allclose(resize(noise[:, ::-1], size), resize(noise, size)[:, ::-1], atol=1e-5)


def test_reduced_pictures_are_means_and_no_samples():
    stripes = np.tile(np.array([0, 200], np.float32), 14)[None, None].repeat(28, axis=1)
    assert np.abs(resize(stripes, 14)[0, :, 3:-3] - 100).max() < 20


def test_grey_pictures():
    images = np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), dtype=np.uint8)
    np.testing.assert_allclose(grey_pictures(images[:, :28, :28], 28), images[:, :28, :28].mean(axis=3), rtol=1e-6)
    halves = images.reshape(3, 32, 2, 32, 2, 3).mean(axis=(2, 4, 5))
    np.testing.assert_allclose(grey_pictures(images, 32), halves, rtol=1e-5)


def test_sheared_images():
    images = np.random.default_rng(0).integers(0, 256, (1, 27, 27, 3), dtype=np.uint8).repeat(2, axis=0)
    np.testing.assert_array_equal(shear(images, np.array([0, 1]), 0.0), images)
    sideways, downwards = shear(images, np.array([4, 7]), 1.0)
    # Each row is moved by a pixel more than the one before, and reflected at the edges.
    reflected = np.pad(images[0], ((0, 0), (13, 13), (0, 0)), mode="symmetric")
    np.testing.assert_array_equal(sideways, [row[number : number + 27] for number, row in enumerate(reflected)])
    np.testing.assert_array_equal(
        downwards, shear(images[:1].transpose(0, 2, 1, 3), np.zeros(1, int), 1.0)[0].transpose(1, 0, 2)
    )
