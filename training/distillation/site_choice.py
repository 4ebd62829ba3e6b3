"""Which images of each site go into a merged set, and under which classes: shares, names of classes, and their order.

Tables of sites are told by the names of the sites, in whose order they stay.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from histodistill.hub_cards.errors import ContentError
from histodistill.hub_cards.tables import COLUMNS, ImageTable, check_names
from histodistill.training.running.errors import InputError, param


# Larger shares are no proportion that anybody means.
_LARGEST_SHARE = 1000


def parse_shares(texts: Sequence[str], names: Sequence[str]) -> dict[str, int]:
    """The share of each site.

    Args:
        texts: `NAME=NUMBER`, one for each site.
        names: Of the sites.

    Raises:
        InputError: For a site that is not there, is named twice or not at all, and for a number that is none.
    """
    shares: dict[str, int] = {}
    for text in texts:
        name, _, number = text.rpartition("=")
        is_number = number.isascii() and number.isdecimal() and len(number) <= len(str(_LARGEST_SHARE))
        if name not in names or name in shares or not is_number or not 1 <= int(number) <= _LARGEST_SHARE:
            raise InputError(
                f"{param('shares')}={text} is no share: write NAME=NUMBER once for each of {', '.join(names)}, with a "
                f"whole number from 1 to {_LARGEST_SHARE}"
            )
        shares[name] = int(number)
    if missing := [name for name in names if name not in shares]:
        raise InputError(
            f"{param('shares')}={' '.join(texts)} does not name {', '.join(missing)}: give each site a share"
        )
    return shares


def take_shares(tables: Mapping[str, ImageTable], shares: Mapping[str, int]) -> dict[str, ImageTable]:
    """So many images of each class of each site as go by the shares: as many as the site with the fewest has.

    Args:
        tables: Site → its images, all of the same classes.
        shares: Site → a whole number from 1 on.

    Returns:
        Site → of each class those with the lowest `rank`, or the first ones where there are no ranks.

    Raises:
        InputError: For a class of which a site has fewer images than its share.
    """
    divisor = math.gcd(*shares.values())
    parts = {name: shares[name] // divisor for name in tables}
    kept: dict[str, list[np.ndarray]] = {name: [] for name in tables}
    for label, class_name in enumerate(next(iter(tables.values())).class_names):
        rows = {name: np.flatnonzero(table.columns["label"] == label) for name, table in tables.items()}
        # Sites without the class stand back.
        units = {name: len(mine) // parts[name] for name, mine in rows.items() if len(mine)}
        fewest = min(units, key=lambda name: units[name])
        if units[fewest] == 0:
            raise InputError(
                f"{param('shares')} asks for {parts[fewest]} images of {class_name} of {fewest} at least, which has "
                f"{len(rows[fewest])}: give it a smaller share"
            )
        for name, mine in rows.items():
            columns = tables[name].columns
            order = np.argsort(columns["rank"][mine], kind="stable") if "rank" in columns else np.arange(len(mine))
            kept[name].append(mine[order[: parts[name] * units[fewest]]])
    return {name: _rows(table, np.sort(np.concatenate(kept[name]))) for name, table in tables.items()}


def rename_classes(tables: Mapping[str, ImageTable], texts: Sequence[str]) -> dict[str, ImageTable]:
    """Calls classes of sites what they are called elsewhere.

    Args:
        tables: Site → its images.
        texts: `NAME:OLD=NEW` for each such class; names may have a colon or an equals sign themselves.

    Raises:
        InputError: For a class that is not there or is named twice, and for a new name that is not plain or that the
            site has already.
    """
    names = {site: dict(zip(table.class_names, table.class_names, strict=True)) for site, table in tables.items()}
    for text in texts:
        found = [
            (site, old) for site in tables for old in names[site] if text.startswith(f"{site}:{old}=")
        ]  # fmt: skip
        if len(found) != 1:
            known = "; ".join(f"{site}: {', '.join(classes)}" for site, classes in names.items())
            raise InputError(f"{param('rename')}={text} names no class of a site: write NAME:OLD=NEW, of {known}")
        site, old = found[0]
        if names[site][old] != old:
            raise InputError(f"{param('rename')}={text} gives a class another name once more: name each once")
        names[site][old] = text.removeprefix(f"{site}:{old}=")
    for site, classes in names.items():
        try:
            check_names(list(classes.values()), "class")
        except ContentError as error:
            raise InputError(f"{param('rename')}={' '.join(texts)} cannot be done at {site}: {error}") from error
    return {site: replace(table, class_names=list(names[site].values())) for site, table in tables.items()}


def match_classes(tables: Mapping[str, ImageTable], keep_all: bool) -> dict[str, ImageTable]:
    """Gives all sites the same classes, by their names: in the order of the first site, and then of the others.

    Args:
        tables: Site → its images.
        keep_all: Whether there may be classes that only some sites have. In soft labels of the others these are 0.

    Raises:
        InputError: For a class that a site does not have, unless all are kept.
    """
    names = list(dict.fromkeys(name for table in tables.values() for name in table.class_names))
    for site, table in tables.items():
        missing = [name for name in names if name not in table.class_names]
        if missing and not keep_all:
            raise InputError(
                f"{site} has no class {', '.join(missing)}, but {', '.join(table.class_names)}: give classes that are "
                f"the same one name by {param('rename')}, or keep those that only some sites have by "
                f"{param('keep_all_classes')}"
            )
    return {site: _with_classes(table, names) for site, table in tables.items()}


def _with_classes(table: ImageTable, names: list[str]) -> ImageTable:
    """The same images with these classes, which hold those of the table."""
    places = np.array([names.index(name) for name in table.class_names])
    columns = dict(table.columns)
    columns["label"] = places[columns["label"]]
    for name, values in table.columns.items():
        if COLUMNS[name].per_class:
            columns[name] = np.zeros((len(table), len(names)), values.dtype)
            columns[name][:, places] = values
    return replace(table, columns=columns, class_names=names)


def _rows(table: ImageTable, rows: np.ndarray) -> ImageTable:
    """Some rows of a table."""
    columns = {name: values[rows] for name, values in table.columns.items()}
    return replace(table, images=table.images[rows], columns=columns)
