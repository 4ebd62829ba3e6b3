"""Methods of the literature that make a small set otherwise than by choosing among generated images, to compare with.

They work on the real tiles themselves and leave pixels of which nobody can tell what they show, or whose tile they
came from. So they are rows of the results table and no more.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from histodistill.selection.streams import stream, torch_seed
from histodistill.training.data.kept_arrays import read_arrays, read_kept_arrays, write_arrays
from histodistill.training.data.pixels import to_model_input, to_uint8
from histodistill.training.data.tiles import Tiles, sample_per_class
from histodistill.training.distillation.made_sets import write_picture
from histodistill.training.distillation.peer_options import MatchingConfig
from histodistill.training.engine.augment import apply_plan, draw_plan
from histodistill.training.engine.steps import step_generator
from histodistill.training.models.architectures import DEFAULT_WIDTHS
from histodistill.training.models.backbones import ConvNetBackbone
from histodistill.training.models.devices import best_device
from histodistill.training.running.notes import tell
from histodistill.training.running.progress import Progress


#: The folder in a table's that keeps peers' sets.
PEER_FOLDER = "peers"
# Steps after which what was made so far is written, so that a killed call goes on from there.
_KEEP_EVERY = 100
# The arrays of its file.
_KEPT = ("step", "labels", "pixels", "momentum")


class DistributionMatching:
    """Pixels whose features are, class by class and on average, those of real tiles in networks of random weights.

    Distribution matching (DM, Zhao and Bilen, WACV 2023, arXiv:2110.04181, algorithm 1): in each step a ConvNet gets
    new random weights, and the pixels take a step down the squared distance between the mean of the features of the
    synthetic images of a class and that of some of its real tiles, summed over classes. Real and synthetic images of
    a class are turned, moved and stained alike, drawn anew in each step (differentiable siamese augmentation, with
    the changes that classifiers here are trained with). The pixels begin as random real tiles; they are kept within
    what a file can hold. The optimizer is the paper's, SGD with a momentum of 0.5.

    Args:
        tiles: The real training tiles.
        n_per_class: Images to make of each class.
        seed: Of all that is random.
        options: How long, and how fast.

    Attributes:
        step: Steps done.
        pixels: float32 N×3×S×S in [-1, 1], class by class.
        labels: int64 N.
    """

    def __init__(self, tiles: Tiles, n_per_class: int, seed: int, options: MatchingConfig):
        self.tiles, self.seed, self.options = tiles, seed, options
        rows = sample_per_class(tiles.labels, n_per_class, seed)
        rows = rows[np.argsort(tiles.labels[rows], kind="stable")]
        self.step, self.labels = 0, tiles.labels[rows]
        self.device = best_device()
        self.pixels = to_model_input(tiles.images[rows], self.device)
        self.momentum = torch.zeros_like(self.pixels)
        self.members = {int(label): np.flatnonzero(tiles.labels == label) for label in np.unique(self.labels)}

    def advance(self) -> float:
        """Takes a step; returns the squared distance, summed over classes, before it."""
        network = self._random_network()
        pixels = self.pixels.clone().requires_grad_()
        distance = torch.zeros((), device=self.device)
        for label, members in self.members.items():
            real = self._mean_features(network, self._some_real(label, members), label)
            made = self._mean_features(network, pixels[torch.from_numpy(self.labels == label)], label)
            distance = distance + (made - real.detach()).square().sum()
        (gradient,) = torch.autograd.grad(distance, pixels)
        self.momentum.mul_(0.5).add_(gradient)
        self.pixels = (self.pixels - self.options.learning_rate * self.momentum).clamp(-1, 1)
        self.step += 1
        return distance.item()

    def images(self) -> np.ndarray:
        """The images as files hold them, uint8 N×S×S×3."""
        return to_uint8(self.pixels)

    def _random_network(self) -> ConvNetBackbone:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(torch_seed("weights of distribution matching", self.seed, self.step))
            network = ConvNetBackbone(self.pixels.shape[-1], DEFAULT_WIDTHS["convnet"])
        return network.requires_grad_(False).to(self.device)

    def _some_real(self, label: int, members: np.ndarray) -> torch.Tensor:
        rng = stream("real tiles of distribution matching", self.seed, self.step, label)
        count = min(self.options.real_batch_size, len(members))
        rows = np.sort(rng.choice(members, count, replace=False))
        return to_model_input(self.tiles.images[rows], self.device)

    def _mean_features(self, network: ConvNetBackbone, images: torch.Tensor, label: int) -> torch.Tensor:
        generator = step_generator(f"augmentation of distribution matching, class {label}", self.seed, self.step)
        plan = draw_plan(1, generator, stain_strength=self.options.stain_strength)
        alike = plan[torch.zeros(len(images), dtype=torch.int64)]
        return network(apply_plan(images, alike)).mean(dim=0)


def make_peer(file: Path, tiles: Tiles, n_per_class: int, seed: int, options: MatchingConfig) -> None:
    """Makes a set by distribution matching where a file does not hold it yet, and a picture of it beside the file.

    Args:
        file: Of the images; where a call was killed, what it had is in it, and is gone on from.
        tiles: The real training tiles.
        n_per_class, seed, options: See `DistributionMatching`.

    Raises:
        InputError: For a class with too few tiles.
    """
    matching = DistributionMatching(tiles, n_per_class, seed, options)
    _go_on(matching, file)
    if matching.step >= options.steps:
        return
    distance = 0.0
    with Progress(options.steps, f"distribution matching, {n_per_class} per class", initial=matching.step) as progress:
        while matching.step < options.steps:
            distance = matching.advance()
            progress.update()
            if matching.step % _KEEP_EVERY == 0 or matching.step == options.steps:
                _keep(matching, file)
    write_picture(file, matching.images(), n_per_class)
    tell(f"distribution matching: {n_per_class} images per class, seed {seed}, last distance {distance:.4g}")


def read_peer(file: Path) -> Tiles:
    """The set that `make_peer` has made."""
    kept = read_arrays(file, _KEPT)
    return Tiles(to_uint8(kept["pixels"]), kept["labels"])


def _keep(matching: DistributionMatching, file: Path) -> None:
    arrays = {"pixels": matching.pixels.cpu().numpy(), "momentum": matching.momentum.cpu().numpy()}
    file.parent.mkdir(parents=True, exist_ok=True)
    write_arrays(file, step=matching.step, labels=matching.labels, **arrays)


def _go_on(matching: DistributionMatching, file: Path) -> None:
    """Takes what a file has, where there is one that fits."""
    kept = read_kept_arrays(file, _KEPT)
    if not kept:
        return
    pixels, momentum = kept["pixels"], kept["momentum"]
    is_alike = pixels.shape == momentum.shape == tuple(matching.pixels.shape)
    if is_alike and np.array_equal(kept["labels"], matching.labels):
        matching.step = int(kept["step"])
        matching.pixels = torch.from_numpy(pixels).to(matching.device)
        matching.momentum = torch.from_numpy(momentum).to(matching.device)
