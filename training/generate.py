"""Generates the synthetic pool: many tiles of each class, each with a seed of its own.

    histodistill generate --pipeline runs/phantom/pipeline --output runs/phantom/pool
    accelerate launch -m histodistill.training.generate --pipeline runs/phantom/pipeline --output runs/phantom/pool

The pool is the same whatever the number of processes, and each image can be made again from its seed. Work is cut into
chunks of fixed images that are generated whole; a killed run goes on with the chunks that are missing. The output
folder opens with `load_dataset`; its columns are image, label and seed. A large pool is in several files, which are
written while it is made, so that it may be larger than memory.

    histodistill generate --pipeline runs/phantom/pipeline --like runs/phantom/distilled --output again

makes the images of a distilled set again, in its order, from their labels and seeds: of a set of this machine or of
the Hub, with its own pipeline, which may be on the Hub as well. It tells how many are equal to the pixel, and how far
the others are (comparison.json). On another machine or with more threads numbers may be added up in another order,
which can move a pixel by a grey level or more.
"""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING

from histodistill.training.running.claims import claiming
from histodistill.training.running.errors import InputError, param
from histodistill.training.running.launch import NUM_PROCESSES_HELP
from histodistill.training.running.notes import suggest
from histodistill.training.running.options import StepConfig, StepParser, config, option, require, run_script
from histodistill.training.running.training_options import precision_option


if TYPE_CHECKING:
    import numpy as np
    from accelerate import Accelerator
    from diffusers import DiffusionPipeline

    from histodistill.training.engine.pool import Shard
    from histodistill.training.running.stages import Stage

#: Of a pool's settings, those that the pipeline is called with.
CALL_OPTIONS = ("num_inference_steps", "guidance_scale", "guidance_interval")
#: The same with all else that decides what a seed becomes.
PIPELINE_OPTIONS = (*CALL_OPTIONS, "mixed_precision")
# Seconds between two records of the time spent, which a killed run goes on from.
_PROGRESS_SECONDS = 60


@config
class GenerateConfig(StepConfig):
    """Options of `generate`."""

    pipeline: Path = option(
        "folder that train_diffusion left; with --like also a published pipeline, its folder or its id on the Hub",
        setting=False,
    )
    like: str | Path | None = option(
        "a distilled set, its folder or its id on the Hub, whose images are to be made again from their seeds; it "
        "says itself with which options",
        default=None,
        setting=False,
    )
    output: Path = option("folder for the pool", setting=False, claimed=True)
    per_class: int = option("images of each class", default=1000, at_least=1)
    num_inference_steps: int = option("denoising steps", default=20, at_least=1)
    guidance_scale: float = option("classifier-free guidance; 1 is none", default=1.5, at_least=0)
    guidance_interval: tuple[float, float] = option(
        "noise levels, 0 to 1, at which guidance is applied", default=(0.0, 1.0), metavar=("LOW", "HIGH")
    )
    chunk_size: int = option("images that are generated together", default=100, at_least=1)
    seed: int = option("the pool's seed; of 0, image i has the seed i", default=0, at_least=0, below=2**31)
    mixed_precision: str = precision_option(default="no")
    num_processes: int = option(NUM_PROCESSES_HELP, default=1, at_least=1, setting=False)

    def check(self) -> None:
        """Checks the interval, and that no option is given that a set says itself."""
        low, high = self.guidance_interval
        rule = "it must be LOW HIGH with 0 <= LOW <= HIGH <= 1"
        require(0 <= low <= high <= 1, "guidance_interval", self.guidance_interval, rule)
        if self.like is None:
            return
        defaults = {field.name: field.default for field in dataclasses.fields(self)}
        for name, value in self.settings().items():
            if value != defaults[name]:
                raise InputError(f"{param(name)} does not go with {param('like')}, whose set says it: leave it out")


def make_parser() -> StepParser[GenerateConfig]:
    """The parser of the command line."""
    return StepParser(GenerateConfig, prog="histodistill generate", description=__doc__)


@claiming
def run(config: GenerateConfig) -> Path:
    """Generates what is missing of the pool, or of the images of a set that are made again.

    Returns:
        The folder, which `load_dataset` opens.

    Raises:
        InputError: For a folder that holds no finished pipeline, an output folder that holds something else, or a set
            that does not say how its images were made, or was made by another pipeline.
    """
    from histodistill.training.running.stages import Stage, require_complete

    if config.like is not None:
        return _make_again(config, config.like)
    # Before the libraries are imported, which takes seconds.
    record = require_complete(config.pipeline, "pipeline", "run train_diffusion on it first")

    from histodistill.training.engine.accelerator import make_accelerator
    from histodistill.training.models.latents import compression_of
    from histodistill.training.models.loading import load_pipeline

    settings = {"stage": "pool", "pipeline": record["fingerprint"], **config.settings()}
    stage = Stage(config.output, settings, inputs={"pipeline": config.pipeline})
    stage.require_own_folder()
    accelerator = make_accelerator(config.mixed_precision)
    if stage.complete:
        accelerator.print(f"pool: {config.output} is already finished")
        return config.output
    pipeline = load_pipeline(config.pipeline).to(accelerator.device)
    pipeline.set_progress_bar_config(disable=True)
    image_size = pipeline.unet.config.sample_size * compression_of(pipeline.vae)
    make_pool(config, pipeline, image_size, accelerator, stage)
    if accelerator.is_main_process:
        suggest("histodistill", "select", "--pool", config.output, "--teacher", "FOLDER", "--output", "FOLDER")
    accelerator.wait_for_everyone()
    accelerator.end_training()
    return config.output


def _make_again(config: GenerateConfig, like: str | Path) -> Path:
    """Makes the images of a set again, and tells how near they come; see `run`."""
    from histodistill.hub_cards.part_files import PARTS
    from histodistill.training.data.image_dataset import open_image_table
    from histodistill.training.engine.accelerator import make_accelerator
    from histodistill.training.engine.remade import compare_images, likeness_lines, read_seeded_set
    from histodistill.training.models.hub_files import model_folder, set_folder
    from histodistill.training.models.latents import compression_of
    from histodistill.training.models.loading import load_pipeline
    from histodistill.training.running.files import write_json
    from histodistill.training.running.stages import Stage, content_of

    set_place = set_folder(like, "like")
    given = read_seeded_set(set_place)
    folder = model_folder(config.pipeline, "pipeline", "pipeline", PARTS["pipeline"].published)
    content, options = content_of(folder), given.generation.model_dump(exclude={"pipeline"})
    if given.generation.pipeline not in (None, content):
        raise InputError(f"{param('pipeline')} {config.pipeline} is not the one that made {like}: give that one")
    config = dataclasses.replace(config, like=None, **options)
    settings = {"stage": "remade", "set": content_of(set_place), "pipeline": content, **options}
    stage = Stage(config.output, settings)
    stage.require_own_folder()
    accelerator = make_accelerator(config.mixed_precision)
    if not stage.complete:
        pipeline = load_pipeline(folder).to(accelerator.device)
        pipeline.set_progress_bar_config(disable=True)
        image_size = pipeline.unet.config.sample_size * compression_of(pipeline.vae)
        if (pipeline.class_names, image_size) != (given.table.class_names, given.table.images.shape[1]):
            raise InputError(
                f"{param('pipeline')} {config.pipeline} makes other classes or sizes than {like} has: give the one "
                "that made it"
            )
        columns = given.table.columns
        make_pool(config, pipeline, image_size, accelerator, stage, (columns["label"], columns["seed"]))
    if accelerator.is_main_process:
        found = compare_images(open_image_table(config.output).images, given.table.images)
        write_json(config.output / "comparison.json", found)
        for line in likeness_lines(found):
            print(f"generate: {line}")
    accelerator.wait_for_everyone()
    accelerator.end_training()
    return config.output


def make_pool(
    config: GenerateConfig,
    pipeline: DiffusionPipeline,
    image_size: int,
    accelerator: Accelerator,
    stage: Stage,
    plan: tuple[np.ndarray, np.ndarray] | None = None,
) -> None:
    """Generates what is missing of a pool, and puts it in its place.

    Args:
        config: Says how to generate.
        pipeline: Generates the images.
        image_size: Their side in pixels.
        accelerator: Shared by all processes.
        stage: Of the pool, not complete.
        plan: Labels and seeds, int64 N each, of all images; by default as `plan_pool` has them.
    """
    from histodistill.training.engine.pool import cut_into_chunks, gather_into_shards, plan_pool
    from histodistill.training.running.files import remove

    chunk_folder, shard_folder, data = (config.output / name for name in ("chunks", "shards", "data"))
    labels, seeds = plan or plan_pool(pipeline.num_classes, config.per_class, config.seed)
    chunks = cut_into_chunks(chunk_folder, labels, seeds, config.chunk_size)
    shards = gather_into_shards(shard_folder, chunks, image_size)
    # No process looks at what there is before all have come here, nor before the main one is done with it.
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        stage.begin()
        if data.exists() and not shard_folder.exists():  # of a run that was killed when all was done
            os.replace(data, shard_folder)
        remove(data)
        clear_folder(shard_folder, {shard.path.name for shard in shards})
        clear_folder(chunk_folder, {chunk.path.name for chunk in chunks})
    accelerator.wait_for_everyone()
    make_missing_shards(config, pipeline, image_size, shards, accelerator, stage)
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        os.replace(shard_folder, data)
        remove(chunk_folder)
        stage.finish(num_images=len(labels), num_processes=accelerator.num_processes)
        accelerator.print(f"pool: {len(labels)} images saved to {config.output}")


def clear_folder(folder: Path, names: Collection[str]) -> None:
    """Removes what is not of these names, such as half a file of a process that was killed; makes the folder."""
    from histodistill.training.running.files import remove

    folder.mkdir(parents=True, exist_ok=True)
    for path in folder.iterdir():
        if path.name not in names:
            remove(path)


def make_missing_shards(
    config: GenerateConfig,
    pipeline: DiffusionPipeline,
    image_size: int,
    shards: list[Shard],
    accelerator: Accelerator,
    stage: Stage,
) -> None:
    """Generates this process's share of the chunks, but those that a killed run finished, and writes its shards.

    Args:
        config: Says how to generate.
        pipeline: Generates the images.
        image_size: Their side in pixels.
        shards: All shards of the pool.
        accelerator: Says which of them, and which chunks, are this process's: shard and chunk i are of the process i
            modulo their number, whatever is finished.
        stage: Of the pool; the time spent is kept in its record.
    """
    from histodistill.training.engine.pool import generate_images, is_written, read_chunk, write_chunk, write_shards
    from histodistill.training.running.progress import Progress

    is_mine = slice(accelerator.process_index, None, accelerator.num_processes)
    mine = [chunk for shard in shards for chunk in shard.chunks][is_mine]
    written = {shard.path for shard in shards if is_written(shard, pipeline.class_names, image_size)}
    needless = {chunk.path for shard in shards if shard.path in written for chunk in shard.chunks}
    missing = [chunk for chunk in mine if chunk.path not in needless and read_chunk(*chunk) is None]
    for path in (*needless, *(chunk.path for chunk in missing)):
        path.unlink(missing_ok=True)
    # From here on a chunk that is there is whole, whoever has made it.
    accelerator.wait_for_everyone()
    pending = write_shards([shard for shard in shards[is_mine] if shard.path not in written], pipeline.class_names)
    options = {name: getattr(config, name) for name in CALL_OPTIONS}
    saved = time.monotonic()
    total, left = (sum(len(labels) for _, labels, _ in some) for some in (mine, missing))
    with Progress(
        total, "pool", "images", initial=total - left, enabled=accelerator.is_local_main_process
    ) as progress:
        for path, labels, seeds in missing:
            with accelerator.autocast():
                images = generate_images(pipeline, labels, seeds, **options)
            write_chunk(path, images, labels, seeds)
            pending = write_shards(pending, pipeline.class_names)
            progress.update(len(labels))
            if accelerator.is_main_process and time.monotonic() - saved > _PROGRESS_SECONDS:
                stage.save_progress()
                saved = time.monotonic()
    # Others may have made the last chunks of these.
    accelerator.wait_for_everyone()
    write_shards(pending, pipeline.class_names)


if __name__ == "__main__":
    run_script(make_parser, run)
