"""Cells of a results table: a classifier trained on some tiles and scored on real ones, each kept in a file."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from histodistill.selection.image_rows import Images
from histodistill.training.data.tiles import Tiles, TileSource
from histodistill.training.engine.classifier_config import ClassifierConfig, recorded_recipe
from histodistill.training.engine.classifier_training import fit_classifier
from histodistill.training.engine.probes import fit_probe
from histodistill.training.engine.scoring import predict_shared, score_probabilities
from histodistill.training.evaluation.plans import PlannedCell
from histodistill.training.models.architectures import is_probe, steps_of
from histodistill.training.running.errors import InputError, param
from histodistill.training.running.files import read_kept, write_json
from histodistill.training.running.progress import Progress
from histodistill.training.running.stages import Stage


if TYPE_CHECKING:
    from accelerate import Accelerator

# The scores that a table shows, each in [0, 1], by the names that `score_probabilities` gives them.
METRICS = ("accuracy", "auc", "f1")


def check_same_kind(folder: Path, images: Images, class_names: list[str], source: TileSource) -> None:
    """Checks that synthetic images have the classes and the size of the real tiles.

    Args:
        folder: Where the images are from, for the message.
        images: uint8 N×H×W×3.
        class_names: Names of their labels.
        source: The real tiles.

    Raises:
        InputError: If they do not.
    """
    if class_names != source.class_names:
        raise InputError(
            f"{folder} has the classes {', '.join(class_names)} and {param('data')} "
            f"{', '.join(source.class_names)}: they must be the same, in the same order"
        )
    if images.shape[1] != source.image_size:
        raise InputError(
            f"the images of {folder} are {images.shape[1]} px and the tiles of {param('data')} "
            f"{source.image_size} px: give {param('image_size')} {images.shape[1]}"
        )


def train_cell(
    path: Path,
    row: str,
    config: ClassifierConfig,
    train: Tiles,
    choose_on: Tiles | None,
    score_on: dict[str, Tiles],
    accelerator: Accelerator,
    class_names: list[str],
    progress: bool | Progress = True,
    size: int | None = None,
    label: str | None = None,
) -> dict[str, Any]:
    """Trains and scores one classifier, and writes the cell; a training that was killed is resumed.

    Args:
        path: JSON file of the cell; checkpoints go beside it.
        row: Name of what it is trained on.
        config: How to train.
        train: The tiles to train on.
        choose_on: The tiles on which the best step is chosen; None takes the last.
        score_on: Tiles that are scored, once, by the name of their split.
        accelerator: Shared by all processes.
        class_names: Names of the labels.
        progress: See `fit_classifier`.
        size: Images per class, where a table has the row in several sizes.
        label: What the table calls the architecture, where that is something else.

    Returns:
        The cell, the same on every process: row, num_train, scores by name of the split, how it was trained.
    """
    checkpoints = path.parent / "checkpoints" / path.stem
    if is_probe(config.architecture):
        trained = fit_probe(config, train, choose_on, accelerator, class_names=class_names)
        if isinstance(progress, Progress):
            progress.update()
    else:
        trained = fit_classifier(
            config,
            train,
            choose_on,
            accelerator,
            class_names=class_names,
            checkpoint_dir=checkpoints,
            resume="latest",
            progress=progress,
        )
    scores = {
        split: score_probabilities(predict_shared(trained.model, tiles.images, accelerator), tiles.labels)
        for split, tiles in score_on.items()
    }
    cell = {
        "architecture": label or config.architecture,
        "row": row,
        "size": size,
        "seed": config.seed,
        "num_train": len(train),
        "validation": trained.validation,
        **scores,
        "best_step": trained.best_step,
        "config": recorded_recipe(config, label),
        "seconds": round(trained.seconds, 1),
    }
    if accelerator.is_main_process:
        write_json(path, cell)
        shutil.rmtree(checkpoints, ignore_errors=True)
    return cell


def read_cell(path: Path) -> dict[str, Any] | None:
    """A finished cell, or None where there is none, or one that is damaged."""
    cell = read_kept(path)
    return cell if isinstance(cell, dict) else None


def fill_cells(
    planned: Iterable[PlannedCell],
    stage: Stage,
    accelerator: Accelerator,
    make: Callable[[PlannedCell, Path, Progress], dict[str, Any] | None],
) -> list[dict[str, Any]]:
    """Reads the cells that are finished and makes the others, one after the other.

    Args:
        planned: The cells of a table.
        stage: The stage whose folder holds them; its time is kept whenever a cell is made.
        accelerator: Shared by all processes.
        make: Makes a cell and writes it to the path, and counts its steps; gives None where the cell has to be left
            out.

    Returns:
        Cells as `train_cell` returns them, in the order of `planned`, without those that were left out.
    """
    paths = {cell: stage.folder / cell.file_name for cell in planned}
    cells = {cell: read_cell(path) for cell, path in paths.items()}
    total = sum(cell.work for cell in cells)
    done = sum(cell.work for cell, finished in cells.items() if finished is not None)
    with Progress(
        total, stage.folder.name, "steps", initial=done, enabled=accelerator.is_local_main_process
    ) as progress:
        for cell in [cell for cell, finished in cells.items() if finished is None]:
            cells[cell] = made = make(cell, paths[cell], progress)
            if made is None:
                progress.update(cell.work)
            elif accelerator.is_main_process:
                stage.save_progress()
    return [cell for cell in cells.values() if cell is not None]


def spread(values: list[float | None]) -> dict[str, Any]:
    """Sums up the values of one score over several trainings.

    Returns:
        `mean`, None where a value is undefined; `std`, the standard deviation of a sample, None for fewer than two
        values; and `values`.
    """
    defined = [value for value in values if value is not None]
    known = defined if len(defined) == len(values) else []
    return {
        "mean": float(np.mean(known)) if known else None,
        "std": float(np.std(known, ddof=1)) if len(known) > 1 else None,
        "values": values,
    }


def summarise_seeds(cells: Sequence[dict[str, Any]], splits: Sequence[str]) -> dict[str, Any]:
    """What cells that differ in their seed alone say together.

    Args:
        cells: As `train_cell` returns them, at least one, in the order of their seeds.
        splits: The splits whose scores count.

    Returns:
        Dict of num_train, steps, seeds, and for each split a dict with the `spread` of each of `METRICS`. An AUC that
        is undefined for one cell, since all tiles are of one class, has no mean.
    """
    return {
        "num_train": cells[0]["num_train"],
        "steps": steps_of(cells[0]["architecture"], cells[0]["config"]["max_train_steps"]),
        "seeds": [cell["seed"] for cell in cells],
        **{split: {metric: spread([cell[split][metric] for cell in cells]) for metric in METRICS} for split in splits},
    }


def summarise_rows(cells: list[dict[str, Any]], titles: dict[str, str], split: str) -> list[dict[str, Any]]:
    """One row per architecture and row name, in order of appearance, with its scores over seeds.

    Args:
        cells: As `train_cell` returns them.
        titles: Title of each row name.
        split: The split whose scores count.

    Returns:
        Dicts of row, title, architecture, and what `summarise_seeds` says of the row's cells, the scores of the split
        beside the rest.
    """
    rows = []
    for architecture, row in dict.fromkeys((cell["architecture"], cell["row"]) for cell in cells):
        mine = [cell for cell in cells if (cell["architecture"], cell["row"]) == (architecture, row)]
        summary = summarise_seeds(mine, [split])
        scores = summary.pop(split)
        rows.append({"row": row, "title": titles[row], "architecture": architecture, **summary, **scores})
    return rows
