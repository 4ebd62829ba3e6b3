from __future__ import annotations

import math

import pytest
import torch

from histodistill.training.models.stain import HED_FROM_RGB, change_stains, optical_density, standardize_stain


@pytest.fixture
def images() -> torch.Tensor:
    return torch.rand(24, 3, 12, 12, generator=torch.Generator().manual_seed(0)) * 2 - 1


def from_density(density: torch.Tensor) -> torch.Tensor:
    """Images of this optical density."""
    return (-density).exp() * 2 - 1


def test_density_of_white_grey_and_black():
    values = torch.tensor([1.0, 0.0, -1.0]).reshape(1, 3, 1, 1)
    found = optical_density(values).flatten().tolist()
    assert found == pytest.approx([0, math.log(2), math.log(255)], abs=1e-6)


def test_stain_change_of_nothing_is_the_identity(images):
    inside = images.clamp(min=-0.98)  # pixels of value 0 can't be told from 1/255: density has no end there
    unchanged = change_stains(inside, torch.ones(24, 3), torch.zeros(24, 3))
    torch.testing.assert_close(unchanged, inside, atol=1e-4, rtol=0)


def test_more_haematoxylin_raises_its_density_alone():
    image = torch.full((1, 3, 2, 2), 0.4)
    offsets = torch.tensor([[0.2, 0.0, 0.0]])
    changed = change_stains(image, torch.ones(1, 3), offsets)

    def stains(picture):
        return -((picture[0, :, 0, 0] + 1) / 2).log() @ HED_FROM_RGB

    torch.testing.assert_close(stains(changed) - stains(image), offsets[0], atol=1e-5, rtol=0)
    assert (changed < image).all()


def test_standardized_channels_have_mean_0_and_deviation_1(images):
    found = standardize_stain(images)
    assert found.shape == images.shape and found.dtype == torch.float32
    torch.testing.assert_close(found.mean(dim=(2, 3)), torch.zeros(24, 3), atol=1e-5, rtol=0)
    torch.testing.assert_close(found.std(dim=(2, 3), correction=0), torch.ones(24, 3), atol=1e-5, rtol=0)
    # Dark is high, as density is, and the order of the pixels stays.
    assert torch.equal(found[0, 0].flatten().argmax(), images[0, 0].flatten().argmin())


def test_the_amount_of_stain_makes_no_difference():
    generator = torch.Generator().manual_seed(1)
    density = 0.2 + torch.rand(6, 3, 10, 10, generator=generator)
    scales = 0.6 + torch.rand(6, 3, 1, 1, generator=generator)
    offsets = 0.3 * torch.rand(6, 3, 1, 1, generator=generator)
    changed = from_density(density * scales + offsets)
    assert (changed - from_density(density)).abs().max() > 0.2
    torch.testing.assert_close(standardize_stain(changed), standardize_stain(from_density(density)), atol=1e-4, rtol=0)


def test_an_image_is_standardized_by_itself(images):
    torch.testing.assert_close(standardize_stain(images)[3:5], standardize_stain(images[3:5]))


def test_bare_glass_stays_flat():
    glass = torch.full((2, 3, 8, 8), 0.9)
    glass[1] += 0.01 * torch.randn(3, 8, 8, generator=torch.Generator().manual_seed(0))  # noise of a camera
    found = standardize_stain(glass)
    assert torch.equal(found[0], torch.zeros(3, 8, 8))
    assert found.isfinite().all() and found[1].std() < 0.5


def test_black_tiles_stay_finite():
    assert standardize_stain(torch.full((1, 3, 8, 8), -1.0)).abs().max() < 1e-3
