"""The classifiers that are trained on a (distilled) set of tiles and scored on real ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from huggingface_hub import PyTorchModelHubMixin
from torch import nn

from histodistill.training.models.architectures import ARCHITECTURES, DEFAULT_WIDTHS
from histodistill.training.models.encoders import Encoder, encoder_from_data
from histodistill.training.models.stain import standardize_stain
from histodistill.training.running.errors import InputError, param
from histodistill.training.running.options import require
from histodistill.training.running.suggestions import did_you_mean


#: The architecture of a classifier whose backbone is an encoder from elsewhere: see `encoders`.
ENCODER = "encoder"
# Side in px of the smallest tiles that a classifier takes: the ConvNet halves them three times.
SMALLEST_IMAGE = 8

# The model card that `save_pretrained` writes, filled in by huggingface_hub.
_CARD = """---
{{ card_data }}
---

# Histology tile classifier

Made with histodistill. Load it with `histodistill.training.models.classifiers.Classifier.from_pretrained`.
The architecture, the image size and the names of the classes are in `config.json`.
"""


class ClassifierOutput(NamedTuple):
    """What a `Classifier` returns.

    Attributes:
        logits: float N×C, before any softmax.
        features: float N×D, the input of the linear head.
    """

    logits: torch.Tensor
    features: torch.Tensor


class _HalvePool(nn.Module):
    """`nn.AvgPool2d(2)` by adding slices, which makes the ConvNet 1.3 times as fast to train on a CPU."""

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        height, width = maps.shape[2] // 2 * 2, maps.shape[3] // 2 * 2
        rows = maps[:, :, 0:height:2] + maps[:, :, 1:height:2]
        return (rows[..., 0:width:2] + rows[..., 1:width:2]) * 0.25


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
            layers += [
                nn.Conv2d(channels, width, kernel_size=3, padding=1),
                # Groups of one channel: the same as instance norm, and 1.4 times as fast in bfloat16 on a CPU.
                nn.GroupNorm(width, width),
                nn.ReLU(),
                _HalvePool(),
            ]
            channels, side, blocks = width, side // 2, blocks + 1
        self.layers = nn.Sequential(*layers)
        self.num_blocks = blocks
        self.num_features = width * side * side

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return self.layers(pixel_values).flatten(1)


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
_BACKBONES: dict[str, type[ConvNetBackbone | ResNet18Backbone | ViTBackbone]] = {
    "convnet": ConvNetBackbone,
    "resnet18": ResNet18Backbone,
    "vit": ViTBackbone,
}


class Classifier(
    nn.Module,
    PyTorchModelHubMixin,
    library_name="histodistill",
    pipeline_tag="image-classification",
    tags=["histology", "dataset-distillation"],
    model_card_template=_CARD,
):
    """A tile classifier: a backbone and a linear head.

    `save_pretrained(folder)` writes `config.json` (with the names of the classes) and `model.safetensors`;
    `Classifier.from_pretrained(folder_or_hub_id)` reads them back.

    Args:
        architecture: One of `ARCHITECTURES`, or `ENCODER`.
        num_classes: Number of classes, at least 2; may be left out where `class_names` is given.
        image_size: Side of the (square) input in px, at least 8.
        class_names: One name per class; the index is the label. "0", "1", … where left out.
        width: Base width of the network; None takes 128 for the ConvNet, 64 for ResNet-18 and 192 for the ViT.
        normalize_stain: Whether tiles go through `stain.standardize_stain` first, in training and afterwards.
        encoder: Of the architecture `ENCODER` alone: the backbone, with its weights, or the data that it is built from
            anew. It brings tiles to the size that it takes by itself.

    Raises:
        InputError: For an unknown architecture, sizes that it cannot have, or data of no encoder.
    """

    def __init__(
        self,
        architecture: str = "convnet",
        num_classes: int | None = None,
        image_size: int = 28,
        class_names: Sequence[str] | None = None,
        width: int | None = None,
        normalize_stain: bool = False,
        encoder: Encoder | dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if architecture not in ARCHITECTURES and (architecture != ENCODER or encoder is None):
            known, meant = ", ".join(ARCHITECTURES), did_you_mean(architecture, ARCHITECTURES)
            raise InputError(f"{param('architecture')}={architecture!r} is unknown{meant}: it must be one of {known}")
        if num_classes is None:
            num_classes = len(class_names) if class_names is not None else 0
        require(num_classes >= 2, "num_classes", num_classes, "it must be at least 2")
        if class_names is None:
            class_names = [str(label) for label in range(num_classes)]
        if len(class_names) != num_classes:
            raise InputError(
                f"class_names has {len(class_names)} names and num_classes={num_classes}: there must be one per class"
            )
        require(image_size >= SMALLEST_IMAGE, "image_size", image_size, f"it must be at least {SMALLEST_IMAGE}")
        if width is None:
            width = DEFAULT_WIDTHS.get(architecture)
        require(width is None or width >= 1, "width", width, "it must be at least 1")
        self.architecture = architecture
        self.image_size = image_size
        self.class_names = list(class_names)
        self.width = width
        self.normalize_stain = normalize_stain
        self.backbone, num_features = self._make_backbone(encoder)
        self.head = nn.Linear(num_features, num_classes)
        # Channels-last memory makes convolution with batch norm faster, and instance norm slower.
        self.memory_format = torch.channels_last if architecture == "resnet18" else torch.contiguous_format
        self.to(memory_format=self.memory_format)  # type: ignore[call-overload]  # unknown to the types of torch

    def _make_backbone(self, encoder: Encoder | dict[str, Any] | None) -> tuple[nn.Module, int]:
        """What stands before the head, and the length of its features."""
        # What `save_pretrained` writes to config.json; one that has no encoder says nothing of it, as it always was.
        config: dict[str, Any] = self._hub_mixin_config or {}  # type: ignore[assignment]  # a dataclass in others
        if self.architecture != ENCODER:
            config.pop("encoder", None)
            backbone = _BACKBONES[self.architecture](self.image_size, self.width or 1)
            return backbone, backbone.num_features
        assert encoder is not None  # or the architecture would have been refused
        if not isinstance(encoder, Encoder):
            encoder = encoder_from_data(encoder)
        config["encoder"] = encoder.to_data()
        return encoder, encoder.num_features(self.image_size)

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return self.head.out_features

    @property
    def num_features(self) -> int:
        """Length D of the feature vectors."""
        return self.head.in_features

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return self.head.weight.device

    def forward(self, pixel_values: torch.Tensor) -> ClassifierOutput:
        """Classifies tiles.

        Args:
            pixel_values: float N×3×image_size×image_size in [-1, 1].
        """
        if self.normalize_stain:
            pixel_values = standardize_stain(pixel_values)
        features = self.backbone(pixel_values.contiguous(memory_format=self.memory_format))
        return ClassifierOutput(logits=self.head(features), features=features)
