"""The card of a distilled dataset."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from huggingface_hub import DatasetCardData

from histodistill.hub_cards.card_facts import PRECISIONS, RunFacts, split_scores
from histodistill.hub_cards.group_facts import GroupFacts
from histodistill.hub_cards.rendering import render_card, size_category
from histodistill.hub_cards.review_facts import ReviewFacts
from histodistill.hub_cards.uploading import MARK


if TYPE_CHECKING:
    from datasets import Features

#: What the heading of a card begins with; the name of the source follows, and `histodistill merge` finds it there.
TITLE = "Distilled "
#: What stands in the heading in place of a source that has no name.
NO_SOURCE = "image dataset"
#: By this sentence in a card `histodistill merge` tells that a set was distilled from drawings.
NOT_TISSUE = "They are not tissue"
# What each column of a distilled set means; `{size}` is the side of the images in pixels.
_COLUMNS = {
    "image": "the synthetic image, {size}×{size} pixels, RGB, PNG",
    "label": "its class",
    "soft_label": "probability of each class according to a classifier trained on the real tiles, to 4 digits",
    "soft_label_views": "the same of further views of the image, as codes of 8 bits: see below",
    "seed": "seed from which the generating pipeline made the image",
    "community": "community of the image in the nearest-neighbour graph of the pool of its class; numbered through "
    "all classes",
    "modular_centrality": "modular centrality of the image in that graph, to 4 digits, comparable within a class",
    "rank": "its place in the order in which the images of its class were chosen, the first being 1",
}
# What columns mean in a merged set, where that is something else.
# The same where all steps are within a budget of differential privacy.
_PRIVATE_COLUMNS = {
    "soft_label": "probability of each class according to a classifier trained on generated images, to 4 digits",
}
_MERGED_COLUMNS = {
    "soft_label": "probability of each class according to a classifier trained on the real tiles of the site, to "
    "4 digits, and 0 of a class that the site does not have",
    "seed": "seed from which the site's own pipeline made the image",
    "community": "community of the image in the nearest-neighbour graph of the site's pool of its class; numbered "
    "through all classes and sites",
    "modular_centrality": "modular centrality of the image in that graph, to 4 digits, comparable within a class of "
    "one site",
    "rank": "its place in the order in which the site's images of its class were chosen, the first being 1",
    "site": "the site that the image comes from",
}


@dataclass(kw_only=True)
class DistilledDatasetCardData:
    """What the card of a distilled dataset says.

    Attributes:
        class_names: Names of the labels; the index is the label.
        n_per_class: Images of each class; a number for each class where these differ.
        image_size: Side of the images in pixels.
        pool_size: Generated images, of all classes together, that the selector chose from; none in a merged set.
        selector: Class name of the selector; none in a merged set.
        selector_params: Its parameters.
        features: Of the dataset; with the columns `image` and `label`.
        embedder: What embedded the images for it.
        encoders: Models from elsewhere that it was made with, one mapping for each: `name`, `license`, None where it
            is not known, and `use`, what it did, as the end of a sentence.
        source_name: Name of the real tiles' source; `phantom` is called drawings, not histology.
        license: Licence identifier of the Hub, such as `cc-by-4.0`.
        attribution: Whom to credit for the real tiles.
        results: Scores of classifiers on real test tiles, one mapping for each training set and architecture:
            `title`, `architecture`, `num_train`, and `accuracy`, `auc`, `f1`, each `{"mean": .., "std": ..}`.
        filters: What an image of the pool had to pass before the selector saw it, name → value.
        generation: What the pipeline is called with to make an image again from its seed, option → value.
        precision: A key of `PRECISIONS`: that of the pool.
        review: What became of the images that people looked at; None where nobody did.
        sites: What a merged set was joined from, one mapping for each: `name`, `num_images`, `n_per_class` (a number
            for each class), `is_phantom`, and, each None where it is not known, `source_name`, `license`, `selector`,
            `pool_size`, the `fingerprint` of the site's record, and `groups`, as `GroupFacts` has them.
        facts: Of the run, for a published set; with the id of its repository.
        has_grid: Whether `assets/distilled.png` is there.
        has_map: Whether `assets/community_map.png` is there.

    Raises:
        ValueError: For numbers below 1, and for a selector, numbers and features that are missing or do not fit.
    """

    class_names: list[str]
    n_per_class: int | Sequence[int]
    image_size: int
    pool_size: int | None = None
    selector: str | None = None
    selector_params: Mapping[str, Any] = field(default_factory=dict)
    features: Features
    embedder: str | None = None
    encoders: Sequence[Mapping[str, Any]] = field(default_factory=list)
    source_name: str | None = None
    license: str | None = None
    attribution: str | None = None
    results: Sequence[Mapping[str, Any]] = field(default_factory=list)
    filters: Mapping[str, Any] = field(default_factory=dict)
    generation: Mapping[str, Any] = field(default_factory=dict)
    precision: str = "no"
    review: ReviewFacts | None = None
    sites: Sequence[Mapping[str, Any]] = field(default_factory=list)
    facts: RunFacts | None = None
    has_grid: bool = False
    has_map: bool = False

    def __post_init__(self) -> None:
        numbers = {"n_per_class": min(self.class_counts, default=0), "image_size": self.image_size}
        if not self.sites:
            numbers["pool_size"] = self.pool_size or 0
        for name, number in numbers.items():
            if number < 1:
                raise ValueError(f"{name}={getattr(self, name)} is out of range: it must be at least 1")
        if len(self.class_counts) != len(self.class_names):
            raise ValueError(f"n_per_class={self.n_per_class} does not fit: give one number, or one for each class")
        if not self.sites and not self.selector:
            raise ValueError("selector is missing: name it, or give the sites of a merged set")
        missing = [name for name in ("image", "label") if name not in self.features]
        if missing:
            raise ValueError(f"features have no {missing[0]!r} column: give those of a distilled dataset")
        names = getattr(self.features["label"], "names", None)
        if names != list(self.class_names):
            raise ValueError(f"the label of features has the names {names}: they must be class_names")

    @property
    def class_counts(self) -> list[int]:
        """Images of each class."""
        if isinstance(self.n_per_class, int):
            return [self.n_per_class] * len(self.class_names)
        return list(self.n_per_class)

    @property
    def num_images(self) -> int:
        """Images of all classes together."""
        return sum(self.class_counts)

    @property
    def phantom_sites(self) -> list[str]:
        """Names of the sites whose "real" tiles were the built-in drawings."""
        return [site["name"] for site in self.sites if site["is_phantom"]]

    @property
    def is_phantom(self) -> bool:
        """Whether the "real" tiles, or those of any site, were the built-in drawings."""
        if self.facts:
            return self.facts.is_phantom
        return self.source_name == "phantom" or bool(self.phantom_sites)

    def metadata(self) -> DatasetCardData:
        """The YAML header; with it `load_dataset` opens the folder with the right features."""
        subject = [] if self.is_phantom else ["histopathology", "medical"]
        return DatasetCardData(
            pretty_name=self.title(),
            license=self.license,
            task_categories=["image-classification"],
            size_categories=[size_category(self.num_images)],
            tags=[*subject, "synthetic", "dataset-distillation", MARK],
            **set_structure(self.features),
        )

    def title(self) -> str:
        """The heading."""
        if self.sites and self.facts and self.facts.name:
            return f"{TITLE}{self.facts.name}, merged from {len(self.sites)} sites"
        if self.sites:
            return f"Merged from {len(self.sites)} sites: distilled image dataset"
        return TITLE + (self.source_name or NO_SOURCE)

    def columns(self) -> list[dict[str, str]]:
        """Name, type and meaning of each column, in order."""
        meanings = _COLUMNS | _MERGED_COLUMNS if self.sites else _COLUMNS
        if self.facts and self.facts.is_within_budget:
            meanings = meanings | _PRIVATE_COLUMNS
        rows = []
        for name, feature in self.features.items():
            meaning = meanings.get(name, "").format(size=self.image_size)
            rows.append({"name": name, "type": _type_name(feature), "meaning": meaning})
        return rows


def set_structure(features: Features) -> dict[str, Any]:
    """What the YAML header of a set's card says of its files and columns, `configs` and `dataset_info`.

    Args:
        features: Of the dataset.
    """
    from datasets import DatasetInfo
    from datasets.info import DatasetInfosDict

    files = [{"split": "train", "path": "data/train-*.parquet"}]
    header = DatasetCardData(configs=[{"config_name": "default", "data_files": files}])
    DatasetInfosDict({"default": DatasetInfo(features=features)}).to_dataset_card_data(header)
    return header.to_dict()


def render_dataset_card(card: DistilledDatasetCardData) -> str:
    """The README.md of a distilled dataset's folder: YAML header and Markdown."""
    own_row = card.facts.own_row if card.facts else None
    results, more_results = split_scores(card.results, own_row)
    values: dict[str, Any] = {"card": card, "facts": card.facts, "results": results, "more_results": more_results}
    values |= {"not_tissue": NOT_TISSUE, "span": _span, "precision": PRECISIONS[card.precision]}
    values["groups_of"] = _groups_of
    return render_card(card.metadata(), "dataset_card.md", values)


def _span(counts: Sequence[int]) -> str:
    """Numbers that may be alike: `3`, or `2 to 4`."""
    low, high = min(counts), max(counts)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def _groups_of(site: Mapping[str, Any]) -> str:
    """How many groups the tiles of a site are of: `18 patients`."""
    groups = site.get("groups")
    return "–" if groups is None else GroupFacts(**groups).count(groups["train"])


def _type_name(feature: Any) -> str:
    kind = type(feature).__name__
    if kind == "Value":
        return feature.dtype
    if kind == "List":
        length = "" if feature.length < 0 else f"{feature.length} × "
        return f"list of {length}{_type_name(feature.feature)}"
    return kind
