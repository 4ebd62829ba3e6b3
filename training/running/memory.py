"""How much memory a process has held at most, or holds, and what becomes of memory that is freed."""

from __future__ import annotations

import ctypes
import os
import re
import sys
from pathlib import Path
from typing import Any


# Where Linux is told to forget the most memory that was held.
_FORGET = Path("/proc/self/clear_refs")

# Options of glibc's `mallopt`: how much may be free at the end of the heap, from which size on a block is mapped by
# itself, and how many may be.
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4
_NEVER, _LARGE_BLOCK = -1, 2**30


def keep_freed_memory() -> bool:
    """Has this process keep the memory that it frees, but for blocks of 1 GiB and more, and use it again.

    A step of a training frees what it held in between, and the next asks for as much. By default glibc gives it back
    to the system each time, which then clears it, page by page, before it hands it out again: a third of the time of
    a ConvNet's training on a CPU (see docs/trainings.md). What is held at most hardly grows by it.

    Returns:
        Whether it was done: not without glibc, or where environment variables tell glibc what to do.
    """
    if any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in os.environ):
        return False
    mallopt = _of_glibc("mallopt")
    if mallopt is None:
        return False
    # glibc before 2.35 takes no threshold above 32 MB.
    mapped_seldom = mallopt(_MMAP_THRESHOLD, _LARGE_BLOCK) or mallopt(_MMAP_MAX, 0)
    return bool(mapped_seldom and mallopt(_TRIM_THRESHOLD, _NEVER))


def free_as_by_default() -> None:
    """Undoes `keep_freed_memory`: limits as high as those that glibc reaches by itself."""
    if mallopt := _of_glibc("mallopt"):
        mallopt(_MMAP_MAX, 2**16)
        mallopt(_MMAP_THRESHOLD, 2**25)
        mallopt(_TRIM_THRESHOLD, 2**26)


def give_back_freed_memory() -> None:
    """Gives what `keep_freed_memory` keeps back to the system: before this process only waits for others."""
    if trim := _of_glibc("malloc_trim"):
        trim(0)


def _of_glibc(name: str) -> Any:
    """A function of glibc; None with another library of C."""
    if not sys.platform.startswith("linux"):
        return None
    library = ctypes.CDLL(None)
    return getattr(library, name, None) if hasattr(library, "gnu_get_libc_version") else None


def forget_peak() -> bool:
    """Makes `peak_memory` begin anew from what this process holds now.

    Returns:
        Whether it does: not where the system does not allow that.
    """
    try:
        _FORGET.write_text("5", encoding="ascii")
    except OSError:
        return False
    return True


def peak_memory() -> int | None:
    """The most memory that this process has held at a time so far, in bytes; None where the system does not tell.

    On Linux without what stands in mapped files, such as kept latents: the system takes that back when others need it.
    What of files is mapped now is taken for what was at the peak.
    """
    status = _status_of("self")
    if peak := _told("VmHWM", status):
        return max(peak - _told("RssFile", status), _told("RssAnon", status))
    try:
        import resource
    except ImportError:  # Windows
        import psutil

        return getattr(psutil.Process().memory_info(), "peak_wset", None)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def held_memory() -> int:
    """Bytes that this process holds now, of what `peak_memory` counts."""
    status = _status_of("self")
    if held := _told("RssAnon", status) + _told("RssShmem", status):
        return held
    import psutil

    return psutil.Process().memory_info().rss


def private_memory(process: int) -> int:
    """Bytes that a process holds and no file stands behind (RssAnon); 0 where it has ended, or Linux does not tell.

    Args:
        process: Its number.
    """
    return _told("RssAnon", _status_of(process))


def _status_of(process: int | str) -> str:
    """What Linux tells of a process, or of this one, "self"; nothing where it has ended, or elsewhere."""
    # It tells of this process alone. What `getrusage` tells there includes the process that started it.
    try:
        return Path(f"/proc/{process}/status").read_text(encoding="utf-8")
    except OSError:
        return ""


def _told(name: str, status: str) -> int:
    """Bytes that a line in kB of a process's status tells; 0 where there is none of that name."""
    found = re.search(rf"^{name}:\s+(\d+) kB$", status, re.MULTILINE)
    return 1024 * int(found[1]) if found else 0
