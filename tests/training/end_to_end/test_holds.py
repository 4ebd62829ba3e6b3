"""`histodistill holds`: which runs were made with the tiles of a patient."""

from __future__ import annotations

import numpy as np
import pytest

from histodistill.training import cli
from histodistill.training.data.group_record import GROUP_RECORD, write_group_record
from histodistill.training.data.tiles import HELD_OUT, Tiles, TileSource
from histodistill.training.running.files import write_json


def add_run(folder, train: list[str] | None, held_out: list[str] | None = None) -> None:
    """A run as far as `holds` looks at it."""
    write_json(folder / "run.json", {"format": 1})
    splits = {
        split: Tiles(np.zeros((len(groups), 8, 8, 3), np.uint8), np.zeros(len(groups), int), None, np.array(groups))
        for split, groups in (("train", train), (HELD_OUT, held_out))
        if groups
    }
    if splits:
        write_group_record(folder, TileSource("x", ["a", "b"], splits, 8, group_kind="patient"))


def call(capsys, *argv: object) -> tuple[int, str, str]:
    code = 0
    try:
        cli.main(["holds", *map(str, argv)])
    except SystemExit as ended:
        code = ended.code
    out, err = capsys.readouterr()
    return code, out, err


def test_one_line_for_each_run(tmp_path, capsys):
    add_run(tmp_path / "a", ["P1"] * 3 + ["P2"], ["P1"])
    add_run(tmp_path / "b", ["P2"])
    add_run(tmp_path / "c", None)
    runs = [tmp_path / name for name in "abc"]
    assert call(capsys, "P1", *runs) == (
        0,
        f"{runs[0]}: made with tiles of this patient (train 3, held out 1)\n"
        f"{runs[1]}: not known to hold it\n"
        f"{runs[2]}: has no record of groups\n",
        "",
    )
    code, out, _ = call(capsys, "P9", *runs)
    assert code == 1 and "made with" not in out


@pytest.mark.parametrize("group", ["", "  "])
def test_an_empty_name_is_refused(group, tmp_path, capsys):
    add_run(tmp_path / "a", ["P1"])
    assert call(capsys, group, tmp_path / "a")[::2] == (2, "error: GROUP is empty: give the name of a group\n")


def test_what_is_no_run_is_an_error(tmp_path, capsys):
    add_run(tmp_path / "a", ["P1"])
    code, out, err = call(capsys, "P1", tmp_path / "a", tmp_path / "x")
    assert code == 2 and out == "" and err.startswith(f"error: {tmp_path / 'x'} is no run: give the folder")
    (tmp_path / "a" / GROUP_RECORD).write_text("{")
    assert call(capsys, "P1", tmp_path / "a")[0] == 2
