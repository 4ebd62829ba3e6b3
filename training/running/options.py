"""Command-line options that the training scripts share."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Shows defaults, unless a help text tells its own, and keeps the lines of a script's docstring."""

    def _get_help_string(self, action: argparse.Action) -> str:
        # None is no value that a user could give: it stands for an option that is required, or for a choice that the
        # program makes later.
        if action.default is None or "default" in action.help:
            return action.help
        return super()._get_help_string(action)


# These say where and how a script runs, not what comes out; all other options are recorded as settings of the result.
_NOT_SETTINGS = {
    "data",
    "audit_share",  # the fingerprint of the tiles tells it
    "eval_data",
    "output",
    "resume",
    "report_to",
    "checkpointing_steps",
    "autoencoder",
    "pipeline",
    "pool",
    "teacher",
    "embedder",
    "copy_embedders",
    "jobs",
    "num_processes",
}


def add_training_options(
    parser: argparse.ArgumentParser,
    *,
    max_train_steps: int,
    batch_size: int,
    learning_rate: float | None,
    weight_decay: float,
    class_balance: float | None = 0.5,
) -> None:
    """Adds the options that every training script has; the keywords are this script's defaults."""
    parser.formatter_class = HelpFormatter
    data = parser.add_argument_group("data")
    data.add_argument("--data", required=True, help="phantom, a MedMNIST name, .npz file, folder or Hub dataset id")
    data.add_argument("--image-size", type=int, default=None, help="side in pixels; default: the size the tiles have")
    data.add_argument(
        "--class-balance",
        type=float,
        default=class_balance,
        help="0 draws classes as often as they occur, 1 equally often, between: n^(1 - value)"
        + ("; default: 0.5, and 0 with --dp-epsilon" if class_balance is None else ""),
    )
    add_audit_share_option(data)
    data.add_argument("--output", type=Path, required=True, help="folder for the result")
    optim = parser.add_argument_group("optimisation")
    optim.add_argument("--max-train-steps", type=int, default=max_train_steps, help="optimizer steps")
    optim.add_argument("--batch-size", type=int, default=batch_size, help="tiles per batch over all processes")
    optim.add_argument("--gradient-accumulation-steps", type=int, default=1, help="batches per optimizer step")
    optim.add_argument(
        "--learning-rate",
        type=float,
        default=learning_rate,
        help="peak learning rate of AdamW" + ("" if learning_rate else "; default: by architecture"),
    )
    optim.add_argument("--weight-decay", type=float, default=weight_decay, help="weight decay of AdamW")
    optim.add_argument("--warmup", type=float, default=0.05, help="share of the steps with rising learning rate")
    optim.add_argument("--max-grad-norm", type=float, default=1.0, help="gradients are clipped to this norm")
    optim.add_argument("--mixed-precision", choices=["no", "bf16", "fp16"], default="bf16", help="fp16 needs a GPU")
    optim.add_argument("--seed", type=int, default=0, help="seed of weights, order, augmentation and noise")
    run = parser.add_argument_group("running")
    run.add_argument("--validation-steps", type=int, default=250, help="steps between validations")
    run.add_argument("--validation-tiles", type=int, default=512, help="validation tiles looked at, at most")
    run.add_argument("--checkpointing-steps", type=int, default=250, help="steps between checkpoints")
    run.add_argument("--resume", default=None, metavar="latest|FOLDER", help="goes on from a checkpoint")
    run.add_argument("--report-to", default=None, choices=["tensorboard", "wandb", "all"], help="optional tracker")


def add_audit_share_option(group: argparse.ArgumentParser, default: float = 0.0) -> None:
    """Adds `--audit-share`."""
    group.add_argument(
        "--audit-share",
        type=float,
        default=default,
        help="random share of the training tiles that no model sees, for the privacy audit; the same in all stages",
    )


def check_audit_share(args: argparse.Namespace) -> None:
    """Checks that option; ends with code 2 where it is wrong."""
    check_option(args, "audit_share", 0 <= args.audit_share < 1, "it must be at least 0 and below 1")


def check_training_options(args: argparse.Namespace) -> None:
    """Checks the ranges of the shared options; ends the program with code 2 and one sentence where one is wrong."""
    at_least_one = (
        "max_train_steps",
        "batch_size",
        "gradient_accumulation_steps",
        "validation_steps",
        "validation_tiles",
        "checkpointing_steps",
    )
    for name in at_least_one:
        check_option(args, name, getattr(args, name) >= 1, "it must be at least 1")
    for name in ("learning_rate", "max_grad_norm"):
        check_option(args, name, getattr(args, name) is None or getattr(args, name) > 0, "it must be above 0")
    check_option(args, "weight_decay", args.weight_decay >= 0, "it must be at least 0")
    check_option(args, "seed", args.seed >= 0, "it must be at least 0")
    check_audit_share(args)
    for name in ("warmup", "class_balance"):
        check_option(args, name, getattr(args, name) is None or 0 <= getattr(args, name) <= 1, "it must be 0 to 1")


def check_option(args: argparse.Namespace, name: str, is_right: bool, rule: str) -> None:
    """Ends the program with code 2 and one sentence that names option, value and rule, unless `is_right`."""
    if not is_right:
        fail(f"--{name.replace('_', '-')}={getattr(args, name)} is out of range: {rule}")


def fail(message: str) -> None:
    """Prints one sentence to standard error and exits with 2."""
    print(f"error: {message}", file=sys.stderr)
    raise SystemExit(2)


def result_settings(args: argparse.Namespace) -> dict[str, Any]:
    """The options that decide the result, as plain values."""
    left_out = set(_NOT_SETTINGS)
    if getattr(args, "dp_epsilon", None) is None:
        left_out |= {name for name in vars(args) if name.startswith("dp_")}
    return {name: value for name, value in sorted(vars(args).items()) if name not in left_out}


def run_script(
    parse_args: Callable[[list[str] | None], argparse.Namespace],
    main: Callable[[argparse.Namespace], None],
    argv: list[str] | None = None,
) -> None:
    """Runs a script: bad input ends it with one sentence and exit code 2, not with a traceback.

    Ctrl-C ends it with 130, as shells have it, and in silence: what started it says what to do.
    """
    from histodistill.training.running.allocator import keep_freed_memory
    from histodistill.training.running.errors import InputError

    args = parse_args(argv)
    keep_freed_memory()
    try:
        main(args)
    except InputError as error:
        # With several processes all of them fail alike; one sentence is enough.
        if os.environ.get("LOCAL_RANK", "0") != "0":
            raise SystemExit(2) from None
        fail(str(error))
    except KeyboardInterrupt:
        raise SystemExit(130) from None
