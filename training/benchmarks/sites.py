"""Simulated sites: splitting tiles over them with unequal class shares, and federated averaging between them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from histodistill.selection.checks import check_integer
from histodistill.selection.image_rows import join as join_images
from histodistill.selection.streams import stream
from histodistill.training.data.tiles import Tiles, TileSource
from histodistill.training.engine.classifier_config import ClassifierConfig
from histodistill.training.engine.classifier_training import build_classifier, fit_classifier
from histodistill.training.models.classifiers import Classifier
from histodistill.training.running.errors import InputError, param


if TYPE_CHECKING:
    from accelerate import Accelerator


def split_over_sites(
    labels: np.ndarray, num_sites: int, concentration: float, seed: int, min_per_class: int = 1
) -> list[np.ndarray]:
    """Splits tiles over sites, each class by shares drawn from a symmetric Dirichlet distribution.

    The usual model of sites that differ in what they see (Hsu, Qi & Brown 2019, arXiv:1909.06335): the smaller the
    concentration, the more of a class lies at one site. Every site gets `min_per_class` tiles of every class before
    the rest is shared, since a class that a site lacks cannot be distilled there.

    Args:
        labels: int N.
        num_sites: S, at least 2.
        concentration: Of the Dirichlet distribution, above 0.
        seed: Of the shares and of which tile goes where.
        min_per_class: Tiles of each class that each site has, at least.

    Returns:
        S arrays of indices, int64, sorted; together each tile once.

    Raises:
        InputError: For a number out of range, or a class with fewer tiles than S·min_per_class.
    """
    check_integer(param("num_sites"), num_sites, 2, error=InputError)
    check_integer(param("min_per_class"), min_per_class, 1, error=InputError)
    if not concentration > 0:
        raise InputError(f"{param('concentration')}={concentration} is out of range: it must be above 0")
    rng = stream("tiles of several sites", seed)
    sites: list[list[np.ndarray]] = [[] for _ in range(num_sites)]
    for label in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == label))
        spare = len(members) - num_sites * min_per_class
        if spare < 0:
            raise InputError(
                f"{param('min_per_class')}={min_per_class} is too many: class {label} has {len(members)} tiles for "
                f"{num_sites} sites; ask for fewer"
            )
        shares = rng.dirichlet(np.full(num_sites, concentration))
        ends = np.round(np.cumsum(shares) * spare).astype(int)
        ends[-1] = spare
        counts = np.diff(ends, prepend=0) + min_per_class
        for site, part in zip(sites, np.split(members, np.cumsum(counts)[:-1]), strict=True):
            site.append(part)
    return [np.sort(np.concatenate(parts)) for parts in sites]


def join_sources(sources: Sequence[TileSource]) -> tuple[TileSource, list[np.ndarray]]:
    """The tiles of sites that have a source each, as one source.

    Args:
        sources: Of each site, with a validation and a test split.

    Returns:
        The source, without groups, and for each site the indices of its training tiles, int64.

    Raises:
        InputError: For a source of other classes or another size than the first, or without a split.
    """
    first = sources[0]
    for source in sources[1:]:
        if (source.class_names, source.image_size) != (first.class_names, first.image_size):
            raise InputError(f"{source.name} has other classes or sizes than {first.name}: give sites with the same")
    splits = {split: join([source.split(split) for source in sources]) for split in ("train", "validation", "test")}
    ends = np.cumsum([len(source.split("train")) for source in sources])
    return replace(first, splits=splits, group_kind=None), np.split(np.arange(ends[-1]), ends[:-1])


def join(parts: Sequence[Tiles]) -> Tiles:
    """Tiles of several sites as one set."""
    return Tiles(join_images([part.images for part in parts]), np.concatenate([part.labels for part in parts]))


def federated_averaging(
    config: ClassifierConfig,
    sites: Sequence[Tiles],
    accelerator: Accelerator,
    *,
    class_names: Sequence[str],
    num_rounds: int = 10,
) -> Classifier:
    """Trains one classifier over all sites by federated averaging (McMahan et al., AISTATS 2017, algorithm 1).

    In each round every site goes on from the common weights for its share of the config's steps, with a learning-rate
    schedule of its own, and the weights that come back are averaged by number of tiles. All sites take part in every
    round. `config.max_train_steps` is the number of steps of each site over all rounds, so a site trains as long as
    it would alone.

    Args:
        config: How to train.
        sites: The tiles of each site.
        accelerator: Shared by all processes.
        class_names: Names of the labels.
        num_rounds: A divisor of the steps.

    Returns:
        The classifier, ready to be scored, on the accelerator's device.

    Raises:
        InputError: For a number out of range, or what `fit_classifier` refuses.
    """
    check_integer(param("num_rounds"), num_rounds, 1, error=InputError)
    steps, rest = divmod(config.max_train_steps, num_rounds)
    if rest:
        raise InputError(
            f"{param('num_rounds')}={num_rounds} does not divide {param('max_train_steps')}={config.max_train_steps}: "
            "a round has so many steps at each site, so give numbers that do"
        )
    shares = np.array([len(site) for site in sites]) / sum(len(site) for site in sites)
    common = build_classifier(config, sites[0].images.shape[1], class_names).to(accelerator.device)
    for number in range(num_rounds):
        returned = []
        for place, site in enumerate(sites):
            local = replace(
                config,
                max_train_steps=steps,
                validation_steps=steps,
                # Another order and other augmentations in each round and at each site.
                seed=(config.seed * num_rounds + number) * len(sites) + place,
            )
            trained = fit_classifier(
                local, site, None, accelerator, class_names=class_names, initial=common, progress=False
            )
            returned.append(trained.model.state_dict())
        common.load_state_dict(average_weights(returned, shares))
    return common.eval()


def average_weights(states: Sequence[dict[str, torch.Tensor]], shares: np.ndarray) -> dict[str, torch.Tensor]:
    """The weighted mean of models' weights.

    Args:
        states: State dicts with the same keys, on one device.
        shares: float S, the weight of each; they add up to 1.

    Returns:
        A state dict: tensors of floating-point numbers, buffers included, are means, and counters those of the first.
    """
    averaged = {}
    for name, first in states[0].items():
        if first.is_floating_point():
            parts = [share * state[name].double() for share, state in zip(shares.tolist(), states, strict=True)]
            averaged[name] = torch.stack(parts).sum(dim=0).to(first.dtype)
        else:
            averaged[name] = first
    return averaged
