"""What a distillation will need of time, disk and memory, told before it begins, and what would make that less."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from histodistill.training.data.tile_cache import LIMIT_VARIABLE
from histodistill.training.end_to_end.measuring import Measured
from histodistill.training.end_to_end.rough_cost import costs, run_bytes
from histodistill.training.end_to_end.steps import StageCall
from histodistill.training.end_to_end.work import kept_bytes, wanted_bytes
from histodistill.training.running.errors import InputError, option_string, param
from histodistill.training.running.files import format_size
from histodistill.training.running.progress import about, rounded


# Seconds from which on it is said how a run can be made shorter.
_LONG = 4 * 3600
# Steps that take less than this share of all are not named.
_NAMED = 0.02
# Bytes that selection and audit hold of each image of the pool and each real tile.
_PER_IMAGE = 8000


@dataclass(frozen=True)
class Estimate:
    """What is expected.

    Attributes:
        seconds: Folder of a step → what it takes.
        disk: Bytes that the run has at its largest.
        latents: Bytes of the latents and features that are kept beside it, in the cache of tiles.
        memory: Bytes that the largest step holds.
        device_memory: Bytes of the GPU's memory that it holds; None without one.
        unit_seconds: What it was reckoned from: kind of work → seconds of a unit.
        latent_shape: Also that: (C, h, w) of a tile's latent.
        not_kept: Bytes of latents and features that the cache may not hold.
    """

    seconds: dict[str, float]
    disk: int
    latents: int
    memory: int
    device_memory: int | None
    unit_seconds: dict[str, float]
    latent_shape: Sequence[int] | None = None
    not_kept: int = 0

    @classmethod
    def of(cls, plan: Sequence[StageCall], run: Mapping[str, Any], measured: Measured) -> Estimate:
        """The estimate of a distillation.

        Args:
            plan: Its steps.
            run: What run.json holds: see `work_of`.
            measured: What was measured on this machine with its tiles.
        """
        (pool,) = (stage.config for stage in plan if stage.folder == "pool")
        known = sum(run["num_tiles"].values()) + pool.per_class * len(run["class_names"])  # type: ignore[attr-defined]
        return cls(
            memory=measured.memory + _PER_IMAGE * known,
            device_memory=measured.device_memory,
            unit_seconds=measured.unit_seconds,
            latent_shape=measured.latent_shape,
            **_reckoned(
                plan, {**run, "latent_shape": measured.latent_shape}, measured.unit_seconds, measured.device_memory
            ),
        )

    def to_json(self) -> dict[str, Any]:
        """What run.json keeps."""
        return asdict(self)

    @property
    def total(self) -> float:
        """Seconds of all steps."""
        return sum(self.seconds.values())

    def lines(self, titles: Mapping[str, str]) -> Iterator[str]:
        """What the user is told: what it needs, and where that is long, what would make it shorter.

        Args:
            titles: Folder of a step → what the user calls it.
        """
        parts = [
            f"{titles[folder]} {rounded(seconds)}"
            for folder, seconds in self.seconds.items()
            if seconds >= max(60, _NAMED * self.total)
        ]
        times = f"{about(self.total)} in all" + (f" ({', '.join(parts)})" if parts else "")
        memory = f"{format_size(self.memory)} of memory"
        if self.device_memory is not None:
            memory += f" and {format_size(self.device_memory)} of the GPU's"
        yield f"expected: {times}, {format_size(self.disk + self.latents)} of disk, {memory}"
        if self.not_kept:
            yield (
                f"{format_size(self.not_kept)} of latents and features are more than the cache of tiles may hold "
                f"beside the tiles, so each step makes its own: set {LIMIT_VARIABLE} to more"
            )
        if self.total > _LONG:
            yield (
                f"to make it shorter: {option_string('time_budget')} 2h does less of everything, "
                f"{option_string('per_class')} makes a smaller pool, and a smaller {option_string('image_size')} "
                "costs least"
            )


def anew(stored: Mapping[str, Any], plan: Sequence[StageCall], run: Mapping[str, Any]) -> dict[str, Any]:
    """An estimate that run.json has kept, for what the steps do now: some of their options may have changed.

    Args:
        stored: What `Estimate.to_json` gave.
        plan: The steps.
        run: What run.json holds: see `work_of`.
    """
    known = {**run, "latent_shape": stored.get("latent_shape")}
    return {**stored, **_reckoned(plan, known, stored["unit_seconds"], stored["device_memory"])}


def _reckoned(
    plan: Sequence[StageCall], run: Mapping[str, Any], unit_seconds: Mapping[str, float], device_memory: int | None
) -> dict[str, Any]:
    """What of an estimate follows from what was measured and from what the steps do."""
    seconds = costs(plan, run, unit_seconds, shared=device_memory is not None)
    configs = {stage.folder: stage.config for stage in plan}
    kept, wanted = sum(kept_bytes(configs, run)), sum(wanted_bytes(configs, run))
    return {
        "seconds": {folder: round(value, 1) for folder, value in seconds.items()},
        "disk": run_bytes(plan, run),
        "latents": kept,
        "not_kept": wanted - kept,
    }


def check_room(estimate: Estimate, output: Path, cache: Path) -> str | None:
    """Looks whether there is as much disk and memory as will be needed.

    Args:
        estimate: What is expected.
        output: Folder of the run, which may not be there yet.
        cache: Folder of the cache of tiles, which may not be there yet. On a disk of its own it needs no room: what
            cannot be kept there is made again.

    Returns:
        A warning where memory is short; it may become free again.

    Raises:
        InputError: If the disk is too full.
    """
    import psutil

    place = _first_there(output)
    free = shutil.disk_usage(place).free
    beside = estimate.latents if _are_on_one_disk(place, _first_there(cache)) else 0
    if estimate.disk + beside > free:
        remedy = f"give a folder on another, or lower {param('per_class')}"
        if beside:
            remedy = (
                f"{format_size(beside)} of it for latents in {cache}: give {param('cache_dir')} or "
                f"{param('output')} on another disk, or {param('set')} diffusion.latent_cache=off"
            )
        raise InputError(
            f"{param('output')}={output} is on a disk with {format_size(free)} free, and the run needs about "
            f"{format_size(estimate.disk + beside)}{', ' if beside else ': '}{remedy}"
        )
    available = psutil.virtual_memory().available
    if estimate.memory > available:
        return (
            f"the run needs about {format_size(estimate.memory)} of memory, and {format_size(available)} are free: "
            f"end other programs, lower {option_string('per_class')}, or give a smaller {option_string('image_size')}"
        )
    return None


def _are_on_one_disk(one: Path, other: Path) -> bool:
    """Whether what one folder takes is missing in the other."""
    return one.stat().st_dev == other.stat().st_dev


def _first_there(folder: Path) -> Path:
    """The folder, or the nearest of those that it lies in that is there."""
    return next(place for place in (folder.absolute(), *folder.absolute().parents) if place.is_dir())
