"""Trains a classifier on tiles, real or distilled, and scores it once on real test tiles.

    accelerate launch -m histodistill.training.train_classifier --data phantom --output runs/phantom/classifier

Train on a distilled set, and choose the best step and score on real tiles:

    accelerate launch -m histodistill.training.train_classifier --data runs/phantom/distilled --eval-data phantom \\
        --loss joint --output runs/phantom/classifier-distilled

The output folder loads with `Classifier.from_pretrained`. It also holds `results.json`, written last: the scores on
the validation and the test split, the settings, and what they were measured with.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import dataclasses
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from histodistill.training.running.errors import InputError, param
from histodistill.training.running.options import (
    add_training_options,
    check_training_options,
    result_settings,
    run_script,
)


if TYPE_CHECKING:
    import torch
    from accelerate import Accelerator

    from histodistill.training.data.tiles import Tiles
    from histodistill.training.models.classifiers import Classifier

LOSSES = ("ce", "joint", "contrastive")
# Found on validation tiles: see README.md beside this file.
LEARNING_RATES = {"convnet": 3e-3, "resnet18": 1e-3, "vit": 1e-3}


@dataclass(frozen=True)
class ClassifierConfig:
    """All that decides how a classifier is trained, given the tiles. The defaults suit 500 and 10,000 tiles alike.

    Attributes
    ----------
    architecture, width : see `histodistill.training.models.classifiers.Classifier`.
    loss : "ce" for cross-entropy, "contrastive" for the boundary-guided term, "joint" for the former plus alpha times
        the latter; position and margin are the term's, see `losses.boundary_contrastive_loss`.
    soft_label_weight, temperature : weight in the cross-entropy of the teacher's probabilities that come with the
        tiles, and the temperature at which they are compared, see `losses.soft_cross_entropy`.
    max_train_steps : optimizer steps.
    batch_size : tiles per batch over all processes; fewer when there aren't as many training tiles.
    gradient_accumulation_steps : batches per optimizer step.
    learning_rate : peak, after a linear warm-up over the share `warmup` of the steps; then half a cosine to zero. None
        takes that of `LEARNING_RATES` for the architecture.
    weight_decay : AdamW's; biases and norms are left out.
    max_grad_norm : gradients are clipped to this norm.
    class_balance : 0 draws tiles as they are, every one once per epoch; 1 draws all classes equally often; between,
        a class of n tiles is drawn as often as n^(1 - class_balance).
    max_shift, stain_strength, max_blur : augmentation beside the eight symmetries, see
        `histodistill.training.engine.augment`.
    mixup, cutmix : parameter of the Beta distribution of `histodistill.training.engine.mixing`; 0 for none.
    ema_decay : of the moving average of the weights, which is what is kept; 0 keeps the weights themselves.
    normalize_stain : whether the classifier evens out the stain of each tile first, see `stain.standardize_stain`.
    validation_steps : steps between validations; the last step is always validated.
    validation_tiles : at most so many validation tiles are used, drawn at random once.
    seed : of weights, order and augmentation.

    Raises
    ------
    InputError : for an unknown name or a value out of range.
    """

    architecture: str = "convnet"
    width: int | None = None
    loss: str = "ce"
    alpha: float = 1.0
    position: float = 0.9
    margin: float = 0.3
    soft_label_weight: float = 0.0
    temperature: float = 4.0
    max_train_steps: int = 1000
    batch_size: int = 128
    gradient_accumulation_steps: int = 1
    learning_rate: float | None = None
    weight_decay: float = 5e-4
    warmup: float = 0.05
    max_grad_norm: float = 1.0
    class_balance: float = 0.0
    max_shift: int = 2
    stain_strength: float = 0.1
    max_blur: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
    ema_decay: float = 0.0
    normalize_stain: bool = False
    validation_steps: int = 100
    validation_tiles: int = 10_000
    seed: int = 0

    def __post_init__(self) -> None:
        if self.learning_rate is None:
            object.__setattr__(self, "learning_rate", LEARNING_RATES.get(self.architecture, 1e-3))
        if self.loss not in LOSSES:
            raise InputError(f"loss={self.loss!r} is unknown: it must be one of {', '.join(LOSSES)}")
        self._check(
            ("max_train_steps", "batch_size", "gradient_accumulation_steps", "validation_steps", "validation_tiles"),
            lambda value: value >= 1,
            "it must be at least 1",
        )
        self._check(("learning_rate", "max_grad_norm"), lambda value: value > 0, "it must be above 0")
        self._check(("temperature",), lambda value: value >= 0.1, "it must be at least 0.1")
        at_least_zero = ("weight_decay", "alpha", "max_shift", "max_blur", "mixup", "cutmix", "seed")
        self._check(at_least_zero, lambda value: value >= 0, "it must be at least 0")
        self._check(
            ("warmup", "class_balance", "soft_label_weight"), lambda value: 0 <= value <= 1, "it must be 0 to 1"
        )
        self._check(("position",), lambda value: 0 < value <= 1, "it must be above 0 and at most 1")
        self._check(
            ("margin", "stain_strength", "ema_decay"),
            lambda value: 0 <= value < 1,
            "it must be at least 0 and below 1",
        )
        if self.width is not None:
            self._check(("width",), lambda value: value >= 1, "it must be at least 1")
        if self.loss != "ce" and (self.mixup or self.cutmix):
            raise InputError(
                f"loss={self.loss!r} does not go with mixed tiles, which are of no one class: use loss='ce', or "
                "mixup=0 and cutmix=0"
            )
        if self.loss == "contrastive" and self.soft_label_weight:
            raise InputError(
                f"soft_label_weight={self.soft_label_weight} has no meaning for loss='contrastive': "
                "use loss='ce' or 'joint', or give 0"
            )

    def _check(self, names: Sequence[str], is_right: Callable[[Any], bool], rule: str) -> None:
        for name in names:
            if not is_right(getattr(self, name)):
                raise InputError(f"{name}={getattr(self, name)} is out of range: {rule}")


@dataclass(frozen=True)
class TrainedClassifier:
    """What `train_classifier` returns, the same on every process.

    Attributes
    ----------
    model : with the weights of the best step, on the accelerator's device, in evaluation mode.
    history : one dict per validation: step, loss (mean over the steps since the last), learning_rate, and with
        validation tiles validation_accuracy and validation_auc.
    best_step : step of highest validation accuracy; ties go to the higher AUC, then to the earlier step. The last
        step when there are no validation tiles.
    validation : `scoring.score` at that step, or None.
    seconds : spent since the start or the resumption; that of a stage is in its record.
    """

    model: Classifier
    history: list[dict[str, Any]]
    best_step: int
    validation: dict[str, Any] | None
    seconds: float


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Reads and checks the command line; exits with 2 and one sentence where it is wrong."""
    defaults = ClassifierConfig()
    parser = argparse.ArgumentParser(prog="train_classifier", description=__doc__, allow_abbrev=False)
    add_training_options(
        parser,
        max_train_steps=defaults.max_train_steps,
        batch_size=defaults.batch_size,
        learning_rate=None,
        weight_decay=defaults.weight_decay,
    )
    parser.set_defaults(
        class_balance=defaults.class_balance,
        validation_steps=defaults.validation_steps,
        validation_tiles=defaults.validation_tiles,
    )
    tiles = parser.add_argument_group("tiles")
    tiles.add_argument(
        "--eval-data", default=None, help="source of the validation and test tiles; default: that of --data"
    )
    tiles.add_argument(
        "--n-per-class",
        type=int,
        default=None,
        help="train on so many tiles per class, drawn at random; default: on all",
    )
    model = parser.add_argument_group("model")
    model.add_argument("--architecture", default=defaults.architecture, help="convnet, resnet18 or vit")
    model.add_argument(
        "--width", type=int, default=None, help="base width; default: 128 for convnet, 64 for resnet18, 192 for vit"
    )
    loss = parser.add_argument_group("loss")
    loss.add_argument(
        "--loss",
        default=defaults.loss,
        help="ce: cross-entropy; contrastive: the boundary-guided contrastive term; joint: their sum",
    )
    loss.add_argument("--alpha", type=float, default=defaults.alpha, help="weight of the contrastive term")
    loss.add_argument(
        "--position", type=float, default=defaults.position, help="share of a class on or above its boundary"
    )
    loss.add_argument(
        "--margin", type=float, default=defaults.margin, help="how far below the boundary the other classes are pushed"
    )
    loss.add_argument(
        "--soft-label-weight",
        type=float,
        default=defaults.soft_label_weight,
        help="weight of the soft labels that come with the tiles, 0 to 1; the rest is that of the labels",
    )
    loss.add_argument(
        "--temperature", type=float, default=defaults.temperature, help="at which soft labels and logits are compared"
    )
    model.add_argument(
        "--normalize-stain", action="store_true", help="even out the stain of each tile before the classifier sees it"
    )
    model.add_argument(
        "--ema-decay",
        type=float,
        default=defaults.ema_decay,
        help="decay of the moving average of the weights, which is what is kept; 0 for none",
    )
    augmentation = parser.add_argument_group("augmentation, beside the eight symmetries of the square")
    augmentation.add_argument("--max-shift", type=int, default=defaults.max_shift, help="largest shift in pixels")
    augmentation.add_argument(
        "--stain-strength",
        type=float,
        default=defaults.stain_strength,
        help="relative change of the amounts of stain; 0 for none",
    )
    augmentation.add_argument(
        "--max-blur", type=float, default=defaults.max_blur, help="largest standard deviation of a blur in pixels"
    )
    for name, title in (("mixup", "blends tiles in pairs"), ("cutmix", "pastes a box of another tile")):
        augmentation.add_argument(
            f"--{name}", type=float, default=getattr(defaults, name), help=f"{title}: Beta(value, value); 0 for none"
        )
    args = parser.parse_args(argv)
    check_training_options(args)
    return args


def train_classifier(
    config: ClassifierConfig,
    train: Tiles,
    validation: Tiles | None,
    accelerator: Accelerator,
    *,
    class_names: Sequence[str],
    initial: Classifier | None = None,
    checkpoint_dir: str | Path | None = None,
    checkpointing_steps: int = 250,
    resume: str | None = None,
    log: Callable[[dict[str, Any], int], None] | None = None,
    on_checkpoint: Callable[[], None] | None = None,
    progress: bool = True,
) -> TrainedClassifier:
    """Trains a classifier on `train` and keeps the weights that do best on `validation`.

    Every random number is a function of (seed, step), so a resumed run, and one with other processes, sees the same
    batches and augmentations.

    Parameters
    ----------
    config : how to train.
    train, validation : tiles of one size; without validation tiles (None) the last weights are kept.
    accelerator : decides device, processes and precision. It must have nothing else prepared, and is emptied at the
        end; its own gradient_accumulation_steps stays 1, the config's counts.
    class_names : one per class; the index is the label.
    initial : a classifier of the same kind whose weights are started from; None draws new ones from the seed.
    checkpoint_dir : where checkpoints go every `checkpointing_steps` steps; None writes none.
    resume : "latest" (of checkpoint_dir; none there starts anew), a checkpoint folder, or None to start anew.
    log : called with each record of the history and its step, on the main process alone.
    on_checkpoint : called on the main process when a checkpoint is written.
    progress : whether the main process shows a progress bar.

    Raises
    ------
    InputError : for options or tiles that don't fit, soft labels that are missing, a checkpoint of another run, or a
        loss that isn't finite.
    """
    import numpy as np
    import torch
    from accelerate.utils import broadcast
    from torch.nn import functional as F
    from tqdm.auto import tqdm

    from histodistill.training.data.pixels import to_model_input
    from histodistill.training.engine.augment import AugmentationPlan, apply_plan, draw_plan
    from histodistill.training.engine.checkpoints import find_checkpoint, load_checkpoint, save_checkpoint
    from histodistill.training.engine.losses import at_temperature
    from histodistill.training.engine.mixing import draw_mixing, mix, mix_images
    from histodistill.training.engine.scoring import score_probabilities
    from histodistill.training.engine.steps import (
        batch_indices,
        class_weights,
        cosine_learning_rate,
        process_slice,
        set_learning_rate,
        step_generator,
    )

    started = time.perf_counter()
    rank, num_processes = accelerator.process_index, accelerator.num_processes
    batch_size = fit_batch_size(config, len(train), num_processes)
    num_classes = len(class_names)
    if validation is not None and len(validation) > config.validation_tiles:
        chosen = np.random.default_rng(config.seed).permutation(len(validation))[: config.validation_tiles]
        validation = validation.subset(np.sort(chosen))

    size = train.images.shape[1]
    if config.max_shift >= size:
        raise InputError(
            f"max_shift={config.max_shift} is out of range: it must be below the {size} px of the tiles, whose "
            "reflection comes in at the edge; give less"
        )
    if config.soft_label_weight > 0 and train.soft_labels is None:
        raise InputError(
            f"soft_label_weight={config.soft_label_weight} needs soft labels, and the training tiles have none: train "
            "on a dataset with a column soft_label, or give 0"
        )

    # Model and optimizer. `best` holds the weights to keep; `candidate` is what gets validated. Both are plain float32
    # models, so that the scores are those that the saved model gives, whatever the training's precision. `average` is
    # the moving average of the weights.
    model = build_classifier(config, train.images.shape[1], class_names).to(accelerator.device)
    if initial is not None:
        model.load_state_dict(initial.state_dict())
    best, candidate = copy.deepcopy(model).eval(), copy.deepcopy(model).eval()
    average = copy.deepcopy(model) if config.ema_decay > 0 else None
    decayed = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0}],
        lr=config.learning_rate,
        fused=accelerator.device.type in ("cpu", "cuda"),
    )
    model, optimizer = accelerator.prepare(model, optimizer)
    unwrapped = accelerator.unwrap_model(model)

    def modules() -> dict[str, torch.nn.Module]:
        # `best` and `candidate` change places, so these are looked up when they are needed.
        always = {"classifier": unwrapped, "best": best}
        return always if average is None else {**always, "average": average}

    # Resume.
    settings = {**dataclasses.asdict(config), "class_names": list(class_names), "num_train": len(train)}
    first_step, best_step, best_scores = 0, config.max_train_steps, None
    history: list[dict[str, Any]] = []
    running_loss = torch.zeros((), device=accelerator.device)
    checkpoint = None
    if resume != "latest" or checkpoint_dir is not None:
        checkpoint = find_checkpoint(checkpoint_dir or ".", resume)
    if checkpoint is not None:
        state = load_checkpoint(checkpoint, settings, modules(), optimizer, accelerator.scaler)
        first_step, best_step, best_scores = state["step"], state["best_step"], state["validation"]
        history = state["history"]
        running_loss += state["running_loss"]

    def augmented(indices: np.ndarray, plan: AugmentationPlan) -> torch.Tensor:
        images = to_model_input(train.images[indices]).to(accelerator.device, non_blocking=True)
        return apply_plan(images, plan)

    def evaluate(model: Classifier) -> dict[str, Any] | None:
        if validation is None:
            return None
        return score_probabilities(predict_shared(model, validation.images, accelerator), validation.labels)

    # Train.
    weights = class_weights(train.labels, config.class_balance)
    warmup_steps = math.ceil(config.warmup * config.max_train_steps)
    accumulation = config.gradient_accumulation_steps
    labels, soft_labels = torch.from_numpy(train.labels), None
    if config.soft_label_weight > 0:
        soft_labels = at_temperature(torch.from_numpy(train.soft_labels), config.temperature)
    bar = tqdm(
        total=config.max_train_steps,
        initial=first_step,
        desc=config.architecture,
        unit="step",
        disable=not (progress and accelerator.is_local_main_process),
    )
    model.train()
    for step in range(first_step, config.max_train_steps):
        learning_rate = cosine_learning_rate(step, config.max_train_steps, warmup_steps, config.learning_rate)
        set_learning_rate(optimizer, learning_rate)
        for micro_step in range(accumulation):
            # The whole batch's indices and augmentations are drawn everywhere; each process works on its share.
            position = step * accumulation + micro_step
            indices = batch_indices(len(train), batch_size, position, config.seed, weights)
            plan = draw_plan(
                batch_size,
                step_generator(config.seed, position),
                max_shift=config.max_shift,
                stain_strength=config.stain_strength,
                max_blur=config.max_blur,
            )
            mixing = draw_mixing(
                batch_size,
                train.images.shape[1],
                step_generator(config.seed, position, stream=1),
                mixup=config.mixup,
                cutmix=config.cutmix,
            )
            share = process_slice(indices, rank, num_processes)
            images = augmented(share, process_slice(plan, rank, num_processes))
            targets, soft_targets = labels[share], None if soft_labels is None else soft_labels[share]
            if mixing is not None:
                mixing = process_slice(mixing, rank, num_processes)
                partners = indices[mixing.partners.numpy()]
                images = mix_images(images, augmented(partners, plan[mixing.partners]), mixing)
                targets = mix(F.one_hot(targets, num_classes), F.one_hot(labels[partners], num_classes), mixing)
                if soft_labels is not None:
                    soft_targets = mix(soft_targets, soft_labels[partners], mixing)
            targets = targets.to(accelerator.device, non_blocking=True)
            if soft_targets is not None:
                soft_targets = soft_targets.to(accelerator.device, non_blocking=True)
            # Gradients need to travel between processes only once per step.
            is_last = micro_step == accumulation - 1
            with contextlib.nullcontext() if is_last else accelerator.no_sync(model):
                loss = batch_loss(config, model(images).logits, targets, soft_targets) / accumulation
                # Shares can differ by one tile; processes are averaged with equal weight.
                loss = loss * (len(share) * num_processes / batch_size)
                accelerator.backward(loss)
            running_loss += loss.detach()
        accelerator.clip_grad_norm_(model.parameters(), config.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
        if average is not None:
            update_average(average, unwrapped, config.ema_decay, step)
        bar.update()

        done = step + 1
        if done % config.validation_steps == 0 or done == config.max_train_steps:
            steps_since = done - (history[-1]["step"] if history else 0)
            mean_loss = accelerator.reduce(running_loss, reduction="mean").item() / steps_since
            if not math.isfinite(mean_loss):
                raise InputError(f"the loss is {mean_loss} at step {done}: lower {param('learning_rate')}")
            running_loss = torch.zeros_like(running_loss)
            candidate.load_state_dict((unwrapped if average is None else average).state_dict())
            if num_processes > 1:
                # Each process has its own running statistics (batch norm); the saved ones are the main process's.
                for buffer in candidate.buffers():
                    broadcast(buffer)
            scores = evaluate(candidate)
            record = {"step": done, "loss": mean_loss, "learning_rate": learning_rate}
            if scores is not None:
                record |= {"validation_accuracy": scores["accuracy"], "validation_auc": scores["auc"]}
                bar.set_postfix(accuracy=f"{scores['accuracy']:.3f}")
            history.append(record)
            if log is not None and accelerator.is_main_process:
                log(record, done)
            if scores is None or best_scores is None or _rank(scores) > _rank(best_scores):
                best, candidate = candidate, best
                best_step, best_scores = done, scores
        if checkpoint_dir is not None and done % checkpointing_steps == 0 and done < config.max_train_steps:
            state = {
                "best_step": best_step,
                "validation": best_scores,
                "history": history,
                "running_loss": accelerator.reduce(running_loss.clone(), reduction="mean").item(),
            }
            if accelerator.is_main_process:
                save_checkpoint(checkpoint_dir, done, settings, modules(), optimizer, state, accelerator.scaler)
                if on_checkpoint is not None:
                    on_checkpoint()
    bar.close()
    accelerator.free_memory()
    return TrainedClassifier(best, history, best_step, best_scores, time.perf_counter() - started)


def build_classifier(config: ClassifierConfig, image_size: int, class_names: Sequence[str]) -> Classifier:
    """A new classifier whose weights are decided by `config.seed`; global random numbers are left as they were.

    Raises InputError for an architecture that is unknown, or doesn't suit the sizes.
    """
    import torch

    from histodistill.training.models.classifiers import Classifier

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        return Classifier(
            architecture=config.architecture,
            num_classes=len(class_names),
            image_size=image_size,
            class_names=class_names,
            width=config.width,
            normalize_stain=config.normalize_stain,
        )


def batch_loss(
    config: ClassifierConfig, logits: torch.Tensor, labels: torch.Tensor, soft_labels: torch.Tensor | None
) -> torch.Tensor:
    """The loss of a batch, a float32 scalar.

    `logits` is N×C; `labels` is int64 N, or float N×C where tiles were mixed; `soft_labels` is float N×C at the
    config's temperature, or None where the config gives them no weight.
    """
    from torch.nn import functional as F

    from histodistill.training.engine.losses import boundary_contrastive_loss, soft_cross_entropy

    if config.loss != "ce":
        contrastive = boundary_contrastive_loss(logits, labels, config.position, config.margin)
        if config.loss == "contrastive":
            return contrastive
    if soft_labels is None:
        cross_entropy = F.cross_entropy(logits.float(), labels)
    else:
        weight = config.soft_label_weight
        cross_entropy = soft_cross_entropy(logits, labels, soft_labels, weight, config.temperature)
    return cross_entropy + config.alpha * contrastive if config.loss == "joint" else cross_entropy


def update_average(average: Classifier, model: Classifier, decay: float, step: int) -> None:
    """Moves `average` towards `model` after step `step` (from 0), buffers included.

    The decay rises from 0.1 to `decay` as (1 + step) / (10 + step), so that the first weights are soon forgotten.
    """
    import torch

    share = 1 - min(decay, (1 + step) / (10 + step))
    with torch.no_grad():
        pairs = zip(average.state_dict().values(), model.state_dict().values(), strict=True)
        for mine, theirs in pairs:
            if mine.is_floating_point():
                mine.lerp_(theirs.to(mine.dtype), share)
            else:
                mine.copy_(theirs)


def fit_batch_size(config: ClassifierConfig, num_tiles: int, num_processes: int) -> int:
    """The config's batch size, or the number of training tiles where that's smaller.

    Raises InputError when there wouldn't be a tile for every process.
    """
    batch_size = min(config.batch_size, num_tiles)
    if batch_size < num_processes:
        raise InputError(
            f"a batch of {batch_size} tiles can't be split over {num_processes} processes: use fewer processes, or a "
            f"larger {param('batch_size')} and more tiles"
        )
    return batch_size


def _rank(scores: dict[str, Any]) -> tuple[float, float]:
    return scores["accuracy"], -1.0 if scores["auc"] is None else scores["auc"]


def predict_shared(model: Classifier, images, accelerator: Accelerator):
    """`scoring.predict_proba` with the work split over the processes; every process gets all probabilities, N×C."""
    import numpy as np
    import torch

    from histodistill.training.models.prediction import predict_proba

    num_processes = accelerator.num_processes
    if num_processes == 1:
        return predict_proba(model, images)
    # Shares must be of one length to be gathered: the last image fills up, and is cut off again.
    share = math.ceil(len(images) / num_processes)
    positions = np.minimum(np.arange(share) * num_processes + accelerator.process_index, len(images) - 1)
    probabilities = torch.from_numpy(predict_proba(model, images[positions])).to(accelerator.device)
    gathered = accelerator.gather(probabilities).cpu().numpy().reshape(num_processes, share, -1)
    return gathered.transpose(1, 0, 2).reshape(num_processes * share, -1)[: len(images)]


def main(args: argparse.Namespace) -> None:
    """Loads the tiles, trains, scores the best weights once on the test split, and saves."""
    from importlib.metadata import version

    from histodistill.training.data.sources import load_tiles
    from histodistill.training.data.tiles import sample_per_class
    from histodistill.training.engine.accelerator import make_accelerator
    from histodistill.training.engine.checkpoints import find_checkpoint
    from histodistill.training.engine.scoring import score_probabilities
    from histodistill.training.running.files import write_json
    from histodistill.training.running.stages import Stage

    # What can be wrong is found out before anything is written.
    config = make_config(args)
    accelerator = make_accelerator(args.mixed_precision, report_to=args.report_to, project_dir=args.output)
    # A set that is only trained on is used whole; one that validates, too, must not do so with tiles it trains on.
    source = load_tiles(
        args.data,
        image_size=args.image_size,
        hold_out_validation=args.eval_data in (None, args.data),
        audit_share=args.audit_share,
    )
    real = source if args.eval_data is None else load_tiles(args.eval_data, image_size=source.image_size)
    if real.class_names != source.class_names:
        raise InputError(
            f"{param('data')} has the classes {', '.join(source.class_names)} and {param('eval_data')} "
            f"{', '.join(real.class_names)}: they must be the same, in the same order"
        )
    for split in ("validation", "test"):
        if split not in real.splits:
            option = "--eval-data" if args.eval_data else "--data"
            raise InputError(
                f"{option}={real.name} has no {split} split: give real tiles with one as {param('eval_data')}"
            )
    train = source.split("train")
    if args.n_per_class is not None:
        train = train.subset(sample_per_class(train.labels, args.n_per_class, args.seed))

    build_classifier(config, source.image_size, source.class_names)
    fit_batch_size(config, len(train), accelerator.num_processes)
    find_checkpoint(args.output / "checkpoints", args.resume)

    settings = {
        **result_settings(args),
        "stage": "classifier",
        "data": source.fingerprint(),
        "eval_data": real.fingerprint(),
    }
    stage = Stage(args.output, settings)
    # Nobody may look at the folder after somebody began to write in it.
    accelerator.wait_for_everyone()
    if stage.complete:
        accelerator.print(f"classifier: {args.output} is already finished")
        return
    if accelerator.is_main_process:
        stage.begin()
    if args.report_to:
        accelerator.init_trackers("histodistill-classifier", config=_scalars(settings))

    trained = train_classifier(
        config,
        train,
        real.split("validation"),
        accelerator,
        class_names=source.class_names,
        checkpoint_dir=args.output / "checkpoints",
        checkpointing_steps=args.checkpointing_steps,
        resume=args.resume,
        log=(lambda record, step: accelerator.log(_scalars(record), step=step)) if args.report_to else None,
        on_checkpoint=stage.save_progress,
    )
    # The only look at the test tiles.
    test_tiles = real.split("test")
    test = score_probabilities(predict_shared(trained.model, test_tiles.images, accelerator), test_tiles.labels)

    if accelerator.is_main_process:
        trained.model.save_pretrained(args.output)
        results = {
            "test": test,
            "validation": trained.validation,
            "best_step": trained.best_step,
            "history": trained.history,
            "class_names": source.class_names,
            "data": {"train": source.name, "num_train": len(train), "eval": real.name, "num_test": len(test_tiles)},
            "settings": settings,
            "config": dataclasses.asdict(config),
            "seed": args.seed,
            "steps": args.max_train_steps,
            "seconds": round(trained.seconds, 1),
            "num_processes": accelerator.num_processes,
            "device": str(accelerator.device),
            "versions": {name: version(name) for name in ("histodistill", "torch", "accelerate", "evaluate")},
        }
        write_json(args.output / "results.json", results)
        stage.finish(test_accuracy=test["accuracy"], num_processes=accelerator.num_processes)
        auc = "undefined" if test["auc"] is None else f"{test['auc']:.4f}"
        accelerator.print(
            f"classifier: test ACC {test['accuracy']:.4f}, AUC {auc}, F1 {test['f1']:.4f} "
            f"(best step {trained.best_step} of {args.max_train_steps}), saved to {args.output}"
        )
    accelerator.end_training()


def make_config(args: argparse.Namespace) -> ClassifierConfig:
    """The options of the command line that a `ClassifierConfig` has. Raises InputError as it does."""
    from histodistill.training.models.architectures import ARCHITECTURES

    if args.architecture not in ARCHITECTURES:
        choices = ", ".join(ARCHITECTURES)
        raise InputError(f"{param('architecture')}={args.architecture} is unknown: it must be one of {choices}")
    if args.n_per_class is not None and args.n_per_class < 1:
        raise InputError(f"{param('n_per_class')}={args.n_per_class} is out of range: it must be at least 1")
    names = [field.name for field in dataclasses.fields(ClassifierConfig)]
    return ClassifierConfig(**{name: getattr(args, name) for name in names})


def _scalars(values: dict[str, Any]) -> dict[str, Any]:
    # Trackers take nothing else.
    return {name: value for name, value in values.items() if isinstance(value, bool | int | float | str)}


if __name__ == "__main__":
    run_script(parse_args, main)
