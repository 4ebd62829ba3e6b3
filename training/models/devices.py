"""The device of a model that is used without an `Accelerator`, by the same rules as one would choose it."""

from __future__ import annotations

import os

import torch

from histodistill.training.running.errors import InputError


#: Values of a variable of Accelerate that ask for nothing: `accelerate launch` sets some whatever it is told.
ASKING_FOR_NOTHING = ("", "0", "no", "none", "false", "default")
# The variable by which Accelerate is told to leave a GPU alone.
_USE_CPU = "ACCELERATE_USE_CPU"


def best_device() -> torch.device:
    """The accelerator of this process, such as a GPU, or else the CPU.

    Of several it is the current one, which Accelerate has chosen where it started the process.

    Raises:
        InputError: As `wants_cpu` does.
    """
    if wants_cpu() or not torch.accelerator.is_available():
        return torch.device("cpu")
    device = torch.accelerator.current_accelerator()
    assert device is not None  # since one is available
    return device


def wants_cpu() -> bool:
    """Whether the environment asks for the CPU in place of a GPU.

    Raises:
        InputError: If it says neither yes nor no.
    """
    value = os.environ.get(_USE_CPU, "").strip().lower()
    if value in ASKING_FOR_NOTHING:
        os.environ.pop(_USE_CPU, None)  # Accelerate would stumble over an empty one
        return False
    from accelerate.utils import parse_flag_from_env

    try:
        return bool(parse_flag_from_env(_USE_CPU))
    except ValueError as error:
        raise InputError(f"the environment has {_USE_CPU}={value}: set it to true or false") from error


def gpu_names() -> list[str]:
    """What `CUDA_VISIBLE_DEVICES` calls each of the GPUs that this process may use; none without such GPUs.

    A process that begins with one of them in that variable sees no other.
    """
    if best_device().type != "cuda":
        return []
    count = torch.cuda.device_count()
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = map(str, range(count)) if visible is None else (name.strip() for name in visible.split(","))
    return list(names)[:count]
