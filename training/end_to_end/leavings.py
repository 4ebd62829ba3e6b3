"""What a run leaves: files that only unfinished work needs, and all else, with who may see it.

Files are known by the paths that the steps write, one by one. What lies elsewhere, or is a link, is nobody's but the
user's.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


_TRAINED = "(autoencoder|pipeline|teacher)"
# A checkpoint's folder, and what `save_checkpoint` writes into it.
_CHECKPOINT = r"checkpoint-\d+/(state\.json|\w+\.safetensors)"
# Where the cells of tables are: they have checkpoints, too.
_CELLS = "(comparison|evaluation|benchmark(/infodist)?/cells)"


@dataclass(frozen=True)
class Leaving:
    """Files that may be removed from a finished run.

    Attributes:
        title: What they are.
        paths: Regular expressions for their paths, relative to the run.
        lost: What cannot be done without them; empty where nothing is lost.
    """

    title: str
    paths: tuple[str, ...]
    lost: str = ""


#: What a finished run does not need.
LEAVINGS = (
    Leaving(
        "checkpoints",
        (rf"{_TRAINED}/checkpoints/{_CHECKPOINT}", rf"{_CELLS}/checkpoints/[^/]+/{_CHECKPOINT}"),
        "no training goes on from where it was",
    ),
    Leaving("pictures of trainings", (r"(autoencoder|pipeline)/progress/step-\d+\.png",)),
    Leaving(
        "pictures of real tiles",
        (r"audit/closest_(distilled|pool)\.png", r"evaluation/tiles\.png", r"review/blinded\.html"),
        "to see real tiles beside generated ones again, delete RUN/audit and audit anew",
    ),
    Leaving("parts of the pool", (r"pool/chunks/chunk-\d+\.npz", r"pool/shards/train-\d{5}-of-\d{5}\.parquet")),
    Leaving(
        "embeddings for the results table",
        (r"benchmark(/infodist)?/inputs(-\d+)?\.npz",),
        "a larger results table computes them anew",
    ),
    Leaving(
        "what peers of the results table made of real tiles",
        (r"benchmark/peers/[\w.-]+\.(npz|png)",),
        "a larger results table makes it anew, which may take hours",
    ),
    Leaving(
        "what guided rows of the results table sampled",
        (r"benchmark/guided/[\w.-]+\.(npz|png)",),
        "a larger results table samples it anew",
    ),
    Leaving("keys of private trainings", (r"(autoencoder|pipeline)/private\.key",)),
    Leaving("what was being written when a process ended", (r"(.+/)?\.[^/]+\.(\d+|[0-9a-f]{16})\.tmp(/.+)?",)),
)
#: Entries of a run that must not leave the house, and what each is.
PRIVATE = {
    "run.json": "the settings of the run, and what the real tiles are called",
    "groups.json": "salted hashes of the names of groups: histodistill holds goes by them",
    "autoencoder": "weights that were trained on real tiles: the audit needs them",
    "teacher": "weights that were trained on real tiles: the selection needs them",
    "pool": "images that were not chosen: the audit needs them",
    "comparison": "scores on real tiles, one by one",
    "evaluation": "how the pool compares with real tiles",
    "benchmark": "scores on real tiles, one by one",
    "review": "pages of a review, answers to the blinded sheet, and their key",
    "audit": "the record of the audit",
    "audit.json": "the verdicts: publishing goes by them",
    "results.json": "the scores, which cards tell",
    "report.html": "the report",
}
#: Entries that may leave it where the audit passes and their owner decides so.
PUBLISHABLE = ("distilled", "selector", "pipeline")


def find_leavings(run: Path) -> dict[Leaving, dict[str, int]]:
    """The files of each of `LEAVINGS` that a run has: path relative to it → bytes. Links are none."""
    found: dict[Leaving, dict[str, int]] = {}
    for path, size in _files(run, ""):
        for leaving in LEAVINGS:
            if any(re.fullmatch(expression, path) for expression in leaving.paths):
                found.setdefault(leaving, {})[path] = size
                break
    return found


def _files(run: Path, prefix: str) -> Iterator[tuple[str, int]]:
    """All ordinary files below the run, without following a link: path relative to it, and bytes."""
    with os.scandir(run / prefix) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            if entry.is_dir(follow_symlinks=False):
                yield from _files(run, f"{prefix}{entry.name}/")
            elif entry.is_file(follow_symlinks=False):
                yield f"{prefix}{entry.name}", entry.stat(follow_symlinks=False).st_size


def remove_files(run: Path, paths: list[str]) -> None:
    """Removes files of a run, and folders that are empty then, but for those directly in the run.

    Raises:
        OSError: If one cannot be removed.
    """
    for path in paths:
        (run / path).unlink(missing_ok=True)
    folders = {parent for path in paths for parent in Path(path).parents if len(parent.parts) > 1}
    for folder in sorted(folders, key=lambda folder: -len(folder.parts)):
        if not any((run / folder).iterdir()):
            (run / folder).rmdir()
