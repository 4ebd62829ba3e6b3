"""What stands before the linear head of our own classifiers: ConvNet, ResNet-18 and ViT."""

from __future__ import annotations

import torch
from torch import nn

from histodistill.training.running.errors import InputError, param


class _HalvePool(nn.Module):
    """`nn.AvgPool2d(2)` by adding slices, which makes the ConvNet 1.3 times as fast to train on a CPU."""

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        height, width = maps.shape[2] // 2 * 2, maps.shape[3] // 2 * 2
        rows = maps[:, :, 0:height:2] + maps[:, :, 1:height:2]
        return (rows[..., 0:width:2] + rows[..., 1:width:2]) * 0.25


# Convolution, norm, activation and pooling of a ConvNet.
_LAYERS_PER_BLOCK = 4


def convnet_block(channels: int, width: int) -> list[nn.Module]:
    """The layers of a block of a ConvNet: conv 3×3 from `channels` to `width`, instance norm, ReLU, pooling by 2."""
    return [
        nn.Conv2d(channels, width, kernel_size=3, padding=1),
        # Groups of one channel: the same as instance norm, and 1.4 times as fast in bfloat16 on a CPU.
        nn.GroupNorm(width, width),
        nn.ReLU(),
        _HalvePool(),
    ]


class ConvNetBackbone(nn.Module):
    """The ConvNet of the dataset-distillation literature (Gidaris & Komodakis, CVPR 2018; Zhao et al., ICLR 2021).

    Blocks of conv 3×3, instance norm, ReLU and average pooling by 2: three up to 32 px, and one more for every
    doubling after that, so that the last map is at most 4×4. The features are that map, flattened.
    """

    def __init__(self, image_size: int, width: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels, side, blocks = 3, image_size, 0
        while blocks < 3 or side > 4:
            layers += convnet_block(channels, width)
            channels, side, blocks = width, side // 2, blocks + 1
        self.layers = nn.Sequential(*layers)
        self.num_blocks = blocks
        self.num_features = width * side * side

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return self.layers(pixel_values).flatten(1)

    def maps(self, pixel_values: torch.Tensor, least_side: int) -> torch.Tensor:
        """What the last block gives whose maps have a side of `least_side` at least, float N×width×side×side."""
        found = pixel_values
        for first in range(0, len(self.layers), _LAYERS_PER_BLOCK):
            following = self.layers[first : first + _LAYERS_PER_BLOCK](found)
            if following.shape[-1] < least_side:
                break
            found = following
        return found


class _BasicBlock(nn.Module):
    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.residual = nn.Sequential(
            nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False),
            nn.BatchNorm2d(out_channels),
            nn.ReLU(),
            nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(out_channels),
        )
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False), nn.BatchNorm2d(out_channels)
            )

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.residual(maps) + self.shortcut(maps))


class ResNet18Backbone(nn.Module):
    """ResNet-18 (He et al., CVPR 2016) with batch norm; `width` is that of the first stage (64 in the paper).

    Up to 64 px the stem is one 3×3 convolution of stride 1, as is usual for small images; above, it is the paper's
    7×7 of stride 2 followed by max-pooling. The features are the mean over the last map, 8·width numbers.
    """

    def __init__(self, image_size: int, width: int) -> None:
        super().__init__()
        small = image_size <= 64
        stem: list[nn.Module] = [
            nn.Conv2d(3, width, 3, padding=1, bias=False)
            if small
            else nn.Conv2d(3, width, 7, stride=2, padding=3, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
        ]
        if not small:
            stem.append(nn.MaxPool2d(3, stride=2, padding=1))
        self.stem = nn.Sequential(*stem)
        blocks: list[nn.Module] = []
        channels = width
        for stage in range(4):
            out_channels = width * 2**stage
            for block in range(2):
                blocks.append(_BasicBlock(channels, out_channels, stride=2 if stage > 0 and block == 0 else 1))
                channels = out_channels
        self.blocks = nn.Sequential(*blocks)
        self.num_features = channels
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return self.blocks(self.stem(pixel_values)).mean(dim=(2, 3))

    def maps(self, pixel_values: torch.Tensor, least_side: int) -> torch.Tensor:
        """What the last block gives whose maps have a side of `least_side` at least, float N×channels×side×side."""
        found = self.stem(pixel_values)
        for block in self.blocks:
            following = block(found)
            if following.shape[-1] < least_side:
                break
            found = following
        return found


class ViTBackbone(nn.Module):
    """A small vision transformer: `transformers.ViTModel`, 6 layers, heads of 64 (3 at the default width of 192).

    Patches are 4 px up to 32 px, 8 px up to 96 px and 16 px above. The features are the class token's last state.
    """

    def __init__(self, image_size: int, width: int) -> None:
        super().__init__()
        # Slow to load, and only this architecture needs it.
        from transformers import ViTConfig, ViTModel

        patch_size = 4 if image_size <= 32 else 8 if image_size <= 96 else 16
        if image_size % patch_size:
            raise InputError(
                f"{param('image_size')}={image_size} doesn't suit a vit: it must be a multiple of {patch_size}"
            )
        heads = max(1, width // 64)
        if width % heads:
            raise InputError(
                f"{param('width')}={width} doesn't suit a vit: it must be a multiple of {heads}, its heads"
            )
        config = ViTConfig(
            image_size=image_size,
            patch_size=patch_size,
            hidden_size=width,
            num_hidden_layers=6,
            num_attention_heads=heads,
            intermediate_size=4 * width,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        )
        self.vit = ViTModel(config, add_pooling_layer=False)
        self.num_features = width

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return self.vit(pixel_values).last_hidden_state[:, 0]


# What stands before the linear head, by architecture; each takes the side of the tiles in px and a width.
BACKBONES: dict[str, type[ConvNetBackbone | ResNet18Backbone | ViTBackbone]] = {
    "convnet": ConvNetBackbone,
    "resnet18": ResNet18Backbone,
    "vit": ViTBackbone,
}
