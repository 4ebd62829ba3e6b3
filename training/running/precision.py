"""Which precision suits this machine, found out without importing torch where that can be."""

from __future__ import annotations

import functools
import os
import sys
from pathlib import Path


# Precisions of Accelerate that this project uses.
PRECISIONS = ("no", "bf16", "fp16")
# What options of a precision take: the first stands for `usual_precision`.
PRECISION_CHOICES = ("auto", *PRECISIONS)
PRECISION_HELP = "no is float32, fp16 needs a GPU; auto is bf16, but no on a processor without bfloat16 arithmetic"
# Flags by which processors say that they multiply bfloat16 numbers: x86, x86 with tiles, ARM.
_BFLOAT16_FLAGS = {"avx512_bf16", "amx_bf16", "bf16"}
# Where Linux has the devices of GPUs: NVIDIA's, also of small boards and below Windows, and AMD's.
_GPU_DEVICES = ("/dev/nvidiactl", "/dev/nvhost-gpu", "/dev/nvgpu", "/dev/dxg", "/dev/kfd")


def resolve_precision(name: str) -> str:
    """The precision that an option's value stands for: its own name, or for "auto" the usual one of this machine."""
    return usual_precision() if name == "auto" else name


@functools.cache
def usual_precision() -> str:
    """ "bf16", or "no" where that would be slow: on a processor without bfloat16 arithmetic, and with no GPU.

    Such a processor imitates it, and a training then takes several times as long as in float32.
    """
    if processor_has_bfloat16() is not False:
        return "bf16"
    return "bf16" if has_cuda() else "no"


def has_cuda() -> bool:
    """Whether torch has a GPU to compute on, NVIDIA's or AMD's."""
    if sys.platform == "linux" and not any(os.path.exists(path) for path in _GPU_DEVICES):
        return False
    import torch  # takes seconds, so only where there seems to be one

    return torch.cuda.is_available()


def processor_has_bfloat16(cpuinfo: str | Path = "/proc/cpuinfo") -> bool | None:
    """Whether the processor multiplies bfloat16 numbers itself; None where the system does not tell.

    Args:
        cpuinfo: The file in which Linux describes its processors.
    """
    if sys.platform != "linux":
        return None
    try:
        text = Path(cpuinfo).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    lines = [line.partition(":") for line in text.splitlines()]
    flags = [set(value.split()) for key, _, value in lines if key.strip().lower() in ("flags", "features")]
    return any(_BFLOAT16_FLAGS & found for found in flags) if flags else None
