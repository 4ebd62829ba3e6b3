"""What a distilled set is made from, and how it is written: images, selector, pictures and card."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Features

from histodistill.hub_cards import DistilledDatasetCardData, render_dataset_card
from histodistill.hub_cards.review_facts import ReviewFacts
from histodistill.hub_cards.weights import round_selector_values
from histodistill.selection.image_audit import find_copies
from histodistill.selection.image_rows import Images
from histodistill.training.data.audit_tiles import real_tiles
from histodistill.training.data.image_dataset import open_image_table, write_image_dataset
from histodistill.training.data.medmnist import public_name
from histodistill.training.data.sources import load_tiles
from histodistill.training.data.tiles import Tiles, TileSource
from histodistill.training.distillation.community_figures import community_map, community_tiles
from histodistill.training.distillation.label_views import label_views
from histodistill.training.distillation.pool_selection import Selection, SelectionInputs
from histodistill.training.distillation.selector_options import SelectorConfig
from histodistill.training.generate import CALL_OPTIONS, PIPELINE_OPTIONS
from histodistill.training.models.classifiers import Classifier
from histodistill.training.models.devices import best_device
from histodistill.training.models.embedders import (
    describe_embedder,
    embed_pool,
    embedder_fingerprint,
    named_embeddings,
)
from histodistill.training.models.encoder_licences import for_cards
from histodistill.training.models.loading import load_classifier
from histodistill.training.models.prediction import predict_proba
from histodistill.training.running.errors import InputError, param
from histodistill.training.running.files import read_json, write_text
from histodistill.training.running.stages import require_complete


# What may mend it where too many images are copies.
_LESS_COPYING = (
    "the model repeats real tiles; train it on more tiles, for fewer steps or with fewer channels, or generate more "
    "images"
)


@dataclass(frozen=True, repr=False)
class Sources:
    """What a distilled set is made from, read but not looked into.

    Attributes:
        images: uint8 N×S×S×3, the pool; of a large one they are read when they are asked for.
        columns: Name → array of N: the pool's other columns, with `label` and `seed`.
        class_names: Names of the labels.
        pool_record, teacher_record: The stage records of pool and teacher.
        data: The real tiles as the user names them, or None where no option goes by them.
        real: The real tiles, or None.
    """

    images: Images
    columns: dict[str, np.ndarray]
    class_names: list[str]
    pool_record: dict[str, Any]
    teacher_record: dict[str, Any]
    data: str | Path | None
    real: TileSource | None

    @property
    def labels(self) -> np.ndarray:
        """int64 N, the classes that the images were generated as."""
        return self.columns["label"]

    def fingerprints(self, embedder: str | Path, copy_embedders: Sequence[str] | None) -> dict[str, Any]:
        """What the record of the stage says of its inputs, none of them by its path.

        Args:
            embedder: The embedding space of the selection.
            copy_embedders: Those in which copies are looked for; None if they are not.
        """
        inputs = {
            "pool": self.pool_record["fingerprint"],
            "teacher": self.teacher_record["fingerprint"],
            "embedder": embedder_fingerprint(embedder),
        }
        if copy_embedders is not None:
            inputs["copy_embedders"] = [embedder_fingerprint(name) for name in copy_embedders]
        if self.real is not None:
            inputs["data"] = self.real.fingerprint()
        return inputs


def read_sources(
    pool: Path, teacher: Path, data: str | Path | None, source_options: Mapping[str, Any] | None = None
) -> Sources:
    """Reads the pool, the records, and the real tiles.

    Args:
        pool: Folder that `generate` left.
        teacher: Folder of a classifier trained on the real tiles.
        data: The real tiles, as `load_tiles` takes them; None where no option goes by them.
        source_options: What `load_tiles` is told of their groups.

    Raises:
        InputError: If pool or teacher is not finished, the pool is damaged, or the real tiles cannot be read or have
            other classes than the pool.
    """
    pool_record = require_complete(pool, "pool", "run histodistill generate first")
    teacher_record = require_complete(teacher, "classifier", "run train_classifier on the real tiles first")
    table = open_image_table(pool)
    real = None
    if data is not None:
        real = load_tiles(data, image_size=table.images.shape[1], **(source_options or {}))
        if real.class_names != table.class_names:
            raise InputError(
                f"{param('data')} {data} has other classes than the pool ({_short(real.class_names)} and not "
                f"{_short(table.class_names)}): give the tiles that the pipeline was trained on"
            )
    return Sources(table.images, table.columns, table.class_names, pool_record, teacher_record, data, real)


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


def load_teacher(folder: Path, class_names: list[str]) -> Classifier:
    """The teacher, on the GPU if there is one.

    Raises:
        InputError: If it tells other classes than those of the pool.
    """
    teacher = load_classifier(folder)
    if teacher.class_names != class_names:
        raise InputError(
            f"{param('teacher')} {folder} knows other classes than the pool ({_short(teacher.class_names)} and not "
            f"{_short(class_names)}): give a classifier trained on the tiles that the pipeline was trained on"
        )
    return teacher.to(best_device())


def copies_in_pool(sources: Sources, embedders: Sequence[str], n_per_class: int, seed: int) -> np.ndarray:
    """Which images of the pool are copies of a real tile: N bool.

    Args:
        sources: What the set is made from, with real tiles.
        embedders: Embedding spaces, beside pixels, in which copies are looked for.
        n_per_class: Images that are to be chosen of each class.
        seed: Of the limits of what is a copy.

    Raises:
        InputError: If that cannot be told by the real tiles, or too few images are left.
    """
    assert sources.real is not None  # `drop_copies` goes by them
    tiles, embeddings = real_tiles(sources.real), named_embeddings(embedders)
    try:
        copies, _ = find_copies(sources.images, tiles, embeddings, seed)
    except ValueError as error:  # what the tiles are not fit for
        raise InputError(
            f"{param('drop_copies')} cannot tell copies by the tiles of {sources.data}: {error}"
        ) from error
    require_enough(copies, sources.labels, sources.class_names, n_per_class)
    return copies


def require_enough(
    forbidden: np.ndarray,
    labels: np.ndarray,
    class_names: list[str],
    n_per_class: int,
    option: str = "drop_copies",
    remedy: str = _LESS_COPYING,
) -> None:
    """Refuses a pool of which too few images may be chosen.

    Args:
        forbidden: N bool, the others; by default since they are copies of real tiles.
        labels: int64 N.
        class_names: Names of the labels.
        n_per_class: Images that are to be chosen of each class.
        option: The option that leaves them out.
        remedy: The end of the error's sentence.

    Raises:
        InputError: Names the class with the fewest left, and what may mend it.
    """
    left = np.bincount(labels[~forbidden], minlength=len(class_names))
    worst = int(left.argmin())
    if left[worst] < n_per_class:
        total = int((labels == worst).sum())
        raise InputError(
            f"{param(option)} leaves {left[worst]} of the {total} images of {class_names[worst]}, fewer than "
            f"{param('n_per_class')}={n_per_class}: {remedy}"
        )


def gather_inputs(
    sources: Sources,
    teacher: Classifier,
    embedder: str | Path,
    by_real_tiles: bool,
    copies: np.ndarray | None,
    left_out: np.ndarray | None = None,
) -> SelectionInputs:
    """Embeds the pool, and asks the teacher what it sees.

    Args:
        sources: What the set is made from.
        teacher: Of the classes of the pool.
        embedder: What `embed_pool` takes.
        by_real_tiles: Whether the selection goes by embeddings of real training tiles too.
        copies: N bool, the copies of real tiles, which must not be chosen; None for no such image.
        left_out: N bool, what reviewers left out, likewise.

    Raises:
        InputError: For an embedder that cannot be loaded.
    """
    real = None
    if by_real_tiles:
        assert sources.real is not None
        real = sources.real.split("train")
    embeddings, real_embeddings = embed_pool(embedder, sources.images, real.images if real else None)
    return SelectionInputs(
        embeddings=embeddings,
        labels=sources.labels,
        probabilities=predict_proba(teacher, sources.images).astype(np.float32),
        real_embeddings=real_embeddings,
        real_labels=real.labels if real else None,
        copies=copies,
        left_out=left_out,
    )


def write_selector(folder: Path, selection: Selection, inputs: SelectionInputs, sources: Sources) -> None:
    """Writes the fitted selector, and the pictures of the pool's communities beside it."""
    communities, centrality = selection.communities.module_labels_, selection.communities.modular_centrality_
    labels, chosen, names = sources.labels, selection.chosen, sources.class_names
    # As it is published: what is not whole is rounded.
    numbers = {name: value for name, value in vars(selection.selector).items() if isinstance(value, np.ndarray)}
    selector = copy(selection.selector)
    for name, value in round_selector_values(numbers).items():
        setattr(selector, name, value)
    selector.save_pretrained(folder)
    community_map(inputs.embeddings, labels, communities, chosen, names, folder / "community_map.png")
    community_tiles(sources.images, labels, communities, centrality, chosen, names, folder / "community_tiles.png")


def write_images(
    folder: Path,
    selection: Selection,
    inputs: SelectionInputs,
    sources: Sources,
    teacher: Classifier,
    num_views: int = 1,
) -> Features:
    """Writes the chosen images, best first within a class, with what is known of each.

    Args:
        folder: The `data` folder of the dataset.
        selection, inputs, sources: What was chosen, by what, and of what.
        teacher: Of the soft labels of views.
        num_views: Views of each image of which there are soft labels, the image as it is included.

    Returns:
        The features of the dataset.
    """
    chosen = selection.chosen
    images = sources.images[chosen]
    columns = {
        "label": sources.labels[chosen],
        "soft_label": inputs.probabilities[chosen],
        "seed": sources.columns["seed"][chosen],
        "community": selection.communities.module_labels_[chosen],
        "modular_centrality": selection.communities.modular_centrality_[chosen],
        # The best of each class come first.
        "rank": np.arange(len(chosen)) % selection.selector.n_per_class + 1,
    }
    if num_views > 1:
        tiles = Tiles(images, columns["label"])
        columns["soft_label_views"] = label_views(teacher, tiles, columns["rank"], num_views).codes
    return write_image_dataset(folder, images, columns, sources.class_names)


def write_card(
    path: Path,
    config: SelectorConfig,
    selection: Selection,
    inputs: SelectionInputs,
    sources: Sources,
    features: Features,
    *,
    embedder: str | Path,
    tiles_name: str,
    encoders: Sequence[Mapping[str, Any]] = (),
    review: ReviewFacts | None = None,
) -> None:
    """Writes the card of the distilled set.

    Args:
        path: The README.md.
        config: How it was chosen.
        selection, inputs, sources: What came out, by what, and of what.
        features: Of the dataset.
        embedder: The embedding space of the selection.
        tiles_name: Name of the real tiles.
        encoders: Those from elsewhere: see `encoder_records`.
        review: What became of the images that people looked at; None where nobody did.
    """
    filters = {name: getattr(config, name) for name in ("min_probability", "typical_share") if getattr(config, name)}
    if inputs.copies is not None:
        filters["copies of real tiles"] = f"{int(inputs.copies.sum())} of {len(inputs.copies)} images dropped"
    card = DistilledDatasetCardData(
        class_names=sources.class_names,
        n_per_class=config.n_per_class,
        image_size=sources.images.shape[1],
        pool_size=len(sources.images),
        selector=type(selection.selector).__name__,
        selector_params=selection.selector.get_params(),
        embedder=describe_embedder(embedder),
        filters=filters,
        generation={name: sources.pool_record["settings"][name] for name in CALL_OPTIONS},
        precision=sources.pool_record["settings"]["mixed_precision"],
        features=features,
        source_name=public_name(tiles_name, sources.class_names),
        encoders=for_cards(encoders),
        review=review,
    )
    write_text(path, render_dataset_card(card))


def generation_of(pool_record: Mapping[str, Any]) -> dict[str, Any]:
    """What the record of the stage says of how its images are made again: see `Generation`."""
    settings = pool_record["settings"]
    found = {name: settings[name] for name in (*PIPELINE_OPTIONS, "chunk_size")}
    return {**found, "pipeline": pool_record.get("inputs", {}).get("pipeline")}


def count_images(selection: Selection, inputs: SelectionInputs, class_names: list[str]) -> dict[str, Any]:
    """What the record of the stage says of the images: how many were chosen and dropped, and their communities."""
    labels, copies = inputs.labels, inputs.copies
    filtered = ~selection.candidates & ~inputs.forbidden
    sizes, chosen = count_communities(selection.communities.module_labels_, labels, selection.chosen, class_names)
    return {
        "num_images": len(selection.chosen),
        "community_sizes": sizes,
        "community_chosen": chosen,
        "dropped": count_by_class(filtered, labels, class_names),
        "copies_dropped": None if copies is None else count_by_class(copies, labels, class_names),
        "warnings": selection.notes,
    }


def count_by_class(chosen: np.ndarray, labels: np.ndarray, class_names: list[str]) -> dict[str, int]:
    """How many of each class `chosen`, bool N, holds."""
    return {name: int(chosen[labels == label].sum()) for label, name in enumerate(class_names)}


def count_communities(
    communities: np.ndarray, labels: np.ndarray, chosen: np.ndarray, class_names: list[str]
) -> tuple[dict[str, list[int]], dict[str, list[int]]]:
    """How many images each community of a class has, and how many of these were chosen.

    Args:
        communities: int N; -1 is none.
        labels: int N.
        chosen: int K, indices into the N images.
        class_names: Names of the labels.

    Returns:
        Two mappings of class → numbers, the largest community first.
    """
    is_chosen = np.zeros(len(labels), bool)
    is_chosen[chosen] = True
    sizes, picked = {}, {}
    for label, name in enumerate(class_names):
        mine = (labels == label) & (communities >= 0)
        found, counts = np.unique(communities[mine], return_counts=True)
        of_these = [int(is_chosen[mine & (communities == community)].sum()) for community in found]
        ranked = sorted(zip(counts.tolist(), of_these, strict=True), reverse=True)
        sizes[name], picked[name] = [size for size, _ in ranked], [number for _, number in ranked]
    return sizes, picked


def _short(class_names: list[str]) -> str:
    return ", ".join(class_names[:4]) + (", …" if len(class_names) > 4 else "")
