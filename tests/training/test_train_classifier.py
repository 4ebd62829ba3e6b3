from __future__ import annotations

import copy
import dataclasses
import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from datasets import ClassLabel, Dataset, Features
from datasets import Image as ImageFeature
from PIL import Image
from sentences import without_notes

from histodistill.hub_cards.tables import encode_soft_label_views
from histodistill.selection.fixed_views import FixedViews
from histodistill.selection.views import apply_symmetry
from histodistill.training import train_classifier as script
from histodistill.training.data.same_tiles import tiles_also_in
from histodistill.training.data.sources import load_tiles
from histodistill.training.data.tiles import LabelViews, Tiles
from histodistill.training.engine import classifier_training, scoring
from histodistill.training.engine.classifier_config import ClassifierConfig, recorded_recipe
from histodistill.training.engine.classifier_training import TrainedClassifier, fit_classifier
from histodistill.training.models import reconstruction
from histodistill.training.models.classifiers import Classifier
from histodistill.training.models.loading import load_autoencoder
from histodistill.training.models.prediction import predict_proba
from histodistill.training.running.errors import InputError
from histodistill.training.running.files import write_json
from histodistill.training.running.options import run_script, to_argv
from histodistill.training.running.precision import usual_precision
from histodistill.training.running.stages import Stage
from histodistill.training.train_classifier import TrainClassifierConfig, make_parser, of_pool


NAMES = ["smooth", "striped", "spotted"]
TINY = ClassifierConfig(
    width=8, batch_size=24, max_train_steps=8, validation_steps=4, learning_rate=5e-3, stain_strength=0.05
)


def toy_tiles(per_class: int, seed: int, size: int = 16) -> Tiles:
    """Three textures of the same mean colour; stripes lie in either direction."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(3), per_class)
    images = rng.normal(150, 20, size=(len(labels), size, size, 3))
    for image, label in zip(images, labels, strict=True):
        if label == 1:
            stripes = 50 * np.where(np.arange(size) // 2 % 2, 1, -1)
            image += stripes[:, None, None] if rng.random() < 0.5 else stripes[None, :, None]
        elif label == 2:
            image += 100 * (rng.random((size, size, 1)) < 0.2) - 20
    return Tiles(images.clip(0, 255).astype(np.uint8), labels)


@pytest.fixture
def accelerator():
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    yield Accelerator(cpu=True)
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


@pytest.fixture
def train() -> Tiles:
    return toy_tiles(20, seed=0)


@pytest.fixture
def validation() -> Tiles:
    return toy_tiles(10, seed=1)


def fit(accelerator, train, validation=None, config=TINY, **options) -> TrainedClassifier:
    options = {"class_names": NAMES, "progress": False, **options}
    return fit_classifier(config, train, validation, accelerator, **options)


def same_weights(first: Classifier, second: Classifier) -> bool:
    pairs = zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


# The contrastive term alone learns more slowly; a guess is right for a third of the tiles.
@pytest.mark.parametrize(
    ("loss", "accuracy", "of_first_loss"), [("ce", 0.9, 0.5), ("joint", 0.9, 0.5), ("contrastive", 0.55, 0.8)]
)
def test_learns(accelerator, train, validation, loss, accuracy, of_first_loss):
    config = dataclasses.replace(TINY, loss=loss, max_train_steps=60, validation_steps=20)
    trained = fit(accelerator, train, validation, config)
    assert scoring.score(trained.model, toy_tiles(30, seed=2))["accuracy"] > accuracy
    assert trained.history[-1]["loss"] < of_first_loss * trained.history[0]["loss"]
    assert [record["step"] for record in trained.history] == [20, 40, 60]


@pytest.mark.parametrize(
    "options",
    [{"mixup": 0.2, "ema_decay": 0.9}, {"cutmix": 1.0, "max_blur": 0.3}],
    ids=lambda options: "-".join(options),
)
def test_learns_with_each_addition(accelerator, train, validation, options):
    config = dataclasses.replace(TINY, max_train_steps=60, validation_steps=60, **options)
    trained = fit(accelerator, train, validation, config)
    assert scoring.score(trained.model, toy_tiles(30, seed=2))["accuracy"] > 0.8


def test_evened_out_stain_is_in_the_training_and_in_what_is_kept(accelerator, train):
    def at_strength(strength: float) -> Tiles:
        density = -np.log(train.images.clip(1) / 255)
        return dataclasses.replace(train, images=np.round(255 * np.exp(-strength * density)).astype(np.uint8))

    # Tiles of a stronger stain are the same tiles: the training and its result go the same way.
    config = dataclasses.replace(TINY, normalize_stain=True, stain_strength=0.0, max_train_steps=4)
    first, second = (fit(accelerator, at_strength(strength), config=config) for strength in (1.0, 1.4))
    assert second.history[-1]["loss"] == pytest.approx(first.history[-1]["loss"], rel=0.02)
    for strength in (1.0, 1.4):
        found = scoring.predict_proba(second.model, at_strength(strength).images)
        np.testing.assert_allclose(found, scoring.predict_proba(first.model, train.images), atol=0.02)


def with_soft_labels(tiles: Tiles, labels: np.ndarray, certainty: float) -> Tiles:
    """The tiles with a teacher that is so sure of `labels`; the rest is spread over the classes."""
    return dataclasses.replace(tiles, soft_labels=certainty * np.eye(3)[labels] + (1 - certainty) / 3)


def test_soft_labels_alone_teach_what_the_teacher_says(accelerator, train):
    # A teacher for whom smooth is striped, striped spotted, and spotted smooth.
    taught = with_soft_labels(train, (train.labels + 1) % 3, certainty=0.9)
    config = dataclasses.replace(TINY, max_train_steps=60, validation_steps=60, soft_label_weight=1.0, temperature=2.0)
    model, test = fit(accelerator, taught, config=config).model, toy_tiles(30, seed=2)
    said = scoring.predict_proba(model, test.images).argmax(axis=1)
    assert ((test.labels + 1) % 3 == said).mean() > 0.9
    # With no weight, they play no part.
    plain, ignoring = (fit(accelerator, tiles).model for tiles in (train, taught))
    assert same_weights(plain, ignoring)


def test_soft_labels_that_are_the_labels_change_nothing(accelerator, train):
    # One-hot soft labels at temperature 1 give the loss of the labels, mixed tiles or not.
    taught = with_soft_labels(train, train.labels, certainty=1.0)
    for options in ({}, {"mixup": 0.5}, {"cutmix": 1.0}):
        config = dataclasses.replace(TINY, max_train_steps=3, **options)
        plain = fit(accelerator, taught, config=config).history
        config = dataclasses.replace(config, soft_label_weight=0.7, temperature=1.0)
        soft = fit(accelerator, taught, config=config).history
        assert [r["loss"] for r in soft] == pytest.approx([r["loss"] for r in plain], rel=1e-4)


def test_missing_soft_labels_are_refused(accelerator, train):
    with pytest.raises(InputError) as error:
        fit(accelerator, train, config=dataclasses.replace(TINY, soft_label_weight=0.5))
    assert str(error.value) == (
        "soft_label_weight=0.5 needs soft labels, and the training tiles have none: train on a dataset with a column "
        "soft_label, or give 0"
    )


VIEWS = dataclasses.replace(TINY, soft_label_weight=1.0, temperature=1.0, soft_label_views=4)


def with_views(tiles: Tiles, certainty: float = 0.9) -> Tiles:
    """Tiles of which each view has soft labels of its own: of view v, class v mod 3 is the likeliest."""
    taught = with_soft_labels(tiles, np.zeros(len(tiles), int), certainty)
    said = certainty * np.eye(3)[[1, 2, 0]] + (1 - certainty) / 3
    codes = np.broadcast_to(encode_soft_label_views(said), (len(tiles), 3, 3))
    ranks = np.concatenate([np.arange(1, count + 1) for count in np.bincount(tiles.labels)])
    return dataclasses.replace(taught, label_views=LabelViews(codes, ranks))


@pytest.mark.parametrize("mixing", [{}, {"cutmix": 1.0}])
def test_each_view_comes_with_its_own_soft_labels(accelerator, train, mixing):
    """Views by chance, of all those that there are; what is read is the view that its soft labels are of."""
    taught = with_views(train)
    fixed = FixedViews(train.labels, taught.label_views.ranks, 3, 4)
    made = [fixed.make(train.images, np.arange(60), np.full(60, view)) for view in range(4)]
    batches = classifier_training.TrainingBatches(dataclasses.replace(VIEWS, **mixing), taught, 3, accelerator)

    def view_of(row: int, tile: np.ndarray) -> int:
        """The view that a tile is; of two that are alike, such as a part that is nearly all of it, -1."""
        found = [view for view in range(4) if np.array_equal(made[view][row], tile)]
        assert found
        return found[0] if len(found) == 1 else -1

    seen, said = np.zeros(4, int), 0.9 * np.eye(3)[[0, 1, 2, 0]] + 0.1 / 3
    for position in range(30):
        drawn, rows = batches.draw(position), batches.order.indices(position)
        views = np.array([view_of(*pair) for pair in zip(rows, drawn.views.tiles.numpy(), strict=True)])
        known, expected = views >= 0, said[views]
        seen += np.bincount(views[known], minlength=4)
        if mixing:
            others, plan = drawn.partners
            pairs = zip(rows[plan.partners], others.tiles.numpy(), strict=True)
            partners, share = np.array([view_of(*pair) for pair in pairs]), plan.shares.numpy()[:, None]
            known, expected = known & (partners >= 0), share * expected + (1 - share) * said[partners]
        assert known.mean() > 0.5
        np.testing.assert_allclose(drawn.soft_labels[known], expected[known], atol=0.03)
    assert (np.abs(seen / seen.sum() - 0.25) < 0.08).all()


def test_views_that_cannot_be_made_are_not_shown(accelerator, train):
    """Of a part of a set, where the image that another is mixed with is missing."""
    part = with_views(train).subset(np.flatnonzero(train.labels == 2))
    batches = classifier_training.TrainingBatches(VIEWS, part, 3, accelerator)
    wanted = [batches.draw(position).soft_labels.argmax(dim=1) for position in range(20)]
    # View 3 has partners in other classes alone, and with view 0, whose class it says, would make up a half.
    assert (torch.cat(wanted) == 0).float().mean().item() == pytest.approx(1 / 3, abs=0.08)


def test_a_training_on_views_is_resumed_and_leaves_others_as_they_are(accelerator, train, tmp_path):
    taught = with_views(train)
    config = dataclasses.replace(VIEWS, mixup=0.5, max_train_steps=5)
    whole = fit(accelerator, taught, config=config, checkpoint_dir=tmp_path, checkpointing_steps=3)
    resumed = fit(accelerator, taught, config=config, checkpoint_dir=tmp_path, resume="latest")
    assert same_weights(resumed.model, whole.model)
    # One view is the training without any.
    one = dataclasses.replace(config, soft_label_views=1)
    plain = fit(accelerator, dataclasses.replace(taught, label_views=None), config=one)
    assert same_weights(fit(accelerator, taught, config=one).model, plain.model)
    assert not same_weights(plain.model, whole.model)
    assert "soft_label_views" not in recorded_recipe(one) and recorded_recipe(config)["soft_label_views"] == 4


def test_missing_views_are_refused(accelerator, train):
    taught = with_soft_labels(train, train.labels, 0.9)
    for tiles, config, known in (
        (taught, VIEWS, 1),
        (with_views(train), dataclasses.replace(VIEWS, soft_label_views=5), 4),
    ):
        with pytest.raises(InputError) as error:
            fit(accelerator, tiles, config=config)
        assert str(error.value) == (
            f"soft_label_views={config.soft_label_views} needs soft labels of as many views, and the training tiles "
            f"have {known}: train on a dataset that histodistill select made with as many soft_label_views, or give "
            f"{known}"
        )
    with pytest.raises(InputError, match=r"soft_label_weight=1 needs soft labels"):
        fit(accelerator, train, config=VIEWS)
    doubled = with_views(train).subset([0, 0, 1] * 10)
    with pytest.raises(InputError, match=r"soft_label_views=4 cannot be had of these tiles \(two images of a class"):
        fit(accelerator, doubled, config=VIEWS)


@pytest.mark.parametrize("shift", [16, 40])
def test_shift_by_a_whole_tile_is_refused(accelerator, train, shift):
    with pytest.raises(InputError) as error:
        fit(accelerator, train, config=dataclasses.replace(TINY, max_shift=shift))
    assert str(error.value) == (
        f"max_shift={shift} is out of range: it must be below the 16 px of the tiles, whose reflection comes in "
        "at the edge; give less"
    )
    fit(accelerator, train, config=dataclasses.replace(TINY, max_shift=15, max_train_steps=1))


def test_training_starts_from_given_weights(accelerator, train):
    still = dataclasses.replace(TINY, learning_rate=1e-12, weight_decay=0.0, max_train_steps=2)
    given = fit(accelerator, train, config=dataclasses.replace(TINY, max_train_steps=2)).model
    for config in (still, dataclasses.replace(still, ema_decay=0.9)):
        found = fit(accelerator, train, config=config, initial=given).model
        for value, expected in zip(found.state_dict().values(), given.state_dict().values(), strict=True):
            torch.testing.assert_close(value, expected, atol=1e-6, rtol=1e-5)
    assert not same_weights(fit(accelerator, train, config=still).model, given)


def test_average_of_weights_worked_out_by_hand():
    model = Classifier("resnet18", class_names=NAMES, image_size=16, width=2)
    average = copy.deepcopy(model)
    expected = [value.clone().double() for value in average.state_dict().values()]
    generator = torch.Generator().manual_seed(0)
    for step in range(30):
        with torch.no_grad():
            for value in model.state_dict().values():
                if value.is_floating_point():
                    value.copy_(torch.randn(value.shape, generator=generator))
                else:
                    value += 1
        classifier_training.update_average(average, model, 0.7, step)
        decay = min(0.7, (1 + step) / (10 + step))
        expected = [
            decay * old + (1 - decay) * new if new.is_floating_point() else new
            for old, new in zip(expected, model.state_dict().values(), strict=True)
        ]
    for found, value in zip(average.state_dict().values(), expected, strict=True):
        torch.testing.assert_close(found, value.to(found.dtype), atol=1e-5, rtol=1e-5)
    assert decay == 0.7  # reached after the slower start


def test_what_is_kept_is_the_average_of_the_weights_of_all_steps(accelerator, train):
    config = dataclasses.replace(TINY, max_train_steps=4, ema_decay=0.5)
    weights, original = [], classifier_training.update_average

    def watch(average, model, decay, step):
        weights.append(copy.deepcopy(model))
        original(average, model, decay, step)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(classifier_training, "update_average", watch)
        averaged = fit(accelerator, train, config=config).model
    # The average is not what is trained: the weights themselves go the way they go without it.
    assert same_weights(weights[-1], fit(accelerator, train, config=dataclasses.replace(config, ema_decay=0.0)).model)
    expected = classifier_training.build_classifier(config, 16, NAMES)
    for step, model in enumerate(weights):
        decay = min(0.5, (1 + step) / (10 + step))
        for mine, theirs in zip(expected.state_dict().values(), model.state_dict().values(), strict=True):
            mine.copy_(decay * mine + (1 - decay) * theirs)
    for found, value in zip(averaged.state_dict().values(), expected.state_dict().values(), strict=True):
        torch.testing.assert_close(found, value, atol=1e-6, rtol=1e-5)


def test_resumed_run_equals_an_uninterrupted_one_with_all_that_is_new(accelerator, train, tmp_path):
    taught = with_soft_labels(train, train.labels, certainty=0.8)
    config = dataclasses.replace(
        TINY, ema_decay=0.9, mixup=0.5, cutmix=1.0, max_blur=0.5, soft_label_weight=0.5, temperature=2.0,
        normalize_stain=True, max_train_steps=5, validation_steps=2,
    )  # fmt: skip
    whole = fit(accelerator, taught, config=config, checkpoint_dir=tmp_path, checkpointing_steps=3)
    resumed = fit(accelerator, taught, config=config, checkpoint_dir=tmp_path, resume="latest")
    assert same_weights(resumed.model, whole.model) and resumed.history == whole.history
    assert not same_weights(whole.model, fit(accelerator, taught, config=dataclasses.replace(config, mixup=0)).model)
    # Neither a checkpoint with an average nor one without is one of the other kind.
    plain = dataclasses.replace(config, ema_decay=0.0)
    with pytest.raises(InputError, match="other settings"):
        fit(accelerator, taught, config=plain, resume=str(tmp_path / "checkpoint-3"))
    fit(accelerator, taught, config=plain, checkpoint_dir=tmp_path / "plain", checkpointing_steps=3)
    with pytest.raises(InputError, match=r"other settings \(ema_decay was 0.0 and is now 0.9\)"):
        fit(accelerator, taught, config=config, resume=str(tmp_path / "plain" / "checkpoint-3"))


def test_keeps_the_step_that_does_best_on_validation(accelerator, train, validation):
    config = dataclasses.replace(TINY, learning_rate=3e-2, max_train_steps=12, validation_steps=1)
    trained = fit(accelerator, train, validation, config)
    ranks = {r["step"]: (r["validation_accuracy"], r["validation_auc"]) for r in trained.history}
    best = max(ranks.values())
    assert trained.best_step == min(step for step, rank in ranks.items() if rank == best)
    assert trained.validation == scoring.score(trained.model, validation)
    assert (trained.validation["accuracy"], trained.validation["auc"]) == best
    assert len(set(ranks.values())) > 1


def test_ties_go_to_the_higher_auc():
    rank_of = classifier_training.rank_of
    assert rank_of({"accuracy": 0.5, "auc": 0.7}) > rank_of({"accuracy": 0.5, "auc": 0.6})
    assert rank_of({"accuracy": 0.6, "auc": None}) > rank_of({"accuracy": 0.5, "auc": 0.9})


@pytest.mark.parametrize("architecture", ["convnet", "resnet18"])
def test_resumed_run_equals_an_uninterrupted_one(accelerator, train, validation, architecture, tmp_path):
    config = dataclasses.replace(TINY, architecture=architecture, validation_steps=3, loss="joint", stain_strength=0.1)
    whole = fit(accelerator, train, validation, config)
    first = fit(accelerator, train, validation, config, checkpoint_dir=tmp_path, checkpointing_steps=5)
    records = []
    options = {"checkpoint_dir": tmp_path, "resume": "latest"}
    resumed = fit(accelerator, train, validation, config, **options, log=lambda record, _: records.append(record))
    assert records == whole.history[1:]  # it went on after step 5
    for run in (first, resumed):
        assert same_weights(run.model, whole.model)
        assert run.history == whole.history
        assert (run.best_step, run.validation) == (whole.best_step, whole.validation)


def test_resumed_from_a_path_the_last_weights_are_the_same(accelerator, train, tmp_path):
    whole = fit(accelerator, train, checkpoint_dir=tmp_path, checkpointing_steps=3)
    assert (whole.best_step, whole.validation) == (8, None)
    resumed = fit(accelerator, train, resume=str(tmp_path / "checkpoint-6"))
    assert same_weights(resumed.model, whole.model)


def test_checkpoint_of_another_run_is_refused(accelerator, train, tmp_path):
    fit(accelerator, train, checkpoint_dir=tmp_path, checkpointing_steps=3)
    for config in (dataclasses.replace(TINY, seed=1), dataclasses.replace(TINY, width=16)):
        with pytest.raises(InputError, match="checkpoint-6"):
            fit(accelerator, train, None, config, resume=str(tmp_path / "checkpoint-6"))
    with pytest.raises(InputError, match="is not a checkpoint"):
        fit(accelerator, train, resume=str(tmp_path / "nothing"))


@pytest.mark.parametrize("other", ["images", "labels", "order", "soft labels", "validation", "initial"])
def test_checkpoint_is_tied_to_its_tiles_by_content(accelerator, train, validation, tmp_path, other):
    """As many tiles of the same size, under the same name: only what is in them tells."""
    soft = np.eye(len(NAMES), dtype=np.float32)[train.labels]
    taught, initial = dataclasses.replace(train, soft_labels=soft), None
    fit(accelerator, taught, validation, checkpoint_dir=tmp_path, checkpointing_steps=3)
    if other == "images":
        taught.images[0, 0, 0, 0] ^= 1
    elif other == "labels":
        taught = dataclasses.replace(taught, labels=np.roll(taught.labels, 1))
    elif other == "order":
        taught = taught.subset(np.arange(len(taught))[::-1])
    elif other == "soft labels":
        taught = dataclasses.replace(taught, soft_labels=np.roll(soft, 1, axis=1))
    elif other == "validation":
        validation = dataclasses.replace(validation, images=validation.images ^ 1)
    else:
        initial = classifier_training.build_classifier(TINY, 16, NAMES)
    for resume in ("latest", tmp_path / "checkpoint-6"):
        with pytest.raises(InputError, match=r"checkpoint-6 is of a training with other settings"):
            fit(accelerator, taught, validation, checkpoint_dir=tmp_path, resume=resume, initial=initial)


def test_resume_latest_without_a_checkpoint_starts_anew(accelerator, train, tmp_path):
    started = fit(accelerator, train, checkpoint_dir=tmp_path, resume="latest")
    assert same_weights(started.model, fit(accelerator, train).model)


def test_the_seed_decides_and_global_random_numbers_do_not(accelerator, train):
    torch.manual_seed(1)
    first = fit(accelerator, train)
    torch.manual_seed(2)
    before = torch.get_rng_state()
    second = fit(accelerator, train)
    assert torch.equal(torch.get_rng_state(), before)
    assert same_weights(first.model, second.model)
    assert not same_weights(first.model, fit(accelerator, train, config=dataclasses.replace(TINY, seed=1)).model)


def test_gradient_accumulation_is_one_larger_batch(accelerator, train):
    # Tiles that look the same however they are turned, and no shift: augmentation can't tell the two runs apart.
    flat = Tiles(np.broadcast_to(train.images[:, :1, :1], train.images.shape).copy(), train.labels)
    plain = dataclasses.replace(TINY, max_shift=0, stain_strength=0.0)
    halves = dataclasses.replace(plain, batch_size=plain.batch_size // 2, gradient_accumulation_steps=2)
    losses = [fit(accelerator, flat, config=config).history[-1]["loss"] for config in (plain, halves)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


def test_fewer_tiles_than_a_batch(accelerator):
    trained = fit(accelerator, toy_tiles(2, seed=0), config=dataclasses.replace(TINY, batch_size=128))
    assert trained.history[-1]["step"] == 8


def test_validation_tiles_are_a_fixed_sample(accelerator, train, validation):
    trained = fit(accelerator, train, validation, dataclasses.replace(TINY, validation_tiles=12))
    assert np.sum(trained.validation["confusion"]) == 12


def test_bf16_training_gives_a_float32_model(train, validation):
    AcceleratorState._reset_state(reset_partial_state=True)
    trained = fit(Accelerator(cpu=True, mixed_precision="bf16"), train, validation)
    AcceleratorState._reset_state(reset_partial_state=True)
    assert {p.dtype for p in trained.model.parameters()} == {torch.float32}
    assert trained.validation == scoring.score(trained.model, validation)


def test_diverging_run_is_stopped(accelerator, train):
    config = dataclasses.replace(TINY, learning_rate=1e30, max_grad_norm=1e30, warmup=0.0)
    with pytest.raises(InputError, match="lower learning_rate") as error:
        fit(accelerator, train, config=config)
    assert error.value.for_command_line().endswith("lower --learning-rate")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss": "mse"}, "loss=mse is unknown: it must be one of ce, joint, contrastive"),
        ({"max_train_steps": 0}, "max_train_steps=0 is out of range: it must be at least 1"),
        ({"learning_rate": 0.0}, "learning_rate=0.0 is out of range: it must be above 0"),
        ({"weight_decay": -1.0}, "weight_decay=-1.0 is out of range"),
        ({"warmup": 1.5}, "warmup=1.5 is out of range: it must be 0 to 1"),
        ({"position": 0.0}, "position=0.0 is out of range"),
        ({"margin": 1.0}, "margin=1.0 is out of range"),
        ({"width": 0}, "width=0 is out of range"),
        ({"soft_label_weight": 1.5}, "soft_label_weight=1.5 is out of range: it must be 0 to 1"),
        ({"temperature": 0.0}, "temperature=0.0 is out of range: it must be at least 0.1"),
        ({"loss": "contrastive", "soft_label_weight": 0.5}, "soft_label_weight=0.5 has no meaning"),
        ({"soft_label_views": 2}, "soft_label_views=2 goes with soft labels alone"),
        ({"soft_label_views": 2, "soft_label_weight": 0.9}, "soft_label_views=2 goes with soft labels alone"),
        ({"soft_label_views": 2, "soft_label_weight": 1, "loss": "joint"}, "soft_label_views=2 goes with soft labels"),
        (
            {"soft_label_views": 2, "soft_label_weight": 1, "architecture": "probe:mean_colour"},
            "soft_label_views=2 has no meaning for architecture=probe:mean_colour",
        ),
        ({"soft_label_views": 17}, "soft_label_views=17 is out of range: it must be 1 to 16"),
        ({"max_blur": -1.0}, "max_blur=-1.0 is out of range: it must be at least 0"),
        ({"mixup": -1.0}, "mixup=-1.0 is out of range: it must be at least 0"),
        ({"cutmix": -1.0}, "cutmix=-1.0 is out of range: it must be at least 0"),
        ({"ema_decay": 1.0}, "ema_decay=1.0 is out of range: it must be at least 0 and below 1"),
        ({"loss": "joint", "mixup": 0.2}, "loss=joint does not go with mixed tiles, which are of no one class"),
        ({"loss": "contrastive", "cutmix": 1}, "loss=contrastive does not go with mixed tiles"),
    ],
)
def test_bad_config(options, message):
    with pytest.raises(InputError, match=message):
        ClassifierConfig(**options)
    # What is wrong with a recipe is wrong with the options of the step.
    with pytest.raises(InputError, match=message):
        TrainClassifierConfig(data="phantom", output="out", **options)


def read(*argv: str) -> TrainClassifierConfig:
    return make_parser().read(["--data", "phantom", "--output", "out", *argv])


def test_command_line_defaults_are_the_configs():
    assert read() == TrainClassifierConfig(data="phantom", output=Path("out"))
    assert read().recipe == ClassifierConfig()


def test_settings_are_the_options_that_decide_the_result():
    # The last three say from where and how, or the fingerprints of the tiles tell it.
    argv = ["--n-per-class", "5", "--eval-data", "other", "--resume", "latest", "--audit-share", "0.1"]
    settings = read(*argv).settings()
    assert settings == {
        "alpha": 1.0, "architecture": "convnet", "batch_size": 128, "class_balance": 0.0, "cutmix": 0.0,
        "ema_decay": 0.0, "gradient_accumulation_steps": 1, "image_size": None, "learning_rate": None, "loss": "ce",
        "margin": 0.3, "max_blur": 0.0, "max_grad_norm": 1.0, "max_shift": 2, "max_train_steps": 1000,
        "mixed_precision": usual_precision(), "mixup": 0.0, "n_per_class": 5, "normalize_stain": False,
        "position": 0.9, "seed": 0, "soft_label_weight": 0.0, "stain_strength": 0.1, "temperature": 4.0,
        "validation_steps": 100,
        "validation_tiles": 10_000, "warmup": 0.05, "weight_decay": 0.0005, "width": None,
    }  # fmt: skip
    assert list(settings) == sorted(settings)


@pytest.mark.parametrize(("architecture", "rate"), [("convnet", 3e-3), ("resnet18", 1e-3), ("vit", 1e-3)])
def test_learning_rate_is_that_of_the_architecture_unless_one_is_given(architecture, rate):
    config = read("--architecture", architecture)
    # That none was given is what the settings say.
    assert (config.learning_rate, config.recipe.learning_rate) == (None, rate)
    given = read("--architecture", architecture, "--learning-rate", "0.5")
    assert given.learning_rate == given.recipe.learning_rate == 0.5


def test_options_go_to_a_command_line_and_back():
    config = TrainClassifierConfig(
        data="phantom", output="out", eval_data="real", n_per_class=5, normalize_stain=True, loss="joint"
    )
    assert make_parser().read(to_argv(config)) == config


def test_command_line_reaches_the_config():
    argv = [
        "--loss", "joint", "--soft-label-weight", "0.5", "--temperature", "4", "--max-blur", "0.7",
        "--ema-decay", "0.9", "--normalize-stain",
    ]  # fmt: skip
    assert read(*argv).recipe == ClassifierConfig(
        loss="joint", soft_label_weight=0.5, temperature=4, max_blur=0.7, ema_decay=0.9, normalize_stain=True
    )
    assert read("--mixup", "0.2", "--cutmix", "1").recipe == ClassifierConfig(mixup=0.2, cutmix=1.0)


# The script, as a user has it.


def write_npz(path: Path, per_class: int = 12, size: int = 16) -> Path:
    arrays = {}
    for seed, (split, count) in enumerate({"train": per_class, "val": 4, "test": 5}.items()):
        tiles = toy_tiles(count, seed, size)
        arrays |= {f"{split}_images": tiles.images, f"{split}_labels": tiles.labels[:, None]}
    np.savez(path, **arrays)
    return path


OPTIONS = ["--width", "8", "--batch-size", "15", "--max-train-steps", "4", "--validation-steps", "2",
           "--mixed-precision", "no", "--n-per-class", "9"]  # fmt: skip


def run_in_process(*argv: object) -> None:
    AcceleratorState._reset_state(reset_partial_state=True)
    try:
        run_script(make_parser, script.run, [str(value) for value in argv])
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)


def check_output(output: Path, num_processes: int) -> dict:
    results = json.loads((output / "results.json").read_text())
    assert set(results["test"]) == {"accuracy", "auc", "f1", "per_class_f1", "confusion", "reliability", "ece"}
    assert np.sum(results["test"]["confusion"]) == 15
    assert np.sum(results["validation"]["confusion"]) == 12
    assert results["num_processes"] == num_processes
    assert results["data"]["num_train"] == 27
    assert results["config"]["width"] == 8 and results["seed"] == 0 and results["steps"] == 4
    model = Classifier.from_pretrained(output)
    assert model.class_names == results["class_names"]
    return results


def test_script(tmp_path, capsys):
    data = write_npz(tmp_path / "toy.npz")
    output = tmp_path / "out"
    arguments = ["--data", data, "--output", output, *OPTIONS]
    run_in_process(*arguments)
    results = check_output(output, num_processes=1)
    assert results["test"] == scoring.score(Classifier.from_pretrained(output), toy_tiles(5, seed=2))
    assert "classifier: test ACC" in capsys.readouterr().out

    written = (output / "results.json").stat().st_mtime_ns
    run_in_process(*arguments)
    assert "already finished" in capsys.readouterr().out
    assert (output / "results.json").stat().st_mtime_ns == written

    with pytest.raises(SystemExit) as stopped:
        run_in_process(*arguments, "--learning-rate", "0.5")
    assert stopped.value.code == 2
    assert "other settings" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--max-train-steps", "0"], "max-train-steps=0 is out of range"),
        (["--architecture", "vgg"], "--architecture=vgg is unknown: it must be one of convnet, resnet18, vit"),
        (["--loss", "mse"], "--loss=mse is unknown: it must be one of ce, joint, contrastive"),
        (["--margin", "2"], "--margin=2.0 is out of range"),
        (["--loss", "joint", "--mixup", "0.2"], "--loss=joint does not go with mixed tiles"),
        (["--n-per-class", "0"], "n-per-class=0 is out of range"),
        (["--n-per-class", "13"], "--n-per-class=13 is too many"),
        (["--architecture", "vit", "--width", "129"], "--width=129 doesn't suit a vit"),
        (["--mixed-precision", "fp16"], "fp16 needs a GPU"),
        (["--data", "no/such/folder"], "no/such/folder"),
        (["--resume", "no/such/checkpoint"], "no/such/checkpoint"),
    ],
)
def test_bad_options_end_with_one_sentence(options, message, tmp_path, capsys):
    data = write_npz(tmp_path / "toy.npz")
    output = tmp_path / "out"
    with pytest.raises(SystemExit) as stopped:
        run_in_process("--data", data, "--output", output, *OPTIONS, *options)
    assert stopped.value.code == 2
    error = without_notes(capsys.readouterr().err)
    assert message in error and error.count("\n") == 1
    assert not output.exists()


def write_folder(root: Path, names: list[str], splits: list[str]) -> Path:
    for seed, split in enumerate(splits):
        tiles = toy_tiles(4, seed)
        for index, (image, label) in enumerate(zip(tiles.images, tiles.labels, strict=True)):
            folder = root / split / names[label]
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(folder / f"{index}.png")
    return root


def test_eval_data_must_have_the_same_classes_and_a_test_split(tmp_path, capsys):
    data = write_folder(tmp_path / "a", NAMES, ["train", "validation", "test"])
    other = write_folder(tmp_path / "b", ["x", "y", "z"], ["train", "validation", "test"])
    untested = write_folder(tmp_path / "c", NAMES, ["train", "validation"])
    for file in sorted((untested / "train" / NAMES[0]).iterdir())[1:]:
        file.unlink()  # of one tile no test split can be made
    for eval_data, message in ((other, "they must be the same"), (untested, "has no test split")):
        with pytest.raises(SystemExit) as stopped:
            run_in_process("--data", data, "--eval-data", eval_data, "--output", tmp_path / "out", *OPTIONS[:-2])
        assert stopped.value.code == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_trains_on_one_source_and_scores_on_another(tmp_path):
    data = write_folder(tmp_path / "distilled", NAMES, ["train"])
    real = write_folder(tmp_path / "real", NAMES, ["train", "validation", "test"])
    run_in_process("--data", data, "--eval-data", real, "--output", tmp_path / "out", *OPTIONS[:-2])
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    # All twelve: nothing of a training set is held out when validation tiles come from elsewhere.
    assert results["data"]["num_train"] == 12
    assert np.sum(results["test"]["confusion"]) == 12


def test_the_record_says_whether_generated_images_alone_were_seen(tmp_path):
    data = write_folder(tmp_path / "pool", NAMES, ["train"])
    real = write_folder(tmp_path / "real", NAMES, ["train", "validation", "test"])
    source = load_tiles(data)

    def said(data, eval_data=None):
        return of_pool(TrainClassifierConfig(data=data, eval_data=eval_data, output=tmp_path / "out"), source)

    assert said(data) == {}
    stage = Stage(data, {"stage": "pool"})
    record = stage.finish(num_images=12)
    assert said(data) == {"of_pool": record["fingerprint"]}
    assert said(data, real) == said(real) == said("phantom") == {}  # validated with or trained on others
    stage.finish(num_images=13)
    assert said(data) == {}  # of which images are missing
    Stage(tmp_path / "pool", {"stage": "pool"}).finish(num_images=12)
    write_json(data / "stage.json", {**record, "settings": {"stage": "distilled"}})
    assert said(data) == {}


def test_one_source_for_both_holds_its_validation_tiles_out(tmp_path):
    data = write_folder(tmp_path / "real", NAMES, ["train", "test"])
    run_in_process("--data", data, "--eval-data", data, "--output", tmp_path / "out", *OPTIONS[:-2])
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    num_validation = int(np.sum(results["validation"]["confusion"]))
    assert num_validation > 0 and results["data"]["num_train"] == 12 - num_validation


def write_unvalidated(path: Path, **splits: Tiles) -> Path:
    """A `.npz` without validation tiles: 36 to train on, or those of `splits`, and 15 to test with."""
    splits = {"train": toy_tiles(12, 0), "test": toy_tiles(5, 2), **splits}
    arrays = {f"{split}_images": tiles.images for split, tiles in splits.items()}
    arrays |= {f"{split}_labels": tiles.labels for split, tiles in splits.items()}
    with open(path, "wb") as file:  # under any name
        np.savez(file, class_names=np.array(NAMES), **arrays)
    return path


def write_real(path: Path) -> Path:
    return write_unvalidated(path, val=toy_tiles(4, 1))


def other_spelling(file: Path) -> str:
    return f"{file.parent}/./{file.name}"


def as_link(file: Path) -> Path:
    link = file.with_name("link.npz")
    link.symlink_to(file.name)
    return link


def as_copy(file: Path) -> Path:
    return write_unvalidated(file.with_name("copy.NPZ"))


def as_parquet(file: Path) -> Path:
    tiles = {"train": toy_tiles(12, 0), "test": toy_tiles(5, 2)}
    features = Features({"image": ImageFeature(), "label": ClassLabel(names=NAMES)})
    for split, found in tiles.items():
        rows = {"image": [Image.fromarray(image) for image in found.images], "label": found.labels}
        folder = file.with_name("parquet")
        folder.mkdir(exist_ok=True)
        Dataset.from_dict(rows, features=features).to_parquet(folder / f"{split}-00000-of-00001.parquet")
    return folder


def with_more_tests(file: Path) -> Path:
    return write_unvalidated(file.with_name("more.npz"), test=toy_tiles(7, 3))


@pytest.mark.parametrize("other", [str, other_spelling, as_link, as_copy, as_parquet, with_more_tests])
def test_validation_tiles_are_held_out_however_their_source_is_called(tmp_path, other):
    data = write_unvalidated(tmp_path / "x.npz")
    config = TrainClassifierConfig(data=str(data), output=tmp_path / "out", eval_data=other(data))
    source, real = script.load_sources(config)
    train, validation = source.split("train"), real.split("validation")
    assert (len(train), len(validation)) == (33, 3)
    assert not tiles_also_in(validation, train).any()
    # As where the source is spelled alike, so that what was made before stays valid.
    alone = load_tiles(data)
    assert source.fingerprint() == alone.fingerprint()


def test_a_set_that_is_only_trained_on_is_used_whole(tmp_path):
    data = write_unvalidated(tmp_path / "x.npz", train=toy_tiles(12, 7))
    config = TrainClassifierConfig(data=data, output=tmp_path / "out", eval_data=write_real(tmp_path / "real.npz"))
    source, _ = script.load_sources(config)
    assert len(source.split("train")) == 36 and "validation" not in source.splits


@pytest.mark.parametrize("turn", [0, 1, 6])
@pytest.mark.parametrize("split", ["validation", "test"])
def test_tiles_that_are_scored_must_not_be_trained_on(tmp_path, capsys, split, turn):
    """In any order, also turned, and beside others."""
    found = toy_tiles(4, 1) if split == "validation" else toy_tiles(5, 2)
    turned = dataclasses.replace(found, images=apply_symmetry(found.images, turn))
    order = np.random.default_rng(0).permutation(len(found))
    ordered = turned.subset(order)

    def load(tiles: Tiles) -> None:
        train = Tiles(
            np.concatenate([toy_tiles(12, 7).images, tiles.images]),
            np.concatenate([toy_tiles(12, 7).labels, tiles.labels]),
        )
        data = write_unvalidated(tmp_path / "x.npz", train=train, val=toy_tiles(4, 8))
        real = write_real(tmp_path / "real.npz")
        script.load_sources(TrainClassifierConfig(data=data, output=tmp_path / "out", eval_data=real))

    text = rf"{len(found)} of the {len(found)} {split} tiles of real are training tiles of x, as they are or turned"
    with pytest.raises(InputError, match=text):
        load(ordered)
    capsys.readouterr()
    load(ordered.subset(range(2)))
    assert f"warning: 2 of the {len(found)} {split} tiles of real are training tiles of x" in capsys.readouterr().err


def test_empty_tiles_are_no_copies_of_each_other():
    white = Tiles(np.full((4, 8, 8, 3), 240, dtype=np.uint8), np.zeros(4, dtype=int))
    assert not tiles_also_in(white, white).any()
    marked = dataclasses.replace(white, images=white.images.copy())
    marked.images[1:, 0, 3] = 7
    np.testing.assert_array_equal(tiles_also_in(marked, marked.subset([2])), [False, True, True, True])
    assert not tiles_also_in(marked, toy_tiles(2, 0, size=16)).any()


def test_from_python_the_results_come_back(tmp_path, capsys, fresh_accelerate):
    options = {"data": write_npz(tmp_path / "toy.npz"), "output": tmp_path / "out", "width": 8, "batch_size": 15}
    config = TrainClassifierConfig(
        **options, max_train_steps=4, validation_steps=2, mixed_precision="no", n_per_class=9
    )
    results = script.run(config)
    assert check_output(tmp_path / "out", num_processes=1) == results
    # And once more, without a training.
    capsys.readouterr()
    assert script.run(config) == results
    assert "already finished" in capsys.readouterr().out


def test_lost_results_are_made_again(tmp_path):
    arguments = ["--data", write_npz(tmp_path / "toy.npz"), "--output", tmp_path / "out", *OPTIONS]
    run_in_process(*arguments)
    before = json.loads((tmp_path / "out" / "results.json").read_text())
    (tmp_path / "out" / "results.json").unlink()
    run_in_process(*arguments)
    after = json.loads((tmp_path / "out" / "results.json").read_text())
    assert {**after, "seconds": 0} == {**before, "seconds": 0}


@pytest.mark.launch
def test_one_and_two_processes_train_the_same_classifier(launch, tmp_path, capsys):
    data = write_npz(tmp_path / "toy.npz")
    argv = ["--data", data, *OPTIONS]
    launched = launch(2, "histodistill.training.train_classifier", *argv, "--output", tmp_path / "two")
    assert launched.returncode == 0, launched.stderr
    assert launched.stdout.count("classifier: test ACC") == 1
    two = check_output(tmp_path / "two", num_processes=2)
    run_in_process(*argv, "--output", tmp_path / "one")
    assert capsys.readouterr().out.count("classifier: test ACC") == 1
    one = check_output(tmp_path / "one", num_processes=1)
    # 15 tiles on two processes are 8 and 7: the same batch all the same.
    assert [r["loss"] for r in two["history"]] == pytest.approx([r["loss"] for r in one["history"]], rel=1e-3)
    assert two["test"]["auc"] == pytest.approx(one["test"]["auc"], abs=0.02)


def test_what_the_autoencoder_leaves_of_tiles_is_told(
    tmp_path, run_main, tiny_npz, tiny_autoencoder, capsys, monkeypatch
):
    argv = ["--data", tiny_npz, "--width", 8, "--max-train-steps", 2, "--mixed-precision", "no"]
    run_main(script, *argv, "--output", tmp_path / "without")
    assert "autoencoder leaves" not in capsys.readouterr().err
    monkeypatch.setattr(reconstruction, "MOST_POINTS_LOST", -1e9)
    run_main(script, *argv, "--autoencoder", tiny_autoencoder, "--output", tmp_path / "with")
    told = capsys.readouterr().err
    assert "what the autoencoder leaves of 40 validation tiles: PSNR " in told
    assert "warning: the autoencoder loses " in told and "of the teacher's accuracy on 40 validation tiles" in told
    records = [json.loads((tmp_path / name / "stage.json").read_text()) for name in ("without", "with")]
    assert records[0]["settings"] == records[1]["settings"]
    assert "teacher_agreement" not in records[0]
    model = Classifier.from_pretrained(tmp_path / "with")
    validation = load_tiles(tiny_npz).split("validation")
    lost = reconstruction.what_is_lost(
        load_autoencoder(tiny_autoencoder), validation.images, validation.labels, partial(predict_proba, model)
    )
    assert lost.agreement == pytest.approx(records[1]["teacher_agreement"], abs=1e-5)
    assert lost.accuracy_reconstructed == pytest.approx(records[1]["teacher_accuracy_reconstructed"], abs=1e-5)


def test_an_autoencoder_of_other_tiles_is_refused(tmp_path, run_main, tiny_npz, tiny_autoencoder):
    argv = ["--data", tiny_npz, "--image-size", 8, "--autoencoder", tiny_autoencoder, "--output", tmp_path / "out"]
    with pytest.raises(InputError, match="is for tiles of 16 px, and these have 8 px: give one for these"):
        run_main(script, *argv)
    assert not (tmp_path / "out").exists()
