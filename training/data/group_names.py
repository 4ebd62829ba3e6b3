"""Names of groups and of other attributes: from columns, arrays and paths to one text for each tile."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

import numpy as np

from histodistill.selection.names import GROUP_KINDS
from histodistill.training.data.grouping import Grouping
from histodistill.training.data.names import class_name, shown
from histodistill.training.data.source_checks import GROUPS
from histodistill.training.running.errors import InputError, param
from histodistill.training.running.findings import WARN, Finding


#: Characters that the name of a group may have: all names of a source have the room of the longest.
LONGEST = 200
# What may follow the kind in the name of a column of groups, as in patient_id.
_ENDING = re.compile(r"[\s_.-]*(ids?|no|nr|num|number|name|code)?$", re.IGNORECASE)


def spelled(values: Iterable[str], place: Callable[[int], str], what: str = "group") -> np.ndarray:
    """Names in their one spelling, so that no two spellings of one patient are two: see `class_name`.

    Args:
        values: The name of each tile's group, or of another attribute.
        place: Where the value with this index is from, for messages.
        what: What a value is called.

    Returns:
        Text N.

    Raises:
        InputError: If a name is empty or has more than 200 characters.
    """
    known: dict[str, str] = {}
    names = [known[value] if value in known else known.setdefault(value, class_name(value)) for value in values]
    for name in set(known.values()):
        if not 0 < len(name) <= LONGEST:
            fault = f"a {what} of more than {LONGEST} characters" if name else f"no {what}"
            raise InputError(f"{place(names.index(name))} has {fault}: give each tile one, with a short name")
    return np.array(names, dtype=np.str_)


def parts_of_paths(paths: Sequence[str], pattern: str, where: str) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """The groups and attributes that the paths of tiles tell.

    Args:
        paths: The path of each tile, with `/` between its parts.
        pattern: A regular expression that is searched for in each, see `Grouping`. Its part `group` is the group, and
            each other part with a name is an attribute.
        where: What messages call the source.

    Returns:
        The groups, text N, and name → text N of each attribute.

    Raises:
        InputError: If there are paths in which it, or one of its named parts, is not found.
    """
    expression = re.compile(pattern)
    found = [expression.search(path) for path in paths]
    wrong = [
        path for path, match in zip(paths, found, strict=True) if not match or not all(match.groupdict().values())
    ]
    if wrong:
        raise InputError(
            f"{param('group_pattern')}={pattern} does not find all its named parts in the paths of {len(wrong):,} of "
            f"{len(paths):,} tiles of {where} (such as {shown(wrong[0])}): write it so that it fits every path, or "
            "move these tiles away"
        )
    parts = {
        name: spelled([match[name] for match in found if match], lambda i: f"{where}: {shown(paths[i])}", name)
        for name in expression.groupindex
    }
    return parts.pop("group"), parts


def kind_called(column: str) -> str | None:
    """The kind of group that a column is called after: "patient" for `Patient_ID`; None for another column."""
    return next((kind for kind in GROUP_KINDS if _ENDING.sub("", column.strip().casefold()) == kind), None)


def with_kind_of(grouping: Grouping, column: str) -> Grouping:
    """What was said of the groups, with what their column is called after as their kind where none was said."""
    kind = kind_called(column)
    return grouping if kind is None else grouping.usual(kind)


def with_hint(grouping: Grouping, where: str, columns: Iterable[str]) -> Grouping:
    """What was said of the groups, with a hint at a column that is called as groups are; of several, the first.

    Args:
        grouping: What was said, which names no column.
        where: What messages call the source.
        columns: Names of its columns that hold no images, labels or groups.
    """
    named = next((column for column in columns if kind_called(column) not in (None, "site")), None)
    if named is None:
        return grouping
    name = shown(named)
    found = f"{where} has a column {name} that looks like groups and is not used"
    mend = f"if tiles of one {name} belong together, give {param('group_column')} {name}"
    return replace(grouping, hint=Finding(GROUPS, WARN, found, mend, private=f"{where}: {mend}"))
