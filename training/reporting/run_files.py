"""Reads the JSON files of a run: those that may be missing, and those that carry a format number."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from histodistill.training.running.errors import InputError
from histodistill.training.running.files import read_json
from histodistill.training.running.formats import RESULTS_FORMAT, RUN_FORMAT, check_format


#: The report's file in the folder of a run.
REPORT = "report.html"


def read_optional(path: Path) -> Any:
    """A JSON file, or None where there is none.

    Raises:
        InputError: If it cannot be read.
    """
    try:
        return read_json(path)
    except FileNotFoundError:
        return None
    except OSError as error:
        reason = error.strerror
        raise InputError(f"{path} cannot be read ({reason}): delete it and run the command that made it") from error


def read_run_record(run: Path) -> dict[str, Any] | None:
    """What `run.json` holds: the tiles and settings of a run. None where there is none, as of steps run one by one.

    Raises:
        InputError: If it cannot be read, or is of a later format.
    """
    return _read_format(run / "run.json", RUN_FORMAT)


def read_results(run: Path) -> dict[str, Any] | None:
    """What `results.json` holds: the scores of a run. None where `histodistill compare` was not run.

    Raises:
        InputError: If it cannot be read, or is of a later format.
    """
    return _read_format(run / "results.json", RESULTS_FORMAT)


def source_name(run: Path) -> str | None:
    """What the stages call the real tiles, which may be the name of a file; None where none of them says."""
    for read in (read_run_record, read_results):
        if name := (read(run) or {}).get("data"):
            return name
    return ((read_optional(run / "teacher" / "results.json") or {}).get("data") or {}).get("train")


def _read_format(path: Path, known: int) -> dict[str, Any] | None:
    """A JSON object of a format up to `known`, or None where there is no such file."""
    value = read_optional(path)
    if value is not None:
        check_format(value, path, known)
    return value
