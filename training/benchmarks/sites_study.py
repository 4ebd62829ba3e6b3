"""Compares ways of learning from several sites that may not share their tiles, with sites simulated from one source.

    python -m histodistill.training.benchmarks.sites_study --data my_tiles.npz --output runs/sites --preset cpu

The training tiles are split over sites with unequal class shares. Each site distils its own tiles: every stage from
the autoencoder to the selection, and no audit. The options are the preset's, but for those that --autoencoder-steps,
--diffusion-steps, --teacher-steps, --per-class and --n-per-class give. Then classifiers are trained, a row each, on

    merged        the distilled sets of all sites
    distilled-N   the distilled set of site N alone
    site-N        the real tiles of site N alone
    pooled        the real tiles of all sites together
    sampled       random ones of them, as many of each class as merged has, or as the rarest class has if it has fewer
    federated     the real tiles of all sites by federated averaging

all with the same recipe and the same number of steps, scored on the same validation and test tiles; `sites` is the
mean of site-N. Validation tiles are those of the source, for every site. What is finished is kept, so a killed
benchmark goes on where it was. Leaves `sites.json` and `sites.md` in the output folder.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from histodistill.selection.communities import LARGEST_RANDOM_STATE
from histodistill.training.benchmarks.sites import federated_averaging, split_over_sites
from histodistill.training.commands.compare import add_cell_options, check_cell_options
from histodistill.training.data.image_dataset import read_image_dataset
from histodistill.training.data.sources import load_tiles
from histodistill.training.data.tiles import Tiles, TileSource, sample_per_class
from histodistill.training.end_to_end import distill
from histodistill.training.engine.accelerator import make_accelerator
from histodistill.training.engine.classifier_config import ClassifierConfig
from histodistill.training.engine.scoring import predict_shared, score_probabilities
from histodistill.training.evaluation.cells import METRICS, read_cell, spread, train_cell
from histodistill.training.running.files import write_json, write_text
from histodistill.training.running.launch import run_module
from histodistill.training.running.options import HelpFormatter, check_option, fail, run_script
from histodistill.training.running.presets import PRESETS, to_argv
from histodistill.training.running.stages import Stage, is_complete
from histodistill.training.tables.results_summary import SPLITS, paired_margin


# What each site trains.
TRAINED = {"autoencoder": "autoencoder", "diffusion": "denoiser", "teacher": "teacher"}
# The row that margins are over.
MERGED = "merged"


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Reads and checks the command line; ends with code 2 and one sentence where it is wrong."""
    parser = argparse.ArgumentParser(
        prog="benchmark_sites", description=__doc__, allow_abbrev=False, formatter_class=HelpFormatter
    )
    parser.add_argument("--data", required=True, help="the real tiles: any source with a validation and a test split")
    parser.add_argument("--output", type=Path, required=True, help="folder for the sites and the result")
    parser.add_argument("--image-size", type=int, default=None, help="side in pixels; default: the size tiles have")
    parser.add_argument("--sites", type=int, default=4, help="number of sites")
    parser.add_argument("--concentration", type=float, default=0.3, help="of the Dirichlet distribution of the shares")
    parser.add_argument("--min-per-class", type=int, default=20, help="tiles that a site has of each class, at least")
    parser.add_argument("--preset", choices=list(PRESETS), default="cpu", help="of the distillation at each site")
    for stage, model in TRAINED.items():
        parser.add_argument(
            f"--{stage}-steps", type=int, default=None, help=f"steps of the {model} of each site; default: preset"
        )
    parser.add_argument("--per-class", type=int, default=None, help="pool images of each class; default: preset")
    parser.add_argument("--n-per-class", type=int, default=100, help="distilled images of each class and site")
    parser.add_argument("--rounds", type=int, default=10, help="of federated averaging")
    parser.add_argument("--split-seed", type=int, default=0, help="seed of the split over sites, and of distillation")
    parser.add_argument("--train", default="convnet:600", metavar="ARCHITECTURE:STEPS", help="classifier to train")
    add_cell_options(parser)
    parser.set_defaults(batch_size=32, seeds=[0, 1, 2, 3, 4])
    args = parser.parse_args(argv)
    check_option(args, "sites", args.sites >= 2, "it must be at least 2")
    check_option(args, "concentration", args.concentration > 0, "it must be above 0")
    for name in ("min_per_class", "n_per_class", "rounds"):
        check_option(args, name, getattr(args, name) >= 1, "it must be at least 1")
    for name in (*(f"{stage}_steps" for stage in TRAINED), "per_class"):
        check_option(args, name, getattr(args, name) is None or getattr(args, name) >= 1, "it must be at least 1")
    rule = f"0 to {LARGEST_RANDOM_STATE}, the largest that a selector takes"
    check_option(args, "split_seed", 0 <= args.split_seed <= LARGEST_RANDOM_STATE, f"it must be {rule}")
    if args.train.count(":") > 1:
        fail(f"--train={args.train}: write ARCHITECTURE:STEPS, as in convnet:600")
    args.train = [args.train]
    check_cell_options(args, [])
    check_option(args, "seeds", max(args.seeds) <= LARGEST_RANDOM_STATE, f"each must be {rule}")
    steps = args.plan[0][1]
    if steps % args.rounds:
        fail(f"--rounds={args.rounds} does not divide the {steps} steps of --train: give numbers that do")
    return args


def distil_site(args: argparse.Namespace, folder: Path, source: TileSource, own: Tiles) -> Tiles:
    """Distils the tiles of one site in `folder`, where that is not done yet, and returns the distilled set."""
    tiles = folder / "tiles.npz"
    if not tiles.is_file():
        arrays: dict[str, np.ndarray] = {"class_names": np.array(source.class_names)}
        for name, split in (("train", own), ("val", source.split("validation")), ("test", source.split("test"))):
            arrays |= {f"{name}_images": split.images, f"{name}_labels": split.labels[:, None]}
        folder.mkdir(parents=True, exist_ok=True)
        np.savez(folder / ".tiles.tmp.npz", **arrays)
        (folder / ".tiles.tmp.npz").replace(tiles)
    options = {"data": tiles, "output": folder / "run", "preset": args.preset, "n_per_class": args.n_per_class}
    options |= {"seed": args.split_seed, "mixed_precision": args.mixed_precision}
    # No audit follows, so no tile is kept from the models for it.
    options |= {"num_processes": args.num_processes, "audit_share": 0}
    if args.per_class is not None:
        options["per_class"] = args.per_class
    site = distill.parse_args(to_argv(options))
    steps = {stage: getattr(args, f"{stage}_steps") for stage in TRAINED}
    run = distill.open_run(site, {stage: number for stage, number in steps.items() if number is not None})
    for stage in distill.stages(site, run):
        if stage.folder in ("audit", "comparison") or is_complete(site.output / stage.folder):
            continue
        print(f"{folder.name}: {stage.title}", flush=True)
        run_module(stage.module, stage.argv, stage.num_processes)
    images, columns, _ = read_image_dataset(site.output / "distilled")
    return Tiles(images, columns["label"])


def join(parts: list[Tiles]) -> Tiles:
    """Tiles of several sites as one set."""
    return Tiles(np.concatenate([part.images for part in parts]), np.concatenate([part.labels for part in parts]))


def main(args: argparse.Namespace) -> None:
    """Distils at every site, trains what is missing, and writes the table."""
    source = load_tiles(args.data, image_size=args.image_size)
    for split in SPLITS:
        source.split(split)
    train = source.split("train")
    parts = split_over_sites(train.labels, args.sites, args.concentration, args.split_seed, args.min_per_class)
    architecture, steps, _ = args.plan[0]
    recorded = ["sites", "concentration", "min_per_class", "preset", *(f"{stage}_steps" for stage in TRAINED)]
    recorded += ["per_class", "n_per_class", "rounds", "split_seed", "train", "batch_size", "mixed_precision"]
    settings = {"stage": "sites", "data": source.fingerprint(), **{name: getattr(args, name) for name in recorded}}
    stage = Stage(args.output, settings, remedy="give another --output, or delete it")
    stage.begin()

    real = [train.subset(part) for part in parts]
    counts = [np.bincount(site.labels, minlength=len(source.class_names)).tolist() for site in real]
    distilled = []
    for number, site in enumerate(real, 1):
        distilled.append(distil_site(args, args.output / f"site-{number}", source, site))
        stage.save_progress()
    merged = join(distilled)
    # As many real tiles as the merged sets hold, or as there are.
    as_many = min(args.sites * args.n_per_class, int(np.bincount(train.labels).min()))
    accelerator = make_accelerator(args.mixed_precision)
    cells = []
    for seed in args.seeds:
        config = ClassifierConfig(
            architecture=architecture,
            seed=seed,
            max_train_steps=steps,
            batch_size=args.batch_size,
            validation_steps=steps,
        )
        sampled = sample_per_class(train.labels, as_many, seed)
        rows = {
            "pooled": train,
            MERGED: merged,
            "sampled": train.subset(sampled),
            **{f"site-{number}": site for number, site in enumerate(real, 1)},
            **{f"distilled-{number}": site for number, site in enumerate(distilled, 1)},
            "federated": None,
        }
        for row, tiles in rows.items():
            path = args.output / "cells" / f"{row}-seed{seed}.json"
            cell = read_cell(path)
            if cell is None:
                print(f"{row}, seed {seed}", flush=True)
                score_on = {split: source.split(split) for split in SPLITS}
                if tiles is None:
                    cell = federated_cell(path, config, real, score_on, accelerator, source.class_names, args.rounds)
                else:
                    cell = train_cell(path, row, config, tiles, None, score_on, accelerator, source.class_names)
                stage.save_progress()
            cells.append(cell)
    table = summarise_sites(cells)
    write_json(
        args.output / "sites.json",
        {"data": source.name, "class_names": source.class_names, "tiles_per_site": counts, "rows": table},
    )
    text = site_table(counts, source.class_names) + "\n" + score_table(table, titles(args, as_many))
    write_text(args.output / "sites.md", text)
    stage.finish(num_cells=len(cells))
    print(text)


def federated_cell(
    path: Path,
    config: ClassifierConfig,
    sites: list[Tiles],
    score_on: dict[str, Tiles],
    accelerator: Any,
    class_names: list[str],
    num_rounds: int,
) -> dict[str, Any]:
    """Trains by federated averaging, scores, and writes the cell."""
    model = federated_averaging(config, sites, accelerator, class_names=class_names, num_rounds=num_rounds)
    cell = {
        "row": "federated",
        "seed": config.seed,
        "num_train": sum(map(len, sites)),
        **{
            split: score_probabilities(predict_shared(model, tiles.images, accelerator), tiles.labels)
            for split, tiles in score_on.items()
        },
        "config": asdict(config),
    }
    write_json(path, cell)
    return cell


def summarise_sites(cells: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """For each row its scores over seeds, and how much higher (`margin`) the merged distilled sets score.

    The mean of all sites alone follows as `sites`, seed by seed.
    """
    by_row: dict[str, dict[int, dict]] = {}
    for cell in cells:
        by_row.setdefault(cell["row"], {})[cell["seed"]] = cell
    alone = [row for row in by_row if row.startswith("site-")]
    values: dict[str, dict[tuple[str, str], list]] = {
        row: {
            (split, metric): [cell[split][metric] for cell in mine.values()] for split in SPLITS for metric in METRICS
        }
        for row, mine in by_row.items()
    }
    values["sites"] = {
        which: [None if None in scores else float(np.mean(scores)) for scores in zip(*per_site, strict=True)]
        for which in values[MERGED]
        for per_site in [[values[row][which] for row in alone]]
    }
    rows = []
    for row, scores in values.items():
        record: dict[str, Any] = {"row": row, "seeds": list(next(iter(by_row.values())))}
        record["num_train"] = next(iter(by_row[row].values()))["num_train"] if row in by_row else None
        for split in SPLITS:
            record[split] = {metric: spread(scores[split, metric]) for metric in METRICS}
            merged, mine = (np.array(values[name][split, "accuracy"]) for name in (MERGED, row))
            record[split]["margin"] = None if row == MERGED else paired_margin(merged, mine)
        rows.append(record)
    return rows


def titles(args: argparse.Namespace, as_many: int) -> dict[str, str]:
    """What the rows are called, where `sampled` has `as_many` tiles of each class."""
    is_cut = as_many < args.sites * args.n_per_class
    named = {
        "pooled": "all real tiles of all sites together",
        MERGED: "the merged distilled sets",
        "sampled": "random real tiles of all sites together, "
        + (f"{as_many} of each class, as the rarest has no more" if is_cut else "as many as merged"),
        "federated": f"federated averaging, {args.rounds} rounds",
        "sites": "the real tiles of one site, mean over sites",
    }
    for number in range(1, args.sites + 1):
        named[f"site-{number}"] = f"the real tiles of site {number}"
        named[f"distilled-{number}"] = f"the distilled set of site {number}"
    return named


def site_table(counts: list[list[int]], class_names: list[str]) -> str:
    """How many tiles of each class each site has, as Markdown."""
    lines = [f"| tiles | {' | '.join(class_names)} | all |", "|" + "---|" * (len(class_names) + 2)]
    for number, mine in enumerate(counts, 1):
        lines.append(f"| site {number} | {' | '.join(map(str, mine))} | {sum(mine)} |")
    return "\n".join(lines) + "\n"


def score_table(rows: list[dict[str, Any]], named: dict[str, str]) -> str:
    """The scores of all rows as Markdown, validation tiles and then test tiles."""
    blocks = []
    for split in SPLITS:
        lines = [
            f"| trained on, {split} tiles | images | ACC | AUC | macro F1 | ACC of merged over it, 95 % interval |",
            "|---|---|---|---|---|---|",
        ]
        for row in rows:
            cells = []
            for metric in METRICS:
                score = row[split][metric]
                deviation = "" if score["std"] is None else f" ± {score['std']:.3f}"
                cells.append("–" if score["mean"] is None else f"{score['mean']:.3f}{deviation}")
            margin = row[split]["margin"]
            text = "" if margin is None else f"{margin['mean']:+.3f}"
            if margin is not None and margin["low"] is not None:
                text += f" ({margin['low']:+.3f} to {margin['high']:+.3f})"
            images = row["num_train"] or ""
            lines.append(f"| {named[row['row']]} | {images} | {' | '.join(cells)} | {text} |")
        blocks.append("\n".join(lines) + "\n")
    return "\n".join(blocks)


if __name__ == "__main__":
    run_script(parse_args, main)
