"""Generates the synthetic pool: many tiles of each class, each with a seed of its own.

    accelerate launch -m histodistill.training.generate --pipeline runs/phantom/pipeline --output runs/phantom/pool

The pool is the same whatever the number of processes, and each image can be made again from its seed. Work is cut into
chunks of fixed images that are generated whole; a killed run goes on with the chunks that are missing. The output
folder opens with `load_dataset`; its columns are image, label and seed.
"""

from __future__ import annotations

import argparse
import shutil
import time
import zipfile
from pathlib import Path

import numpy as np
import torch
from diffusers import DiffusionPipeline
from tqdm.auto import tqdm

from histodistill.training.commands.generate import parse_args
from histodistill.training.data.image_dataset import write_image_dataset
from histodistill.training.engine.accelerator import make_accelerator
from histodistill.training.running.options import result_settings, run_script
from histodistill.training.running.stages import Stage, require_complete


# torch's CPU generators, which draw the noise, read the low 32 bits of a seed: two seeds that differ only above them
# give the same image.
_NUM_SEEDS = 2**32
# 2^32 over the golden ratio, as an odd number. Its multiples spread over all seeds, whatever their number: of the pool
# seeds 0 to 999, the images of any two begin 1.9 million seeds apart; of 0 to 9,999, 287,000.
_STRIDE = 2_654_435_769


def plan_pool(num_classes: int, per_class: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Labels and seeds, int64 N each, of all images of a pool.

    Classes take turns, so that a larger pool begins with all images of a smaller one. Image i of the pool of seed s
    has the seed (2654435769 s + i) modulo 2^32, which is i for s = 0: no two images of a pool have the same seed, and
    pools of other seeds have other images.

    Raises:
        ValueError: For a pool seed that is not at least 0 and below 2^31, or more than 2^32 images.
    """
    if not 0 <= seed < 2**31:
        raise ValueError(f"seed={seed} is out of range: it must be at least 0 and below 2^31")
    if num_classes * per_class > _NUM_SEEDS:
        raise ValueError(f"per_class={per_class} is out of range: there are 2^32 seeds for the images of all classes")
    numbers = np.arange(num_classes * per_class, dtype=np.int64)
    return numbers % num_classes, (seed * _STRIDE + numbers) % _NUM_SEEDS


def generate_images(pipeline: DiffusionPipeline, labels: np.ndarray, seeds: np.ndarray, **options) -> np.ndarray:
    """One image per label and seed, uint8 N×H×W×3; `options` go to the pipeline."""
    generators = [torch.Generator().manual_seed(int(seed)) for seed in seeds]
    images = pipeline(labels.tolist(), generator=generators, output_type="np", **options).images
    return (images * 255).round().astype(np.uint8)


def read_chunk(path: Path, labels: np.ndarray, seeds: np.ndarray) -> np.ndarray | None:
    """The images of a finished chunk, or None where it is missing, damaged or another one."""
    try:
        # np.load leaves a file that it opened itself and finds damaged open.
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as chunk:
            if np.array_equal(chunk["labels"], labels) and np.array_equal(chunk["seeds"], seeds):
                return chunk["images"]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        pass
    return None


def write_chunk(path: Path, images: np.ndarray, labels: np.ndarray, seeds: np.ndarray) -> None:
    """Writes a chunk atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.tmp.npz")
    np.savez(temporary, images=images, labels=labels, seeds=seeds)
    temporary.replace(path)


def main(args: argparse.Namespace) -> None:
    """Generates the chunks that are missing, and joins all into one dataset."""
    record = require_complete(args.pipeline, "pipeline", "run train_diffusion on it first")
    stage = Stage(args.output, {"stage": "pool", "pipeline": record["fingerprint"], **result_settings(args)})
    stage.require_own_folder()
    accelerator = make_accelerator(args.mixed_precision)
    if stage.complete:
        accelerator.print(f"pool: {args.output} is already finished")
        return
    # The folder is this machine's own work: its pipeline.py is the file that ships with histodistill.
    # Loading copies that file to a cache that all processes read, so they take turns.
    for turn in range(accelerator.num_processes):
        if turn == accelerator.process_index:
            pipeline = DiffusionPipeline.from_pretrained(args.pipeline, trust_remote_code=True)
        accelerator.wait_for_everyone()
    pipeline.to(accelerator.device)
    pipeline.set_progress_bar_config(disable=True)
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        stage.begin()

    labels, seeds = plan_pool(pipeline.num_classes, args.per_class, args.seed)
    chunks = [slice(i, i + args.chunk_size) for i in range(0, len(labels), args.chunk_size)]
    paths = [args.output / "chunks" / f"chunk-{number:06d}.npz" for number in range(len(chunks))]
    mine = range(accelerator.process_index, len(chunks), accelerator.num_processes)
    missing = [i for i in mine if read_chunk(paths[i], labels[chunks[i]], seeds[chunks[i]]) is None]
    progress = tqdm(
        total=len(mine),
        initial=len(mine) - len(missing),
        desc="pool",
        unit=f"×{args.chunk_size} images",
        disable=not accelerator.is_local_main_process,
    )
    options = {
        "num_inference_steps": args.num_inference_steps,
        "guidance_scale": args.guidance_scale,
        "guidance_interval": tuple(args.guidance_interval),
    }
    saved = time.monotonic()
    for i in missing:
        with accelerator.autocast():
            images = generate_images(pipeline, labels[chunks[i]], seeds[chunks[i]], **options)
        write_chunk(paths[i], images, labels[chunks[i]], seeds[chunks[i]])
        progress.update()
        if accelerator.is_main_process and time.monotonic() - saved > 60:
            stage.save_progress()
            saved = time.monotonic()
    progress.close()

    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        parts = [read_chunk(path, labels[chunk], seeds[chunk]) for path, chunk in zip(paths, chunks, strict=True)]
        write_image_dataset(
            args.output / "data", np.concatenate(parts), {"label": labels, "seed": seeds}, pipeline.class_names
        )
        stage.finish(num_images=len(labels), num_processes=accelerator.num_processes)
        shutil.rmtree(args.output / "chunks")
        accelerator.print(f"pool: {len(labels)} images saved to {args.output}")
    accelerator.wait_for_everyone()
    accelerator.end_training()


if __name__ == "__main__":
    run_script(parse_args, main)
