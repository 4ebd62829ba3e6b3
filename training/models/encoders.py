"""Encoders from elsewhere: what makes a vector of numbers of a tile, built from data and filled with weights.

Each is a module whose `forward` takes tiles, float N×3×S×S in [-1, 1], and gives features, float N×D; resizing and
normalising are part of it. `to_data` says in JSON what it is, and `encoder_from_data` builds it again, with new
weights: of classes that `transformers`, `diffusers` or `timm` know by a name in the data, never of code in a folder.
"""

from __future__ import annotations

import inspect
import json
from itertools import chain
from typing import Any, Self

import torch
from torch import nn
from torch.nn import functional as F

from histodistill.training.models.backbones import BACKBONES
from histodistill.training.models.encoder_names import COLOURS
from histodistill.training.models.latents import (
    LATENT_MODELS,
    LatentModel,
    compression_of,
    encode_images,
    parameters_of,
)
from histodistill.training.models.preprocessing import Preprocessing
from histodistill.training.running.errors import InputError, param, reason_of


#: Classes of a head that is built only to be found: a prime number, which no other layer has for its width.
PLACEHOLDER_CLASSES = 1009
# Boxes of a histogram of colours along each channel.
_LEVELS = 4
# Settings of a config that would have transformers take a part of the network from somewhere else.
_FOREIGN = ("backbone", "use_pretrained_backbone", "use_timm_backbone")


class Encoder(nn.Module):
    """What makes features, float N×D, of tiles, float N×3×S×S in [-1, 1]."""

    #: What the data of such an encoder call it.
    kind: str

    @classmethod
    def from_data(cls, data: dict[str, Any]) -> Self:
        """The encoder that `to_data` described, with new weights."""
        raise NotImplementedError

    def to_data(self) -> dict[str, Any]:
        """What it is, as JSON can hold it, but for its weights."""
        raise NotImplementedError

    @torch.no_grad()
    def num_features(self, image_size: int) -> int:
        """Length D of the features of tiles with this side in pixels."""
        was_training = self.training
        self.eval()
        device = next(chain(self.parameters(), self.buffers())).device
        tile = torch.zeros(1, 3, image_size, image_size, device=device)
        try:
            return int(self(tile).shape[1])
        finally:
            self.train(was_training)


class VisionEncoder(Encoder):
    """A vision model of `transformers` without a head.

    Its features are, by a plain rule:

    1. the pooled output, where the model has one and its weights were trained: the class token of DINOv2 and DINOv3,
       the normalised class token of CLIP, the attention-pooled token of SigLIP, the mean over the last map or tokens
       of Swin, ConvNeXt, ResNet and Hiera, the pooler of a ViT or a BEiT whose files hold one;
    2. otherwise the mean over the tokens of the last layer, or over the places of the last map: of a ViT or a BEiT
       without a pooler, and of MAE, of which nothing is masked.

    Of a model of pictures and texts only the vision tower is there.

    Args:
        model: From `transformers`.
        preprocessing: What tiles go through before.
        pooled: Whether its pooled output was trained.
    """

    kind = "vision"

    def __init__(self, model: nn.Module, preprocessing: Preprocessing, pooled: bool):
        super().__init__()
        self.model, self.preprocessing, self.pooled = model, preprocessing, pooled

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        output = self.model(self.preprocessing(pixel_values))
        features = getattr(output, "pooler_output", None) if self.pooled else None
        if features is None:
            hidden = output.last_hidden_state
            features = hidden.flatten(2).mean(2) if hidden.ndim == 4 else hidden.mean(1)
        return features.flatten(1)

    @classmethod
    def from_data(cls, data: dict[str, Any]) -> Self:
        from transformers.models.auto.modeling_auto import MODEL_MAPPING

        model = class_for(config_from_data(data["config"]), MODEL_MAPPING)
        return cls(model, Preprocessing.from_data(data["preprocessing"]), bool(data["pooled"]))

    def to_data(self) -> dict[str, Any]:
        """See `Encoder`."""
        return {
            "kind": self.kind,
            "config": config_to_data(self.model.config),
            "preprocessing": self.preprocessing.to_data(),
            "pooled": self.pooled,
        }


class ClassifierBody(Encoder):
    """An image classifier of `transformers` without its last layer: the features are what that layer takes.

    Args:
        model: Of `AutoModelForImageClassification`, made for `PLACEHOLDER_CLASSES` classes.
        preprocessing: What tiles go through before.

    Raises:
        InputError: If its head is not one linear layer.
    """

    kind = "classifier"

    def __init__(self, model: nn.Module, preprocessing: Preprocessing):
        super().__init__()
        self.model, self.preprocessing = model, preprocessing
        heads = [
            name
            for name, module in model.named_modules()
            if isinstance(module, nn.Linear) and module.out_features == PLACEHOLDER_CLASSES
        ]
        if len(heads) != 1:
            raise InputError(
                f"a network of the kind {getattr(model.config, 'model_type', None)} does not end in one linear layer: "
                "give another"
            )
        parent, _, child = heads[0].rpartition(".")
        setattr(model.get_submodule(parent), child, nn.Identity())
        self._leave_out_what_is_unused()

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return self.model(self.preprocessing(pixel_values)).logits.flatten(1)

    def _leave_out_what_is_unused(self) -> None:
        """Frees from training what no feature depends on, such as mask tokens: processes would wait for gradients."""
        side = self.preprocessing.side or 64
        self.eval()
        with torch.enable_grad():
            self(torch.zeros(1, 3, side, side)).sum().backward()
        for parameter in self.parameters():
            parameter.requires_grad_(parameter.grad is not None)
            parameter.grad = None
        self.train()

    @classmethod
    def from_data(cls, data: dict[str, Any]) -> Self:
        return cls.of(config_from_data(data["config"]), Preprocessing.from_data(data["preprocessing"]))

    @classmethod
    def of(cls, config: Any, preprocessing: Preprocessing) -> Self:
        """The network of a config, with new weights."""
        from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING

        return cls(class_for(for_training(config), MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING), preprocessing)

    def to_data(self) -> dict[str, Any]:
        """See `Encoder`."""
        return {
            "kind": self.kind,
            "config": config_to_data(self.model.config),
            "preprocessing": self.preprocessing.to_data(),
        }


class LatentEncoder(Encoder):
    """The first half of an autoencoder; the features are the latents, flattened.

    Args:
        autoencoder: Loses its decoder.
        called: What messages call it.
    """

    kind = "latents"

    def __init__(self, autoencoder: LatentModel, called: str = "the autoencoder"):
        super().__init__()
        self.autoencoder, self.called = autoencoder, called
        autoencoder.decoder = nn.Identity()

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        compression = compression_of(self.autoencoder)
        if pixel_values.shape[-1] % compression:
            raise InputError(
                f"{self.called} takes tiles whose side is a multiple of {compression} px, and these have "
                f"{pixel_values.shape[-1]} px: give the autoencoder of these tiles"
            )
        return encode_images(self.autoencoder, pixel_values).flatten(1).float()

    @classmethod
    def from_data(cls, data: dict[str, Any]) -> Self:
        model = LATENT_MODELS[data["config"]["_class_name"]]
        values = {name: value for name, value in data["config"].items() if name != "_class_name"}
        return cls(model.from_config(only_known(values, model)))

    def to_data(self) -> dict[str, Any]:
        """See `Encoder`."""
        values = parameters_of(self.autoencoder)
        return {"kind": self.kind, "config": {"_class_name": type(self.autoencoder).__name__, **_as_json(values)}}


class BackboneEncoder(Encoder):
    """The backbone of a `Classifier` for tiles of one size, to which larger ones are brought: the mean over areas.

    Args:
        backbone: Of that classifier.
        architecture, image_size, width: What it was made with.
    """

    kind = "backbone"

    def __init__(self, backbone: nn.Module, architecture: str, image_size: int, width: int):
        super().__init__()
        self.backbone, self.architecture, self.image_size, self.width = backbone, architecture, image_size, width

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        # The levels of the smaller tiles are whole numbers, as they are where tiles are resized before.
        levels = F.interpolate(pixel_values * 127.5 + 127.5, size=self.image_size, mode="area").round()
        return self.backbone(levels / 127.5 - 1)

    @classmethod
    def from_data(cls, data: dict[str, Any]) -> Self:
        architecture, image_size, width = data["architecture"], int(data["image_size"]), int(data["width"])
        return cls(BACKBONES[architecture](image_size, width), architecture, image_size, width)

    def to_data(self) -> dict[str, Any]:
        """See `Encoder`."""
        made_with = {"architecture": self.architecture, "image_size": self.image_size, "width": self.width}
        return {"kind": self.kind, **made_with}


class TimmEncoder(Encoder):
    """A model of `timm` without a head: the features are what its head would take.

    Args:
        model: Made by `timm.create_model` with `num_classes=0`.
        architecture, model_args: What it was made with.
        preprocessing: What tiles go through before.
    """

    kind = "timm"

    def __init__(self, model: nn.Module, architecture: str, model_args: dict[str, Any], preprocessing: Preprocessing):
        super().__init__()
        self.model, self.architecture, self.model_args = model, architecture, model_args
        self.preprocessing = preprocessing

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return self.model(self.preprocessing(pixel_values)).flatten(1)

    @classmethod
    def from_data(cls, data: dict[str, Any]) -> Self:
        architecture, model_args = data["architecture"], data["model_args"]
        # Where the names of Hub repositories and files are no names of networks, none can be fetched or read.
        if not isinstance(architecture, str) or not architecture.replace("_", "").isalnum():
            raise InputError(f"{architecture!r} is no network of timm: give the folder of a model that is not damaged")
        timm = load_timm()
        # What is no argument of a network tells where files of weights are, which are read here as safetensors alone.
        parameters = inspect.signature(timm.create_model).parameters.values()
        others = {one.name for one in parameters if one.kind is not one.VAR_KEYWORD} - {"num_classes"}
        if found := sorted(others & model_args.keys()):
            raise InputError(f"model_args holds {', '.join(found)}: give the folder of a model that is whole")
        model = timm.create_model(architecture, pretrained=False, **{**model_args, "num_classes": 0})
        return cls(model, architecture, model_args, Preprocessing.from_data(data["preprocessing"]))

    def to_data(self) -> dict[str, Any]:
        """See `Encoder`."""
        return {
            "kind": self.kind,
            "architecture": self.architecture,
            "model_args": self.model_args,
            "preprocessing": self.preprocessing.to_data(),
        }


class ColourEncoder(Encoder):
    """What the colours of a tile are, wherever they are: a network that beats it has learned more than staining.

    Args:
        name: One of `COLOURS`: the mean of each channel in [-1, 1], 3 features; or the shares of its pixels in
            4 × 4 × 4 equal boxes of red, green and blue, 64 features.
    """

    kind = "colours"

    places: torch.Tensor

    def __init__(self, name: str):
        super().__init__()
        if name not in COLOURS:
            raise InputError(f"{name!r} is no encoder of colours: it must be one of {', '.join(COLOURS)}")
        self.name = name
        # Tells the device, and shows where it is loaded from.
        self.register_buffer("places", torch.tensor([1, _LEVELS, _LEVELS**2]).reshape(3, 1, 1))

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        if self.name == COLOURS[0]:
            return pixel_values.float().mean(dim=(2, 3))
        # The levels from 0 to 255, since halves of a bit would fall into other boxes.
        levels = (pixel_values.float() * 127.5 + 127.5).round().clamp(0, 255).long() * _LEVELS // 256
        boxes = (levels * self.places).sum(dim=1).flatten(1)
        shares = torch.zeros(len(boxes), _LEVELS**3, device=boxes.device)
        return shares.scatter_add_(1, boxes, torch.full(boxes.shape, 1 / boxes.shape[1], device=boxes.device))

    @classmethod
    def from_data(cls, data: dict[str, Any]) -> Self:
        return cls(data["name"])

    def to_data(self) -> dict[str, Any]:
        """See `Encoder`."""
        return {"kind": self.kind, "name": self.name}


_KINDS: dict[str, type[Encoder]] = {
    encoder.kind: encoder
    for encoder in (VisionEncoder, ClassifierBody, LatentEncoder, BackboneEncoder, TimmEncoder, ColourEncoder)
}


def encoder_from_data(data: dict[str, Any]) -> Encoder:
    """The encoder that its `to_data` described, with new weights; global random numbers are left as they were.

    Raises:
        InputError: For anything else, and where a library that it needs is not installed.
    """
    try:
        with torch.random.fork_rng(devices=[]):
            return _KINDS[data["kind"]].from_data(data)
    except InputError:
        raise
    except Exception as error:  # of any kind: the values of a config can be wrong in every way
        raise InputError(
            f"the encoder that config.json describes cannot be built ({reason_of(error)}): make the folder again"
        ) from error


def config_to_data(config: Any) -> dict[str, Any]:
    """What makes a network of a config of `transformers`, as JSON can hold it: no names of classes, and no paths."""
    values = json.loads(config.to_json_string(use_diff=False))
    known = own_parameters(type(config))
    return {"model_type": config.model_type, **{name: value for name, value in values.items() if name in known}}


def config_from_data(data: dict[str, Any]) -> Any:
    """The config that `config_to_data` wrote down.

    Raises:
        InputError: For a kind of network or a parameter that the installed `transformers` does not know, and for one
            that would fetch a part of the network.
    """
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    values = dict(data)
    model_type = values.pop("model_type", None)
    if model_type not in CONFIG_MAPPING:
        raise InputError(
            f"the installed transformers knows no network of the kind {model_type!r}: install the version that the "
            "folder was made with"
        )
    config_class = CONFIG_MAPPING[model_type]
    if unknown := sorted(values.keys() - own_parameters(config_class)):
        raise InputError(
            f"config.json has {', '.join(unknown)}, which the installed transformers does not know of a network of "
            f"the kind {model_type}: install the version that the folder was made with"
        )
    return refuse_foreign(config_class(**values))


def refuse_foreign(config: Any) -> Any:
    """The config again. Raises InputError where a part of its network would be taken from somewhere else."""
    if any(getattr(config, name, None) for name in _FOREIGN):
        raise InputError(
            f"a part of the network of the kind {config.model_type} comes from another model: give a model that is "
            "whole"
        )
    return config


def for_training(config: Any) -> Any:
    """The config of a network that is to be trained: with a head that is found, and without dropout.

    Dropout would draw other numbers in a training that was resumed, and the tiles are augmented anyway.
    """
    config.num_labels = PLACEHOLDER_CLASSES
    for name in list(vars(config)):
        value = getattr(config, name)
        if ("dropout" in name or "drop_path" in name) and isinstance(value, float):
            setattr(config, name, 0.0)
        elif hasattr(value, "model_type"):  # of the vision tower
            for_training(value)
    return config


def class_for(config: Any, mapping: Any) -> nn.Module:
    """A new network of the class that a mapping of `transformers` has for a config."""
    found = network_class(config, mapping)
    return found._from_config(config, dtype=torch.float32)  # as `AutoModel.from_config` does, without a look for code


def network_class(config: Any, mapping: Any) -> Any:
    """The class that a mapping of `transformers` has for a config, the first of several.

    Raises:
        InputError: If there is none.
    """
    if type(config) not in mapping:
        raise InputError(f"a network of the kind {config.model_type} is not for this: give another model")
    found = mapping[type(config)]
    return found[0] if isinstance(found, tuple | list) else found


def only_known(values: dict[str, Any], model_class: type) -> dict[str, Any]:
    """The values again. Raises InputError for one that is no parameter of the class."""
    if unknown := sorted(values.keys() - set(inspect.signature(model_class).parameters)):
        raise InputError(
            f"config.json has {', '.join(unknown)}, which the installed {model_class.__name__} does not know: install "
            "the version that the folder was made with"
        )
    return values


def load_timm() -> Any:
    """The library `timm`.

    Raises:
        InputError: If it is not installed.
    """
    try:
        import timm
    except ImportError as error:
        raise InputError(
            f"{param('embedder')} of timm needs that library ({reason_of(error)}): pip install 'histodistill[timm]'"
        ) from error
    return timm


def own_parameters(config_class: type) -> set[str]:
    """The parameters of a config that say what its network is like: those that not all configs have."""
    from transformers import PretrainedConfig

    return set(inspect.signature(config_class).parameters) - set(inspect.signature(PretrainedConfig).parameters)


def _as_json(values: dict[str, Any]) -> dict[str, Any]:
    return json.loads(json.dumps(values))
