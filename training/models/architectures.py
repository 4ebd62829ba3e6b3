"""Names of the classifiers and what goes with each, cheap to read: nothing here imports torch."""

from __future__ import annotations


#: The networks that a `Classifier` can be.
ARCHITECTURES = ("convnet", "resnet18", "vit")
#: Base width of each: channels of a ConvNet's layers and of a ResNet's first stage, dimensions of a ViT's tokens.
DEFAULT_WIDTHS = {"convnet": 128, "resnet18": 64, "vit": 192}
#: Peak learning rate of AdamW for each. Found on validation tiles: see docs/trainings.md.
LEARNING_RATES = {"convnet": 3e-3, "resnet18": 1e-3, "vit": 1e-3}
