"""The table of InfoDist's protocol: its selection, as published and as meant, trained on and scored by its recipe.

What `histodistill benchmark --protocol infodist` runs; see docs/results.md for what differs from the published code.
"""

from __future__ import annotations

import dataclasses
import functools
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from accelerate import Accelerator

from histodistill.hub_cards.rendering import format_score
from histodistill.selection import RandomSelector
from histodistill.selection.infodist_selection import InfoDistChoice, choose_as_meant, choose_as_published
from histodistill.training.data.image_dataset import open_image_table
from histodistill.training.data.kept_arrays import read_kept_arrays
from histodistill.training.data.scratch_images import decode_once
from histodistill.training.data.sources import load_tiles
from histodistill.training.data.tiles import Tiles, TileSource, sample_per_class
from histodistill.training.engine.accelerator import make_accelerator
from histodistill.training.engine.infodist_recipe import (
    PUBLISHED_EPOCHS,
    InfoDistRecipe,
    batch_size_of,
    predict_scores,
    steps_of_epoch,
    train_by_recipe,
)
from histodistill.training.engine.scoring import auc_note, score_probabilities
from histodistill.training.evaluation.cells import check_same_kind, spread
from histodistill.training.models.embedders import embedder_fingerprint
from histodistill.training.running.errors import InputError, param
from histodistill.training.running.files import read_kept, write_json, write_text
from histodistill.training.running.notes import tell
from histodistill.training.running.progress import Progress
from histodistill.training.running.stages import Stage, require_parts
from histodistill.training.tables.infodist_rows import (
    INFODIST_ROWS,
    INFODIST_TILES,
    PUBLISHED_SEEDS,
    PUBLISHED_SIZE,
    SCORES,
    WHOLE_TILES,
    InfoDistRow,
    parse_infodist_row,
    published_text,
    read_published,
)
from histodistill.training.tables.results_summary import SPLITS
from histodistill.training.tables.rows import file_name
from histodistill.training.tables.table_inputs import inputs_file, write_inputs


if TYPE_CHECKING:
    from histodistill.training.tables.results_table import ResultsTableConfig

# What every cell in a file has.
_KEYS = {"row", "size", "seed", "num_train", "selection", *SPLITS}
# How a row chooses among the images of a class of the pool.
_CHOICES = {"infomap_published": choose_as_published, "infomap_meant": choose_as_meant}
# What is kept of that for each class.
_FOUND = ("num_links", "num_communities")


@dataclass(frozen=True)
class InfoDistCell:
    """One training: what on, how many images per class (None for a row of fixed size), and its seed."""

    row: InfoDistRow
    size: int | None
    seed: int

    def path(self, folder: Path) -> Path:
        """The file in the table's folder that holds its scores."""
        size = "all" if self.size is None else self.size
        return folder / "cells" / f"{file_name(self.row.name)}-{size}-seed{self.seed}.json"

    @property
    def shown(self) -> str:
        """What messages call it."""
        return f"{self.row.name}, {'all' if self.size is None else f'{self.size} per class'}, seed {self.seed}"


class CellTiles:
    """What cells are trained on.

    Args:
        real: The real training tiles.
        pool: The pool.
        embeddings: float32 N×D, of the pool.
        folder: Where what is decoded once is kept.
    """

    def __init__(self, real: Tiles, pool: Tiles, embeddings: np.ndarray, folder: Path):
        self.real, self.pool, self.embeddings, self.folder = real, pool, embeddings, folder
        # Rows that differ in their recipe alone have the same tiles, and to find them takes some time.
        self._chosen: dict[tuple[str, int, int], tuple[np.ndarray, list[InfoDistChoice]]] = {}

    def of(self, cell: InfoDistCell) -> tuple[Tiles, dict[str, list[int]] | None]:
        """The tiles of a cell, and of a row of Infomap what its selection found in each class.

        Raises:
            InputError: Where a class has too few, or too many for a dense graph.
        """
        if cell.row.tiles == "real_all":
            return self.real, None
        if cell.row.tiles == "pool_all":
            return self._decoded_pool, None
        assert cell.size is not None  # of all other rows
        if cell.row.tiles == "real_random":
            return self.real.subset(sample_per_class(self.real.labels, cell.size, cell.seed)), None
        rows, found = self._from_pool(cell.row.tiles, cell.size, cell.seed)
        chosen = self.pool.subset(rows)
        chosen = dataclasses.replace(chosen, images=decode_once(chosen.images, self.folder))
        if not found:
            return chosen, None
        return chosen, {name: [getattr(choice, name) for choice in found] for name in _FOUND}

    @functools.cached_property
    def _decoded_pool(self) -> Tiles:
        return dataclasses.replace(self.pool, images=decode_once(self.pool.images, self.folder))

    def _from_pool(self, tiles: str, size: int, seed: int) -> tuple[np.ndarray, list[InfoDistChoice]]:
        if (tiles, size, seed) not in self._chosen:
            labels = self.pool.labels
            try:
                if tiles == "random":
                    selector = RandomSelector(n_per_class=size, random_state=seed).fit(self.embeddings, labels)
                    self._chosen[tiles, size, seed] = selector.selected_indices_, []
                else:
                    classes = [np.flatnonzero(labels == label) for label in np.unique(labels)]
                    found = [_CHOICES[tiles](self.embeddings[rows], size, seed) for rows in classes]
                    chosen = [rows[choice.chosen] for rows, choice in zip(classes, found, strict=True)]
                    self._chosen[tiles, size, seed] = np.concatenate(chosen), found
            except ValueError as error:
                raise InputError(str(error)) from error
        return self._chosen[tiles, size, seed]

    def most(self, cell: InfoDistCell) -> int:
        """How many tiles it has at most."""
        if cell.size is None:
            return len(self.real if cell.row.tiles == "real_all" else self.pool)
        return cell.size * len(np.unique(self.pool.labels))


def run_infodist(config: ResultsTableConfig) -> dict[str, Any]:
    """Trains the cells that are missing, one after the other, and writes the table of all that are there.

    Args:
        config: Of `--protocol infodist`.

    Returns:
        What infodist.json holds: see `write_infodist_table`.

    Raises:
        InputError: For a run, tiles or a file of figures that do not fit, or a folder of another table.
    """
    published = {} if config.published is None else read_published(config.published)
    records = require_parts(config.run, "pool", "teacher")
    source = load_tiles(config.data, image_size=config.image_size, **config.source_options(config.run))
    for split in SPLITS:
        source.split(split)
    table = open_image_table(config.run / "pool")
    check_same_kind(config.run / "pool", table.images, table.class_names, source)
    epochs = config.epochs or PUBLISHED_EPOCHS
    settings = {
        "stage": "infodist",
        "data": source.fingerprint(),
        **{part: record["fingerprint"] for part, record in records.items()},
        **config.settings(),
        "embedder": embedder_fingerprint(config.embedder),
        "epochs": epochs,
    }
    inputs = {part: config.run / part for part in records}
    stage = Stage(config.folder, settings, remedy=f"give another {param('output')}, or delete it", inputs=inputs)
    accelerator = make_accelerator(config.mixed_precision)
    stage.begin()
    real, file = source.split("train"), inputs_file(config.folder)
    write_inputs(file, {"embeddings"}, config.embedder, config.run / "teacher", table.images, real.images)
    pool = Tiles(table.images, table.columns["label"])
    tiles = CellTiles(real, pool, read_kept_arrays(file)["embeddings"], config.folder)

    cells = planned_infodist_cells(config.rows or INFODIST_ROWS, config.sizes, config.seeds)
    notes = train_infodist_cells(cells, epochs, tiles, source, stage, accelerator)
    results = write_infodist_table(stage.folder, epochs, source, notes, published)
    stage.finish(num_cells=len(_kept_cells(stage.folder)))
    print(f"benchmark: saved to {stage.folder}")
    return results


def planned_infodist_cells(
    rows: Sequence[str], sizes: Sequence[int] | None, seeds: Sequence[int] | None
) -> list[InfoDistCell]:
    """The cells that a call asks for, in the order in which they are trained: one seed of each before any other.

    Args:
        rows: Names of the rows.
        sizes: Images per class; None for `PUBLISHED_SIZE`.
        seeds: None for `PUBLISHED_SEEDS`.

    Raises:
        InputError: For a row that there is not.
    """
    return [
        InfoDistCell(row, size, seed)
        for seed in seeds or PUBLISHED_SEEDS
        for row in map(parse_infodist_row, rows)
        for size in ((None,) if row.tiles in WHOLE_TILES else sizes or (PUBLISHED_SIZE,))
    ]


def train_infodist_cells(
    cells: Sequence[InfoDistCell],
    epochs: int,
    tiles: CellTiles,
    source: TileSource,
    stage: Stage,
    accelerator: Accelerator,
) -> list[str]:
    """Trains the cells whose files are not there, and writes these; a training that was killed goes on.

    Args:
        cells: Of the table.
        epochs: Of each training.
        tiles: What they are trained on.
        source: The real tiles, by which they are scored.
        stage: The stage whose folder holds the files; its time is kept with each.
        accelerator: Of this process.

    Returns:
        Why some were left out, a sentence for each.
    """
    missing = [cell for cell in cells if _read_cell(cell.path(stage.folder)) is None]
    steps = [epochs * steps_of_epoch(tiles.most(cell), source.image_size) for cell in cells]
    of_cell = dict(zip(cells, steps, strict=True))
    done = sum(steps) - sum(of_cell[cell] for cell in missing)
    notes = []
    with Progress(sum(steps), "benchmark", "steps", initial=done) as progress:
        for cell in missing:
            progress.show(cell=cell.shown)
            try:
                _train_cell(cell, epochs, tiles, source, stage.folder, accelerator, progress)
            except InputError as error:
                notes.append(f"{cell.shown}: left out, since {error}")
                tell(notes[-1])
            stage.save_progress()
    return notes


def _train_cell(
    cell: InfoDistCell,
    epochs: int,
    tiles: CellTiles,
    source: TileSource,
    folder: Path,
    accelerator: Accelerator,
    progress: Progress,
) -> None:
    started = time.perf_counter()
    train, selection = tiles.of(cell)
    recipe = InfoDistRecipe(epochs, cell.row.loss, cell.row.softmaxes, cell.seed)
    path = cell.path(folder)
    checkpoints = path.parent / "checkpoints" / path.stem
    network = train_by_recipe(
        recipe, train, len(source.class_names), accelerator, checkpoint_dir=checkpoints, on_steps=progress.update
    )
    scores = {
        split: score_probabilities(
            predict_scores(network, source.split(split).images, recipe.softmaxes), source.split(split).labels
        )
        for split in SPLITS
    }
    kept = {
        "row": cell.row.name,
        "size": cell.size,
        "seed": cell.seed,
        "num_train": len(train),
        "selection": selection,
        **scores,
        "recipe": {**dataclasses.asdict(recipe), "batch_size": batch_size_of(source.image_size)},
        "seconds": round(time.perf_counter() - started, 1),
    }
    write_json(path, kept)
    shutil.rmtree(checkpoints, ignore_errors=True)


def _read_cell(path: Path) -> dict[str, Any] | None:
    """A finished cell; None where there is none, or one that is damaged."""
    cell = read_kept(path)
    return cell if isinstance(cell, dict) and cell.keys() >= _KEYS else None


def _kept_cells(folder: Path) -> list[dict[str, Any]]:
    """All finished cells in the table's folder: in the order of the table, by size and seed."""
    cells = [cell for path in sorted((folder / "cells").glob("*.json")) if (cell := _read_cell(path)) is not None]
    tiles = list(INFODIST_TILES)

    def place(cell: Mapping[str, Any]) -> tuple[int, int, str, int]:
        name, _, recipe = cell["row"].partition("@")
        return cell["size"] or 0, tiles.index(name), recipe, cell["seed"]

    return sorted(cells, key=place)


def summarise_infodist(
    cells: Sequence[Mapping[str, Any]], published: Mapping[str, Mapping[str, str]]
) -> list[dict[str, Any]]:
    """One dict for each row and size, in order of appearance.

    Args:
        cells: As their files hold them.
        published: Figures of others: see `read_published`.

    Returns:
        Dicts of row, size, num_train and seeds (one each), for each split and metric the `spread`, and `published`:
        metric → text, of rows of `PUBLISHED_SIZE` images per class, or of fixed size.
    """

    def scores(mine: Sequence[Mapping[str, Any]], split: str) -> dict[str, Any]:
        return {score: spread([cell[split][score] for cell in mine]) for score in SCORES}

    rows = []
    for name, size in dict.fromkeys((cell["row"], cell["size"]) for cell in cells):
        mine = [cell for cell in cells if (cell["row"], cell["size"]) == (name, size)]
        rows.append(
            {
                "row": name,
                "size": size,
                "num_train": [cell["num_train"] for cell in mine],
                "seeds": [cell["seed"] for cell in mine],
                **{split: scores(mine, split) for split in SPLITS},
                "published": dict(published.get(name, {})) if size in (None, PUBLISHED_SIZE) else {},
            }
        )
    return rows


def selection_notes(cells: Sequence[Mapping[str, Any]]) -> list[str]:
    """What the selections by Infomap found, a sentence for each row of tiles and size."""
    notes = []
    found: dict[tuple[str, int], list[Mapping[str, list[int]]]] = {}
    for cell in cells:
        if cell["selection"]:
            found.setdefault((cell["row"].partition("@")[0], cell["size"]), []).append(cell["selection"])
    for (tiles, size), selections in found.items():
        links, communities = (
            _range([number for selection in selections for number in selection[name]]) for name in _FOUND
        )
        notes.append(
            f"{tiles}, {size} per class: graphs of {links} links a class, in which Infomap found {communities} "
            "communities"
        )
    return notes


def _range(numbers: Sequence[int]) -> str:
    low, high = min(numbers), max(numbers)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def write_infodist_table(
    folder: Path, epochs: int, source: TileSource, notes: Sequence[str], published: Mapping[str, Mapping[str, str]]
) -> dict[str, Any]:
    """Sums up the cells, writes infodist.json and infodist.md, and prints the table of the test tiles.

    Args:
        folder: Of the table.
        epochs: Of each training.
        source: The real tiles.
        notes: Why cells were left out.
        published: Figures of others: see `read_published`.

    Returns:
        What infodist.json holds: protocol, epochs, published_epochs, data, class_names, the rows as
        `summarise_infodist` returns them, and notes.
    """
    cells = _kept_cells(folder)
    all_notes = [*notes, *selection_notes(cells)]
    if epochs != PUBLISHED_EPOCHS:
        shortened = f"the trainings have {epochs:,} epochs where the recipe has {PUBLISHED_EPOCHS:,}"
        all_notes.insert(0, f"{shortened}: these are not the results of the recipe")
    all_notes += [
        note for split in SPLITS if (note := auc_note(split, source.split(split).labels, source.class_names))
    ]
    results = {
        "protocol": "infodist",
        "epochs": epochs,
        "published_epochs": PUBLISHED_EPOCHS,
        "data": source.name,
        "class_names": source.class_names,
        "rows": summarise_infodist(cells, published),
        "notes": all_notes,
    }
    write_json(folder / "infodist.json", results)
    texts = {split: infodist_markdown(results, split) for split in SPLITS}
    below = "".join(f"- {note}\n" for note in all_notes)
    write_text(folder / "infodist.md", "\n".join([*texts.values(), below]))
    print(f"{texts['test']}\n{below}", end="")
    return results


def infodist_markdown(results: Mapping[str, Any], split: str) -> str:
    """The table of one split."""
    shortened = results["epochs"] != results["published_epochs"]
    of = f" of {results['published_epochs']:,}" if shortened else ""
    header = ["trained on", "row", "images per class", "tiles", "seeds", *SCORES.values(), "published"]
    lines = [
        f"## {split.capitalize()} tiles, {results['epochs']:,}{of} epochs\n",
        f"| {' | '.join(header)} |",
        "|" + "---|" * len(header),
    ]
    for row in results["rows"]:
        size = "all" if row["size"] is None else row["size"]
        title = parse_infodist_row(row["row"]).title
        # The published figures are of test tiles.
        beside = published_text(row["published"]) if split == "test" else ""
        scores = [format_score(row[split][score]) for score in SCORES]
        cells = [title, f"`{row['row']}`", size, _range(row["num_train"]), len(row["seeds"]), *scores, beside]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines) + "\n"
