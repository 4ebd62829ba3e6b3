from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from histodistill.training.engine.mixing import MixingPlan, draw_mixing, mix, mix_images
from histodistill.training.engine.steps import process_slice


SIZE = 12


@pytest.fixture
def images() -> torch.Tensor:
    return torch.rand(16, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0)) * 2 - 1


def draw(seed: int = 0, num_images: int = 16, **options: float) -> MixingPlan | None:
    return draw_mixing(num_images, SIZE, torch.Generator().manual_seed(seed), **options)


def same(first: MixingPlan, second: MixingPlan) -> bool:
    if (first.boxes is None) != (second.boxes is None):
        return False
    boxes = first.boxes is None or torch.equal(first.boxes, second.boxes)
    return boxes and torch.equal(first.partners, second.partners) and torch.equal(first.shares, second.shares)


def test_no_mixing_by_default():
    assert draw() is None


@pytest.mark.parametrize("options", [{"mixup": 0.4}, {"cutmix": 1.0}, {"mixup": 0.4, "cutmix": 1.0}])
def test_the_generator_decides(options):
    assert same(draw(1, **options), draw(1, **options))
    assert not same(draw(1, **options), draw(2, **options))
    plan = draw(1, **options)
    assert plan.partners.sort().values.tolist() == list(range(16))
    assert plan.shares.dtype == torch.float32 and plan.shares.min() >= 0 and plan.shares.max() <= 1


def test_global_random_numbers_are_left_alone():
    before = torch.get_rng_state()
    draw(mixup=0.4, cutmix=1.0)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("concentration", [0.2, 1.0, 4.0])
def test_shares_of_mixup_have_the_moments_of_a_beta_distribution(concentration):
    shares = draw(num_images=20_000, mixup=concentration).shares
    assert shares.mean().item() == pytest.approx(0.5, abs=0.01)
    assert shares.var().item() == pytest.approx(1 / (4 * (2 * concentration + 1)), rel=0.05)


def test_both_kinds_take_turns():
    kinds = [draw(seed, mixup=1.0, cutmix=1.0).boxes is None for seed in range(60)]
    assert 15 < sum(kinds) < 45


def test_mixup_blends_images_and_labels_alike(images):
    plan = draw(mixup=1.0)
    labels = F.one_hot(torch.arange(16) % 4, 4)
    mixed = mix_images(images, images[plan.partners], plan)
    mixed_labels = mix(labels, labels[plan.partners], plan)
    for i, (partner, share) in enumerate(zip(plan.partners.tolist(), plan.shares.tolist(), strict=True)):
        torch.testing.assert_close(mixed[i], share * images[i] + (1 - share) * images[partner])
        expected = torch.zeros(4)
        expected[i % 4] += share
        expected[partner % 4] += 1 - share
        torch.testing.assert_close(mixed_labels[i], expected)
    torch.testing.assert_close(mixed_labels.sum(dim=1), torch.ones(16))


def test_cutmix_pastes_one_box_whose_area_is_the_share():
    own, partner = torch.zeros(400, 3, SIZE, SIZE), torch.ones(400, 3, SIZE, SIZE)
    plan = draw(num_images=400, cutmix=1.0)
    mixed = mix_images(own, partner, plan)
    assert set(mixed.unique().tolist()) == {0.0, 1.0}
    torch.testing.assert_close(mixed.mean(dim=(1, 2, 3)), 1 - plan.shares)
    for image, (top, bottom, left, right) in zip(mixed, plan.boxes.tolist(), strict=True):
        assert 0 <= top <= bottom <= SIZE and 0 <= left <= right <= SIZE
        pasted = torch.zeros(3, SIZE, SIZE)
        pasted[:, top:bottom, left:right] = 1
        assert torch.equal(image, pasted)
    # Boxes lie all over the image, and some are cut off by its edge.
    heights, widths = plan.boxes[:, 1] - plan.boxes[:, 0], plan.boxes[:, 3] - plan.boxes[:, 2]
    assert (heights != widths).any() and mixed.mean(dim=0).min() > 0.1


def test_labels_of_cutmix_sum_to_one():
    plan = draw(cutmix=1.0)
    labels = F.one_hot(torch.arange(16) % 4, 4)
    torch.testing.assert_close(mix(labels, labels[plan.partners], plan).sum(dim=1), torch.ones(16))


@pytest.mark.parametrize("options", [{"mixup": 1.0}, {"cutmix": 1.0}])
def test_a_part_of_a_batch_is_mixed_as_in_the_whole(images, options):
    plan = draw(**options)
    whole = mix_images(images, images[plan.partners], plan)
    for rank in range(3):
        part = process_slice(plan, rank, 3)
        mixed = mix_images(process_slice(images, rank, 3), images[part.partners], part)
        assert torch.equal(mixed, process_slice(whole, rank, 3))


def test_input_is_not_changed(images):
    before = images.clone()
    for options in ({"mixup": 1.0}, {"cutmix": 1.0}):
        plan = draw(**options)
        mix_images(images, images[plan.partners], plan)
    assert torch.equal(images, before)
