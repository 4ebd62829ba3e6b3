"""The card and the page of a published metric."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from huggingface_hub import SpaceCardData

from histodistill.hub_cards.rendering import render_card, render_page
from histodistill.hub_cards.uploading import MARK


@dataclass(kw_only=True)
class MetricCardData:
    """What the card of a metric says.

    Attributes:
        repo_id: Id of the Space; its name is that of the script.
        title: Heading.
        description: What it measures.
        inputs: Name, type and meaning of each argument.
        outputs: Name, type and meaning of each figure.
        raises: When it refuses, each one sentence.
        call: Python arguments of an example.
        result: What `metric.compute` returned for it.
        limits: What to mind, Markdown.
        citation: BibTeX.
    """

    repo_id: str
    title: str
    description: str
    inputs: Sequence[tuple[str, str, str]]
    outputs: Sequence[tuple[str, str, str]]
    raises: Sequence[str]
    call: str
    result: str
    limits: str
    citation: str

    def metadata(self) -> SpaceCardData:
        """The YAML header."""
        return SpaceCardData(
            title=self.title,
            sdk="static",
            license="apache-2.0",
            tags=["evaluate", "metric", MARK],
            description=self.description,
        )


def render_metric_card(card: MetricCardData) -> str:
    """The README.md of a metric's Space: YAML header and Markdown."""
    return render_card(card.metadata(), "metric_card.md", {"card": card})


def render_metric_page(card: MetricCardData) -> str:
    """The index.html of a metric's Space: it has no script and loads nothing."""
    return render_page("metric_page.html", {"card": card})
