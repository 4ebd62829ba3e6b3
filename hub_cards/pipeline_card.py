"""The card of a published pipeline."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from huggingface_hub import ModelCardData

from histodistill.hub_cards.card_facts import PRECISIONS, RunFacts, split_scores
from histodistill.hub_cards.rendering import render_card
from histodistill.hub_cards.uploading import MARK


@dataclass(kw_only=True)
class PipelineCardData:
    """What the card of a pipeline says.

    Attributes:
        facts: Of the run; with the id of the pipeline's repository.
        components: Class of each component, name → class.
        parameters: Number of parameters of each component that has some, name → number.
        generation: What the pipeline was called with to make the pool, option → value; empty where there is none.
        precision: A key of `PRECISIONS`: that of the pool.
        pool_size: Images in the pool.
        has_grid: Whether `assets/distilled.png` is there.

    Raises:
        ValueError: The facts name no pipeline repository.
    """

    facts: RunFacts
    components: Mapping[str, str]
    parameters: Mapping[str, int] = field(default_factory=dict)
    generation: Mapping[str, Any] = field(default_factory=dict)
    precision: str = "no"
    pool_size: int | None = None
    has_grid: bool = True

    def __post_init__(self) -> None:
        if "pipeline" not in self.facts.repos:
            raise ValueError("facts.repos has no 'pipeline': give the id of the repository")

    def metadata(self) -> ModelCardData:
        """The YAML header."""
        results = self.facts.eval_results()
        return ModelCardData(
            license=self.facts.license,
            library_name="diffusers",
            pipeline_tag="unconditional-image-generation",
            tags=[*self.facts.subject_tags(), "synthetic", "latent-diffusion", "class-conditional", MARK],
            model_name=self.facts.repos["pipeline"] if results else None,
            eval_results=results or None,
        )


def render_pipeline_card(card: PipelineCardData) -> str:
    """The README.md of a pipeline's repository: YAML header and Markdown."""
    results, more_results = split_scores(card.facts.results, card.facts.own_row)
    values = {"card": card, "facts": card.facts, "results": results, "more_results": more_results}
    values["precision"] = PRECISIONS[card.precision]
    return render_card(card.metadata(), "pipeline_card.md", values)
