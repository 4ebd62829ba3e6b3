"""Publishes a run on the Hugging Face Hub: its pipeline, its selector and its distilled set, each with a card.

    histodistill publish --run runs/phantom --namespace you           shows what would go up
    histodistill publish --run runs/phantom --namespace you --push    does it

Repositories are private unless --public is given. Only files of a fixed list go up; the rest of a run stays here.
Each repository changes by one commit, and one that is as it should be by none, so the same command can be run again at
any time. Nothing goes up without a passing privacy audit of exactly the files to be published (RUN/audit.json). The
token is taken from HF_TOKEN or from `hf auth login`.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from histodistill.training.running.launch import run_module
from histodistill.training.running.options import HelpFormatter, check_option


KINDS = ("pipeline", "selector", "dataset")
SUFFIXES = {"pipeline": "ldm", "selector": "selector", "dataset": "distilled"}
# The Hub's rule for names, shorter by what is added to them.
_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9]|[._-](?=[A-Za-z0-9])){0,79}")
_LICENSE = re.compile(r"[a-z0-9][a-z0-9.-]*")


def add_hub_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of every command that publishes."""
    parser.add_argument("--namespace", required=True, help="your name on the Hub, or that of an organisation")
    parser.add_argument("--push", action="store_true", help="upload; without it nothing leaves this machine")
    parser.add_argument("--public", action="store_true", help="let everybody see the repositories")
    parser.add_argument("--revision-tag", default=None, metavar="TAG", help="tag of this version, such as v1")


def check_hub_options(args: argparse.Namespace) -> None:
    """Checks these options; ends with code 2 and one sentence where one is wrong."""
    rule = "it must be letters and digits with single . _ - between them"
    for name in ("namespace", "revision_tag"):
        value = getattr(args, name)
        check_option(args, name, value is None or bool(_NAME.fullmatch(value)), rule)


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Reads and checks the command line; ends with code 2 and one sentence where it is wrong."""
    parser = argparse.ArgumentParser(
        prog="histodistill publish", description=__doc__, allow_abbrev=False, formatter_class=HelpFormatter
    )
    parser.add_argument("--run", type=Path, required=True, help="folder of a finished run")
    add_hub_options(parser)
    parser.add_argument(
        "--name",
        default=None,
        help="what to call the source in the names of the repositories and on the cards; default: the source's own "
        "name where it is known to everybody (phantom and those of MedMNIST)",
    )
    parser.add_argument("--only", nargs="+", choices=KINDS, default=list(KINDS), help="what to publish")
    parser.add_argument(
        "--license", default=None, help="licence identifier of the Hub, such as cc-by-4.0; default: MedMNIST's own"
    )
    parser.add_argument("--attribution", default=None, help="whom to credit for the tiles; default: MedMNIST's own")
    parser.add_argument("--audit", type=Path, default=None, help="the audit; default: RUN/audit.json")
    parser.add_argument(
        "--i-accept-the-risk",
        action="store_true",
        help="publish without a passing audit; the first lines of the cards will say so",
    )
    args = parser.parse_args(argv)
    check_hub_options(args)
    rule = "it must be letters and digits with single . _ - between them"
    check_option(args, "name", args.name is None or bool(_NAME.fullmatch(args.name)), rule)
    rule = "it must be an identifier of the Hub, such as cc-by-4.0"
    check_option(args, "license", args.license is None or bool(_LICENSE.fullmatch(args.license)), rule)
    if args.audit is None:
        args.audit = args.run / "audit.json"
    return args


def main(argv: list[str]) -> None:
    """Checks the options, then runs `histodistill.training.publishing.publish` with them."""
    parse_args(argv)
    run_module("histodistill.training.publishing.publish", argv)
