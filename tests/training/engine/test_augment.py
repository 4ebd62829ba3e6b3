from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch.nn import functional as F

from histodistill.training.engine.augment import (
    AugmentationPlan,
    apply_plan,
    apply_symmetries,
    blur,
    draw_plan,
    draw_symmetries,
    shift_reflected,
)
from histodistill.training.engine.mixing import draw_mixing, mix_images
from histodistill.training.running.errors import InputError


@pytest.fixture
def images() -> torch.Tensor:
    return torch.rand(24, 3, 12, 12, generator=torch.Generator().manual_seed(0)) * 2 - 1


def augment(images: torch.Tensor, seed: int = 0, **options) -> torch.Tensor:
    return apply_plan(images, draw_plan(len(images), generator(seed), **options))


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_symmetries_are_the_eight_of_the_square():
    image = torch.arange(9.0).reshape(1, 1, 3, 3)
    found = apply_symmetries(image.expand(8, 1, 3, 3), torch.arange(8))
    oracle = [np.rot90(image[0, 0].numpy(), turns) for turns in range(4)]
    oracle += [np.fliplr(turned) for turned in oracle]
    assert np.array_equal(found[:, 0].numpy(), np.stack(oracle))
    assert len(np.unique(found.reshape(8, 9).numpy(), axis=0)) == 8


def test_drawn_symmetries_are_all_eight_and_keep_the_pixels():
    image = torch.arange(9, dtype=torch.uint8).reshape(1, 1, 3, 3).expand(200, 1, 3, 3)
    found = apply_symmetries(image, draw_symmetries(200, generator()))
    assert found.dtype == torch.uint8
    assert len(np.unique(found.reshape(200, 9).numpy(), axis=0)) == 8
    assert torch.equal(found.reshape(200, 9).sort(dim=1).values, image.reshape(200, 9))


def test_shift_is_reflection_padding_and_cropping(images):
    shifts = torch.randint(-2, 3, (len(images), 2), generator=generator())
    padded = F.pad(images, (2, 2, 2, 2), mode="reflect")
    oracle = torch.stack(
        [
            one[:, 2 - down : 2 - down + 12, 2 - right : 2 - right + 12]
            for one, (down, right) in zip(padded, shifts.tolist(), strict=True)
        ]
    )
    assert torch.equal(shift_reflected(images, shifts), oracle)


def test_nothing_of_the_images_device_is_waited_for():
    # A tensor without values: whatever asks for one of them fails, as does whatever has a shape that depends on them.
    images = torch.empty(24, 3, 12, 12, device="meta")
    with pytest.raises(NotImplementedError):
        images.nonzero()
    plan = draw_plan(24, generator(), stain_strength=0.1, max_blur=1.0)
    assert apply_plan(images, plan).shape == images.shape
    for options in ({"mixup": 1.0}, {"cutmix": 1.0}):
        mixing = draw_mixing(24, 12, generator(), **options)
        assert mix_images(images, images, mixing).shape == images.shape


def test_positive_shift_is_down_and_right():
    image = torch.zeros(1, 1, 5, 5)
    image[0, 0, 1, 2] = 1
    assert shift_reflected(image, torch.tensor([[2, 1]]))[0, 0, 3, 3] == 1


def test_stain_change_is_light_and_stays_in_range(images):
    changed = augment(images, symmetries=False, max_shift=0, stain_strength=0.05)
    assert changed.min() >= -1 and changed.max() <= 1
    assert 0 < (changed - images).abs().mean() < 0.1


def test_stains_are_left_alone_by_default(images):
    changed = augment(images, symmetries=False, max_shift=0)
    assert torch.equal(changed, images)


def test_same_generator_same_images(images):
    first = augment(images, 1, stain_strength=0.1)
    assert torch.equal(first, augment(images, 1, stain_strength=0.1))
    assert not torch.equal(first, augment(images, 2, stain_strength=0.1))


@pytest.mark.parametrize("stain_strength", [0.0, 0.1])
def test_a_part_of_a_batch_gets_its_part_of_the_plan(images, stain_strength):
    plan = draw_plan(len(images), generator(), stain_strength=stain_strength)
    whole = apply_plan(images, plan)
    for part in (slice(0, 7), slice(1, None, 2), torch.tensor([5, 0, 5])):
        assert torch.equal(apply_plan(images[part], plan[part]), whole[part])


def test_a_part_of_a_batch_is_blurred_as_in_the_whole(images):
    # The rest of the batch holds the largest deviation, which decides how far the kernels of all could reach.
    plan = draw_plan(len(images), generator(), max_blur=2.0)
    part = plan.blurs.argsort()[:8]
    assert plan.blurs[part].max() < 0.7 * plan.blurs.max()
    torch.testing.assert_close(apply_plan(images[part], plan[part]), apply_plan(images, plan)[part], atol=1e-6, rtol=0)


def test_input_is_not_changed(images):
    before = images.clone()
    augment(images, stain_strength=0.1)
    assert torch.equal(images, before)


@pytest.mark.parametrize("size", [(24, 24), (9, 17)])
def test_blur_is_scipys(size):
    images = torch.rand(4, 3, *size, generator=generator()) * 2 - 1
    deviations = [0.3, 1.0, 1.7, 2.5]
    found = blur(images, torch.tensor(deviations))
    for image, blurred, deviation in zip(images.numpy(), found.numpy(), deviations, strict=True):
        radius = min(math.ceil(3 * deviation), min(size) - 1)
        oracle = ndimage.gaussian_filter(image, deviation, mode="mirror", radius=radius, axes=(1, 2))
        np.testing.assert_allclose(blurred, oracle, atol=1e-5)


def test_a_deviation_of_zero_leaves_an_image_untouched(images):
    assert torch.equal(blur(images, torch.zeros(24)), images)
    deviations = torch.linspace(0, 1.5, 24)
    blurred = blur(images, deviations)
    assert torch.equal(blurred[0], images[0])
    # The more blur, the less is left of noise.
    assert blurred[23].std() < blurred[8].std() < images[8].std()


def test_images_are_blurred_at_most_as_far_as_asked_for(images):
    plan = draw_plan(500, generator(), max_blur=0.8)
    assert 0 <= plan.blurs.min() < 0.05 and 0.75 < plan.blurs.max() <= 0.8
    assert draw_plan(5, generator()).blurs is None
    plain = AugmentationPlan(torch.zeros(24, dtype=torch.int64), torch.zeros(24, 2, dtype=torch.int64), None, None)
    plan = dataclasses.replace(plain, blurs=torch.full((24,), 0.8))
    assert torch.equal(apply_plan(images, plain), images)
    assert torch.equal(apply_plan(images, plan), blur(images, plan.blurs))


def test_blur_leaves_the_other_choices_as_they_were():
    plain, blurred = (draw_plan(9, generator(), stain_strength=0.1, max_blur=most) for most in (0.0, 1.0))
    for name in ("symmetries", "shifts", "stain_scales", "stain_offsets"):
        assert torch.equal(getattr(plain, name), getattr(blurred, name))


def test_bad_options(images):
    with pytest.raises(InputError, match=r"max_blur=-0.5 is out of range: it must be at least 0"):
        draw_plan(4, generator(), max_blur=-0.5)
    with pytest.raises(InputError, match="max_shift=-1 is out of range"):
        draw_plan(4, generator(), max_shift=-1)
    with pytest.raises(InputError, match=r"stain_strength=1.0 is out of range"):
        draw_plan(4, generator(), stain_strength=1.0)
    with pytest.raises(ValueError, match="only a square"):
        augment(torch.zeros(2, 3, 4, 6))
    with pytest.raises(ValueError, match="plan for 3 images"):
        apply_plan(images, draw_plan(3, generator()))
