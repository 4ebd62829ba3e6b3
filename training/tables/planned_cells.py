"""Cells of the results table before they are trained: which there are to be, and which of them are kept in files."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from histodistill.training.engine.classifier_config import ClassifierConfig, recorded_recipe
from histodistill.training.evaluation.plans import BEFORE_ROWS, parse_plan, plan_labels
from histodistill.training.models.architectures import is_probe, steps_of
from histodistill.training.models.encoder_names import label_as_file_name, resolved_architecture
from histodistill.training.running.errors import InputError, param
from histodistill.training.running.files import read_kept
from histodistill.training.running.notes import warn
from histodistill.training.running.plan_texts import split_steps
from histodistill.training.running.stages import first_difference
from histodistill.training.tables.rows import (
    HEADLINE_ROWS,
    WHOLE_ROWS,
    Row,
    default_rows,
    default_sizes,
    file_name,
    parse_recipe,
    parse_row,
    usual_seeds,
)


# What may differ between the cells of a line.
_OF_A_CELL = ("seed", "max_train_steps", "validation_steps")
# What every cell in a file has.
_KEYS = {"architecture", "row", "size", "seed", "num_train", "config", "validation", "test"}


class Place(NamedTuple):
    """Where a cell stands in the table; those of a line differ in the last two."""

    architecture: str
    row: str
    size: int | None
    steps: int | None
    seed: int

    @property
    def line(self) -> tuple[str, str, int | None]:
        """What the cells of a line have in common: architecture, row and size."""
        return self[:3]

    @classmethod
    def of(cls, kept: Mapping[str, Any]) -> Place:
        """That of a cell as `train_cell` wrote it."""
        steps = steps_of(kept["architecture"], kept["config"]["max_train_steps"])
        return cls(kept["architecture"], kept["row"], kept["size"], steps, kept["seed"])


@dataclass(frozen=True)
class Cell:
    """One training.

    Attributes:
        config: How to train; its seed is also that of the selection.
        row: What to train on.
        size: Images per class; None for a row of fixed size.
        label: What the table calls the architecture, where that is something else: see `architecture_label`.
    """

    config: ClassifierConfig
    row: Row
    size: int | None
    label: str | None = None

    @property
    def shown(self) -> str:
        """What the table calls the architecture."""
        return self.label or self.config.architecture

    @property
    def steps(self) -> int | None:
        """Its optimizer steps; None for a probe, which knows none."""
        return steps_of(self.config.architecture, self.config.max_train_steps)

    @property
    def place(self) -> Place:
        """Where it stands in the table."""
        return Place(self.shown, self.row.name, self.size, self.steps, self.config.seed)

    def path(self, folder: Path) -> Path:
        """The file in the table's folder that holds its scores."""
        size = "all" if self.size is None else self.size
        steps = "" if self.steps is None else f"-{self.steps}steps"
        name = f"{label_as_file_name(self.shown)}-{file_name(self.row.name)}-{size}{steps}-seed{self.config.seed}.json"
        return folder / "cells" / name


@dataclass(frozen=True)
class Line:
    """A line of the table: a row by a classifier, in one size.

    Attributes:
        first: Its cell of the first seed and the fewest steps.
        rungs: Numbers of optimizer steps, ascending: how many it takes is settled by one seed. (None,) for a probe.
        seeds: Of its trainings.
        is_headline: Whether it comes before others.
    """

    first: Cell
    rungs: tuple[int, ...] | tuple[None]
    seeds: tuple[int, ...]
    is_headline: bool = False

    def place(self, steps: int | None, seed: int) -> Place:
        """Where its training for so many steps from a seed stands in the table."""
        return self.first.place._replace(steps=steps, seed=seed)

    def cell(self, steps: int | None, seed: int) -> Cell:
        """Its training for so many steps from a seed."""
        # The last step counts, so nothing is validated before it.
        budget: dict[str, Any] = {} if steps is None else {"max_train_steps": steps, "validation_steps": steps}
        return replace(self.first, config=replace(self.first.config, seed=seed, **budget))


@dataclass(frozen=True)
class TablePlan:
    """What a table is to have; see the options of `results_table` of the same names.

    Attributes:
        train: Classifiers, as `ARCHITECTURE:STEPS[,STEPS…][@OPTION=VALUE,…]`, or probes, as `probe:ENCODER`.
        rows: Names of the rows; None takes `default_rows` of the architecture.
        sizes: Images per class; None takes `default_sizes` of the architecture.
        seeds: Of each line; None takes as many as `usual_seeds` says.
        recipe: Options of the recipe for all, as `OPTION=VALUE`.
        batch_size, whole_batch_size: Tiles per batch, and the same for rows of fixed size.
    """

    train: Sequence[str]
    rows: Sequence[str] | None = None
    sizes: Sequence[int] | None = None
    seeds: Sequence[int] | None = None
    recipe: Sequence[str] = ()
    batch_size: int = 32
    whole_batch_size: int = 128

    def lines(self, run: Path) -> list[Line]:
        """The lines of the table.

        What a row says of the recipe goes before what a classifier says, and that before what all share. Of three
        rungs and more, rows that are no headlines have all but the last, where the rows are the usual ones.

        Args:
            run: The folder of the run, whose own encoders go by their names.

        Raises:
            InputError: For a text that cannot be read, the folder of a model that is not there, two names of one
                model, or a recipe that is out of range.
        """
        common = parse_recipe(self.recipe, param("recipe"))
        parts = [_split_classifier(text) for text in self.train]
        planned = parse_plan([part.classifier for part in parts], ())
        lines = []
        for part, label, (architecture, steps, _) in zip(parts, plan_labels(planned, run), planned, strict=True):
            recipe = {**common, **parse_recipe(part.changes, f"{param('train')} {part.text}")}
            rungs = (None,) if steps is None else part.rungs or (steps,)
            for row in map(parse_row, self.rows or default_rows(architecture)):
                is_whole, is_headline = row.tiles in WHOLE_ROWS, row.name in HEADLINE_ROWS
                batch_size = self.whole_batch_size if is_whole else self.batch_size
                config = _row_config(row, recipe, resolved_architecture(architecture, run), batch_size)
                fewer = rungs[:-1] if self.rows is None and not is_headline and len(rungs) > 2 else rungs
                seeds = tuple(self.seeds or usual_seeds(architecture, is_headline))
                for size in (None,) if is_whole else self.sizes or default_sizes(architecture):
                    line = Line(Cell(config, row, size, label), fewer, seeds, is_headline)
                    lines.append(replace(line, first=line.cell(fewer[0], seeds[0])))
        return lines


class _Classifier(NamedTuple):
    """One text of `TablePlan.train`, taken apart."""

    text: str
    #: As `parse_plan` takes it, with the first of its rungs.
    classifier: str
    #: All of them where there are several, else none.
    rungs: tuple[int, ...]
    #: What it changes of the recipe.
    changes: list[str]


def _split_classifier(text: str) -> _Classifier:
    """Takes a text apart; a path may hold an @ as well.

    Raises:
        InputError: Where it names rows, or rungs that do not ascend.
    """
    classifier, at, changes = text.rpartition("@")
    if not at or "/" in changes:
        classifier, at, changes = text, "", ""
    before, colon, steps = classifier.rpartition(":")
    rungs: tuple[int, ...] = ()
    if colon and re.fullmatch(r"[0-9]+(,[0-9]+)+", steps) and not is_probe(classifier):
        rungs = tuple(map(int, steps.split(",")))
        if list(rungs) != sorted(set(rungs)):
            raise InputError(
                f"{param('train')}={text}: several numbers of steps must ascend, as in convnet:600,2000,6000"
            )
        classifier = f"{before}:{rungs[0]}"
    # Rows may follow several numbers of steps as well, of which one is enough here.
    found = split_steps(re.sub(r"(,[0-9]+)+", "", classifier))
    if BEFORE_ROWS in classifier if is_probe(classifier) else found and found[2]:
        raise InputError(
            f"{param('train')}={text}: write ARCHITECTURE:STEPS, as in convnet:600; {param('rows')} says what to "
            "train on"
        )
    return _Classifier(text, classifier, rungs, changes.split(",") if at else [])


def _row_config(row: Row, recipe: dict[str, Any], architecture: str, batch_size: int) -> ClassifierConfig:
    try:
        return ClassifierConfig(**{**recipe, **row.recipe}, architecture=architecture, batch_size=batch_size)
    except InputError as error:
        raise InputError(f"{param('rows')} {row.name}: {error}") from error


def all_cells(lines: Iterable[Line]) -> list[Cell]:
    """All cells that the lines may need: those of every rung and seed."""
    return [line.cell(steps, seed) for line in lines for steps in line.rungs for seed in line.seeds]


def _read_cells(folder: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Files of the cells in the table's folder, in order, and what they hold; of damaged ones the user is told."""
    for path in sorted((folder / "cells").glob("*.json")):
        kept = read_kept(path)
        if isinstance(kept, dict) and kept.keys() >= _KEYS:
            yield path, kept
        elif kept is not None:
            warn(f"{path} is damaged (it is no cell of a table): it is made anew")


def check_kept(lines: Sequence[Line], folder: Path) -> dict[Place, float]:
    """Sees that the cells in the table's folder are of one recipe with those that are planned.

    Returns:
        Place of a cell of a planned line that is there, and not damaged, also one of a seed or a number of steps that
        is not planned → its accuracy on the validation tiles.

    Raises:
        InputError: Where one was trained in another way than the planned ones of its row, or of its classifier, but
            for what the row changes, and for numbers of steps.
    """
    planned: dict[tuple[str, str], dict[str, Any]] = {}
    common: dict[tuple[str, bool], dict[str, Any]] = {}
    for line in lines:
        cell = line.first
        planned[cell.shown, cell.row.name] = _recipe(cell)
        if not cell.row.recipe:
            common.setdefault((cell.shown, cell.row.tiles in WHOLE_ROWS), _recipe(cell))
    own, own_lines = {cell.path(folder) for cell in all_cells(lines)}, {line.first.place.line for line in lines}
    found = {}
    # Of several that are of another recipe, one that is planned is named.
    for path, kept in sorted(_read_cells(folder), key=lambda item: (item[0] not in own, item[0])):
        place = Place.of(kept)
        if place.line in own_lines:
            found[place] = kept["validation"]["accuracy"]
        name = kept["row"]
        recipe = {option: value for option, value in kept["config"].items() if option not in _OF_A_CELL}
        plain = common.get((kept["architecture"], name in WHOLE_ROWS)) if "@" not in name else None
        wanted = planned.get((kept["architecture"], name)) or plain or recipe
        if recipe != wanted:
            raise InputError(
                f"{path} was trained with another recipe ({first_difference(recipe, wanted)}): give another "
                f"{param('output')}, or delete it"
            )
    return found


def _recipe(cell: Cell) -> dict[str, Any]:
    recipe = recorded_recipe(cell.config, cell.label)
    return {name: value for name, value in recipe.items() if name not in _OF_A_CELL}


def kept_cells(folder: Path, order: Sequence[str]) -> list[dict[str, Any]]:
    """All cells in the table's folder, as `train_cell` wrote them.

    Args:
        folder: Of the table.
        order: Names of the rows that come first; the others follow by name, and each row's cells by size, steps and
            seed.
    """
    places = {row: place for place, row in enumerate(order)}
    return sorted(
        (cell for _, cell in _read_cells(folder)),
        key=lambda cell: (
            cell["architecture"],
            places.get(cell["row"], len(order)),
            cell["row"],
            cell["size"] or 0,
            cell["config"]["max_train_steps"],
            cell["seed"],
        ),
    )
