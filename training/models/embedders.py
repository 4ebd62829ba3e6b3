"""Embeddings of images: from a classifier or an autoencoder of this project, or any vision model by name or folder."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache, lru_cache, partial
from pathlib import Path

import numpy as np
import torch
from torch import nn

from histodistill.selection.image_audit import OWN_SCORES
from histodistill.selection.image_rows import Images, batches
from histodistill.selection.names import SYMMETRIES
from histodistill.selection.streams import torch_seed
from histodistill.selection.views import apply_symmetry, resample
from histodistill.training.data.pixels import to_model_input
from histodistill.training.models.architectures import TIMM
from histodistill.training.models.backbones import ResNet18Backbone
from histodistill.training.models.batch_sizes import usual_batch_size
from histodistill.training.models.classifiers import ENCODER, Classifier
from histodistill.training.models.devices import best_device
from histodistill.training.models.encoder_names import (
    BUILT_IN,
    COLOURS,
    SEARCHED_SIDE,
    TEACHER,
    UNTRAINED,
    UNTRAINED_SEVERAL,
    UNTRAINED_SIDE,
    encoder_label,
    is_of_histodistill,
)
from histodistill.training.models.encoders import BackboneEncoder, ColourEncoder, Encoder, LatentEncoder
from histodistill.training.models.latents import LATENT_MODELS, compression_of
from histodistill.training.models.loading import has_class, has_classifier, load_autoencoder, load_classifier
from histodistill.training.models.prediction import embed
from histodistill.training.models.pretrained import load_vision_encoder
from histodistill.training.running.errors import InputError, param
from histodistill.training.running.files import sha256_of
from histodistill.training.running.options import require
from histodistill.training.running.progress import Progress


#: What describes embedders that are folders of this project.
OF_TEACHER = "features of a classifier trained on the same tiles"
OF_CLASSIFIER, OF_AUTOENCODER = "features of a classifier", "latents of an autoencoder"


# The residual networks of `UNTRAINED_SEVERAL`, and channels of their first maps: small ones do, and take less time.
_NUM_RESIDUAL, _RESIDUAL_WIDTH = 4, 16
# Features of each: a mean and a deviation of 8 · 16 channels at the end, and of 2 · 16 halfway.
_RESIDUAL_FEATURES = 2 * (8 + 2) * _RESIDUAL_WIDTH


def is_autoencoder(name_or_path: str | Path) -> bool:
    """Whether a folder holds an autoencoder as `train_autoencoder` leaves it, or a pipeline in its `vae`."""
    return any(has_class(name_or_path, model) for model in LATENT_MODELS.values())


def resolve_embedder(name: str | Path, teacher: Path) -> str | Path:
    """What `embed_images` takes for the value of an option `embedder`."""
    return teacher if name == TEACHER else name


def describe_embedder(name: str | Path) -> str:
    """The value of an option `embedder` in words, without a path of this machine."""
    if name == TEACHER:
        return OF_TEACHER
    if name == UNTRAINED:
        return "features of a convolutional network with random weights"
    if name == UNTRAINED_SEVERAL:
        return "features of networks of two architectures with random weights"
    if name in COLOURS:
        return str(name).replace("_", " ")
    if is_autoencoder(name):
        return OF_AUTOENCODER
    if has_classifier(name):
        return OF_CLASSIFIER
    # A folder of timm's is named as one of transformers is.
    folder = Path(str(name).removeprefix(TIMM))
    return folder.name if folder.exists() else str(name)


def embedder_fingerprint(name: str | Path) -> str:
    """What stands for the value of an option `embedder` in a record: for a folder, not its path but its content."""
    folder = Path(str(name).removeprefix(TIMM))
    if name in (TEACHER, *BUILT_IN) or not folder.is_dir():
        return str(name)
    digest = hashlib.sha256()
    for file in sorted(folder.rglob("*")):
        # What a training leaves to go on from is none of its result, and may be cleaned away.
        is_of_model = file.name != "stage.json" and "checkpoints" not in file.relative_to(folder).parts
        if is_of_model and file.suffix in (".json", ".safetensors"):
            digest.update(file.name.encode() + bytes.fromhex(sha256_of(file)))
    return f"{describe_embedder(name)}, sha256 {digest.hexdigest()}"


def named_embeddings(names: Sequence[str]) -> dict[str, Callable[[Images], np.ndarray]]:
    """Embedders as functions of images, by names without a path of this machine.

    Each is loaded when it is first called, and kept for later calls. An autoencoder sees tiles above `SEARCHED_SIDE`
    px at that side: its latents tell there, too, whether two tiles are the same, and many tiles are soon encoded.

    Args:
        names: Values of the option `embedders`, each what `embed_images` takes.

    Returns:
        Name → a function from images uint8 N×H×W×3 to embeddings float32 N×D, of each image whatever the others are.

    Raises:
        InputError: If two have the same name.
    """
    embeddings: dict[str, Callable[[Images], np.ndarray]] = {}
    for name in names:
        if name == UNTRAINED_SEVERAL:
            raise InputError(f"{param('embedders')} {name} is for selections alone: give {UNTRAINED}")
        folder = Path(name.removeprefix(TIMM))
        # An audit knows names of the Hub, and timm's own models are there.
        of_hub = name if not name.startswith(TIMM) or "/" in name else name.replace(TIMM, "timm/")
        label = of_hub.removeprefix(TIMM)
        if folder.is_dir() and name not in BUILT_IN:  # by what it holds: its name may be somebody's own
            own = "autoencoder" if is_autoencoder(name) else TEACHER if folder.name == TEACHER else None
            label = own if own and is_of_histodistill(folder) else encoder_label(name)
        if label in OWN_SCORES:
            raise InputError(
                f"{param('embedders')} {label} is a name that the audit uses itself: save the model to a folder, and "
                "give that"
            )
        if label in embeddings:
            raise InputError(f"{param('embedders')} names {label} twice: name each once")
        embeddings[label] = _loaded_when_called(name)
    return embeddings


def _loaded_when_called(name: str) -> Callable[[Images], np.ndarray]:
    load = cache(partial(load_embedder, name, SEARCHED_SIDE))
    return lambda images: load()(images)


@dataclass(frozen=True)
class Embedder:
    """A function from images to embeddings; `load_embedder` makes it.

    Attributes:
        name: What it was loaded from: a name, a folder or a Hub id.
        function: Takes a batch of images, uint8 B×H×W×3, and returns embeddings, float32 B×D.
    """

    name: str
    function: Callable[[np.ndarray], np.ndarray] = field(repr=False)

    def __call__(self, images: Images, batch_size: int | None = None) -> np.ndarray:
        """Embeds images.

        Beside the embeddings themselves, 4·D bytes an image, only a batch is in memory at a time.

        Args:
            images: uint8 N×H×W×3, in memory or not.
            batch_size: Images at a time, at least 1; by default `usual_batch_size`.

        Returns:
            float32 N×D.

        Raises:
            InputError: For images of a size that the model does not take, none at all, or a batch size below 1.
        """
        batch_size = usual_batch_size(images.shape[1]) if batch_size is None else batch_size
        require(batch_size >= 1, "batch_size", batch_size, "it must be at least 1")
        if not len(images):
            raise InputError("there are no images: give at least one")
        embeddings, start = np.empty((0, 0), np.float32), 0
        with Progress(len(images), "embedding", "images") as progress:
            for batch in batches(images, batch_size):
                points = self.function(batch)
                if not start:
                    embeddings = np.empty((len(images), points.shape[1]), np.float32)
                embeddings[start : start + len(batch)] = points
                start += len(batch)
                progress.update(len(batch))
        return embeddings


def load_embedder(name_or_path: str | Path, latents_side: int | None = None) -> Embedder:
    """An embedder, loaded once.

    Args:
        name_or_path: A `Classifier` folder, whose penultimate features are taken; or the folder or Hub id of a
            `transformers` vision model, whose pooled output is taken where it was trained, or else the mean over its
            last hidden states (see `VisionEncoder`); or `timm:` and a name or Hub id of `timm`, or the folder of such
            a model; or the folder of an autoencoder, whose latents are taken as they are; or `UNTRAINED`, the features
            of a ConvNet with random weights, always the same ones: they tell of colours and textures, and of nothing
            that was learned from private tiles (compare Zhao & Bilen, WACV 2023); or `UNTRAINED_SEVERAL`, these and
            the features of four small residual networks, each the mean over the eight symmetries: see `embed_pool`;
            or one of `COLOURS`.
        latents_side: Side in pixels to which larger images are brought before an autoencoder sees them; None for as
            they are.

    Returns:
        What takes images, uint8 N×H×W×3, and returns embeddings, float32 N×D. It computes on `best_device`.

    Raises:
        InputError: If there is no such model.
    """
    device = best_device()
    if name_or_path == UNTRAINED:
        function = partial(_embed_untrained, device)
    elif name_or_path == UNTRAINED_SEVERAL:
        function = partial(_embed_several, device)
    elif has_classifier(name_or_path):
        function = partial(embed, load_classifier(name_or_path).to(device))
    else:
        encoder = _load_encoder(name_or_path).to(device)
        function = partial(_encode, encoder, device)
        if latents_side is not None and isinstance(encoder, LatentEncoder):
            side = max(latents_side, compression_of(encoder.autoencoder))
            return Embedder(str(name_or_path), lambda images: _encode(encoder, device, _at_most(images, side)))
    return Embedder(str(name_or_path), function)


def embed_images(name_or_path: str | Path, images: Images, batch_size: int | None = None) -> np.ndarray:
    """Embeds images once; for several times, `load_embedder` loads once.

    Args:
        name_or_path: See `load_embedder`.
        images: uint8 N×H×W×3.
        batch_size: Images at a time; by default `usual_batch_size`.

    Returns:
        float32 N×D.

    Raises:
        InputError: If there is no such model.
    """
    return load_embedder(name_or_path)(images, batch_size)


def embed_pool(
    name_or_path: str | Path, pool: Images, real: Images | None = None
) -> tuple[np.ndarray, np.ndarray | None]:
    """Embeds a pool to select from, and real tiles that are compared with it.

    Those of `UNTRAINED_SEVERAL` are standardised, each feature by its mean and deviation over the pool, and divided by
    the root of their number in either architecture, so that both weigh the same: a choice by one architecture's
    features is good for that one.

    Args:
        name_or_path: See `load_embedder`.
        pool: uint8 N×H×W×3.
        real: uint8 M×H×W×3, or None.

    Returns:
        float32 N×D, and float32 M×D or None.

    Raises:
        InputError: If there is no such model.
    """
    embed = load_embedder(name_or_path)
    own, other = embed(pool), None if real is None else embed(real)
    if name_or_path == UNTRAINED_SEVERAL:
        mean, scale = own.mean(axis=0, dtype=np.float64), own.std(axis=0, dtype=np.float64)
        # A feature that is the same for all images says nothing of them.
        scale[scale < 1e-6 * np.abs(own).max()] = np.inf
        first = own.shape[1] - _NUM_RESIDUAL * _RESIDUAL_FEATURES
        scale[:first] *= np.sqrt(first)
        scale[first:] *= np.sqrt(_NUM_RESIDUAL * _RESIDUAL_FEATURES)
        own = ((own - mean) / scale).astype(np.float32)
        other = None if other is None else ((other - mean) / scale).astype(np.float32)
    return own, other


@torch.no_grad()
def _embed_several(device: torch.device, images: np.ndarray) -> np.ndarray:
    images = _at_most(images, UNTRAINED_SIDE)
    networks = [_untrained(images.shape[1], device).backbone, *_residual(images.shape[1], device)]
    views = [to_model_input(apply_symmetry(images, symmetry)).to(device) for symmetry in range(SYMMETRIES)]
    # The mean over the symmetries, since a tile shows the same however it lies.
    features = [torch.stack([network(view) for view in views]).mean(dim=0) for network in networks]
    return torch.cat(features, dim=1).float().cpu().numpy()


class _PooledResidual(nn.Module):
    """Means and deviations over the places of two maps of a residual network, halfway and at its end."""

    def __init__(self, network: ResNet18Backbone):
        super().__init__()
        self.network = network

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        half = len(self.network.blocks) // 2
        middle = self.network.blocks[:half](self.network.stem(images))
        maps = self.network.blocks[half:](middle), middle
        return torch.cat(
            [pooled for x in maps for pooled in (x.mean(dim=(2, 3)), x.std(dim=(2, 3), correction=0))], dim=1
        )


@lru_cache(maxsize=1)
def _residual(image_size: int, device: torch.device) -> list[_PooledResidual]:
    networks = []
    for number in range(_NUM_RESIDUAL):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(torch_seed("weights of the untrained residual networks", number))
            networks.append(_PooledResidual(ResNet18Backbone(image_size, _RESIDUAL_WIDTH)).eval().to(device))
    return networks


def _embed_untrained(device: torch.device, images: np.ndarray) -> np.ndarray:
    images = _at_most(images, UNTRAINED_SIDE)
    return embed(_untrained(images.shape[1], device), images)


def _at_most(images: np.ndarray, side: int) -> np.ndarray:
    """Images, uint8 N×H×W×3, brought to a side in pixels where theirs is larger."""
    return images if images.shape[1] <= side else resample(images, side).round().astype(np.uint8)


@lru_cache(maxsize=1)
def _untrained(image_size: int, device: torch.device) -> Classifier:
    # Not made earlier, since its layers depend on the size of the images.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(torch_seed("weights of the untrained embedder"))
        model = Classifier("convnet", class_names=["0", "1"], image_size=image_size)
    return model.eval().to(device)


@torch.no_grad()
def _encode(encoder: Encoder, device: torch.device, images: np.ndarray) -> np.ndarray:
    return encoder(to_model_input(images).to(device)).float().cpu().numpy()


def classifier_on(
    name_or_path: str | Path, image_size: int, class_names: Sequence[str], option: str = "architecture"
) -> Classifier:
    """A classifier with a new head on the features of an embedder, in evaluation mode on the CPU.

    Args:
        name_or_path: See `load_embedder`.
        image_size: Side of the tiles in px.
        class_names: One per class; the index is the label.
        option: What the user gave the name as, for messages.

    Raises:
        InputError: If there is no such model, or it does not take tiles of this size.
    """
    if name_or_path != UNTRAINED and not has_classifier(name_or_path):
        encoder = _load_encoder(name_or_path, option)
        return Classifier(ENCODER, image_size=image_size, class_names=class_names, encoder=encoder).eval()
    if name_or_path == UNTRAINED and image_size > UNTRAINED_SIDE:
        # The network is one of a fixed size, and larger tiles are brought to it.
        small = copy.deepcopy(_untrained(UNTRAINED_SIDE, torch.device("cpu")))
        encoder = BackboneEncoder(small.backbone, small.architecture, small.image_size, small.width or 1)
        return Classifier(ENCODER, image_size=image_size, class_names=class_names, encoder=encoder).eval()
    source = (
        _untrained(image_size, torch.device("cpu")) if name_or_path == UNTRAINED else load_classifier(name_or_path)
    )
    if source.image_size != image_size:
        raise InputError(
            f"{param(option)} {name_or_path} takes tiles of {source.image_size} px, and these have {image_size} px: "
            "give a classifier of such tiles"
        )
    model = Classifier(
        source.architecture,
        image_size=image_size,
        class_names=class_names,
        width=source.width,
        normalize_stain=source.normalize_stain,
        encoder=source.backbone if isinstance(source.backbone, Encoder) else None,
    )
    model.backbone.load_state_dict(source.backbone.state_dict())
    return model.eval()


def _load_encoder(name_or_path: str | Path, option: str = "embedder") -> Encoder:
    """What is neither a classifier of this project nor untrained."""
    if name_or_path == UNTRAINED_SEVERAL:
        raise InputError(f"{param(option)} {name_or_path} is for selections alone: give {UNTRAINED}")
    if name_or_path in COLOURS:
        return ColourEncoder(str(name_or_path)).eval()
    if is_autoencoder(name_or_path):
        return LatentEncoder(load_autoencoder(name_or_path), f"{param(option)} {name_or_path}").eval()
    return load_vision_encoder(name_or_path, option)
