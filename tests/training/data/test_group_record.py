"""The private record of whose tiles a run was made with."""

from __future__ import annotations

import json
import os
import stat

import numpy as np
import pytest

from histodistill.hub_cards.errors import ContentError
from histodistill.hub_cards.part_files import PARTS, audited_names
from histodistill.training.data.group_record import GROUP_RECORD, read_group_record, write_group_record
from histodistill.training.data.tiles import HELD_OUT, Tiles, TileSource
from histodistill.training.evaluation.verdicts import RECORDS
from histodistill.training.running.errors import InputError


def source(train: list[str], held_out: list[str] | None = None) -> TileSource:
    def tiles(groups: list[str]) -> Tiles:
        images = np.zeros((len(groups), 8, 8, 3), np.uint8)
        return Tiles(images, np.arange(len(groups)) % 2, None, np.array(groups))

    splits = {"train": tiles(train)} | ({HELD_OUT: tiles(held_out)} if held_out else {})
    return TileSource("x", ["a", "b"], splits, 8, group_kind="patient")


def test_a_group_is_found_by_its_name_alone(tmp_path):
    write_group_record(tmp_path, source(["Müller", "Müller", "Doe"], ["Doe"]))
    text = (tmp_path / GROUP_RECORD).read_text()
    assert "Doe" not in text and "ller" not in text
    record = read_group_record(tmp_path)
    assert record.kind == "patient"
    assert record.tiles_of("Müller") == {"train": 2}
    assert record.tiles_of(" Mu\u0308ller") == {"train": 2}  # as macOS may spell it
    assert record.tiles_of("Doe") == {"train": 1, "held_out": 1}
    assert record.tiles_of("doe") is None


@pytest.mark.skipif(os.name == "nt", reason="permissions are others")
def test_its_owner_alone_may_read_it(tmp_path):
    write_group_record(tmp_path, source(["a", "b"]))
    assert stat.S_IMODE((tmp_path / GROUP_RECORD).stat().st_mode) == 0o600


def test_it_stays_while_the_tiles_do_and_two_runs_have_nothing_in_common(tmp_path):
    for run in ("one", "two"):
        write_group_record(tmp_path / run, source(["a", "b"]))
    first = (tmp_path / "one" / GROUP_RECORD).read_text()
    write_group_record(tmp_path / "one", source(["a", "b"]))
    assert (tmp_path / "one" / GROUP_RECORD).read_text() == first
    write_group_record(tmp_path / "one", source(["a", "c"]))
    assert read_group_record(tmp_path / "one").tiles_of("c") == {"train": 1}
    assert not read_group_record(tmp_path / "two").groups.keys() & json.loads(first)["groups"].keys()


def test_without_groups_there_is_none(tmp_path):
    tiles = source(["a", "b"])
    without = TileSource("x", tiles.class_names, {"train": Tiles(*list(vars(tiles.split("train")).values())[:2])}, 8)
    write_group_record(tmp_path, without)
    assert read_group_record(tmp_path) is None


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("salt", "xyz"),
        ("cost", 2**30),
        ("cost", 1.5),
        ("kind", "Doe"),
        ("groups", {"00": {"train": -1}}),
        ("groups", []),
    ],
)
def test_a_damaged_record_is_refused(key, value, tmp_path):
    write_group_record(tmp_path, source(["a", "b"]))
    path = tmp_path / GROUP_RECORD
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
    with pytest.raises(InputError, match="is damaged: delete it"):
        read_group_record(tmp_path)


def test_nothing_takes_it_for_what_may_be_published(tmp_path):
    assert GROUP_RECORD not in RECORDS
    for part in PARTS:
        folder = tmp_path / part
        write_group_record(folder, source(["a", "b"]))
        with pytest.raises(ContentError, match=rf"{GROUP_RECORD} is no file of a {part}"):
            audited_names(folder)
