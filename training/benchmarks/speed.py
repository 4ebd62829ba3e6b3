"""Measures how fast histodistill trains and samples beside diffusers-style code, in one run on one machine.

    python -m histodistill.training.benchmarks.speed --run runs/phantom --data phantom

Training: `train_diffusion` against a loop built like diffusers' example for unconditional images, for the same new
U-Net, autoencoder, tiles, batch size and number of steps; each training is a process of its own. Sampling: the run's
pipeline with its pool's settings, and with other numbers of steps, against diffusers' `DiTPipeline` around the same
weights, with 50 steps in float32. How near the images come to real validation tiles stands beside each speed, since
speeds compare only at equal quality. Peers take turns with histodistill, and each figure is the median of the repeats.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import platform
import tempfile
from importlib import metadata
from pathlib import Path
from statistics import median
from typing import Any

import torch
from diffusers import UNet2DModel

from histodistill.training.benchmarks.sampling import check_sampling, measure_sampling
from histodistill.training.data.audit_tiles import audit_share_of
from histodistill.training.data.sources import load_tiles
from histodistill.training.engine.accelerator import make_accelerator
from histodistill.training.running.errors import InputError
from histodistill.training.running.files import read_json, write_json
from histodistill.training.running.launch import run_module
from histodistill.training.running.options import HelpFormatter, check_option, fail, run_script
from histodistill.training.running.presets import to_argv
from histodistill.training.running.stages import require_complete


WARMUP_STEPS = 5
PRECISIONS = {"no": "fp32", "bf16": "bf16", "fp16": "fp16"}

TRAINING_NOTES = (
    "Each training is a process of its own; repeats alternate between histodistill and all peers.",
    f"The clock of a peer starts after {WARMUP_STEPS} untimed steps; images_per_second_with_warmup has them in. "
    "The clock of histodistill starts at its very first step, so its warm-up counts against it.",
    "Neither clock has validation, checkpoints or loading in it.",
    "The peer's tiles are PNG files in a datasets.Dataset, decoded and flipped one by one in the DataLoader.",
    "bf16 is autocast for the U-Net; the peer's autoencoder is cast to it as a whole.",
    "speedup is histodistill's median over the peer's.",
)


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Reads and checks the command line; ends with code 2 and one sentence where it is wrong."""
    parser = argparse.ArgumentParser(
        prog="benchmark", description=__doc__, allow_abbrev=False, formatter_class=HelpFormatter
    )
    parser.add_argument(
        "--run", type=Path, required=True, help="folder with autoencoder/, pipeline/, pool/ and teacher/"
    )
    parser.add_argument("--data", required=True, help="the real tiles: the source that the run was made from")
    parser.add_argument("--image-size", type=int, default=None, help="side in pixels; default: the size tiles have")
    parser.add_argument(
        "--steps", type=int, default=60, help="optimizer steps of each training; some hundreds on a GPU"
    )
    parser.add_argument("--batch-size", type=int, default=64, help="tiles per step")
    parser.add_argument(
        "--num-workers", type=int, nargs="+", default=[0, 2], help="DataLoader processes of the peers; each is tried"
    )
    parser.add_argument("--num-images", type=int, default=512, help="images of each sampler and repeat")
    parser.add_argument("--repeats", type=int, default=3, help="times that everything is measured")
    parser.add_argument("--output", type=Path, default=None, help="JSON file; default: RUN/benchmark.json")
    args = parser.parse_args(argv)
    for name in ("steps", "batch_size", "num_images", "repeats"):
        check_option(args, name, getattr(args, name) >= 1, "it must be at least 1")
    check_option(args, "num_workers", min(args.num_workers) >= 0, "each must be at least 0")
    check_option(args, "num_workers", len(set(args.num_workers)) == len(args.num_workers), "each may be named once")
    args.output = args.output or args.run / "benchmark.json"
    if args.output.is_dir():
        fail(f"--output={args.output} is a folder: give a file, such as {args.output / 'benchmark.json'}")
    return args


def machine_facts() -> dict[str, Any]:
    """What the speeds were measured on; nothing that tells whose machine it is."""
    packages = ("histodistill", "torch", "diffusers", "accelerate", "datasets", "numpy", "pillow")
    return {
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else _processor_name(),
        "cpu_count": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "versions": {"python": platform.python_version(), **{name: metadata.version(name) for name in packages}},
    }


def _processor_name() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def training_argv(settings: dict[str, Any], run: Path, data: str, output: Path, **overrides: Any) -> list[str]:
    """Options that make `train_diffusion` train a denoiser as that of the run, with nothing but training in it.

    Args:
        settings: From the record of the run's pipeline.
        run: Folder of the run, whose autoencoder is taken.
        data: The tiles.
        output: Folder for the result.
        overrides: Options in place of the settings; `max_train_steps` is one of them.
    """
    known = {name: value for name, value in settings.items() if name not in ("stage", "data", "autoencoder")}
    steps = overrides["max_train_steps"]
    options = {
        **known,
        "data": data,
        "autoencoder": run / "autoencoder",
        "output": output,
        "gradient_accumulation_steps": 1,
        # Both come once, after the last step, when the clock has stopped.
        "validation_steps": steps,
        "checkpointing_steps": steps,
        "validation_tiles": 8,
        **overrides,
    }
    return to_argv({name: value for name, value in options.items() if value is not None})


def require_same_model(ours: Path, peer: Path) -> None:
    """Checks that two folders hold U-Nets of one architecture.

    Raises:
        InputError: If they do not.
    """
    configs = []
    for folder in (ours, peer):
        config = UNet2DModel.load_config(folder)
        configs.append({name: value for name, value in config.items() if not name.startswith("_")})
    if configs[0] != configs[1]:
        raise InputError(
            f"{peer} does not hold the denoiser that train_diffusion makes of its settings: train the pipeline anew"
        )


def measure_training(args: argparse.Namespace, settings: dict[str, Any], image_size: int) -> dict[str, Any]:
    """Trains with our script and with each peer, taking turns.

    Args:
        args: Of the command line.
        settings: From the record of the run's pipeline.
        image_size: Side of the tiles.

    Returns:
        The `training` part of the results.

    Raises:
        InputError: If our script makes another model than the run holds, which the peers train.
    """
    variants = [(precision, workers) for precision in ("no", "bf16") for workers in args.num_workers]
    ours, peers = [], {variant: [] for variant in variants}
    num_parameters = {}
    with tempfile.TemporaryDirectory() as folder:
        for repeat in range(args.repeats):
            print(f"training {repeat + 1}/{args.repeats}: histodistill", flush=True)
            output = Path(folder) / f"ours-{repeat}"
            steps = {"max_train_steps": args.steps, "batch_size": args.batch_size, "image_size": image_size}
            argv = training_argv(settings, args.run, args.data, output, **steps)
            run_module("histodistill.training.train_diffusion", argv)
            ours.append(read_json(output / "stage.json")["images_per_second"])
            if not repeat:
                require_same_model(output / "unet", args.run / "pipeline" / "unet")
                num_parameters["ours"] = UNet2DModel.from_pretrained(output / "unet").num_parameters()
            for precision, workers in variants:
                print(f"training {repeat + 1}/{args.repeats}: {_peer_name(precision, workers)}", flush=True)
                options = {
                    "run": args.run,
                    "data": args.data,
                    "image_size": image_size,
                    "output": Path(folder) / "peer.json",
                    "batch_size": args.batch_size,
                    "steps": args.steps,
                    "warmup_steps": WARMUP_STEPS,
                    "mixed_precision": precision,
                    "num_workers": workers,
                }
                run_module("histodistill.training.benchmarks.peers", to_argv(options))
                peers[precision, workers].append(read_json(options["output"]))
    num_parameters["peer"] = peers[variants[0]][0]["num_parameters"]
    our_speed = median(ours)
    rows = []
    for (precision, workers), results in peers.items():
        speeds = [result["images_per_second"] for result in results]
        rows.append(
            {
                "name": _peer_name(precision, workers),
                "mixed_precision": precision,
                "num_workers": workers,
                "images_per_second": median(speeds),
                "images_per_second_values": speeds,
                "images_per_second_with_warmup": median(r["images_per_second_with_warmup"] for r in results),
                "speedup": our_speed / median(speeds),
            }
        )
    return {
        "batch_size": args.batch_size,
        "steps": args.steps,
        "num_parameters": num_parameters,
        "same_architecture": True,  # or there would have been an error
        "histodistill": {
            "mixed_precision": settings["mixed_precision"],
            "images_per_second": our_speed,
            "images_per_second_values": ours,
        },
        "peers": rows,
        "notes": TRAINING_NOTES,
    }


def _peer_name(precision: str, workers: int) -> str:
    return f"train_unconditional style, {PRECISIONS[precision]}, num_workers={workers}"


def table_lines(results: dict[str, Any]) -> list[str]:
    """The results as text."""
    training, sampling = results["training"], results["sampling"]
    ours = training["histodistill"]
    name = f"histodistill, {PRECISIONS[ours['mixed_precision']]}"
    rows = [["", "images/s", "histodistill is"], [name, f"{ours['images_per_second']:.1f}", ""]]
    for peer in training["peers"]:
        rows.append([peer["name"], f"{peer['images_per_second']:.1f}", f"{peer['speedup']:.2f}× as fast"])
    lines = [f"training: {training['steps']} steps of {training['batch_size']} tiles", *_aligned(rows), ""]

    peers = list(sampling["samplers"][0]["speedup"])
    rows = [["", "precision", "images/s", "Fréchet", "coverage", *(f"÷ [{i}]" for i in range(1, len(peers) + 1))]]
    for sampler in sampling["samplers"]:
        name = sampler["name"]
        if name in peers:
            name = f"[{peers.index(name) + 1}] {name}"
        elif sampler["is_pool_setting"]:
            name += " (the pool's)"
        speedups = [f"{sampler['speedup'][peer]:.2f}×" for peer in peers]
        figures = [f"{sampler['images_per_second']:.1f}", f"{sampler['frechet_distance']:.3g}"]
        precision = PRECISIONS[sampler["mixed_precision"]]
        rows.append([name, precision, *figures, f"{sampler['coverage']:.3f}", *speedups])
    lines.append(
        f"sampling: {sampling['num_images']} images, {sampling['chunk_size']} at a time; "
        f"{sampling['num_images_compared']} compared with as many validation tiles"
    )
    return [*lines, *_aligned(rows)]


def _aligned(rows: list[list[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip() for row in rows]


def main(args: argparse.Namespace) -> None:
    """Measures both, prints the table, and writes the JSON file."""
    pipeline = args.run / "pipeline"
    settings = require_complete(pipeline, "pipeline", "run train_diffusion first")["settings"]
    pool = require_complete(args.run / "pool", "pool", "run histodistill generate first")["settings"]
    require_complete(args.run / "autoencoder", "autoencoder", "run train_autoencoder first")
    require_complete(args.run / "teacher", "teacher", "run train_classifier first")
    source = load_tiles(args.data, image_size=args.image_size, audit_share=audit_share_of(args.run))
    if source.fingerprint() != settings["data"]:
        raise InputError(
            f"--data={args.data} does not hold the tiles that {pipeline} was trained on: "
            "give the same source, with the same --image-size"
        )
    # All that can be wrong is to show before the first training, not after the last.
    per_class = check_sampling(source, args.num_images, pool["guidance_scale"])
    accelerator = make_accelerator(pool["mixed_precision"])
    num_tiles = {name: len(tiles) for name, tiles in source.splits.items()}
    results = {
        "machine": machine_facts(),
        "data": {"name": source.name, "image_size": source.image_size, "num_tiles": num_tiles},
        "repeats": args.repeats,
        "training": measure_training(args, settings, source.image_size),
        "sampling": measure_sampling(args.run, pool, source, per_class, args.repeats, accelerator),
    }
    print("\n".join(table_lines(results)))
    write_json(args.output, results)
    print(f"benchmark: saved to {args.output}")
    accelerator.end_training()


if __name__ == "__main__":
    run_script(parse_args, main)
