from __future__ import annotations

from pathlib import Path

import pytest

from histodistill.training.running.errors import InputError
from histodistill.training.tables import results_table as script
from histodistill.training.tables.infodist_protocol import planned_infodist_cells
from histodistill.training.tables.infodist_rows import (
    INFODIST_ROWS,
    parse_infodist_row,
    published_text,
    read_published,
)
from histodistill.training.tables.results_table import ResultsTableConfig


def read(*argv: str) -> ResultsTableConfig:
    """The options of a command line of the protocol."""
    return script.make_parser().read(["r", "--data", "d", "--protocol", "infodist", *argv])


def test_the_whole_table():
    names = ("real_random", "random", "infomap_published", "infomap_meant")
    expected = (
        *names, *(f"{name}@softmaxes=3" for name in names), *(f"{name}@loss=joint" for name in names),
        "pool_all", "real_all",
    )  # fmt: skip
    assert expected == INFODIST_ROWS
    cells = planned_infodist_cells(INFODIST_ROWS, None, None)
    assert len({cell.path(Path("t")) for cell in cells}) == len(cells) == 14 * 5
    assert {cell.size for cell in cells if cell.row.tiles not in ("pool_all", "real_all")} == {100}
    assert {cell.size for cell in cells if cell.row.tiles in ("pool_all", "real_all")} == {None}
    # One seed of each comes before any other seed.
    assert [cell.seed for cell in cells] == sorted(cell.seed for cell in cells)
    few = planned_infodist_cells(["random", "real_all"], [5, 9], [2])
    assert [(cell.row.name, cell.size, cell.seed) for cell in few] == [
        ("random", 5, 2), ("random", 9, 2), ("real_all", None, 2),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("real_all", ("real_all", "ce", 1)),
        ("infomap_meant@softmaxes=3", ("infomap_meant", "ce", 3)),
        ("random@loss=joint", ("random", "joint", 1)),
        ("infomap_published@loss=joint,softmaxes=3", ("infomap_published", "joint", 3)),
    ],
)
def test_rows_say_tiles_loss_and_softmaxes(name, expected):
    row = parse_infodist_row(name)
    assert (row.tiles, row.loss, row.softmaxes) == expected and row.name == name
    assert row.title.endswith(f", `{name.partition('@')[2]}`") == ("@" in name)


def test_the_result_has_a_folder_of_its_own():
    assert read().folder == Path("r/benchmark/infodist") and read("--output", "x").folder == Path("x")
    usual = script.make_parser().read(["r", "--data", "d"])
    assert (usual.protocol, usual.folder) == ("v2", Path("r/benchmark"))
    assert usual.settings() == read().settings()  # no option of the protocol is a setting of the usual table


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (
            ["--rows", "kmeans"],
            "--rows kmeans: --protocol=infodist has no row kmeans: give one of real_random, random",
        ),
        (["--rows", "infomap_ment"], "--protocol=infodist has no row infomap_ment (did you mean infomap_meant?)"),
        (
            ["--rows", "random@softmaxes=2"],
            "--rows random@softmaxes=2: after the @ of --protocol=infodist comes one of softmaxes=3, loss=joint, ",
        ),
        (["--rows", "random@"], "--rows random@: after the @ of --protocol=infodist comes one of softmaxes=3"),
        (["--rows", "random", "random"], "--rows names a row twice: name each once"),
        (
            ["--train", "convnet:5"],
            "--train has no meaning with --protocol=infodist, whose recipe is fixed: leave it out",
        ),
        (["--quick"], "--quick has no meaning with --protocol=infodist, whose recipe is fixed: leave it out"),
        (["--recipe", "margin=0.1"], "--recipe has no meaning with --protocol=infodist"),
        (["--also", "other"], "--also has no meaning with --protocol=infodist"),
        (["--batch-size", "9"], "--batch-size has no meaning with --protocol=infodist"),
        (["--whole-batch-size", "9"], "--whole-batch-size has no meaning with --protocol=infodist"),
        (["--jobs", "2"], "--jobs has no meaning with --protocol=infodist"),
        (["--epochs", "0"], "--epochs=0 is out of range: it must be at least 1"),
        (["--protocol", "v3"], "--protocol=v3 is unknown"),
        (
            ["--protocol", "v2", "--epochs", "5"],
            "--epochs is an option of --protocol=infodist alone: give that, or leave it out",
        ),
        (["--protocol", "v2", "--published", "f"], "--published is an option of --protocol=infodist alone"),
        (["--protocol", "v2", "--rows", "infomap_meant"], "--rows infomap_meant: selector=infomap_meant is unknown"),
    ],
)
def test_options_of_the_other_protocol_are_refused(argv, message, capsys):
    with pytest.raises(SystemExit) as error:
        read(*argv)
    assert error.value.code == 2
    told = capsys.readouterr().err
    assert told.startswith("error: ") and message in told and told.count("\n") == 1


def test_figures_of_others(tmp_path):
    path = tmp_path / "paper.csv"
    path.write_text(
        "row,metric,value\nreal_all,accuracy,0.9\nreal_all, f1 ,0.8 ± 0.1\nrandom@softmaxes=3,macro F1,x\n"
    )
    found = read_published(path)
    assert found == {"real_all": {"accuracy": "0.9", "f1": "0.8 ± 0.1"}, "random@softmaxes=3": {"f1": "x"}}
    assert published_text(found["real_all"]) == "ACC 0.9, macro F1 0.8 ± 0.1"
    assert published_text({}) == ""
    path.write_text("row,metric,value\n")
    assert read_published(path) == {}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "must begin with the line row,metric,value: write it so"),
        ("row,value\n", "must begin with the line row,metric,value: write it so"),
        (
            "row,metric,value\nreal_all,accuracy\n",
            "line 2: there must be a row, one of accuracy, auc, f1, and a value",
        ),
        ("row,metric,value\nreal_all,loss,3\n", "line 2: there must be a row, one of accuracy, auc, f1"),
        ("row,metric,value\nreal_all,auc,\n", "line 2: there must be a row, one of accuracy, auc, f1"),
        ("row,metric,value\nreal_all,auc,0.5|0.6\n", "line 2: there must be a row, one of accuracy, auc, f1"),
        ("row,metric,value\nreal_all,auc,.5\nall,auc,.5\n", "line 3: protocol=infodist has no row all"),
        (f"row,metric,value\nreal_all,auc,{'9' * 41}\n", "line 2: there must be a row, one of accuracy, auc, f1"),
    ],
)
def test_a_file_of_something_else_is_refused(tmp_path, text, message):
    path = tmp_path / "paper.csv"
    path.write_text(text)
    with pytest.raises(InputError) as error:
        read_published(path)
    assert str(error.value).startswith(f"published={path}") and message in str(error.value)


def test_a_file_that_cannot_be_read_is_refused(tmp_path):
    with pytest.raises(
        InputError, match=r"missing\.csv cannot be read \(No such file or directory\): give a CSV file"
    ):
        read_published(tmp_path / "missing.csv")
    (tmp_path / "bytes.csv").write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match=r"bytes\.csv cannot be read \("):
        read_published(tmp_path / "bytes.csv")
