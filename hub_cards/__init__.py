"""The cards (README.md) of what is published, and publishing it: plain data in, Markdown with a YAML header out.

Finished folders go to the Hub, past the gate of the privacy audit. Nothing is computed.
"""

from __future__ import annotations

from histodistill.hub_cards.card_facts import AuditFacts, PrivacyFacts, RunFacts
from histodistill.hub_cards.dataset_card import DistilledDatasetCardData, render_dataset_card
from histodistill.hub_cards.gate import AuditError, audit_sentences, check_audit, check_metadata
from histodistill.hub_cards.metric_card import MetricCardData, render_metric_card, render_metric_page
from histodistill.hub_cards.pipeline_card import PipelineCardData, render_pipeline_card
from histodistill.hub_cards.selector_card import SelectorCardData, render_selector_card
from histodistill.hub_cards.uploading import Published, PublishError, Upload, publish


__all__ = [
    "AuditError",
    "AuditFacts",
    "DistilledDatasetCardData",
    "MetricCardData",
    "PipelineCardData",
    "PrivacyFacts",
    "PublishError",
    "Published",
    "RunFacts",
    "SelectorCardData",
    "Upload",
    "audit_sentences",
    "check_audit",
    "check_metadata",
    "publish",
    "render_dataset_card",
    "render_metric_card",
    "render_metric_page",
    "render_pipeline_card",
    "render_selector_card",
]
