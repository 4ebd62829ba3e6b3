"""Serves a page on this machine that shows a run: generate images, browse the distilled set, train on it.

    histodistill demo-app runs/phantom --data phantom

The page shows synthetic images only, and the run's audit and scores; nothing of it needs the network. It generates
from `RUN/pipeline`, and trains small classifiers on `RUN/distilled`, which are scored on the real test tiles where
--data names them. By default it can be reached from this machine alone. Ctrl-C ends it.

Needs gradio, which histodistill does not install by itself.
"""

from __future__ import annotations

import argparse
import contextlib
import os
from importlib.util import find_spec
from pathlib import Path

from histodistill.training.running.launch import run_module
from histodistill.training.running.options import HelpFormatter, check_option, fail


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Reads and checks the command line; ends with code 2 and one sentence where it is wrong."""
    parser = argparse.ArgumentParser(
        prog="histodistill demo-app", description=__doc__, allow_abbrev=False, formatter_class=HelpFormatter
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="folder of a finished run")
    parser.add_argument(
        "--data", default=None, help="the real tiles that classifiers are scored on; without them there are no scores"
    )
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to listen on; 0.0.0.0 lets other machines reach the page"
    )
    parser.add_argument("--port", type=int, default=7860, help="port to listen on")
    args = parser.parse_args(argv)
    check_option(args, "port", 1 <= args.port <= 65535, "it must be 1 to 65535")
    return args


def main(argv: list[str]) -> None:
    """Checks the options, then runs `histodistill.training.demo_app.page` with them."""
    parse_args(argv)
    if find_spec("gradio") is None:
        fail(
            "the page needs gradio, which is not installed: run pip install '.[demo-app]' in the folder of the source"
        )
    # Read when gradio is imported.
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    # Ctrl-C is how the page is closed.
    with contextlib.suppress(KeyboardInterrupt):
        run_module("histodistill.training.demo_app.page", argv)
