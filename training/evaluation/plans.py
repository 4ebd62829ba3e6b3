"""Options of a table whose cells are trainings: which architectures, for how many steps, on which rows."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import ClassVar, NamedTuple

from histodistill.training.models.architectures import check_architecture, is_probe
from histodistill.training.models.encoder_names import (
    architecture_label,
    label_as_file_name,
    resolved_architecture,
)
from histodistill.training.running.errors import InputError, param
from histodistill.training.running.launch import NUM_PROCESSES_HELP
from histodistill.training.running.options import StepConfig, config, option
from histodistill.training.running.plan_texts import split_steps
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
        "what to train for how many steps on which rows, all rows where none is named; ARCHITECTURE is what "
        "train_classifier takes; a probe knows no steps: probe:ENCODER[::ROW,ROW…]",
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
    """What one text of a plan says: see `parse_plan`.

    Attributes:
        architecture: See `models.architectures`.
        steps: Optimizer steps; None for a probe, which knows none.
        rows: What it is trained on.
    """

    architecture: str
    steps: int | None
    rows: tuple[str, ...]


#: Between a probe, whose name may hold colons as well, and its rows.
BEFORE_ROWS = "::"


def parse_plan(texts: Sequence[str], known_rows: Sequence[str]) -> list[Planned]:
    """Architecture, steps and rows of each `ARCHITECTURE:STEPS[:ROW,ROW…]`, or of a probe `probe:ENCODER[::ROW,ROW…]`.

    All rows where none is named. Names and paths may hold colons and slashes: the steps are the last number that
    stands alone between colons, or at the end; the rows of a probe begin after the last `::`.

    Raises:
        InputError: For a text that is none, an architecture or a row that is unknown or named twice.
    """
    plan: list[Planned] = []
    for text in texts:
        where = f"{param('train')}={text}"
        architecture, steps, rows = _parse_probe(text, known_rows) if is_probe(text) else _parse_steps(text)
        names = rows.split(",") if rows else list(known_rows)
        check_architecture(architecture, where)
        if (steps is not None and steps < 1) or (steps is None and not is_probe(architecture)):
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
        plan.append(Planned(architecture, steps, tuple(names)))
    return plan


def _parse_steps(text: str) -> tuple[str, int | None, str]:
    """Architecture, steps and the text of the rows; of a text without steps the first two words."""
    found = split_steps(text)
    if found is None:
        architecture, _, _ = text.partition(":") if "/" not in text else (text, "", "")
        return architecture, None, ""
    architecture, steps, rows = found
    return architecture, steps, rows.removeprefix(":")


def _parse_probe(text: str, known_rows: Sequence[str]) -> tuple[str, None, str]:
    """Architecture, no steps, and the text of the rows."""
    architecture, between, rows = text.rpartition(BEFORE_ROWS)
    if not between:
        architecture, rows = text, ""
        before, _, last = text.rpartition(":")
        if is_probe(before) and (last.isdecimal() or set(last.split(",")) <= set(known_rows)):
            remedy = before if last.isdecimal() else f"{before}{BEFORE_ROWS}{last}"
            raise InputError(
                f"{param('train')}={text}: a probe is fitted without steps, and its rows stand after two colons: "
                f"write {remedy}, or {text}{BEFORE_ROWS} where the encoder is called so"
            )
    return architecture, None, rows


class PlannedCell(NamedTuple):
    """One training of a plan.

    Attributes:
        architecture: See `models.architectures`.
        steps: Optimizer steps; None for a probe.
        row: Name of what it is trained on.
        seed: Of the training, and of what is drawn at random to be trained on.
        label: What tables call the architecture, where that is something else: see `architecture_label`.
    """

    architecture: str
    steps: int | None
    row: str
    seed: int
    label: str | None = None

    @property
    def shown(self) -> str:
        """What tables call the architecture."""
        return self.label or self.architecture

    @property
    def work(self) -> int:
        """Its share of the work of a table: its steps, or 1."""
        return self.steps or 1

    @property
    def file_name(self) -> str:
        """The file that keeps the cell, within the folder of its table."""
        return f"{label_as_file_name(self.shown)}-{self.row}-seed{self.seed}.json"


def plan_labels(plan: Sequence[Planned], run: Path) -> list[str]:
    """The label of each architecture of a plan: see `architecture_label`.

    Raises:
        InputError: For the folder of a model that is not there, or two names of one model.
    """
    names: dict[str, str] = {}
    for name in (planned.architecture for planned in plan):
        label = architecture_label(name, run)
        if label in names:
            raise InputError(f"{param('train')} names {names[label]} and {name}, which are one model: name it once")
        names[label] = name
    return list(names)


def planned_cells(plan: Sequence[Planned], seeds: Sequence[int], run: Path) -> Iterator[PlannedCell]:
    """Every training of a plan: architecture by architecture, row by row, seed by seed.

    Args:
        plan: The plan.
        seeds: Of each training.
        run: The folder of the run, whose own encoders go by their names.

    Raises:
        InputError: As `plan_labels` does.
    """
    for label, (architecture, steps, rows) in zip(plan_labels(plan, run), plan, strict=True):
        for row in rows:
            for seed in seeds:
                yield PlannedCell(resolved_architecture(architecture, run), steps, row, seed, label)


def recorded_plan(texts: Sequence[str], plan: Sequence[Planned], run: Path) -> tuple[str, ...]:
    """The texts of a plan as a record has them: with the label of an architecture where it is a path.

    Args:
        texts: As `parse_plan` took them.
        plan: As it returned it.
        run: The folder of the run.

    Raises:
        InputError: As `plan_labels` does.
    """
    parts = zip(plan_labels(plan, run), texts, plan, strict=True)
    return tuple(label + text.removeprefix(planned.architecture) for label, text, planned in parts)


def require_once(name: str, values: Sequence[object]) -> None:
    """Raises `InputError` where a value is named twice."""
    if len(set(values)) < len(values):
        shown = " ".join(map(str, values))
        raise InputError(f"{param(name)}={shown} is out of range: each may be named once")
