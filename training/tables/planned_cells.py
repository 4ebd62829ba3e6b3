"""Cells of the results table before they are trained: which there are to be, and which of them are kept in files."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from histodistill.training.engine.classifier_config import ClassifierConfig, recorded_recipe
from histodistill.training.evaluation.plans import BEFORE_ROWS, parse_plan
from histodistill.training.models.architectures import ARCHITECTURES, is_probe
from histodistill.training.models.encoder_names import (
    architecture_label,
    label_as_file_name,
    resolved_architecture,
)
from histodistill.training.running.errors import InputError, param
from histodistill.training.running.files import read_kept
from histodistill.training.running.stages import first_difference
from histodistill.training.tables.rows import (
    WHOLE_ROWS,
    Row,
    default_rows,
    default_sizes,
    file_name,
    parse_recipe,
    parse_row,
)


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

    def path(self, folder: Path) -> Path:
        """The file in the table's folder that holds its scores."""
        size = "all" if self.size is None else self.size
        name = f"{label_as_file_name(self.shown)}-{file_name(self.row.name)}-{size}-seed{self.config.seed}.json"
        return folder / "cells" / name


def plan_lines(
    train: Sequence[str],
    common_recipe: Sequence[str],
    rows: Sequence[str] | None,
    sizes: Sequence[int] | None,
    batch_size: int,
    run: Path,
) -> list[Cell]:
    """The lines of the table, each as its cell of seed 0.

    What a row says of the recipe goes before what a classifier says, and that before what all share.

    Args:
        train: Classifiers, as `ARCHITECTURE:STEPS[@OPTION=VALUE,…]`, or probes, as `probe:ENCODER`.
        common_recipe: Options of the recipe for all, as `OPTION=VALUE`.
        rows: Names of the rows; None takes `default_rows` of the architecture.
        sizes: Images per class; None takes `default_sizes` of the architecture.
        batch_size: Tiles per batch.
        run: The folder of the run, whose own encoders go by their names.

    Raises:
        InputError: For a text that cannot be read, the folder of a model that is not there, or a recipe that is out of
            range.
    """
    common = parse_recipe(common_recipe, param("recipe"))
    classifiers, recipes = [], []
    for text in train:
        classifier, at, changes = _split_recipe(text)
        has_rows = classifier.partition(":")[0] in ARCHITECTURES and classifier.count(":") > 1
        if has_rows or (is_probe(classifier) and BEFORE_ROWS in classifier):
            raise InputError(
                f"{param('train')}={text}: write ARCHITECTURE:STEPS, as in convnet:600; {param('rows')} says what to "
                "train on"
            )
        classifiers.append(classifier)
        recipes.append({**common, **parse_recipe(changes.split(",") if at else [], f"{param('train')} {text}")})
    lines = []
    for (architecture, steps, _), recipe in zip(parse_plan(classifiers, ()), recipes, strict=True):
        label = architecture_label(architecture, run)
        for row in map(parse_row, rows or default_rows(architecture)):
            config = _row_config(row, recipe, resolved_architecture(architecture, run), steps, batch_size)
            line_sizes = (None,) if row.tiles in WHOLE_ROWS else sizes or default_sizes(architecture)
            lines += [Cell(config, row, size, label) for size in line_sizes]
    return lines


def _split_recipe(text: str) -> tuple[str, str, str]:
    """A classifier, an @ where there is one, and what it changes of the recipe; a path may hold an @ as well."""
    classifier, at, changes = text.rpartition("@")
    return (classifier, at, changes) if at and "/" not in changes else (text, "", "")


def _row_config(
    row: Row, recipe: dict[str, Any], architecture: str, steps: int | None, batch_size: int
) -> ClassifierConfig:
    # The last step counts, so nothing is validated before it.
    budget: dict[str, Any] = {} if steps is None else {"max_train_steps": steps, "validation_steps": steps}
    try:
        return ClassifierConfig(**{**recipe, **row.recipe}, architecture=architecture, batch_size=batch_size, **budget)
    except InputError as error:
        raise InputError(f"{param('rows')} {row.name}: {error}") from error


def plan_cells(lines: Iterable[Cell], seeds: Iterable[int]) -> list[Cell]:
    """All cells of the lines: seed by seed, so that a table is whole after the first."""
    lines = list(lines)
    return [replace(line, config=replace(line.config, seed=seed)) for seed in seeds for line in lines]


def missing_cells(cells: Sequence[Cell], folder: Path) -> list[Cell]:
    """Those that are not in the table's folder, or are damaged there.

    Raises:
        InputError: Where a cell that is there was trained in another way than the planned ones of its row, or of its
            classifier, but for what the row changes: one table has one recipe.
    """
    planned = {(cell.shown, cell.row.name): _recipe(cell) for cell in cells}
    common: dict[str, dict[str, Any]] = {}
    for cell in cells:
        if not cell.row.recipe:
            common.setdefault(cell.shown, _recipe(cell))
    own, found = {cell.path(folder) for cell in cells}, set()
    for path in sorted((folder / "cells").glob("*.json"), key=lambda path: (path not in own, path)):
        kept = read_kept(path)
        if kept is None:
            continue
        found.add(path)
        recipe = {name: value for name, value in kept["config"].items() if name != "seed"}
        place = kept["architecture"], kept["row"]
        wanted = planned.get(place) or ("@" not in kept["row"] and common.get(kept["architecture"])) or recipe
        if recipe != wanted:
            raise InputError(
                f"{path} was trained with another recipe ({first_difference(recipe, wanted)}): give another "
                f"{param('output')}, or delete it"
            )
    return [cell for cell in cells if cell.path(folder) not in found]


def _recipe(cell: Cell) -> dict[str, Any]:
    recipe = recorded_recipe(cell.config, cell.label)
    return {name: value for name, value in recipe.items() if name != "seed"}


def kept_cells(folder: Path, order: Sequence[str]) -> list[dict[str, Any]]:
    """All cells in the table's folder, as `train_cell` wrote them.

    Args:
        folder: Of the table.
        order: Names of the rows that come first; the others follow by name, and each row's cells by size and seed.
    """
    found = [read_kept(path) for path in sorted((folder / "cells").glob("*.json"))]
    cells = [cell for cell in found if cell is not None]
    places = {row: place for place, row in enumerate(order)}
    return sorted(
        cells,
        key=lambda cell: (
            cell["architecture"],
            places.get(cell["row"], len(order)),
            cell["row"],
            cell["size"] or 0,
            cell["seed"],
        ),
    )
