"""The network of InfoDist's protocol: the ConvNet of a fixed depth, whatever the size of the tiles."""

from __future__ import annotations

import torch
from torch import nn

from histodistill.training.models.backbones import convnet_block


#: Blocks of the published network, and channels of each.
DEPTH, WIDTH = 5, 128


class InfoDistConvNet(nn.Module):
    """A ConvNet of five blocks of conv 3×3, instance norm, ReLU and average pooling by 2, and a linear head.

    Tiles of 28 px can be halved four times and no more. A block pools only where the next one is left with a map of
    2×2 at least: of a single pixel, instance norm leaves nothing but its bias. So the maps of such tiles have sides of
    28, 14, 7, 3, 3 and 1 px; of 64 px, all five blocks pool.

    Args:
        image_size: Side of the tiles in px, at least 2.
        num_classes: C.
        width: Channels of each block.
    """

    def __init__(self, image_size: int, num_classes: int, width: int = WIDTH) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels, side = 3, image_size
        for number in range(DEPTH):
            *block, pooling = convnet_block(channels, width)
            layers += block
            if side // 2 >= (1 if number == DEPTH - 1 else 2):
                layers.append(pooling)
                side //= 2
            channels = width
        self.layers = nn.Sequential(*layers)
        self.head = nn.Linear(width * side * side, num_classes)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Logits, float N×C, of float N×3×S×S in [-1, 1]."""
        return self.head(self.layers(pixel_values).flatten(1))
