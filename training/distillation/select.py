"""Selects the distilled set from the pool: what `histodistill select` runs."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from histodistill.hub_cards import DistilledDatasetCardData, render_dataset_card
from histodistill.selection.image_audit import find_copies
from histodistill.training.commands.generate import PIPELINE_OPTIONS
from histodistill.training.commands.select import needs_real_tiles, parse_args
from histodistill.training.data.audit_tiles import real_tiles
from histodistill.training.data.image_dataset import read_image_dataset, write_image_dataset
from histodistill.training.data.sources import load_tiles
from histodistill.training.distillation.community_figures import community_map, community_tiles
from histodistill.training.distillation.pool_selection import SelectionInputs, fit_selector, make_selector
from histodistill.training.models.classifiers import Classifier
from histodistill.training.models.embedders import (
    describe_embedder,
    embed_images,
    embedder_fingerprint,
    named_embeddings,
    resolve_embedder,
)
from histodistill.training.models.prediction import predict_proba
from histodistill.training.running.errors import InputError
from histodistill.training.running.files import read_json, write_text
from histodistill.training.running.options import result_settings, run_script
from histodistill.training.running.stages import Stage, require_complete


def require_enough(copies: np.ndarray, labels: np.ndarray, class_names: list[str], n_per_class: int) -> None:
    """Refuses a pool that is copies of real tiles, but for too few images.

    Raises:
        InputError: Names the class with the fewest left, and what may mend it.
    """
    left = np.bincount(labels[~copies], minlength=len(class_names))
    worst = int(left.argmin())
    if left[worst] < n_per_class:
        total = int((labels == worst).sum())
        raise InputError(
            f"--drop-copies leaves {left[worst]} of the {total} images of {class_names[worst]}, fewer than "
            f"--n-per-class={n_per_class}: the model repeats real tiles; train it on more tiles, for fewer steps or "
            "with fewer channels, or generate more images"
        )


def tiles_of(teacher: Path) -> str:
    """Name of the tiles that a classifier was trained on, from the results beside it.

    Raises:
        InputError: If these are missing or damaged.
    """
    path = teacher / "results.json"
    try:
        return read_json(path)["data"]["train"]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise InputError(
            f"{path} is missing or damaged: give a classifier with all that train_classifier left beside it"
        ) from error


def main(args: argparse.Namespace) -> None:
    """Embeds the pool, fits the selector, and writes both results."""
    pool_record = require_complete(args.pool, "pool", "run histodistill generate first")
    teacher_record = require_complete(args.teacher, "classifier", "run train_classifier on the real tiles first")
    images, columns, class_names = read_image_dataset(args.pool)
    labels = columns["label"]
    inputs = {
        "pool": pool_record["fingerprint"],
        "teacher": teacher_record["fingerprint"],
        "embedder": embedder_fingerprint(args.embedder),
    }
    if args.drop_copies:
        inputs["copy_embedders"] = [embedder_fingerprint(name) for name in args.copy_embedders]
    source = real = None
    if needs_real_tiles(args):
        source = load_tiles(args.data, image_size=images.shape[1])
        if source.class_names != class_names:
            raise InputError(
                f"--data {args.data} has other classes than the pool ({_short(source.class_names)} and not "
                f"{_short(class_names)}): give the tiles that the pipeline was trained on"
            )
        inputs["data"] = source.fingerprint()
    if args.typical_share is not None:  # nothing else goes by embeddings of real tiles
        real = source.split("train")
    stage = Stage(args.output / "distilled", {"stage": "distilled", **inputs, **result_settings(args)})
    stage.require_own_folder()
    if stage.complete and (args.output / "selector" / "config.json").is_file():
        print(f"select: {args.output / 'distilled'} is already finished")
        return
    source_name = tiles_of(args.teacher)
    make_selector(args)  # refuses what is out of range before the embedding, which takes a while
    teacher = Classifier.from_pretrained(args.teacher)
    if teacher.class_names != class_names:
        raise InputError(
            f"--teacher {args.teacher} knows other classes than the pool ({_short(teacher.class_names)} and not "
            f"{_short(class_names)}): give a classifier trained on the tiles that the pipeline was trained on"
        )
    embedder = resolve_embedder(args.embedder, args.teacher)
    copies = np.zeros(len(images), dtype=bool)
    if args.drop_copies:
        tiles, embeddings = real_tiles(source), named_embeddings(args.copy_embedders)
        try:
            copies, _ = find_copies(images, tiles, embeddings, args.seed)
        except ValueError as error:  # what the tiles are not fit for
            raise InputError(f"--drop-copies cannot tell copies by the tiles of {args.data}: {error}") from error
        require_enough(copies, labels, class_names, args.n_per_class)
    known = SelectionInputs(
        embeddings=embed_images(embedder, images),
        labels=labels,
        probabilities=predict_proba(teacher, images).astype(np.float32),
        real_embeddings=embed_images(embedder, real.images) if real else None,
        real_labels=real.labels if real else None,
        copies=copies,
    )
    selection = fit_selector(args, known, class_names)
    for note in selection.notes:
        print(f"warning: {note}")
    selector = selection.selector
    chosen = selector.selected_indices_
    communities = selection.communities.module_labels_
    centrality = selection.communities.modular_centrality_
    distilled = {
        "label": labels[chosen],
        "soft_label": known.probabilities[chosen],
        "seed": columns["seed"][chosen],
        "community": communities[chosen],
        "modular_centrality": centrality[chosen],
    }
    stage.begin()
    folder = args.output / "selector"
    selector.save_pretrained(folder)
    community_map(known.embeddings, labels, communities, chosen, class_names, folder / "community_map.png")
    community_tiles(images, labels, communities, centrality, chosen, class_names, folder / "community_tiles.png")
    features = write_image_dataset(args.output / "distilled" / "data", images[chosen], distilled, class_names)
    filters = {name: getattr(args, name) for name in ("min_probability", "typical_share") if getattr(args, name)}
    if args.drop_copies:
        filters["copies of real tiles"] = f"{int(copies.sum())} of {len(images)} images dropped"
    card = DistilledDatasetCardData(
        class_names=class_names,
        n_per_class=args.n_per_class,
        image_size=images.shape[1],
        pool_size=len(images),
        selector=type(selector).__name__,
        selector_params=selector.get_params(),
        embedder=describe_embedder(args.embedder),
        filters=filters,
        generation={name: pool_record["settings"][name] for name in PIPELINE_OPTIONS},
        features=features,
        source_name=source_name,
    )
    write_text(args.output / "distilled" / "README.md", render_dataset_card(card))
    stage.finish(
        num_images=len(chosen),
        community_sizes=community_sizes(communities, labels, class_names),
        dropped=count_by_class(~selection.candidates & ~copies, labels, class_names),
        copies_dropped=count_by_class(copies, labels, class_names) if args.drop_copies else None,
        warnings=selection.notes,
    )
    print(f"select: {len(chosen)} of {len(images)} images saved to {args.output / 'distilled'}")


def count_by_class(chosen: np.ndarray, labels: np.ndarray, class_names: list[str]) -> dict[str, int]:
    """How many of each class `chosen`, bool N, holds."""
    return {name: int(chosen[labels == label].sum()) for label, name in enumerate(class_names)}


def community_sizes(communities: np.ndarray, labels: np.ndarray, class_names: list[str]) -> dict[str, list[int]]:
    """Sizes of the communities of each class, largest first; -1 is none."""
    sizes = {}
    for label, name in enumerate(class_names):
        mine = communities[labels == label]
        sizes[name] = sorted(np.unique(mine[mine >= 0], return_counts=True)[1].tolist(), reverse=True)
    return sizes


def _short(class_names: list[str]) -> str:
    return ", ".join(class_names[:4]) + (", …" if len(class_names) > 4 else "")


if __name__ == "__main__":
    run_script(parse_args, main)
