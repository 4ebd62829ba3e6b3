"""How much memory this process has held at most, for the records of a run."""

from __future__ import annotations

import sys


def peak_memory() -> int | None:
    """The most memory that this process has held at a time so far, in bytes; None where the system does not tell."""
    try:
        import resource
    except ImportError:  # Windows
        import psutil

        return getattr(psutil.Process().memory_info(), "peak_wset", None)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak  # Linux counts in KiB
