"""How many threads compute, and how they wait for each other: found out without importing torch.

Libraries start a thread for each core that they see, which may be more than a container or a batch system gives. And
OpenMP's threads spin while they wait, so that on a busy machine each step takes as long as the thread that is held up
most, and the others take from it the time that it needs.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from pathlib import Path


# Where Linux has the control groups, by which containers and batch systems bound what a process may use.
CONTROL_GROUPS = Path("/sys/fs/cgroup")
# The control groups of this process, by name.
_OWN_GROUPS = Path("/proc/self/cgroup")


def usable_cores() -> int:
    """Cores' time that this process may use: of a larger machine, a container or a batch system may give it a few.

    More threads than these wait for each other: a ResNet on one core then takes four times as long with two.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = cpu_quota()
    return cores if quota is None else max(1, min(cores, math.ceil(quota)))


def cpu_quota() -> float | None:
    """How many cores' time the system gives this process's container or job; None where it sets no bound."""
    quotas = [quota for folder in _own_folders() if (quota := _quota_of(folder)) is not None]
    return min(quotas, default=None)


def thread_variables(environment: Mapping[str, str]) -> dict[str, str]:
    """Variables by which numerical libraries start no more threads than they may use, and have these wait quietly.

    They are read when a library is loaded. Where no quota bounds the cores, libraries know best how many threads.

    Args:
        environment: What is set already, and then stays.
    """
    variables = {}
    if cpu_quota() is not None:
        variables["OMP_NUM_THREADS"] = str(usable_cores())
    if "GOMP_SPINCOUNT" not in environment:  # which says more exactly how long threads spin
        variables["OMP_WAIT_POLICY"] = "PASSIVE"
    return {name: value for name, value in variables.items() if name not in environment}


def _own_folders() -> list[Path]:
    """The folders of this process's control groups that may bound its cores, and of those that these are in."""
    found = [CONTROL_GROUPS, CONTROL_GROUPS / "cpu"]
    try:
        lines = _OWN_GROUPS.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    for line in lines:
        _, controllers, path = (*line.split(":", 2), "", "")[:3]
        if controllers and "cpu" not in controllers.split(","):
            continue
        root = CONTROL_GROUPS / "cpu" if controllers else CONTROL_GROUPS
        own = root / path.strip("/")
        found += [own, *(parent for parent in own.parents if parent.is_relative_to(root))]
    return found


def _quota_of(folder: Path) -> float | None:
    words = (read_words(folder / "cpu.max") or "").split()
    if not words:
        words = [read_words(folder / name) or "" for name in ("cpu.cfs_quota_us", "cpu.cfs_period_us")]
    try:
        quota, period = map(float, words)
    except ValueError:  # "max", or nothing
        return None
    return quota / period if quota > 0 and period > 0 else None


def read_words(path: Path) -> str | None:
    """What a file of a control group says; None where there is none."""
    try:
        return path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return None
