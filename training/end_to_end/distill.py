"""Distils a set of labelled tiles: everything from the raw tiles to the distilled dataset, its scores and a report.

    histodistill distill --data phantom --output runs/phantom --preset cpu-demo

Stages that are finished are skipped, and one that was killed goes on from its last checkpoint: run the same command
again. The output folder then holds

    run.json  autoencoder/  pipeline/  teacher/  pool/  selector/  distilled/  audit/  audit.json  comparison/
    results.json  report.html
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from histodistill.training.running.errors import InputError
from histodistill.training.running.launch import add_launch_option, run_module
from histodistill.training.running.options import (
    HelpFormatter,
    add_audit_share_option,
    check_audit_share,
    check_option,
    fail,
)
from histodistill.training.running.presets import PRESETS, Preset, to_argv


# What is made of the models, and so can be made anew with other options.
_OF_SELECTION = {
    "selector",
    "distilled",
    "audit",
    "audit.json",
    "comparison",
    "results.json",
    "report.html",
    "benchmark",
}
_AFTER = {"select": _OF_SELECTION, "generate": {"pool", "evaluation", *_OF_SELECTION}}


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Reads and checks the command line; ends with code 2 and one sentence where it is wrong."""
    parser = argparse.ArgumentParser(
        prog="histodistill distill", description=__doc__, allow_abbrev=False, formatter_class=HelpFormatter
    )
    parser.add_argument(
        "--data",
        required=True,
        help="phantom, a MedMNIST name, .npz file, image folder, datasets folder or Hub dataset id",
    )
    parser.add_argument("--output", type=Path, required=True, help="folder of the run")
    parser.add_argument(
        "--preset", choices=list(PRESETS), default=None, help="default: gpu where there is one, or cpu"
    )
    parser.add_argument("--image-size", type=int, default=None, help="side in pixels; default: the size tiles have")
    parser.add_argument("--n-per-class", type=int, default=None, help="images to keep of each class; default: preset")
    parser.add_argument("--per-class", type=int, default=None, help="pool images of each class; default: preset")
    add_audit_share_option(parser, default=0.1)
    parser.add_argument("--seed", type=int, default=0, help="seed of every stage")
    parser.add_argument("--mixed-precision", choices=["no", "bf16", "fp16"], default="bf16", help="of the trainings")
    add_launch_option(parser)
    args = parser.parse_args(argv)
    for name in ("n_per_class", "per_class", "num_processes"):
        check_option(args, name, getattr(args, name) is None or getattr(args, name) >= 1, "it must be at least 1")
    # What the selection can take.
    check_option(args, "seed", 0 <= args.seed < 2**31, "it must be at least 0 and below 2^31")
    check_audit_share(args)
    return args


def resolve_preset(args: argparse.Namespace) -> Preset:
    """The preset with the command line's own choices put in.

    Raises:
        InputError: If there are not enough images to keep so many, since some are dropped as copies, or more images
            than the selector takes.
    """
    from histodistill.selection.baselines import LARGEST_DISTANCE_MATRIX

    preset = PRESETS[args.preset]
    generate, select = dict(preset.generate), dict(preset.select)
    if args.per_class is not None:
        generate["per_class"] = args.per_class
    if args.n_per_class is not None:
        select["n_per_class"] = args.n_per_class
    # Images that are copies of real tiles are dropped: too few would be left, and hours later.
    if select["n_per_class"] > 0.9 * generate["per_class"]:
        raise InputError(
            f"--n-per-class={select['n_per_class']} is more than nine tenths of the {generate['per_class']} pool "
            "images of a class, and copies are dropped: raise --per-class or lower --n-per-class"
        )
    most = math.isqrt(LARGEST_DISTANCE_MATRIX)
    if generate["per_class"] > most:
        raise InputError(
            f"--per-class={generate['per_class']} is more than the selection can compare: it must be at most {most}"
        )
    return replace(preset, generate=generate, select=select)


def check_image_size(preset: Preset, image_size: int) -> None:
    """Checks that the models of a preset can halve tiles as often as they do.

    Raises:
        InputError: If they cannot: better now than after the autoencoder is trained.
    """
    halvings = preset.halvings(image_size)
    if image_size % 2**halvings:
        sizes = (image_size + sign * distance for distance in range(1, image_size) for sign in (-1, 1))
        nearest = next(size for size in sizes if size % 2 ** preset.halvings(size) == 0)
        raise InputError(
            f"tiles of {image_size} px do not suit this preset, whose models halve them {halvings} times: "
            f"give --image-size {nearest}"
        )


def open_run(args: argparse.Namespace, max_train_steps: Mapping[str, int] | None = None) -> dict:
    """Checks the data, and claims the output folder for them and these settings; returns what run.json holds.

    Nothing is written before everything is known to be right.

    Args:
        args: The options of `parse_args`.
        max_train_steps: Optimizer steps of the stages that are named here, in place of the preset's.

    Raises:
        InputError: For data that cannot be used, or a folder that holds another run.
    """
    from histodistill.training.data.audit_tiles import real_tiles
    from histodistill.training.data.sources import load_tiles
    from histodistill.training.running.files import read_json, write_json

    preset = resolve_preset(args)
    source = load_tiles(args.data, image_size=args.image_size, audit_share=args.audit_share)
    check_image_size(preset, source.image_size)
    preset = preset.for_image_size(source.image_size)
    real_tiles(source)
    source.split("test")
    diffusion = dict(preset.diffusion, max_train_steps=preset.diffusion_steps(len(source.split("train"))))
    settings = {
        **asdict(replace(preset, diffusion=diffusion)),
        "seed": args.seed,
        "image_size": source.image_size,
        "mixed_precision": args.mixed_precision,
        "fingerprint": source.fingerprint(),
    }
    for stage, steps in (max_train_steps or {}).items():
        settings[stage]["max_train_steps"] = steps
    if args.audit_share:
        settings["audit_share"] = args.audit_share
    settings["compare"] = list(settings["compare"])
    run = {
        "data": source.name,
        "preset": args.preset,
        "class_names": source.class_names,
        "num_tiles": {name: len(tiles) for name, tiles in source.splits.items()},
        "image_size": source.image_size,
        "seed": args.seed,
        "settings": settings,
    }
    file = args.output / "run.json"
    if file.is_file():
        try:
            old = read_json(file)["settings"]
            changed = [name for name in settings | old if old.get(name) != settings.get(name)]
        except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
            raise InputError(f"{file} is not a run's record or is damaged: give another --output") from error
        names = ", ".join("the tiles" if name == "fingerprint" else name for name in changed)
        refusal = f"{args.output} holds a run with other settings ({names}): give another --output"
        if not set(changed) <= _AFTER.keys():
            raise InputError(refusal)
        later = set().union(*(_AFTER[name] for name in changed))
        if made := sorted(name for name in later if (args.output / name).exists()):
            raise InputError(
                f"{refusal}, or move {', '.join(made)} away to make them anew from the models that are there"
            )
        if changed:
            write_json(file, run)
    elif args.output.exists() and (not args.output.is_dir() or any(args.output.iterdir())):
        raise InputError(f"--output={args.output} is not a run and not empty: give a new folder")
    else:
        try:
            write_json(file, run)
        except OSError as error:
            raise InputError(f"--output={args.output} cannot be written ({error.strerror}): give another") from error
    return run


@dataclass(frozen=True)
class StageCall:
    """How `distill` runs one stage.

    Attributes:
        title: What the user is told.
        folder: Folder in the run that holds the stage's record.
        module: The script.
        options: Its options.
        num_processes: Processes that share its work.
        also_leaves: What the stage leaves outside its folder.
        arguments: What its script takes without an option's name.
    """

    title: str
    folder: str
    module: str
    options: dict[str, object]
    num_processes: int
    also_leaves: tuple[str, ...] = ()
    arguments: tuple[object, ...] = ()

    @property
    def argv(self) -> list[str]:
        """What the script is started with."""
        return [*(str(argument) for argument in self.arguments), *to_argv(self.options)]


def stages(args: argparse.Namespace, run: dict) -> list[StageCall]:
    """Every stage, in order."""
    out, settings, many = args.output, run["settings"], args.num_processes
    package = "histodistill.training"
    data = {"data": args.data, "image_size": run["image_size"]}
    models = {**data, "audit_share": args.audit_share}
    seed, precision = {"seed": args.seed}, {"mixed_precision": args.mixed_precision}
    training = {**seed, **precision, "resume": "latest"}
    autoencoder = {**models, "output": out / "autoencoder", **settings["autoencoder"], **training}
    diffusion = {
        **models, "autoencoder": out / "autoencoder", "output": out / "pipeline", **settings["diffusion"], **training
    }  # fmt: skip
    teacher = {**models, "output": out / "teacher", **settings["teacher"], **training}
    generate = {"pipeline": out / "pipeline", "output": out / "pool", **seed, **settings["generate"]}
    made = {"pool": out / "pool", "teacher": out / "teacher", "data": args.data, "output": out}
    embedders = ["untrained", out / "autoencoder"]
    select = {**made, **seed, **settings["select"], "copy_embedders": embedders, "drop_copies": []}
    audit = {"data": args.data, "audit_share": args.audit_share, "embedders": embedders, **seed}
    compare = {"run": out, **data, "train": settings["compare"], "seeds": [args.seed], **precision}
    return [
        StageCall("autoencoder", "autoencoder", f"{package}.train_autoencoder", autoencoder, many),
        StageCall("denoiser", "pipeline", f"{package}.train_diffusion", diffusion, many),
        StageCall("teacher", "teacher", f"{package}.train_classifier", teacher, many),
        StageCall("pool", "pool", f"{package}.generate", generate, many),
        StageCall("selection", "distilled", f"{package}.select", select, 1, ("selector/config.json",)),
        StageCall("privacy audit", "audit", f"{package}.audit", audit, 1, ("audit.json",), (out,)),
        StageCall("comparison", "comparison", f"{package}.compare", compare, many, ("results.json",)),
    ]


def main(argv: list[str]) -> None:
    """Runs all stages that are not finished, then writes the report and a summary."""
    args = parse_args(argv)
    if args.preset is None:
        import torch

        args.preset = "gpu" if torch.cuda.is_available() else "cpu"
    if args.mixed_precision == "fp16":
        import torch

        # The first stage would say so as well, but with the folder claimed for fp16.
        if not torch.accelerator.is_available():
            fail("--mixed-precision=fp16 needs a GPU: give bf16 or no")
    from histodistill.training.running.stages import is_complete

    try:
        run = open_run(args)
    except InputError as error:
        fail(str(error))
    plan = stages(args, run)
    for number, stage in enumerate(plan, start=1):
        leaves = [args.output / name for name in stage.also_leaves]
        if is_complete(args.output / stage.folder) and all(path.is_file() for path in leaves):
            print(f"[{number}/{len(plan)}] {stage.title}: finished before", flush=True)
            continue
        print(f"[{number}/{len(plan)}] {stage.title}", flush=True)
        run_module(stage.module, stage.argv, stage.num_processes)

    from histodistill.training.reporting.report_page import write_report
    from histodistill.training.reporting.summary import summary_lines

    write_report(args.output)
    print("\n".join(summary_lines(args.output)))
