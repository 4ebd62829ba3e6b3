"""Format numbers of the JSON files that a run leaves, so that a file of a later histodistill isn't misread.

The number is a file's first key, `format`. It grows when a reader of the old layout would misunderstand the new one,
and not when a key is added. `audit.json` has its own number in `hub_cards.audit_record`, which refuses every other.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from histodistill.training.running.errors import InputError


#: Layout of `run.json`, which `distill` writes: the tiles, the preset and all settings of a run.
RUN_FORMAT = 1
#: Layout of `results.json`, which `compare` writes: the scores of classifiers on real test tiles.
RESULTS_FORMAT = 1
# Files that were written before they had a number are of the first layout.
_FORMAT_WITHOUT_NUMBER = 1


def check_format(value: Any, path: str | Path, known: int) -> None:
    """Sees that what a JSON file holds can be understood.

    Args:
        value: What the file holds.
        path: The file, for the message.
        known: The newest format that this version knows; it knows all before it, too.

    Raises:
        InputError: If it is no JSON object, or its format is a later one or no format at all.
    """
    if not isinstance(value, dict):
        raise InputError(f"{path} holds no record of a run: delete it and run the command that made it")
    found = value.get("format", _FORMAT_WITHOUT_NUMBER)
    if type(found) is not int or found < 1:
        raise InputError(
            f"{path} has the format {found!r:.80}, which is none: delete it and run the command that made it"
        )
    if found > known:
        raise InputError(
            f"{path} has the format {found}, and this version of histodistill knows those up to {known}: install the "
            "version that made it, or a later one"
        )
