from __future__ import annotations

import pytest
import torch

from histodistill.training.models.infodist_convnet import InfoDistConvNet


def sides(network: InfoDistConvNet, image_size: int) -> list[int]:
    """Of what each convolution sees, and of what the head takes."""
    found: list[int] = []
    hooks = [
        layer.register_forward_pre_hook(lambda _, inputs: found.append(inputs[0].shape[-1]))
        for layer in network.layers
        if isinstance(layer, torch.nn.Conv2d)
    ]
    maps = network.layers(torch.zeros(1, 3, image_size, image_size))
    for hook in hooks:
        hook.remove()
    return [*found, maps.shape[-1]]


@pytest.mark.parametrize(
    ("image_size", "expected"),
    [
        (28, [28, 14, 7, 3, 3, 1]),
        (64, [64, 32, 16, 8, 4, 2]),
        (32, [32, 16, 8, 4, 2, 1]),
        (8, [8, 4, 2, 2, 2, 1]),
        (224, [224, 112, 56, 28, 14, 7]),
    ],
)
def test_as_many_blocks_pool_as_fit(image_size, expected):
    assert sides(InfoDistConvNet(image_size, 9, width=4), image_size) == expected


@pytest.mark.parametrize("image_size", [8, 28, 64])
def test_no_block_is_blind(image_size):
    """After instance norm of a single pixel, all tiles would look alike."""
    torch.manual_seed(0)
    images = torch.randn(2, 3, image_size, image_size)
    logits = InfoDistConvNet(image_size, 9, width=8)(images)
    assert logits.shape == (2, 9) and (logits[0] - logits[1]).abs().max() > 1e-3


def test_its_size_is_that_of_five_blocks_of_128_channels():
    parameters = sum(weight.numel() for weight in InfoDistConvNet(64, 9).parameters())
    blocks = (3 * 9 * 128 + 128) + 4 * (128 * 9 * 128 + 128) + 5 * 2 * 128
    assert parameters == blocks + 128 * 2 * 2 * 9 + 9
