from __future__ import annotations

import numpy as np
import pytest
import torch

from histodistill.training.data.sources import load_tiles
from histodistill.training.data.tile_cache import TileCache
from histodistill.training.engine.alignment import AlignedDenoiser, Alignment, misalignment
from histodistill.training.engine.augment import apply_symmetries
from histodistill.training.models.classifiers import Classifier
from histodistill.training.models.denoiser import build_denoiser
from histodistill.training.running.errors import InputError


NAMES = ["a", "b", "c"]


def classifier(architecture: str, image_size: int = 28, width: int = 4) -> Classifier:
    torch.manual_seed(0)
    return Classifier(architecture, image_size=image_size, class_names=NAMES, width=width).eval()


@pytest.mark.parametrize(
    ("architecture", "image_size", "least_side", "shape"),
    [
        ("convnet", 28, 14, (4, 14, 14)),
        ("convnet", 28, 7, (4, 7, 7)),
        ("convnet", 64, 4, (4, 4, 4)),
        ("resnet18", 28, 7, (16, 7, 7)),
        ("resnet18", 64, 16, (16, 16, 16)),
    ],
)
def test_the_last_maps_that_are_large_enough(architecture, image_size, least_side, shape):
    pixels = torch.randn(2, 3, image_size, image_size)
    assert classifier(architecture, image_size).feature_maps(pixels, least_side).shape == (2, *shape)


@pytest.mark.parametrize("architecture", ["convnet", "resnet18"])
def test_the_smallest_maps_are_what_the_head_reads(architecture):
    model, pixels = classifier(architecture), torch.randn(2, 3, 28, 28)
    with torch.no_grad():
        maps, features = model.feature_maps(pixels, 1), model(pixels).features
    flat = maps.mean((2, 3)) if architecture == "resnet18" else maps.flatten(1)
    torch.testing.assert_close(flat, features)


def test_a_classifier_without_maps_is_refused():
    with pytest.raises(
        InputError, match="align is a vit, which has no maps of features: give a convnet or a resnet18"
    ):
        Alignment(classifier("vit", width=64), 0.5, 7)


@pytest.fixture
def tiles(tiny_npz):
    return load_tiles(tiny_npz).split("train")


def prepared(tiles, tmp_path) -> Alignment:
    alignment = Alignment(classifier("convnet", 16), 0.5, 4)
    alignment.prepare(tiles, "tiny", torch.device("cpu"), TileCache(tmp_path / "cache"), is_shown=False)
    return alignment


def test_targets_are_the_features_of_tiles_turned_as_they_are(tiles, tmp_path):
    alignment = prepared(tiles, tmp_path)
    indices = np.array([3, 0, 7])
    as_they_are = alignment.targets(indices, torch.zeros(3, dtype=torch.int64))
    pixels = torch.from_numpy(tiles.images[indices]).permute(0, 3, 1, 2) / 127.5 - 1
    with torch.no_grad():
        features = classifier("convnet", 16).feature_maps(pixels, 4)
    assert as_they_are.shape == features.shape == (3, alignment.num_features, 4, 4)
    offsets = features - as_they_are  # the mean of each channel, whatever the tile
    torch.testing.assert_close(offsets, offsets[:1, :, :1, :1].expand_as(offsets), rtol=0, atol=2e-3)
    symmetries = torch.tensor([1, 6, 3])
    torch.testing.assert_close(alignment.targets(indices, symmetries), apply_symmetries(as_they_are, symmetries))
    everything = alignment.targets(np.arange(len(tiles)), torch.zeros(len(tiles), dtype=torch.int64))
    assert everything.mean((0, 2, 3)).abs().max() < 1e-4


def test_features_are_taken_once(tiles, tmp_path, monkeypatch):
    alignment, none = prepared(tiles, tmp_path), torch.zeros(2, dtype=torch.int64)
    before = alignment.targets(np.array([0, 1]), none)

    def never(*_):
        raise AssertionError("they are there")

    monkeypatch.setattr(Alignment, "_features", never)
    alignment.prepare(tiles, "tiny", torch.device("cpu"), TileCache(tmp_path / "cache"), is_shown=False)
    assert torch.equal(alignment.targets(np.array([0, 1]), none), before)


@pytest.mark.parametrize("cache", ["none", "no room"])
def test_features_that_are_not_kept_are_the_same(tiles, tmp_path, monkeypatch, capsys, cache):
    kept = prepared(tiles, tmp_path)
    monkeypatch.setenv("HISTODISTILL_CACHE_LIMIT", "1kB")
    alignment = Alignment(classifier("convnet", 16), 0.5, 4)
    store = None if cache == "none" else TileCache(tmp_path / "other")
    alignment.prepare(tiles, "tiny", torch.device("cpu"), store, is_shown=False)
    assert ("features are taken anew in each step: features of these tiles take" in capsys.readouterr().err) == (
        cache == "no room"
    )
    indices, symmetries = np.array([5, 1, 1]), torch.tensor([0, 7, 2])
    # But for the rounding of sums over batches of other sizes.
    torch.testing.assert_close(
        alignment.targets(indices, symmetries), kept.targets(indices, symmetries), rtol=0, atol=2e-3
    )


@pytest.mark.parametrize("cache", [False, True])
def test_features_that_are_too_large_are_refused(tiles, tmp_path, monkeypatch, cache):
    alignment = Alignment(classifier("convnet", 16), 0.5, 4)
    features = alignment._features
    monkeypatch.setattr(Alignment, "_features", lambda self, pixels: 1e6 * features(pixels))
    with pytest.raises(InputError, match="align gives features that are too large or no numbers: give another"):
        store = TileCache(tmp_path / "cache") if cache else None
        alignment.prepare(tiles, "tiny", torch.device("cpu"), store, is_shown=False)


def test_an_aligned_denoiser_gives_what_it_alone_gives():
    torch.manual_seed(0)
    denoiser = build_denoiser(8, 2, 5, [8, 16], 1, 0, 0.0)
    model = AlignedDenoiser(denoiser, 3)
    inputs = torch.randn(2, 2, 8, 8), torch.tensor([10.0, 500.0])
    output = model(*inputs, class_labels=torch.tensor([0, 5]))
    torch.testing.assert_close(output.sample, denoiser(*inputs, class_labels=torch.tensor([0, 5])).sample)
    assert output.projected.shape == (2, 3, 4, 4)
    output.projected.sum().backward()
    assert denoiser.conv_in.weight.grad is not None and model.projection[0].weight.grad is not None
    assert denoiser.conv_out.weight.grad is None


def test_misalignment_is_that_of_directions():
    features = torch.randn(2, 3, 4, 4)
    assert misalignment(2 * features, features).item() == pytest.approx(0, abs=1e-6)
    assert misalignment(-features, features).item() == pytest.approx(2, abs=1e-6)
    first, second = torch.tensor([1.0, 0.0]).view(1, 2, 1, 1), torch.tensor([0.0, 5.0]).view(1, 2, 1, 1)
    assert misalignment(first, second).item() == pytest.approx(1)


def test_the_middle_can_be_drawn_to_features():
    torch.manual_seed(0)
    model = AlignedDenoiser(build_denoiser(8, 2, 5, [8, 16], 1, 0, 0.0), 3)
    inputs, classes = (torch.randn(4, 2, 8, 8), torch.full((4,), 300.0)), torch.arange(4)
    targets = torch.randn(4, 3, 4, 4)
    optimizer, losses = torch.optim.Adam(model.parameters(), lr=1e-2), []
    for _ in range(60):
        loss = misalignment(model(*inputs, class_labels=classes).projected, targets)
        losses.append(loss.item())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert losses[0] > 0.8 and losses[-1] < 0.3
