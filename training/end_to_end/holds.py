"""Tells which runs were made with the tiles of a patient, or of whatever else their groups are.

    histodistill holds P-0042 runs/*

One line for each run: whether it was made with tiles of this group, and how many in which split. A run knows its
groups by salted hashes in RUN/groups.json, which `histodistill distill` writes where tiles have groups. A name must be
given as the tiles have it, also in capital and small letters. A run without a record of groups cannot tell: it was
made of single tiles, or by an earlier version, or step by step.

The exit code is 0 where a run holds the group, 1 where none does, and 2 for errors.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from histodistill.training.running.errors import InputError, param
from histodistill.training.running.options import StepConfig, StepParser, config, option, run_script
from histodistill.training.running.program import ANSWER_IS_NO


@config
class HoldsConfig(StepConfig):
    """Options of `holds`."""

    group: str = option("name of the group, such as a patient's, as the tiles have it", positional=True)
    runs: tuple[Path, ...] = option("folders that histodistill distill left", positional=True, metavar="RUN")

    def check(self) -> None:
        """Refuses an empty name, which no tile can have."""
        if not self.group.strip():
            raise InputError(f"{param('group')} is empty: give the name of a group")


@dataclass(frozen=True)
class Held:
    """What a run tells of a group.

    Attributes:
        run: Its folder.
        has_groups: Whether it has a record of groups.
        kind: What a group is there.
        tiles: Split → tiles of the group; empty where it has none that the run knows of.
    """

    run: Path
    has_groups: bool
    kind: str
    tiles: Mapping[str, int]

    def line(self) -> str:
        """The same for the terminal."""
        if not self.has_groups:
            return f"{self.run}: has no record of groups"
        if not self.tiles:
            return f"{self.run}: not known to hold it"
        told = ", ".join(f"{split.replace('_', ' ')} {count:,}" for split, count in self.tiles.items())
        return f"{self.run}: made with tiles of this {self.kind} ({told})"


def make_parser() -> StepParser[HoldsConfig]:
    """The parser of the command line."""
    return StepParser(HoldsConfig, prog="histodistill holds", description=__doc__)


def run(config: HoldsConfig) -> list[Held]:
    """Looks at each run and prints a line for it.

    Returns:
        What each tells, in their order.

    Raises:
        InputError: For a folder that is no run, or a record that cannot be read.
    """
    found = [_look(folder, config.group) for folder in config.runs]
    for held in found:
        print(held.line())
    return found


def exit_code(found: list[Held]) -> int:
    """0 where a run holds the group, else 1."""
    return 0 if any(held.tiles for held in found) else ANSWER_IS_NO


def _look(folder: Path, group: str) -> Held:
    from histodistill.training.data.group_record import GROUP_RECORD, read_group_record
    from histodistill.training.running.stages import is_run

    if not is_run(folder) and not (folder / GROUP_RECORD).is_file():
        raise InputError(f"{folder} is no run: give the folder that histodistill distill left")
    record = read_group_record(folder)
    if record is None:
        return Held(folder, False, "group", {})
    return Held(folder, True, record.kind, record.tiles_of(group) or {})


if __name__ == "__main__":
    run_script(make_parser, run, exit_code=exit_code)
