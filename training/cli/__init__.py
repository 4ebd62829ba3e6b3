"""The command line `histodistill`: finds the step that a command names, reads its options once and runs it.

Steps import torch and the rest only when they have work to do, so that every `--help` is instant.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from importlib import import_module, metadata
from typing import Any

from histodistill.training.running.claims import claiming
from histodistill.training.running.launch import run_module
from histodistill.training.running.options import StepParser, run_config
from histodistill.training.running.program import ERROR, as_program
from histodistill.training.running.sentence_parser import SentenceParser
from histodistill.training.running.signals import ended_by_signals
from histodistill.training.running.suggestions import did_you_mean


@dataclass(frozen=True)
class Command:
    """One command.

    Attributes:
        step: The step's module in `histodistill.training`, with `make_parser` and `run`; where its answer can be no,
            also with `exit_code`, which tells the exit code by what `run` returns.
        help: What it makes, in one line.
        shares_work: Whether `--num-processes` of it run the step together, through Accelerate.
        again: What to do where it was cut off.
    """

    step: str
    help: str
    shares_work: bool = False
    again: str = "run the same command again"


_ABOUT = "Distils private histopathology tiles into a small synthetic dataset that can be shared."
# What the commands of two words do, by their first.
_GROUPS = {"train": "Trains one of the models.", "cache": "Decoded tiles that are kept on this machine."}
# What a training that was cut off goes on from.
_RESUME = "run the same command again with --resume latest"
# What can follow `histodistill`, in the order in which the help lists it; some are two words.
COMMANDS = {
    "inspect": Command(
        "end_to_end.inspect_tiles",
        "what of your tiles was understood, and whether they suit, before anything is trained",
    ),
    "distill": Command(
        "end_to_end.distill",
        "everything: from labelled tiles to a distilled dataset, its scores and a report",
        again="the same command goes on where it stopped",
    ),
    "train autoencoder": Command("train_autoencoder", "the autoencoder: what makes latents of tiles", True, _RESUME),
    "train diffusion": Command("train_diffusion", "the pipeline: the denoiser that makes latents", True, _RESUME),
    "train classifier": Command(
        "train_classifier", "a classifier on real or distilled tiles, such as the teacher", True, _RESUME
    ),
    "generate": Command("generate", "the pool: many synthetic images of each class from a trained pipeline", True),
    "select": Command("distillation.select", "the distilled set: the most informative images of the pool"),
    "review": Command("reporting.review", "a page to look through the set and leave images out, and a blinded sheet"),
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
    "verify": Command("publishing.verify", "whether a set that you received is as it was published"),
    "export": Command("publishing.export", "a set in the layout of other programs: an .npz as MedMNIST's, or folders"),
    "publish-metrics": Command("publishing.publish_metrics", "the metrics to the Hugging Face Hub, for evaluate.load"),
    "demo-app": Command(
        "demo_app.serve", "a page on this machine: generate, browse the distilled set, train on it (needs gradio)"
    ),
    "report": Command("reporting.report", "the report of a run again, as an HTML page"),
    "holds": Command("end_to_end.holds", "which runs were made with the tiles of a patient"),
    "clean": Command("end_to_end.clean", "removes from a run what is private and no longer needed"),
    "cache list": Command("end_to_end.list_cache", "the decoded tiles that are kept on this machine"),
    "cache clear": Command("end_to_end.clear_cache", "takes them out"),
    "doctor": Command("cli.doctor", "what of this machine suits the work, and how to mend what does not"),
    "completion": Command("cli.completion", "a script for the shell that completes commands and options"),
}


def main(argv: list[str] | None = None) -> None:
    """Runs one command; prints help and exits with 2 where none is named.

    Ctrl-C ends it with one sentence and 130, and SIGTERM with 143, as shells have it.
    """
    with as_program():
        _main(sys.argv[1:] if argv is None else argv)


def _main(argv: list[str]) -> None:
    name = find_command(argv)
    with ended_by_signals(f"histodistill {name} was {{}}: {COMMANDS[name].again}"):
        run_command(name, argv[len(name.split()) :])


def find_command(argv: list[str]) -> str:
    """The name of the command that words begin with.

    Raises:
        SystemExit: After help or the version, where that was asked for; with 2 after help where no command is named,
            and after one sentence for a word that is none.
    """
    group = argv[0] if argv and any(name.startswith(f"{argv[0]} ") for name in COMMANDS) else ""
    words = argv[1:] if group else argv
    parser = listing_parser(group)
    if not words:
        parser.print_help(sys.stderr)
        raise SystemExit(ERROR)
    word = parser.parse_args(words[:1]).command
    name = f"{group} {word}".strip()
    if name not in COMMANDS:
        known = list(dict.fromkeys(name.removeprefix(f"{group} ").split()[0] for name in _names(group)))
        parser.end(f"{name!r} is no command{did_you_mean(word, known)}: use one of {', '.join(known)}")
    return name


def listing_parser(group: str = "") -> SentenceParser:
    """What reads the word after `histodistill`, or after that and the first word of some commands, such as `train`."""
    names = _names(group)
    width = max(map(len, names)) + 1
    listing = "\n".join(f"  {name:<{width}} {COMMANDS[name].help}" for name in names)
    prog = f"histodistill {group}".strip()
    about = _GROUPS.get(group, _ABOUT)
    word = "NAME" if group else "COMMAND"
    epilog = f"commands:\n{listing}\n\n{prog} {word} --help tells the options of a command."
    parser = SentenceParser(prog=prog, description=about, epilog=epilog)
    parser.add_argument("--version", action="version", version=f"histodistill {metadata.version('histodistill')}")
    parser.add_argument("command", nargs="?", metavar=word, help="one of the commands below")
    return parser


def _names(group: str) -> list[str]:
    """The commands that begin with a word; all where it is empty."""
    return [name for name in COMMANDS if not group or name.startswith(f"{group} ")]


def run_command(name: str, argv: list[str]) -> None:
    """Reads the options of a command and runs its step, here or in as many processes as `--num-processes` says."""
    command = COMMANDS[name]
    step = import_module(f"histodistill.training.{command.step}")
    parser = command_parser(name)
    config = parser.read(argv)
    if command.shares_work and config.num_processes > 1:
        number = config.num_processes
        run_config(claiming(lambda _: run_module(step.__name__, argv, number)), config, parser.called)
    else:
        run_config(step.run, config, parser.called, getattr(step, "exit_code", None))


def command_parser(name: str) -> StepParser[Any]:
    """The parser of a command's options."""
    parser = import_module(f"histodistill.training.{COMMANDS[name].step}").make_parser()
    # A training's own parser says what one starts with `accelerate launch`.
    parser.prog = f"histodistill {name}"
    return parser
