from __future__ import annotations

import dataclasses
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from histodistill.selection.baselines import fit_kmeans
from histodistill.selection.streams import stream
from histodistill.training.data.image_dataset import read_image_dataset
from histodistill.training.data.pixels import to_uint8
from histodistill.training.distillation import guided_sampling
from histodistill.training.distillation.guided_options import ModesConfig, RepulsionConfig
from histodistill.training.distillation.guided_sampling import (
    Guidance,
    GuidedSampler,
    distance_to_modes,
    likeness,
    make_guided,
    read_guided,
)
from histodistill.training.distillation.made_sets import made_set_file
from histodistill.training.engine.pool import generate_images
from histodistill.training.models.classifiers import Classifier
from histodistill.training.models.embedders import embed_images
from histodistill.training.models.latents import decode_latents
from histodistill.training.models.loading import load_classifier, load_pipeline
from histodistill.training.models.prediction import predict_proba
from histodistill.training.running.errors import InputError
from histodistill.training.running.files import read_json, write_json


MODES, REPULSION = ModesConfig(strength=0.5), RepulsionConfig(strength=0.5)
STEPS = 6


@pytest.fixture(scope="module")
def run(tmp_path_factory, tiny_pipeline, tiny_pool, tiny_teacher) -> Path:
    """A run whose pool says that it was made in more steps and with an interval, which samplers are to take over."""
    folder = tmp_path_factory.mktemp("guided") / "run"
    for part, made in (("pipeline", tiny_pipeline), ("pool", tiny_pool), ("teacher", tiny_teacher)):
        shutil.copytree(made, folder / part, ignore=shutil.ignore_patterns("checkpoints"))
    record = read_json(folder / "pool" / "stage.json")
    record["settings"] |= {"num_inference_steps": STEPS, "guidance_scale": 1.4, "guidance_interval": [0.2, 0.8]}
    write_json(folder / "pool" / "stage.json", record)
    return folder


@pytest.fixture(scope="module")
def sampler(run) -> GuidedSampler:
    return GuidedSampler(run)


def pool_features(run: Path, label: int) -> np.ndarray:
    images, columns, _ = read_image_dataset(run / "pool")
    return embed_images("untrained", images[columns["label"] == label])


def unguided(run: Path, label: int, count: int, seed: int) -> np.ndarray:
    """What the pipeline makes of the same noise by itself."""
    pipeline = load_pipeline(run / "pipeline")
    pipeline.set_progress_bar_config(disable=True)
    seeds = stream("noise of guided images", seed, label).integers(2**32, size=count)
    return generate_images(
        pipeline, np.full(count, label), seeds,
        num_inference_steps=STEPS, guidance_scale=1.4, guidance_interval=(0.2, 0.8),
    )  # fmt: skip


# The loss of features.


def test_the_distance_to_modes_is_that_of_each_to_its_own():
    features, modes = torch.tensor([[0.0, 1.0], [2.0, 2.0]]), torch.tensor([[0.0, 3.0], [1.0, 2.0]])
    assert distance_to_modes(features, modes).item() == 4 + 1


def test_likeness_is_minus_the_log_of_the_determinant():
    features = np.random.default_rng(0).normal(size=(5, 3)) + 100
    squared = np.square(features[:, None] - features).sum(axis=2)
    expected = -np.linalg.slogdet(np.exp(-squared / 2.5) + 0.01 * np.eye(5))[1]
    assert likeness(torch.tensor(features), 2.5).item() == pytest.approx(expected, rel=1e-5)
    # Equal images are no end of the world, and far ones are as unlike as images can be.
    assert likeness(torch.zeros(2, 3), 1.0).item() == pytest.approx(-math.log(1.01**2 - 1), rel=1e-4)
    assert likeness(torch.tensor([[0.0], [1e4]]), 1.0).item() == pytest.approx(-2 * math.log(1.01), rel=1e-4)


# One step.


@pytest.fixture(scope="module")
def autoencoder(run):
    return load_pipeline(run / "pipeline").vae.requires_grad_(False)


def network(size: int) -> Classifier:
    torch.manual_seed(0)
    return Classifier("convnet", image_size=size, num_classes=2, width=8).eval().requires_grad_(False)


def test_a_step_goes_down_the_gradient_as_far_as_it_is_told(autoencoder):
    latents = torch.randn(4, 2, 8, 8, generator=torch.Generator().manual_seed(1))
    guidance = Guidance(autoencoder, network(16), lambda features: features.square().sum(), strength=0.1, stop=1.0)
    moved = guidance.moved(latents, level=0.5)
    assert (moved - latents).square().mean().sqrt().item() == pytest.approx(0.1 * 0.5, rel=1e-4)

    known = latents.clone().requires_grad_()
    images = decode_latents(autoencoder, known).clamp(-1, 1)
    network(16).backbone(images).square().sum().backward()
    step = (latents - moved).flatten()
    assert torch.nn.functional.cosine_similarity(step, known.grad.flatten(), dim=0) > 0.9999
    # Far enough to be seen, and not too far for a gradient.
    small = dataclasses.replace(guidance, strength=0.01)
    loss = small.loss
    assert loss(small.features(small.moved(latents, 1.0))) < loss(small.features(latents))


def test_features_are_those_of_the_images_that_are_decoded(autoencoder):
    latents = torch.randn(3, 2, 8, 8, generator=torch.Generator().manual_seed(1))
    guidance = Guidance(autoencoder, network(16), torch.sum, strength=0.1, stop=1.0)
    images = to_uint8(decode_latents(autoencoder, latents))
    expected = network(16)(torch.from_numpy(images).permute(0, 3, 1, 2) / 127.5 - 1).features
    torch.testing.assert_close(guidance.features(latents), expected, rtol=0.05, atol=0.05)


def test_images_larger_than_the_network_takes_are_brought_to_its_size(autoencoder):
    latents = torch.randn(3, 2, 8, 8, generator=torch.Generator().manual_seed(1))
    guidance = Guidance(autoencoder, network(8), torch.sum, strength=0.1, stop=1.0)
    images = decode_latents(autoencoder, latents).clamp(-1, 1)
    halved = images.unflatten(2, (8, 2)).unflatten(4, (8, 2)).mean(dim=(3, 5))
    torch.testing.assert_close(guidance.features(latents), network(8).backbone(halved))
    assert (guidance.moved(latents, 1.0) != latents).all(dim=(1, 2, 3)).all()


def test_some_images_at_a_time_have_the_gradient_of_all(autoencoder, monkeypatch):
    latents = torch.randn(5, 2, 8, 8, generator=torch.Generator().manual_seed(1))
    guidance = Guidance(autoencoder, network(16), lambda features: likeness(features, 10.0), strength=0.1, stop=1.0)
    whole = guidance.moved(latents, 1.0)
    monkeypatch.setattr(guided_sampling, "usual_batch_size", lambda side: 2 if side == 16 else pytest.fail(str(side)))
    torch.testing.assert_close(guidance.moved(latents, 1.0), whole)


def test_where_there_is_nowhere_to_go_nothing_moves(autoencoder):
    latents = torch.randn(1, 2, 8, 8, generator=torch.Generator().manual_seed(1))
    # A single image is like no other.
    guidance = Guidance(autoencoder, network(16), lambda features: likeness(features, 1.0), strength=0.1, stop=1.0)
    assert torch.equal(guidance.moved(latents, 1.0), latents)


# Whole images.


@pytest.mark.parametrize("options", [ModesConfig(strength=0), RepulsionConfig(strength=0), ModesConfig(stop=0)])
def test_without_guidance_they_are_the_pipelines_own_byte_for_byte(sampler, run, options):
    images = sampler.sample(1, 4, 3, options)
    assert images.dtype == np.uint8 and images.shape == (4, 16, 16, 3)
    assert images.tobytes() == unguided(run, 1, 4, 3).tobytes()


def test_guided_images_end_nearer_to_their_modes(sampler, run):
    for label in range(5):
        kmeans = fit_kmeans(pool_features(run, label), 4, stream("modes of guided images", 0, label))

        def distance(images, modes=kmeans.cluster_centers_):
            return np.square(embed_images("untrained", images) - modes).sum()

        assert distance(sampler.sample(label, 4, 0, MODES)) < 0.9 * distance(unguided(run, label, 4, 0))


def test_images_that_repel_each_other_end_less_alike(sampler, run):
    for label in range(5):
        features = pool_features(run, label)
        scale = float(np.median([np.square(a - b).sum() for i, a in enumerate(features) for b in features[:i]]))

        def log_determinant(images, scale=scale):
            return -likeness(torch.from_numpy(embed_images("untrained", images)), scale).item()

        repelled = log_determinant(sampler.sample(label, 4, 0, REPULSION))
        assert repelled > log_determinant(unguided(run, label, 4, 0)) + 0.1
        # Which it does not do by chance, or because anything was changed at all.
        assert repelled > log_determinant(sampler.sample(label, 4, 0, MODES))


def test_the_first_steps_are_guided_alone(sampler, monkeypatch):
    levels = []
    moved = Guidance.moved
    monkeypatch.setattr(
        Guidance, "moved", lambda self, latents, level: levels.append(level) or moved(self, latents, level)
    )
    for stop, expected in ((0.5, 3), (0.51, 4), (1.0, STEPS)):
        levels.clear()
        sampler.sample(0, 2, 0, ModesConfig(stop=stop))
        assert len(levels) == expected and levels == sorted(set(levels), reverse=True)
        assert levels[0] > 0.9 and levels[-1] > 0


def test_they_come_out_the_same_again_and_differ_by_seed_and_class(sampler, run):
    first = sampler.sample(2, 3, 0, REPULSION)
    assert np.array_equal(GuidedSampler(run).sample(2, 3, 0, REPULSION), first)
    for label, seed in ((2, 1), (3, 0)):
        assert not np.array_equal(sampler.sample(label, 3, seed, REPULSION), first)


# Sets.


def test_a_set_has_each_class_with_what_the_teacher_says(sampler, run, tmp_path):
    file = made_set_file(tmp_path, "guided", "guided-modes", 3, 0)
    assert file == tmp_path / "guided" / "guided-modes-3-0.npz"
    make_guided(file, sampler, 3, 0, MODES)
    found = read_guided(file)
    assert found.labels.tolist() == np.repeat(np.arange(5), 3).tolist()
    assert np.array_equal(found.images[3:6], sampler.sample(1, 3, 0, MODES))
    np.testing.assert_allclose(
        found.soft_labels, predict_proba(load_classifier(run / "teacher"), found.images), rtol=1e-4
    )
    # Classes are rows of the picture.
    with Image.open(file.with_suffix(".png")) as picture:
        assert picture.size == (3 * (16 * 2 + 2) - 2, 5 * (16 * 2 + 2) - 2)


def test_a_killed_one_goes_on_and_ends_as_an_undisturbed_one(sampler, tmp_path, monkeypatch, capsys):
    whole, halves = (made_set_file(tmp_path / name, "guided", "guided-modes", 2, 5) for name in ("whole", "halves"))
    make_guided(whole, sampler, 2, 5, MODES)
    sampled, sample = [], GuidedSampler.sample

    def sample_until_killed(self, label, *rest):
        sampled.append(label)
        if sampled == [0, 1, 2]:
            raise KeyboardInterrupt
        return sample(self, label, *rest)

    monkeypatch.setattr(GuidedSampler, "sample", sample_until_killed)
    with pytest.raises(KeyboardInterrupt):
        make_guided(halves, sampler, 2, 5, MODES)
    assert read_guided(halves).labels.tolist() == [0, 0, 1, 1]
    make_guided(halves, sampler, 2, 5, MODES)
    assert sampled == [0, 1, 2, 2, 3, 4]
    for suffix in (".npz", ".png"):
        assert whole.with_suffix(suffix).read_bytes() == halves.with_suffix(suffix).read_bytes()
    capsys.readouterr()
    make_guided(halves, sampler, 2, 5, MODES)
    assert len(sampled) == 6 and capsys.readouterr() == ("", "")


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut off", None])
def test_a_damaged_file_is_made_anew(sampler, tmp_path, capsys, content):
    good, bad = (made_set_file(tmp_path / name, "guided", "guided-modes", 2, 0) for name in ("good", "bad"))
    make_guided(good, sampler, 2, 0, MODES)
    bad.parent.mkdir(parents=True)
    if content is None:
        np.savez(bad, images=np.zeros((2, 16, 16, 3), np.uint8))
    else:
        bad.write_bytes(content)
    make_guided(bad, sampler, 2, 0, MODES)
    assert f"{bad} is damaged: it is made anew" in capsys.readouterr().err
    assert good.read_bytes() == bad.read_bytes()


# What is refused.


def test_more_modes_than_images_of_the_pool_are_refused(sampler, run):
    message = f"{run / 'pool'}: class 1 has only 6 images, so there are no 7 modes: take fewer per class, or make a"
    with pytest.raises(InputError, match=message):
        sampler.sample(1, 7, 0, MODES)
    assert len(sampler.sample(1, 7, 0, REPULSION)) == 7


def test_a_run_without_its_pipeline_is_refused(run, tmp_path):
    copy = shutil.copytree(run, tmp_path / "run")
    record = read_json(copy / "pipeline" / "stage.json")
    write_json(copy / "pipeline" / "stage.json", {**record, "fingerprint": "0" * 64})
    with pytest.raises(InputError, match=r"pool was not made from .*pipeline, which has changed since: make it anew"):
        GuidedSampler(copy)
    shutil.rmtree(copy / "pipeline")
    with pytest.raises(InputError, match="pipeline holds no finished pipeline: run train_diffusion first"):
        GuidedSampler(copy)
