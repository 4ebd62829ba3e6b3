"""The card of a published pipeline."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from huggingface_hub import ModelCardData

from histodistill.hub_cards.card_facts import RunFacts
from histodistill.hub_cards.rendering import render_card
from histodistill.hub_cards.uploading import MARK


# Those options of a pool that a pipeline is called with.
CALL_OPTIONS = ("num_inference_steps", "guidance_scale", "guidance_interval")


@dataclass(kw_only=True)
class PipelineCardData:
    """What the card of a pipeline says.

    Attributes:
        facts: Of the run; with the id of the pipeline's repository.
        components: Class of each component, name → class.
        parameters: Number of parameters of each component that has some, name → number.
        generation: Options with which the pool was made, name → value; empty where there is none.
        pool_size: Images in the pool.
        has_grid: Whether `assets/distilled.png` is there.

    Raises:
        ValueError: The facts name no pipeline repository.
    """

    facts: RunFacts
    components: Mapping[str, str]
    parameters: Mapping[str, int] = field(default_factory=dict)
    generation: Mapping[str, Any] = field(default_factory=dict)
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
    values = {"card": card, "facts": card.facts, "results": card.facts.results, "call_options": CALL_OPTIONS}
    return render_card(card.metadata(), "pipeline_card.md", values)
