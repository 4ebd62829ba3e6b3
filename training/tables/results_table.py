"""Makes the results table: classifiers trained on real tiles and on what each selector chooses, scored on real tiles.

    histodistill benchmark runs/mine --data my_tiles.npz

    histodistill benchmark runs/mine --data my_tiles.npz --train convnet:600 --sizes 10 50 \\
        --rows real_random random infomap:quota=sqrt kernel_herding@loss=joint,stain_strength=0.1

Without --rows, --sizes and --train it makes the whole table, headline rows first; with --quick these alone, with the
ConvNet. Every row has the same recipe, but for what a row changes after its @. Where there are several numbers of
steps, as in convnet:600,2000,6000, each row takes the one that does best on the validation tiles, by its first seed,
and a larger one is tried only where the one before helped: small sets and large ones need different ones. Recovery is
ACC over that of all real tiles, each at its best. The last step counts. A seed is that of the selection and of the
training; with --also they choose in turn from the pools of several runs, distillations with seeds of their own.
Trainings run in several processes and are kept, so a killed benchmark goes on where it was, and rows, sizes, seeds,
classifiers and numbers of steps can be added by further calls. Leaves `RUN/benchmark/` with benchmark.json,
benchmark.md and figures, of all that was ever trained there; margins over random choice are paired by seed.

    histodistill benchmark runs/mine --data my_tiles.npz --protocol infodist --embedder teacher

makes another table: what InfoDist (Li and Kainz, MICCAI 2024) chooses from the pool, as its published code does it and
as it is meant, beside random choice and all tiles, trained and scored by its recipe, of 1,000 epochs. Its trainings
come one after the other, and are kept as well. Leaves `RUN/benchmark/infodist/` with infodist.json and infodist.md.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from histodistill.training.distillation.guided_options import GuidedConfig
from histodistill.training.distillation.peer_options import MatchingConfig
from histodistill.training.evaluation.plans import CellsConfig, require_once
from histodistill.training.models.architectures import PROBE
from histodistill.training.models.encoder_names import COLOURS
from histodistill.training.running.claims import claiming
from histodistill.training.running.errors import InputError, param
from histodistill.training.running.options import StepParser, config, like, option, run_script
from histodistill.training.running.source_options import SourceOptions
from histodistill.training.tables.infodist_rows import (
    INFODIST_RECIPES,
    INFODIST_TILES,
    PROTOCOLS,
    PUBLISHED_SIZE,
    check_protocol,
)
from histodistill.training.tables.planned_cells import Line, TablePlan, check_kept, kept_cells
from histodistill.training.tables.rows import FIXED_ROWS, HEADLINE_ROWS, LADDER, QUICK_SIZES, RECIPE_OPTIONS, Row


if TYPE_CHECKING:
    from histodistill.training.data.tiles import Tiles
    from histodistill.training.distillation.guided_sampling import GuidedSampler


# What stands below the options in `--help`.
_ROWS_HELP = (
    "rows: "
    + "; ".join(f"{name}: {title}" for name, title in FIXED_ROWS.items())
    + "; peer:dm[:OPTION=VALUE,…]: images that distribution matching makes of the real tiles, with "
    + ", ".join(option.name for option in dataclasses.fields(MatchingConfig))
    + "; guided:modes[:OPTION=VALUE,…] and guided:repulsion[:OPTION=VALUE,…]: images that the run's pipeline samples "
    "for the row, drawn to modes of the pool or repelling each other, with "
    + ", ".join(option.name for option in dataclasses.fields(GuidedConfig))
    + "; SELECTOR[:OPTION=VALUE,…] with a selector and options of histodistill select, as in infomap:quota=sqrt, "
    "but without drop_copies and copy_embedders, since rows choose from the whole pool, copies of real tiles "
    "included. Each may end in @OPTION=VALUE,… with options of the recipe: "
    + ", ".join(RECIPE_OPTIONS)
    + ". With --protocol infodist: "
    + "; ".join(f"{name}: {title}" for name, title in INFODIST_TILES.items())
    + ". Each may end in @ and one of "
    + "; ".join(filter(None, INFODIST_RECIPES))
)


def _plan_text(architecture: str, steps: Sequence[int]) -> str:
    return f"{architecture}:{','.join(map(str, steps))}"


# What the whole table trains, and what --quick does of it.
_USUAL_TRAIN = (
    *(_plan_text(architecture, LADDER) for architecture in ("convnet", "resnet18", "vit")),
    *(f"{PROBE}{name}" for name in COLOURS),
)
_QUICK_LADDER, _QUICK_SEEDS = LADDER[:2], (0, 1)


@config
class ResultsTableConfig(SourceOptions):
    """Options of `benchmark`; those of the cells may differ from call to call, and the table grows."""

    run: Path = option(
        "folder with pool/ and teacher/, and for guided rows pipeline/", positional=True, metavar="RUN", setting=False
    )
    data: str | Path = option("the real tiles: the source that the run was made from", setting=False)
    image_size: int | None = option("side in pixels; default: the size tiles have", default=None, setting=False)
    protocol: str = option(
        "v2 is the table of this project; infodist is one by the selection and the recipe of InfoDist",
        default="v2",
        choices=PROTOCOLS,
        setting=False,
    )
    output: Path | None = option(
        "folder for the result; default: RUN/benchmark, or RUN/benchmark/infodist", default=None, setting=False
    )
    rows: tuple[str, ...] | None = option(
        "what classifiers are trained on", default=None, metavar="ROW", setting=False
    )
    sizes: tuple[int, ...] | None = option("images per class", default=None, at_least=1, setting=False)
    train: tuple[str, ...] | None = option(
        "what to train for how many steps, with what in place of the recipe's options; ARCHITECTURE is what "
        "train_classifier takes; a probe knows no steps: probe:ENCODER[@OPTION=VALUE,…]; default: "
        f"{', '.join(_USUAL_TRAIN)}",
        default=None,
        metavar="ARCHITECTURE:STEPS[,STEPS…][@OPTION=VALUE,…]",
        setting=False,
    )
    quick: bool = option(
        f"headline rows with the ConvNet, {' and '.join(map(str, QUICK_SIZES))} images per class, two seeds, at most "
        f"{_QUICK_LADDER[-1]:,} steps",
        default=False,
        setting=False,
    )
    recipe: tuple[str, ...] = option(
        "options of the recipe, for all rows", default=(), metavar="OPTION=VALUE", setting=False
    )
    embedder: str | Path = option("as for histodistill select", default="untrained")
    also: tuple[Path, ...] = option(
        "further runs on the same tiles, distillations with other seeds: the seeds take the runs in turn",
        default=(),
        metavar="RUN",
        setting=False,
    )
    seeds: tuple[int, ...] | None = option(
        "one training each; default: five of headline rows with the ConvNet, else three",
        default=None,
        at_least=0,
        setting=False,
    )
    batch_size: int = like(CellsConfig, "batch_size", default=TablePlan.batch_size, setting=False)
    whole_batch_size: int = option(
        "the same of all real tiles and of the whole pool",
        default=TablePlan.whole_batch_size,
        at_least=1,
        setting=False,
    )
    mixed_precision: str = like(CellsConfig, "mixed_precision")
    jobs: int | None = option(
        "trainings at a time, each in a process of its own; default: one for each GPU, or else for each core",
        default=None,
        at_least=1,
        setting=False,
    )
    epochs: int | None = option(
        "of --protocol infodist: fewer epochs than its 1,000, which the table then tells",
        default=None,
        at_least=1,
        setting=False,
    )
    published: Path | None = option(
        "of --protocol infodist: CSV file with the columns row,metric,value, whose figures stand beside those of "
        f"{PUBLISHED_SIZE} images per class and of all",
        default=None,
        metavar="FILE",
        setting=False,
    )

    def check(self) -> None:
        """Reads rows, classifiers and recipe, and checks that nothing is named twice."""
        require_once("sizes", self.sizes or ())
        require_once("seeds", self.seeds or ())
        require_once("also", self.runs)
        if self.quick and self.train is not None:
            raise InputError(f"{param('quick')} says what to train: give {param('train')}, or {param('quick')}")
        if self.rows is not None and len(set(self.rows)) < len(self.rows):
            raise InputError(f"{param('rows')} names a row twice: name each once")
        check_protocol(self)
        if self.protocol == "v2":
            _ = self.lines  # reading them is checking them

    @property
    def runs(self) -> tuple[Path, ...]:
        """The folder of the run, and of further ones."""
        return (self.run, *self.also)

    @functools.cached_property
    def folder(self) -> Path:
        """The folder for the result."""
        usual = self.run / "benchmark"
        return self.output or (usual if self.protocol == "v2" else usual / self.protocol)

    def claims(self) -> Path:
        """The same."""
        return self.folder

    @functools.cached_property
    def lines(self) -> list[Line]:
        """The lines of the table that this call asks for, by the protocol v2."""
        train, rows, sizes, seeds = self.train or _USUAL_TRAIN, self.rows, self.sizes, self.seeds
        if self.quick:
            train, rows = (_plan_text("convnet", _QUICK_LADDER),), rows or HEADLINE_ROWS
            sizes, seeds = sizes or QUICK_SIZES, seeds or _QUICK_SEEDS
        plan = TablePlan(
            train=train,
            rows=rows,
            sizes=sizes,
            seeds=seeds,
            recipe=self.recipe,
            batch_size=self.batch_size,
            whole_batch_size=self.whole_batch_size,
        )
        return plan.lines(self.run)


def make_parser() -> StepParser[ResultsTableConfig]:
    """The parser of the command line."""
    return StepParser(ResultsTableConfig, prog="histodistill benchmark", description=__doc__, epilog=_ROWS_HELP)


@claiming
def run(config: ResultsTableConfig) -> dict[str, Any]:
    """Trains the cells that are missing, several at a time, and writes the table of all that are there.

    Returns:
        What benchmark.json holds: the name of the data, the classes, the rows as `results_summary.summarise` returns
        them, and notes on what was left out. By the protocol infodist what infodist.json holds.

    Raises:
        InputError: For a run or tiles that do not fit, a selector's refusal of its options, a folder of another table
            or of cells of another recipe, or a process that was killed.
    """
    if config.protocol == "infodist":
        from histodistill.training.tables.infodist_protocol import run_infodist

        return run_infodist(config)

    from histodistill.training.data.image_dataset import open_image_table
    from histodistill.training.data.sources import load_tiles
    from histodistill.training.running.stages import Stage, require_parts

    records = [require_parts(run, "pool", "teacher") for run in config.runs]
    source = load_tiles(config.data, image_size=config.image_size, **config.source_options(config.run))

    from histodistill.training.distillation.pool_selection import make_selector
    from histodistill.training.engine.accelerator import make_accelerator
    from histodistill.training.engine.scoring import auc_note
    from histodistill.training.evaluation.cells import check_same_kind
    from histodistill.training.models.embedders import embedder_fingerprint
    from histodistill.training.tables.cell_processes import train_cells
    from histodistill.training.tables.results_summary import SPLITS
    from histodistill.training.tables.schedule import Schedule
    from histodistill.training.tables.table_inputs import inputs_file, needed_inputs, write_inputs

    for split in SPLITS:
        source.split(split)
    pools = [open_image_table(run / "pool") for run in config.runs]
    for run, pool in zip(config.runs, pools, strict=True):
        check_same_kind(run / "pool", pool.images, pool.class_names, source)
    first, *others = ({part: record[part]["fingerprint"] for part in ("pool", "teacher")} for record in records)
    # Rows, sizes, seeds and classifiers may be added; what would change a cell may not.
    settings = {
        "stage": "benchmark",
        "data": source.fingerprint(),
        **first,
        **({"also": others} if others else {}),
        **config.settings(),
        "embedder": embedder_fingerprint(config.embedder),
    }
    inputs = {
        name if number == 0 else f"{name} {number}": run / name
        for number, run in enumerate(config.runs)
        for name in ("pool", "teacher")
    }
    stage = Stage(config.folder, settings, remedy=f"give another {param('output')}, or delete it", inputs=inputs)
    make_accelerator(config.mixed_precision)  # refuses what this machine cannot do
    for cell in (line.first for line in config.lines):
        if cell.size is not None and cell.row.options is not None:
            make_selector(cell.row.selection(cell.size, seed=0))  # refuses what the selector does not take
    samplers = make_samplers(config)
    schedule = Schedule(config.lines, check_kept(config.lines, config.folder))
    stage.begin()  # before anything is kept that is of these settings alone
    for number, (run, pool) in enumerate(zip(config.runs, pools, strict=True)):
        write_inputs(
            inputs_file(config.folder, number), needed_inputs(config.lines), config.embedder, run / "teacher",
            pool.images, source.split("train").images,
        )  # fmt: skip
    make_peers(config.folder, config.lines, source.split("train"))
    make_guided_sets(config.folder, config.lines, samplers)

    notes = train_cells(config, schedule, stage) if schedule.remaining() else []
    for split in SPLITS:
        if note := auc_note(split, source.split(split).labels, source.class_names):
            notes.append(note)
    if others:
        notes.append(f"the seeds take the pools of {len(config.runs)} distillations in turn")
    kept = kept_cells(config.folder, list(dict.fromkeys(line.first.row.name for line in config.lines)))
    results = write_table(config.folder, kept, source.name, source.class_names, notes)
    stage.finish(num_cells=len(kept))
    print(f"benchmark: saved to {config.folder}")
    return results


def make_peers(folder: Path, lines: Sequence[Line], real: Tiles) -> None:
    """Makes the images of peers that lines need and that are not there yet.

    Args:
        folder: Of the table.
        lines: Of the table.
        real: The real training tiles.
    """
    from histodistill.training.distillation.made_sets import made_set_file
    from histodistill.training.distillation.peers import PEER_FOLDER, make_peer

    for row, size, seed in _sets_of(lines):
        if row.peer is not None:
            make_peer(made_set_file(folder, PEER_FOLDER, row.file_name, size, seed), real, size, seed, row.peer)


def make_samplers(config: ResultsTableConfig) -> list[GuidedSampler]:
    """What samples guided rows, of each run; none where there is no such row.

    Raises:
        InputError: For a run without the pipeline that its pool was made with.
    """
    if all(line.first.row.guided is None for line in config.lines):
        return []
    from histodistill.training.distillation.guided_sampling import GuidedSampler

    return [GuidedSampler(run) for run in config.runs]


def make_guided_sets(folder: Path, lines: Sequence[Line], samplers: Sequence[GuidedSampler]) -> None:
    """Samples the guided images that lines need and that are not there yet.

    Args:
        folder: Of the table.
        lines: Of the table.
        samplers: See `make_samplers`; the seeds take them in turn.
    """
    from histodistill.training.distillation.guided_sampling import GUIDED_FOLDER, make_guided
    from histodistill.training.distillation.made_sets import made_set_file

    for row, size, seed in _sets_of(lines):
        if row.guided is not None:
            file = made_set_file(folder, GUIDED_FOLDER, row.file_name, size, seed)
            make_guided(file, samplers[seed % len(samplers)], size, seed, row.guided)


def _sets_of(lines: Sequence[Line]) -> Iterator[tuple[Row, int, int]]:
    """The row, images per class and seed of each set that lines train on, but for rows of fixed size."""
    for line in lines:
        if line.first.size is not None:
            for seed in line.seeds:
                yield line.first.row, line.first.size, seed


def write_table(
    folder: Path, cells: list[dict[str, Any]], data: str, class_names: list[str], notes: list[str]
) -> dict[str, Any]:
    """Sums up the cells, writes benchmark.json, benchmark.md and the figures, and prints the first table.

    Args:
        folder: Of the table.
        cells: As `kept_cells` returns them.
        data: Name of the data.
        class_names: Names of the labels.
        notes: Why cells were left out, and what is to be known of the scores.

    Returns:
        What benchmark.json holds.
    """
    from histodistill.training.evaluation.verdicts import BENCHMARK
    from histodistill.training.running.files import write_bytes, write_json, write_text
    from histodistill.training.tables.results_figures import draw_results
    from histodistill.training.tables.results_summary import SPLITS, markdown_table, summarise

    table = summarise(cells)
    results = {"data": data, "class_names": class_names, "rows": table, "notes": notes}
    write_json(folder / Path(BENCHMARK).name, results)
    texts = [f"## {split.capitalize()} tiles\n\n{markdown_table(table, split)}" for split in SPLITS]
    write_text(folder / "benchmark.md", "\n".join(texts))
    for name, png in draw_results(table, cells, class_names).items():
        write_bytes(folder / name, png)
    print(texts[0])
    return results


if __name__ == "__main__":
    run_script(make_parser, run)
