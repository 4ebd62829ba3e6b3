from __future__ import annotations

import math

import pytest
import torch

from histodistill.training.engine import infodist_augmentation as augmentation
from histodistill.training.engine.infodist_augmentation import CHANGES, augment


SIDE = 16


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images(count: int = 50) -> torch.Tensor:
    return torch.rand(count, 3, SIDE, SIDE, generator=generator(9)) * 1.8 - 0.9


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_keeps_the_shape_and_hangs_on_the_generator_alone(change):
    before = images()
    after = change(before, generator())
    assert after.shape == before.shape and after.dtype == torch.float32 and torch.isfinite(after).all()
    assert torch.equal(after, change(before, generator())) and torch.equal(before, images())
    assert not torch.equal(after, before) and not torch.equal(after, change(before, generator(1)))


def test_each_batch_has_one_of_the_six_changes():
    before = images(4)
    kinds = set()
    for seed in range(40):
        drawn = generator(seed)
        after = augment(before, drawn)
        number = int(torch.randint(6, (), generator=(again := generator(seed))))
        assert torch.equal(after, CHANGES[number](before, again))
        kinds.add(number)
    assert kinds == set(range(6))


def test_colours_change_in_brightness_saturation_and_contrast():
    grey = torch.full((200, 3, 2, 2), 0.25)
    raised = augmentation.change_colours(grey, generator()) - 0.25
    # Grey and even tiles have neither saturation nor contrast.
    assert raised.abs().max() <= 0.5 and raised.min() < -0.4 and raised.max() > 0.4
    assert torch.allclose(raised, raised[:, :1, :1, :1].expand_as(raised), atol=1e-6)
    coloured = torch.tensor([0.3, 0.0, -0.3])[None, :, None, None].repeat(200, 1, 2, 2)
    spread = augmentation.change_colours(coloured, generator())[:, 0, 0, 0]
    spread = spread - augmentation.change_colours(coloured, generator())[:, 1, 0, 0]
    assert 0 <= spread.min() < 0.05 and 0.6 < spread.max() <= 0.3 * 2 * 1.5


def test_a_crop_moves_the_image_by_an_eighth_at_most():
    before = images()
    after = augmentation.crop(before, generator())
    moves = set()
    for one, moved in zip(before, after, strict=True):
        padded = torch.nn.functional.pad(one, [2] * 4)
        fits = [
            (down, right)
            for down in range(5)
            for right in range(5)
            if torch.equal(padded[:, down : down + SIDE, right : right + SIDE], moved)
        ]
        assert len(fits) == 1
        moves.add(fits[0])
    assert {down for down, _ in moves} == {right for _, right in moves} == set(range(5))


def test_what_is_cut_out_is_a_square_of_half_the_side():
    before = images(200)
    after = augmentation.cut_out(before, generator())
    is_cut = (after == 0).all(dim=1)
    assert torch.equal(after[~is_cut[:, None].expand_as(after)], before[~is_cut[:, None].expand_as(before)])
    areas = set()
    for mask in is_cut:
        rows, columns = mask.any(dim=1).sum().item(), mask.any(dim=0).sum().item()
        assert mask.sum() == rows * columns and min(rows, columns) >= 4 and max(rows, columns) <= 8
        areas.add(rows * columns)
    assert 64 in areas and len(areas) > 5  # whole ones, and some at the edge


def test_half_of_the_images_are_mirrored():
    before = images(200)
    after = augmentation.flip(before, generator())
    mirrored = [torch.equal(one, other.flip(2)) for one, other in zip(after, before, strict=True)]
    same = [torch.equal(one, other) for one, other in zip(after, before, strict=True)]
    assert all(one != other for one, other in zip(mirrored, same, strict=True)) and 70 < sum(mirrored) < 130


def test_an_image_turns_by_fifteen_degrees_at_most():
    # A point to the right of the centre goes up or down by its distance times the sine of the angle.
    side, away = 65, 24
    before = torch.zeros(100, 1, side, side)
    before[:, :, side // 2 - 1 : side // 2 + 2, side // 2 + away - 1 : side // 2 + away + 2] = 1
    after = augmentation.rotate(before.expand(-1, 3, -1, -1), generator())[:, 0]
    place = torch.arange(side, dtype=torch.float32) - side // 2
    down = (after.sum(dim=2) * place).sum(dim=1) / after.sum(dim=(1, 2))
    right = (after.sum(dim=1) * place).sum(dim=1) / after.sum(dim=(1, 2))
    assert torch.allclose((down**2 + right**2).sqrt(), torch.tensor(float(away)), atol=0.3)
    angles = torch.atan2(down, right) * 180 / math.pi
    assert angles.abs().max() < 15.5 and angles.min() < -12 and angles.max() > 12


def test_sides_change_by_a_fifth_at_most():
    side = 65
    before = torch.zeros(100, 3, side, side)
    before[:, :, side // 2 - 10 : side // 2 + 11, side // 2 - 10 : side // 2 + 11] = 1
    after = augmentation.scale(before, generator())[:, 0]
    heights, widths = (after.amax(dim=dim).sum(dim=1) for dim in (2, 1))
    for lengths in (heights, widths):
        assert 21 / 1.2 - 1 < lengths.min() < 19 and 23.5 < lengths.max() < 21 * 1.2 + 1
    assert (heights - widths).abs().max() > 2
