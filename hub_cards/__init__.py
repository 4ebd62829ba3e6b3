"""The cards (README.md) of what is published: plain data in, Markdown with a YAML header out. Nothing is computed."""

from __future__ import annotations

from histodistill.hub_cards.dataset_card import DistilledDatasetCardData, render_dataset_card


__all__ = ["DistilledDatasetCardData", "render_dataset_card"]
