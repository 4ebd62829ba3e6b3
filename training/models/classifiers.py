"""The classifiers that are trained on a (distilled) set of tiles and scored on real ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from huggingface_hub import PyTorchModelHubMixin
from torch import nn

from histodistill.training.models.architectures import ARCHITECTURES, DEFAULT_WIDTHS
from histodistill.training.models.backbones import BACKBONES
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
            backbone = BACKBONES[self.architecture](self.image_size, self.width or 1)
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
        features = self.backbone(self._prepared(pixel_values))
        return ClassifierOutput(logits=self.head(features), features=features)

    def feature_maps(self, pixel_values: torch.Tensor, least_side: int) -> torch.Tensor:
        """The last maps of features that have a side of `least_side` at least, float N×C×side×side.

        Args:
            pixel_values: As `forward` takes them.
            least_side: At most image_size.
        """
        return self.backbone.maps(self._prepared(pixel_values), least_side)  # type: ignore[operator]

    def _prepared(self, pixel_values: torch.Tensor) -> torch.Tensor:
        if self.normalize_stain:
            pixel_values = standardize_stain(pixel_values)
        return pixel_values.contiguous(memory_format=self.memory_format)
