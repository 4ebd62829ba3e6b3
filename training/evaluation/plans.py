"""Options of a table whose cells are trainings: which architectures, for how many steps, on which rows."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import ClassVar, NamedTuple

from histodistill.training.models.architectures import ARCHITECTURES
from histodistill.training.running.errors import InputError, param
from histodistill.training.running.launch import NUM_PROCESSES_HELP
from histodistill.training.running.options import StepConfig, config, option
from histodistill.training.running.suggestions import did_you_mean
from histodistill.training.running.training_options import precision_option


@config
class CellsConfig(StepConfig):
    """The options, beside `train`, of a table whose cells are trainings."""

    seeds: tuple[int, ...] = option("one training each", default=(0,), at_least=0)
    batch_size: int = option("tiles per batch", default=128, at_least=1)
    mixed_precision: str = precision_option()
    num_processes: int = option(NUM_PROCESSES_HELP, default=1, at_least=1, setting=False)

    def check(self) -> None:
        """Checks that no seed is named twice."""
        require_once("seeds", self.seeds)


@config
class RowsConfig(CellsConfig):
    """The same of a table whose rows have fixed names; a subclass says in `known_rows` which, and their titles."""

    known_rows: ClassVar[Mapping[str, str]] = {}

    train: tuple[str, ...] = option(
        "what to train for how many steps on which rows, all rows where none is named",
        default=("convnet:1000",),
        metavar="ARCHITECTURE:STEPS[:ROW,ROW…]",
    )

    def check(self) -> None:
        """Checks seeds and plan."""
        super().check()
        _ = self.plan

    @functools.cached_property
    def plan(self) -> list[Planned]:
        """What `train` says."""
        return parse_plan(self.train, list(self.known_rows))

    @classmethod
    def rows_help(cls) -> str:
        """What stands below the options in `--help`."""
        return "rows: " + "; ".join(f"{name}: {title}" for name, title in cls.known_rows.items())


class Planned(NamedTuple):
    """What `ARCHITECTURE:STEPS[:ROW,ROW…]` says."""

    architecture: str
    steps: int
    rows: tuple[str, ...]


def parse_plan(texts: Sequence[str], known_rows: Sequence[str]) -> list[Planned]:
    """Architecture, steps and rows of each `ARCHITECTURE:STEPS[:ROW,ROW…]`; all rows where none is named.

    Raises:
        InputError: For a text that is none, an architecture or a row that is unknown or named twice.
    """
    plan: list[Planned] = []
    for text in texts:
        architecture, _, rest = text.partition(":")
        steps, _, rows = rest.partition(":")
        names = rows.split(",") if rows else list(known_rows)
        where = f"{param('train')}={text}"
        if architecture not in ARCHITECTURES:
            meant = did_you_mean(architecture, ARCHITECTURES)
            raise InputError(f"{where}: the architecture{meant} must be one of {', '.join(ARCHITECTURES)}")
        if not steps.isdecimal() or int(steps) < 1:
            raise InputError(
                f"{where}: after the architecture comes the number of steps, at least 1, as in convnet:1000"
            )
        unknown = [name for name in names if name not in known_rows]
        if unknown:
            meant = did_you_mean(unknown[0], known_rows)
            raise InputError(f"{where}: {unknown[0]!r} is no row{meant}: use {', '.join(known_rows)}")
        if len(set(names)) < len(names):
            raise InputError(f"{where} names a row twice: name each once")
        if architecture in (other.architecture for other in plan):
            raise InputError(
                f"{param('train')} names {architecture} twice: all rows of an architecture are trained for the same "
                "steps"
            )
        plan.append(Planned(architecture, int(steps), tuple(names)))
    return plan


class PlannedCell(NamedTuple):
    """One training of a plan.

    Attributes:
        architecture: One of `ARCHITECTURES`.
        steps: Optimizer steps.
        row: Name of what it is trained on.
        seed: Of the training, and of what is drawn at random to be trained on.
    """

    architecture: str
    steps: int
    row: str
    seed: int

    @property
    def file_name(self) -> str:
        """The file that keeps the cell, within the folder of its table."""
        return f"{self.architecture}-{self.row}-seed{self.seed}.json"


def planned_cells(plan: Sequence[Planned], seeds: Sequence[int]) -> Iterator[PlannedCell]:
    """Every training of a plan: architecture by architecture, row by row, seed by seed."""
    for architecture, steps, rows in plan:
        for row in rows:
            for seed in seeds:
                yield PlannedCell(architecture, steps, row, seed)


def require_once(name: str, values: Sequence[object]) -> None:
    """Raises `InputError` where a value is named twice."""
    if len(set(values)) < len(values):
        shown = " ".join(map(str, values))
        raise InputError(f"{param(name)}={shown} is out of range: each may be named once")
