"""Rows of the table of InfoDist's protocol, the options that go with it, and figures of others to put beside it."""

from __future__ import annotations

import csv
import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from histodistill.training.running.errors import InputError, param, reason_of
from histodistill.training.running.suggestions import did_you_mean


if TYPE_CHECKING:
    from histodistill.training.tables.results_table import ResultsTableConfig

#: Protocols of `histodistill benchmark`: our own, and this one.
PROTOCOLS = ("v2", "infodist")
#: What classifiers are trained on, in the order of the table.
INFODIST_TILES = {
    "real_random": "random real training tiles",
    "random": "random images of the pool, which is what the code's command for 256 px chooses",
    "infomap_published": "the pool by Infomap as the published code does it",
    "infomap_meant": "the pool by Infomap as the paper means it",
    "pool_all": "the whole pool",
    "real_all": "all real training tiles",
}
#: Those that do not depend on the number of images per class.
WHOLE_TILES = ("pool_all", "real_all")
#: What a row may have after its @: loss and number of softmaxes, see `infodist_recipe.recipe_loss`.
INFODIST_RECIPES: dict[str, tuple[str, int]] = {
    "": ("ce", 1),
    "softmaxes=3": ("ce", 3),
    "loss=joint": ("joint", 1),
    "loss=joint,softmaxes=3": ("joint", 3),
}
#: The rows of the whole table; all real tiles and the whole pool take longest, and are there once.
INFODIST_ROWS = (
    *(f"{tiles}@{recipe}".rstrip("@") for recipe in list(INFODIST_RECIPES)[:3] for tiles in list(INFODIST_TILES)[:4]),
    *WHOLE_TILES,
)
#: Images per class, and seeds, of the published code. Figures of others are of as many images.
PUBLISHED_SIZE, PUBLISHED_SEEDS = 100, range(5)
#: Scores of the table: what files call them, and what texts do.
SCORES = {"accuracy": "ACC", "auc": "AUC", "f1": "macro F1"}
# What stands in the first line of a file of figures.
_COLUMNS = ["row", "metric", "value"]
# Characters of a figure, such as "0.812 ± 0.004".
_LONGEST_VALUE = 40
# Options of the usual table that this protocol says itself, and those of this one alone.
_FIXED = ("train", "quick", "recipe", "also", "batch_size", "whole_batch_size", "jobs")
_OWN = ("epochs", "published")


@dataclass(frozen=True)
class InfoDistRow:
    """A row of the table.

    Attributes:
        name: `TILES[@RECIPE]`, as the user wrote it.
        tiles: One of `INFODIST_TILES`.
        loss, softmaxes: See `INFODIST_RECIPES`.
    """

    name: str
    tiles: str
    loss: str
    softmaxes: int

    @property
    def title(self) -> str:
        """What it is, in words."""
        recipe = self.name.partition("@")[2]
        return INFODIST_TILES[self.tiles] + (f", `{recipe}`" if recipe else "")


def parse_infodist_row(name: str, where: str | None = None) -> InfoDistRow:
    """Reads a row, such as `real_all` or `infomap_meant@softmaxes=3`.

    Args:
        name: The row.
        where: What the sentence of an error begins with; by default the option.

    Raises:
        InputError: For one that there is not.
    """
    tiles, at, recipe = name.partition("@")
    where = where or f"{param('rows')} {name}"
    if tiles not in INFODIST_TILES:
        known, meant = ", ".join(INFODIST_TILES), did_you_mean(tiles, INFODIST_TILES)
        raise InputError(f"{where}: {param('protocol')}=infodist has no row {tiles}{meant}: give one of {known}")
    if recipe not in INFODIST_RECIPES or (at and not recipe):
        known = ", ".join(recipe for recipe in INFODIST_RECIPES if recipe)
        raise InputError(f"{where}: after the @ of {param('protocol')}=infodist comes one of {known}")
    return InfoDistRow(name, tiles, *INFODIST_RECIPES[recipe])


def check_protocol(config: ResultsTableConfig) -> None:
    """Sees that the options are those of the protocol.

    Raises:
        InputError: For an option that the other protocol has, or a row that there is not.
    """
    is_infodist = config.protocol == "infodist"
    for field in dataclasses.fields(config):
        if field.name in (_FIXED if is_infodist else _OWN) and getattr(config, field.name) != field.default:
            why = "has no meaning with" if is_infodist else "is an option of"
            more = ", whose recipe is fixed: leave it out" if is_infodist else " alone: give that, or leave it out"
            raise InputError(f"{param(field.name)} {why} {param('protocol')}=infodist{more}")
    if is_infodist:
        for name in config.rows or ():
            parse_infodist_row(name)


def read_published(path: Path) -> dict[str, dict[str, str]]:
    """Figures of others, from a CSV file with the columns row, metric and value.

    Args:
        path: The file. Rows are those of the table, metrics those of `SCORES` by either name; values are text.

    Returns:
        Row → metric, as files call it → value.

    Raises:
        InputError: For a file that cannot be read, or says something else.
    """
    try:
        with open(path, encoding="utf-8", newline="") as file:
            lines = list(csv.reader(file))
    except (OSError, ValueError, csv.Error) as error:
        raise InputError(
            f"{param('published')}={path} cannot be read ({getattr(error, 'strerror', None) or reason_of(error)}): "
            f"give a CSV file with the columns {', '.join(_COLUMNS)}"
        ) from error
    if not lines or [column.strip() for column in lines[0]] != _COLUMNS:
        raise InputError(f"{param('published')}={path} must begin with the line {','.join(_COLUMNS)}: write it so")
    names = {name.lower(): metric for metric, title in SCORES.items() for name in (metric, title)}
    found: dict[str, dict[str, str]] = {}
    for number, line in enumerate(lines[1:], 2):
        row, metric, value = (cell.strip() for cell in line) if len(line) == len(_COLUMNS) else ("", "", "")
        is_text = value.isprintable() and "|" not in value and 0 < len(value) <= _LONGEST_VALUE
        if not is_text or metric.lower() not in names:
            raise InputError(
                f"{param('published')}={path}, line {number}: there must be a row, one of {', '.join(SCORES)}, and a "
                f"value of up to {_LONGEST_VALUE} characters, such as real_all,accuracy,0.5: write it so"
            )
        parse_infodist_row(row, f"{param('published')}={path}, line {number}")
        found.setdefault(row, {})[names[metric.lower()]] = value
    return found


def published_text(figures: Mapping[str, str]) -> str:
    """Figures of a row as the table shows them; nothing where there are none."""
    return ", ".join(f"{SCORES[metric]} {figures[metric]}" for metric in SCORES if metric in figures)
