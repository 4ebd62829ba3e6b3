"""What `histodistill doctor` looks at of the machine: GPU, cores, memory, disks and terminal."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from pathlib import Path

from histodistill.training.running.files import write_refusal
from histodistill.training.running.findings import FAIL, PASS, WARN, Finding
from histodistill.training.running.precision import usual_precision
from histodistill.training.running.threads import CONTROL_GROUPS, read_words, usable_cores


# Memory in bytes: below the first not even the smallest run fits, below the second it does with nothing beside it.
_LEAST_MEMORY, _ENOUGH_MEMORY = 2 * 2**30, 4 * 2**30
# Room on a disk in bytes, likewise: for a run, with its pool and checkpoints.
_LEAST_DISK, _ENOUGH_DISK = 2**30, 5 * 2**30
_NVIDIA = "/dev/nvidiactl"


def check_gpu() -> Finding:
    """Which GPU torch computes on."""
    try:
        import torch
    except (ImportError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        return Finding("GPU", FAIL, f"torch cannot be imported ({reason})", "run pip install --force-reinstall torch")
    if torch.cuda.is_available():
        return _cuda_gpu()
    if torch.backends.mps.is_available():
        return Finding("GPU", PASS, "Apple's, by MPS, whose memory is that of the machine")
    if os.path.exists(_NVIDIA):
        build = f"the CUDA {torch.version.cuda}" if torch.version.cuda else "the CPU"
        return Finding(
            "GPU",
            WARN,
            f"NVIDIA's is there, but torch {torch.__version__}, built for {build}, cannot use it",
            "install the torch for its driver, see https://pytorch.org/get-started/locally",
        )
    return Finding("GPU", WARN, "none, which is enough for tiles of 28 pixels", "use --preset cpu, or cpu-demo to try")


def _cuda_gpu() -> Finding:
    import torch

    all_of_them = map(torch.cuda.get_device_properties, range(torch.cuda.device_count()))
    found = ", ".join(f"{about.name} with {_gib(about.total_memory)}" for about in all_of_them)
    if torch.cuda.is_bf16_supported(including_emulation=False):
        return Finding("GPU", PASS, f"{found}, with bfloat16")
    return Finding("GPU", WARN, f"{found}, without bfloat16", "give --mixed-precision fp16 or no")


def check_cores() -> Finding:
    """How many cores this process may use, and whether as many threads compute as there are cores."""
    most = usable_cores()
    found = f"{most} of {os.cpu_count()} may be used"
    threads = os.environ.get("OMP_NUM_THREADS", "")
    if threads.isdecimal():
        found += f", with OMP_NUM_THREADS={threads}"
    # Threads beyond the cores wait for each other: a training then takes several times as long.
    if threads.isdecimal() and int(threads) > most:
        return Finding("Cores", WARN, f"{found}, fewer than there will be threads", f"set OMP_NUM_THREADS={most}")
    return Finding("Cores", PASS, found)


def check_precision() -> Finding:
    """In which precision trainings compute, unless they are told."""
    if usual_precision() == "no":
        return Finding("Precision", PASS, "float32, since this processor only imitates bfloat16, several times slower")
    return Finding("Precision", PASS, "bfloat16")


def check_memory() -> Finding:
    """How much memory is free, for this process's container or job too."""
    free, total = free_memory()
    found = f"{_gib(free)} of {_gib(total)} are free"
    if free < _LEAST_MEMORY:
        return Finding("Memory", FAIL, found, f"close other programs: the smallest run needs {_gib(_LEAST_MEMORY)}")
    if free < _ENOUGH_MEMORY:
        return Finding("Memory", WARN, found, "close other programs, or give smaller batches (--set STEP.batch_size)")
    return Finding("Memory", PASS, found)


def free_memory() -> tuple[int, int]:
    """Bytes of memory that are free, and that there are."""
    import psutil

    memory = psutil.virtual_memory()
    limit = _number(CONTROL_GROUPS / "memory.max", CONTROL_GROUPS / "memory" / "memory.limit_in_bytes")
    used = _number(CONTROL_GROUPS / "memory.current", CONTROL_GROUPS / "memory" / "memory.usage_in_bytes")
    if limit is None or used is None or limit >= memory.total:
        return memory.available, memory.total
    return min(memory.available, max(0, limit - used)), limit


def check_disk(name: str, folder: Path, elsewhere: str) -> Finding:
    """Whether a folder can be written, and has room.

    Args:
        name: What the folder is.
        folder: The folder; it need not be there yet.
        elsewhere: How the user names another.
    """
    if refusal := write_refusal(folder):
        return Finding(name, WARN, f"{folder} cannot be written ({refusal.strerror})", elsewhere)
    there = next(each for each in (folder.absolute(), *folder.absolute().parents) if each.exists())
    free = shutil.disk_usage(there).free
    found = f"{_gib(free)} are free in {folder}"
    if free < _ENOUGH_DISK:
        return Finding(name, FAIL if free < _LEAST_DISK else WARN, found, f"make room, or {elsewhere}")
    return Finding(name, PASS, found)


def check_disks() -> list[Finding]:
    """The folders that are written: this one, that for downloads, and that for temporary files."""
    from huggingface_hub import constants

    other = "set TMPDIR to another folder"
    try:
        temporary = check_disk("Temporary", Path(tempfile.gettempdir()), other)
    except FileNotFoundError:
        temporary = Finding(
            "Temporary", FAIL, "no folder can be written for temporary files", f"make room, or {other}"
        )
    return [
        check_disk("Disk", Path.cwd(), "give an --output on another disk"),
        check_disk("Downloads", Path(constants.HF_HUB_CACHE), "set HF_HOME to another folder"),
        temporary,
    ]


def check_terminal() -> Finding:
    """Whether text in any alphabet can be shown, and files have names in UTF-8."""
    shown, names = sys.stdout.encoding or "ascii", sys.getfilesystemencoding()
    found = f"{shown} for text, {names} for names of files"
    if all(name.lower().replace("-", "") == "utf8" for name in (shown, names)):
        return Finding("Terminal", PASS, found)
    return Finding("Terminal", WARN, found, "set PYTHONUTF8=1, or some names are shown with escapes or refused")


def _number(*paths: Path) -> int | None:
    """The number that the first of some files holds which is there."""
    text = next((text for path in paths if (text := read_words(path))), "")
    return int(text) if text.isdecimal() else None


def _gib(count: float) -> str:
    """A number of bytes in words, such as "1.5 GiB"."""
    return f"{count / 2**30:.1f} GiB"
