"""The pool's images: which label and seed each has, generating them, and the chunks that a killed run left."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from diffusers import DiffusionPipeline

from histodistill.training.running.errors import InputError, param
from histodistill.training.running.files import write_bytes


# torch's CPU generators, which draw the noise, read the low 32 bits of a seed: two seeds that differ only above them
# give the same image.
_NUM_SEEDS = 2**32
# 2^32 over the golden ratio, as an odd number. Its multiples spread over all seeds, whatever their number: of the pool
# seeds 0 to 999, the images of any two begin 1.9 million seeds apart; of 0 to 9,999, 287,000.
_STRIDE = 2_654_435_769


class Chunk(NamedTuple):
    """Images of a pool that are generated together and kept in a file of their own until the pool is whole.

    Attributes:
        path: The file.
        labels: Class ids int64 N.
        seeds: int64 N.
    """

    path: Path
    labels: np.ndarray
    seeds: np.ndarray


def plan_pool(num_classes: int, per_class: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Labels and seeds, int64 N each, of all images of a pool.

    Classes take turns, so that a larger pool begins with all images of a smaller one. Image i of the pool of seed s
    has the seed (2654435769 s + i) modulo 2^32, which is i for s = 0: no two images of a pool have the same seed, and
    pools of other seeds have other images.

    Args:
        num_classes: Classes, at least 1.
        per_class: Images of each class, at least 1.
        seed: s, the pool's seed.

    Raises:
        InputError: For a pool seed that is not at least 0 and below 2^31, or more than 2^32 images.
    """
    if not 0 <= seed < 2**31:
        raise InputError(f"{param('seed')}={seed} is out of range: it must be at least 0 and below 2^31")
    if num_classes * per_class > _NUM_SEEDS:
        raise InputError(
            f"{param('per_class')}={per_class} is out of range: there are 2^32 seeds for the images of all classes"
        )
    numbers = np.arange(num_classes * per_class, dtype=np.int64)
    return numbers % num_classes, (seed * _STRIDE + numbers) % _NUM_SEEDS


def cut_into_chunks(folder: Path, labels: np.ndarray, seeds: np.ndarray, size: int) -> list[Chunk]:
    """Chunks of a pool's images, in their order; the last one may be smaller.

    Args:
        folder: For the files.
        labels, seeds: See `plan_pool`.
        size: Images of a chunk, at least 1.
    """
    firsts = range(0, len(labels), size)
    return [
        Chunk(folder / f"chunk-{number:06d}.npz", labels[first : first + size], seeds[first : first + size])
        for number, first in enumerate(firsts)
    ]


def generate_images(pipeline: DiffusionPipeline, labels: np.ndarray, seeds: np.ndarray, **options: Any) -> np.ndarray:
    """Images, each from its label and seed.

    Args:
        pipeline: Generates them.
        labels: Class ids int64 N.
        seeds: int64 N, in [0, 2^32).
        options: For the call of the pipeline.

    Returns:
        uint8 N×H×W×3.
    """
    generators = [torch.Generator().manual_seed(int(seed)) for seed in seeds]
    images = pipeline(labels.tolist(), generator=generators, output_type="np", **options).images
    return (images * 255).round().astype(np.uint8)


def read_chunk(path: Path, labels: np.ndarray, seeds: np.ndarray) -> np.ndarray | None:
    """The images of a finished chunk, uint8 N×H×W×3, or None where its file is missing, damaged or of other images.

    Args:
        path, labels, seeds: See `Chunk`.
    """
    try:
        # np.load leaves a file that it opened itself and finds damaged open.
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as chunk:
            if np.array_equal(chunk["labels"], labels) and np.array_equal(chunk["seeds"], seeds):
                return chunk["images"]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        pass
    return None


def write_chunk(path: Path, images: np.ndarray, labels: np.ndarray, seeds: np.ndarray) -> None:
    """Writes the images of a chunk, uint8 N×H×W×3, atomically.

    Args:
        path, labels, seeds: See `Chunk`.
        images: In the order of the labels.
    """
    buffer = io.BytesIO()
    np.savez(buffer, images=images, labels=labels, seeds=seeds)
    write_bytes(path, buffer.getvalue())
