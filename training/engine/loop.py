"""The loop that trains the generative models: steps, validations, checkpoints, and the noise of differential privacy.

What is trained, on what and how it is judged is a `GenerativeTraining`. Everything random in a step is a function of
(seed, step): see `steps.py`.
"""

from __future__ import annotations

import contextlib
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from accelerate import Accelerator

from histodistill.training.data.pixels import ready_for, to_device, to_model_input
from histodistill.training.data.tiles import Tiles
from histodistill.training.engine.accelerator import make_accelerator, require_compiler
from histodistill.training.engine.augment import apply_symmetries
from histodistill.training.engine.checkpoints import check_finite, check_resume, resume_training, save_checkpoint
from histodistill.training.engine.prefetch import batches_ahead, made_ahead
from histodistill.training.engine.privacy import (
    PrivacyPlan,
    forget_key,
    secret_key,
    set_private_gradients,
    tile_generators,
)
from histodistill.training.engine.steps import (
    BatchOrder,
    class_weights,
    cosine_learning_rate,
    process_slice,
    set_learning_rate,
    step_generator,
)
from histodistill.training.models.recomputing import recompute_activations
from histodistill.training.running.progress import Progress
from histodistill.training.running.stages import Stage
from histodistill.training.running.training_options import PrivateTrainingConfig


class GenerativeTraining(ABC):
    """One training: the state that changes from step to step, and what a model has to say of itself.

    Args:
        config: The options.
        train: The tiles to train on.
        accelerator: Decides device, processes and precision.
        plan: How the training spends its privacy budget; None without differential privacy.

    Attributes:
        name: What progress bar and trackers call it; its random numbers go by it, too.
        model: The module whose forward pass gives the loss, before Accelerate wraps it. Subclasses make it.
        optimizer: Of its parameters. Subclasses make it.
        start: The first step of this process: 0, or that of the checkpoint.
        history: One dict for each validation.
        training_seconds: Spent by this process, without validations.
    """

    name: str
    model: torch.nn.Module
    optimizer: torch.optim.Optimizer

    def __init__(
        self, config: PrivateTrainingConfig, train: Tiles, accelerator: Accelerator, plan: PrivacyPlan | None
    ):
        self.config, self.train, self.accelerator, self.plan = config, train, accelerator, plan
        self.start = 0
        self.history: list[dict[str, Any]] = []
        self.training_seconds = 0.0

    @abstractmethod
    def draw_batch(self, indices: np.ndarray, generator: torch.Generator) -> tuple[torch.Tensor, ...]:
        """What is random in a batch, on the CPU; the pixels of the tiles are not needed for it.

        Args:
            indices: The training tiles of the batch, int64 N.
            generator: A CPU generator.

        Returns:
            The view that each tile is shown in, as `read_inputs` and `make_inputs` take it: its symmetry (see
            `apply_symmetries`), int64 N, or that and more, int64 N×…; and whatever else the loss takes of each tile,
            N×….
        """

    @abstractmethod
    def loss(self, call: Callable[..., Any], inputs: torch.Tensor, *drawn: torch.Tensor) -> torch.Tensor:
        """The scalar loss of a batch.

        Args:
            call: The model, or what stands for it where gradients are taken tile by tile.
            inputs: What `make_inputs` gave.
            drawn: The rest of the batch, on the device.
        """

    @abstractmethod
    def validate(self) -> dict[str, float]:
        """Figures of the model on validation tiles, by the names that the history has for them."""

    @abstractmethod
    def draw_progress(self, path: Path) -> None:
        """Writes a picture that shows how far the model has come."""

    @abstractmethod
    def saved_modules(self) -> dict[str, torch.nn.Module]:
        """The modules of a checkpoint by name; the first one is what is trained."""

    def given(self) -> dict[str, str]:
        """What decides the result beside the stage's settings: hashes by name, as a checkpoint holds them."""
        return {}

    def prepare(self) -> None:
        """Called once before the first step that is left."""

    def read_inputs(self, indices: np.ndarray, views: torch.Tensor) -> torch.Tensor:
        """What `make_inputs` takes of training tiles, on the CPU and ready for the device: pixels, uint8 N×H×W×3.

        It may be called in a thread of its own, ahead of the steps.

        Args:
            indices: The tiles, int64 N.
            views: The views that they are to be shown in, int64 N or N×… on the CPU: see `draw_batch`.
        """
        return ready_for(self.accelerator.device, torch.from_numpy(self.train.images[indices]))

    def make_inputs(self, read: torch.Tensor, views: torch.Tensor) -> torch.Tensor:
        """What the loss takes, on the device, of what `read_inputs` gave for the same views: images N×3×H×W.

        Called without gradients.
        """
        return apply_symmetries(to_model_input(read, self.accelerator.device), views)

    def before_private_steps(self, key: bytes) -> None:
        """Called before step 0 of a private training, with its secret key; again where it was lost with all steps."""

    def before_batch(self, position: int) -> None:
        """Called before the forward pass of a batch, numbered over all steps."""

    def after_step(self) -> None:
        """Called when the weights have changed."""

    def before_look(self) -> None:
        """Called before the model is validated or saved."""

    def saved_state(self) -> dict[str, Any]:
        """What a checkpoint holds beside modules, moments and history, as JSON can hold it."""
        return {}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Takes what `saved_state` gave, after the modules are loaded."""

    @property
    def trained(self) -> torch.nn.Module:
        """The module whose weights are trained."""
        return next(iter(self.saved_modules().values()))

    @property
    def tiles_seen(self) -> int:
        """Tiles shown by this process's steps, over all processes."""
        config = self.config
        return (config.max_train_steps - self.start) * config.gradient_accumulation_steps * config.batch_size


class DrawnBatch(NamedTuple):
    """A process's share of a batch, on the CPU.

    Attributes:
        position: Number of the batch, counted over all steps.
        read: What `GenerativeTraining.read_inputs` gives.
        views, drawn: What `GenerativeTraining.draw_batch` gives.
    """

    position: int
    read: torch.Tensor
    views: torch.Tensor
    drawn: list[torch.Tensor]


def open_training(config: PrivateTrainingConfig, stage: Stage, name: str) -> Accelerator | None:
    """The accelerator of a training, or None where its stage is already finished.

    Args:
        config: The options.
        stage: The stage that the training makes.
        name: See `GenerativeTraining`.

    Raises:
        InputError: For options that do not go with this machine: see `make_accelerator`.
    """
    accelerator = make_accelerator(
        config.mixed_precision,
        batch_size=config.batch_size,
        gradient_accumulation_steps=config.gradient_accumulation_steps,
        report_to=config.report_to,
        project_dir=config.output,
        tf32=True,
    )
    if not stage.complete:
        return accelerator
    accelerator.print(f"{name}: {config.output} is already finished")
    if accelerator.is_main_process:
        forget_key(config.output)  # it may have been killed between finishing and forgetting
    return None


def fit(training: GenerativeTraining, stage: Stage) -> None:
    """Trains from the beginning, or from the checkpoint that `resume` names, to the last step.

    Args:
        training: What is trained; its `history` and weights are the result.
        stage: The stage that it makes; claimed here, when all that can be wrong with the options is known to be right.

    Raises:
        InputError: For a checkpoint of another training, one that has diverged, or a compiler that is missing.
    """
    config, accelerator = training.config, training.accelerator
    check_resume(config.resume)
    if config.compile:
        require_compiler(accelerator.device)
        training.model.compile()  # in its place: neither modules nor weights get other names
    if config.gradient_checkpointing:
        recompute_activations(training.trained)
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        stage.begin()
    if config.report_to:
        tracked = {name: str(value) for name, value in stage.settings.items()}
        accelerator.init_trackers(f"histodistill-{training.name}", config=tracked)
    model, optimizer = accelerator.prepare(training.model, training.optimizer)
    state = resume_training(
        config.output / "checkpoints",
        config.resume,
        _settings(training, stage),
        training.saved_modules(),
        optimizer,
        accelerator.scaler,
        accelerator,
    )
    if state:
        training.start, training.history = state["step"], state["history"]
        training.load_state(state)

    if training.start < config.max_train_steps:
        training.prepare()
    steps = _private_steps(training, optimizer) if training.plan else plain_steps(training, model, optimizer)
    progress_bar = Progress(
        config.max_train_steps,
        training.name,
        "steps",
        initial=training.start,
        enabled=accelerator.is_local_main_process,
    )
    with steps as make_step, progress_bar as progress:
        _train(training, stage, optimizer, make_step, progress)
    accelerator.wait_for_everyone()


def _train(
    training: GenerativeTraining,
    stage: Stage,
    optimizer: Any,
    make_step: Callable[[int], torch.Tensor | None],
    progress: Progress,
) -> None:
    """All steps that are left, with validations and checkpoints."""
    config, accelerator = training.config, training.accelerator
    warmup_steps = math.ceil(config.warmup * config.max_train_steps)
    training.model.train()  # what was loaded is in evaluation mode
    resumed = time.perf_counter()
    for step in range(training.start, config.max_train_steps):
        set_learning_rate(
            optimizer, cosine_learning_rate(step, config.max_train_steps, warmup_steps, config.learning_rate)
        )
        loss = make_step(step)
        training.after_step()
        progress.update()

        done = step + 1
        is_last = done == config.max_train_steps
        if done % config.validation_steps == 0 or is_last:
            training.before_look()
            # The loss of training tiles is nothing that differential privacy may tell. To ask for it waits for the
            # device, so the clock is right.
            losses = {} if loss is None else {"train_loss": accelerator.reduce(loss.detach(), "mean").item()}
            training.training_seconds += time.perf_counter() - resumed
            _look(training, {"step": done, **losses}, progress)
            resumed = time.perf_counter()
        if (done % config.checkpointing_steps == 0 or is_last) and accelerator.is_main_process:
            training.before_look()
            _save(training, stage, optimizer, done)


def _settings(training: GenerativeTraining, stage: Stage) -> dict[str, Any]:
    """All that a checkpoint must agree with: the stage's settings, the tiles among them, and what is trained upon."""
    return {**stage.settings, **training.given()}


@contextlib.contextmanager
def plain_steps(
    training: GenerativeTraining, model: torch.nn.Module, optimizer: Any
) -> Iterator[Callable[[int], torch.Tensor]]:
    """What makes one optimizer step, given its number, and returns the loss of this process's share of the last batch.

    One step takes `gradient_accumulation_steps` batches of `batch_size` tiles over all processes. Steps must be made
    in their order from `training.start`, since batches are read ahead.

    Args:
        training: What is trained.
        model, optimizer: Its model and optimizer, as Accelerate has prepared them.
    """
    config, accelerator = training.config, training.accelerator
    with drawn_batches(training) as batches:

        def make_step(step: int) -> torch.Tensor:
            for _ in range(config.gradient_accumulation_steps):
                batch = next(batches)
                training.before_batch(batch.position)
                with accelerator.accumulate(model):
                    with torch.no_grad(), accelerator.autocast():
                        inputs = training.make_inputs(batch.read, batch.views)
                    loss = training.loss(model, inputs, *(to_device(part, accelerator.device) for part in batch.drawn))
                    accelerator.backward(loss)
                    if accelerator.sync_gradients:
                        accelerator.clip_grad_norm_(model.parameters(), config.max_grad_norm)
                    optimizer.step()
                    optimizer.zero_grad()
            return loss

        yield make_step


def drawn_batches(training: GenerativeTraining) -> contextlib.AbstractContextManager[Iterator[DrawnBatch]]:
    """The batches of all steps that are left, which are read ahead of the steps that take them.

    What is random is drawn for whole batches, and what this process's share needs of tiles is read.
    """
    config, accelerator = training.config, training.accelerator
    assert config.class_balance is not None  # the configuration has chosen one
    weights = class_weights(training.train.labels, config.class_balance)
    order = BatchOrder(training.name, len(training.train), config.batch_size, config.seed, weights)

    def draw(position: int) -> DrawnBatch:
        indices = order.indices(position)
        generator = step_generator(f"views of tiles of the {training.name}", config.seed, position)
        views, *drawn = (
            process_slice(part, accelerator.process_index, accelerator.num_processes)
            for part in training.draw_batch(indices, generator)
        )
        share = process_slice(indices, accelerator.process_index, accelerator.num_processes)
        return DrawnBatch(position, training.read_inputs(share, views), views, drawn)

    per_step = config.gradient_accumulation_steps
    positions = range(training.start * per_step, config.max_train_steps * per_step)
    return made_ahead(draw, positions, batches_ahead(accelerator.device))


@contextlib.contextmanager
def _private_steps(training: GenerativeTraining, optimizer: Any) -> Iterator[Callable[[int], torch.Tensor | None]]:
    """What makes one optimizer step with differential privacy, given its number; it has no loss to tell of.

    The gradient of each tile is taken by itself, and is the mean over `views` views of the tile.
    """
    config, accelerator, plan = training.config, training.accelerator, training.plan
    assert plan is not None
    key = secret_key(config.output)
    if training.start == 0:
        training.before_private_steps(key)

    def make_step(step: int) -> None:
        def make_tiles(indices: np.ndarray) -> list[torch.Tensor]:
            generators = tile_generators(training.name, config.seed, step, indices)
            of_tiles = [
                training.draw_batch(np.repeat(index, plan.views), generator)
                for index, generator in zip(indices, generators, strict=True)
            ]
            views, *drawn = (torch.stack(parts) for parts in zip(*of_tiles, strict=True))
            shape, views = views.shape[:2], views.flatten(0, 1)
            read = training.read_inputs(np.repeat(indices, plan.views), views)
            with torch.no_grad(), accelerator.autocast():
                inputs = training.make_inputs(read, views).unflatten(0, shape)
            return [inputs, *(to_device(part, accelerator.device) for part in drawn)]

        set_private_gradients(training.model, training.loss, make_tiles, plan, key, step)
        optimizer.step()
        optimizer.zero_grad()

    yield make_step


def _look(training: GenerativeTraining, record: dict[str, Any], progress: Progress) -> None:
    """Validates, keeps and shows the figures, and draws a picture."""
    config, accelerator = training.config, training.accelerator
    figures = training.validate()
    record |= figures
    check_finite(training.trained, record["step"], record)
    training.history.append(record)
    name, value = next(iter(figures.items()))
    progress.show(**{name: f"{value:.4g}"})
    if config.report_to:
        accelerator.log(record, step=record["step"])
    if accelerator.is_main_process:
        training.draw_progress(config.output / "progress" / f"step-{record['step']:07d}.png")


def _save(training: GenerativeTraining, stage: Stage, optimizer: Any, done: int) -> None:
    """Writes a checkpoint, and the time spent so far."""
    save_checkpoint(
        training.config.output / "checkpoints",
        done,
        _settings(training, stage),
        training.saved_modules(),
        optimizer,
        {"history": training.history, **training.saved_state()},
        training.accelerator.scaler,
    )
    stage.save_progress()
