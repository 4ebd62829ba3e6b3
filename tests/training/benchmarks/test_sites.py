from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate import Accelerator

from histodistill.training.benchmarks import sites as module
from histodistill.training.benchmarks.sites import average_weights, federated_averaging, join_sources, split_over_sites
from histodistill.training.data.phantom import phantom_source
from histodistill.training.data.tiles import Tiles
from histodistill.training.engine import scoring
from histodistill.training.engine.classifier_config import ClassifierConfig
from histodistill.training.engine.classifier_training import fit_classifier
from histodistill.training.running.errors import InputError


LABELS = np.repeat(np.arange(3), [300, 200, 100])
NAMES = ["smooth", "striped", "spotted"]
TINY = ClassifierConfig(width=8, batch_size=24, max_train_steps=8, learning_rate=5e-3)


def toy_tiles(per_class: int, seed: int) -> Tiles:
    """Three textures, noisy."""
    labels, rng = np.repeat(np.arange(3), per_class), np.random.default_rng(seed)
    images = rng.normal(150, 20, size=(len(labels), 16, 16, 3))
    images[labels == 1] += 50 * np.where(np.arange(16) // 2 % 2, 1, -1)[:, None, None]
    images[labels == 2] += 100 * (rng.random((per_class, 16, 16, 1)) < 0.2)
    return Tiles(images.clip(0, 255).astype(np.uint8), labels)


@pytest.fixture
def accelerator(fresh_accelerate) -> Accelerator:
    return Accelerator(cpu=True)


@pytest.mark.parametrize("seed", range(4))
def test_every_tile_goes_to_one_site_and_every_site_has_every_class(seed):
    sites = split_over_sites(LABELS, 4, 0.3, seed, min_per_class=5)
    assert np.array_equal(np.sort(np.concatenate(sites)), np.arange(len(LABELS)))
    assert all(np.array_equal(site, np.sort(site)) for site in sites)
    assert min(np.bincount(LABELS[site], minlength=3).min() for site in sites) >= 5


def test_shares_are_more_unequal_for_a_smaller_concentration():
    def inequality(concentration: float) -> float:
        splits = [split_over_sites(LABELS, 4, concentration, seed) for seed in range(20)]
        return np.mean([np.std([np.bincount(LABELS[site], minlength=3) for site in sites]) for sites in splits])

    # A symmetric Dirichlet share of S sites has the variance (S - 1) / (S² (S·a + 1)).
    assert inequality(0.1) > inequality(1) > inequality(100)
    counts = [len(site) for site in split_over_sites(LABELS, 4, 1e6, 0)]
    assert np.ptp(counts) <= 6


def test_the_seed_decides_the_split():
    first, again, other = (split_over_sites(LABELS, 3, 0.5, seed) for seed in (0, 0, 1))
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not all(np.array_equal(a, b) for a, b in zip(first, other, strict=True))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((1, 0.3, 0), "num_sites=1 is out of range: it must be at least 2"),
        ((2, 0.0, 0), "concentration=0.0 is out of range: it must be above 0"),
        ((4, 0.3, 0, 26), "min_per_class=26 is too many: class 2 has 100 tiles for 4 sites; ask for fewer"),
    ],
)
def test_what_cannot_be_split_is_refused(options, message):
    with pytest.raises(InputError) as error:
        split_over_sites(LABELS, *options)
    assert str(error.value) == message


def test_sites_that_have_a_source_each_are_joined():
    sizes = {"train": 2, "validation": 1, "test": 1}
    sources = [phantom_source(image_size=16, sizes=sizes, site=site) for site in ("east", "south")]
    source, parts = join_sources(sources)
    for part, own in zip(parts, sources, strict=True):
        assert np.array_equal(source.split("train").subset(part).images, own.split("train").images)
    assert {name: len(tiles) for name, tiles in source.splits.items()} == {"train": 20, "validation": 10, "test": 10}
    assert source.group_kind is None and source.split("train").groups is None
    with pytest.raises(InputError, match=r"^phantom has other classes or sizes than phantom: give sites with the"):
        join_sources([sources[0], phantom_source(image_size=20, sizes=sizes)])


def test_weights_are_averaged_by_shares_and_counters_are_not():
    states = [{"weight": torch.full((2,), value), "steps": torch.tensor(3)} for value in (1.0, 5.0)]
    averaged = average_weights(states, np.array([0.75, 0.25]))
    assert averaged["weight"].tolist() == [2.0, 2.0] and averaged["weight"].dtype == torch.float32
    assert averaged["steps"].item() == 3


def test_one_site_and_one_round_is_plain_training(accelerator):
    tiles = toy_tiles(10, seed=0)
    plain = fit_classifier(TINY, tiles, None, accelerator, class_names=NAMES, progress=False).model
    config = dataclasses.replace(TINY, seed=0)
    federated = federated_averaging(config, [tiles], accelerator, class_names=NAMES, num_rounds=1)
    pairs = zip(plain.state_dict().values(), federated.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_unequal_sites_learn_together(accelerator):
    tiles = toy_tiles(40, seed=0)
    sites = [tiles.subset(part) for part in split_over_sites(tiles.labels, 2, 1.0, 0, min_per_class=5)]
    config = dataclasses.replace(TINY, max_train_steps=90)
    model = federated_averaging(config, sites, accelerator, class_names=NAMES, num_rounds=6)
    assert not model.training
    assert scoring.score(model, toy_tiles(30, seed=2))["accuracy"] > 0.8


def test_the_common_model_is_on_the_device_of_the_trainings(monkeypatch):
    device, calls = torch.device("meta"), []

    def trained(config, site, validation, accelerator, *, initial, **_):
        calls.append(initial.device)
        return SimpleNamespace(model=initial)

    monkeypatch.setattr(module, "fit_classifier", trained)
    accelerator = SimpleNamespace(device=device)
    model = federated_averaging(TINY, [toy_tiles(2, 0)] * 2, accelerator, class_names=NAMES, num_rounds=2)
    assert calls == [device] * 4 and model.device == device
