"""Selects the distilled set from the pool: what `histodistill select` runs."""

from __future__ import annotations

import argparse
import warnings

import numpy as np

from histodistill.hub_cards import DistilledDatasetCardData, render_dataset_card
from histodistill.selection import SELECTORS, DegenerateGraphWarning
from histodistill.training.classifiers import Classifier
from histodistill.training.commands.select import parse_args
from histodistill.training.embedders import embed_images, is_classifier
from histodistill.training.errors import InputError
from histodistill.training.files import read_json, write_text
from histodistill.training.image_dataset import read_image_dataset, write_image_dataset
from histodistill.training.options import result_settings, run_script
from histodistill.training.scoring import predict_proba
from histodistill.training.stages import Stage, require_complete


def make_selector(args: argparse.Namespace):
    """The selector that the options describe, not yet fitted."""
    options = {"n_per_class": args.n_per_class, "random_state": args.seed}
    if args.selector == "infomap":
        names = ("n_neighbors", "weighting", "markov_time", "num_trials", "quota")
        options |= {name: getattr(args, name) for name in names}
    return SELECTORS[args.selector](**options)


def main(args: argparse.Namespace) -> None:
    """Embeds the pool, fits the selector, and writes both results."""
    pool_record = require_complete(args.pool, "pool", "run histodistill generate first")
    teacher_record = require_complete(args.teacher, "classifier", "run train_classifier on the real tiles first")
    if not is_classifier(args.teacher):
        raise InputError(f"--teacher {args.teacher} is no classifier: give a folder that train_classifier left")
    inputs = {"pool": pool_record["fingerprint"], "teacher": teacher_record["fingerprint"], "embedder": args.embedder}
    stage = Stage(args.output / "distilled", {"stage": "distilled", **inputs, **result_settings(args)})
    if stage.complete and (args.output / "selector" / "config.json").is_file():
        print(f"select: {args.output / 'distilled'} is already finished")
        return
    images, columns, class_names = read_image_dataset(args.pool)
    labels = columns["label"]
    teacher = Classifier.from_pretrained(args.teacher)
    if teacher.class_names != class_names:
        raise InputError(
            f"--teacher {args.teacher} knows other classes than the pool ({_short(teacher.class_names)} and not "
            f"{_short(class_names)}): give a classifier trained on the tiles that the pipeline was trained on"
        )
    selector = make_selector(args)
    embeddings = embed_images(args.embedder or args.teacher, images)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", DegenerateGraphWarning)
        try:
            selector.fit(embeddings, labels)
        except ValueError as error:
            raise InputError(str(error)) from error
    notes = [str(w.message) for w in caught if issubclass(w.category, DegenerateGraphWarning)]
    for note in notes:
        print(f"warning: {note}")
    chosen = selector.selected_indices_
    unknown = np.zeros(len(labels))
    distilled = {
        "label": labels[chosen],
        "soft_label": predict_proba(teacher, images[chosen]).astype(np.float32),
        "seed": columns["seed"][chosen],
        # Only Infomap finds communities; every other selector leaves one, with no centrality.
        "community": getattr(selector, "module_labels_", unknown.astype(np.int64))[chosen],
        "modular_centrality": getattr(selector, "modular_centrality_", unknown)[chosen],
    }
    stage.begin()
    selector.save_pretrained(args.output / "selector")
    features = write_image_dataset(args.output / "distilled" / "data", images[chosen], distilled, class_names)
    card = DistilledDatasetCardData(
        class_names=class_names,
        n_per_class=args.n_per_class,
        image_size=images.shape[1],
        pool_size=len(images),
        selector=type(selector).__name__,
        selector_params=selector.get_params(),
        features=features,
        source_name=read_json(args.teacher / "results.json")["data"]["train"],
    )
    write_text(args.output / "distilled" / "README.md", render_dataset_card(card))
    sizes = {}
    if hasattr(selector, "module_labels_"):
        for label, name in enumerate(class_names):
            counts = np.unique(selector.module_labels_[labels == label], return_counts=True)[1]
            sizes[name] = sorted(counts.tolist(), reverse=True)
    stage.finish(num_images=len(chosen), community_sizes=sizes, warnings=notes)
    print(f"select: {len(chosen)} of {len(images)} images saved to {args.output / 'distilled'}")


def _short(class_names: list[str]) -> str:
    return ", ".join(class_names[:4]) + (", …" if len(class_names) > 4 else "")


if __name__ == "__main__":
    run_script(parse_args, main)
