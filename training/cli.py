"""The command line `histodistill`: dispatches to one small module per subcommand.

Subcommands import torch and the rest only when they have work to do, so that every `--help` is instant.
"""

from __future__ import annotations

import argparse
import sys
from importlib import import_module, metadata


COMMANDS = {
    "distill": "everything: from labelled tiles to a distilled dataset, its scores and a report",
    "generate": "the pool: many synthetic images of each class from a trained pipeline",
    "select": "the distilled set: the most informative images of the pool",
    "audit": "what the distilled set and the model give away about the real tiles; publishing goes by it",
    "merge": "one distilled set out of those of several sites",
    "compare": "the scores: classifiers trained on distilled and on real tiles, on real test tiles",
    "evaluate-pool": "the pool's quality: distances to real tiles, and what a classifier learns from it",
    "benchmark": "the results table: every selector and real tiles, several classifiers, sizes and seeds",
    "publish": "pipeline, selector and distilled set to the Hugging Face Hub, with their cards",
    "publish-metrics": "the metrics to the Hugging Face Hub, for evaluate.load",
    "demo-app": "a page on this machine: generate, browse the distilled set, train on it (needs gradio)",
    "report": "the report of a run again, as an HTML page",
}


def main(argv: list[str] | None = None) -> None:
    """Runs one subcommand; prints help and exits with 2 where none is named.

    Ctrl-C ends it with one sentence and 130, as shells have it.
    """
    argv = sys.argv[1:] if argv is None else argv
    listing = "\n".join(f"  {name:<16} {text}" for name, text in COMMANDS.items())
    parser = argparse.ArgumentParser(
        prog="histodistill",
        description="Distils private histopathology tiles into a small synthetic dataset that can be shared.",
        epilog=f"commands:\n{listing}\n\nhistodistill COMMAND --help tells the options of a command.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"histodistill {metadata.version('histodistill')}")
    parser.add_argument("command", nargs="?", metavar="COMMAND", help="one of the commands below")
    if not argv:
        parser.print_help(sys.stderr)
        raise SystemExit(2)
    args = parser.parse_args(argv[:1])
    if args.command not in COMMANDS:
        parser.exit(2, f"error: {args.command!r} is no command: use one of {', '.join(COMMANDS)}\n")
    module = args.command.replace("-", "_")
    try:
        import_module(f"histodistill.training.commands.{module}").main(argv[1:])
    except KeyboardInterrupt:
        remedy = "the same command goes on where it stopped" if module == "distill" else "run the same command again"
        print(f"error: histodistill {args.command} was interrupted: {remedy}", file=sys.stderr)
        raise SystemExit(130) from None


if __name__ == "__main__":
    main()
