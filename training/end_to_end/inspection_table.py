"""The table of what a source holds: classes by splits, with the number of groups beside that of tiles."""

from __future__ import annotations

from histodistill.selection.summaries import counted
from histodistill.training.data.inspection import Inspection, SplitCounts
from histodistill.training.data.names import shown
from histodistill.training.data.tiles import HELD_OUT


# The columns, in order, and how their heads call them.
_COLUMNS = {"train": "train", HELD_OUT: "held out", "validation": "validation", "test": "test"}
# Classes with a row of their own.
_MOST_ROWS = 40


def table_lines(found: Inspection) -> list[str]:
    """The table as lines for the terminal, below one that says what its numbers are.

    It has the splits with which models are trained, where there can be such, and otherwise those that are there.
    """
    splits = found.planned or found.splits
    columns = [split for split in _COLUMNS if split in splits]
    made = [split for split in columns if split not in found.splits and split != HELD_OUT]
    head = ["", *(_COLUMNS[split] + ("*" if split in made else "") for split in columns)]
    names = found.class_names[:_MOST_ROWS]
    rows = [[shown(name), *(_cell(splits[split], name) for split in columns)] for name in names]
    rows.append(["all", *(_cell(splits[split], None) for split in columns)])
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    lines = [_line(row, widths) for row in [head, *rows]]
    if rest := len(found.class_names) - len(names):
        lines.insert(-1, f"and {counted(rest, 'more class', 'more classes')}")
    if made:
        lines.append("* made of train, since there is no such split")
    number = sum(counts.tiles for counts in found.splits.values())
    beside = "" if found.group_kind is None else f", and in brackets {found.group_kind}s"
    return [f"{found.name}: {counted(number, 'tile')} by class and split{beside}", *lines]


def _line(row: list[str], widths: list[int]) -> str:
    cells = [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
    return "  ".join(cells).rstrip()


def _cell(counts: SplitCounts, name: str | None) -> str:
    """Tiles of a class, or of all, with groups in brackets where these are known."""
    tiles, groups = counts.tiles, counts.groups
    if name is not None:
        tiles = counts.per_class[name]
        groups = None if counts.groups_per_class is None else counts.groups_per_class[name]
    return f"{tiles:,}" if groups is None else f"{tiles:,} ({groups:,})"
