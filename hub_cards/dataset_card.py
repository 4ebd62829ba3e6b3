"""The card of a distilled dataset."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from huggingface_hub import DatasetCardData

from histodistill.hub_cards.rendering import render_card, size_category


if TYPE_CHECKING:
    from datasets import Features

_COLUMNS = {
    "image": "the synthetic image, {size}×{size} pixels, RGB, PNG",
    "label": "its class",
    "soft_label": "probability of each class according to a classifier trained on the real tiles",
    "seed": "seed from which the generating pipeline made the image",
    "community": "community of the image in the nearest-neighbour graph of the pool of its class; numbered through "
    "all classes",
    "modular_centrality": "modular centrality of the image in that graph, comparable within a class",
}


@dataclass(kw_only=True)
class DistilledDatasetCardData:
    """What the card of a distilled dataset says.

    Attributes:
        class_names: names of the labels; the index is the label.
        n_per_class: images of each class.
        image_size: side of the images in pixels.
        pool_size: generated images, of all classes together, that the selector chose from.
        selector: class name of the selector.
        selector_params: its parameters.
        features: of the dataset; with the columns `image` and `label`.
        embedder: what embedded the images for it.
        source_name: name of the real tiles' source; `phantom` is called drawings, not histology.
        license: licence identifier of the Hub, such as `cc-by-4.0`.
        attribution: whom to credit for the real tiles.
        results: scores of classifiers on real test tiles, one mapping for each training set and architecture:
            `title`, `architecture`, `num_train`, and `accuracy`, `auc`, `f1`, each `{"mean": .., "std": ..}`.
        filters: what an image of the pool had to pass before the selector saw it, name → value.
        generation: options of the pipeline that, with its seed, make an image again, name → value.

    Raises:
        ValueError: for numbers below 1, and for features that do not fit the class names.
    """

    class_names: list[str]
    n_per_class: int
    image_size: int
    pool_size: int
    selector: str
    selector_params: Mapping[str, Any]
    features: Features
    embedder: str | None = None
    source_name: str | None = None
    license: str | None = None
    attribution: str | None = None
    results: Sequence[Mapping[str, Any]] = field(default_factory=list)
    filters: Mapping[str, Any] = field(default_factory=dict)
    generation: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("n_per_class", "image_size", "pool_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} is out of range: it must be at least 1")
        missing = [name for name in ("image", "label") if name not in self.features]
        if missing:
            raise ValueError(f"features have no {missing[0]!r} column: give those of a distilled dataset")
        names = getattr(self.features["label"], "names", None)
        if names != list(self.class_names):
            raise ValueError(f"the label of features has the names {names}: they must be class_names")

    @property
    def num_images(self) -> int:
        """Images of all classes together."""
        return self.n_per_class * len(self.class_names)

    @property
    def is_phantom(self) -> bool:
        """Whether the "real" tiles were the built-in drawings."""
        return self.source_name == "phantom"

    def metadata(self) -> DatasetCardData:
        """The YAML header; with it `load_dataset` opens the folder with the right features."""
        from datasets import DatasetInfo
        from datasets.info import DatasetInfosDict

        subject = [] if self.is_phantom else ["histopathology", "medical"]
        metadata = DatasetCardData(
            pretty_name=self.title(),
            license=self.license,
            task_categories=["image-classification"],
            size_categories=[size_category(self.num_images)],
            tags=[*subject, "synthetic", "dataset-distillation", "histodistill"],
            configs=[
                {"config_name": "default", "data_files": [{"split": "train", "path": "data/train-*.parquet"}]},
            ],
        )
        DatasetInfosDict({"default": DatasetInfo(features=self.features)}).to_dataset_card_data(metadata)
        return metadata

    def title(self) -> str:
        """The heading."""
        return f"Distilled {self.source_name}" if self.source_name else "Distilled image dataset"

    def columns(self) -> list[dict[str, str]]:
        """Name, type and meaning of each column, in order."""
        rows = []
        for name, feature in self.features.items():
            meaning = _COLUMNS.get(name, "").format(size=self.image_size)
            rows.append({"name": name, "type": _type_name(feature), "meaning": meaning})
        return rows


def render_dataset_card(card: DistilledDatasetCardData) -> str:
    """The README.md of a distilled dataset's folder: YAML header and Markdown."""
    return render_card(card.metadata(), "dataset_card.md", {"card": card})


def _type_name(feature: Any) -> str:
    kind = type(feature).__name__
    if kind == "Value":
        return feature.dtype
    if kind == "List":
        length = "" if feature.length < 0 else f"{feature.length} × "
        return f"list of {length}{_type_name(feature.feature)}"
    return kind
