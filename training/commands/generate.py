"""Generates the synthetic pool: many tiles of each class, each with a seed of its own.

    histodistill generate --pipeline runs/phantom/pipeline --output runs/phantom/pool

The pool is the same whatever the number of processes, and each image can be made again from its seed. A killed run
goes on where it was. The output folder opens with `load_dataset`; its columns are image, label and seed.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from histodistill.training.running.launch import add_launch_option, run_module
from histodistill.training.running.options import HelpFormatter, check_option


# Of a pool's settings, those that decide what a seed becomes.
PIPELINE_OPTIONS = ("num_inference_steps", "guidance_scale", "guidance_interval", "mixed_precision")


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Reads and checks the command line; ends with code 2 and one sentence where it is wrong."""
    parser = argparse.ArgumentParser(
        prog="histodistill generate", description=__doc__, allow_abbrev=False, formatter_class=HelpFormatter
    )
    parser.add_argument("--pipeline", type=Path, required=True, help="folder that train_diffusion left")
    parser.add_argument("--output", type=Path, required=True, help="folder for the pool")
    parser.add_argument("--per-class", type=int, default=1000, help="images of each class")
    parser.add_argument("--num-inference-steps", type=int, default=20, help="denoising steps")
    parser.add_argument("--guidance-scale", type=float, default=1.5, help="classifier-free guidance; 1 is none")
    parser.add_argument(
        "--guidance-interval",
        type=float,
        nargs=2,
        default=[0.0, 1.0],
        metavar=("LOW", "HIGH"),
        help="noise levels, 0 to 1, at which guidance is applied",
    )
    parser.add_argument("--chunk-size", type=int, default=100, help="images that are generated together")
    parser.add_argument("--seed", type=int, default=0, help="the pool's seed; of 0, image i has the seed i")
    parser.add_argument("--mixed-precision", choices=["no", "bf16", "fp16"], default="no", help="fp16 needs a GPU")
    add_launch_option(parser)
    args = parser.parse_args(argv)
    for name in ("per_class", "num_inference_steps", "chunk_size", "num_processes"):
        check_option(args, name, getattr(args, name) >= 1, "it must be at least 1")
    check_option(args, "guidance_scale", args.guidance_scale >= 0, "it must be at least 0")
    low, high = args.guidance_interval
    check_option(args, "guidance_interval", 0 <= low <= high <= 1, "it must be LOW HIGH with 0 <= LOW <= HIGH <= 1")
    check_option(args, "seed", 0 <= args.seed < 2**31, "it must be at least 0 and below 2^31")
    return args


def main(argv: list[str]) -> None:
    """Checks the options, then runs `histodistill.training.generate` with them."""
    run_module("histodistill.training.generate", argv, parse_args(argv).num_processes)
