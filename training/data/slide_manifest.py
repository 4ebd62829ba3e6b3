"""Manifests of places: tables that name a slide, and a square on it or a file of such squares, and a label."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from histodistill.selection.summaries import counted
from histodistill.training.data.grouping import Grouping
from histodistill.training.data.limits import check_picture
from histodistill.training.data.listing import ListedSplit
from histodistill.training.data.manifest import (
    Table,
    check_columns,
    files_of,
    line_of,
    needed_columns,
    read_columns,
)
from histodistill.training.data.names import shown
from histodistill.training.data.opened_source import OpenedSource
from histodistill.training.data.slide_coords import file_of_coords, name_of_slide, read_coords
from histodistill.training.data.slide_pixels import SlidePixels
from histodistill.training.data.slide_places import Places, Scale
from histodistill.training.running.errors import InputError, param
from histodistill.training.running.notes import tell, warn


# Columns that say what a place's pixels are pixels of, and the most that each may be.
_SCALES = {"level": (Scale.LEVEL, 100.0), "mpp": (Scale.MPP, 1000.0)}
# Pixels that a coordinate may be away from a slide's corner.
_FURTHEST = 2.0**40


def open_slide_manifest(table: Table, grouping: Grouping, mpp: float | None = None) -> OpenedSource:
    """Opens a manifest of places on slides.

    It has a column `slide`, the file of a slide, and a column `label`. Where on the slide tiles are, it says in one of
    two ways:

    - A line is one tile: `x` and `y` are its upper left corner in pixels of level 0, and `size` its side in pixels: of
      level 0, of the level in a column `level`, or of pixels that are so many microns wide in a column `mpp`.
    - A line is one slide, and `coords` names the file of coordinates that CLAM or TRIDENT wrote for it, or the folder
      in which this is called after the slide; see `read_coords`. Its label is that of all its tiles.

    Relative paths go from the manifest's folder. The columns `split`, `group` and `site`, and further ones, are as for
    files. Groups are the column that the user names, or a part of the slides' paths, or the column `group` or
    `patient`, or else the slides. Tiles come in the order of the lines, and of the coordinates.

    Args:
        table: The manifest.
        grouping: What was said of the groups.
        mpp: Microns along a pixel to which all tiles are brought, see `Slide.region`.

    Returns:
        The source, named after the file.

    Raises:
        InputError: Naming the line: a slide that is not there, a place that is no number or there twice, a file of
            coordinates that cannot be read, or what `open_manifest` refuses.
    """
    if mpp is not None and not 0 < mpp <= _SCALES["mpp"][1]:
        raise InputError(f"{param('mpp')}={mpp} is out of range: it must be above 0 and at most 1000")
    needed = needed_columns([*table.columns, *table.others])
    scale = _scale_column(table, needed)
    used = (*needed, *([scale] if scale else []))
    check_columns(table, (*used, "patient"))
    slides, of_row = _slides(table)
    classes, splits, rows, grouping = _read_columns(table, of_row, grouping, used)
    listed = _from_coords(table, slides, of_row) if "coords" in used else _from_lines(table, of_row, scale)
    # Of each tile its line, one split after the other.
    order, splits = listed.of_splits(splits, rows)
    if "train" not in splits:
        raise InputError(f"{table.path} has no tile of the split train: the coordinates of its slides are empty")
    places, lines = listed.places.subset(order), listed.rows[order]

    def name(i: int) -> str:
        x, y = places.corners[i].tolist()
        return f"{table.place(lines[i])} ({shown(table.columns['slide'][lines[i]])} at {x}, {y})"

    pixels = SlidePixels(slides, places, name, mpp)
    return OpenedSource(table.path.stem, classes, splits, pixels, pixels.sizes, pixels.stored, grouping)


@dataclass(frozen=True, eq=False)
class _Listed:
    """The tiles of a manifest, in the order of its lines.

    Attributes:
        places: Where they are.
        rows: int64 N, the row of each, ascending.
    """

    places: Places
    rows: np.ndarray

    def of_splits(self, splits: dict[str, ListedSplit], rows: np.ndarray) -> tuple[np.ndarray, dict[str, ListedSplit]]:
        """The tiles of each split, one split after the other: int64 N, and what is known of them.

        Args:
            splits: Split → what is known of its rows.
            rows: The rows of all splits, one split after the other.
        """
        starts = np.searchsorted(self.rows, rows)
        counts = np.searchsorted(self.rows, rows, side="right") - starts
        ends = np.cumsum(counts)
        order = np.arange(len(self.rows)) + np.repeat(starts - (ends - counts), counts)
        found, first = {}, 0
        for split, of_rows in splits.items():
            times = counts[first : first + len(of_rows)]
            first += len(of_rows)
            if times.any():
                found[split] = _repeated(of_rows, times)
        return order, found


def _repeated(listed: ListedSplit, times: np.ndarray) -> ListedSplit:
    """What is known of tiles, of which each row has so many."""
    groups = None if listed.groups is None else np.repeat(listed.groups, times)
    attributes = {name: np.repeat(values, times) for name, values in listed.attributes.items()}
    return replace(listed, labels=np.repeat(listed.labels, times), groups=groups, attributes=attributes)


def _scale_column(table: Table, needed: Sequence[str]) -> str | None:
    """The column that says what a place's pixels are pixels of; None where they are those of level 0."""
    given = [name for name in _SCALES if name in table.columns or name in table.others]
    if "coords" in needed:
        wrong = [*given, *(name for name in ("x", "y", "size") if name in table.columns or name in table.others)]
        if wrong:
            raise InputError(
                f"{table.path} has the columns coords and {wrong[0]}, and files of coordinates say where tiles are: "
                "take one of the two out"
            )
        return None
    if len(given) > 1:
        raise InputError(f"{table.path} has the columns level and mpp, which say the same: take one of the two out")
    return given[0] if given else None


def _slides(table: Table) -> tuple[list[Path], np.ndarray]:
    """The slides, and of each row the number of its slide: int64 N. Several ways to one file are one slide."""
    files, _ = files_of(table, "slide")
    real = {file: os.path.realpath(file) for file in dict.fromkeys(files)}
    number: dict[str, int] = {}
    paths: list[Path] = []
    for file, found in real.items():
        if found not in number:
            number[found] = len(paths)
            paths.append(Path(file))
    return paths, np.array([number[real[file]] for file in files])


def _read_columns(
    table: Table, slides: np.ndarray, grouping: Grouping, used: Sequence[str]
) -> tuple[list[str], dict[str, ListedSplit], np.ndarray, Grouping]:
    """As `read_columns`; the slides are the groups where there are no others."""
    by_slide = grouping.column == "slide"
    asked = replace(grouping, column=None) if by_slide else grouping
    # No column has no name, so that no other takes the place of the one that was asked for.
    group = "" if by_slide else "group" if "group" in table.columns else "patient"
    classes, splits, rows, found = read_columns(table, asked, used, group)
    if all(listed.groups is not None for listed in splits.values()):
        return classes, splits, rows, found
    # A slide is called by its first line, however others spell its path.
    cells = table.columns["slide"]
    first = np.unique(slides, return_index=True)[1]
    paths = [cells[row].strip() for row in first]
    names = [Path(path).name for path in paths]
    groups = np.array(names if len({*names}) == len(names) else paths, dtype=np.str_)[slides]
    given, start = {}, 0
    for split, listed in splits.items():
        given[split] = replace(listed, groups=groups[rows[start : start + len(listed)]])
        start += len(listed)
    return classes, given, rows, found.usual("slide")


def _from_lines(table: Table, slides: np.ndarray, scale: str | None) -> _Listed:
    """The places of a manifest in which each line is a tile."""
    corners = np.stack([_numbers(table, name, -_FURTHEST, _FURTHEST) for name in ("x", "y")], axis=1)
    sizes = _numbers(table, "size", 1, 2.0**31 - 1, is_whole=True).astype(np.int64)
    for size in np.unique(sizes).tolist():
        check_picture(table.place(int(np.argmax(sizes == size))), size, size)
    unit, most = _SCALES[scale] if scale else (Scale.LEVEL, 0.0)
    scales = np.zeros(len(table))
    if scale:
        scales = _numbers(table, scale, 0.0, most, is_whole=unit == Scale.LEVEL)
        if unit == Scale.MPP and not scales.all():
            raise InputError(f"{table.place(int(np.argmin(scales)))} has 0 in column mpp: it must be above 0")
    units = np.full(len(table), unit, np.uint8)
    places = Places(np.rint(corners).astype(np.int64), sizes, scales, units, slides)
    twice = places.repeated()
    if twice:
        raise InputError(
            f"{table.place(twice[1])} names the place of {line_of(table, twice[0])} again: keep one of the two, with "
            "the label that is right"
        )
    return _Listed(places, np.arange(len(table)))


def _numbers(table: Table, name: str, least: float, most: float, is_whole: bool = False) -> np.ndarray:
    """The numbers of a column: float64 N."""
    cells = table.column(name)
    known = {cell: _number(cell) for cell in {*cells}}
    values = np.array([known[cell] for cell in cells])
    wrong = ~((values >= least) & (values <= most))
    if is_whole:
        wrong |= values % 1 != 0
    if wrong.any():
        row = int(np.argmax(wrong))
        kind = "a whole number" if is_whole else "a number"
        between = (
            f"from {least:g} to {most:g}" if most < 2**20 else f"of at least {least:g}" if is_whole else "of pixels"
        )
        raise InputError(f"{table.place(row)} has {shown(cells[row])} in column {name}: it must be {kind} {between}")
    return values


def _number(cell: str) -> float:
    """A number as programs write it; what is none is NaN."""
    try:
        return float(cell) if cell.isascii() and "_" not in cell else np.nan
    except ValueError:
        return np.nan


def _from_coords(table: Table, slides: Sequence[Path], of_row: np.ndarray) -> _Listed:
    """The places of a manifest in which each line is a slide with a file of coordinates."""
    seen: dict[int, int] = {}
    for row, slide in enumerate(of_row.tolist()):
        if slide in seen:
            raise InputError(
                f"{table.place(row)} names the slide of {line_of(table, seen[slide])} again: keep one line of each"
            )
        seen[slide] = row
    parts, repeated, others, empty = [], 0, [], 0
    for row, cell in enumerate(table.column("coords")):
        slide = slides[of_row[row]]
        file = file_of_coords(table.path.parent / cell, slide)
        if not file.is_file():
            raise InputError(
                f"{table.place(row)} names coordinates that are not there ({shown(str(file))}): correct the path, "
                "which goes from the folder of the manifest where it is relative, or take the line out"
            )
        found = read_coords(file)
        parts.append((int(of_row[row]), found.places))
        repeated += found.repeated
        empty += not len(found.places)
        if found.slide is not None and found.slide not in (name_of_slide(slide), slide.stem, slide.name):
            others.append((row, found.slide))
    if repeated:
        tell(f"{table.path}: {counted(repeated, 'place')} that a file of coordinates holds twice left out")
    if empty:
        tell(f"{table.path}: {counted(empty, 'slide has', 'slides have')} no tile")
    if others:
        row, name = others[0]
        warn(
            f"{table.place(row)} has the coordinates of a slide called {shown(name)}, "
            f"{counted(len(others), 'line')} of {len(table):,} such: if they are of another slide, correct the path"
        )
    places = Places.joined(parts)
    return _Listed(places, np.repeat(np.arange(len(parts)), [len(part) for _, part in parts]))
