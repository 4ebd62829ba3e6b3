"""`histodistill inspect`, as a user runs it."""

from __future__ import annotations

import json

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, Features
from datasets import Image as ImageFeature
from PIL import Image

import histodistill
from histodistill.training import cli
from histodistill.training.data.phantom import phantom_source
from histodistill.training.end_to_end import inspect_tiles
from histodistill.training.end_to_end.inspection_table import table_lines


KEYS = ["classes", "splits", "sizes", "modes", "duplicates", "findings"]


@pytest.fixture(scope="module")
def tiles(tmp_path_factory):
    """A .npz of tiles of patients, of which one is in train and in test."""
    source = phantom_source(image_size=16, sizes={"train": 15, "validation": 4, "test": 4})
    arrays = {"class_names": np.array(source.class_names)}
    for split, prefix in (("train", "train"), ("validation", "val"), ("test", "test")):
        part = source.split(split)
        arrays |= {f"{prefix}_images": part.images, f"{prefix}_labels": part.labels[:, None]}
        arrays[f"{prefix}_groups"] = np.char.add("Jane Doe ", part.groups)
    arrays["test_groups"] = np.append(arrays["train_groups"][:1], arrays["test_groups"][1:])
    path = tmp_path_factory.mktemp("tiles") / "tiles.npz"
    np.savez(path, **arrays)
    return path


def call(capsys, *argv: object) -> tuple[int, str]:
    """Exit code and standard output of a command line."""
    capsys.readouterr()
    code = 0
    try:
        cli.main(["inspect", *map(str, argv)])
    except SystemExit as ended:
        code = ended.code
    return code, capsys.readouterr().out


def test_table_and_findings(tiles, capsys):
    code, out = call(capsys, tiles, "--allow-shared-groups", "--group-kind", "patient")
    assert code == 0
    lines = out.splitlines()
    assert lines[0] == "tiles: 115 tiles by class and split, and in brackets patients"
    assert lines[1].split() == ["train", "held", "out", "validation", "test"]
    assert lines[7].split()[0] == "all" and lines[8] == ""
    assert [line for line in lines if line.startswith("WARN  groups")]
    assert lines[-1].endswith(" 0 FAIL")
    assert any(line.startswith("PASS  costs     a run with the preset ") for line in lines)


def test_a_patient_in_two_splits_fails_and_is_named_on_the_terminal_alone(tiles, capsys):
    code, out = call(capsys, tiles)
    assert code == 1
    assert "FAIL  groups    1 group is in both train and test of tiles (such as 'Jane Doe " in out
    code, out = call(capsys, tiles, "--json")
    assert code == 1 and "Doe" not in out
    found = json.loads(out)
    assert list(found) == KEYS
    assert found["classes"] == ["adipose", "glands", "lymphocytes", "mucus", "stroma"]
    assert found["splits"]["train"] == {"tiles": 75, "groups": 5, "per_class": dict.fromkeys(found["classes"], 15)}
    assert found["sizes"] == {"16x16": 115}
    assert found["modes"] is found["duplicates"] is None
    (failing,) = [finding for finding in found["findings"] if finding["level"] == "fail"]
    assert failing["what"] == "1 group is in both train and test of tiles"
    assert failing["remedy"].endswith("or give --allow-shared-groups, which cards and reports then say")
    assert {finding["level"] for finding in found["findings"]} <= {"pass", "warn", "fail"}


def test_pixels_are_decoded_where_that_is_asked_for(tiles, capsys):
    code, out = call(capsys, tiles, "--pixels", "--json", "--allow-shared-groups")
    found = json.loads(out)
    assert code == 0 and found["modes"] == {"RGB": 115}
    assert found["duplicates"]["within"] == {"train": 0, "validation": 0, "test": 0}


@pytest.mark.parametrize("kind", ["folder", "parquet"])
def test_colour_modes_are_counted_where_not_all_are_rgb(tmp_path, capsys, kind):
    rng = np.random.default_rng(0)
    for number in range(12):
        image = Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8))
        path = tmp_path / "t" / "train" / f"c{number % 2}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        (image.convert("L") if number < 2 else image.convert("P") if number < 3 else image).save(path)
    place = tmp_path / "t"
    if kind == "parquet":
        place = tmp_path / "p"
        place.mkdir()
        rows = [(path.read_bytes(), int(path.parent.name[1])) for path in sorted((tmp_path / "t").rglob("*.png"))]
        features = Features({"image": ImageFeature(), "label": ClassLabel(names=["c0", "c1"])})
        images = [{"bytes": content, "path": None} for content, _ in rows]
        table = {"image": images, "label": [label for _, label in rows]}
        Dataset.from_dict(table, features=features).to_parquet(place / "train.parquet")
    code, out = call(capsys, place, "--pixels", "--json", "--audit-share", 0)
    found = json.loads(out)
    assert code == 1 and found["modes"] == {"RGB": 9, "L": 2, "P": 1}
    (failing,) = [finding for finding in found["findings"] if "decoded" in finding["what"]]
    assert failing["what"].endswith("their colour modes are RGB 9, L 2, P 1")


def test_what_cannot_be_decoded_fails_without_naming_a_file_in_json(tmp_path, capsys):
    for name in ("train/a/Doe_1", "train/b/Roe_1"):
        path = tmp_path / "t" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"\x89PNG\r\n\x1a\n cut short")
    with pytest.raises(SystemExit) as ended:
        cli.main(["inspect", str(tmp_path / "t"), "--json"])
    assert ended.value.code == 2
    assert "Doe_1" in capsys.readouterr().err


def test_a_source_that_is_none_is_an_error(capsys):
    assert call(capsys, "/nowhere", "--json") == (2, "")


def test_tiles_that_do_not_suit_the_models_fail(capsys):
    code, out = call(capsys, "phantom", "--image-size", 30, "--audit-share", 0)
    assert code == 1
    assert "FAIL  sizes     tiles of 30 px do not suit this preset, whose models halve them 2 times: give --" in out
    assert "held out" not in out


def test_from_python(capsys):
    found = histodistill.inspect_tiles(histodistill.InspectTilesConfig(data="phantom"))
    assert found.name == "phantom" and found.group_kind == "patient"
    assert found.splits["train"].tiles == 1500 and found.planned["train"].tiles == 1350
    assert inspect_tiles.exit_code(found) == 0
    assert table_lines(found)[0] in capsys.readouterr().out
