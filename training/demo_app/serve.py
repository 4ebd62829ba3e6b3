"""Serves a page on this machine that shows a run: generate images, browse the distilled set, train on it.

    histodistill demo-app runs/phantom --data phantom

The page shows synthetic images only, and the run's audit and scores; nothing of it needs the network. It generates
from `RUN/pipeline`, and trains small classifiers on `RUN/distilled`, which are scored on the real test tiles where
--data names them. By default it can be reached from this machine alone. Ctrl-C ends it.

Needs gradio, which histodistill does not install by itself.
"""

from __future__ import annotations

import contextlib
import os
from importlib.util import find_spec
from pathlib import Path

from histodistill.training.running.errors import InputError
from histodistill.training.running.options import StepConfig, StepParser, config, option, run_script


@config
class DemoAppConfig(StepConfig):
    """Options of `demo-app`."""

    run: Path = option("folder of a finished run", positional=True, setting=False)
    data: str | Path | None = option(
        "the real tiles that classifiers are scored on; without them there are no scores", default=None, setting=False
    )
    host: str = option(
        "address to listen on; 0.0.0.0 lets other machines reach the page", default="127.0.0.1", setting=False
    )
    port: int = option("port to listen on", default=7860, at_least=1, at_most=65535, setting=False)


def make_parser() -> StepParser[DemoAppConfig]:
    """The parser of the command line."""
    return StepParser(DemoAppConfig, prog="histodistill demo-app", description=__doc__)


def run(config: DemoAppConfig) -> None:
    """Serves the page until Ctrl-C.

    Raises:
        InputError: If gradio is not installed, the run has no distilled set, the real tiles are of another kind than
            it or have no test split, or the address cannot be listened on.
    """
    from histodistill.training.data.image_dataset import require_shards
    from histodistill.training.data.sources import check_source

    if find_spec("gradio") is None:
        raise InputError(
            "the page needs gradio, which is not installed: run pip install '.[demo-app]' in the folder of the source"
        )
    require_shards(config.run / "distilled")
    if config.data is not None:
        check_source(config.data)
    # gradio reads it when it is imported.
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    # Ctrl-C is how the page is closed.
    with contextlib.suppress(KeyboardInterrupt):
        from histodistill.training.demo_app.page import serve_page

        serve_page(config.run, config.data, config.host, config.port)


if __name__ == "__main__":
    run_script(make_parser, run)
