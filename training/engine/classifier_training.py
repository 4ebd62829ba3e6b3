"""The training of a classifier on tiles, and the choice of its best step on others.

Everything random in a step is a function of (seed, step), so a training that was resumed, and one that is shared by
another number of processes, sees the same batches and augmentations.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast
from torch.nn import functional as F

from histodistill.hub_cards.tables import decode_soft_label_views
from histodistill.selection.fixed_views import FixedViews
from histodistill.selection.streams import stream, torch_seed
from histodistill.training.data.pixels import ready_for, to_device, to_model_input
from histodistill.training.data.tiles import Tiles
from histodistill.training.engine.augment import AugmentationPlan, apply_plan, draw_plan
from histodistill.training.engine.checkpoints import content_of, resume_training, save_checkpoint
from histodistill.training.engine.classifier_config import ClassifierConfig, recorded_recipe
from histodistill.training.engine.losses import at_temperature, batch_loss
from histodistill.training.engine.mixing import MixingPlan, draw_mixing, mix, mix_images
from histodistill.training.engine.prefetch import batches_ahead, made_ahead
from histodistill.training.engine.scoring import predict_shared, score_probabilities
from histodistill.training.engine.steps import (
    BatchOrder,
    class_weights,
    cosine_learning_rate,
    process_slice,
    set_learning_rate,
    step_generator,
)
from histodistill.training.models.architectures import SCRATCH, is_from_elsewhere
from histodistill.training.models.classifiers import ENCODER, Classifier
from histodistill.training.models.pretrained import load_classifier_body, new_classifier_body
from histodistill.training.running.errors import InputError, param
from histodistill.training.running.progress import Progress


def soft_labels_of(train: Tiles, weight: float) -> np.ndarray:
    """The soft labels of training tiles, float N×C, which count with that weight.

    Raises:
        InputError: If they have none.
    """
    if train.soft_labels is None:
        raise InputError(
            f"{param('soft_label_weight')}={weight} needs soft labels, and the training tiles have none: train on a "
            "dataset with a column soft_label, or give 0"
        )
    return train.soft_labels


def soft_labels_of_views(train: Tiles, num_views: int) -> np.ndarray:
    """The soft labels of training tiles as they are and of further views, float N×num_views×C.

    Raises:
        InputError: If they have none, or fewer.
    """
    soft_labels = soft_labels_of(train, weight=1)
    known = 1 if train.label_views is None else 1 + train.label_views.codes.shape[1]
    if train.label_views is None or known < num_views:
        raise InputError(
            f"{param('soft_label_views')}={num_views} needs soft labels of as many views, and the training tiles have "
            f"{known}: train on a dataset that histodistill select made with as many {param('soft_label_views')}, or "
            f"give {known}"
        )
    others = decode_soft_label_views(train.label_views.codes[:, : num_views - 1])
    return np.concatenate([soft_labels[:, None], others], axis=1)


def fixed_views_of(train: Tiles, num_classes: int, num_views: int) -> FixedViews:
    """The views of training tiles that have soft labels of views.

    Raises:
        InputError: If two of them have the same class and rank.
    """
    assert train.label_views is not None
    try:
        return FixedViews(train.labels, train.label_views.ranks, num_classes, num_views)
    except ValueError as error:
        raise InputError(
            f"{param('soft_label_views')}={num_views} cannot be had of these tiles ({error}): make the set again with "
            "histodistill select, or give 1"
        ) from error


@dataclass(frozen=True)
class TrainedClassifier:
    """What `fit_classifier` returns, the same on every process.

    Attributes:
        model: With the weights of the best step, on the accelerator's device, in evaluation mode.
        history: One dict for each validation: step, loss (mean over the steps since the last), learning_rate, and with
            validation tiles validation_accuracy and validation_auc.
        best_step: Step of the highest validation accuracy; ties go to the higher AUC, then to the earlier step. The
            last step where there are no validation tiles. None of a probe, which knows no steps.
        validation: `scoring.score` at that step, or None.
        seconds: Spent since the start or the resumption; that of a stage is in its record.
    """

    model: Classifier
    history: list[dict[str, Any]]
    best_step: int | None
    validation: dict[str, Any] | None
    seconds: float


def fit_classifier(
    config: ClassifierConfig,
    train: Tiles,
    validation: Tiles | None,
    accelerator: Accelerator,
    *,
    class_names: Sequence[str],
    initial: Classifier | None = None,
    checkpoint_dir: str | Path | None = None,
    checkpointing_steps: int = 250,
    resume: str | Path | None = None,
    log: Callable[[dict[str, Any], int], None] | None = None,
    on_checkpoint: Callable[[], None] | None = None,
    progress: bool | Progress = True,
) -> TrainedClassifier:
    """Trains a classifier on `train` and keeps the weights that do best on `validation`.

    Args:
        config: How to train.
        train: The tiles to train on.
        validation: Tiles of the same size; without them (None) the last weights are kept.
        accelerator: Decides device, processes and precision. It must have nothing else prepared, and is emptied at the
            end; its own gradient_accumulation_steps stays 1, the config's counts.
        class_names: One per class; the index is the label.
        initial: A classifier of the same kind whose weights are started from; None draws new ones from the seed.
        checkpoint_dir: Where checkpoints go every `checkpointing_steps` steps; None writes none.
        checkpointing_steps: Steps between two checkpoints.
        resume: "latest" (of checkpoint_dir; none there starts anew), a checkpoint folder, or None to start anew.
        log: Called with each record of the history and its step, on the main process alone.
        on_checkpoint: Called on the main process when a checkpoint is written.
        progress: Whether the main process shows how far it is; or what shows several trainings, and counts the steps
            of this one.

    Raises:
        InputError: For options or tiles that do not fit, soft labels that are missing, a checkpoint of another run, or
            a loss that is not finite.
    """
    started = time.perf_counter()
    training = ClassifierTraining(config, train, validation, accelerator, class_names, initial)
    first_step = training.load(checkpoint_dir, resume)
    assert config.learning_rate is not None  # the configuration has chosen one
    warmup_steps = math.ceil(config.warmup * config.max_train_steps)
    with _shown(progress, config, first_step, accelerator) as shown, training.drawn_batches(first_step) as drawn:
        for step in range(first_step, config.max_train_steps):
            learning_rate = cosine_learning_rate(step, config.max_train_steps, warmup_steps, config.learning_rate)
            training.make_step(step, learning_rate, drawn)
            shown.update()

            done = step + 1
            is_last = done == config.max_train_steps
            if done % config.validation_steps == 0 or is_last:
                record = training.validate(done, learning_rate)
                if "validation_accuracy" in record:
                    shown.show(accuracy=f"{record['validation_accuracy']:.3f}")
                if log is not None and accelerator.is_main_process:
                    log(record, done)
            if checkpoint_dir is not None and done % checkpointing_steps == 0 and not is_last:
                training.save(checkpoint_dir, done)
                if on_checkpoint is not None and accelerator.is_main_process:
                    on_checkpoint()
    accelerator.free_memory()
    return TrainedClassifier(
        training.best, training.history, training.best_step, training.best_scores, time.perf_counter() - started
    )


@contextlib.contextmanager
def _shown(
    progress: bool | Progress, config: ClassifierConfig, first_step: int, accelerator: Accelerator
) -> Iterator[Progress]:
    """What shows the steps of a training: see `progress` of `fit_classifier`."""
    if isinstance(progress, Progress):
        progress.update(first_step)  # of a checkpoint
        yield progress
        return
    enabled = progress and accelerator.is_local_main_process
    with Progress(config.max_train_steps, config.architecture, "steps", initial=first_step, enabled=enabled) as own:
        yield own


class ClassifierTraining:
    """The state of a training, and what changes it.

    Args:
        config, train, validation, accelerator, class_names, initial: See `fit_classifier`.

    Attributes:
        model: What is trained, as Accelerate wraps it; `trained` is the classifier itself.
        average: The moving average of its weights; None where the config asks for none.
        best: The classifier to keep. Like `candidate`, it is a float32 model that Accelerate knows nothing of, so that
            its scores are those that the saved model gives, whatever the training's precision.
        candidate: What is validated. Where it does best, it changes places with `best`.
        best_step: Step of `best`; the last step as long as nothing has been validated.
        best_scores: `scoring.score` of `best` on the validation tiles, or None.
        history: See `TrainedClassifier`.

    Raises:
        InputError: For options or tiles that do not fit, or soft labels that are missing.
    """

    def __init__(
        self,
        config: ClassifierConfig,
        train: Tiles,
        validation: Tiles | None,
        accelerator: Accelerator,
        class_names: Sequence[str],
        initial: Classifier | None = None,
    ):
        self.config, self.accelerator = config, accelerator
        self.batches = TrainingBatches(config, train, len(class_names), accelerator)
        self.validation = None if validation is None else _sample(validation, config.validation_tiles, config.seed)
        self.class_names, self.initial = list(class_names), None if initial is None else content_of(initial)

        model = build_classifier(config, train.images.shape[1], class_names).to(accelerator.device)
        if initial is not None:
            model.load_state_dict(initial.state_dict())
        self.best, self.candidate = copy.deepcopy(model).eval(), copy.deepcopy(model).eval()
        self.average = copy.deepcopy(model) if config.ema_decay > 0 else None
        self.model, self.optimizer = accelerator.prepare(model, _adamw(config, model))
        self.trained: Classifier = accelerator.unwrap_model(self.model)
        self.model.train()

        self.best_step = config.max_train_steps
        self.best_scores: dict[str, Any] | None = None
        self.history: list[dict[str, Any]] = []
        # The sum of the losses of this process since the last validation; it stays on the device.
        self.running_loss = torch.zeros((), device=accelerator.device)

    @functools.cached_property
    def settings(self) -> dict[str, Any]:
        """What a checkpoint must agree with: the recipe, and hashes of all that is trained on and chosen by."""
        return {
            **recorded_recipe(self.config),
            "class_names": self.class_names,
            "train": self.batches.train.fingerprint(),
            "validation": None if self.validation is None else self.validation.fingerprint(),
            "initial": self.initial,
        }

    def drawn_batches(self, first_step: int) -> contextlib.AbstractContextManager[Iterator[DrawnBatch]]:
        """The batches of all steps from `first_step` on, which are read ahead of the steps that take them."""
        per_step, ahead = self.config.gradient_accumulation_steps, batches_ahead(self.accelerator.device)
        positions = range(first_step * per_step, self.config.max_train_steps * per_step)
        return made_ahead(self.batches.draw, positions, ahead)

    def make_step(self, step: int, learning_rate: float, drawn: Iterator[DrawnBatch]) -> None:
        """Makes one optimizer step, of as many batches as the config says.

        Args:
            step: Number of the step from 0.
            learning_rate: Of this step.
            drawn: The batches, of which it takes its own: see `drawn_batches`.
        """
        config, accelerator = self.config, self.accelerator
        set_learning_rate(self.optimizer, learning_rate)
        for micro_step in range(config.gradient_accumulation_steps):
            # Gradients need to travel between processes only once per step.
            is_last = micro_step == config.gradient_accumulation_steps - 1
            batch = self.batches.augmented(next(drawn))
            with contextlib.nullcontext() if is_last else accelerator.no_sync(self.model):
                loss = self.loss(batch)
                accelerator.backward(loss)
            self.running_loss += loss.detach()
        self.change_weights(step)

    def change_weights(self, step: int) -> None:
        """Changes the weights by their gradients, and their average by them, in the step of this number from 0."""
        self.accelerator.clip_grad_norm_(self.model.parameters(), self.config.max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.average is not None:
            update_average(self.average, self.trained, self.config.ema_decay, step)

    def loss(self, batch: Batch) -> torch.Tensor:
        """The loss of this process's share of a batch, weighted so that its gradients add up to those of a step."""
        logits = self.model(batch.images).logits
        loss = batch_loss(self.config, logits, batch.labels, batch.soft_labels)
        loss = loss / self.config.gradient_accumulation_steps
        # Shares can differ by one tile; processes are averaged with equal weight.
        return loss * (len(batch.images) * self.accelerator.num_processes / self.batches.batch_size)

    def validate(self, done: int, learning_rate: float) -> dict[str, Any]:
        """Scores the weights after `done` steps, and keeps them where they are the best so far.

        Returns:
            The new record of the history.

        Raises:
            InputError: If the loss since the last validation is not finite.
        """
        record = {"step": done, "loss": self._mean_loss(done), "learning_rate": learning_rate}
        self.candidate.load_state_dict((self.trained if self.average is None else self.average).state_dict())
        if self.accelerator.num_processes > 1:
            # Each process has its own running statistics (batch norm); the saved ones are the main process's.
            for buffer in self.candidate.buffers():
                broadcast(buffer)
        scores = None
        if self.validation is not None:
            probabilities = predict_shared(self.candidate, self.validation.images, self.accelerator)
            scores = score_probabilities(probabilities, self.validation.labels)
            record |= {"validation_accuracy": scores["accuracy"], "validation_auc": scores["auc"]}
        self.history.append(record)
        if scores is None or self.best_scores is None or rank_of(scores) > rank_of(self.best_scores):
            self.best, self.candidate = self.candidate, self.best
            self.best_step, self.best_scores = done, scores
        return record

    def _mean_loss(self, done: int) -> float:
        """The mean loss of the steps since the last validation, over all processes; the sum begins anew."""
        steps_since = done - (self.history[-1]["step"] if self.history else 0)
        mean_loss = self.accelerator.reduce(self.running_loss, reduction="mean").item() / steps_since
        if not math.isfinite(mean_loss):
            raise InputError(f"the loss is {mean_loss} at step {done}: lower {param('learning_rate')}")
        self.running_loss = torch.zeros_like(self.running_loss)
        return mean_loss

    def modules(self) -> dict[str, torch.nn.Module]:
        """The modules of a checkpoint by name, as they are now: `best` and `candidate` change places."""
        always: dict[str, torch.nn.Module] = {"classifier": self.trained, "best": self.best}
        return always if self.average is None else {**always, "average": self.average}

    def save(self, folder: str | Path, done: int) -> None:
        """Writes a checkpoint after `done` steps. Every process calls it; the main process writes."""
        state = {
            "best_step": self.best_step,
            "validation": self.best_scores,
            "history": self.history,
            "running_loss": self.accelerator.reduce(self.running_loss.clone(), reduction="mean").item(),
        }
        if self.accelerator.is_main_process:
            save_checkpoint(
                folder, done, self.settings, self.modules(), self.optimizer, state, self.accelerator.scaler
            )

    def load(self, folder: str | Path | None, resume: str | Path | None) -> int:
        """Goes on from a checkpoint, if there is one: see `resume_training`.

        Args:
            folder: Of the checkpoints, or None.
            resume: None, "latest" or a checkpoint folder.

        Returns:
            The steps that were done: the number, from 0, of the step that comes next.

        Raises:
            InputError: For one that is of another training, or is named and damaged.
        """
        if resume is None or (resume == "latest" and folder is None):
            return 0  # and no hash of the tiles is taken
        accelerator = self.accelerator
        state = resume_training(
            folder, resume, self.settings, self.modules(), self.optimizer, accelerator.scaler, accelerator
        )
        if state is None:
            return 0
        self.best_step, self.best_scores, self.history = state["best_step"], state["validation"], state["history"]
        self.running_loss += state["running_loss"]
        return state["step"]


class TileViews(NamedTuple):
    """Tiles, and how they are to be augmented, on the CPU.

    Attributes:
        tiles: uint8 N×S×S×3, ready for the device.
        plan: Their part of the plan of the batch.
    """

    tiles: torch.Tensor
    plan: AugmentationPlan


class DrawnBatch(NamedTuple):
    """A process's share of a batch as it is read and drawn, on the CPU.

    Attributes:
        views: Its tiles.
        partners: The tiles that they are mixed with, and how; None where tiles are not mixed.
        labels, soft_labels: See `Batch`.
    """

    views: TileViews
    partners: tuple[TileViews, MixingPlan] | None
    labels: torch.Tensor
    soft_labels: torch.Tensor | None


class Batch(NamedTuple):
    """A process's share of a batch, on the device.

    Attributes:
        images: float32 N×3×S×S in [-1, 1].
        labels: int64 N; float N×C where tiles were mixed.
        soft_labels: float N×C at the config's temperature; None where the config gives them no weight.
    """

    images: torch.Tensor
    labels: torch.Tensor
    soft_labels: torch.Tensor | None


class TrainingBatches:
    """The batches of a training: which tiles, how they are augmented and mixed.

    Args:
        config: How to train.
        train: The tiles.
        num_classes: Number of classes C.
        accelerator: Decides device and processes.

    Attributes:
        batch_size: Tiles of a batch over all processes.

    Raises:
        InputError: For options that do not fit the tiles, or soft labels that are missing.
    """

    def __init__(self, config: ClassifierConfig, train: Tiles, num_classes: int, accelerator: Accelerator):
        self.config, self.train, self.num_classes, self.accelerator = config, train, num_classes, accelerator
        self.batch_size = fit_batch_size(config, len(train), accelerator.num_processes)
        self.image_size = train.images.shape[1]
        if config.max_shift >= self.image_size:
            raise InputError(
                f"{param('max_shift')}={config.max_shift} is out of range: it must be below the {self.image_size} px "
                "of the tiles, whose reflection comes in at the edge; give less"
            )
        weights = class_weights(train.labels, config.class_balance)
        self.order = BatchOrder("classifier", len(train), self.batch_size, config.seed, weights)
        self.labels = torch.from_numpy(train.labels)
        self.soft_labels = None
        self.fixed_views = None
        if config.soft_label_views > 1:
            # Of the tiles as they are come first, then those of view 1, and so on.
            of_views = soft_labels_of_views(train, config.soft_label_views).swapaxes(0, 1).reshape(-1, num_classes)
            self.soft_labels = at_temperature(torch.from_numpy(of_views), config.temperature)
            self.fixed_views = fixed_views_of(train, num_classes, config.soft_label_views)
        elif config.soft_label_weight > 0:
            soft_labels = soft_labels_of(train, config.soft_label_weight)
            self.soft_labels = at_temperature(torch.from_numpy(soft_labels), config.temperature)

    def draw(self, position: int) -> DrawnBatch:
        """This process's share of the batch of that number, counted over all steps.

        Every process draws the tiles, augmentations and mixtures of the whole batch, and reads its share of the tiles.
        """
        config = self.config
        indices = self.order.indices(position)
        plan = draw_plan(
            self.batch_size,
            step_generator("augmentation of the classifier", config.seed, position),
            max_shift=config.max_shift,
            stain_strength=config.stain_strength,
            max_blur=config.max_blur,
        )
        mixing = draw_mixing(
            self.batch_size,
            self.image_size,
            step_generator("mixing of the classifier", config.seed, position),
            mixup=config.mixup,
            cutmix=config.cutmix,
        )
        fixed = self._draw_fixed_views(indices, position)
        share, fixed_share = self._share(indices), self._share(fixed)
        views = self._read(share, fixed_share, self._share(plan))
        labels, soft_labels = self.labels[share], self._soft_labels_of(share, fixed_share)
        if mixing is None:
            return DrawnBatch(views, None, labels, soft_labels)
        mixing = self._share(mixing)
        chosen = mixing.partners.numpy()
        partners, fixed_partners = indices[chosen], fixed[chosen]
        labels = mix(self._one_hot(labels), self._one_hot(self.labels[partners]), mixing)
        of_partners = self._soft_labels_of(partners, fixed_partners)
        if soft_labels is not None and of_partners is not None:
            soft_labels = mix(soft_labels, of_partners, mixing)
        read = self._read(partners, fixed_partners, plan[mixing.partners])
        return DrawnBatch(views, (read, mixing), labels, soft_labels)

    def augmented(self, drawn: DrawnBatch) -> Batch:
        """What was drawn, brought to the device and augmented there."""
        images = self._augmented(drawn.views)
        if drawn.partners is not None:
            partners, mixing = drawn.partners
            images = mix_images(images, self._augmented(partners), mixing)
        soft_labels = None if drawn.soft_labels is None else to_device(drawn.soft_labels, self.accelerator.device)
        return Batch(images, to_device(drawn.labels, self.accelerator.device), soft_labels)

    def _share(self, of_whole_batch: Any) -> Any:
        return process_slice(of_whole_batch, self.accelerator.process_index, self.accelerator.num_processes)

    def _draw_fixed_views(self, indices: np.ndarray, position: int) -> np.ndarray:
        """The fixed view in which each tile of a batch is shown, int64 N: one of those that it has, by chance."""
        if self.fixed_views is None:
            return np.zeros_like(indices)
        generator = step_generator("fixed views of the classifier's tiles", self.config.seed, position)
        numbers = torch.rand(len(indices), generator=generator, dtype=torch.float64).numpy()
        available = self.fixed_views.available[indices]
        places = (numbers * available.sum(axis=1)).astype(np.int64)
        # The views that there are come first, in order.
        return np.take_along_axis(np.argsort(~available, axis=1, kind="stable"), places[:, None], axis=1)[:, 0]

    def _soft_labels_of(self, indices: np.ndarray, views: np.ndarray) -> torch.Tensor | None:
        return None if self.soft_labels is None else self.soft_labels[indices + views * len(self.train)]

    def _read(self, indices: np.ndarray, views: np.ndarray, plan: AugmentationPlan) -> TileViews:
        images = self.train.images
        tiles = images[indices] if self.fixed_views is None else self.fixed_views.make(images, indices, views)
        return TileViews(ready_for(self.accelerator.device, torch.from_numpy(tiles)), plan)

    def _augmented(self, views: TileViews) -> torch.Tensor:
        return apply_plan(to_model_input(views.tiles, self.accelerator.device), views.plan)

    def _one_hot(self, labels: torch.Tensor) -> torch.Tensor:
        return F.one_hot(labels, self.num_classes)


def build_classifier(config: ClassifierConfig, image_size: int, class_names: Sequence[str]) -> Classifier:
    """A new classifier; global random numbers are left as they were.

    `config.seed` decides its weights, of a pretrained model those of the head.

    Args:
        config: Its architecture, width, treatment of stain, and seed count.
        image_size: Side of the tiles in px.
        class_names: One per class; the index is the label.

    Raises:
        InputError: For an architecture that does not suit the sizes.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(torch_seed("weights of a classifier", config.seed))
        encoder = None
        if is_from_elsewhere(config.architecture):
            is_new = config.architecture.startswith(SCRATCH)
            make = new_classifier_body if is_new else load_classifier_body
            encoder = make(config.architecture.removeprefix(SCRATCH))
        return Classifier(
            architecture=config.architecture if encoder is None else ENCODER,
            num_classes=len(class_names),
            image_size=image_size,
            class_names=class_names,
            width=config.width,
            normalize_stain=config.normalize_stain,
            encoder=encoder,
        )


def _adamw(config: ClassifierConfig, model: Classifier) -> torch.optim.AdamW:
    """AdamW with weight decay on matrices and kernels alone: biases and norms have one dimension."""
    assert config.learning_rate is not None  # the configuration has chosen one
    decayed = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    others = [parameter for parameter in model.parameters() if parameter.ndim <= 1]
    return torch.optim.AdamW(
        [{"params": decayed, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0}],
        lr=config.learning_rate,
        fused=model.device.type in ("cpu", "cuda"),
    )


def fit_batch_size(config: ClassifierConfig, num_tiles: int, num_processes: int) -> int:
    """The config's batch size, or the number of training tiles where that is smaller.

    Raises:
        InputError: If there would not be a tile for every process.
    """
    batch_size = min(config.batch_size, num_tiles)
    if batch_size < num_processes:
        raise InputError(
            f"a batch of {batch_size} tiles can't be split over {num_processes} processes: use fewer processes, or a "
            f"larger {param('batch_size')} and more tiles"
        )
    return batch_size


def update_average(average: Classifier, model: Classifier, decay: float, step: int) -> None:
    """Moves the averaged weights towards those of the model: average ← d · average + (1 - d) · model.

    The first weights are random, and a slow average would hold on to them for long. So d begins small, and rises as
    (1 + step) / (10 + step) up to `decay`: it is 0.1 after the first step, 0.5 after the ninth, 0.92 after the
    hundredth. The running statistics of batch norm are averaged like weights; whole numbers, which count batches, are
    copied.

    Args:
        average: What is changed, in place.
        model: The classifier after the step.
        decay: The largest d, at least 0 and below 1.
        step: Number of the step, from 0.
    """
    share = 1 - min(decay, (1 + step) / (10 + step))
    with torch.no_grad():
        pairs = zip(average.state_dict().values(), model.state_dict().values(), strict=True)
        for averaged, new in pairs:
            if averaged.is_floating_point():
                averaged.lerp_(new.to(averaged.dtype), share)
            else:
                averaged.copy_(new)


def rank_of(scores: dict[str, Any]) -> tuple[float, float]:
    """What decides between two steps: accuracy, then AUC; one that is undefined comes last."""
    return scores["accuracy"], -1.0 if scores["auc"] is None else scores["auc"]


def _sample(tiles: Tiles, at_most: int, seed: int) -> Tiles:
    if len(tiles) <= at_most:
        return tiles
    chosen = stream("validation tiles of a classifier", seed).permutation(len(tiles))[:at_most]
    return tiles.subset(np.sort(chosen))
