"""What stands between a finished run and the Hub: cards, the gate and the upload. Nothing here is measured.

- Cards: the README.md of each repository, plain data in, Markdown with a YAML header out. `dataset_card`,
  `pipeline_card`, `selector_card` and `metric_card` have one each; `card_facts` is what those of one run say alike,
  and `rendering` fills the templates.
- The contents: `part_files` reads the files of a part of a run, each once; `documents`, `weights`, `tables` and
  `pictures` take nothing but what is known in JSON, arrays, tables and images; `contents` says what may go up.
- The gate, `gate`: only what has passed the privacy audit may go up. `audit_record` reads `audit.json`, and
  `site_verdict` those in the folders of sets.
- The upload, `uploading`: all of a repository in one commit, and nothing where nothing changed.

Errors are sentences. Those that a parameter of `histodistill publish` would mend name it in backticks.
"""

from __future__ import annotations

from histodistill.hub_cards.card_facts import AuditFacts, PrivacyFacts, RunFacts
from histodistill.hub_cards.dataset_card import DistilledDatasetCardData, render_dataset_card
from histodistill.hub_cards.errors import ContentError
from histodistill.hub_cards.gate import AuditError, audit_sentences, check_audit, check_records
from histodistill.hub_cards.metric_card import MetricCardData, render_metric_card, render_metric_page
from histodistill.hub_cards.pipeline_card import PipelineCardData, render_pipeline_card
from histodistill.hub_cards.selector_card import SelectorCardData, render_selector_card
from histodistill.hub_cards.uploading import Published, PublishError, Upload, publish


__all__ = [
    "AuditError",
    "AuditFacts",
    "ContentError",
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
    "check_records",
    "publish",
    "render_dataset_card",
    "render_metric_card",
    "render_metric_page",
    "render_pipeline_card",
    "render_selector_card",
]
