from __future__ import annotations

import json
import os
import pickle
import re
import shutil
from concurrent.futures import Executor, Future
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from histodistill.hub_cards.tables import encode_soft_label_views
from histodistill.selection import SELECTOR_NAMES, FixedViews
from histodistill.training import cli
from histodistill.training.data.image_dataset import read_image_dataset
from histodistill.training.data.sources import load_tiles
from histodistill.training.data.tiles import Tiles, sample_per_class
from histodistill.training.distillation.guided_options import ModesConfig, RepulsionConfig
from histodistill.training.distillation.guided_sampling import GuidedSampler, read_guided
from histodistill.training.distillation.made_sets import made_set_file
from histodistill.training.distillation.peer_options import MatchingConfig
from histodistill.training.distillation.peers import make_peer, read_peer
from histodistill.training.distillation.selector_options import SelectorConfig
from histodistill.training.engine.classifier_config import ClassifierConfig, recorded_recipe
from histodistill.training.models.classifiers import Classifier
from histodistill.training.models.devices import gpu_names
from histodistill.training.models.prediction import predict_proba
from histodistill.training.running.errors import InputError
from histodistill.training.running.files import read_json, write_json
from histodistill.training.running.options import run_script
from histodistill.training.running.stages import read_record
from histodistill.training.tables import cell_processes, cell_workers, table_inputs
from histodistill.training.tables import results_table as script
from histodistill.training.tables.cell_workers import Outcome, Worker
from histodistill.training.tables.planned_cells import Cell, Line, all_cells, check_kept, kept_cells
from histodistill.training.tables.results_summary import markdown_table
from histodistill.training.tables.results_table import ResultsTableConfig
from histodistill.training.tables.rows import FIXED_ROWS, HEADLINE_ROWS, RECIPE_OPTIONS, Row, file_name, parse_row
from histodistill.training.tables.schedule import Schedule
from histodistill.training.tables.table_inputs import inputs_file, needed_inputs, write_inputs


def read(*argv: str) -> ResultsTableConfig:
    """The options of a command line."""
    return script.make_parser().read(argv)


# The command line.


def test_defaults():
    config = read("runs/one", "--data", "phantom")
    assert (config.run, config.runs, config.folder) == (
        Path("runs/one"),
        (Path("runs/one"),),
        Path("runs/one/benchmark"),
    )
    assert (config.seeds, config.embedder, config.recipe, config.jobs) == (None, "untrained", (), None)
    # The whole table: the ConvNet has every selector, the others the rows that matter most.
    rows: dict = {}
    for line in config.lines:
        rows.setdefault(line.first.config.architecture, {}).setdefault(line.first.row.name, []).append(line.first.size)
    probes = ["probe:mean_colour", "probe:colour_histogram"]
    assert list(rows) == ["convnet", "resnet18", "vit", *probes]
    assert list(rows["convnet"])[: len(HEADLINE_ROWS)] == list(HEADLINE_ROWS)
    assert {"pool_all", *SELECTOR_NAMES} < set(rows["convnet"])
    assert all(tuple(rows[name]) == HEADLINE_ROWS for name in ("vit", "resnet18", *probes))
    # Soft labels of images stand beside soft labels of real tiles.
    assert {row.partition("@")[0] for row in HEADLINE_ROWS} == {row for row in HEADLINE_ROWS if "@" not in row}
    sizes_of = {"convnet": [10, 50, 100], "resnet18": [10, 100], "vit": [100]}
    for name in rows:
        sizes = sizes_of.get(name, [10, 50, 100])
        for row, found in rows[name].items():
            assert found == ([None] if row.split("@")[0] in ("real_all", "pool_all") else sizes), (name, row)
    # The margins' baselines and the ceiling of recovery are there for every classifier.
    assert all({"real_all", "random", "real_random"} <= set(found) for found in rows.values())
    for line in config.lines:
        cell = line.first
        architecture, row = cell.config.architecture, cell.row
        assert line.is_headline == (row.name in HEADLINE_ROWS) and row == parse_row(row.name)
        if architecture in probes:
            assert line.rungs == (None,)
            continue
        assert line.rungs == ((600, 2000, 6000) if line.is_headline else (600, 2000)), row.name
        assert len(line.seeds) == (5 if line.is_headline and architecture == "convnet" else 3), row.name
        batch_size = 128 if row.tiles in ("real_all", "pool_all") else 32
        plain = ClassifierConfig(
            architecture=architecture, max_train_steps=600, validation_steps=600, batch_size=batch_size
        )
        assert cell.config == replace(plain, **row.recipe), row


def test_quick_is_a_part_of_it():
    config = read("r", "--data", "d", "--quick")
    assert {line.first.row.name for line in config.lines} == set(HEADLINE_ROWS)
    assert {line.first.config.architecture for line in config.lines} == {"convnet"}
    assert {line.first.size for line in config.lines} == {None, 10, 100}
    assert {(line.rungs, line.seeds) for line in config.lines} == {((600, 2000), (0, 1))}
    # All of it is in the whole table, too, with the same recipe.
    whole = {cell.path(Path("b")): cell.config for cell in all_cells(read("r", "--data", "d").lines)}
    assert {cell.path(Path("b")): cell.config for cell in all_cells(config.lines)}.items() <= whole.items()


def test_numbers_of_steps_that_are_given_are_all_tried():
    lines = read("r", "--data", "d", "--rows", "infomap", "--sizes", "5", "--train", "convnet:3,5,9@margin=0.2").lines
    assert [(line.rungs, line.first.config.max_train_steps) for line in lines] == [((3, 5, 9), 3)]
    assert lines[0].cell(9, 7).config == replace(
        lines[0].first.config, max_train_steps=9, validation_steps=9, seed=7, margin=0.2
    )  # fmt: skip


def test_the_command_line_says_what_python_says(tmp_path):
    argv = [str(tmp_path), "--data", "d", "--rows", "random", "--sizes", "3", "--seeds", "1", "--jobs", "2"]
    config = ResultsTableConfig(run=tmp_path, data="d", rows=["random"], sizes=[3], seeds=[1], jobs=2)
    assert read(*argv) == config
    assert read(*argv, "--output", "elsewhere").folder == Path("elsewhere")


def test_options_reach_other_processes(tmp_path):
    config = ResultsTableConfig(run=tmp_path, data="d", rows=["infomap:quota=sqrt@margin=0.2"])
    arrived = pickle.loads(pickle.dumps(config))
    assert arrived == config and arrived.lines == config.lines and arrived.folder == config.folder


def test_rows_sizes_and_classifiers_may_be_chosen():
    config = read("r", "--data", "d", "--rows", "random", "real_all", "--sizes", "7", "3", "--train", "vit:9")
    cells = [line.first for line in config.lines]
    assert [(cell.config.architecture, cell.row.name, cell.size) for cell in cells] == [
        ("vit", "random", 7), ("vit", "random", 3), ("vit", "real_all", None),
    ]  # fmt: skip


def test_rows_have_options_of_select():
    row = parse_row("infomap:quota=sqrt,n_neighbors=10,min-probability=0.5").options
    assert (row.selector, row.quota, row.n_neighbors, row.min_probability) == ("infomap", "sqrt", 10, 0.5)
    assert (row.markov_time, row.typical_share) == (1.0, None)
    assert parse_row("random:typical_share=0.9").options.typical_share == 0.9
    assert [parse_row(row) for row in FIXED_ROWS] == [Row(name, name, None) for name in FIXED_ROWS]


def test_peers_have_options_of_their_own():
    row = parse_row("peer:dm:steps=5,learning-rate=0.5@loss=joint")
    assert row.peer == MatchingConfig(steps=5, learning_rate=0.5)
    assert (row.tiles, row.options, row.recipe) == ("peer:dm:steps=5,learning-rate=0.5", None, {"loss": "joint"})
    assert parse_row("peer:dm").peer == MatchingConfig()
    assert parse_row("random").peer is None


def test_guided_rows_have_options_of_their_own():
    row = parse_row("guided:repulsion:strength=0.5,stop=1@soft_label_weight=1")
    assert row.guided == RepulsionConfig(strength=0.5, stop=1.0)
    assert (row.tiles, row.options, row.peer) == ("guided:repulsion:strength=0.5,stop=1", None, None)
    assert parse_row("guided:modes").guided == ModesConfig() and parse_row("random").guided is None


def test_a_rows_selection_is_that_of_a_cell():
    expected = SelectorConfig(selector="infomap", quota="sqrt", n_per_class=7, seed=3)
    assert parse_row("infomap:quota=sqrt").selection(7, seed=3) == expected


def test_rows_may_change_the_recipe():
    row = parse_row("infomap:quota=sqrt@loss=joint,stain-strength=0.1,max_shift=3,normalize_stain=1")
    assert (row.tiles, row.options.quota) == ("infomap:quota=sqrt", "sqrt")
    assert row.recipe == {"loss": "joint", "stain_strength": 0.1, "max_shift": 3, "normalize_stain": True}
    assert [type(value) for value in row.recipe.values()] == [str, float, int, bool]
    assert parse_row("real_all@soft_label_weight=1,normalize_stain=0").recipe == {
        "soft_label_weight": 1.0, "normalize_stain": False,
    }  # fmt: skip


@pytest.mark.parametrize("name", RECIPE_OPTIONS)
def test_every_option_of_the_recipe_can_be_given(name):
    value = getattr(ClassifierConfig(), name)
    text = str(int(value)) if isinstance(value, bool) else str(value)
    found = parse_row(f"random@{name}={text}").recipe
    assert found == {name: value} and type(found[name]) is type(value)
    assert name not in ("architecture", "max_train_steps", "batch_size", "seed")


def test_a_rows_recipe_goes_before_the_classifiers_and_that_before_the_common_one():
    argv = [
        "r", "--data", "d", "--sizes", "5", "--rows", "random", "random@margin=0.3,alpha=3", "--batch-size", "8",
        "--recipe", "margin=0.1", "alpha=1", "position=0.7", "--train", "convnet:7@margin=0.2,loss=joint", "vit:9",
    ]  # fmt: skip
    found = [line.first.config for line in read(*argv).lines]
    steps = {"max_train_steps": 7, "validation_steps": 7, "batch_size": 8, "position": 0.7}
    convnet = ClassifierConfig(architecture="convnet", loss="joint", margin=0.2, alpha=1.0, **steps)
    steps |= {"max_train_steps": 9, "validation_steps": 9}
    vit = ClassifierConfig(architecture="vit", margin=0.1, alpha=1.0, **steps)
    assert found == [
        convnet, replace(convnet, margin=0.3, alpha=3.0), vit, replace(vit, margin=0.3, alpha=3.0),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--rows", "nonsense"], "--rows nonsense: selector=nonsense is unknown: it must be one of "),
        (
            ["--rows", "real_random:seed=1"],
            "--rows real_random:seed=1: 'seed=1' is not OPTION=VALUE with one of min",
        ),
        (["--rows", "infomap:quota"], "--rows infomap:quota: 'quota' is not OPTION=VALUE: write a row as in "),
        (["--rows", "infomap:quota=odd"], "--rows infomap:quota=odd: quota=odd is unknown: it must be one of "),
        (
            ["--rows", "infomap:n_neighbors=x"],
            "--rows infomap:n_neighbors=x: n_neighbors=x cannot be read",
        ),
        (
            ["--rows", "infomap:n_per_class=3"],
            "--rows infomap:n_per_class=3: 'n_per_class=3' is not OPTION=VALUE",
        ),
        (
            ["--rows", "random:min_probability=2"],
            "--rows random:min_probability=2: min_probability=2.0 is out of range: it must be 0 to 1",
        ),
        (
            ["--rows", "random:copy_embedders=untrained"],
            "--rows random:copy_embedders=untrained: 'copy_embedders=untrained' cannot be given, since rows choose "
            "from the whole pool: leave it out",
        ),
        (["--rows", "random:drop_copies"], "--rows random:drop_copies: 'drop_copies' cannot be given, since rows"),
        (["--rows", "random:drop-copies=1"], "--rows random:drop-copies=1: 'drop-copies=1' cannot be given, since"),
        (["--rows", "peer:DM2"], "--rows peer:DM2: there is no peer 'DM2' (did you mean dm?): give one of dm"),
        (["--rows", "peer:dm:steps=0"], "--rows peer:dm:steps=0: steps=0 is out of range: it must be at least 1"),
        (
            ["--rows", "peer:dm:ridge=1"],
            "--rows peer:dm:ridge=1: 'ridge=1' is not OPTION=VALUE with one of steps, real",
        ),
        (["--rows", "peer:dm:steps"], "--rows peer:dm:steps: 'steps' is not OPTION=VALUE: write a row as in infomap:"),
        (
            ["--rows", "peer:dm@soft_label_weight=1"],
            "--rows peer:dm@soft_label_weight=1: a peer's images have no soft labels: leave soft_label_weight out",
        ),
        (
            ["--rows", "guided:mode"],
            "--rows guided:mode: there is no guidance 'mode' (did you mean modes?): give one of modes, repulsion",
        ),
        (["--rows", "guided:"], "--rows guided:: there is no guidance '': give one of modes, repulsion"),
        (
            ["--rows", "guided:modes:stop=1.5"],
            "--rows guided:modes:stop=1.5: stop=1.5 is out of range: it must be 0 to 1",
        ),
        (["--rows", "guided:modes:strength=-1"], "--rows guided:modes:strength=-1: strength=-1.0 is out of range"),
        (
            ["--rows", "guided:modes:steps=1"],
            "--rows guided:modes:steps=1: 'steps=1' is not OPTION=VALUE with one of strength, stop",
        ),
        (["--rows", "random", "infomap", "random"], "--rows names a row twice: name each once"),
        (["--jobs", "0"], "--jobs=0 is out of range: it must be at least 1"),
        (["--sizes", "2", "0"], "--sizes=2 0 is out of range: each must be at least 1"),
        (["--sizes", "2", "2"], "--sizes=2 2 is out of range: each may be named once"),
        (["--seeds", "1", "1"], "--seeds=1 1 is out of range: each may be named once"),
        (["--batch-size", "0"], "--batch-size=0 is out of range: it must be at least 1"),
        (["--train", "convnet:0"], "--train=convnet:0: after the architecture comes the number of steps"),
        (["--train", "convnet:5:random"], "--train=convnet:5:random: write ARCHITECTURE:STEPS, as in convnet:600"),
        (
            ["--train", "google/vit:600:random"],
            "--train=google/vit:600:random: write ARCHITECTURE:STEPS, as in convnet:600; --rows says what to train on",
        ),
        (["--train", "scratch:google/vit:5:random,kmeans"], "--train=scratch:google/vit:5:random,kmeans: write ARCHI"),
        (["--train", "convnet:5,9:random"], "--train=convnet:5,9:random: write ARCHITECTURE:STEPS, as in convnet:600"),
        (
            ["--train", "convnet:5,3"],
            "--train=convnet:5,3: several numbers of steps must ascend, as in convnet:600,2000,6",
        ),
        (["--train", "convnet:5,5"], "--train=convnet:5,5: several numbers of steps must ascend"),
        (["--train", "convnet:0,5"], "--train=convnet:0: after the architecture comes the number of steps"),
        (["--also", "/no/such"], "--also=/no/such /no/such is out of range: each may be named once"),
        (["--quick", "--train", "convnet:5"], "--quick says what to train: give --train, or --quick"),
        (["--whole-batch-size", "0"], "--whole-batch-size=0 is out of range: it must be at least 1"),
        (["--train", "vgg:5@margin=0.1"], "--train=vgg:5: the architecture must be one of convnet, resnet18, vit"),
        (["--train", "convnet:5@loss=ce", "convnet:5"], "--train names convnet twice"),
        (
            ["--train", "convnet:5@width=8"],
            "--train convnet:5@width=8: 'width=8' is not OPTION=VALUE with one of loss",
        ),
        (["--train", "convnet:5@"], "--train convnet:5@: '' is not OPTION=VALUE with one of loss"),
        (["--recipe", "seed=1"], "--recipe: 'seed=1' is not OPTION=VALUE with one of loss"),
        (["--recipe", "margin"], "--recipe: 'margin' is not OPTION=VALUE with one of loss"),
        (["--recipe", "margin=x"], "--recipe: 'margin=x' must be a number"),
        (["--recipe", "max_shift=1.5"], "--recipe: 'max_shift=1.5' must be a number"),
        (["--recipe", "margin=0.1", "margin=0.2"], "--recipe names margin twice: name it once"),
        (["--rows", "random@batch_size=3"], "--rows random@batch_size=3: 'batch_size=3' is not OPTION=VALUE"),
        (["--rows", "random@loss=mse"], "--rows random@loss=mse: loss=mse is unknown: it must be one of ce"),
        (["--rows", "random@margin=2"], "--rows random@margin=2: margin=2.0 is out of range"),
        (
            ["--rows", "real_all@normalize_stain=yes"],
            "--rows real_all@normalize_stain=yes: 'normalize_stain=yes' must",
        ),
        (["--rows", "random@loss=joint,mixup=0.2"], "--rows random@loss=joint,mixup=0.2: loss=joint does not go"),
        (["--rows", "nonsense@loss=joint"], "--rows nonsense@loss=joint: selector=nonsense is unknown"),
        (
            ["--rows", "infomap:selector=random"],
            "--rows infomap:selector=random: 'selector=random' is not OPTION=VALUE",
        ),
    ],
)
def test_bad_options_end_with_one_sentence(argv, message, monkeypatch, capsys):
    monkeypatch.setattr(script, "run", lambda config: pytest.fail("the table was begun"))
    with pytest.raises(SystemExit) as error:
        cli.main(["benchmark", "/no/such", "--data", "phantom", *argv])
    assert error.value.code == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(f"error: {message}") and captured.err.count("\n") == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rows": ["random@margin=2"]}, "rows random@margin=2: margin=2.0 is out of range"),
        ({"rows": []}, "rows has no values: give at least one"),
        ({"sizes": [2, 2]}, "sizes=2 2 is out of range: each may be named once"),
        ({"train": ["convnet:5:random"]}, "train=convnet:5:random: write ARCHITECTURE:STEPS, as in convnet:600; rows"),
    ],
)
def test_in_python_errors_name_parameters(options, message):
    with pytest.raises(InputError) as error:
        ResultsTableConfig(run="/no/such", data="phantom", **options)
    assert str(error.value).startswith(message)


def cell(architecture: str, row: str, size: int | None, seed: int, **options: object) -> Cell:
    """One of 5 steps."""
    config = ClassifierConfig(architecture=architecture, seed=seed, max_train_steps=5, **options)
    return Cell(config, parse_row(row), size)


def test_cells_have_files_of_their_own():
    folder = Path("benchmark")
    assert cell("convnet", "real_all", None, 3).path(folder) == (
        folder / "cells" / "convnet-real_all-all-5steps-seed3.json"
    )
    probe = Cell(ClassifierConfig(architecture="probe:untrained"), parse_row("random"), 7)
    assert re.fullmatch(r"probe-untrained-[0-9a-f]{8}-random-7-seed0\.json", probe.path(folder).name)
    rows = [
        "infomap",
        "infomap:quota=sqrt",
        "infomap:quota=uniform",
        "kmeans:typical_share=0.9",
        "random",
        "random@loss=joint",
        "random@loss=joint,margin=0.2",
    ]
    cells = [
        cell(architecture, row, size, seed)
        for architecture in ("convnet", "vit") for row in rows for size in (None, 1, 11) for seed in (1, 11)
    ]  # fmt: skip
    paths = {cell.path(folder) for cell in cells}
    assert len(paths) == len(cells)
    assert all(re.fullmatch(r"[\w.-]+", path.name) and path.parent == folder / "cells" for path in paths)


def test_a_plain_row_is_its_file_name():
    assert file_name("facility_location") == "facility_location"


def test_rows_that_differ_in_a_sign_have_files_of_their_own():
    assert file_name("infomap:markov_time=1e+1") != file_name("infomap:markov_time=1e-1")


def test_a_long_row_has_a_name_that_file_systems_take(tmp_path):
    # The longest that stays as it was, and two that differ beyond what is kept of them.
    assert file_name("a" * 120) == "a" * 120
    assert re.fullmatch(r"infomap-quota-sqrt-[0-9a-f]{8}", file_name("infomap:quota=sqrt"))
    long = "kernel_herding@" + ",".join(f"{name}=0.12345678" for name in RECIPE_OPTIONS)
    names = {file_name("a" * 121), file_name("a" * 122), file_name(long), file_name(f"{long}9")}
    assert len(long) > 255 and len(names) == 4 and all(len(name) == 120 + 1 + 8 for name in names)
    longest = Row(long, "kernel_herding", SelectorConfig())
    write_json(Cell(ClassifierConfig(seed=2**31), longest, 1000).path(tmp_path), {})


# Cells that are kept.


def keep(folder: Path, cell: Cell, accuracy: float = 0.5) -> None:
    about = {
        "architecture": cell.config.architecture,
        "row": cell.row.name,
        "size": cell.size,
        "seed": cell.config.seed,
        "num_train": 25,
        "validation": {"accuracy": accuracy},
        "test": {},
    }
    write_json(cell.path(folder), {**about, "config": recorded_recipe(cell.config)})


def line(cell: Cell, *seeds: int) -> Line:
    """A line of 5 steps."""
    return Line(cell, (5,), seeds or (cell.config.seed,))


def test_cells_that_are_kept_are_found_with_their_scores(tmp_path):
    lines = [line(cell("convnet", row, 5, 0), 0, 1) for row in ("random", "random@loss=joint")]
    cells = all_cells(lines)
    assert [(one.row.name, one.config.seed) for one in cells] == [
        ("random", 0), ("random", 1), ("random@loss=joint", 0), ("random@loss=joint", 1),
    ]  # fmt: skip
    assert check_kept(lines, tmp_path) == {}
    keep(tmp_path, cells[2], 0.7)
    keep(tmp_path, cell("convnet", "random", 9, 0))  # of no line
    assert check_kept(lines, tmp_path) == {cells[2].place: 0.7}
    # Those of a line count whatever their seed and their steps are: they may settle how many it takes.
    others = [lines[1].cell(5, 2), lines[1].cell(9, 2)]
    for one in others:
        keep(tmp_path, one, 0.6)
    assert check_kept(lines, tmp_path) == {cells[2].place: 0.7} | {one.place: 0.6 for one in others}
    for one in others:
        one.path(tmp_path).unlink()
    # A table of before named its files without the steps.
    cells[2].path(tmp_path).rename(tmp_path / "cells" / "convnet-random-loss-joint-5-seed0.json")
    assert check_kept(lines, tmp_path) == {cells[2].place: 0.7}


def test_other_numbers_of_steps_are_no_other_recipe(tmp_path):
    kept = cell("convnet", "random", 5, 0)
    keep(tmp_path, kept)
    more = replace(kept.config, max_train_steps=9, validation_steps=9)
    assert check_kept([Line(Cell(more, parse_row("random"), 5), (9,), (0,))], tmp_path) == {kept.place: 0.5}


def test_a_cell_of_another_recipe_is_refused(tmp_path):
    kept = cell("convnet", "random", 5, 0, margin=0.3)
    keep(tmp_path, kept)
    changed = Cell(replace(kept.config, margin=0.2), kept.row, 5)
    with pytest.raises(InputError) as error:
        check_kept([line(cell("convnet", "random", 5, 7)), line(changed)], tmp_path)
    assert str(error.value) == (
        f"{kept.path(tmp_path)} was trained with another recipe (margin was 0.3 and is now 0.2): "
        "give another output, or delete it"
    )


@pytest.mark.parametrize(
    ("planned", "refused"),
    [
        (("random", {"margin": 0.2}), True),  # another seed of the row
        (("kmeans", {"margin": 0.2}), True),  # another row of the table
        (("kmeans@margin=0.2", {"margin": 0.2}), False),  # the row's own change
        (("kmeans", {}), False),
        (("real_all", {"batch_size": 256}), False),  # rows of fixed size have batches of their own
    ],
)
def test_a_table_has_one_recipe(tmp_path, planned, refused):
    keep(tmp_path, cell("convnet", "random", 5, 0))
    new = line(cell("convnet", planned[0], 5, 1, **planned[1]))
    if not refused:
        assert check_kept([new], tmp_path) == {}
        return
    with pytest.raises(InputError, match=r"margin was 0\.3 and is now 0\.2"):
        check_kept([new], tmp_path)


@pytest.mark.parametrize("content", [b"", b'{"row": "ran', bytes(9), b"{}", b"[1]", b"3", b'{"row": "random"}'])
def test_a_damaged_cell_is_missing(tmp_path, capsys, content):
    both = line(cell("convnet", "random", 5, 0), 0, 1)
    cells = all_cells([both])
    for one in cells:
        keep(tmp_path, one)
    cells[1].path(tmp_path).write_bytes(content)
    assert check_kept([both], tmp_path) == {cells[0].place: 0.5}
    assert f"warning: {cells[1].path(tmp_path)} is damaged" in capsys.readouterr().err
    assert [kept["seed"] for kept in kept_cells(tmp_path, [])] == [0]


def test_order_of_the_cells_that_are_kept(tmp_path):
    assert kept_cells(tmp_path, []) == []
    cells = [
        cell("convnet", "real_all", None, 0), cell("convnet", "random", 5, 0), cell("convnet", "random", 5, 11),
        cell("convnet", "random", 40, 2), cell("convnet", "herding", 5, 0), cell("convnet", "kmeans", 5, 0),
        cell("vit", "random", 5, 0),
    ]  # fmt: skip
    for one in reversed(cells):
        keep(tmp_path, one)
    found = kept_cells(tmp_path, ["real_all", "random"])
    assert [(c["architecture"], c["row"], c["size"], c["seed"]) for c in found] == [
        (c.config.architecture, c.row.name, c.size, c.config.seed) for c in cells
    ]


# Whole benchmarks. Each start of workers takes seconds, so there is one, and the other trainings are in this process.


SOFT = "random@soft_label_weight=0.5,temperature=2"
SOFT_REAL = "real_random@soft_label_weight=1"
PEER = "peer:dm:steps=2,real_batch_size=4"
# In the order of the table, and the one that is lost is the last.
ROWS = [
    "real_all", "pool_all", "real_random", "random", "infomap:n_neighbors=3", SOFT, SOFT_REAL, PEER,
    "kmeans:typical_share=0.9",
]  # fmt: skip
OPTIONS = ["--train", "convnet:2", "--batch-size", "10", "--whole-batch-size", "10", "--mixed-precision", "no"]


@pytest.fixture(scope="module")
def start(folder, tiny_npz, run_main):
    """`start("--option", …)` runs a benchmark in this process, and its trainings in one other."""

    def start(*argv: object, jobs: int = 1) -> None:
        with pytest.MonkeyPatch.context() as patch:
            # The script sets it for its workers; here it is to be as before afterwards.
            patch.setenv("OMP_NUM_THREADS", "1")
            run_main(script, folder, "--data", tiny_npz, *OPTIONS, "--jobs", jobs, *argv)

    return start


def cell_files(output: Path) -> dict[str, Path]:
    return {path.name.removesuffix(".json"): path for path in sorted((output / "cells").glob("*.json"))}


def without_seconds(path: Path) -> dict:
    return {name: value for name, value in read_json(path).items() if name != "seconds"}


def times(folder: Path) -> dict[str, int]:
    return {name: path.stat().st_mtime_ns for name, path in cell_files(folder).items()}


class ThisProcess(Executor):
    """In place of the pool of processes: trains here, since a worker takes longer to start than for its trainings."""

    def __init__(self, jobs, mp_context, initializer, initargs):
        initializer(*initargs)

    def submit(self, function, *args):
        future = Future()
        future.set_result(function(*args))
        return future


@pytest.fixture(scope="module")
def start_here(start):
    """`start`, with the trainings in this process as well."""

    def start_here(*argv: object) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(cell_processes, "_Workers", ThisProcess)
            patch.setattr(cell_workers, "_worker", None)
            patch.setattr(cell_workers, "_end_with_parent", lambda: None)
            # One thread, as all tests have: more get into each other's way where tests run side by side.
            patch.setattr(cell_processes, "usable_cores", lambda: 1)
            start(*argv)

    return start_here


@pytest.fixture(scope="module")
def benchmark(folder, start_here) -> Path:
    """The benchmark with one seed."""
    start_here("--rows", *ROWS, "--sizes", 1, 2, "--seeds", 0)
    return folder / "benchmark"


@pytest.fixture(scope="module")
def grown(benchmark, start_here) -> tuple[Path, dict, dict, dict]:
    """The same with one cell lost and one more seed: the folder, its cells and times before, and those after."""
    lost = cell_files(benchmark)[f"convnet-{file_name(ROWS[-1])}-2-2steps-seed0"]
    cells = {name: without_seconds(path) for name, path in cell_files(benchmark).items()}
    before = times(benchmark)
    lost.unlink()
    start_here("--rows", *ROWS, "--sizes", 1, 2, "--seeds", 0, 1)
    return benchmark, cells, before, times(benchmark)


def test_what_is_missing_is_trained_and_nothing_else(grown):
    folder, cells, before, after = grown
    assert len(before) == 2 + 7 * 2 and len(after) == 2 * len(before)
    written = {name for name in after if after[name] != before.get(name)}
    lost = f"convnet-{file_name(ROWS[-1])}-2-2steps-seed0"
    assert written == {lost} | {name for name in after if name.endswith("-seed1")}
    # The lost cell comes out as it was.
    assert {name: without_seconds(path) for name, path in cell_files(folder).items() if name in before} == cells
    assert not (folder / "cells" / "checkpoints").exists() or not any((folder / "cells" / "checkpoints").iterdir())


def test_cells_say_how_they_were_trained(grown, tiny_npz):
    source = load_tiles(tiny_npz)
    for name, path in cell_files(grown[0]).items():
        cell = read_json(path)
        row, size = cell["row"], name.split("-")[-3]
        assert cell["size"] == (None if size == "all" else int(size))
        assert cell["num_train"] == {"real_all": 120, "pool_all": 30}.get(row) or 5 * int(size), name
        assert name == f"convnet-{file_name(row)}-{size}-2steps-seed{cell['seed']}"
        assert (cell["config"]["seed"], cell["config"]["max_train_steps"], cell["best_step"]) == (cell["seed"], 2, 2)
        assert cell["config"]["batch_size"] == 10
        recipe = [cell["config"][option] for option in ("soft_label_weight", "temperature")]
        usual = ClassifierConfig().temperature
        assert recipe == {SOFT: [0.5, 2.0], SOFT_REAL: [1.0, usual]}.get(row, [0.0, usual])
        for split in ("validation", "test"):
            assert np.sum(cell[split]["confusion"]) == len(source.split(split))


def test_rows_are_means_over_the_cells(grown):
    folder = grown[0]
    results = read_json(folder / "benchmark.json")
    assert results["notes"] == [] and len(results["class_names"]) == 5
    cells = [read_json(path) for path in cell_files(folder).values()]
    expected = [(row, size) for row in ROWS for size in ([None] if row in ("real_all", "pool_all") else [1, 2])]
    assert [(row["row"], row["size"]) for row in results["rows"]] == expected
    for row in results["rows"]:
        mine = [
            cell for cell in cells
            if cell["row"] == row["row"] and row["size"] in (None, cell["num_train"] / 5)
        ]  # fmt: skip
        assert row["seeds"] == [cell["seed"] for cell in mine] == [0, 1]
        assert (row["architecture"], row["steps"]) == ("convnet", 2)
        for split in ("validation", "test"):
            for metric in ("accuracy", "auc", "f1"):
                values = [cell[split][metric] for cell in mine]
                assert row[split][metric]["values"] == values
                assert row[split][metric]["mean"] == pytest.approx(np.mean(values))
                assert row[split][metric]["std"] == pytest.approx(np.std(values, ddof=1))
            for baseline, margin in row[split]["accuracy"]["margins"].items():
                assert baseline != row["row"]
                assert (margin is None) == (row["row"] in ("real_all", "pool_all"))
            ceiling = results["rows"][0][split]["accuracy"]["mean"]
            assert row[split]["recovery"] == pytest.approx(row[split]["accuracy"]["mean"] / ceiling)
    assert results["rows"][0]["row"] == "real_all"


def test_table_has_a_line_for_each_row_and_size(grown):
    folder = grown[0]
    text = (folder / "benchmark.md").read_text()
    results = read_json(folder / "benchmark.json")
    validation, test = text.split("## ")[1:]
    assert validation.startswith("Validation tiles\n\n| classifier |") and test.startswith("Test tiles\n\n|")
    assert validation.endswith(markdown_table(results["rows"], "validation") + "\n")
    assert test.endswith(markdown_table(results["rows"], "test"))
    assert [len(part.splitlines()) for part in (validation, test)] == [2 + 2 + 16 + 2 + 1, 2 + 2 + 16 + 2]
    record = read_record(folder)
    assert (record["complete"], record["num_cells"]) == (True, 32)
    for name in ("accuracy_by_size", "confusion", "per_class_f1", "reliability"):
        assert (folder / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    # The teacher says other things of other tiles, so the soft labels make a difference.
    cells = {name: read_json(path) for name, path in cell_files(folder).items()}
    for row, plain in ((SOFT, "random"), (SOFT_REAL, "real_random")):
        one, other = (cells[f"convnet-{file_name(name)}-2-2steps-seed0"]["test"] for name in (row, plain))
        assert one["ece"] != other["ece"], row


def test_nothing_is_trained_again(grown, start, monkeypatch, capsys):
    folder, _, _, after = grown
    results, table = (folder / "benchmark.json").read_bytes(), (folder / "benchmark.md").read_bytes()
    kept = (folder / "inputs.npz").stat().st_mtime_ns
    for module, name in ((cell_processes, "_Workers"), (table_inputs, "embed_pool")):
        monkeypatch.setattr(module, name, lambda *call, **options: pytest.fail("something was started"))
    start("--rows", *ROWS, "--sizes", 1, 2, "--seeds", 0, 1)
    assert times(folder) == after and (folder / "inputs.npz").stat().st_mtime_ns == kept
    assert (folder / "benchmark.json").read_bytes() == results and (folder / "benchmark.md").read_bytes() == table
    assert capsys.readouterr().out.endswith(f"benchmark: saved to {folder}\n")

    # A call for fewer rows and seeds makes the same table, with its own rows first, and leaves all cells.
    start("--rows", "infomap:n_neighbors=3", "real_all", "--sizes", 2, "--seeds", 1)
    again = read_json(folder / "benchmark.json")["rows"]
    assert [row["row"] for row in again][:3] == ["infomap:n_neighbors=3"] * 2 + ["real_all"]

    def by_name(rows):
        return {(row["row"], row["size"]): row for row in rows}

    assert by_name(again) == by_name(json.loads(results)["rows"]) and len(again) == 2 + 7 * 2
    assert times(folder) == after
    start("--rows", *ROWS, "--sizes", 1, 2, "--seeds", 0, 1)
    assert (folder / "benchmark.json").read_bytes() == results


def test_a_kept_cell_of_another_recipe_is_refused_by_the_script(grown, folder, tiny_npz, capsys):
    before = {path: path.stat().st_mtime_ns for path in grown[0].rglob("*")}
    argv = [str(folder), "--data", str(tiny_npz), *OPTIONS, "--rows", "random", "--sizes", "1", "--seeds", "0"]
    kept = cell_files(grown[0])["convnet-random-1-2steps-seed0"]
    for changed, message in (
        (["--batch-size", "11"], "batch_size was 10 and is now 11"),
        (["--recipe", "loss=joint"], 'loss was "ce" and is now "joint"'),
    ):
        with pytest.raises(SystemExit) as error:
            run_script(script.make_parser, script.run, [*argv, *changed])
        assert error.value.code == 2
        assert capsys.readouterr().err.split("\n", maxsplit=1)[1] == (  # after the tiles that were loaded
            f"error: {kept} was trained with another recipe ({message}): give another --output, or delete it\n"
        )
    assert {path: path.stat().st_mtime_ns for path in grown[0].rglob("*")} == before


def test_other_settings_are_refused(grown, folder, tiny_npz, capsys):
    before = {path: path.stat().st_mtime_ns for path in grown[0].rglob("*")}
    argv = [str(folder), "--data", str(tiny_npz), *OPTIONS, "--rows", "random", "--sizes", "1", "--seeds", "0"]
    for changed, message in (
        (["--embedder", "other"], 'embedder was "untrained" and is now "other"'),
        (["--mixed-precision", "bf16"], 'mixed_precision was "no" and is now "bf16"'),
    ):
        with pytest.raises(SystemExit) as error:
            run_script(script.make_parser, script.run, [*argv, *changed])
        assert error.value.code == 2
        assert capsys.readouterr().err.split("\n", maxsplit=1)[1] == (
            f"error: {grown[0]} was made with other settings ({message}): give another --output, or delete it\n"
        )
    assert {path: path.stat().st_mtime_ns for path in grown[0].rglob("*")} == before


def test_inputs_of_a_killed_benchmark_serve_no_other_embedder(start, tmp_path, monkeypatch):
    options = ["--rows", "random", "--sizes", 1, "--seeds", 0, "--output", tmp_path]

    def killed(file: Path, *call: object) -> None:
        write_inputs(file, *call)
        raise KeyboardInterrupt

    monkeypatch.setattr(table_inputs, "write_inputs", killed)
    with pytest.raises(KeyboardInterrupt):
        start(*options)
    assert (tmp_path / "inputs.npz").is_file() and not read_record(tmp_path)["complete"]
    with pytest.raises(InputError, match='embedder was "untrained" and is now "mean_colour"'):
        start(*options, "--embedder", "mean_colour")


DIVERGES = "random@learning_rate=1e30"


def test_two_jobs_give_the_same_scores_and_leave_out_what_diverges_or_is_too_large(
    benchmark, folder, tmp_path, tiny_npz, monkeypatch, capfd, fresh_accelerate
):
    # As a user does it: the command's process starts its workers.
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    output = tmp_path / "output"
    argv = [
        "--rows", DIVERGES, "random", "kmeans:typical_share=0.9", "real_random", "--sizes", "2", "7", "--seeds", "0",
    ]  # fmt: skip
    command = ["benchmark", str(folder), "--data", str(tiny_npz), *OPTIONS, *argv, "--jobs", "2"]
    cli.main([*command, "--output", str(output)])
    captured = capfd.readouterr()
    assert "Traceback" not in captured.err
    cells, alone = cell_files(output), cell_files(benchmark)
    both = {name for name in cells if name in alone}
    assert both == {
        f"convnet-{name}-2-2steps-seed0" for name in ("random", file_name(ROWS[-1]), "real_random")
    }  # fmt: skip
    for name in both:
        one, other = read_json(cells[name]), read_json(alone[name])
        assert one["config"] == other["config"]
        for split in ("validation", "test"):
            assert one[split]["confusion"] == other[split]["confusion"], name
            assert one[split]["auc"] == pytest.approx(other[split]["auc"], abs=1e-3)

    # 7 of 6 pool images are too many, 7 of 24 real ones are not.
    assert set(cells) - both == {"convnet-real_random-7-2steps-seed0"}
    results = read_json(output / "benchmark.json")
    notes = set(results["notes"])
    assert len(notes) == len(results["notes"]) == 4
    [diverged] = [note for note in notes if note.startswith(f"{DIVERGES}, 2 per class, convnet: left out, ")]
    assert "left out, since the loss is " in diverged
    assert sorted(notes - {diverged}) == [
        f"{row}, 7 per class, convnet: left out, since class 0 has 6 images but n_per_class=7: lower n_per_class or "
        "generate more" for row in ("kmeans:typical_share=0.9", "random", DIVERGES)
    ]  # fmt: skip
    # Without `real_all` there is nothing to recover.
    assert {row["test"]["recovery"] for row in results["rows"]} == {None}
    assert [(row["row"], row["size"]) for row in results["rows"]] == [
        ("random", 2), ("kmeans:typical_share=0.9", 2), ("real_random", 2), ("real_random", 7),
    ]  # fmt: skip
    assert all(note in captured.out + captured.err for note in results["notes"])
    assert f"benchmark: saved to {output}" in captured.out
    assert len((output / "benchmark.md").read_text().split("## Test")[1].splitlines()) == 2 + 2 + 4 + 2
    assert read_record(output)["complete"]


# What workers do, in this process.


@pytest.fixture
def worker(folder, tiny_npz, tmp_path, fresh_accelerate):
    """`worker(row, …)` is one for these rows, with its inputs in a folder of its own."""

    def make(*rows: str) -> Worker:
        config = read(str(folder), "--data", str(tiny_npz), *OPTIONS, "--output", str(tmp_path), "--rows", *rows)
        images, _, _ = read_image_dataset(folder / "pool")
        real = load_tiles(tiny_npz).split("train").images
        write_inputs(
            inputs_file(config.folder),
            needed_inputs(config.lines),
            config.embedder,
            config.run / "teacher",
            images,
            real,
        )
        return Worker(config)

    return make


@pytest.mark.parametrize(
    "damage", [lambda data: b"", lambda data: data[: len(data) // 2], lambda data: b"x" + data[1:]]
)
def test_damaged_inputs_are_made_anew(worker, tmp_path, capsys, damage):
    before = worker("random").distillations[0].inputs.embeddings
    file = tmp_path / "inputs.npz"
    file.write_bytes(damage(file.read_bytes()))
    assert np.array_equal(worker("random").distillations[0].inputs.embeddings, before)
    assert f"warning: {file} is damaged: it is made anew" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("visible", "jobs", "expected"),
    [(None, None, ["0", "1"]), ("3,GPU-abc", None, ["3", "GPU-abc"]), (None, 3, ["0", "1", "0"])],
)
def test_each_process_has_a_gpu_of_its_own(tmp_path, monkeypatch, visible, jobs, expected):
    monkeypatch.delenv("ACCELERATE_USE_CPU", raising=False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    for name, value in (("is_available", True), ("current_accelerator", torch.device("cuda")), ("device_count", 2)):
        monkeypatch.setattr(f"torch.accelerator.{name}", lambda value=value: value)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    seen = []
    monkeypatch.setattr(
        cell_workers, "become_worker", lambda config, threads: seen.append(os.environ["CUDA_VISIBLE_DEVICES"])
    )
    monkeypatch.setattr(cell_processes, "run_cell", lambda cell: Outcome(0.5))
    monkeypatch.setattr(cell_processes, "time_training", lambda config: 1.0)

    class Started(Executor):
        """Starts each of its processes here, one after the other."""

        def __init__(self, jobs, mp_context, initializer, initargs):
            for _ in range(jobs):
                with pytest.MonkeyPatch.context() as patch:
                    patch.setenv("CUDA_VISIBLE_DEVICES", "what it was started with")
                    initializer(*initargs)

        def submit(self, function, *args):
            future = Future()
            future.set_result(function(*args))
            return future

    monkeypatch.setattr(cell_processes, "_Workers", Started)
    stage = SimpleNamespace(save_progress=lambda: None)
    lines = [line(cell("convnet", "random", size, 0)) for size in range(1, 6)]
    cell_processes.train_cells(SimpleNamespace(jobs=jobs), Schedule(lines, {}), stage)
    assert seen == expected


def test_without_a_gpu_there_is_a_process_for_each_core(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    monkeypatch.setattr("torch.accelerator.is_available", lambda: True)
    monkeypatch.setattr(cell_processes, "usable_cores", lambda: 7)
    assert cell_processes.usual_jobs() == 7 and gpu_names() == []


def test_the_teacher_works_on_the_accelerator(tiny_teacher, tmp_path, monkeypatch):
    device, found = torch.device("meta"), []
    monkeypatch.setattr(table_inputs, "best_device", lambda: device)
    monkeypatch.setattr(
        table_inputs, "predict_proba", lambda model, images: found.append(model.device) or np.zeros((len(images), 5))
    )
    images = np.zeros((2, 16, 16, 3), np.uint8)
    write_inputs(
        tmp_path / "inputs.npz", {"probabilities", "real_probabilities"}, "untrained", tiny_teacher, images, images
    )
    assert found == [device, device]


def test_each_row_has_its_tiles(worker, folder, tiny_npz):
    worker = worker(*ROWS)
    real = load_tiles(tiny_npz).split("train")
    images, columns, _ = read_image_dataset(folder / "pool")

    def tiles(row: str, size: int | None, seed: int = 0) -> Tiles:
        return worker.training_tiles(cell("convnet", row, size, seed))

    assert np.array_equal(tiles("real_all", None).images, real.images)
    assert np.array_equal(tiles("pool_all", None).images, images)
    assert np.array_equal(tiles("pool_all", None).labels, columns["label"])
    for seed in (0, 1):
        drawn = tiles("real_random", 3, seed)
        assert np.array_equal(drawn.images, real.images[sample_per_class(real.labels, 3, seed)])
    pool = {image.tobytes(): label for image, label in zip(images, columns["label"], strict=True)}
    for row in set(ROWS[3:]) - {SOFT_REAL, PEER}:
        chosen = tiles(row, 2)
        assert np.bincount(chosen.labels).tolist() == [2] * 5
        assert [pool[image.tobytes()] for image in chosen.images] == chosen.labels.tolist()
    # What a row changes of the recipe changes none of its tiles.
    assert np.array_equal(tiles(SOFT, 2).images, tiles("random", 2).images)
    assert np.array_equal(tiles(SOFT_REAL, 2).images, tiles("real_random", 2).images)
    # Images of peers are made beforehand.
    row = parse_row(PEER)
    for seed in (0, 1):
        file = made_set_file(worker.folder, "peers", row.file_name, 2, seed)
        make_peer(file, real, 2, seed, row.peer)
        assert np.array_equal(tiles(PEER, 2, seed).images, read_peer(file).images)
    # The seed is that of the selection too.
    assert not np.array_equal(tiles("random", 2, 0).images, tiles("random", 2, 1).images)


def test_seeds_take_distillations_in_turn(worker):
    worker = worker("real_all", "pool_all", "random", SOFT_REAL)
    first = worker.distillations[0]
    other = replace(
        first,
        pool=replace(first.pool, images=255 - first.pool.images[:]),
        real=replace(first.real, soft_labels=first.real.soft_labels[:, ::-1]),
    )
    worker.distillations.append(other)
    for row, size in (("random", 2), ("pool_all", None)):
        for seed, pool in ((0, first.pool), (1, other.pool), (2, first.pool), (3, other.pool)):
            there = {image.tobytes() for image in pool.images}
            chosen = worker.training_tiles(cell("convnet", row, size, seed)).images
            assert {image.tobytes() for image in chosen} <= there, (row, seed)
    # Real tiles are the same ones, with what the other teacher says of them.
    tiles = [worker.training_tiles(cell("convnet", "real_all", None, seed)) for seed in (0, 1)]
    assert np.array_equal(tiles[0].images[:], tiles[1].images[:])
    assert np.array_equal(tiles[0].soft_labels, tiles[1].soft_labels[:, ::-1])


def test_a_ladder_with_two_distillations(folder, start_here, tmp_path, capsys):
    shutil.copytree(folder, tmp_path / "other", ignore=shutil.ignore_patterns("benchmark"))
    options = ["--rows", "real_all", "random", "--sizes", 2, "--seeds", 0, 1, "--output", tmp_path / "table"]
    train = ["--train", "convnet:2,3,4", "probe:mean_colour"]
    start_here(*options, *train, "--also", tmp_path / "other")
    said = capsys.readouterr().err
    assert "expected: less than a minute with 1 at a time at most, and less where more steps do not help" in said
    results = read_json(tmp_path / "table" / "benchmark.json")
    assert results["notes"] == ["the seeds take the pools of 2 distillations in turn"]
    cells = [read_json(path) for path in cell_files(tmp_path / "table").values()]
    for row in results["rows"]:
        mine = {
            (cell["config"]["max_train_steps"], cell["seed"]): cell["validation"]["accuracy"]
            for cell in cells if (cell["architecture"], cell["row"]) == (row["architecture"], row["row"])
        }  # fmt: skip
        assert row["seeds"] == [0, 1]
        if row["architecture"] == "probe:mean_colour":
            assert row["steps"] is None and len(mine) == 2
            continue
        climbed = [mine[steps, 0] for steps in (2, 3, 4) if (steps, 0) in mine]
        # All but the last did better than those before, and the last did not, unless there was no other to try.
        assert all(below < above for below, above in pairwise(climbed[:-1]))
        assert len(climbed) == 3 or climbed[-1] <= climbed[-2]
        assert row["steps"] == (2, 3, 4)[climbed.index(max(climbed))]
        assert sorted(mine) == sorted({*((steps, 0) for steps in (2, 3, 4)[: len(climbed)]), (row["steps"], 1)})
        assert [rung["steps"] for rung in row["ladder"]] == [2, 3, 4][: len(climbed)]
    # One distillation fewer would be other cells.
    with pytest.raises(InputError, match="was made with other settings"):
        start_here(*options, *train)


def test_guided_rows(folder, tiny_pipeline, start_here, worker, tmp_path):
    run, table = tmp_path / "run", tmp_path / "table"
    shutil.copytree(folder, run, ignore=shutil.ignore_patterns("benchmark"))
    rows = ("guided:modes", "guided:repulsion:strength=0.5@soft_label_weight=1")
    options = ["--sizes", 2, "--seeds", 0, 1, "--output", table, "--also", run]
    with pytest.raises(InputError, match="pipeline holds no finished pipeline: run train_diffusion first"):
        start_here("--rows", *rows, *options)
    assert not table.exists()
    for each in (run, folder):
        shutil.copytree(tiny_pipeline, each / "pipeline", ignore=shutil.ignore_patterns("checkpoints"))
    try:
        start_here("--rows", *rows, *options)
    finally:
        shutil.rmtree(folder / "pipeline")
    made = {
        (row, seed): made_set_file(table, "guided", parse_row(row).file_name, 2, seed)
        for row in rows
        for seed in (0, 1)
    }
    pictures = [file.with_suffix(".png") for file in made.values()]
    assert sorted((table / "guided").iterdir()) == sorted([*made.values(), *pictures])
    results = read_json(table / "benchmark.json")["rows"]
    assert [(row["row"], row["size"], row["seeds"]) for row in results] == [(row, 2, [0, 1]) for row in rows]
    # They are what is trained on, with soft labels where the recipe asks for these.
    for (row, seed), file in made.items():
        kept, cell_of = read_guided(file), cell("convnet", row, 2, seed)
        one = worker(*rows)
        one.folder = table
        tiles = one.training_tiles(cell_of)
        assert np.array_equal(tiles.images, kept.images) and np.array_equal(tiles.soft_labels, kept.soft_labels)
        assert np.array_equal(kept.images[:2], GuidedSampler(run).sample(0, 2, seed, parse_row(row).guided))
    # Nothing else is kept for them than for any row, such as what the teacher says of real tiles.
    with np.load(inputs_file(table)) as kept:
        assert kept.keys() == {"embeddings", "probabilities"}


def test_soft_labels_are_what_the_teacher_says(worker, folder):
    worker = worker("pool_all", SOFT, "infomap:n_neighbors=3", SOFT_REAL, "real_all")
    teacher = Classifier.from_pretrained(folder / "teacher")
    for row, size in (("pool_all", None), (SOFT, 2), ("infomap:n_neighbors=3", 2), (SOFT_REAL, 2), ("real_all", None)):
        chosen = worker.training_tiles(cell("convnet", row, size, 1))
        assert chosen.soft_labels.shape == (len(chosen), 5), row
        np.testing.assert_allclose(chosen.soft_labels, predict_proba(teacher, chosen.images), atol=1e-5)


def test_rows_of_views_have_their_soft_labels(worker, folder):
    rows = [f"{row}@soft_label_weight=1,soft_label_views=4" for row in ("random", "real_random")]
    worker, recipe = worker(*rows), {"soft_label_weight": 1, "soft_label_views": 4}
    teacher = Classifier.from_pretrained(folder / "teacher")
    for row in rows:
        assert parse_row(row).recipe == recipe
        chosen = worker.training_tiles(cell("convnet", row, 2, 1, **recipe))
        assert chosen.label_views.ranks.tolist() == [1, 2] * 5
        views = FixedViews(chosen.labels, chosen.label_views.ranks, 5, 4)
        said = predict_proba(teacher, views.make(chosen.images, np.arange(10), np.full(10, 3)))
        np.testing.assert_array_equal(chosen.label_views.codes[:, 2], encode_soft_label_views(said))
        assert worker.run(cell("convnet", row, 2, 1, **recipe)).note is None
    assert worker.training_tiles(cell("convnet", SOFT, 2, 1)).label_views is None


def test_inputs_are_made_again_only_where_real_tiles_are_new(worker, tmp_path, monkeypatch):
    first = worker("random").distillations[0].inputs
    assert first.real_embeddings is None and first.embeddings.shape == (30, 512)
    assert worker("random").distillations[0].real.soft_labels is None
    second = worker("random", "infomap:typical_share=0.9").distillations[0].inputs
    assert second.real_embeddings.shape == (120, 512)
    np.testing.assert_allclose(second.embeddings, first.embeddings, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(second.probabilities.sum(axis=1), 1, atol=1e-5)
    # Soft labels of real tiles are one more thing that comes when a row asks for it.
    monkeypatch.setattr(table_inputs, "embed_pool", None)
    assert worker("real_all@soft_label_weight=0.5").distillations[0].real.soft_labels.shape == (120, 5)
    assert worker(SOFT).distillations[0].real.soft_labels is not None
    for rows in (["random"], ["kmeans:typical_share=0.5"]):
        assert worker(*rows).distillations[0].inputs.real_embeddings.shape == (120, 512)
    assert [path.name for path in tmp_path.iterdir()] == ["inputs.npz"]


def test_a_run_without_pool_is_refused(tmp_path, folder, run_main, tiny_npz):
    argv = ["--data", tiny_npz, *OPTIONS, "--output", tmp_path / "output"]
    with pytest.raises(InputError, match="holds no finished pool: run histodistill generate first"):
        run_main(script, tmp_path, *argv)
    shutil.copytree(folder / "pool", tmp_path / "pool")
    with pytest.raises(InputError, match="holds no finished teacher: run train_classifier first"):
        run_main(script, tmp_path, *argv)
    assert not (tmp_path / "output").exists()


def test_real_tiles_of_another_kind_are_refused(tmp_path, folder, run_main, tiny_npz):
    with np.load(tiny_npz) as arrays:
        arrays = dict(arrays)
    np.savez(tmp_path / "classes.npz", **{**arrays, "class_names": np.array(list("abcde"))})
    # One training tile of the first class is left, so that no test split can be made.
    labels = arrays["train_labels"].reshape(-1)
    rows = np.sort(np.append(np.flatnonzero(labels != 0), np.flatnonzero(labels == 0)[:1]))
    untested = {name: array for name, array in arrays.items() if "test" not in name}
    np.savez(
        tmp_path / "splits.npz",
        **{**untested, **{f"train_{n}": arrays[f"train_{n}"][rows] for n in ("images", "labels")}},
    )
    for data, message in (("classes", "has the classes"), ("splits", "has no 'test' split")):
        with pytest.raises(InputError, match=message):
            run_main(script, folder, "--data", tmp_path / f"{data}.npz", *OPTIONS, "--output", tmp_path / "output")
    assert not (tmp_path / "output").exists()
