"""What the demo page has computed: images from a pipeline, and classifiers trained while one looks on."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline

from histodistill.training.data.tiles import Tiles, TileSource
from histodistill.training.demo_app.run_data import DemoRun
from histodistill.training.engine.accelerator import make_accelerator
from histodistill.training.engine.classifier_config import ClassifierConfig
from histodistill.training.engine.classifier_training import fit_classifier
from histodistill.training.engine.pool import generate_images
from histodistill.training.engine.scoring import score
from histodistill.training.running.errors import InputError
from histodistill.training.running.precision import usual_precision
from histodistill.training.running.progress import Progress


#: What a classifier can learn from, and how the page calls it; the recommended way first.
RECIPES: dict[str, tuple[str, dict[str, Any]]] = {
    "soft": ("the teacher's soft labels (recommended)", {"soft_label_weight": 1.0}),
    "labels": ("labels", {}),
    "joint": ("labels, joint loss", {"loss": "joint"}),
}
# Points of the curves; each costs a look at the validation tiles.
_UPDATES = 20
# Validation tiles that are looked at for each point, at most, which keeps a look short.
_VALIDATION_TILES = 500
# Seconds between two signs of life of a training. The page ends one that nobody looks at only when it hears of it.
_SIGN_OF_LIFE = 1.0
# Precisions other than float32 that a pool may have been generated with.
_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
# One training after the other: one that was stopped may still be in its last steps.
_turn = threading.Lock()


@dataclass(frozen=True)
class TrainingProgress:
    """How far a training is.

    Attributes:
        step, num_steps: Optimizer steps done and in all.
        history: What `fit_classifier` measured so far.
        finished: Whether it has ended.
        test: Scores on the real test tiles, at the end and where there are such tiles.
        best_step: The step whose weights are scored, at the end.
        num_train, num_test: Numbers of images.
    """

    step: int
    num_steps: int
    history: list[dict[str, Any]] = field(default_factory=list)
    finished: bool = False
    test: dict[str, Any] | None = None
    best_step: int | None = None
    num_train: int = 0
    num_test: int = 0


class _Stopped(Exception):
    """Nobody looks on any more."""


class _Watched(Progress):
    """Counts the steps of a training, and ends it after the step in which `stopped` was set."""

    def __init__(self, num_steps: int, stopped: threading.Event):
        super().__init__(num_steps, "training", enabled=False)
        self.done, self.stopped = 0, stopped

    def update(self, parts: int = 1) -> None:
        self.done += parts
        if self.stopped.is_set():
            raise _Stopped


def generate_like_pool(pipeline: DiffusionPipeline, run: DemoRun, label: int, seeds: list[int]) -> np.ndarray:
    """Images of a class, uint8 N×H×W×3, as the pool has them: with the same options and precision."""
    options = dict(run.generation)
    precision = options.pop("mixed_precision", "no")
    device = pipeline.device.type
    if precision == "fp16" and device == "cpu":
        precision = "no"
    with torch.autocast(device, _DTYPES.get(precision), enabled=precision in _DTYPES):
        return generate_images(pipeline, np.full(len(seeds), label), np.array(seeds), **options)


def available_recipes(run: DemoRun) -> list[str]:
    """The keys of `RECIPES` that the distilled set has what is needed for."""
    return [name for name in RECIPES if name != "soft" or "soft_label" in run.columns]


def train_live(run: DemoRun, real: TileSource | None, recipe: str, num_steps: int) -> Iterator[TrainingProgress]:
    """Trains a ConvNet on the distilled set in another thread, and yields how far it is, at least once a second.

    When the iterator is closed, the training ends with the step that it is in.

    Args:
        run: Has the distilled set.
        real: Real tiles of the same kind with a test split: the best step is chosen on their validation tiles, and
            scored on their test tiles. None gives a classifier without a score, of the last step.
        recipe: One of `RECIPES`.
        num_steps: Optimizer steps, at least 1.

    Raises:
        InputError: For options out of range, soft labels that are missing, or a loss that isn't finite.
    """
    if recipe not in available_recipes(run):
        raise InputError(
            f"recipe={recipe!r} is not possible here: it must be one of {', '.join(available_recipes(run))}"
        )
    config = ClassifierConfig(
        max_train_steps=num_steps,
        validation_steps=max(1, num_steps // _UPDATES),
        validation_tiles=_VALIDATION_TILES,
        **RECIPES[recipe][1],
    )
    train = Tiles(run.images, run.labels, run.columns["soft_label"] if config.soft_label_weight else None)
    validation = None if real is None else real.splits.get("validation")
    test = None if real is None else real.split("test")
    stopped = threading.Event()
    messages: queue.SimpleQueue[Any] = queue.SimpleQueue()  # records, and last the result or an error

    steps = _Watched(num_steps, stopped)

    def work() -> None:
        try:
            with _turn:
                if stopped.is_set():
                    return
                trained = fit_classifier(
                    config,
                    train,
                    validation,
                    make_accelerator(usual_precision()),
                    class_names=run.class_names,
                    log=lambda record, step: messages.put(record),
                    progress=steps,
                )
                if stopped.is_set():
                    return
                messages.put((trained.best_step, None if test is None else score(trained.model, test)))
        except _Stopped:
            pass
        except Exception as error:  # shown where the training is looked at
            messages.put(error)

    progress = TrainingProgress(0, num_steps, num_train=len(train), num_test=0 if test is None else len(test))
    yield progress
    threading.Thread(target=work, name="demo-app-training", daemon=True).start()
    try:
        while True:
            try:
                message = messages.get(timeout=_SIGN_OF_LIFE)
            except queue.Empty:
                progress = replace(progress, step=steps.done)
                yield progress
                continue
            if isinstance(message, Exception):
                raise message
            if isinstance(message, tuple):
                best_step, scores = message
                yield replace(progress, step=num_steps, finished=True, test=scores, best_step=best_step)
                return
            progress = replace(progress, step=message["step"], history=[*progress.history, message])
            yield progress
    finally:
        stopped.set()


def progress_text(progress: TrainingProgress) -> str:
    """How far a training is, or what came out, in plain words."""
    images = f"{progress.num_train:,} distilled images"
    if not progress.finished:
        text = f"Step {progress.step:,} of {progress.num_steps:,} on {images}."
        if progress.history:
            text += f" Loss {progress.history[-1]['loss']:.3f}."
            accuracy = progress.history[-1].get("validation_accuracy")
            if accuracy is not None:
                text += f" ACC on real validation tiles {accuracy:.3f}."
        return text
    text = f"Trained for {progress.num_steps:,} steps on {images}."
    if progress.test is None:
        return (
            f"{text} There is no score, since this page was started without real tiles: the loss tells how well the "
            "classifier knows the distilled images, and nothing of real ones. With --data, histodistill demo-app "
            "scores it on real test tiles."
        )
    auc = "undefined" if progress.test["auc"] is None else f"{progress.test['auc']:.3f}"
    return (
        f"{text} On {progress.num_test:,} real test tiles, the weights of step {progress.best_step:,}: ACC "
        f"{progress.test['accuracy']:.3f}, AUC {auc}, macro F1 {progress.test['f1']:.3f}."
    )
