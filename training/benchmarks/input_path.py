"""Measures how fast trainings step through few tiles and through many.

    python -m histodistill.training.benchmarks.input_path --tiles 10000 1000000

The tiles are random bytes in a memory-mapped file of a temporary folder (`TMPDIR` says where), 2.4 GB for a million of
28 px, with labels of nine classes. A smaller set is the first part of it, so all is read from one file. For each of
the three trainings, with the models of a preset, two things are measured:

    batches   the input path alone: tiles drawn, read, brought to the device and augmented; no model
    steps     whole optimizer steps, without validations and checkpoints

The sets take turns, a round of some batches or steps each, and each in turn is the first. A ratio is the median over
rounds of the speed with so many tiles over that with the fewest, so that what else the machine does hits both.

The file has just been written, and each of its pages is touched before the clock starts. Where it fits into the memory
that the system has to spare, the program is measured, not the disk. What is done once is not in the figures: the order
of an epoch or the sum of all weights, what the first steps allocate, and the system's work when a page is touched for
the first time (about a second for 2.4 GB).
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator, Mapping
from itertools import count
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import TYPE_CHECKING, Any, TypeVar

from histodistill.training.running.options import StepConfig, StepParser, config, option, run_script
from histodistill.training.running.precision import PRECISION_CHOICES, PRECISION_HELP, resolve_precision
from histodistill.training.running.presets import PRESET_NAMES, load_preset


if TYPE_CHECKING:
    import torch

    from histodistill.training.data.tiles import TileSource
    from histodistill.training.engine.classifier_training import ClassifierTraining
    from histodistill.training.engine.loop import GenerativeTraining

    _Training = GenerativeTraining | ClassifierTraining
    _Make = Callable[["InputPathConfig", TileSource, Path], _Training]

# Makes the next batch or step.
_Stepper = Callable[[], object]
# What is compared.
_Arm = TypeVar("_Arm")

_NUM_CLASSES = 9
# Validation tiles, which no step looks at.
_NUM_VALIDATION = 16
# Tiles that are drawn and written at a time.
_CHUNK = 10_000
# Batches of a round for each of its steps, since they take so much less time.
_BATCHES_PER_STEP = 10


@config
class TurnsConfig(StepConfig):
    """Options of a measurement of trainings that take turns."""

    image_size: int = option("side of the tiles in pixels", default=28, at_least=16)
    preset: str = option(f"{', '.join(PRESET_NAMES)} or a .toml file: whose trainings are meant", default="cpu")
    rounds: int = option("rounds; there is one more before the clock starts", default=10, at_least=1)
    mixed_precision: str = option(PRECISION_HELP, default="auto", choices=PRECISION_CHOICES, resolve=resolve_precision)
    seed: int = option("seed of tiles, labels and trainings", default=0, at_least=0)
    output: Path | None = option("JSON file with all figures", default=None, setting=False)

    def check(self) -> None:
        """Checks that there is such a preset."""
        load_preset(self.preset)


@config
class InputPathConfig(TurnsConfig):
    """Options of `input_path`."""

    tiles: tuple[int, ...] = option("numbers of tiles; the least is compared with", default=(10_000, 1_000_000))
    steps: int = option(f"steps in a round, and {_BATCHES_PER_STEP} times as many batches", default=10, at_least=1)


def make_parser() -> StepParser[InputPathConfig]:
    """The parser of the command line."""
    return StepParser(
        InputPathConfig, prog="python -m histodistill.training.benchmarks.input_path", description=__doc__
    )


def run(config: InputPathConfig) -> dict[str, Any]:
    """Makes the tiles, steps through them, and prints a table.

    Returns:
        The figures, which the JSON file holds, too.

    Raises:
        InputError: If the preset's models cannot halve tiles of the size.
    """
    import torch

    from histodistill.training.engine.accelerator import make_accelerator

    device = make_accelerator("no").device
    print(f"{device}, {torch.get_num_threads()} threads, tiles of {config.image_size} px")
    print(f"{'':<24}{'tiles':>12}{'per second':>14}{'ratio':>8}", flush=True)
    figures = {}
    with tempfile.TemporaryDirectory(prefix="histodistill-input-path-") as name:
        folder = Path(name)
        sources = make_sources(config, folder / "tiles.npy")
        for kind, make in MAKERS.items():
            trainings = {tiles: make(config, source, folder) for tiles, source in sources.items()}
            for what, stepper, steps in (
                ("batches", batches_of, config.steps * _BATCHES_PER_STEP),
                ("steps", steps_of, config.steps),
            ):
                rows = take_turns(trainings, stepper, steps, config.rounds, device)
                figures[f"{kind}, {what}"] = rows
                for tiles, row in rows.items():
                    line = f"{kind + ', ' + what:<24}{tiles:>12,}{row['per_second']:>14.1f}{row['ratio']:>8.3f}"
                    print(line, flush=True)
    return write_figures(config, device, figures)


def write_figures(config: TurnsConfig, device: torch.device, figures: dict[str, Any]) -> dict[str, Any]:
    """All figures with what they were measured with, as the JSON file then holds them, too."""
    import torch

    from histodistill.training.running.files import write_json

    result = {
        "settings": config.settings(),
        "device": str(device),
        "threads": torch.get_num_threads(),
        "figures": figures,
    }
    if config.output is not None:
        write_json(config.output, result)
    return result


def make_sources(config: InputPathConfig, path: Path) -> dict[int, TileSource]:
    """Writes the tiles, and makes a source of each number of them.

    Args:
        config: Numbers, size and seed.
        path: The file that holds all tiles; it must stay there.

    Returns:
        Sources by the number of their training tiles, the least first.
    """
    import numpy as np

    from histodistill.selection.image_rows import batches, rows_of
    from histodistill.selection.streams import stream
    from histodistill.training.data.names import numbered_classes
    from histodistill.training.data.tiles import Tiles, TileSource

    numbers = sorted(set(config.tiles))
    shape = (numbers[-1], config.image_size, config.image_size, 3)
    rng = stream("tiles of the speed of the input path", config.seed)
    written = np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=shape)
    for start in range(0, len(written), _CHUNK):
        part = written[start : start + _CHUNK]
        part[:] = rng.integers(256, size=part.shape, dtype=np.uint8)
    written.flush()
    images = np.load(path, mmap_mode="r", allow_pickle=False)
    for batch in batches(images):
        batch.max()  # touches its pages
    labels = rng.integers(_NUM_CLASSES, size=len(images))

    def tiles_of(number: int) -> Tiles:
        return Tiles(rows_of(images, np.arange(number)), labels[:number])

    names = numbered_classes(_NUM_CLASSES)
    validation = tiles_of(min(_NUM_VALIDATION, numbers[0]))
    return {
        number: TileSource(
            "random bytes", names, {"train": tiles_of(number), "validation": validation}, config.image_size
        )
        for number in numbers
    }


def _options(config: InputPathConfig, section: str) -> dict[str, Any]:
    """The options of a preset's training, long enough for all batches that are measured."""
    steps = (config.rounds + 1) * config.steps * _BATCHES_PER_STEP
    changes = {"max_train_steps": steps, "seed": config.seed, "validation_tiles": _NUM_VALIDATION}
    return load_preset(config.preset).for_image_size(config.image_size).with_options(section, changes).options(section)


def _autoencoder(config: InputPathConfig, source: TileSource, folder: Path) -> GenerativeTraining:
    from histodistill.training.engine.accelerator import make_accelerator
    from histodistill.training.train_autoencoder import TrainAutoencoderConfig, make_training

    options = _options(config, "autoencoder") | {"mixed_precision": config.mixed_precision}
    recipe = TrainAutoencoderConfig(data=source.name, output=folder, **options)
    training = make_training(recipe, source, make_accelerator(config.mixed_precision), None)
    training.autoencoder.save_pretrained(folder / "autoencoder")  # what the denoiser's training loads
    return training


def _diffusion(config: InputPathConfig, source: TileSource, folder: Path) -> GenerativeTraining:
    from histodistill.training.engine.accelerator import make_accelerator
    from histodistill.training.train_diffusion import TrainDiffusionConfig, make_training

    options = _options(config, "diffusion") | {"mixed_precision": config.mixed_precision}
    recipe = TrainDiffusionConfig(data=source.name, autoencoder=folder / "autoencoder", output=folder, **options)
    return make_training(recipe, source, make_accelerator(config.mixed_precision), None)


def _classifier(config: InputPathConfig, source: TileSource, folder: Path) -> ClassifierTraining:
    from histodistill.training.engine.accelerator import make_accelerator
    from histodistill.training.engine.classifier_config import ClassifierConfig
    from histodistill.training.engine.classifier_training import ClassifierTraining

    recipe = ClassifierConfig(**_options(config, "teacher"))
    accelerator = make_accelerator(config.mixed_precision)
    return ClassifierTraining(recipe, source.split("train"), None, accelerator, source.class_names)


#: Makes each training, given the options, the tiles and a folder; the denoiser's takes the autoencoder from there.
MAKERS: dict[str, _Make] = {"autoencoder": _autoencoder, "diffusion": _diffusion, "classifier": _classifier}


@contextlib.contextmanager
def batches_of(training: _Training) -> Iterator[_Stepper]:
    """What makes the next batch of a training, all that the model takes, on the device."""
    from histodistill.training.data.pixels import to_device
    from histodistill.training.engine.classifier_training import ClassifierTraining
    from histodistill.training.engine.loop import GenerativeTraining, drawn_batches

    if isinstance(training, ClassifierTraining):
        with training.drawn_batches(0) as drawn:
            yield lambda: training.batches.augmented(next(drawn))
        return
    with drawn_batches(training) as batches:

        def make_batch() -> list[torch.Tensor]:
            batch = next(batches)
            inputs = GenerativeTraining.make_inputs(training, batch.read, batch.views)  # images, of all trainings
            return [inputs, *(to_device(part, inputs.device) for part in batch.drawn)]

        yield make_batch


@contextlib.contextmanager
def steps_of(training: _Training) -> Iterator[_Stepper]:
    """What makes the next optimizer step of a training, from the first one on."""
    from histodistill.training.engine.classifier_training import ClassifierTraining
    from histodistill.training.engine.loop import plain_steps

    numbers = count()
    if isinstance(training, ClassifierTraining):
        with training.drawn_batches(0) as drawn:
            yield lambda: training.make_step(next(numbers), 1e-3, drawn)
        return
    model, optimizer = training.accelerator.prepare(training.model, training.optimizer)
    with plain_steps(training, model, optimizer) as make_step:

        def step() -> None:
            make_step(next(numbers))
            training.after_step()

        yield step


def take_turns(
    trainings: Mapping[_Arm, Any],
    stepper: Callable[[Any], contextlib.AbstractContextManager[_Stepper]],
    steps: int,
    rounds: int,
    device: torch.device,
) -> dict[_Arm, dict[str, float]]:
    """Measures trainings in turns: see `alternate`.

    Args:
        trainings: What is compared.
        stepper: Opens what makes the next batch or step of one, such as `steps_of`.
        steps, rounds, device: See `alternate`.
    """
    with contextlib.ExitStack() as stack:
        steppers = {arm: stack.enter_context(stepper(training)) for arm, training in trainings.items()}
        return alternate(steppers, steps, rounds, device)


def alternate(
    steppers: Mapping[_Arm, _Stepper], steps: int, rounds: int, device: torch.device
) -> dict[_Arm, dict[str, float]]:
    """Measures what takes turns.

    Args:
        steppers: What makes a step, by what is compared, such as the number of tiles.
        steps: Steps in a round.
        rounds: Rounds of each that are measured, after one that is not.
        device: Where the work is done.

    Returns:
        By the same: per_second, the median of the rounds, and ratio, the median of the speed over that of the first
        one in the same round.
    """
    numbers = list(steppers)
    seconds: dict[_Arm, list[float]] = {number: [] for number in numbers}
    for turn in range(rounds + 1):
        first = turn % len(numbers)
        for number in (*numbers[first:], *numbers[:first]):
            start = perf_counter()
            for _ in range(steps):
                steppers[number]()
            _wait_for(device)
            if turn:
                seconds[number].append((perf_counter() - start) / steps)
    return {
        number: {
            "per_second": 1 / median(seconds[number]),
            "ratio": median(few / many for few, many in zip(seconds[numbers[0]], seconds[number], strict=True)),
        }
        for number in numbers
    }


def _wait_for(device: torch.device) -> None:
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize(device)


if __name__ == "__main__":
    run_script(make_parser, run)
