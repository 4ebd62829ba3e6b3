from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image

from histodistill.training.data.phantom import phantom_tiles
from histodistill.training.data.pixels import to_model_input
from histodistill.training.data.tiles import Tiles, sample_per_class
from histodistill.training.distillation import peers
from histodistill.training.distillation.made_sets import made_set_file
from histodistill.training.distillation.peer_options import MatchingConfig
from histodistill.training.distillation.peers import DistributionMatching, make_peer, read_peer
from histodistill.training.models.backbones import ConvNetBackbone
from histodistill.training.running.errors import InputError


def real_tiles(per_class=20, size=8) -> Tiles:
    """Two classes of noise around colours of their own, in turn."""
    rng = np.random.default_rng(0)
    labels = np.tile([0, 1], per_class)
    colours = np.array([[200, 80, 160], [90, 60, 140]])[labels]
    images = colours[:, None, None] + rng.normal(0, 30, (len(labels), size, size, 3))
    return Tiles(images.round().clip(0, 255).astype(np.uint8), labels)


OPTIONS = MatchingConfig(steps=4, real_batch_size=8)


def test_a_step_goes_down_the_distance_of_mean_features(monkeypatch):
    """One step of algorithm 1 of the paper, written out."""
    monkeypatch.setattr(peers, "apply_plan", lambda images, plan: images)
    tiles, options = real_tiles(), dataclasses.replace(OPTIONS, real_batch_size=100, learning_rate=0.1)
    matching = DistributionMatching(tiles, 3, 0, options)
    networks = []
    make = matching._random_network
    monkeypatch.setattr(matching, "_random_network", lambda: networks.append(make()) or networks[-1])
    before = matching.pixels.clone().requires_grad_()
    distance = matching.advance()

    real, (network,) = to_model_input(tiles.images), networks
    made = [network(before[matching.labels == label]).mean(0) for label in (0, 1)]
    goal = [network(real[tiles.labels == label]).mean(0) for label in (0, 1)]
    expected = sum((one - other).square().sum() for one, other in zip(made, goal, strict=True))
    assert distance == pytest.approx(expected.item(), rel=1e-5)
    expected.backward()
    torch.testing.assert_close(matching.pixels, (before - 0.1 * before.grad).detach().clamp(-1, 1))
    assert matching.momentum.abs().max() > 0 and matching.step == 1
    matching.advance()
    assert any((a != b).any() for a, b in zip(*(network.parameters() for network in networks), strict=True))


def test_it_begins_with_random_real_tiles_and_comes_nearer_to_all_of_them():
    tiles = phantom_tiles("train", 100, image_size=16, seed=1)
    matching = DistributionMatching(tiles, 2, 3, dataclasses.replace(OPTIONS, real_batch_size=20, learning_rate=0.05))
    begun, rows = matching.pixels.clone(), sample_per_class(tiles.labels, 2, 3)
    assert {image.tobytes() for image in matching.images()} == {image.tobytes() for image in tiles.images[rows]}
    assert matching.labels.tolist() == np.repeat(np.arange(5), 2).tolist()
    for _ in range(20):
        matching.advance()

    torch.manual_seed(0)
    unseen = [ConvNetBackbone(16, 128).requires_grad_(False) for _ in range(3)]
    real = to_model_input(tiles.images)

    def distance(pixels):
        means = [
            (network(pixels[matching.labels == label]).mean(0), network(real[tiles.labels == label]).mean(0))
            for network in unseen
            for label in range(5)
        ]
        return sum((one - other).square().sum().item() for one, other in means)

    assert distance(matching.pixels) < 0.7 * distance(begun)
    assert matching.pixels.abs().max() <= 1


def test_a_killed_one_goes_on_and_ends_as_an_undisturbed_one(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(peers, "_KEEP_EVERY", 1)
    whole, halves = (made_set_file(tmp_path / name, "peers", "peer-dm", 3, 5) for name in ("whole", "halves"))
    make_peer(whole, real_tiles(), 3, 5, OPTIONS)
    make_peer(halves, real_tiles(), 3, 5, dataclasses.replace(OPTIONS, steps=2))
    assert not np.array_equal(read_peer(halves).images, read_peer(whole).images)
    make_peer(halves, real_tiles(), 3, 5, OPTIONS)
    assert whole.read_bytes() == halves.read_bytes()
    # Classes are rows of the picture.
    with Image.open(halves.with_suffix(".png")) as picture:
        assert picture.size == (3 * (8 * 2 + 2) - 2, 2 * (8 * 2 + 2) - 2)
    capsys.readouterr()
    monkeypatch.setattr(DistributionMatching, "advance", None)  # which is not called again
    make_peer(whole, real_tiles(), 3, 5, OPTIONS)
    assert capsys.readouterr().out == ""
    found = read_peer(whole)
    assert found.images.dtype == np.uint8 and found.images.shape == (6, 8, 8, 3)
    assert found.labels.tolist() == [0, 0, 0, 1, 1, 1]


def test_seeds_make_other_sets(tmp_path):
    found = []
    for seed in (0, 1):
        make_peer(made_set_file(tmp_path, "peers", "peer-dm", 2, seed), real_tiles(), 2, seed, OPTIONS)
        found.append(read_peer(made_set_file(tmp_path, "peers", "peer-dm", 2, seed)).images)
    assert not np.array_equal(*found)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut off", None])
def test_a_damaged_file_is_made_anew(tmp_path, capsys, content):
    good, bad = (made_set_file(tmp_path / name, "peers", "peer-dm", 2, 0) for name in ("good", "bad"))
    make_peer(good, real_tiles(), 2, 0, OPTIONS)
    bad.parent.mkdir(parents=True)
    bad.write_bytes(good.read_bytes()[:-100] if content is None else content)
    make_peer(bad, real_tiles(), 2, 0, OPTIONS)
    assert f"{bad} is damaged: it is made anew" in "".join(capsys.readouterr())
    assert good.read_bytes() == bad.read_bytes()


def test_a_class_with_too_few_tiles_is_refused(tmp_path):
    with pytest.raises(InputError, match="class 0 has only 20 tiles"):
        make_peer(made_set_file(tmp_path, "peers", "peer-dm", 21, 0), real_tiles(), 21, 0, OPTIONS)
