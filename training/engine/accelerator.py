"""Makes the `Accelerator` of a script, after the checks that only the started processes can make."""

from __future__ import annotations

import os
import shutil
from datetime import timedelta
from importlib.util import find_spec
from pathlib import Path

import torch
from accelerate import Accelerator, PartialState
from accelerate.state import AcceleratorState, GradientState
from accelerate.tracking import get_available_trackers
from accelerate.utils import GradientAccumulationPlugin, TorchDynamoPlugin

from histodistill.training.models.devices import ASKING_FOR_NOTHING, wants_cpu
from histodistill.training.running.errors import InputError, param
from histodistill.training.running.notes import warn


# Accelerate reads a hundred variables, which `accelerate launch` sets from a `default_config.yaml`, and new ones come
# with its versions. These may stay: where the work is done, and what is told of it.
_PREFIX = "ACCELERATE_"
_HARMLESS = ("ACCELERATE_USE_CPU", "ACCELERATE_LOG_LEVEL")

# How long processes wait for one of them, which saves, draws or measures what the others have no part in. It takes
# minutes with large tiles or on a slow drive, and torch's own 10 (NCCL) or 30 (Gloo) would end a training then. That a
# process has died is no matter of waiting: the launcher ends the others at once.
_PATIENCE = timedelta(days=1)


def make_accelerator(
    mixed_precision: str,
    *,
    batch_size: int | None = None,
    gradient_accumulation_steps: int = 1,
    report_to: str | None = None,
    project_dir: str | Path | None = None,
    tf32: bool = False,
) -> Accelerator:
    """An `Accelerator` for this process, whatever the one made before it was like.

    Several steps may run in one process, as in a notebook, each with a precision of its own. An accelerator of a step
    that has ended is not to be used any more.

    What a step does is what its options say, which is also what its record tells of it. Variables of the environment
    by which Accelerate would do something else are therefore removed from this process, and the user is told of those
    that asked for anything: see `forget_environment`.

    Args:
        mixed_precision: "no", "bf16" or "fp16".
        batch_size: Tiles per batch over all processes, where the script splits batches.
        gradient_accumulation_steps: Batches per optimizer step.
        report_to: A tracker, "all" or None.
        project_dir: Where trackers that write files put them.
        tf32: Whether a GPU multiplies float32 matrices as TF32, of 10 bits after the point (see `device_record`). It
            is for trainings: distances of embeddings are to be exact.

    Raises:
        InputError: For fp16 without a GPU, a batch that cannot be shared evenly, a tracker that is not installed, or a
            variable of the environment that cannot be read.
    """
    forget_environment(
        {"mixed_precision": mixed_precision, "gradient_accumulation_steps": gradient_accumulation_steps}
    )
    # Accelerate reads this variable only when it makes an Accelerator: left to itself, a state made before that would
    # count one process where several run on a CPU.
    state = PartialState(cpu=wants_cpu(), timeout=_PATIENCE)
    if mixed_precision == "fp16" and state.device.type == "cpu":
        raise InputError(f"{param('mixed_precision')}=fp16 needs a GPU: give bf16 or no")
    if batch_size is not None and batch_size % state.num_processes:
        raise InputError(
            f"{param('batch_size')}={batch_size} cannot be split evenly over {state.num_processes} processes: give a "
            f"multiple of {state.num_processes}"
        )
    if report_to not in (None, "all") and report_to not in [str(t) for t in get_available_trackers()]:
        raise InputError(
            f"{param('report_to')}={report_to} is not installed: install it with pip, or leave the option out"
        )
    if state.device.type == "cuda":
        torch.set_float32_matmul_precision("high" if tf32 else "highest")
    # Accelerate keeps one precision for the whole process and refuses another. What it knows of devices and processes
    # stays: that is the same for all steps.
    AcceleratorState._reset_state()
    GradientState._reset_state()
    return Accelerator(
        mixed_precision=mixed_precision,
        gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=gradient_accumulation_steps),
        dynamo_plugin=TorchDynamoPlugin(backend="no"),
        log_with=report_to,
        project_dir=project_dir,
    )


def device_record(accelerator: Accelerator) -> dict[str, str | bool]:
    """What the record of a training says of the device: its name, and of a GPU whether it multiplied as TF32."""
    device = accelerator.device
    if device.type != "cuda":
        return {"device": device.type}
    tf32 = torch.get_float32_matmul_precision() != "highest"
    return {"device": torch.cuda.get_device_name(device), "tf32": tf32}


def require_compiler(device: torch.device) -> None:
    """Sees that models can be compiled for a device, which is otherwise found out in the first step.

    Raises:
        InputError: If what it takes is missing.
    """
    if device.type == "cuda":
        found, wanted = find_spec("triton") is not None, "Triton, which comes with PyTorch for GPUs on Linux"
    else:
        compilers = (os.environ.get("CXX"), "g++", "clang++", "cl")
        found, wanted = any(name and shutil.which(name) for name in compilers), "a C++ compiler"
    if not found:
        raise InputError(f"{param('compile')} needs {wanted}: install it, or leave the option out")


def forget_environment(options: dict[str, object]) -> None:
    """Removes from this process what the environment would have Accelerate do in place of a step's options.

    Accelerate looks at some variables only while it trains, so they are gone for good. One line on standard error
    names those that asked for something, such as another precision, FSDP or a compiler.

    Args:
        options: What the step does, by Accelerate's names: a variable that asks for the same is not worth a word.
    """
    removed = {
        name: os.environ.pop(name) for name in sorted(os.environ) if name.startswith(_PREFIX) and name not in _HARMLESS
    }
    asking = [
        f"{name}={value}"
        for name, value in removed.items()
        if value.strip().lower() not in (*ASKING_FOR_NOTHING, str(options.get(name.removeprefix(_PREFIX).lower())))
    ]
    if asking:
        warn(
            f"{', '.join(asking)} of the environment, or of Accelerate's default_config.yaml, is not used: the "
            "options of this step decide, as they are recorded"
        )
