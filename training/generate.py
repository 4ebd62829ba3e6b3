"""Generates the synthetic pool: many tiles of each class, each with a seed of its own.

    histodistill generate --pipeline runs/phantom/pipeline --output runs/phantom/pool
    accelerate launch -m histodistill.training.generate --pipeline runs/phantom/pipeline --output runs/phantom/pool

The pool is the same whatever the number of processes, and each image can be made again from its seed. Work is cut into
chunks of fixed images that are generated whole; a killed run goes on with the chunks that are missing. The output
folder opens with `load_dataset`; its columns are image, label and seed.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

from histodistill.training.running.launch import NUM_PROCESSES_HELP
from histodistill.training.running.notes import suggest
from histodistill.training.running.options import StepConfig, StepParser, config, option, require, run_script
from histodistill.training.running.training_options import precision_option


if TYPE_CHECKING:
    from accelerate import Accelerator
    from diffusers import DiffusionPipeline

    from histodistill.training.engine.pool import Chunk
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

    pipeline: Path = option("folder that train_diffusion left", setting=False)
    output: Path = option("folder for the pool", setting=False)
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
        """Checks the interval."""
        low, high = self.guidance_interval
        rule = "it must be LOW HIGH with 0 <= LOW <= HIGH <= 1"
        require(0 <= low <= high <= 1, "guidance_interval", self.guidance_interval, rule)


def make_parser() -> StepParser[GenerateConfig]:
    """The parser of the command line."""
    return StepParser(GenerateConfig, prog="histodistill generate", description=__doc__)


def run(config: GenerateConfig) -> Path:
    """Generates the chunks that are missing, and joins all into one dataset.

    Returns:
        The folder, which `load_dataset` opens.

    Raises:
        InputError: For a folder that holds no finished pipeline, or an output folder that holds something else.
    """
    from histodistill.training.running.stages import Stage, require_complete

    # Before the libraries are imported, which takes seconds.
    record = require_complete(config.pipeline, "pipeline", "run train_diffusion on it first")

    import shutil

    import numpy as np

    from histodistill.training.data.image_dataset import write_image_dataset
    from histodistill.training.engine.accelerator import make_accelerator
    from histodistill.training.engine.pool import cut_into_chunks, plan_pool, read_chunk
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
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        stage.begin()

    labels, seeds = plan_pool(pipeline.num_classes, config.per_class, config.seed)
    chunks = cut_into_chunks(config.output / "chunks", labels, seeds, config.chunk_size)
    make_missing_chunks(config, pipeline, chunks, accelerator, stage)
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        images = np.concatenate([read_chunk(*chunk) for chunk in chunks])
        write_image_dataset(config.output / "data", images, {"label": labels, "seed": seeds}, pipeline.class_names)
        stage.finish(num_images=len(labels), num_processes=accelerator.num_processes)
        shutil.rmtree(config.output / "chunks")
        accelerator.print(f"pool: {len(labels)} images saved to {config.output}")
        suggest("histodistill", "select", "--pool", config.output, "--teacher", "FOLDER", "--output", "FOLDER")
    accelerator.wait_for_everyone()
    accelerator.end_training()
    return config.output


def make_missing_chunks(
    config: GenerateConfig,
    pipeline: DiffusionPipeline,
    chunks: list[Chunk],
    accelerator: Accelerator,
    stage: Stage,
) -> None:
    """Generates this process's share of the chunks, but those that a killed run finished.

    Args:
        config: Says how to generate.
        pipeline: Generates the images.
        chunks: All chunks of the pool.
        accelerator: Says which of them are this process's.
        stage: Of the pool; the time spent is kept in its record.
    """
    from histodistill.training.engine.pool import generate_images, read_chunk, write_chunk
    from histodistill.training.running.progress import Progress

    mine = chunks[accelerator.process_index :: accelerator.num_processes]
    missing = [chunk for chunk in mine if read_chunk(*chunk) is None]
    options = {
        "num_inference_steps": config.num_inference_steps,
        "guidance_scale": config.guidance_scale,
        "guidance_interval": config.guidance_interval,
    }
    saved = time.monotonic()
    total, left = (sum(len(labels) for _, labels, _ in some) for some in (mine, missing))
    with Progress(
        total, "pool", "images", initial=total - left, enabled=accelerator.is_local_main_process
    ) as progress:
        for path, labels, seeds in missing:
            with accelerator.autocast():
                images = generate_images(pipeline, labels, seeds, **options)
            write_chunk(path, images, labels, seeds)
            progress.update(len(labels))
            if accelerator.is_main_process and time.monotonic() - saved > _PROGRESS_SECONDS:
                stage.save_progress()
                saved = time.monotonic()


if __name__ == "__main__":
    run_script(make_parser, run)
