"""Times a few steps of the models that a distillation will train, on its own tiles, and uses them a few times.

    python -m histodistill.training.end_to_end.measuring REQUEST ANSWER

`measure_apart` starts it, as a process of its own: nothing that it draws, loads or changes is seen by the steps, and
its memory is that of the largest of them. REQUEST is a JSON file with the command line of each step, and when it was
asked, by the clock that never jumps.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from histodistill.training.end_to_end import work
from histodistill.training.end_to_end.steps import StageCall
from histodistill.training.models.architectures import is_probe
from histodistill.training.running.errors import InputError
from histodistill.training.running.files import read_json, write_json
from histodistill.training.running.memory import (
    forget_peak,
    give_back_freed_memory,
    held_memory,
    keep_freed_memory,
    peak_memory,
)
from histodistill.training.running.notes import STEP_OF_DISTILL
from histodistill.training.running.timing import MOST_CALLS, seconds_of


if TYPE_CHECKING:
    import numpy as np
    import torch

    from histodistill.training.data.tiles import TileSource
    from histodistill.training.engine.classifier_config import ClassifierConfig

# On a CPU, where a tile takes nearly as long in a small batch, batches have no more pixels of tiles, and positions of
# latents, than these; on a GPU they are those of the steps.
_PIXELS, _POSITIONS = 2**18, 2**13
# Real tiles that are made ready to be compared with, by their pixels, and images that are compared with them.
_INDEXED_PIXELS, _COMPARED = 2**20, 64
# The search among so many tiles takes twice as long as among none; among more than the second number it is another.
_DOUBLING, _EXHAUSTIVE = 5_500, 7_000
# Of each weight that is trained, beside itself: its gradient, and the two moments of AdamW.
_GRADIENTS_AND_MOMENTS = 3


@dataclass(frozen=True)
class Measured:
    """What was found.

    Attributes:
        unit_seconds: Kind of work (see `work`) → seconds of a unit.
        memory: Bytes that a process needs which does the same with as much in a batch as the steps have.
        device_memory: Bytes that it held of the GPU's memory at most; None without one.
        latent_shape: (C, h, w) of a tile's latent; None where that was not looked at.
    """

    unit_seconds: dict[str, float]
    memory: int
    device_memory: int | None = None
    latent_shape: Sequence[int] | None = None


def measure_apart(plan: Sequence[StageCall]) -> Measured | str:
    """`measure` in a process of its own, which takes some ten to thirty seconds.

    Args:
        plan: The steps of a distillation.

    Returns:
        What was found, or in words why there is nothing.
    """
    with tempfile.TemporaryDirectory() as folder:
        request, answer = Path(folder) / "request.json", Path(folder) / "answer.json"
        asked = {"steps": {stage.folder: [stage.module, stage.argv] for stage in plan}, "asked": time.monotonic()}
        write_json(request, asked)
        command = [sys.executable, "-m", __name__, str(request), str(answer)]
        ended = subprocess.run(command, env={**os.environ, **STEP_OF_DISTILL}, capture_output=True, check=False)
        if ended.returncode == 0 and answer.is_file():
            return Measured(**read_json(answer))
    said = ended.stderr.decode(errors="replace").strip().splitlines()
    return said[-1] if said else f"it ended with code {ended.returncode}"


def measure(configs: Mapping[str, Any], start: float | None = None) -> Measured:
    """Times the work of all steps.

    Args:
        configs: Folder of a step → its options.
        start: Seconds that this process took to start; None leaves that out.

    Raises:
        InputError: For tiles or options that a step would refuse, too.
    """
    import torch

    from histodistill.training.data.sources import load_tiles
    from histodistill.training.models.devices import best_device

    options = configs["autoencoder"]
    begun = time.perf_counter()
    source = load_tiles(
        options.data, image_size=options.image_size, audit_share=options.audit_share, **options.source_options()
    )
    loaded = time.perf_counter() - begun
    found: dict[str, float] = {} if start is None else {work.START: start + loaded}
    memory = _Memory()
    with tempfile.TemporaryDirectory() as folder, torch.random.fork_rng():
        found |= _measure_autoencoder(options, source, Path(folder), memory)
        of_denoiser, latent_shape = _measure_denoiser(configs, source, Path(folder), memory)
        found |= of_denoiser
        for recipe in _recipes(configs):
            found |= _measure_classifier(recipe, source, configs["teacher"].mixed_precision, memory)
        with memory.of():
            found |= _measure_search(source)
        found |= _measure_embedders(configs, source)
    on_gpu = best_device().type == "cuda"
    return Measured(found, memory.most, torch.cuda.max_memory_reserved() if on_gpu else None, latent_shape)


class _Memory:
    """How much memory the steps need, found with smaller batches than they have.

    Attributes:
        most: Bytes of the largest of what was measured.
    """

    def __init__(self) -> None:
        self.most = 0

    @contextlib.contextmanager
    def of(self, larger: float = 1.0, weights: int = 0) -> Iterator[None]:
        """Within it is what is measured.

        Args:
            larger: How many times as large the batches of the step are.
            weights: Bytes of what is trained, whose gradients and moments do not grow with a batch.
        """
        give_back_freed_memory()
        begins_anew = forget_peak()
        before = held_memory()
        yield
        peak = peak_memory() or 0
        if begins_anew:
            fixed = _GRADIENTS_AND_MOMENTS * weights
            peak += round((larger - 1) * max(0, peak - before - fixed))
        self.most = max(self.most, peak)


def _bytes_of(model: torch.nn.Module) -> int:
    return sum(weight.numel() * weight.element_size() for weight in model.parameters())


def _measure_autoencoder(options: Any, source: TileSource, folder: Path, memory: _Memory) -> dict[str, float]:
    """Its training, encoding and decoding; leaves it, as it then is, in the folder."""
    import torch

    from histodistill.training import train_autoencoder
    from histodistill.training.data.pixels import to_model_input
    from histodistill.training.engine.accelerator import make_accelerator
    from histodistill.training.engine.loop import plain_steps
    from histodistill.training.models.batch_sizes import usual_batch_size
    from histodistill.training.models.embedders import load_embedder
    from histodistill.training.models.encoder_names import SEARCHED_SIDE
    from histodistill.training.models.latents import encode_images
    from histodistill.training.models.recomputing import recompute_activations

    accelerator = make_accelerator(options.mixed_precision)
    origin = train_autoencoder.find_origin(options, source)
    found = {}
    if options.is_taken:
        training = train_autoencoder.make_training(options, source, accelerator, None, origin)
        training.autoencoder.to(accelerator.device)
    else:
        crop = work.fitted_autoencoder(options, source.image_size).crop_size
        few = dataclasses.replace(
            options, train_pixels=None, max_train_steps=MOST_CALLS, crop_size=crop, validation_tiles=1
        )
        training = train_autoencoder.make_training(few, source, accelerator, None, origin)
        if options.gradient_checkpointing:
            recompute_activations(training.trained)
        model, optimizer = accelerator.prepare(training.model, training.optimizer)
        with memory.of(), plain_steps(training, model, optimizer) as make_step:
            steps = iter(range(MOST_CALLS))
            step = seconds_of(lambda: make_step(next(steps)))
        found[work.TRAIN_AUTOENCODER] = step / (few.batch_size * few.gradient_accumulation_steps)
    autoencoder = training.autoencoder.eval()
    tiles = _some_tiles(source, accelerator.device)
    images = to_model_input(tiles, accelerator.device)
    larger = usual_batch_size(source.image_size) / len(images)
    with torch.no_grad(), memory.of(larger):
        latents = encode_images(autoencoder, images)
        encoding = seconds_of(lambda: encode_images(autoencoder, images))
        decoding = seconds_of(lambda: autoencoder.decode(latents).sample)
    autoencoder.save_pretrained(folder)
    embed = load_embedder(folder, SEARCHED_SIDE)
    embedding = seconds_of(lambda: embed(tiles))
    per_tile = {work.ENCODE: encoding, work.DECODE: decoding, work.EMBED_LATENTS: embedding}
    return found | {kind: seconds / len(images) for kind, seconds in per_tile.items()}


def _measure_denoiser(
    configs: Mapping[str, Any], source: TileSource, autoencoder: Path, memory: _Memory
) -> tuple[dict[str, float], tuple[int, int, int]]:
    """The denoiser's training, a look at it, and the images of a pool; and the shape of what it is trained on."""
    import numpy as np
    import torch
    from PIL import Image

    from histodistill.training import train_diffusion
    from histodistill.training.data.images import png_bytes
    from histodistill.training.engine.accelerator import make_accelerator
    from histodistill.training.engine.flow import draw_step
    from histodistill.training.engine.pool import generate_images
    from histodistill.training.generate import CALL_OPTIONS
    from histodistill.training.models.recomputing import recompute_activations

    options = dataclasses.replace(configs["pipeline"], autoencoder=autoencoder, validation_tiles=1)
    accelerator = make_accelerator(options.mixed_precision)
    training = train_diffusion.make_training(options, source, accelerator, None)
    model, optimizer = accelerator.prepare(training.model, training.optimizer)
    count = options.batch_size
    if accelerator.device.type == "cpu":
        count = min(count, max(1, _POSITIONS // training.latent_shape[1] ** 2))
    class_ids = torch.arange(count) % training.num_classes
    generator = torch.Generator().manual_seed(0)
    drawn = draw_step(generator, class_ids, training.latent_shape, training.null_class, options.class_dropout)
    noise, levels, class_ids = (part.to(accelerator.device) for part in drawn)
    latents = torch.randn_like(noise).contiguous(memory_format=training.layout)

    def learn() -> None:
        accelerator.backward(training.loss(model, latents, noise, levels, class_ids))

    def change() -> None:
        accelerator.clip_grad_norm_(model.parameters(), options.max_grad_norm)
        optimizer.step()
        training.after_step()

    if options.gradient_checkpointing:
        recompute_activations(training.trained)
    with memory.of(options.batch_size / count, _bytes_of(training.denoiser)):
        learning, changing = seconds_of(learn), seconds_of(change)
    # Weights are changed once for a whole step, of which a batch here may be a part.
    of_step = options.batch_size * options.gradient_accumulation_steps
    found = {work.TRAIN_DENOISER: learning / count + changing / of_step}
    optimizer.zero_grad()
    with torch.no_grad():
        found[work.DENOISE] = seconds_of(lambda: training.average(latents, levels, class_labels=class_ids)) / count

    pool = configs["pool"]
    pipeline = training.pipeline(source.class_names).to(accelerator.device)
    pipeline.set_progress_bar_config(disable=True)
    number = min(count // 2, pool.chunk_size) or 1 if accelerator.device.type == "cpu" else pool.chunk_size
    labels, seeds = np.arange(number) % training.num_classes, np.arange(number)
    accelerator = make_accelerator(pool.mixed_precision)

    def make_images() -> None:
        with accelerator.autocast():
            images = generate_images(pipeline, labels, seeds, **{name: getattr(pool, name) for name in CALL_OPTIONS})
        for image in images:
            png_bytes(Image.fromarray(image))

    with memory.of(pool.chunk_size / number):
        found[work.GENERATE] = seconds_of(make_images) / number
    return found, training.latent_shape


def _recipes(configs: Mapping[str, Any]) -> list[ClassifierConfig]:
    """A recipe for each kind of classifier that the steps train, but for probes: their encoders may come later."""
    from histodistill.training.evaluation.compare import recipes

    teacher = configs["teacher"].recipe
    of_kind = {work.train_of(teacher.architecture, teacher.width): teacher}
    for _, own in recipes(configs["comparison"]):
        of_kind.setdefault(work.train_of(own.architecture, own.width), own)
    return [recipe for recipe in of_kind.values() if not is_probe(recipe.architecture)]


def _measure_classifier(
    recipe: ClassifierConfig, source: TileSource, mixed_precision: str, memory: _Memory
) -> dict[str, float]:
    """A classifier's training, and what it says of tiles."""
    from histodistill.training.engine.accelerator import make_accelerator
    from histodistill.training.engine.timing import seconds_of_tile, short_training
    from histodistill.training.models.batch_sizes import usual_batch_size
    from histodistill.training.models.prediction import predict_proba

    accelerator = make_accelerator(mixed_precision)
    batch_size = recipe.batch_size
    if accelerator.device.type == "cpu":
        batch_size = min(batch_size, max(4, _PIXELS // source.image_size**2))
    training = short_training(recipe, source.split("train"), accelerator, source.class_names, batch_size)
    larger = recipe.batch_size / batch_size
    with memory.of(larger, _bytes_of(training.best)):
        trained = seconds_of_tile(training, recipe.batch_size)
    images = _some_tiles(source, accelerator.device)
    with memory.of(usual_batch_size(source.image_size) / len(images)):
        asked = seconds_of(lambda: predict_proba(training.best, images))
    accelerator.free_memory()
    return {
        work.train_of(recipe.architecture, recipe.width): trained,
        work.predict_of(recipe.architecture, recipe.width): asked / len(images),
    }


def _measure_search(source: TileSource) -> dict[str, float]:
    """The search for copies among real tiles, and the features of the untrained network."""
    from histodistill.selection.copies import CopyIndex
    from histodistill.training.engine.steps import spread_indices
    from histodistill.training.models.devices import best_device
    from histodistill.training.models.embedders import load_embedder
    from histodistill.training.models.encoder_names import UNTRAINED

    images, train = _some_tiles(source, best_device()), source.split("train").images
    embed = load_embedder(UNTRAINED)
    embedding = seconds_of(lambda: embed(images))
    count = min(len(train), max(2 * _COMPARED, _INDEXED_PIXELS // source.image_size**2))
    tiles = train[spread_indices(len(train), count)]
    begun = time.perf_counter()
    index = CopyIndex(tiles)
    indexing = time.perf_counter() - begun
    searching = seconds_of(lambda: index.search(tiles[:_COMPARED]))
    # Among all tiles, of which it was a part.
    more = (1 + min(len(train), _EXHAUSTIVE) / _DOUBLING) / (1 + count / _DOUBLING)
    return {
        work.EMBED_UNTRAINED: embedding / len(images),
        work.INDEX: indexing / count,
        work.COMPARE: more * searching / min(_COMPARED, count),
    }


def _measure_embedders(configs: Mapping[str, Any], source: TileSource) -> dict[str, float]:
    """Encoders from elsewhere that the pool is embedded with, to select from it or to look for copies in it."""
    from histodistill.training.models.devices import best_device
    from histodistill.training.models.embedders import load_embedder
    from histodistill.training.models.encoder_names import SEARCHED_SIDE

    images, found = _some_tiles(source, best_device()), {}
    for name in work.embedders_of(configs):
        kind = work.embed_of(name, configs)
        if kind.startswith(work.EMBED_OTHER):
            found[kind] = seconds_of(partial(load_embedder(name, SEARCHED_SIDE), images)) / len(images)
    return found


def _some_tiles(source: TileSource, device: torch.device) -> np.ndarray:
    """Training tiles as a model is shown them at once; on a CPU a few of these."""
    from histodistill.training.engine.steps import spread_indices
    from histodistill.training.models.batch_sizes import usual_batch_size

    count = usual_batch_size(source.image_size)
    if device.type == "cpu":
        count = min(count, max(1, _PIXELS // source.image_size**2))
    images = source.split("train").images
    return images[spread_indices(len(images), count)]


def _main(request: Path, answer: Path) -> None:
    """Reads what is asked, measures, and writes what was found."""
    import torch  # noqa: F401  # what a step imports, too, so that its start takes as long

    import histodistill.training.engine.loop  # noqa: F401

    asked = read_json(request)
    start = time.monotonic() - asked["asked"]
    configs = {
        folder: import_module(module).make_parser().read(argv) for folder, (module, argv) in asked["steps"].items()
    }
    write_json(answer, dataclasses.asdict(measure(configs, start)))


if __name__ == "__main__":
    from histodistill.training.running.progress import quiet_libraries

    keep_freed_memory()  # as the steps do
    try:
        with quiet_libraries():
            _main(Path(sys.argv[1]), Path(sys.argv[2]))
    except InputError as error:
        raise SystemExit(error.for_command_line()) from error
