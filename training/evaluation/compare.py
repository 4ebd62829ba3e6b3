"""Trains classifiers on the distilled set and on real tiles, and scores them on real test tiles.

    histodistill compare runs/phantom --data phantom --train convnet:1000

Each combination is one training; finished ones are kept in `RUN/comparison/`. All rows of an architecture share the
same recipe and number of steps; the best step is chosen on the validation tiles, and the test tiles are scored once.
Leaves `RUN/results.json`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from histodistill.training.engine.classifier_config import ClassifierConfig
from histodistill.training.evaluation.plans import PlannedCell, RowsConfig, planned_cells, recorded_plan
from histodistill.training.running.claims import claiming
from histodistill.training.running.errors import InputError
from histodistill.training.running.formats import RESULTS_FORMAT
from histodistill.training.running.notes import is_step_of_distill, tell
from histodistill.training.running.options import StepParser, config, like, option, run_script
from histodistill.training.running.source_options import SourceOptions


if TYPE_CHECKING:
    from accelerate import Accelerator

    from histodistill.training.data.tiles import Tiles, TileSource
    from histodistill.training.running.progress import Progress
    from histodistill.training.running.stages import Stage

# What classifiers are trained on, and what tables call it.
ROWS = {
    "real_all": "All real tiles",
    "real_random": "Random real tiles, as many as distilled",
    "pool_random": "Random synthetic tiles, as many as distilled",
    "distilled_ce": "Distilled, cross-entropy",
    "distilled_joint": "Distilled, joint loss",
    "distilled_soft": "Distilled, soft labels of the teacher",
}
# The row whose accuracy is divided by that of real_all.
RECOVERY_ROW = "distilled_ce"
# The row that uses all that the distilled set has, and so is the way to train on it.
SOFT_ROW = "distilled_soft"
# How often a training is validated: after each tenth of its steps.
_VALIDATIONS = 10
# Validation tiles that it looks at where nothing else is asked for.
_VALIDATION_TILES = ClassifierConfig.validation_tiles


def headline_row(names: Collection[str], recovery_row: str) -> str:
    """The row that stands for the distilled set: on soft labels, or where that was not measured, that of the recovery.

    Args:
        names: Of the rows that were measured.
        recovery_row: What `results.json` measures recovery by.
    """
    return SOFT_ROW if SOFT_ROW in names else recovery_row


@config
class CompareConfig(RowsConfig, SourceOptions):
    """Options of `compare`."""

    known_rows = ROWS

    run: Path = option(
        "folder with pool/ and distilled/", positional=True, also_named=True, setting=False, claimed=True
    )
    data: str | Path = option("the real tiles: any source that train_classifier takes", setting=False)
    image_size: int | None = option("side in pixels; default: the size tiles have", default=None, setting=False)
    validation_tiles: int = like(ClassifierConfig, "validation_tiles", later=True)


def make_parser() -> StepParser[CompareConfig]:
    """The parser of the command line."""
    rows = CompareConfig.rows_help()
    return StepParser(CompareConfig, prog="histodistill compare", description=__doc__, epilog=rows)


@claiming
def run(config: CompareConfig) -> dict[str, Any]:
    """Trains what is missing, one combination after the other, and sums all up in results.json.

    Returns:
        What `results.json` in the run's folder holds: see `summarise`.

    Raises:
        InputError: For a run that lacks a stage, tiles that are not of its kind, or a comparison of other settings.
    """
    from histodistill.training.data.sources import load_tiles
    from histodistill.training.running.files import read_kept, write_json
    from histodistill.training.running.stages import Stage, require_parts

    records = require_parts(config.run, "distilled", "pool")
    source = load_tiles(config.data, image_size=config.image_size, **config.source_options(config.run))
    n_per_class = distilled_per_class(config.run / "distilled", source)
    settings = {
        "stage": "comparison",
        "data": source.fingerprint(),
        "pool": records["pool"]["fingerprint"],
        "distilled": records["distilled"]["fingerprint"],
        **config.settings(),
        "train": recorded_plan(config.train, config.plan, config.run),
    }
    folder, results_path = config.run / "comparison", config.run / "results.json"
    # There is no other output folder to give: a run has one comparison.
    inputs = {name: config.run / name for name in ("pool", "distilled")}
    stage = Stage(folder, settings, remedy=f"delete {folder} to compare anew", inputs=inputs)

    from histodistill.training.engine.accelerator import make_accelerator

    accelerator = make_accelerator(config.mixed_precision)
    # Every process has now read what an earlier run left in the folder, so the main process may overwrite it.
    accelerator.wait_for_everyone()
    if stage.complete and (kept := read_kept(results_path)):
        accelerator.print(f"compare: {folder} is already finished")
        return kept
    if accelerator.is_main_process:
        stage.begin()

    cells, notes = train_rows(config, source, n_per_class, stage, accelerator)
    accelerator.wait_for_everyone()
    results = summarise(cells, source, n_per_class, notes)
    if accelerator.is_main_process:
        write_json(results_path, results)
        stage.finish(recovery=results["recovery"], num_processes=accelerator.num_processes)
    accelerator.end_training()
    return results


def distilled_per_class(folder: Path, source: TileSource) -> int:
    """How many images of each class a distilled set has; of its smallest class, where they differ.

    Raises:
        InputError: If it is not of the classes and the size of the real tiles.
    """
    import numpy as np

    from histodistill.training.data.image_dataset import read_image_dataset
    from histodistill.training.evaluation.cells import check_same_kind

    images, columns, class_names = read_image_dataset(folder)
    check_same_kind(folder, images, class_names, source)
    return int(np.bincount(columns["label"]).min())


def train_rows(
    config: CompareConfig, source: TileSource, n_per_class: int, stage: Stage, accelerator: Accelerator
) -> tuple[list[dict[str, Any]], list[str]]:
    """Trains and scores the cells of the plan that are not finished.

    Returns:
        All cells, and a note for each row that there are too few tiles for, and one where the test tiles lack a class.
    """
    from histodistill.training.engine.scoring import auc_note
    from histodistill.training.evaluation.cells import fill_cells, train_cell

    # Which shows all rows with their scores, and the notes, when it ends.
    say = (lambda _: None) if is_step_of_distill() else tell
    test = source.split("test")
    note = auc_note("test", test.labels, source.class_names)
    notes = [] if note is None else [note]

    def make_cell(cell: PlannedCell, path: Path, progress: Progress) -> dict[str, Any] | None:
        try:
            how = recipe(cell, config.batch_size, config.validation_tiles)
            train = training_tiles(cell.row, config.run, source, n_per_class, cell.seed)
        except InputError as error:
            title = ROWS[cell.row] if cell.steps else f"{cell.shown}, {ROWS[cell.row]}"
            note = f"{title}: left out, since {error}"
            if note not in notes:
                notes.append(note)
                say(note)
            return None
        say(f"{cell.shown} on {len(train):,} tiles: {ROWS[cell.row]}, seed {cell.seed}")
        return train_cell(
            path,
            cell.row,
            how,
            train,
            source.split("validation"),
            {"test": test},
            accelerator,
            source.class_names,
            progress,
            label=cell.shown,
        )

    return fill_cells(planned_cells(config.plan, config.seeds, config.run), stage, accelerator, make_cell), notes


def recipes(config: CompareConfig) -> Iterator[tuple[PlannedCell, ClassifierConfig]]:
    """The cells of a comparison that can be trained, and how: see `recipe`."""
    for cell in planned_cells(config.plan, config.seeds, config.run):
        with suppress(InputError):  # `train_rows` notes that it leaves these out
            yield cell, recipe(cell, config.batch_size, config.validation_tiles)


def recipe(cell: PlannedCell, batch_size: int, validation_tiles: int = _VALIDATION_TILES) -> ClassifierConfig:
    """How a cell is trained: the rows differ in their tiles, and two of them in the loss.

    Raises:
        InputError: For a probe that is to be trained with the joint loss.
    """
    steps: dict[str, Any] = {} if cell.steps is None else {"max_train_steps": cell.steps}
    return ClassifierConfig(
        architecture=cell.architecture,
        loss="joint" if cell.row == "distilled_joint" else "ce",
        soft_label_weight=1.0 if cell.row == SOFT_ROW else 0.0,
        seed=cell.seed,
        batch_size=batch_size,
        validation_steps=max(1, cell.work // _VALIDATIONS),
        validation_tiles=validation_tiles,
        **steps,
    )


def training_tiles(row: str, run: Path, source: TileSource, n_per_class: int, seed: int) -> Tiles:
    """The tiles that a row trains on.

    Args:
        row: One of `ROWS`.
        run: Folder of the run.
        source: The real tiles.
        n_per_class: Tiles of each class where they are drawn at random.
        seed: Of the draw.

    Raises:
        InputError: If a class has fewer tiles than the row needs, or the distilled set lacks the soft labels.
    """
    from histodistill.training.data.image_dataset import open_image_table, read_image_dataset
    from histodistill.training.data.scratch_images import decode_once
    from histodistill.training.data.tiles import Tiles, sample_per_class

    if row == "real_all":
        return source.split("train")
    if row == "real_random":
        train = source.split("train")
        return train.subset(sample_per_class(train.labels, n_per_class, seed))
    if row == "pool_random":
        pool = open_image_table(run / "pool")
        labels = pool.columns["label"]
        drawn = Tiles(pool.images, labels).subset(sample_per_class(labels, n_per_class, seed))
        return Tiles(decode_once(drawn.images, run), drawn.labels)
    images, columns, _ = read_image_dataset(run / "distilled")
    if row == SOFT_ROW and "soft_label" not in columns:
        raise InputError("the distilled set has no soft labels: run histodistill select anew")
    return Tiles(images, columns["label"], columns["soft_label"] if row == SOFT_ROW else None)


def summarise(cells: list[dict[str, Any]], source: TileSource, n_per_class: int, notes: list[str]) -> dict[str, Any]:
    """Sums up the cells of a comparison.

    Args:
        cells: As `train_cell` returns them.
        source: The real tiles.
        n_per_class: Tiles of each class in the distilled set.
        notes: What to tell of rows that were left out, and of the scores.

    Returns:
        A dict that JSON can hold: `rows` as `summarise_rows` gives them for the test tiles, and `recovery`, by
        architecture: the mean accuracy of `RECOVERY_ROW` over that of all real tiles. It lacks architectures that were
        not trained on both, or learned nothing of the real tiles.
    """
    from histodistill.training.evaluation.cells import summarise_rows

    rows = summarise_rows(cells, ROWS, "test")
    accuracy = {(r["architecture"], r["row"]): r["accuracy"]["mean"] for r in rows}
    recovery = {
        architecture: accuracy[architecture, RECOVERY_ROW] / accuracy[architecture, "real_all"]
        for architecture in dict.fromkeys(r["architecture"] for r in rows)
        if accuracy.get((architecture, "real_all")) and (architecture, RECOVERY_ROW) in accuracy
    }
    return {
        "format": RESULTS_FORMAT,
        "data": source.name,
        "class_names": source.class_names,
        "n_per_class": n_per_class,
        "rows": rows,
        "recovery": recovery,
        "recovery_row": RECOVERY_ROW,
        "notes": notes,
    }


if __name__ == "__main__":
    run_script(make_parser, run)
