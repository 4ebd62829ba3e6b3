"""The speed of sampling, and how near its images come to real tiles: the second half of `speed`."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from accelerate import Accelerator
from diffusers import DiffusionPipeline, FlowMatchEulerDiscreteScheduler

from histodistill.training.benchmarks.diffusers_style import make_dit_pipeline, read_clock
from histodistill.training.data.tiles import TileSource
from histodistill.training.engine.pool import generate_images, plan_pool
from histodistill.training.evaluation.generation_metrics import frechet_distance, neighbourhoods
from histodistill.training.evaluation.pool_quality import draw_equal
from histodistill.training.models.denoiser_output import VELOCITY
from histodistill.training.models.embedders import embed_images
from histodistill.training.models.loading import load_pipeline
from histodistill.training.running.errors import InputError, param


# Denoising steps that the run's pipeline is measured with, beside those of its pool.
OUR_STEPS = (8, 12, 16, 25)
# Denoising steps of the peers: the default of `DiTPipeline`.
PEER_STEPS = 50
# Neighbours of a real tile whose distance bounds its neighbourhood; coverage is the share of these with an image in.
N_NEIGHBORS = 5
# What a reader of the results must know to trust them.
SAMPLING_NOTES = (
    "All samplers share one set of weights, the starting noise of each image, its class, and the guidance scale; the "
    "run's pipeline guides in the pool's guidance interval alone, DiTPipeline at every step.",
    "Each is warmed up by one untimed batch of two steps; repeats alternate between all samplers.",
    "The DiTPipelines run in float32 and the run's pipeline in the precision of its pool.",
    "Fréchet distance and coverage compare equally many images and validation tiles of each class in the teacher's "
    "features; each repeat has seeds of its own.",
    "speedup is a sampler's median over that of the named peer.",
)


@dataclass(frozen=True)
class Sampler:
    """A way of making images of classes; the pipelines of a benchmark share their weights.

    Attributes:
        name: In the table.
        pipeline: What makes the images.
        num_inference_steps: Denoising steps.
        mixed_precision: "no" for float32, or the precision of the pool.
        options: What the pipeline is called with beside steps and guidance scale.
    """

    name: str
    pipeline: DiffusionPipeline
    num_inference_steps: int
    mixed_precision: str = "no"
    options: dict[str, Any] = field(default_factory=dict)


def make_samplers(pipeline: DiffusionPipeline, pool: dict[str, Any]) -> list[Sampler]:
    """Ours with the pool's and with other numbers of steps, and the peers, whose names begin with DiTPipeline.

    Args:
        pipeline: Of the run; all samplers share its weights.
        pool: Settings from the record of the run's pool.
    """
    options = {"guidance_interval": tuple(pool["guidance_interval"])}
    ours = [
        Sampler(f"histodistill, {steps} steps", pipeline, steps, pool["mixed_precision"], options)
        for steps in sorted({*OUR_STEPS, pool["num_inference_steps"]})
    ]
    scheduler = type(pipeline.scheduler).from_config(pipeline.scheduler.config, prediction_type=VELOCITY)
    peers = {"Euler": FlowMatchEulerDiscreteScheduler(), "our scheduler": scheduler}
    return ours + [
        Sampler(f"DiTPipeline, {name}, {PEER_STEPS} steps", make_dit_pipeline(pipeline, scheduler), PEER_STEPS)
        for name, scheduler in peers.items()
    ]


def sample(
    sampler: Sampler,
    labels: np.ndarray,
    seeds: np.ndarray,
    guidance_scale: float,
    chunk_size: int,
    accelerator: Accelerator,
) -> tuple[np.ndarray, float]:
    """Makes one image per label and seed.

    Args:
        sampler: What makes them.
        labels: int N.
        seeds: int N.
        guidance_scale: Of classifier-free guidance, at least 1.
        chunk_size: Images that are made together.
        accelerator: Of the pool's precision; samplers without mixed precision run in float32.

    Returns:
        uint8 N×H×W×3, and the images made in a second.
    """
    precision = accelerator.autocast if sampler.mixed_precision != "no" else contextlib.nullcontext
    sampler.pipeline.set_progress_bar_config(disable=True)
    options = {
        "num_inference_steps": sampler.num_inference_steps, "guidance_scale": guidance_scale, **sampler.options
    }  # fmt: skip
    chunks = [slice(i, i + chunk_size) for i in range(0, len(labels), chunk_size)]
    started = read_clock()
    with precision():
        images = [generate_images(sampler.pipeline, labels[chunk], seeds[chunk], **options) for chunk in chunks]
    return np.concatenate(images), len(labels) / (read_clock() - started)


def check_sampling(source: TileSource, num_images: int, guidance_scale: float) -> int:
    """Sees that what is to be sampled can be compared.

    Args:
        source: The real tiles.
        num_images: Images of each sampler and repeat.
        guidance_scale: Of the pool.

    Returns:
        How many images of each class are made.

    Raises:
        InputError: If there are too few images or validation tiles to compare, or `DiTPipeline` could not guide so.
    """
    num_classes = len(source.class_names)
    per_class = num_images // num_classes
    counts = np.bincount(source.split("validation").labels, minlength=num_classes)
    compared = int(np.minimum(per_class, counts).sum())
    if compared <= N_NEIGHBORS:
        raise InputError(
            f"{param('num_images')}={num_images} and {counts.sum()} validation tiles in {num_classes} classes leave "
            f"{compared} of each to compare, and more than {N_NEIGHBORS} are needed: give more images, or data with "
            "more validation tiles"
        )
    if guidance_scale < 1:
        raise InputError(
            f"the pool has {param('guidance_scale')}={guidance_scale}, and DiTPipeline guides only above 1: "
            "generate the pool with at least 1"
        )
    return per_class


def measure_sampling(
    run: Path, pool: dict[str, Any], source: TileSource, per_class: int, repeats: int, accelerator: Accelerator
) -> dict[str, Any]:
    """Makes images with each sampler, taking turns, and compares them with validation tiles.

    Args:
        run: Folder with pipeline/ and teacher/.
        pool: Settings from the record of the run's pool.
        source: The real tiles.
        per_class: Images of each class.
        repeats: Times that each sampler makes them.
        accelerator: Of the pool's precision.

    Returns:
        The `sampling` part of the results.
    """
    pipeline = load_pipeline(run / "pipeline")
    pipeline.to(accelerator.device)
    samplers = make_samplers(pipeline, pool)
    num_classes, validation = len(source.class_names), source.split("validation")
    real = embed_images(run / "teacher", validation.images)
    options = (pool["guidance_scale"], pool["chunk_size"], accelerator)
    measured: dict[str, dict[str, list[float]]] = {
        sampler.name: {"speed": [], "frechet_distance": [], "coverage": []} for sampler in samplers
    }
    labels, seeds = plan_pool(num_classes, per_class, seed=0)
    for sampler in samplers:
        warmup = replace(sampler, num_inference_steps=2)
        sample(warmup, labels[: pool["chunk_size"]], seeds[: pool["chunk_size"]], *options)
    for repeat in range(repeats):
        labels, seeds = plan_pool(num_classes, per_class, seed=repeat)
        real_rows, rows = (np.concatenate(rows) for rows in draw_equal([validation.labels, labels], num_classes, 0))
        for sampler in samplers:
            print(f"sampling {repeat + 1}/{repeats}: {sampler.name}", flush=True)
            images, speed = sample(sampler, labels, seeds, *options)
            generated = embed_images(run / "teacher", images[rows])
            figures = measured[sampler.name]
            figures["speed"].append(speed)
            figures["frechet_distance"].append(frechet_distance(real[real_rows], generated))
            figures["coverage"].append(neighbourhoods(real[real_rows], generated, N_NEIGHBORS).coverage)
    return {
        "num_images": len(labels),
        "num_images_compared": len(rows),
        "guidance_scale": pool["guidance_scale"],
        "guidance_interval": pool["guidance_interval"],
        "chunk_size": pool["chunk_size"],
        "n_neighbors": N_NEIGHBORS,
        "samplers": _sampler_rows(samplers, measured, pipeline, pool["num_inference_steps"]),
        "notes": SAMPLING_NOTES,
    }


def _sampler_rows(
    samplers: list[Sampler],
    measured: dict[str, dict[str, list[float]]],
    pipeline: DiffusionPipeline,
    pool_steps: int,
) -> list[dict[str, Any]]:
    """A row of the results for each sampler: medians, single values, and how many times as fast as each peer.

    Args:
        samplers: All that were measured.
        measured: Figures of each repeat by the name of the sampler: speed, frechet_distance and coverage.
        pipeline: That of the run, whose samplers are ours; the others are peers.
        pool_steps: Denoising steps of the run's pool.
    """
    speeds = {name: median(figures["speed"]) for name, figures in measured.items()}
    peers = [sampler.name for sampler in samplers if sampler.pipeline is not pipeline]
    rows = []
    for sampler in samplers:
        figures = measured[sampler.name]
        is_ours = sampler.pipeline is pipeline
        rows.append(
            {
                "name": sampler.name,
                "scheduler": type(sampler.pipeline.scheduler).__name__,
                "num_inference_steps": sampler.num_inference_steps,
                "mixed_precision": sampler.mixed_precision,
                "is_pool_setting": is_ours and sampler.num_inference_steps == pool_steps,
                "images_per_second": speeds[sampler.name],
                "images_per_second_values": figures["speed"],
                "frechet_distance": median(figures["frechet_distance"]),
                "frechet_distance_values": figures["frechet_distance"],
                "coverage": median(figures["coverage"]),
                "coverage_values": figures["coverage"],
                "speedup": {peer: speeds[sampler.name] / speeds[peer] for peer in peers},
            }
        )
    return rows
