"""The pool's images: which label and seed each has, generating them, and keeping them while the pool is made.

Images are generated in chunks, each of which is a file until all chunks of its shard are there. The shard is then
written as it stays, and the files of its chunks go: so a killed run loses the chunk that it was at, no more than a row
group of images is in memory, and there are never many more bytes on the disk than the pool has in the end.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from diffusers import DiffusionPipeline

from histodistill.hub_cards.errors import ContentError
from histodistill.hub_cards.table_files import write_rows
from histodistill.hub_cards.tables import POOL, ImageTable
from histodistill.selection.image_rows import ImageRows
from histodistill.training.data.image_dataset import open_shard, shard_name
from histodistill.training.data.kept_arrays import read_arrays, write_arrays
from histodistill.training.running.errors import InputError, param
from histodistill.training.running.files import new_file


# torch's CPU generators, which draw the noise, read the low 32 bits of a seed: two seeds that differ only above them
# give the same image.
_NUM_SEEDS = 2**32
# 2^32 over the golden ratio, as an odd number. Its multiples spread over all seeds, whatever their number: of the pool
# seeds 0 to 999, the images of any two begin 1.9 million seeds apart; of 0 to 9,999, 287,000.
_STRIDE = 2_654_435_769
#: Bytes of pixels of one shard, at most, unless it is a single chunk; its file has as many, or fewer.
SHARD_BYTES = 2**29


class Chunk(NamedTuple):
    """Images of a pool that are generated together and kept in a file of their own until their shard is whole.

    Attributes:
        path: The file.
        labels: Class ids int64 N.
        seeds: int64 N.
    """

    path: Path
    labels: np.ndarray
    seeds: np.ndarray


class Shard(NamedTuple):
    """A file of the finished pool.

    Attributes:
        path: The file.
        chunks: Its images, in their order.
    """

    path: Path
    chunks: list[Chunk]

    @property
    def labels(self) -> np.ndarray:
        """Class ids int64 N."""
        return np.concatenate([chunk.labels for chunk in self.chunks])

    @property
    def seeds(self) -> np.ndarray:
        """int64 N."""
        return np.concatenate([chunk.seeds for chunk in self.chunks])


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


def gather_into_shards(folder: Path, chunks: Sequence[Chunk], image_size: int) -> list[Shard]:
    """Shards of whole chunks, all of as many but the last; a pool of at most `SHARD_BYTES` is one.

    Args:
        folder: For the files.
        chunks: Of the pool, at least one.
        image_size: Side of its images in pixels.
    """
    each = max(1, SHARD_BYTES // (len(chunks[0].labels) * image_size**2 * 3))
    parts = [list(chunks[first : first + each]) for first in range(0, len(chunks), each)]
    return [Shard(folder / shard_name(number, len(parts)), part) for number, part in enumerate(parts)]


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
        chunk = read_arrays(path, ("images", "labels", "seeds"))
    except (FileNotFoundError, InputError):
        return None
    is_alike = np.array_equal(chunk["labels"], labels) and np.array_equal(chunk["seeds"], seeds)
    return chunk["images"] if is_alike else None


def write_chunk(path: Path, images: np.ndarray, labels: np.ndarray, seeds: np.ndarray) -> None:
    """Writes the images of a chunk, uint8 N×H×W×3, atomically.

    Args:
        path, labels, seeds: See `Chunk`.
        images: In the order of the labels.
    """
    write_arrays(path, images=images, labels=labels, seeds=seeds)


def is_written(shard: Shard, class_names: Sequence[str], image_size: int) -> bool:
    """Whether the file of a shard is there, with its labels and seeds and images of this size; they are not unpacked.

    Args:
        shard: See `Shard`.
        class_names: Names of the labels.
        image_size: Side of its images in pixels.
    """
    try:
        table = open_shard(shard.path, POOL).table
    except (ContentError, InputError, OSError):
        return False
    return (
        table.class_names == list(class_names)
        and table.images.shape[1:] == (image_size, image_size, 3)
        and np.array_equal(table.columns["label"], shard.labels)
        and np.array_equal(table.columns.get("seed", ()), shard.seeds)
    )


def write_shards(shards: Sequence[Shard], class_names: Sequence[str]) -> list[Shard]:
    """Writes those shards of which all chunks are there, each atomically, and removes their chunks.

    Args:
        shards: Those that are not written yet.
        class_names: Names of the labels.

    Returns:
        The others.

    Raises:
        InputError: For a chunk that is damaged.
    """
    left = []
    for shard in shards:
        if not all(chunk.path.exists() for chunk in shard.chunks):
            left.append(shard)
            continue
        columns = {"label": shard.labels, "seed": shard.seeds}
        with new_file(shard.path) as file:
            write_rows(file, ImageTable(_ChunkImages(shard.chunks), columns, list(class_names)), is_whole=False)
        for chunk in shard.chunks:
            chunk.path.unlink(missing_ok=True)
    return left


class _ChunkImages(ImageRows):
    """The images of chunks, in their order; for the next rows again and again, so that each file is read once."""

    def __init__(self, chunks: Sequence[Chunk]):
        self._chunks = chunks
        self._starts = np.cumsum([0, *(len(chunk.labels) for chunk in chunks)])
        self._images = functools.lru_cache(1)(functools.partial(_require_chunk, chunks))
        super().__init__((int(self._starts[-1]), *self._images(0).shape[1:]))

    def read(self, rows: np.ndarray) -> np.ndarray:
        """The images at these rows."""
        images = np.empty((len(rows), *self.shape[1:]), np.uint8)
        numbers = np.searchsorted(self._starts, rows, side="right") - 1
        for number in np.unique(numbers):
            mine = numbers == number
            images[mine] = self._images(int(number))[rows[mine] - self._starts[number]]
        return images


def _require_chunk(chunks: Sequence[Chunk], number: int) -> np.ndarray:
    images = read_chunk(*chunks[number])
    if images is None:
        raise InputError(f"{chunks[number].path} is damaged: run the same command again, which makes it anew")
    return images
