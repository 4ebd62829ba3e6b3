"""Measures the generated pool against real validation tiles: what `histodistill evaluate-pool` runs."""

from __future__ import annotations

import argparse
import functools
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderDC

from histodistill.training.commands.evaluate_pool import ROWS, parse_args
from histodistill.training.data.image_dataset import read_image_dataset
from histodistill.training.data.pixels import to_model_input, to_uint8
from histodistill.training.data.sources import load_tiles
from histodistill.training.data.tiles import Tiles
from histodistill.training.engine.accelerator import make_accelerator
from histodistill.training.evaluation.cells import check_same_kind, read_cell, summarise_rows, train_cell
from histodistill.training.evaluation.evaluation_figures import (
    CANDIDATES,
    DISTANCES,
    distance_lines,
    draw_distances,
    draw_tiles,
)
from histodistill.training.evaluation.generation_metrics import frechet_distance, kernel_distance, neighbourhoods
from histodistill.training.models.embedders import embed_images, embedder_fingerprint
from histodistill.training.running.errors import InputError
from histodistill.training.running.files import read_json, write_bytes, write_json
from histodistill.training.running.options import run_script
from histodistill.training.running.stages import Stage, require_complete
from histodistill.training.train_classifier import ClassifierConfig


@torch.no_grad()
def reconstruct(autoencoder: AutoencoderDC, images: np.ndarray, batch_size: int = 256) -> np.ndarray:
    """What is left of uint8 N×H×W×3 images after encoding and decoding; uint8 N×H×W×3."""
    parts = []
    for start in range(0, len(images), batch_size):
        batch = to_model_input(images[start : start + batch_size]).to(autoencoder.device)
        parts.append(to_uint8(autoencoder.decode(autoencoder.encode(batch).latent).sample.float().cpu()))
    return np.concatenate(parts)


def draw_equal(label_sets: list[np.ndarray], num_classes: int, seed: int) -> list[list[np.ndarray]]:
    """As many rows of each class from every set as the set with the fewest has: sizes and class shares then agree.

    Args:
        label_sets: int64 N_i each.
        num_classes: Number of classes C.
        seed: Of the draw.

    Returns:
        For each set, C arrays of row numbers.
    """
    counts = np.stack([np.bincount(labels, minlength=num_classes) for labels in label_sets]).min(axis=0)
    return [
        [
            np.random.default_rng([seed, number, label]).permutation(np.flatnonzero(labels == label))[:count]
            for label, count in enumerate(counts)
        ]
        for number, labels in enumerate(label_sets)
    ]


def measure_distances(real: np.ndarray, generated: np.ndarray, n_neighbors: int) -> dict[str, float | None]:
    """All distances of two sets of embeddings, float N×D; None where there are too few of them."""
    if len(real) <= n_neighbors:
        return dict.fromkeys(DISTANCES)
    return {
        "frechet_distance": frechet_distance(real, generated),
        "kernel_distance": kernel_distance(real, generated),
        **asdict(neighbourhoods(real, generated, n_neighbors)),
    }


def compare_with_validation(
    embeddings: dict[str, np.ndarray], labels: dict[str, np.ndarray], class_names: list[str], n_neighbors: int
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
        record = {"class": class_name, "num_images": len(points["validation"])}
        for name in CANDIDATES:
            record[name] = measure_distances(points["validation"], points[name], n_neighbors)
        records.append(record)
    return records


def accuracy_scores(rows: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Of each architecture trained on all real tiles: accuracy of the other rows ÷ accuracy of that one."""
    accuracy = {(row["architecture"], row["row"]): row["accuracy"]["mean"] for row in rows}
    shares = {}
    for (architecture, row), value in accuracy.items():
        full = accuracy.get((architecture, "real_all"))
        if row != "real_all" and full:
            shares.setdefault(architecture, {})[row] = value / full
    return shares


def main(args: argparse.Namespace) -> None:
    """Measures what is missing, and sums all up in metrics.json."""
    folder = args.output
    records = {
        "pool": require_complete(args.pool, "pool", "run histodistill generate first"),
        "pipeline": require_complete(args.run / "pipeline", "pipeline", "run train_diffusion first"),
    }
    embedder = args.embedder
    if embedder is None:
        embedder = args.run / "teacher"
        records["teacher"] = require_complete(embedder, "teacher", "run train_classifier, or give --embedder")
    # For a folder, its content and not its path.
    embedder_name = None if args.embedder is None else embedder_fingerprint(args.embedder)
    source = load_tiles(args.data, image_size=args.image_size)
    train, validation = source.split("train"), source.split("validation")
    images, columns, class_names = read_image_dataset(args.pool)
    check_same_kind(args.pool, images, class_names, source)
    pool = Tiles(images, columns["label"])
    if len(validation) <= args.n_neighbors:
        raise InputError(
            f"--n-neighbors={args.n_neighbors} is too many for {len(validation)} validation tiles: give fewer"
        )
    settings = {
        "stage": "evaluation",
        "data": source.fingerprint(),
        **{name: record["fingerprint"] for name, record in records.items()},
        "embedder": embedder_name,
        "n_neighbors": args.n_neighbors,
        "train": args.train,
        "seeds": args.seeds,
        "batch_size": args.batch_size,
        "mixed_precision": args.mixed_precision,
    }
    stage = Stage(folder, settings, remedy="give another --output")
    accelerator = make_accelerator(args.mixed_precision)
    accelerator.wait_for_everyone()
    if stage.complete:
        accelerator.print(f"evaluate-pool: {folder} is already finished")
        return
    if accelerator.is_main_process:
        stage.begin()

    # The pictures first: they are there at once.
    if accelerator.is_main_process:
        write_bytes(folder / "tiles.png", draw_tiles(validation, pool, class_names))
        if not (folder / "distances.json").is_file():
            sets = {"validation": validation, "pool": pool, "real_train": train}
            embeddings = {name: embed_images(embedder, tiles.images) for name, tiles in sets.items()}
            labels = {name: tiles.labels for name, tiles in sets.items()}
            distances = compare_with_validation(embeddings, labels, class_names, args.n_neighbors)
            write_json(folder / "distances.json", distances)
        distances = read_json(folder / "distances.json")
        write_bytes(folder / "metrics.png", draw_distances(distances))
        print("\n".join(distance_lines(distances)), flush=True)
        stage.save_progress()
    accelerator.wait_for_everyone()

    @functools.cache
    def reconstructed() -> Tiles:
        autoencoder = AutoencoderDC.from_pretrained(args.run / "pipeline" / "vae").eval().to(accelerator.device)
        return Tiles(reconstruct(autoencoder, train.images), train.labels)

    cells = []
    for architecture, steps, rows in args.plan:
        for row in rows:
            for seed in args.seeds:
                path = folder / f"{architecture}-{row}-seed{seed}.json"
                if cell := read_cell(path):
                    cells.append(cell)
                    continue
                tiles = pool if row == "pool_all" else train
                if row == "reconstructed":
                    tiles = reconstructed()
                accelerator.print(f"{architecture} on {len(tiles)} tiles: {ROWS[row]}, seed {seed}")
                config = ClassifierConfig(
                    architecture=architecture, seed=seed, max_train_steps=steps, batch_size=args.batch_size
                )
                # No step is chosen on the validation tiles: they are what is scored.
                score_on = {"validation": validation}
                cells.append(train_cell(path, row, config, tiles, None, score_on, accelerator, class_names))
                if accelerator.is_main_process:
                    stage.save_progress()
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        rows = summarise_rows(cells, ROWS, "validation")
        shares = accuracy_scores(rows)
        results = {
            "data": source.name,
            "class_names": class_names,
            "embedder": embedder_name or "teacher",
            "n_neighbors": args.n_neighbors,
            "distances": distances,
            "rows": rows,
            "accuracy_score": shares,
        }
        write_json(folder / "metrics.json", results)
        stage.finish(num_processes=accelerator.num_processes)
        for row in rows:
            share = shares.get(row["architecture"], {}).get(row["row"])
            of_real = f", {100 * share:.1f}% of all real tiles" if share else ""
            print(f"{row['architecture']} · {row['title']}: validation ACC {row['accuracy']['mean']:.3f}{of_real}")
        print(f"evaluate-pool: saved to {folder}")
    accelerator.end_training()


if __name__ == "__main__":
    run_script(parse_args, main)
