"""Publishes the metrics as Spaces on the Hugging Face Hub, where `evaluate.load` finds them.

    histodistill publish-metrics --namespace you           shows what would go up
    histodistill publish-metrics --namespace you --push    does it

`evaluate.load("you/f1_macro", module_type="metric")` then works without histodistill. Spaces are private unless
--public is given. The token is taken from HF_TOKEN or from `hf auth login`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from histodistill.training.publishing.hub_config import HubConfig
from histodistill.training.running.options import StepParser, config, run_script


if TYPE_CHECKING:
    from histodistill.hub_cards import Published, Upload


@config
class PublishMetricsConfig(HubConfig):
    """Options of `publish-metrics`."""


def make_parser() -> StepParser[PublishMetricsConfig]:
    """The parser of the command line."""
    return StepParser(PublishMetricsConfig, prog="histodistill publish-metrics", description=__doc__)


def run(config: PublishMetricsConfig) -> list[Upload] | list[Published]:
    """Makes cards and pages of all metrics, and shows or uploads them.

    Returns:
        What became of each Space; without `push`, each as it would go up.

    Raises:
        InputError: If something stands in the way of uploading.
    """
    from histodistill.training.metrics import METRICS
    from histodistill.training.publishing.metric_spaces import metric_upload
    from histodistill.training.publishing.pushing import show_or_push

    return show_or_push([metric_upload(name, f"{config.namespace}/{name}") for name in METRICS], config)


if __name__ == "__main__":
    run_script(make_parser, run)
