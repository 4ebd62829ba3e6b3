"""Training checkpoints as safetensors and JSON: loading one never runs code from the file.

A checkpoint holds weights, optimizer moments and the step. Random states and data order need no place in it, since
both are functions of (seed, step): see `steps.py`. Its `state.json`, written last, holds the SHA-256 of every other
file and its own, so that damage, as a power cut or a full disk leaves it, is seen before anything is loaded.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from histodistill.training.running.errors import InputError, param
from histodistill.training.running.files import new_folder, read_json, remove, sha256_of, write_json
from histodistill.training.running.notes import warn
from histodistill.training.running.stages import fingerprint, first_difference
from histodistill.training.running.threads import usable_cores


# The record of a checkpoint in its folder, beside the safetensors files.
_STATE = "state.json"
# The file of the optimizer's moments; a module has one by its name.
_OPTIMIZER = "optimizer.safetensors"
# Layout of a checkpoint, and the order of tiles and noise that its training has seen. It grows when either changes:
# a training that went on from an earlier one would be half of the one and half of the other.
_FORMAT = 2
# Checkpoints that were written before they had a number.
_FORMAT_WITHOUT_NUMBER = 1


class DamagedCheckpointError(InputError):
    """A checkpoint that does not hold what was written into it.

    Args:
        folder: Of the checkpoint.
        reason: What is wrong with it, as the end of a sentence.

    Attributes:
        reason: The same.
    """

    def __init__(self, folder: Path, reason: str):
        super().__init__(
            f"checkpoint {folder} is damaged ({reason}): delete it, or give {param('resume')}=latest, which takes the "
            "newest one that is whole"
        )
        self.folder, self.reason = folder, reason

    def __reduce__(self) -> Any:
        return type(self), (self.folder, self.reason)


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

    Those of later steps, which are damaged or of an attempt before, are removed before those that led here.

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
        save_file(moments, folder / _OPTIMIZER)
        record = {
            "format": _FORMAT,
            "step": step,
            "settings": settings,
            "scaler": scaler.state_dict() if scaler else None,
            "threads": torch.get_num_threads(),
            **(state or {}),
            "files": {path.name: sha256_of(path) for path in sorted(folder.iterdir())},
        }
        write_json(folder / _STATE, {**record, "sha256": fingerprint(record)})
    written = root / f"checkpoint-{step}"
    others = [folder for folder in list_checkpoints(root) if folder != written]
    others.sort(key=lambda folder: (_step_of(folder) < step, _step_of(folder)))
    for old in others[: len(others) - (keep - 1)]:
        remove(old)
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
    if not _all_finite(module.state_dict()):
        wrong = ["the weights are not finite"]
    if wrong:
        raise InputError(f"{wrong[0]} after step {step}: lower {param('learning_rate')}")


def list_checkpoints(root: str | Path) -> list[Path]:
    """All that is called a checkpoint under `root`, whatever it holds, oldest step first."""
    found = [p for p in Path(root).glob("checkpoint-*") if re.fullmatch(r"checkpoint-[0-9]+", p.name)]
    return sorted(found, key=_step_of)


def _step_of(folder: Path) -> int:
    return int(folder.name.rpartition("-")[2])


def check_resume(resume: str | Path | None) -> None:
    """Sees, before a training claims its folder, that a checkpoint which is named is one.

    Args:
        resume: None, "latest" or a checkpoint folder.

    Raises:
        InputError: If a path is given that is not a checkpoint.
    """
    if resume not in (None, "latest") and not (Path(resume) / _STATE).is_file():
        raise InputError(
            f"{param('resume')} {resume} is not a checkpoint: give 'latest' or a checkpoint-<step> folder"
        )


def resume_training(
    root: str | Path | None,
    resume: str | Path | None,
    settings: dict,
    modules: dict[str, torch.nn.Module],
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler | None = None,
    accelerator: Accelerator | None = None,
) -> dict[str, Any] | None:
    """Goes on from a checkpoint, if there is one to go on from.

    For "latest" it is the newest one that is whole. Those that are damaged stay where they are until the training
    writes one again, and the user is told. A checkpoint of other settings is never passed over: whoever started this
    training in that folder did not mean to.

    Of several processes the main one says which is the latest: on a network drive others may not see it yet, or still
    see one that is gone, and would go on from another step.

    Args:
        root: Folder of the checkpoints; None for a training that writes none.
        resume: None, "latest" or a checkpoint folder.
        settings, modules, optimizer, scaler: See `load_checkpoint`.
        accelerator: Tells the processes that go on together; None for one alone.

    Returns:
        What `load_checkpoint` returns; None for a training that begins: without `resume`, or without a checkpoint that
        is whole for "latest".

    Raises:
        InputError: As `check_resume` and `load_checkpoint` do.
    """
    check_resume(resume)
    if resume is None:
        return None
    load = partial(load_checkpoint, settings=settings, modules=modules, optimizer=optimizer, scaler=scaler)
    if resume != "latest":
        return load(resume)
    is_main = accelerator is None or accelerator.is_main_process
    folder, state = _load_newest(root, load) if is_main else (None, None)
    if accelerator is not None and accelerator.num_processes > 1:
        (folder,) = broadcast_object_list([folder])
    return state if is_main or folder is None else load(folder)


def _load_newest(
    root: str | Path | None, load: Callable[[Path], dict[str, Any]]
) -> tuple[Path | None, dict[str, Any] | None]:
    """Loads the newest checkpoint that is whole, and tells of those that are not.

    Args:
        root: Folder of the checkpoints, or None.
        load: Loads one.

    Returns:
        Its folder and what `load` returns; None and None where there is none.
    """
    damaged: list[DamagedCheckpointError] = []
    found = state = None
    for folder in reversed(list_checkpoints(root) if root is not None else []):
        try:
            state = load(folder)
        except DamagedCheckpointError as error:
            damaged.append(error)
        else:
            found = folder
            break
    place = "begins anew" if state is None else f"goes on from step {state['step']}"
    for each in damaged:
        warn(
            f"checkpoint {each.folder} is damaged ({each.reason}) and left where it is until another one is written:"
            f" the training {place}"
        )
    return found, state


def load_checkpoint(
    folder: str | Path,
    settings: dict,
    modules: dict[str, torch.nn.Module],
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler | None = None,
) -> dict[str, Any]:
    """Loads what `save_checkpoint` wrote into modules and optimizer, in place, or leaves them all as they are.

    Settings must be the same: after going on from weights of other tiles, or of a training without differential
    privacy, what the new stage says of its tiles and its privacy would be untrue.

    Args:
        folder: Of the checkpoint.
        settings: All that decides the result of the training that goes on.
        modules, optimizer, scaler: As `save_checkpoint` took them, for the same model.

    Returns:
        The rest of the state: `step`, `settings`, `scaler`, and the further values.

    Raises:
        DamagedCheckpointError: If it does not hold what was written, or not what these modules have.
        InputError: If it is of a training with other settings, or of another version.
    """
    folder = Path(folder)
    state = _read_state(folder)
    # As it comes back from JSON.
    old, new = state["settings"], json.loads(json.dumps(settings))
    if old != new:
        raise InputError(
            f"checkpoint {folder} is of a training with other settings ({first_difference(old, new)}): give those, "
            f"or leave {param('resume')} out"
        )
    # All is read and checked before anything is changed.
    contents = _read_tensors(folder, state["files"], [*modules, Path(_OPTIMIZER).stem])
    weights = {name: contents[name] for name in modules}
    for name, module in modules.items():
        _check_weights(folder, name, module, weights[name])
    moments = _moments(folder, contents[Path(_OPTIMIZER).stem], optimizer)

    for name, module in modules.items():
        module.load_state_dict(weights[name])
    optimizer.load_state_dict({"state": moments, "param_groups": optimizer.state_dict()["param_groups"]})
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            for name, value in optimizer.state[parameter].items():
                # Fused AdamW walks through memory: a moment must lie there just as its channels_last parameter does.
                if value.shape == parameter.shape:
                    optimizer.state[parameter][name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
    if scaler and state["scaler"]:
        scaler.load_state_dict(state["scaler"])
    _compute_with(state.get("threads"))
    return state


def _compute_with(threads: int | None) -> None:
    """Goes on with as many threads as before, since the last bits of a result depend on it.

    Args:
        threads: How many they were; None where a checkpoint of before does not tell.
    """
    if threads is None or threads == torch.get_num_threads():
        return
    if threads > (cores := usable_cores()):
        warn(
            f"the training began with {threads} threads, and {cores} can be used here: its result may differ in the "
            "last digits"
        )
        return
    torch.set_num_threads(threads)


def _read_state(folder: Path) -> dict[str, Any]:
    """The record of a checkpoint, which is what was written, of this version, and where it belongs.

    Raises:
        DamagedCheckpointError: If it is not.
        InputError: If it is of another version.
    """
    try:
        record = read_json(folder / _STATE)
    except OSError as error:
        raise DamagedCheckpointError(folder, f"{_STATE} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise DamagedCheckpointError(folder, f"{_STATE} is no JSON") from error
    if not isinstance(record, dict) or not {"step", "settings"} <= record.keys():
        raise DamagedCheckpointError(folder, f"{_STATE} is no record of a checkpoint")
    if (found := record.get("format", _FORMAT_WITHOUT_NUMBER)) != _FORMAT:
        version = "an earlier" if found == _FORMAT_WITHOUT_NUMBER else "another"
        raise InputError(
            f"checkpoint {folder} is of {version} version of histodistill, which shows a training its tiles in "
            f"another order: delete {folder.parent}, and the same command trains from the beginning"
        )
    written = record.pop("sha256", None)
    if written != fingerprint(record):
        raise DamagedCheckpointError(folder, f"{_STATE} is not as it was written")
    return record


def _read_tensors(folder: Path, sums: Mapping[str, str], names: Sequence[str]) -> dict[str, dict[str, torch.Tensor]]:
    """The tensors of the files of a checkpoint, by their names without the ending.

    Raises:
        DamagedCheckpointError: If a file is missing, or not what was written.
    """
    found = {}
    for name in names:
        path = folder / f"{name}.safetensors"
        try:
            if sha256_of(path) != sums.get(path.name):
                raise DamagedCheckpointError(folder, f"{path.name} is not as it was written")
            found[name] = load_file(path)
        except OSError as error:
            raise DamagedCheckpointError(folder, f"{path.name} cannot be read: {error.strerror}") from error
        except (SafetensorError, RuntimeError, ValueError) as error:
            raise DamagedCheckpointError(folder, f"{path.name} holds no tensors") from error
    return found


def _check_weights(folder: Path, name: str, module: torch.nn.Module, weights: Mapping[str, torch.Tensor]) -> None:
    """Sees that weights are those of a module, and finite.

    Raises:
        DamagedCheckpointError: If they are not.
    """
    wanted = {key: (value.shape, value.dtype) for key, value in module.state_dict().items()}
    if {key: (value.shape, value.dtype) for key, value in weights.items()} != wanted:
        raise DamagedCheckpointError(folder, f"{name}.safetensors does not fit this model")
    if not _all_finite(weights):
        raise DamagedCheckpointError(folder, f"the weights of {name}.safetensors are not finite")


def _moments(
    folder: Path, tensors: Mapping[str, torch.Tensor], optimizer: torch.optim.Optimizer
) -> dict[int, dict[str, torch.Tensor]]:
    """The moments of an optimizer by the number of their parameter.

    Raises:
        DamagedCheckpointError: If they are not of its parameters.
    """
    shapes = [parameter.shape for group in optimizer.param_groups for parameter in group["params"]]
    per_parameter: dict[int, dict[str, torch.Tensor]] = {}
    for key, value in tensors.items():
        number, _, name = key.partition(".")
        index = int(number) if number.isdecimal() else len(shapes)
        if index >= len(shapes) or (value.ndim and value.shape != shapes[index]):
            raise DamagedCheckpointError(folder, f"{_OPTIMIZER} does not fit this model")
        per_parameter.setdefault(index, {})[name] = value
    return per_parameter


def _all_finite(weights: Mapping[str, torch.Tensor]) -> bool:
    return all(bool(torch.isfinite(value).all()) for value in weights.values() if value.is_floating_point())


def content_of(module: torch.nn.Module) -> str:
    """SHA-256 of a module's parameters and buffers, which ties a checkpoint to what its training started from."""
    digest = hashlib.sha256()
    for name, value in module.state_dict().items():
        array = value.detach().cpu().contiguous()
        digest.update(json.dumps([name, str(array.dtype), list(array.shape)]).encode())
        digest.update(array.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
