"""Limits on what a file may unpack to, checked before anything is decoded.

A small file can claim or unpack to many gigabytes. What is bounded is the size of one picture and how much a file
grows; a large file of real tiles is within both, and is refused only where the memory of this machine is too small.
"""

from __future__ import annotations

import os

import psutil

from histodistill.training.running.errors import InputError
from histodistill.training.running.files import format_size


#: Variable of the environment with the most pixels that one picture may have, and what holds without it: 4096 x 4096.
MAX_PIXELS_VARIABLE, MAX_PIXELS = "HISTODISTILL_MAX_PIXELS", 2**24
#: Variable of the environment with how many times its own size a file may unpack to, and what holds without it. Tiles
#: of tissue are packed 1 to 5 times as small, drawings on a flat ground about 50 times.
MAX_GROWTH_VARIABLE, MAX_GROWTH = "HISTODISTILL_MAX_GROWTH", 200
# Bytes that anything may unpack to, whatever its own size.
_HARMLESS = 2**28


def check_picture(name: str, width: int, height: int) -> None:
    """Sees that one picture is not too large to be a tile.

    Args:
        name: What messages call it.
        width, height: In pixels, as its header says.

    Raises:
        InputError: If it has too many pixels.
    """
    most = _limit(MAX_PIXELS_VARIABLE, MAX_PIXELS)
    if width * height > most:
        raise InputError(
            f"{name} is {width}x{height} pixels: a tile may have at most {most:,} pixels; cut it into tiles, or set "
            f"{MAX_PIXELS_VARIABLE} to {width * height} or more"
        )


def check_growth(name: str, stored: int, unpacked: int) -> None:
    """Sees that a file does not unpack to very many times its own size.

    Args:
        name: What messages call it.
        stored: Bytes that it has.
        unpacked: Bytes that it unpacks to, as its header says.

    Raises:
        InputError: If it grows too much.
    """
    most = _limit(MAX_GROWTH_VARIABLE, MAX_GROWTH)
    if unpacked > max(_HARMLESS, most * stored):
        times = -(-unpacked // max(1, stored))
        raise InputError(
            f"{name} has {format_size(stored)} and unpacks to {format_size(unpacked)}: a file may grow {most} times; "
            f"if you trust it, set {MAX_GROWTH_VARIABLE} to {times}"
        )


def check_memory(name: str, needed: int) -> None:
    """Sees that what is about to be loaded fits in memory.

    Args:
        name: What messages call it.
        needed: Bytes that will be taken.

    Raises:
        InputError: If this machine has less memory free, or this process may take less.
    """
    free = _free_memory()
    if needed > free:
        raise InputError(
            f"{name} needs {format_size(needed)} of memory and {format_size(free)} are free: give fewer or smaller "
            "tiles, or use a machine with more memory"
        )


def _free_memory() -> int:
    """Bytes that this process can still take."""
    free = psutil.virtual_memory().available
    try:
        import resource  # not on Windows
    except ImportError:
        return free
    allowed = resource.getrlimit(resource.RLIMIT_AS)[0]
    if allowed != resource.RLIM_INFINITY:
        free = min(free, allowed - psutil.Process().memory_info().vms)
    return max(0, free)


def _limit(variable: str, default: int) -> int:
    """A limit as the environment has it."""
    text = os.environ.get(variable, "")
    if not text:
        return default
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise InputError(f"{variable}={text} is no limit: it must be a whole number of at least 1")
    return int(text)
