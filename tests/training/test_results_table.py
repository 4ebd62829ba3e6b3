from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from histodistill.selection import SELECTOR_NAMES
from histodistill.training import results_table as script
from histodistill.training.commands import benchmark as command
from histodistill.training.commands.benchmark import FIXED_ROWS, file_name, parse_args, parse_row
from histodistill.training.data import load_tiles, sample_per_class
from histodistill.training.errors import InputError
from histodistill.training.files import read_json
from histodistill.training.image_dataset import read_image_dataset
from histodistill.training.options import run_script
from histodistill.training.results_table import (
    Cell,
    Worker,
    markdown_table,
    paired_margin,
    plan_cells,
    summarise,
    write_inputs,
)
from histodistill.training.stages import read_record
from histodistill.training.tiles import Tiles


# The command line.


def test_defaults():
    args = parse_args(["runs/one", "--data", "phantom"])
    assert (args.run, args.output) == (Path("runs/one"), Path("runs/one/benchmark"))
    assert args.rows == ["real_all", "pool_all", "real_random", *SELECTOR_NAMES]
    assert list(args.specs) == args.rows
    assert args.plan == [("convnet", 600, [])]
    assert (args.sizes, args.seeds, args.embedder) == ([10, 50, 100], [0, 1, 2, 3, 4], "untrained")
    assert args.jobs >= 1


def test_rows_have_options_of_select():
    row = parse_row("infomap:quota=sqrt,n_neighbors=10,min-probability=0.5")
    assert (row.selector, row.quota, row.n_neighbors, row.min_probability) == ("infomap", "sqrt", 10, 0.5)
    assert (row.markov_time, row.typical_share) == (1.0, None)
    assert parse_row("random:typical_share=0.9").typical_share == 0.9
    assert [parse_row(row) for row in FIXED_ROWS] == [None] * 3


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--rows", "nonsense"], "--rows nonsense: argument --selector: invalid choice: 'nonsense' (choose from "),
        (["--rows", "real_random:seed=1"], "--rows real_random:seed=1: argument --selector: invalid choice"),
        (["--rows", "infomap:quota"], "--rows infomap:quota: 'quota' is not OPTION=VALUE: write a row as in "),
        (["--rows", "infomap:quota=odd"], "--rows infomap:quota=odd: argument --quota: invalid choice: 'odd'"),
        (["--rows", "infomap:n_neighbors=x"], "--rows infomap:n_neighbors=x: argument --n-neighbors: invalid int"),
        (["--rows", "infomap:n_per_class=3"], "--rows infomap:n_per_class=3: unrecognized arguments: --n-per-class"),
        (["--rows", "random:min_probability=2"], "--min-probability=2.0 is out of range: it must be 0 to 1"),
        (["--rows", "random", "infomap", "random"], "--rows names a row twice: name each once"),
        (["--jobs", "0"], "--jobs=0 is out of range: it must be at least 1"),
        (["--sizes", "2", "0"], "--sizes=[2, 0] is out of range: each must be at least 1"),
        (["--sizes", "2", "2"], "--sizes=[2, 2] is out of range: each may be named once"),
        (["--seeds", "1", "1"], "--seeds=[1, 1] is out of range: each may be named once"),
        (["--batch-size", "0"], "--batch-size=0 is out of range: it must be at least 1"),
        (["--train", "convnet:0"], "--train=convnet:0: after the architecture comes the number of steps"),
        (["--train", "convnet:5:random"], "--train=convnet:5:random: write ARCHITECTURE:STEPS, as in convnet:600"),
        (
            ["--rows", "infomap:selector=random"],
            "--rows infomap:selector=random: 'selector=random' is not OPTION=VALUE",
        ),
    ],
)
def test_bad_options_end_with_one_sentence(argv, message, monkeypatch, capsys):
    monkeypatch.setattr(command, "run_module", lambda *call: pytest.fail("the script was started"))
    with pytest.raises(SystemExit) as error:
        command.main(["/no/such", "--data", "phantom", *argv])
    assert error.value.code == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(f"error: {message}") and captured.err.count("\n") == 1


def test_cells_have_files_of_their_own():
    folder = Path("benchmark")
    assert Cell("convnet", 5, "real_all", None, 3).path(folder) == folder / "cells" / "convnet-real_all-all-seed3.json"
    rows = [
        "infomap",
        "infomap:quota=sqrt",
        "infomap:quota=uniform",
        "kmeans:typical_share=0.9",
        "random",
    ]
    cells = [
        Cell(architecture, 5, row, size, seed)
        for architecture in ("convnet", "vit") for row in rows for size in (None, 1, 11) for seed in (1, 11)
    ]  # fmt: skip
    paths = {cell.path(folder) for cell in cells}
    assert len(paths) == len(cells)
    assert all(re.fullmatch(r"[\w.-]+", path.name) and path.parent == folder / "cells" for path in paths)


def test_a_plain_row_is_its_file_name():
    assert file_name("facility_location") == "facility_location"


def test_rows_that_differ_in_a_sign_have_files_of_their_own():
    assert file_name("infomap:markov_time=1e+1") != file_name("infomap:markov_time=1e-1")


def test_the_plan_goes_seed_by_seed():
    argv = ["run", "--data", "phantom", "--rows", "real_all", "random", "--sizes", "5", "2", "--seeds", "4", "3"]
    args = parse_args([*argv, "--train", "convnet:7", "vit:9"])
    one_seed = [
        (architecture, steps, row, size)
        for architecture, steps in (("convnet", 7), ("vit", 9))
        for row, size in (("real_all", None), ("random", 5), ("random", 2))
    ]
    cells = plan_cells(args)
    assert cells == [Cell(*rest, seed=seed) for seed in (4, 3) for rest in one_seed]


# Margins.


def test_margin_against_numbers_from_a_book():
    # Student's own data (1908): the additional sleep of ten patients with two drugs; t = 4.062, p = 0.00283.
    first = np.array([0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0])
    second = np.array([1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4])
    margin = paired_margin(second, first)
    assert margin["mean"] == pytest.approx(1.58)
    assert (margin["low"], margin["high"]) == pytest.approx((0.7001142, 2.4598858), abs=1e-6)
    assert margin["p_value"] == pytest.approx(0.002833, abs=1e-6)
    other_way = paired_margin(first, second)
    assert (other_way["mean"], other_way["low"]) == pytest.approx((-margin["mean"], -margin["high"]))


def test_margin_of_two_seeds_by_hand():
    # Differences 0.1 and 0.2: standard error 0.05, and 12.706 of them to each side with one degree of freedom.
    margin = paired_margin(np.array([0.6, 0.9]), np.array([0.5, 0.7]))
    reach = 0.05 * stats.t.ppf(0.975, 1)
    assert (margin["mean"], margin["low"], margin["high"]) == pytest.approx((0.15, 0.15 - reach, 0.15 + reach))
    assert margin["p_value"] == pytest.approx(2 * stats.t.sf(3, 1))


@pytest.mark.parametrize(
    ("scores", "baseline", "mean"),
    [([0.75], [0.5], 0.25), ([0.5, 0.75], [0.5, 0.75], 0.0), ([0.5, 0.75, 1], [0.25, 0.5, 0.75], 0.25)],
)
def test_one_seed_and_equal_differences_leave_the_interval_open(scores, baseline, mean):
    margin = paired_margin(np.array(scores), np.array(baseline))
    assert margin == {"mean": mean, "low": None, "high": None, "p_value": None}


def test_differences_equal_but_for_rounding_leave_the_interval_open():
    margin = paired_margin(np.array([0.8, 0.9]), np.array([0.7, 0.8]))
    assert margin == {"mean": pytest.approx(0.1), "low": None, "high": None, "p_value": None}


# Rows.


def scored(architecture: str, row: str, size: int | None, seed: int, accuracy: float, auc: float | None = 0.5):
    scores = {"accuracy": accuracy, "auc": auc, "f1": accuracy / 2}
    file = {
        "num_train": 5 * (size or 9), "config": {"max_train_steps": 7},
        "validation": {**scores, "accuracy": 1 - accuracy}, "test": scores,
    }  # fmt: skip
    return Cell(architecture, 7, row, size, seed), file


def test_margins_are_paired_by_seed():
    rows = summarise([
        scored("convnet", "infomap", 2, 1, 0.7), scored("convnet", "infomap", 2, 0, 0.9),
        scored("convnet", "infomap", 2, 2, 0.3),
        # Seed 0 is not there yet, and neither another size nor another classifier is a baseline.
        scored("convnet", "random", 2, 2, 0.2), scored("convnet", "random", 2, 1, 0.5),
        scored("convnet", "random", 1, 0, 0.1), scored("vit", "infomap", 2, 0, 0.4),
        scored("convnet", "real_all", None, 0, 0.95),
    ])  # fmt: skip
    assert [(row["architecture"], row["row"], row["size"]) for row in rows] == [
        ("convnet", "infomap", 2), ("convnet", "random", 2), ("convnet", "random", 1), ("vit", "infomap", 2),
        ("convnet", "real_all", None),
    ]  # fmt: skip
    first = rows[0]
    assert (first["num_train"], first["steps"], first["seeds"]) == (10, 7, [0, 1, 2])
    assert first["test"]["accuracy"] == {
        "mean": pytest.approx(1.9 / 3),
        "std": pytest.approx(np.std([0.9, 0.7, 0.3], ddof=1)),
        "values": [0.9, 0.7, 0.3],
        "margin": paired_margin(np.array([0.7, 0.3]), np.array([0.5, 0.2])),
    }
    assert first["test"]["auc"]["margin"] == {"mean": 0.0, "low": None, "high": None, "p_value": None}
    assert first["test"]["accuracy"]["margin"]["mean"] == pytest.approx(0.15)
    assert first["validation"]["accuracy"]["margin"]["mean"] == pytest.approx(-0.15)
    assert [row["test"]["accuracy"]["margin"] for row in rows[1:]] == [None] * 4


def test_one_seed_has_neither_spread_nor_interval():
    [row, _] = summarise([scored("convnet", "infomap", 2, 3, 0.75), scored("convnet", "random", 2, 3, 0.5)])
    margin = {"mean": 0.25, "low": None, "high": None, "p_value": None}
    assert row["test"]["accuracy"] == {"mean": 0.75, "std": None, "values": [0.75], "margin": margin}


def test_an_auc_that_is_undefined_once_has_no_mean():
    [row] = summarise([scored("convnet", "random", 2, 0, 0.5, auc=None), scored("convnet", "random", 2, 1, 0.5)])
    assert row["test"]["auc"] == {"mean": None, "std": None, "values": [None, 0.5], "margin": None}
    assert "| 0.500 ± 0.000 | – |" in markdown_table([row], "test")


def test_table_of_one_split():
    rows = summarise([
        scored("convnet", "infomap:quota=sqrt", 10, 0, 0.75), scored("convnet", "infomap:quota=sqrt", 10, 1, 0.5),
        scored("convnet", "random", 10, 0, 0.5), scored("convnet", "random", 10, 1, 0.375),
        scored("convnet", "infomap:quota=sqrt", 2, 0, 0.5), scored("convnet", "random", 2, 0, 0.5),
        scored("convnet", "real_all", None, 0, 1.0), scored("vit", "real_random", 2, 0, 0.25),
    ])  # fmt: skip
    table = markdown_table(rows, "test")
    assert table.endswith("|\n")
    lines = [[text.strip() for text in line.split("|")[1:-1]] for line in table.splitlines()]
    assert {len(line) for line in lines} == {8}
    assert [line[:3] for line in lines[2:]] == [
        ["convnet", "all", "all real training tiles"],
        ["convnet", "2", "`infomap:quota=sqrt`"],
        ["convnet", "2", "`random`"],
        ["convnet", "10", "`infomap:quota=sqrt`"],
        ["convnet", "10", "`random`"],
        ["vit", "2", "random real training tiles"],
    ]
    margin = paired_margin(np.array([0.75, 0.5]), np.array([0.5, 0.375]))
    assert lines[5][3:] == [
        "0.625 ± 0.177", "0.500 ± 0.000", "0.312 ± 0.088",
        f"+0.188 ({margin['low']:+.3f} to {margin['high']:+.3f})", f"{margin['p_value']:.3f}",
    ]  # fmt: skip
    assert lines[3][3:] == ["0.500", "0.500", "0.250", "+0.000", ""]
    assert lines[2][3:] == ["1.000", "0.500", "0.500", "", ""]
    # The other split has its own numbers.
    assert "| 0.000 |" in markdown_table(rows, "validation").splitlines()[2]


# Whole benchmarks. Each start of workers takes seconds, so there are few.


ROWS = [
    "real_all", "pool_all", "real_random", "random", "infomap:n_neighbors=3", "kmeans:typical_share=0.9",
]  # fmt: skip
OPTIONS = ["--train", "convnet:2", "--batch-size", "10", "--mixed-precision", "no"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tiny_pool, tiny_teacher) -> Path:
    """The folder of a run with a pool and a teacher."""
    folder = tmp_path_factory.mktemp("results") / "run"
    shutil.copytree(tiny_pool, folder / "pool")
    shutil.copytree(tiny_teacher, folder / "teacher")
    return folder


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


@pytest.fixture(scope="module")
def benchmark(folder, start) -> Path:
    """The benchmark with one seed."""
    start("--rows", *ROWS, "--sizes", 1, 2, "--seeds", 0)
    return folder / "benchmark"


@pytest.fixture(scope="module")
def grown(benchmark, start) -> tuple[Path, dict, dict, dict]:
    """The same with one cell lost and one more seed: the folder, its cells and times before, and those after."""
    lost = cell_files(benchmark)[f"convnet-{file_name(ROWS[-1])}-2-seed0"]
    cells = {name: without_seconds(path) for name, path in cell_files(benchmark).items()}
    before = times(benchmark)
    lost.unlink()
    start("--rows", *ROWS, "--sizes", 1, 2, "--seeds", 0, 1)
    return benchmark, cells, before, times(benchmark)


def test_what_is_missing_is_trained_and_nothing_else(grown):
    folder, cells, before, after = grown
    assert len(before) == 2 + 4 * 2 and len(after) == 2 * len(before)
    written = {name for name in after if after[name] != before.get(name)}
    lost = f"convnet-{file_name(ROWS[-1])}-2-seed0"
    assert written == {lost} | {name for name in after if name.endswith("-seed1")}
    # The lost cell comes out as it was.
    assert {name: without_seconds(path) for name, path in cell_files(folder).items() if name in before} == cells
    assert not (folder / "cells" / "checkpoints").exists() or not any((folder / "cells" / "checkpoints").iterdir())


def test_cells_say_how_they_were_trained(grown, tiny_npz):
    source = load_tiles(tiny_npz)
    for name, path in cell_files(grown[0]).items():
        cell = read_json(path)
        row, size = cell["row"], name.split("-")[-2]
        assert cell["num_train"] == {"real_all": 120, "pool_all": 30}.get(row) or 5 * int(size), name
        assert name == f"convnet-{file_name(row)}-{size}-seed{cell['seed']}"
        assert (cell["config"]["seed"], cell["config"]["max_train_steps"], cell["best_step"]) == (cell["seed"], 2, 2)
        assert cell["config"]["batch_size"] == 10
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
            assert (row[split]["accuracy"]["margin"] is None) == (row["row"] in ("random", "real_all", "pool_all"))


def test_table_has_a_line_for_each_row_and_size(grown):
    folder = grown[0]
    text = (folder / "benchmark.md").read_text()
    results = read_json(folder / "benchmark.json")
    validation, test = text.split("## ")[1:]
    assert validation.startswith("Validation tiles\n\n| classifier |") and test.startswith("Test tiles\n\n|")
    assert validation.endswith(markdown_table(results["rows"], "validation") + "\n")
    assert test.endswith(markdown_table(results["rows"], "test"))
    assert [len(part.splitlines()) for part in (validation, test)] == [2 + 2 + 10 + 1, 2 + 2 + 10]
    record = read_record(folder)
    assert (record["complete"], record["num_cells"]) == (True, 20)


def test_nothing_is_trained_again(grown, start, monkeypatch, capsys):
    folder, _, _, after = grown
    results, table = (folder / "benchmark.json").read_bytes(), (folder / "benchmark.md").read_bytes()
    kept = (folder / "inputs.npz").stat().st_mtime_ns
    for name in ("ProcessPoolExecutor", "embed_images"):
        monkeypatch.setattr(script, name, lambda *call, **options: pytest.fail("something was started"))
    start("--rows", *ROWS, "--sizes", 1, 2, "--seeds", 0, 1)
    assert times(folder) == after and (folder / "inputs.npz").stat().st_mtime_ns == kept
    assert (folder / "benchmark.json").read_bytes() == results and (folder / "benchmark.md").read_bytes() == table
    assert capsys.readouterr().out.endswith(f"benchmark: saved to {folder}\n")

    # A table of fewer rows and seeds leaves the other cells where they are.
    start("--rows", "infomap:n_neighbors=3", "real_all", "--sizes", 2, "--seeds", 1)
    fewer = read_json(folder / "benchmark.json")["rows"]
    assert [(row["row"], row["size"], row["seeds"]) for row in fewer] == [
        ("infomap:n_neighbors=3", 2, [1]), ("real_all", None, [1]),
    ]  # fmt: skip
    assert times(folder) == after
    start("--rows", *ROWS, "--sizes", 1, 2, "--seeds", 0, 1)
    assert (folder / "benchmark.json").read_bytes() == results


def test_other_settings_are_refused(grown, folder, tiny_npz, capsys):
    before = {path: path.stat().st_mtime_ns for path in grown[0].rglob("*")}
    argv = [str(folder), "--data", str(tiny_npz), *OPTIONS, "--rows", "random", "--sizes", "1", "--seeds", "0"]
    for changed, message in (
        (["--train", "convnet:3"], 'steps was {"convnet": 2} and is now {"convnet": 3}'),
        (["--batch-size", "11"], "batch_size was 10 and is now 11"),
        (["--embedder", "other"], 'embedder was "untrained" and is now "other"'),
        (["--mixed-precision", "bf16"], 'mixed_precision was "no" and is now "bf16"'),
    ):
        with pytest.raises(SystemExit) as error:
            run_script(parse_args, script.main, [*argv, *changed])
        assert error.value.code == 2
        assert capsys.readouterr().err == (
            f"error: {grown[0]} was made with other settings ({message}): give another --output, or delete it\n"
        )
    assert {path: path.stat().st_mtime_ns for path in grown[0].rglob("*")} == before


def test_two_jobs_give_the_same_scores_and_what_is_too_large_is_left_out(
    benchmark, folder, tmp_path, tiny_npz, monkeypatch, capfd
):
    # As a user does it: the command starts a process, and this one its workers.
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    output = tmp_path / "output"
    argv = [
        "--rows",
        "random",
        "kmeans:typical_share=0.9",
        "real_random",
        "--sizes",
        "2",
        "7",
        "--seeds",
        "0",
    ]
    command.main([str(folder), "--data", str(tiny_npz), *OPTIONS, *argv, "--jobs", "2", "--output", str(output)])
    captured = capfd.readouterr()
    assert "Traceback" not in captured.err
    cells, alone = cell_files(output), cell_files(benchmark)
    both = {name for name in cells if name in alone}
    assert both == {
        "convnet-random-2-seed0", f"convnet-{file_name(ROWS[-1])}-2-seed0", "convnet-real_random-2-seed0",
    }  # fmt: skip
    for name in both:
        one, other = read_json(cells[name]), read_json(alone[name])
        assert one["config"] == other["config"]
        for split in ("validation", "test"):
            assert one[split]["confusion"] == other[split]["confusion"], name
            assert one[split]["auc"] == pytest.approx(other[split]["auc"], abs=1e-3)

    # 7 of 6 pool images are too many, 7 of 24 real ones are not.
    assert set(cells) - both == {"convnet-real_random-7-seed0"}
    results = read_json(output / "benchmark.json")
    assert sorted(results["notes"]) == [
        f"{row}, 7 per class: left out, since class 0 has 6 images but n_per_class=7: lower n_per_class or generate "
        "more" for row in ("kmeans:typical_share=0.9", "random")
    ]  # fmt: skip
    assert [(row["row"], row["size"]) for row in results["rows"]] == [
        ("random", 2), ("kmeans:typical_share=0.9", 2), ("real_random", 2), ("real_random", 7),
    ]  # fmt: skip
    assert all(note in captured.out + captured.err for note in results["notes"])
    assert f"benchmark: saved to {output}" in captured.out
    assert len((output / "benchmark.md").read_text().split("## Test")[1].splitlines()) == 2 + 2 + 4
    assert read_record(output)["complete"]


# What workers do, in this process.


@pytest.fixture
def worker(folder, tiny_npz, tmp_path, fresh_accelerate):
    """`worker(row, …)` is one for these rows, with its inputs in a folder of its own."""

    def make(*rows: str) -> Worker:
        argv = [str(folder), "--data", str(tiny_npz), *OPTIONS, "--output", str(tmp_path), "--rows", *rows]
        args = parse_args(argv)
        images, columns, _ = read_image_dataset(folder / "pool")
        write_inputs(args, Tiles(images, columns["label"]), load_tiles(tiny_npz))
        return Worker(args)

    return make


def test_each_row_has_its_tiles(worker, folder, tiny_npz):
    worker = worker(*ROWS)
    real = load_tiles(tiny_npz).split("train")
    images, columns, _ = read_image_dataset(folder / "pool")

    def tiles(row: str, size: int | None, seed: int = 0) -> Tiles:
        return worker.training_tiles(Cell("convnet", 2, row, size, seed))

    assert np.array_equal(tiles("real_all", None).images, real.images)
    assert np.array_equal(tiles("pool_all", None).images, images)
    assert np.array_equal(tiles("pool_all", None).labels, columns["label"])
    for seed in (0, 1):
        drawn = tiles("real_random", 3, seed)
        assert np.array_equal(drawn.images, real.images[sample_per_class(real.labels, 3, seed)])
    pool = {image.tobytes(): label for image, label in zip(images, columns["label"], strict=True)}
    for row in ROWS[3:]:
        chosen = tiles(row, 2)
        assert np.bincount(chosen.labels).tolist() == [2] * 5
        assert [pool[image.tobytes()] for image in chosen.images] == chosen.labels.tolist()
    # The seed is that of the selection too.
    assert not np.array_equal(tiles("random", 2, 0).images, tiles("random", 2, 1).images)


def test_inputs_are_made_again_only_where_real_tiles_are_new(worker, tmp_path, monkeypatch):
    first = worker("random").inputs
    assert first.real_embeddings is None and first.embeddings.shape == (30, 512)
    second = worker("random", "infomap:typical_share=0.9").inputs
    assert second.real_embeddings.shape == (120, 512)
    np.testing.assert_allclose(second.embeddings, first.embeddings, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(second.probabilities.sum(axis=1), 1, atol=1e-5)
    monkeypatch.setattr(script, "embed_images", None)
    for rows in (["random"], ["kmeans:typical_share=0.5"]):
        assert worker(*rows).inputs.real_embeddings.shape == (120, 512)
    assert [path.name for path in tmp_path.iterdir()] == ["inputs.npz"]


def test_a_run_without_pool_is_refused(tmp_path, folder, run_main, tiny_npz):
    argv = ["--data", tiny_npz, *OPTIONS, "--output", tmp_path / "output"]
    with pytest.raises(InputError, match="holds no finished pool: run histodistill generate first"):
        run_main(script, tmp_path, *argv)
    shutil.copytree(folder / "pool", tmp_path / "pool")
    with pytest.raises(InputError, match="holds no finished classifier: run train_classifier first"):
        run_main(script, tmp_path, *argv)
    assert not (tmp_path / "output").exists()


def test_real_tiles_of_another_kind_are_refused(tmp_path, folder, run_main, tiny_npz):
    with np.load(tiny_npz) as arrays:
        arrays = dict(arrays)
    np.savez(tmp_path / "classes.npz", **{**arrays, "class_names": np.array(list("abcde"))})
    np.savez(tmp_path / "splits.npz", **{name: array for name, array in arrays.items() if "test" not in name})
    for data, message in (("classes", "has the classes"), ("splits", "has no 'test' split")):
        with pytest.raises(InputError, match=message):
            run_main(script, folder, "--data", tmp_path / f"{data}.npz", *OPTIONS, "--output", tmp_path / "output")
    assert not (tmp_path / "output").exists()
