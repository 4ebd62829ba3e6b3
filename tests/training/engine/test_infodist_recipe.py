from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from histodistill.training.data.tiles import Tiles
from histodistill.training.engine import infodist_recipe
from histodistill.training.engine.accelerator import make_accelerator
from histodistill.training.engine.infodist_recipe import (
    InfoDistRecipe,
    average_decay,
    batch_size_of,
    class_scores,
    epoch_learning_rate,
    predict_scores,
    recipe_loss,
    steps_of_epoch,
    train_by_recipe,
)
from histodistill.training.engine.losses import boundary_contrastive_loss
from histodistill.training.engine.scoring import score_probabilities
from histodistill.training.running.errors import InputError


TINY = InfoDistRecipe(epochs=4, seed=3, width=4)


def tiles(count: int = 70, seed: int = 0) -> Tiles:
    """Stripes along one axis or the other, with noise: 12 px, two classes in turn."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % 2
    stripes = np.broadcast_to((np.arange(12) % 4 < 2)[:, None] * 120 + 60, (12, 12))
    images = np.stack([stripes if label else stripes.T for label in labels])[..., None] + np.zeros(3)
    images = images + rng.integers(-40, 41, images.shape)
    return Tiles(images.astype(np.uint8), labels)


@pytest.fixture
def accelerator(fresh_accelerate):
    return make_accelerator("no")


def weights(network: torch.nn.Module) -> torch.Tensor:
    return torch.cat([value.detach().flatten() for value in network.state_dict().values()])


# The loss, and what is scored.


def test_losses_of_nine_classes_by_hand():
    labels = torch.tensor([0, 3])
    right, even = 1000.0 * F.one_hot(labels, 9), torch.zeros(2, 9)
    assert recipe_loss(right, labels).item() == pytest.approx(0, abs=1e-6)
    # However sure and right it is: −log of e over e and eight times one.
    floor = math.log(1 + 8 / math.e)
    assert floor == pytest.approx(1.37, abs=0.005)
    assert recipe_loss(right, labels, softmaxes=3).item() == pytest.approx(floor, abs=1e-5)
    assert recipe_loss(even, labels).item() == pytest.approx(math.log(9))
    assert recipe_loss(even, labels, softmaxes=3).item() == pytest.approx(math.log(9))
    wrong = recipe_loss(right, labels + 1, softmaxes=3).item()
    assert wrong == pytest.approx(1 + floor, abs=1e-5)  # and no surer and wronger one costs more


@pytest.mark.parametrize("scale", [0.1, 1.0, 10.0, 100.0])
def test_three_softmaxes_have_a_floor(scale):
    logits = scale * torch.randn(500, 9, generator=torch.Generator().manual_seed(0))
    labels = logits.argmax(dim=1)
    assert recipe_loss(logits, labels, softmaxes=3) >= math.log(1 + 8 / math.e) - 1e-6


def test_the_joint_loss_adds_the_boundary_term_of_one_softmax():
    generator = torch.Generator().manual_seed(1)
    logits, labels = torch.randn(40, 5, generator=generator), torch.randint(5, (40,), generator=generator)
    boundary = boundary_contrastive_loss(logits, labels, 0.9, 0.3)
    assert boundary > 0
    for softmaxes in (1, 3):
        both = recipe_loss(logits, labels, "joint", softmaxes)
        torch.testing.assert_close(both, recipe_loss(logits, labels, "ce", softmaxes) + boundary)


def test_three_softmaxes_change_auc_and_not_accuracy():
    # Two images of class 0: in logits the second is the surer one of class 0, by one softmax as well.
    logits = torch.tensor([[2.0, 0.0, 0.0], [0.0, 2.0, 0.0]])
    once = torch.tensor([[math.exp(2), 1, 1], [1, math.exp(2), 1]]) / (math.exp(2) + 2)
    torch.testing.assert_close(class_scores(logits), once)
    torch.testing.assert_close(class_scores(logits, 3), once.softmax(dim=1))
    drawn = 4 * torch.randn(300, 4, generator=torch.Generator().manual_seed(2))
    labels = torch.randint(4, (300,), generator=torch.Generator().manual_seed(3)).numpy()
    one, three = (score_probabilities(class_scores(drawn, softmaxes).numpy(), labels) for softmaxes in (1, 3))
    assert (one["accuracy"], one["f1"]) == (three["accuracy"], three["f1"]) and one["auc"] != three["auc"]


# The schedule.


def test_learning_rates_of_a_thousand_epochs():
    rates = [epoch_learning_rate(epoch, 1000) for epoch in range(1000)]
    assert rates[0] == 1e-7 and rates[500] == 1e-3 == max(rates)
    assert rates[250] == pytest.approx((1e-7 + 1e-3) / 2)
    assert rates[750] == pytest.approx(5e-4) and rates[999] == pytest.approx(0, abs=1e-8)
    steps = np.diff(rates[:501])
    assert np.allclose(steps, steps[0]) and all(np.diff(rates[500:]) < 0)


@pytest.mark.parametrize(("epochs", "expected"), [(1, [1e-3]), (2, [1e-7, 1e-3]), (3, [1e-7, 1e-3, 5e-4])])
def test_learning_rates_of_few_epochs(epochs, expected):
    assert [epoch_learning_rate(epoch, epochs) for epoch in range(epochs)] == pytest.approx(expected)


def test_the_average_covers_the_same_share_of_any_training():
    assert average_decay(1000) == 0.995
    assert average_decay(200) == pytest.approx(0.995**5)
    for epochs in (1, 30, 1000):
        assert average_decay(epochs) ** epochs == pytest.approx(0.995**1000)


def test_batches_are_those_of_the_scripts():
    assert [batch_size_of(size) for size in (28, 32, 64, 128, 224)] == [64, 64, 256, 64, 64]
    assert [steps_of_epoch(count, 28) for count in (1, 64, 65, 900)] == [1, 1, 2, 15]
    assert steps_of_epoch(900, 64) == 4


# The training.


def test_an_epoch_by_hand(accelerator, monkeypatch):
    """SGD with momentum on each tile once, in batches of 64 and what is left, and the average of the weights."""
    seen: list[torch.Tensor] = []

    def unchanged(images, generator):
        seen.append(images.clone())
        return images

    monkeypatch.setattr(infodist_recipe, "augment", unchanged)
    start = train_by_recipe(replace(TINY, epochs=1), tiles(), 2, accelerator)  # of which only the first weights count
    assert [len(batch) for batch in seen] == [64, 6]
    everything = torch.cat(seen).flatten(1)
    assert len(everything.unique(dim=0)) == 70  # each tile once
    seen.clear()

    monkeypatch.setattr(infodist_recipe, "average_decay", lambda epochs: 1.0)
    first = train_by_recipe(replace(TINY, epochs=1), tiles(), 2, accelerator)
    monkeypatch.setattr(infodist_recipe, "average_decay", lambda epochs: 0.0)
    last = train_by_recipe(replace(TINY, epochs=1), tiles(), 2, accelerator)
    images = {batch.numpy().tobytes(): label for batch, label in _labelled(tiles())}
    network = first.train()
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-3, momentum=0.9, weight_decay=5e-4)
    before = weights(network)
    for batch in seen[-2:]:
        labels = torch.tensor([images[image.numpy().tobytes()] for image in batch])
        optimizer.zero_grad()
        F.cross_entropy(network(batch), labels).backward()
        optimizer.step()
    assert (weights(network) - before).abs().max() > 1e-5
    torch.testing.assert_close(weights(last), weights(network), rtol=1e-4, atol=1e-6)
    # The average of one epoch is nearly all of its end.
    kept = 0.995**1000
    torch.testing.assert_close(weights(start), kept * before + (1 - kept) * weights(last), rtol=1e-3, atol=1e-6)


def _labelled(train: Tiles):
    pixels = torch.from_numpy(train.images).permute(0, 3, 1, 2).float() / 127.5 - 1
    return zip(pixels, train.labels.tolist(), strict=True)


def test_it_learns_what_is_easy(accelerator):
    trained = train_by_recipe(replace(TINY, epochs=60, width=8), tiles(), 2, accelerator)
    scores = predict_scores(trained, tiles(40, seed=1).images)
    assert scores.shape == (40, 2) and np.allclose(scores.sum(axis=1), 1)
    assert (scores.argmax(axis=1) == tiles(40, seed=1).labels).mean() > 0.9


def test_all_is_decided_by_the_recipe(accelerator):
    def train(**changes: object) -> torch.Tensor:
        return weights(train_by_recipe(replace(TINY, **changes), tiles(), 2, accelerator))

    assert torch.equal(train(), train())
    for changes in ({"seed": 4}, {"loss": "joint"}, {"softmaxes": 3}, {"epochs": 5}):
        assert not torch.equal(train(), train(**changes)), changes


def test_a_killed_training_goes_on(accelerator, tmp_path, monkeypatch):
    monkeypatch.setattr(infodist_recipe, "_CHECKPOINT_STEPS", 2)  # an epoch
    whole = train_by_recipe(TINY, tiles(), 2, accelerator)
    done = []

    def dies(steps: int) -> None:
        done.append(steps)
        if len(done) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_by_recipe(TINY, tiles(), 2, accelerator, checkpoint_dir=tmp_path, on_steps=dies)
    again: list[int] = []
    resumed = train_by_recipe(TINY, tiles(), 2, accelerator, checkpoint_dir=tmp_path, on_steps=again.append)
    assert done == [2, 2, 2] and again == [6, 2]
    assert torch.equal(weights(resumed), weights(whole))
    with pytest.raises(InputError, match="is of a training with other settings"):
        train_by_recipe(replace(TINY, softmaxes=3), tiles(), 2, accelerator, checkpoint_dir=tmp_path)


def test_a_training_that_diverges_is_refused(accelerator, monkeypatch):
    monkeypatch.setattr(infodist_recipe, "recipe_loss", lambda logits, *_: logits.sum() * math.nan)
    with pytest.raises(InputError, match="the loss is nan in epoch 1 of 4: it diverged"):
        train_by_recipe(TINY, tiles(), 2, accelerator)
