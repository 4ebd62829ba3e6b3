"""Publishes the metrics as Spaces on the Hugging Face Hub, where `evaluate.load` finds them.

    histodistill publish-metrics --namespace you           shows what would go up
    histodistill publish-metrics --namespace you --push    does it

`evaluate.load("you/f1_macro", module_type="metric")` then works without histodistill. Spaces are private unless
--public is given. The token is taken from HF_TOKEN or from `hf auth login`.
"""

from __future__ import annotations

import argparse

from histodistill.training.commands.publish import add_hub_options, check_hub_options
from histodistill.training.running.launch import run_module
from histodistill.training.running.options import HelpFormatter


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Reads and checks the command line; ends with code 2 and one sentence where it is wrong."""
    parser = argparse.ArgumentParser(
        prog="histodistill publish-metrics", description=__doc__, allow_abbrev=False, formatter_class=HelpFormatter
    )
    add_hub_options(parser)
    args = parser.parse_args(argv)
    check_hub_options(args)
    return args


def main(argv: list[str]) -> None:
    """Checks the options, then runs `histodistill.training.publishing.publish_metrics` with them."""
    parse_args(argv)
    run_module("histodistill.training.publishing.publish_metrics", argv)
