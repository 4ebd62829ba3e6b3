"""The card of a published selector."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from huggingface_hub import ModelCardData

from histodistill.hub_cards.card_facts import RunFacts, split_scores
from histodistill.hub_cards.rendering import render_card
from histodistill.hub_cards.uploading import MARK


@dataclass(kw_only=True)
class SelectorCardData:
    """What the card of a selector says.

    Attributes:
        facts: Of the run; with the id of the selector's repository.
        selector: Class name of the selector.
        params: Its parameters.
        arrays: Shape and type of each array, name → text such as `int64, 500`.
        n_per_class: Images that it chose of each class.
        pool_size: Images that it chose from, where known.
        embedder: What embedded them, where known.
        filters: What an image had to pass before the selector saw it, name → value.
        community_sizes: Sizes of the communities of each class, largest first.
        dropped: Images of each class that filters dropped before.
        has_map: Whether `assets/community_map.png` is there.
        encoders: See `DistilledDatasetCardData`.

    Raises:
        ValueError: The facts name no selector repository.
    """

    facts: RunFacts
    selector: str
    params: Mapping[str, Any]
    arrays: Mapping[str, str]
    n_per_class: int
    pool_size: int | None = None
    embedder: str | None = None
    filters: Mapping[str, Any] = field(default_factory=dict)
    community_sizes: Mapping[str, list[int]] = field(default_factory=dict)
    dropped: Mapping[str, int] = field(default_factory=dict)
    has_map: bool = True
    encoders: Sequence[Mapping[str, Any]] = ()

    def __post_init__(self) -> None:
        if "selector" not in self.facts.repos:
            raise ValueError("facts.repos has no 'selector': give the id of the repository")

    def metadata(self) -> ModelCardData:
        """The YAML header."""
        dataset = self.facts.repos.get("dataset")
        return ModelCardData(
            license=self.facts.license,
            library_name="histodistill",
            tags=[*self.facts.subject_tags(), "dataset-distillation", "coreset-selection", MARK],
            datasets=[dataset] if dataset else None,
        )


def render_selector_card(card: SelectorCardData) -> str:
    """The README.md of a selector's repository: YAML header and Markdown."""
    results, more_results = split_scores(card.facts.results, card.facts.own_row)
    values = {"card": card, "facts": card.facts, "results": results, "more_results": more_results}
    return render_card(card.metadata(), "selector_card.md", values)
