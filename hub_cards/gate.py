"""The gate before publishing: a distilled set leaves only with a passing audit of exactly its files."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path


class GateError(ValueError):
    """A distilled set may not be published; the message is one sentence."""


def check_audit(distilled_folder: str | Path, audit_file: str | Path) -> None:
    """Checks that the data files of a distilled set were audited as they are, and passed.

    Args:
        distilled_folder: with `data/*.parquet`.
        audit_file: JSON with `passed` (bool), `reasons` (why not, sentences) and `files`, the SHA-256 of each audited
            file by its path relative to the folder.

    Raises:
        GateError: the audit is missing or damaged, did not pass, or was made of other files.
    """
    folder, remedy = Path(distilled_folder), "run histodistill audit"
    try:
        audit = json.loads(Path(audit_file).read_text(encoding="utf-8"))
        passed, reasons, files = audit["passed"], list(audit["reasons"]), dict(audit["files"])
    except FileNotFoundError:
        raise GateError(f"{audit_file} is missing, so nothing is known about leaks: {remedy} first") from None
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise GateError(f"{audit_file} is no audit or is damaged: {remedy} again") from error
    if passed is not True:
        why = f" ({'; '.join(map(str, reasons))})" if reasons else ""
        raise GateError(f"the privacy audit did not pass{why}: distil again, or read what the audit found")
    found = {path.relative_to(folder).as_posix(): path for path in sorted(folder.glob("data/*")) if path.is_file()}
    if not found:
        raise GateError(f"{folder} holds no data, so no audit is of it: run histodistill select first")
    for name, path in found.items():
        if files.get(name) != hashlib.sha256(path.read_bytes()).hexdigest():
            raise GateError(f"{path} is not the file that was audited: {remedy} again")
