"""Measures how good the generated pool is, against real validation tiles.

    histodistill evaluate-pool runs/phantom --data phantom

Two questions are asked, and each figure stands beside that of the real training tiles, which is its ceiling:

- are the generated tiles distributed as the real ones are? Fréchet and kernel distance, precision, recall, density
  and coverage, overall and for each class, in the feature space of the run's teacher or of `--embedder`;
- does a classifier trained on them know real tiles (classification accuracy score, Ravuri & Vinyals 2019)? Also
  trained on real tiles that the autoencoder has reconstructed, which tells what is lost there; on request on as many
  real tiles as the pool has, which tells what is lost since they are fewer, and on the pool with the teacher's soft
  labels, which tells what is lost since tiles are not quite of the class that they were made for.

Test tiles are not touched. Leaves `RUN/evaluation/` with metrics.json, distances.json, metrics.png, and tiles.png,
which shows real tiles beside generated ones and must not be shared.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from histodistill.training.engine.classifier_config import ClassifierConfig
from histodistill.training.evaluation.plans import PlannedCell, RowsConfig, planned_cells, recorded_plan
from histodistill.training.models.encoder_names import TEACHER
from histodistill.training.running.claims import claiming
from histodistill.training.running.errors import InputError, param
from histodistill.training.running.notes import tell
from histodistill.training.running.options import StepParser, config, like, option, run_script
from histodistill.training.running.source_options import SourceOptions


if TYPE_CHECKING:
    from accelerate import Accelerator

    from histodistill.training.data.tiles import Tiles
    from histodistill.training.running.progress import Progress
    from histodistill.training.running.stages import Stage

_SOFT_ROW = "pool_soft"
# What classifiers are trained on, and what tables call it.
ROWS = {
    "real_all": "All real tiles",
    "reconstructed": "All real tiles, reconstructed by the autoencoder",
    "pool_all": "The whole pool",
    "real_as_many": "As many real tiles of each class as the pool has, or all",
    _SOFT_ROW: "The whole pool, soft labels of the teacher",
}


@config
class EvaluatePoolConfig(RowsConfig, SourceOptions):
    """Options of `evaluate_pool`."""

    known_rows = ROWS

    run: Path = option("folder with pipeline/, teacher/ and pool/", positional=True, setting=False)
    data: str | Path = option("the real tiles: the source that the run was made from", setting=False)
    pool: Path | None = option("another pool of the same pipeline; default: RUN/pool", default=None, setting=False)
    output: Path | None = option("folder for the result; default: RUN/evaluation", default=None, setting=False)
    image_size: int | None = option("side in pixels; default: the size tiles have", default=None, setting=False)
    embedder: str | Path = option(
        "as for histodistill select; teacher: the features of RUN/teacher",
        default=TEACHER,
        setting=False,  # what a folder holds counts, not where it is
    )
    n_neighbors: int = option("of precision, recall, density and coverage", default=5, at_least=1)
    train: tuple[str, ...] = like(
        RowsConfig,
        "train",
        help="what to train for how many steps on which rows, all rows where none is named; nothing after it trains "
        "none",
        default=("resnet18:300:real_all,reconstructed,pool_all",),
        may_be_empty=True,
    )

    @property
    def pool_folder(self) -> Path:
        """The pool that is measured."""
        return self.pool or self.run / "pool"

    @property
    def output_folder(self) -> Path:
        """Where the result goes."""
        return self.output or self.run / "evaluation"

    def claims(self) -> Path:
        """The same."""
        return self.output_folder

    @property
    def takes_teacher(self) -> bool:
        """Whether the run's teacher makes the features or labels the pool."""
        return self.embedder == TEACHER or any(_SOFT_ROW in planned.rows for planned in self.plan)


def make_parser() -> StepParser[EvaluatePoolConfig]:
    """The parser of the command line."""
    rows = EvaluatePoolConfig.rows_help()
    return StepParser(EvaluatePoolConfig, prog="histodistill evaluate-pool", description=__doc__, epilog=rows)


@claiming
def run(config: EvaluatePoolConfig) -> dict[str, Any]:
    """Measures what is missing, and sums all up in metrics.json.

    Returns:
        What `metrics.json` in the output folder holds.

    Raises:
        InputError: For a run that lacks a stage, tiles that are not of its kind or too few, or an output folder of
            other settings.
    """
    from histodistill.training.data.sources import check_source
    from histodistill.training.running.files import read_json, read_kept, write_json
    from histodistill.training.running.stages import Stage

    # Before the libraries are imported, which takes seconds.
    fingerprints = require_stages(config)
    check_source(config.data, config.source_options(config.run).get("labels"))

    from histodistill.training.engine.accelerator import make_accelerator
    from histodistill.training.evaluation.cells import summarise_rows
    from histodistill.training.models.embedders import embedder_fingerprint

    # For a folder, its content and not its path.
    embedder = None if config.embedder == TEACHER else embedder_fingerprint(config.embedder)
    tiles = load_measured(config)
    settings = {
        "stage": "evaluation",
        "data": tiles.fingerprint,
        **fingerprints,
        "embedder": embedder,
        **config.settings(),
        "train": recorded_plan(config.train, config.plan, config.run),
    }
    folder, results_path = config.output_folder, config.output_folder / "metrics.json"
    inputs = {"pool": config.pool_folder, "pipeline": config.run / "pipeline"}
    if config.takes_teacher:
        inputs["teacher"] = config.run / "teacher"
    stage = Stage(folder, settings, remedy=f"give another {param('output')}", inputs=inputs)
    accelerator = make_accelerator(config.mixed_precision)
    # Every process has now read what an earlier run left in the folder, so the main process may overwrite it.
    accelerator.wait_for_everyone()
    if stage.complete and (kept := read_kept(results_path)):
        accelerator.print(f"evaluate-pool: {folder} is already finished")
        return kept
    if accelerator.is_main_process:
        stage.begin()
        show_distances(config, tiles, folder)
        stage.save_progress()
    accelerator.wait_for_everyone()

    rows = summarise_rows(train_rows(config, tiles, stage, accelerator), ROWS, "validation")
    results = {
        "data": tiles.name,
        "class_names": tiles.class_names,
        "embedder": embedder or TEACHER,
        "n_neighbors": config.n_neighbors,
        "distances": read_json(folder / "distances.json"),
        "rows": rows,
        "accuracy_score": accuracy_scores(rows),
    }
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        write_json(results_path, results)
        stage.finish(num_processes=accelerator.num_processes)
        print("\n".join([*row_lines(rows), f"evaluate-pool: saved to {folder}"]))
    accelerator.end_training()
    return results


def require_stages(config: EvaluatePoolConfig) -> dict[str, str]:
    """The fingerprints of the stages that are measured, by name; that of the teacher where it takes part.

    Raises:
        InputError: If one is not finished.
    """
    from histodistill.training.running.stages import require_complete, require_parts

    records = {
        "pool": require_complete(config.pool_folder, "pool", "run histodistill generate first"),
        **require_parts(config.run, "pipeline"),
    }
    if config.takes_teacher:
        instead = f"give {param('embedder')}" if config.embedder == TEACHER else f"leave {_SOFT_ROW} out"
        remedy = f"run train_classifier, or {instead}"
        records["teacher"] = require_complete(config.run / "teacher", "teacher", remedy)
    return {name: record["fingerprint"] for name, record in records.items()}


@dataclass(frozen=True)
class MeasuredTiles:
    """What is compared with what.

    Attributes:
        train, validation: The real tiles.
        pool: The generated ones.
        class_names: Names of the labels.
        name, fingerprint: Of the source of the real tiles.
    """

    train: Tiles
    validation: Tiles
    pool: Tiles
    class_names: list[str]
    name: str
    fingerprint: str


def load_measured(config: EvaluatePoolConfig) -> MeasuredTiles:
    """Loads the real tiles and the pool.

    Raises:
        InputError: If they are not of one kind, or there are too few validation tiles.
    """
    from histodistill.training.data.image_dataset import open_image_table
    from histodistill.training.data.sources import load_tiles
    from histodistill.training.data.tiles import Tiles
    from histodistill.training.evaluation.cells import check_same_kind

    source = load_tiles(config.data, image_size=config.image_size, **config.source_options(config.run))
    train, validation = source.split("train"), source.split("validation")
    table = open_image_table(config.pool_folder)
    check_same_kind(config.pool_folder, table.images, table.class_names, source)
    if len(validation) <= config.n_neighbors:
        raise InputError(
            f"{param('n_neighbors')}={config.n_neighbors} is too many for {len(validation)} validation tiles: give "
            "fewer"
        )
    pool = Tiles(table.images, table.columns["label"])
    return MeasuredTiles(train, validation, pool, table.class_names, source.name, source.fingerprint())


def show_distances(config: EvaluatePoolConfig, tiles: MeasuredTiles, folder: Path) -> None:
    """Writes tiles.png, distances.json where it is not there yet, and metrics.png; prints the distances."""
    from histodistill.training.evaluation.pool_figures import distance_lines, draw_distances, draw_tiles
    from histodistill.training.evaluation.pool_quality import measure_pool
    from histodistill.training.models.embedders import resolve_embedder
    from histodistill.training.running.files import read_json, read_kept, write_bytes, write_json

    # The tiles first: they are there at once.
    write_bytes(folder / "tiles.png", draw_tiles(tiles.validation, tiles.pool, tiles.class_names))
    path = folder / "distances.json"
    if read_kept(path) is None:
        sets = {"validation": tiles.validation, "pool": tiles.pool, "real_train": tiles.train}
        embedder = resolve_embedder(config.embedder, config.run / "teacher")
        write_json(path, measure_pool(sets, tiles.class_names, embedder, config.n_neighbors))
    distances = read_json(path)
    write_bytes(folder / "metrics.png", draw_distances(distances))
    print("\n".join(distance_lines(distances)), flush=True)


def train_rows(
    config: EvaluatePoolConfig, tiles: MeasuredTiles, stage: Stage, accelerator: Accelerator
) -> list[dict[str, Any]]:
    """Trains and scores the cells of the plan that are not finished; returns all."""
    from histodistill.training.data.scratch_images import decode_once, keep_images
    from histodistill.training.data.tiles import Tiles, sample_as_many
    from histodistill.training.engine.scoring import predict_shared
    from histodistill.training.evaluation.cells import fill_cells, train_cell
    from histodistill.training.models.loading import load_autoencoder, load_classifier
    from histodistill.training.models.reconstruction import reconstruct_tiles

    @functools.cache
    def whole(row: str) -> Tiles:
        if row == "pool_all":
            return Tiles(decode_once(tiles.pool.images, stage.folder), tiles.pool.labels)
        if row == _SOFT_ROW:
            pool, teacher = whole("pool_all"), load_classifier(config.run / "teacher").to(accelerator.device)
            return Tiles(pool.images, pool.labels, predict_shared(teacher, pool.images, accelerator))
        if row != "reconstructed":
            return tiles.train
        autoencoder = load_autoencoder(config.run / "pipeline" / "vae").to(accelerator.device)
        left = reconstruct_tiles(autoencoder, tiles.train.images)
        images = keep_images(left, tiles.train.images.shape, stage.folder)
        return Tiles(images, tiles.train.labels)

    def make_cell(cell: PlannedCell, path: Path, progress: Progress) -> dict[str, Any]:
        train = whole(cell.row)
        if cell.row == "real_as_many":
            train = train.subset(sample_as_many(train.labels, tiles.pool.labels, cell.seed))
        tell(f"{cell.shown} on {len(train):,} tiles: {ROWS[cell.row]}, seed {cell.seed}")
        steps: dict[str, Any] = {} if cell.steps is None else {"max_train_steps": cell.steps}
        recipe = ClassifierConfig(
            architecture=cell.architecture,
            soft_label_weight=1.0 if cell.row == _SOFT_ROW else 0.0,
            seed=cell.seed,
            batch_size=config.batch_size,
            **steps,
        )
        # No step is chosen on the validation tiles: they are what is scored.
        score_on = {"validation": tiles.validation}
        return train_cell(
            path, cell.row, recipe, train, None, score_on, accelerator, tiles.class_names, progress, label=cell.shown
        )

    return fill_cells(planned_cells(config.plan, config.seeds, config.run), stage, accelerator, make_cell)


def accuracy_scores(rows: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """The classification accuracy scores.

    Args:
        rows: As `summarise_rows` gives them.

    Returns:
        Of each architecture trained on all real tiles: accuracy of the other rows ÷ accuracy of that one.
    """
    accuracy = {(row["architecture"], row["row"]): row["accuracy"]["mean"] for row in rows}
    shares: dict[str, dict[str, float]] = {}
    for (architecture, row), value in accuracy.items():
        full = accuracy.get((architecture, "real_all"))
        if row != "real_all" and full:
            shares.setdefault(architecture, {})[row] = value / full
    return shares


def row_lines(rows: list[dict[str, Any]]) -> list[str]:
    """The accuracies of the rows as lines of text."""
    shares = accuracy_scores(rows)
    lines = []
    for row in rows:
        share = shares.get(row["architecture"], {}).get(row["row"])
        of_real = f", {100 * share:.1f}% of all real tiles" if share else ""
        lines.append(f"{row['architecture']} · {row['title']}: validation ACC {row['accuracy']['mean']:.3f}{of_real}")
    return lines


if __name__ == "__main__":
    run_script(make_parser, run)
