"""Makes the results table: classifiers trained on real tiles and on what each selector chooses, scored on real tiles.

    histodistill benchmark runs/mine --data my_tiles.npz

    histodistill benchmark runs/mine --data my_tiles.npz --train convnet:600 --sizes 10 50 \\
        --rows real_random random infomap:quota=sqrt kernel_herding@loss=joint,stain_strength=0.1

Without --rows, --sizes and --train it makes the whole table. Every row has the same recipe and number of optimizer
steps, but for what a row changes after its @. The last step counts, so validation tiles play no part in a training and
are scored beside the test tiles. A seed is that of the selection and of the training. Trainings run in several
processes and are kept, so a killed benchmark goes on where it was, and rows, sizes, seeds and classifiers can be added
by further calls. Leaves `RUN/benchmark/` with benchmark.json, benchmark.md and figures, of all that was ever trained
there; margins over random choice are paired by seed.
"""

from __future__ import annotations

import argparse
import hashlib
import re
from dataclasses import dataclass, field, fields
from pathlib import Path

from histodistill.selection import SELECTOR_NAMES
from histodistill.training.commands.compare import check_cell_options
from histodistill.training.commands.select import add_selector_options, check_selector_options
from histodistill.training.engine.classifier_config import ClassifierConfig
from histodistill.training.running.errors import InputError
from histodistill.training.running.launch import run_module, usable_cores
from histodistill.training.running.options import HelpFormatter, check_option, fail


# Rows whose tiles are not selected, and what they are.
FIXED_ROWS = {
    "real_all": "all real training tiles",
    "pool_all": "the whole pool",
    "real_random": "random real training tiles",
}
# Those that do not depend on the number of images per class.
WHOLE_ROWS = ("real_all", "pool_all")
# The rows of the whole table: for the ConvNet all, for the classifiers that take longer those that matter most.
MAIN_ROWS = (
    "real_all",
    "real_random",
    "random",
    "kernel_herding",
    "kernel_herding@loss=joint",
    "kernel_herding@soft_label_weight=1",
)
DEFAULT_ROWS = {
    "convnet": (
        "real_all",
        "pool_all",
        "real_random",
        *SELECTOR_NAMES,
        *MAIN_ROWS[4:],
        *(f"{row}@stain_strength=0" for row in ("real_all", "real_random", "kernel_herding")),
        *(f"{row}@normalize_stain=1" for row in ("real_all", "real_random", "kernel_herding")),
    ),
    "resnet18": MAIN_ROWS,
    "vit": MAIN_ROWS,
}
DEFAULT_SIZES = {"convnet": (10, 50, 100), "resnet18": (10, 100), "vit": (100,)}
DEFAULT_TRAIN = ("convnet:600", "resnet18:300", "vit:600")
# Options of `histodistill select` that no row takes: rows choose from the whole pool, copies of real tiles included.
_COPY_OPTIONS = ("drop_copies", "copy_embedders")
# Characters of a row in a file's name: file systems take 255 bytes, and more comes before and after it.
_LONGEST_NAME = 120
# What a row may change of the recipe. The rest is the same for all: network, budget, and what is measured.
FIXED_OPTIONS = (
    "architecture",
    "width",
    "max_train_steps",
    "batch_size",
    "gradient_accumulation_steps",
    "validation_steps",
    "validation_tiles",
    "seed",
)
RECIPE_OPTIONS = {
    option.name: option.type.removesuffix(" | None")
    for option in fields(ClassifierConfig)
    if option.name not in FIXED_OPTIONS
}


@dataclass(frozen=True)
class Row:
    """What classifiers are trained on, and how.

    Attributes:
        tiles: One of `FIXED_ROWS`, or the row's selector with its options, as the user wrote them.
        options: The options of `histodistill select` that `tiles` stands for; None for a row that is not selected.
        recipe: What the row changes of the recipe.
    """

    tiles: str
    options: argparse.Namespace | None
    recipe: dict[str, object] = field(default_factory=dict)


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Reads and checks the command line; ends with code 2 and one sentence where it is wrong.

    `plan` holds a configuration (of seed 0), the name of a row and the images per class (None for a row of fixed size)
    for each line of the table; `specs` a `Row` by its name.
    """
    parser = argparse.ArgumentParser(
        prog="histodistill benchmark",
        description=__doc__,
        epilog="rows: "
        + "; ".join(f"{name}: {title}" for name, title in FIXED_ROWS.items())
        + "; SELECTOR[:OPTION=VALUE,…] with a selector and options of histodistill select, as in infomap:quota=sqrt, "
        "but without drop_copies and copy_embedders, since rows choose from the whole pool, copies of real tiles "
        "included. Each may end in @OPTION=VALUE,… with options of the recipe: " + ", ".join(RECIPE_OPTIONS),
        allow_abbrev=False,
        formatter_class=HelpFormatter,
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="folder with pool/ and teacher/")
    parser.add_argument("--data", required=True, help="the real tiles: the source that the run was made from")
    parser.add_argument("--image-size", type=int, default=None, help="side in pixels; default: the size tiles have")
    parser.add_argument("--output", type=Path, default=None, help="folder for the result; default: RUN/benchmark")
    parser.add_argument("--rows", nargs="+", default=None, metavar="ROW", help="what classifiers are trained on")
    parser.add_argument("--sizes", type=int, nargs="+", default=None, help="images per class")
    parser.add_argument(
        "--train",
        nargs="+",
        default=list(DEFAULT_TRAIN),
        metavar="ARCHITECTURE:STEPS[@OPTION=VALUE,…]",
        help="what to train for how many steps, with what in place of the recipe's options",
    )
    parser.add_argument(
        "--recipe", nargs="+", default=[], metavar="OPTION=VALUE", help="options of the recipe, for all rows"
    )
    parser.add_argument("--embedder", default="untrained", help="as for histodistill select")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4], help="one training each")
    parser.add_argument("--batch-size", type=int, default=32, help="tiles per batch")
    parser.add_argument("--mixed-precision", choices=["no", "bf16", "fp16"], default="bf16", help="fp16 needs a GPU")
    parser.add_argument(
        "--jobs", type=int, default=usable_cores(), help="trainings at a time, each in one process of so many threads"
    )
    args = parser.parse_args(argv)
    check_option(args, "jobs", args.jobs >= 1, "it must be at least 1")
    if args.sizes is not None:
        check_option(args, "sizes", min(args.sizes) >= 1, "each must be at least 1")
        check_option(args, "sizes", len(set(args.sizes)) == len(args.sizes), "each may be named once")
    args.recipe = parse_recipe(args.recipe, "--recipe")
    classifier_recipes = {}
    for place, text in enumerate(args.train):
        classifier, at, recipe = text.partition("@")
        if classifier.count(":") > 1:
            fail(f"--train={text}: write ARCHITECTURE:STEPS, as in convnet:600; --rows says what to train on")
        changes = parse_recipe(recipe.split(",") if at else [], f"--train {text}")
        classifier_recipes[classifier.partition(":")[0]] = {**args.recipe, **changes}
        args.train[place] = classifier
    args.num_processes = 1
    check_cell_options(args, [])
    if args.rows is not None and len(set(args.rows)) < len(args.rows):
        fail("--rows names a row twice: name each once")
    args.specs, plan = {}, []
    for architecture, steps, _ in args.plan:
        for row in args.rows or DEFAULT_ROWS[architecture]:
            spec = args.specs.setdefault(row, parse_row(row))
            recipe = {**classifier_recipes[architecture], **spec.recipe}
            try:
                config = ClassifierConfig(
                    **recipe,
                    architecture=architecture,
                    max_train_steps=steps,
                    batch_size=args.batch_size,
                    validation_steps=steps,
                )
            except InputError as error:
                fail(f"--rows {row}: {error}")
            sizes = [None] if spec.tiles in WHOLE_ROWS else args.sizes or DEFAULT_SIZES[architecture]
            plan += [(config, row, size) for size in sizes]
    args.plan = plan
    args.output = args.output or args.run / "benchmark"
    return args


def parse_row(row: str) -> Row:
    """Reads a row; ends with code 2 and one sentence where it is wrong."""
    tiles, at, recipe = row.partition("@")
    changes = parse_recipe(recipe.split(",") if at else [], f"--rows {row}")
    if tiles in FIXED_ROWS:
        return Row(tiles, None, changes)
    selector, _, rest = tiles.partition(":")
    argv = ["--selector", selector]
    for item in rest.split(",") if rest else []:
        name, equals, value = item.partition("=")
        if name.replace("-", "_") in _COPY_OPTIONS:
            fail(f"--rows {row}: {item!r} cannot be given, since rows choose from the whole pool: leave it out")
        if not equals or name == "selector":
            fail(f"--rows {row}: {item!r} is not OPTION=VALUE: write a row as in infomap:quota=sqrt,n_neighbors=10")
        argv += [f"--{name.replace('_', '-')}", value]
    parser = _RowParser(prog=f"--rows {row}", add_help=False, allow_abbrev=False)
    add_selector_options(parser)
    options = parser.parse_args(argv)
    check_selector_options(options)
    return Row(tiles, options, changes)


def parse_recipe(items: list[str], where: str) -> dict[str, object]:
    """Reads `OPTION=VALUE` items of the recipe; ends with code 2 and one sentence where one is wrong."""
    recipe = {}
    for item in items:
        name, equals, value = item.partition("=")
        name = name.replace("-", "_")
        if not equals or name not in RECIPE_OPTIONS:
            fail(f"{where}: {item!r} is not OPTION=VALUE with one of {', '.join(RECIPE_OPTIONS)}")
        if name in recipe:
            fail(f"{where} names {name} twice: name it once")
        kind = RECIPE_OPTIONS[name]
        try:
            recipe[name] = _READERS[kind](value)
        except (LookupError, ValueError):
            fail(f"{where}: {item!r} must be a number" + (", 0 or 1" if kind == "bool" else ""))
    return recipe


_READERS = {"int": int, "float": float, "str": str, "bool": {"0": False, "1": True}.__getitem__}


class _RowParser(argparse.ArgumentParser):
    def error(self, message: str) -> None:
        fail(f"{self.prog}: {message}")


def file_name(row: str) -> str:
    """A row's name as part of a file's name; rows that differ have names that differ."""
    plain = re.sub(r"[^\w.]+", "-", row)[:_LONGEST_NAME]
    return plain if plain == row else f"{plain}-{hashlib.sha256(row.encode()).hexdigest()[:8]}"


def main(argv: list[str]) -> None:
    """Checks the options, then runs `histodistill.training.tables.results_table` with them."""
    parse_args(argv)
    run_module("histodistill.training.tables.results_table", argv)
