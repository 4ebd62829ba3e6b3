"""How much memory a process has held at most, or holds, for the records of a run and for measurements."""

from __future__ import annotations

import re
import sys
from pathlib import Path


# Where Linux tells it of this process alone, in kB. What `getrusage` tells there includes the process that started it.
_STATUS = Path("/proc/self/status")


def peak_memory() -> int | None:
    """The most memory that this process has held at a time so far, in bytes; None where the system does not tell."""
    try:
        if found := re.search(r"^VmHWM:\s+(\d+) kB$", _STATUS.read_text(encoding="utf-8"), re.MULTILINE):
            return 1024 * int(found[1])
    except OSError:  # not Linux
        pass
    try:
        import resource
    except ImportError:  # Windows
        import psutil

        return getattr(psutil.Process().memory_info(), "peak_wset", None)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def private_memory(process: int) -> int:
    """Bytes that a process holds and no file stands behind (RssAnon); 0 where it has ended, or Linux does not tell.

    Args:
        process: Its number.
    """
    try:
        status = Path(f"/proc/{process}/status").read_text(encoding="utf-8")
    except OSError:
        return 0
    found = re.search(r"^RssAnon:\s+(\d+) kB$", status, re.MULTILINE)
    return 1024 * int(found[1]) if found else 0
