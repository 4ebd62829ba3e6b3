"""The speed of training beside that of diffusers-style code: the first half of `speed`."""

from __future__ import annotations

import tempfile
from pathlib import Path
from statistics import median
from typing import Any

from histodistill.training.benchmarks.peers import PeerConfig
from histodistill.training.running.errors import InputError
from histodistill.training.running.files import read_json
from histodistill.training.running.launch import run_module
from histodistill.training.running.options import to_argv
from histodistill.training.running.source_options import source_options_of_run
from histodistill.training.train_diffusion import TrainDiffusionConfig


# Steps of a peer before its clock starts, in which memory is allocated and kernels are chosen.
WARMUP_STEPS = 5
# What tables call a precision.
PRECISION_NAMES = {"no": "fp32", "bf16": "bf16", "fp16": "fp16"}
# Precisions that each peer is measured in.
_PEER_PRECISIONS = ("no", "bf16")
# What a reader of the results must know to trust them.
TRAINING_NOTES = (
    "Each training is a process of its own; repeats alternate between histodistill and all peers.",
    f"The clock of a peer starts after {WARMUP_STEPS} untimed steps; images_per_second_with_warmup has them in. "
    "The clock of histodistill starts at its very first step, so its warm-up counts against it.",
    "Neither clock has validation, checkpoints or loading in it.",
    "The peer's tiles are PNG files in a datasets.Dataset, decoded and flipped one by one in the DataLoader.",
    "bf16 is autocast for the U-Net; the peer's autoencoder is cast to it as a whole.",
    "speedup is histodistill's median over the peer's.",
)


def training_config(
    settings: dict[str, Any], run: Path, data: str | Path, output: Path, **overrides: Any
) -> TrainDiffusionConfig:
    """Options that make `train_diffusion` train a denoiser as that of the run, with nothing but training in it.

    Args:
        settings: From the record of the run's pipeline.
        run: Folder of the run, whose autoencoder is taken.
        data: The tiles.
        output: Folder for the result.
        overrides: Options in place of the settings; `max_train_steps` is one of them.
    """
    # Of these the record holds what they are, not where; what a training begins from takes no time in its steps.
    inputs = ("data", "autoencoder", "align", "init_from")
    known = {name: value for name, value in settings.items() if name not in ("stage", *inputs)}
    if "align" in settings:
        known["align"] = run / "teacher"
    steps = overrides["max_train_steps"]
    options = {
        **known,
        "data": data,
        "autoencoder": run / "autoencoder",
        "output": output,
        **source_options_of_run(run),
        "gradient_accumulation_steps": 1,
        # Both come once, after the last step, when the clock has stopped.
        "validation_steps": steps,
        "checkpointing_steps": steps,
        "validation_tiles": 8,
        **overrides,
    }
    return TrainDiffusionConfig(**options)


def require_same_model(ours: Path, peer: Path) -> None:
    """Checks that two folders hold U-Nets of one architecture.

    Raises:
        InputError: If they do not.
    """
    from diffusers import UNet2DModel

    configs = []
    for folder in (ours, peer):
        config = UNet2DModel.load_config(folder)
        configs.append({name: value for name, value in config.items() if not name.startswith("_")})
    if configs[0] != configs[1]:
        raise InputError(
            f"{peer} does not hold the denoiser that train_diffusion makes of its settings: train the pipeline anew"
        )


def measure_training(
    run: Path,
    data: str | Path,
    image_size: int,
    settings: dict[str, Any],
    *,
    steps: int,
    batch_size: int,
    num_workers: tuple[int, ...],
    repeats: int,
) -> dict[str, Any]:
    """Trains with our script and with each peer, taking turns.

    Args:
        run: Folder with autoencoder/ and pipeline/.
        data: The tiles.
        image_size: Their side in pixels.
        settings: From the record of the run's pipeline.
        steps: Optimizer steps that are timed.
        batch_size: Tiles per step.
        num_workers: Processes of the peers' `DataLoader`; each number is tried.
        repeats: Times that everything is measured.

    Returns:
        The `training` part of the results.

    Raises:
        InputError: If our script makes another model than the run holds, which the peers train.
    """
    from histodistill.training.models.loading import load_denoiser

    variants = [(precision, workers) for precision in _PEER_PRECISIONS for workers in num_workers]
    ours: list[float] = []
    peers: dict[tuple[str, int], list[dict[str, Any]]] = {variant: [] for variant in variants}
    num_parameters = {}
    with tempfile.TemporaryDirectory() as folder:
        for repeat in range(repeats):
            print(f"training {repeat + 1}/{repeats}: histodistill", flush=True)
            output = Path(folder) / f"ours-{repeat}"
            changes = {"max_train_steps": steps, "batch_size": batch_size, "image_size": image_size}
            config = training_config(settings, run, data, output, **changes)
            run_module("histodistill.training.train_diffusion", to_argv(config))
            ours.append(read_json(output / "stage.json")["images_per_second"])
            if not repeat:
                require_same_model(output / "unet", run / "pipeline" / "unet")
                num_parameters["ours"] = load_denoiser(output / "unet").num_parameters()
            for precision, workers in variants:
                print(f"training {repeat + 1}/{repeats}: {_peer_name(precision, workers)}", flush=True)
                peer = PeerConfig(
                    run=run,
                    data=data,
                    image_size=image_size,
                    output=Path(folder) / "peer.json",
                    batch_size=batch_size,
                    steps=steps,
                    warmup_steps=WARMUP_STEPS,
                    mixed_precision=precision,
                    num_workers=workers,
                )
                run_module("histodistill.training.benchmarks.peers", to_argv(peer))
                peers[precision, workers].append(read_json(peer.output))
    num_parameters["peer"] = peers[variants[0]][0]["num_parameters"]
    return {
        "batch_size": batch_size,
        "steps": steps,
        "num_parameters": num_parameters,
        "same_architecture": True,  # or there would have been an error
        "histodistill": {
            "mixed_precision": settings["mixed_precision"],
            "images_per_second": median(ours),
            "images_per_second_values": ours,
        },
        "peers": _peer_rows(peers, median(ours)),
        "notes": TRAINING_NOTES,
    }


def _peer_rows(peers: dict[tuple[str, int], list[dict[str, Any]]], our_speed: float) -> list[dict[str, Any]]:
    """A row of the results for each peer, by precision and processes of its `DataLoader`."""
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
    return rows


def _peer_name(precision: str, workers: int) -> str:
    return f"train_unconditional style, {PRECISION_NAMES[precision]}, num_workers={workers}"
