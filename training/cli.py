"""The command line `histodistill`: finds the step that a command names, reads its options once and runs it.

Steps import torch and the rest only when they have work to do, so that every `--help` is instant.
"""

from __future__ import annotations

import argparse
import signal
import sys
from dataclasses import dataclass
from importlib import import_module, metadata

from histodistill.training.running.launch import on_sigterm, run_module
from histodistill.training.running.options import run_config
from histodistill.training.running.program import as_program


@dataclass(frozen=True)
class Command:
    """One command.

    Attributes:
        step: The step's module in `histodistill.training`, with `make_parser` and `run`; where its answer can be no,
            also with `exit_code`, which tells the exit code by what `run` returns.
        help: What it makes, in one line.
        shares_work: Whether `--num-processes` of it run the step together, through Accelerate.
    """

    step: str
    help: str
    shares_work: bool = False


# What can follow `histodistill`, in the order in which the help lists it.
COMMANDS = {
    "distill": Command(
        "end_to_end.distill", "everything: from labelled tiles to a distilled dataset, its scores and a report"
    ),
    "generate": Command("generate", "the pool: many synthetic images of each class from a trained pipeline", True),
    "select": Command("distillation.select", "the distilled set: the most informative images of the pool"),
    "audit": Command(
        "evaluation.audit",
        "what the distilled set and the model give away about the real tiles; publishing goes by it",
    ),
    "merge": Command("distillation.merge", "one distilled set out of those of several sites"),
    "compare": Command(
        "evaluation.compare",
        "the scores: classifiers trained on distilled and on real tiles, on real test tiles",
        True,
    ),
    "evaluate-pool": Command(
        "evaluation.evaluate_pool",
        "the pool's quality: distances to real tiles, and what a classifier learns from it",
        True,
    ),
    "benchmark": Command(
        "tables.results_table",
        "the results table: every selector and real tiles, several classifiers, sizes and seeds",
    ),
    "publish": Command(
        "publishing.publish", "pipeline, selector and distilled set to the Hugging Face Hub, with their cards"
    ),
    "publish-metrics": Command("publishing.publish_metrics", "the metrics to the Hugging Face Hub, for evaluate.load"),
    "demo-app": Command(
        "demo_app.serve", "a page on this machine: generate, browse the distilled set, train on it (needs gradio)"
    ),
    "report": Command("reporting.report", "the report of a run again, as an HTML page"),
}


def main(argv: list[str] | None = None) -> None:
    """Runs one command; prints help and exits with 2 where none is named.

    Ctrl-C ends it with one sentence and 130, and SIGTERM with 143, as shells have it.
    """
    with as_program():
        _main(sys.argv[1:] if argv is None else argv)


def _main(argv: list[str]) -> None:
    listing = "\n".join(f"  {name:<16} {command.help}" for name, command in COMMANDS.items())
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
    again = args.command == "distill"
    remedy = "the same command goes on where it stopped" if again else "run the same command again"
    try:
        with on_sigterm(_end):
            run_command(COMMANDS[args.command], argv[1:])
    except (KeyboardInterrupt, _TerminatedError) as error:
        was_told = isinstance(error, _TerminatedError)
        how = "told to end" if was_told else "interrupted"
        print(f"error: histodistill {args.command} was {how}: {remedy}", file=sys.stderr)
        raise SystemExit(128 + (signal.SIGTERM if was_told else signal.SIGINT)) from None


class _TerminatedError(BaseException):
    """This process was told to end by SIGTERM."""


def _end(*_: object) -> None:
    """Makes SIGTERM an exception, as Ctrl-C is one, so that what was begun is put in order."""
    raise _TerminatedError


def run_command(command: Command, argv: list[str]) -> None:
    """Reads the options of a command and runs its step, here or in as many processes as `--num-processes` says."""
    step = import_module(f"histodistill.training.{command.step}")
    parser = step.make_parser()
    config = parser.read(argv)
    if command.shares_work and config.num_processes > 1:
        run_module(step.__name__, argv, config.num_processes)
    else:
        run_config(step.run, config, parser.called, getattr(step, "exit_code", None))


if __name__ == "__main__":
    main()
