"""What a command says where it refuses something."""

from __future__ import annotations


def without_notes(text: str) -> str:
    """Standard error without the line that each load of tiles ends with."""
    return "".join(line for line in text.splitlines(keepends=True) if not line.startswith("tiles of "))
