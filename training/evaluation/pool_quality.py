"""How good a pool is: its distances to real validation tiles."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from histodistill.selection.streams import stream
from histodistill.training.data.tiles import Tiles
from histodistill.training.evaluation.generation_metrics import frechet_distance, kernel_distance, neighbourhoods
from histodistill.training.evaluation.pool_figures import CANDIDATES, DISTANCES
from histodistill.training.models.embedders import embed_images


def measure_pool(
    sets: Mapping[str, Tiles], class_names: Sequence[str], embedder: str | Path, n_neighbors: int
) -> list[dict[str, Any]]:
    """Embeds tiles and measures their distances to validation tiles.

    Args:
        sets: The tiles called "validation", and those of each of `CANDIDATES`.
        class_names: Names of the labels.
        embedder: What `embed_images` takes.
        n_neighbors: Of the neighbourhoods.

    Returns:
        See `compare_with_validation`.
    """
    embeddings = {name: embed_images(embedder, tiles.images) for name, tiles in sets.items()}
    labels = {name: tiles.labels for name, tiles in sets.items()}
    return compare_with_validation(embeddings, labels, class_names, n_neighbors)


def compare_with_validation(
    embeddings: Mapping[str, np.ndarray],
    labels: Mapping[str, np.ndarray],
    class_names: Sequence[str],
    n_neighbors: int,
) -> list[dict[str, Any]]:
    """Distances of the pool, and of real training tiles, to validation tiles: of all classes, then of each.

    Args:
        embeddings: float32 N×D of "validation" and of each of `CANDIDATES`.
        labels: int64 N of the same.
        class_names: Names of the labels.
        n_neighbors: Of the neighbourhoods.

    Returns:
        Dicts of class (None for all), num_images (of each kind), and the distances of each candidate.
    """
    names = ["validation", *CANDIDATES]
    drawn = dict(zip(names, draw_equal([labels[name] for name in names], len(class_names), seed=0), strict=True))
    groups = [(None, list(range(len(class_names)))), *((name, [i]) for i, name in enumerate(class_names))]
    records = []
    for class_name, members in groups:
        points = {name: embeddings[name][np.concatenate([drawn[name][i] for i in members])] for name in names}
        record: dict[str, Any] = {"class": class_name, "num_images": len(points["validation"])}
        for name in CANDIDATES:
            record[name] = measure_distances(points["validation"], points[name], n_neighbors)
        records.append(record)
    return records


def draw_equal(label_sets: Sequence[np.ndarray], num_classes: int, seed: int) -> list[list[np.ndarray]]:
    """As many rows of each class from every set as the set with the fewest has: sizes and class shares then agree.

    Args:
        label_sets: int64 N_i each.
        num_classes: Number of classes C.
        seed: Of the draw.

    Returns:
        For each set, C arrays of row numbers.
    """
    counts = np.stack([np.bincount(labels, minlength=num_classes) for labels in label_sets]).min(axis=0)

    def draw(number: int, label: int) -> np.ndarray:
        rng = stream("equal classes of several sets", seed, number, label)
        return rng.permutation(np.flatnonzero(label_sets[number] == label))[: counts[label]]

    return [[draw(number, label) for label in range(num_classes)] for number in range(len(label_sets))]


def measure_distances(real: np.ndarray, generated: np.ndarray, n_neighbors: int) -> dict[str, float | None]:
    """All distances of two sets of embeddings.

    Args:
        real, generated: float N×D and M×D.
        n_neighbors: Of the neighbourhoods.

    Returns:
        The distances by the names of `DISTANCES`; None each where there are too few real embeddings.
    """
    if len(real) <= n_neighbors:
        return dict.fromkeys(DISTANCES)
    return {
        "frechet_distance": frechet_distance(real, generated),
        "kernel_distance": kernel_distance(real, generated),
        **asdict(neighbourhoods(real, generated, n_neighbors)),
    }
