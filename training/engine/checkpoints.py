"""Training checkpoints as safetensors and JSON: loading one never runs code from the file.

A checkpoint holds weights, optimizer moments and the step. Random states and data order need no place in it, since
both are functions of (seed, step): see `steps.py`.
"""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from histodistill.training.running.errors import InputError, param
from histodistill.training.running.files import new_folder, read_json, write_json
from histodistill.training.running.stages import first_difference


def save_checkpoint(
    root: str | Path,
    step: int,
    settings: dict,
    modules: dict[str, torch.nn.Module],
    optimizer: torch.optim.Optimizer,
    state: dict | None = None,
    scaler: torch.amp.GradScaler | None = None,
    keep: int = 2,
) -> Path:
    """Writes `root/checkpoint-<step>` atomically and removes all others but the newest: `keep` stay.

    Args:
        root: Folder of the checkpoints.
        step: Number of finished steps.
        settings: All that decides the result of the training, as JSON can hold it: see `load_checkpoint`.
        modules: Unwrapped modules by name; all parameters and buffers are saved.
        optimizer: Its per-parameter tensors are saved; its settings belong to the command line.
        state: Further values that JSON can hold, such as the history of the validation loss.
        scaler: The gradient scaler of fp16 training, if there is one.
        keep: How many checkpoints stay, at least 1.

    Returns:
        The folder of the checkpoint.

    Raises:
        InputError: For weights that are not finite. They never take the place of a checkpoint of before.
    """
    root = Path(root)
    for module in modules.values():
        check_finite(module, step)
    with new_folder(root / f"checkpoint-{step}") as folder:
        for name, module in modules.items():
            weights = {key: value.detach().cpu().contiguous() for key, value in module.state_dict().items()}
            save_file(weights, folder / f"{name}.safetensors")
        moments = {
            f"{index}.{key}": torch.as_tensor(value).detach().cpu().contiguous()
            for index, values in optimizer.state_dict()["state"].items()
            for key, value in values.items()
        }
        save_file(moments, folder / "optimizer.safetensors")
        write_json(
            folder / "state.json",
            {
                "step": step,
                "settings": settings,
                "scaler": scaler.state_dict() if scaler else None,
                **(state or {}),
            },
        )
    written = root / f"checkpoint-{step}"
    # A training that began anew may have written fewer steps than those that lie there.
    others = [folder for folder in list_checkpoints(root) if folder != written]
    for old in others[: len(others) - (keep - 1)]:
        shutil.rmtree(old)
    return written


def check_finite(module: torch.nn.Module, step: int, figures: Mapping[str, float] | None = None) -> None:
    """Sees that a training has not diverged: one loss without bounds makes all weights so.

    Args:
        module: What is trained.
        step: Number of finished steps.
        figures: What was measured then, by name.

    Raises:
        InputError: If a weight of the module or a figure is infinite or no number.
    """
    wrong = [f"{name} is {value}" for name, value in (figures or {}).items() if not math.isfinite(value)]
    if not all(torch.isfinite(value).all() for value in module.state_dict().values() if value.is_floating_point()):
        wrong = ["the weights are not finite"]
    if wrong:
        raise InputError(f"{wrong[0]} after step {step}: lower {param('learning_rate')}")


def list_checkpoints(root: str | Path) -> list[Path]:
    """All checkpoint folders under `root`, oldest step first."""
    found = [p for p in Path(root).glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", p.name)]
    return sorted(found, key=lambda p: int(p.name.split("-")[1]))


def find_checkpoint(root: str | Path, resume: str | Path | None) -> Path | None:
    """The checkpoint to go on from, if any.

    Args:
        root: Folder of the checkpoints.
        resume: None, "latest" or a checkpoint folder.

    Returns:
        Its folder; None for a training that begins: without `resume`, or without a checkpoint yet for "latest".

    Raises:
        InputError: If a path is given that is not a checkpoint.
    """
    if resume is None:
        return None
    if resume == "latest":
        found = list_checkpoints(root)
        return found[-1] if found else None
    if not (Path(resume) / "state.json").is_file():
        raise InputError(
            f"{param('resume')} {resume} is not a checkpoint: give 'latest' or a checkpoint-<step> folder"
        )
    return Path(resume)


def load_checkpoint(
    folder: str | Path,
    settings: dict,
    modules: dict[str, torch.nn.Module],
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler | None = None,
) -> dict:
    """Loads what `save_checkpoint` wrote into modules and optimizer, in place.

    Settings must be the same: after going on from weights of other tiles, or of a training without differential
    privacy, what the new stage says of its tiles and its privacy would be untrue.

    Args:
        folder: Of the checkpoint.
        settings: All that decides the result of the training that goes on.
        modules, optimizer, scaler: As `save_checkpoint` took them, for the same model.

    Returns:
        The rest of the state: `step`, `settings`, `scaler`, and the further values.

    Raises:
        InputError: If the checkpoint is damaged, of a training with other settings, or does not fit the modules.
    """
    folder = Path(folder)
    try:
        state = read_json(folder / "state.json")
        # As it comes back from JSON.
        old, new = state["settings"], json.loads(json.dumps(settings))
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise InputError(
            f"checkpoint {folder} is damaged or of an earlier version: delete it, or leave {param('resume')} out"
        ) from error
    if old != new:
        raise InputError(
            f"checkpoint {folder} is of a training with other settings ({first_difference(old, new)}): give those, "
            f"or leave {param('resume')} out"
        )
    try:
        for name, module in modules.items():
            module.load_state_dict(load_file(folder / f"{name}.safetensors"))
        moments = load_file(folder / "optimizer.safetensors")
    except (OSError, RuntimeError, SafetensorError) as error:
        raise InputError(
            f"checkpoint {folder} does not fit this model: give the settings it was made with, or leave "
            f"{param('resume')} out"
        ) from error
    per_parameter: dict[int, dict[str, torch.Tensor]] = {}
    for key, value in moments.items():
        index, name = key.split(".", 1)
        per_parameter.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict({"state": per_parameter, "param_groups": optimizer.state_dict()["param_groups"]})
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            for name, value in optimizer.state[parameter].items():
                # Fused AdamW walks through memory: a moment must lie there just as its channels_last parameter does.
                if value.shape == parameter.shape:
                    optimizer.state[parameter][name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
    if scaler and state["scaler"]:
        scaler.load_state_dict(state["scaler"])
    return state
