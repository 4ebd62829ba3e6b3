"""The record that every stage of a run leaves: what it was made from, with which settings, and that it is complete.

A stage folder holds `stage.json`. It is written with `"complete": false` when work starts, so that a killed stage is
resumed with the same settings only, and with `"complete": true` as the very last file.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from histodistill.selection.versions import installed_versions
from histodistill.training.running.errors import InputError
from histodistill.training.running.files import read_json, sha256_of, write_json
from histodistill.training.running.memory import peak_memory


# The record's file in the folder of a stage.
RECORD = "stage.json"
# Packages whose versions a record tells: those that can change what comes out.
PACKAGES = ("histodistill", "torch", "diffusers", "transformers", "datasets", "accelerate", "infomap", "faiss-cpu")
# What a stage makes, and how its record names the stage.
STAGES = {
    "autoencoder": "autoencoder",
    "pipeline": "diffusion",
    "classifier": "classifier",
    "teacher": "classifier",
    "pool": "pool",
    "distilled set": "distilled",
}
# Folder in a run → what its stage makes, and which command makes it.
_PARTS = {
    "autoencoder": ("autoencoder", "train_autoencoder"),
    "pipeline": ("pipeline", "train_diffusion"),
    "teacher": ("teacher", "train_classifier"),
    "pool": ("pool", "histodistill generate"),
    "distilled": ("distilled set", "histodistill select"),
}
# What every record has; a file without one of these is none.
_REQUIRED = {"complete", "settings", "fingerprint", "seconds"}
# What a stage's content is told by: weights and tables, beside configurations.
_CONTENT_SUFFIXES = (".safetensors", ".parquet")
# Characters of a setting in a message, at most: a fingerprint has 64, of which nobody needs to see all.
_SHOWN_LENGTH = 40


def fingerprint(settings: dict[str, Any]) -> str:
    """Sha256 of settings, independent of key order."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


def read_record(folder: str | Path) -> dict[str, Any] | None:
    """The stage record of a folder, or None where there is none that can be read."""
    try:
        record = read_json(Path(folder) / RECORD)
    except (OSError, ValueError):
        return None
    is_record = isinstance(record, dict) and record.keys() >= _REQUIRED and isinstance(record["settings"], dict)
    return record if is_record else None


def is_complete(folder: str | Path, settings: dict[str, Any] | None = None) -> bool:
    """Whether the stage in `folder` is finished, and was made with `settings` where they are given."""
    record = read_record(folder)
    return bool(record and record["complete"] and (settings is None or record["settings"] == _plain(settings)))


def require_complete(folder: str | Path, what: str, remedy: str) -> dict[str, Any]:
    """The record of a finished stage.

    Args:
        folder: Where it should be.
        what: What the stage makes: a key of `STAGES`.
        remedy: The end of the error's sentence.

    Raises:
        InputError: If the folder does not hold one, or that of another stage.
    """
    record = read_record(folder)
    if not record or not record["complete"] or record["settings"].get("stage") != STAGES[what]:
        raise InputError(f"{folder} holds no finished {what}: {remedy}")
    return record


def require_parts(run: Path, *parts: str) -> dict[str, dict[str, Any]]:
    """The records of finished stages of a run, by the names of their folders.

    Commands ask for them before they import libraries, so that a wrong folder is told at once.

    Args:
        run: The run's folder.
        parts: Names of folders in it.

    Raises:
        InputError: If one does not hold a finished stage of its kind.
    """
    return {part: require_complete(run / part, _PARTS[part][0], f"run {_PARTS[part][1]} first") for part in parts}


def is_run(folder: Path) -> bool:
    """Whether a folder is a run: one that `distill` began, or that steps run one by one have left something in."""
    return (folder / "run.json").is_file() or any(read_record(folder / part) for part in _PARTS)


def is_merged(folder: str | Path) -> bool:
    """Whether a folder is what `merge` left, by its record."""
    record = read_record(folder)
    return record is not None and record["settings"].get("stage") == "merged"


def content_of(folder: str | Path) -> str:
    """SHA-256 of what a finished stage is: its weights, tables of images and configurations, by their places.

    The fingerprint of a stage tells how it was made. Files may have been put in the place of others since.

    Raises:
        InputError: If a file cannot be read.
    """
    folder, digest = Path(folder), hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        place = path.relative_to(folder)
        if "checkpoints" in place.parts or not (path.suffix in _CONTENT_SUFFIXES or path.name == "config.json"):
            continue
        try:
            digest.update(json.dumps([place.as_posix(), sha256_of(path)]).encode())
        except OSError as error:
            raise InputError(f"{path} cannot be read ({error.strerror}): make its folder anew") from error
    return digest.hexdigest()


class Stage:
    """Bookkeeping of one stage while it runs.

    Args:
        folder: The stage's output folder.
        settings: Everything that decides the result: options and fingerprints of inputs. Plain JSON values.
        remedy: What to do where the folder holds other settings; the end of that error's sentence.
        inputs: Folders of stages that this one works on, by name. The record holds their content, so that nothing is
            reused that was made of others; one that was written before this was so is taken as it is.

    Attributes:
        folder: The output folder.
        settings: As they come back from JSON, with lists for tuples.
        inputs: The content of each input by name: see `content_of`.
        complete: Whether the folder holds the finished stage.
        seconds_before: Time that earlier attempts spent.
        peak_memory_before: Bytes of memory that earlier attempts held at most; 0 where that is not known.

    Raises:
        InputError: If the folder holds a stage made with other settings, or of inputs that have changed since.
    """

    def __init__(
        self,
        folder: str | Path,
        settings: dict[str, Any],
        remedy: str = "give another output folder",
        inputs: Mapping[str, str | Path] | None = None,
    ):
        self.folder, self.settings = Path(folder), _plain(settings)
        self.inputs = {name: content_of(path) for name, path in (inputs or {}).items()}
        self._started = time.perf_counter()
        record = read_record(self.folder)
        self.seconds_before = 0.0
        self.peak_memory_before = 0
        if record:
            if record["settings"] != self.settings:
                changed = first_difference(record["settings"], self.settings)
                raise InputError(f"{folder} was made with other settings ({changed}): {remedy}")
            before = record.get("inputs")
            for name, content in self.inputs.items():
                if isinstance(before, dict) and before.get(name, content) != content:
                    raise InputError(f"{folder} was made of other files of the {name} than those of today: {remedy}")
            self.seconds_before = record["seconds"]
            peak = record.get("peak_memory")
            self.peak_memory_before = peak if isinstance(peak, int) else 0
        self.complete = bool(record and record["complete"])

    def change_settings(self, settings: dict[str, Any]) -> None:
        """Makes a finished stage one that is to be made anew, with other settings, in the same folder.

        Args:
            settings: The new ones, all of them.
        """
        self.settings, self.complete = _plain(settings), False

    def require_own_folder(self) -> None:
        """Sees that a stage which replaces folders in its folder, such as `data`, does not do so to somebody's own.

        Raises:
            InputError: If there is anything in the folder, but no record of a stage.
        """
        if not self.folder.is_dir() or (self.folder / RECORD).exists():
            return
        found = sorted(path.name for path in self.folder.iterdir() if not path.name.startswith("."))
        if found:
            raise InputError(f"{self.folder} is not empty and holds no stage of a run ({found[0]}): give a new folder")

    def begin(self) -> None:
        """Claims the folder for these settings.

        Raises:
            InputError: If it cannot be written.
        """
        try:
            self._write(complete=False, facts={})
        except OSError as error:
            raise InputError(f"{self.folder} cannot be written ({error.strerror}): give another folder") from error

    def save_progress(self) -> None:
        """Keeps the time spent so far, so that a resumed stage reports its whole duration."""
        self._write(complete=False, facts={})

    def finish(self, **facts: Any) -> dict[str, Any]:
        """Marks the stage complete.

        Args:
            facts: What was measured, as JSON can hold it; stored in the record.

        Returns:
            The record.
        """
        return self._write(complete=True, facts=facts)

    def _write(self, complete: bool, facts: dict[str, Any]) -> dict[str, Any]:
        record = {
            "complete": complete,
            "settings": self.settings,
            "fingerprint": fingerprint(self.settings),
            "seconds": round(self.seconds_before + time.perf_counter() - self._started, 1),
            "peak_memory": max(self.peak_memory_before, peak_memory() or 0) or None,
            "versions": installed_versions(PACKAGES),
            **({"inputs": self.inputs} if self.inputs else {}),
            **facts,
        }
        write_json(self.folder / RECORD, record)
        return record


def _plain(settings: dict[str, Any]) -> dict[str, Any]:
    # What comes back from JSON has lists for tuples; compare like with like.
    return json.loads(json.dumps(settings))


def first_difference(old: dict[str, Any], new: dict[str, Any]) -> str:
    """The first setting that differs, for an error message."""
    for key in sorted(old.keys() | new.keys()):
        if old.get(key) != new.get(key):
            return f"{key} was {_short(old.get(key))} and is now {_short(new.get(key))}"
    return "unknown difference"


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= _SHOWN_LENGTH else f"{text[: _SHOWN_LENGTH - 3]}..."
