from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from histodistill.selection import RandomSelector
from histodistill.selection.infodist_selection import choose_as_meant, choose_as_published
from histodistill.training.data.image_dataset import open_image_table
from histodistill.training.data.sources import load_tiles
from histodistill.training.data.tiles import Tiles, sample_per_class
from histodistill.training.running.errors import InputError
from histodistill.training.running.files import read_json
from histodistill.training.running.stages import read_record
from histodistill.training.tables import infodist_protocol
from histodistill.training.tables import results_table as script
from histodistill.training.tables.infodist_protocol import (
    CellTiles,
    infodist_markdown,
    planned_infodist_cells,
    selection_notes,
    summarise_infodist,
)


OPTIONS = ["--protocol", "infodist", "--mixed-precision", "no", "--epochs", "2", "--sizes", "2"]
# Of each kind of tiles one, and of each loss.
ROWS = ["real_random", "random@softmaxes=3", "infomap_published", "infomap_meant@loss=joint", "pool_all", "real_all"]


@pytest.fixture(scope="module")
def start(folder, tiny_npz, run_main):
    """`start("--option", …)` runs the protocol in this process."""
    return lambda *argv: run_main(script, folder, "--data", tiny_npz, *OPTIONS, *argv)


@pytest.fixture(scope="module")
def table(folder, start) -> Path:
    """The table with two seeds, and figures of others."""
    published = folder.parent / "paper.csv"
    published.write_text("row,metric,value\nreal_all,accuracy,0.99\nreal_random,auc,0.98\n")
    start("--rows", *ROWS, "--seeds", 0, 1, "--published", published)
    return folder / "benchmark" / "infodist"


def cells_of(output: Path) -> dict[str, dict]:
    """What the files of the cells hold, but for their seconds."""
    found = {path.stem: read_json(path) for path in sorted((output / "cells").glob("*.json"))}
    for cell in found.values():
        del cell["seconds"]
    return found


def test_each_row_and_seed_is_a_cell(table, folder):
    cells = cells_of(table)
    assert len(cells) == 2 * len(ROWS) and not (table / "cells" / "checkpoints" / "x").exists()
    assert {(cell["row"], cell["seed"]) for cell in cells.values()} == {(row, seed) for row in ROWS for seed in (0, 1)}
    for cell in cells.values():
        expected = {"real_all": 120, "pool_all": 30}.get(cell["row"], 10)
        assert cell["num_train"] == expected and cell["size"] == (2 if expected == 10 else None)
        loss, softmaxes = ("joint" if "joint" in cell["row"] else "ce"), (3 if "softmaxes=3" in cell["row"] else 1)
        assert cell["recipe"] == {
            "epochs": 2, "loss": loss, "softmaxes": softmaxes, "seed": cell["seed"], "width": 128, "batch_size": 64,
        }  # fmt: skip
        assert all(0 <= cell[split]["accuracy"] <= 1 for split in ("validation", "test"))
        is_infomap = cell["row"].startswith("infomap")
        assert (cell["selection"] is not None) == is_infomap
        if is_infomap:
            assert len(cell["selection"]["num_links"]) == len(cell["selection"]["num_communities"]) == 5
    record = read_record(table)
    assert record["complete"] and record["settings"]["epochs"] == 2 and record["num_cells"] == 12
    assert not (folder / "benchmark" / "benchmark.json").exists()


def test_the_table_says_what_was_measured(table):
    results = read_json(table / "infodist.json")
    assert (results["protocol"], results["epochs"], results["published_epochs"]) == ("infodist", 2, 1000)
    cells = cells_of(table)
    by_row = {row["row"]: row for row in results["rows"]}
    assert by_row.keys() == set(ROWS)
    for name, row in by_row.items():
        mine = [cell for cell in cells.values() if cell["row"] == name]
        assert row["seeds"] == [0, 1]
        for score in ("accuracy", "auc", "f1"):
            values = [cell["test"][score] for cell in sorted(mine, key=lambda cell: cell["seed"])]
            assert row["test"][score]["mean"] == pytest.approx(np.mean(values))
            assert row["test"][score]["std"] == pytest.approx(np.std(values, ddof=1))
    # Figures of others are of a hundred images per class: these have two.
    assert by_row["real_all"]["published"] == {"accuracy": "0.99"}
    assert all(not row["published"] for name, row in by_row.items() if name != "real_all")
    assert results["notes"][0] == (
        "the trainings have 2 epochs where the recipe has 1,000: these are not the results of the recipe"
    )
    text = (table / "infodist.md").read_text()
    assert "## Test tiles, 2 of 1,000 epochs" in text and "## Validation tiles, 2 of 1,000 epochs" in text
    assert "| ACC 0.99 |" in text and text.count("ACC 0.99") == 1  # beside test tiles alone
    assert f"- {results['notes'][0]}\n" in text


def test_nothing_is_trained_again(table, start, monkeypatch):
    before = cells_of(table)
    monkeypatch.setattr(infodist_protocol, "train_by_recipe", lambda *_, **__: pytest.fail("a cell was trained"))
    start("--rows", *ROWS, "--seeds", 1, 0)
    assert cells_of(table) == before
    # Without the file there are no figures of others.
    assert all(not row["published"] for row in read_json(table / "infodist.json")["rows"])


def test_what_is_missing_is_trained_and_nothing_else(table, start, monkeypatch):
    before = cells_of(table)
    (table / "cells" / "pool_all-all-seed1.json").write_text("{")
    (table / "cells" / "real_random-2-seed0.json").unlink()
    trained: list[tuple[int, int]] = []
    train = infodist_protocol.train_by_recipe
    monkeypatch.setattr(
        infodist_protocol,
        "train_by_recipe",
        lambda recipe, tiles, *args, **options: (
            trained.append((len(tiles), recipe.seed)) or train(recipe, tiles, *args, **options)
        ),
    )
    start("--rows", "real_random", "pool_all", "--seeds", 0, 1)
    assert trained == [(10, 0), (30, 1)] and cells_of(table) == before


def test_other_epochs_need_another_folder(table, start):
    with pytest.raises(
        InputError, match=r"was made with other settings \(epochs was 2 and is now 3\): give another output"
    ):
        start("--rows", "random", "--epochs", 3)


def test_a_row_that_cannot_be_trained_takes_no_other_with_it(start, folder, tmp_path, capsys):
    start("--rows", "random", "infomap_meant", "real_random", "--sizes", 7, "--seeds", 0, "--output", tmp_path / "t")
    results = read_json(tmp_path / "t" / "infodist.json")
    assert [row["row"] for row in results["rows"]] == ["real_random"]
    left_out = [note for note in results["notes"] if "left out" in note]
    assert [note.partition(",")[0] for note in left_out] == ["random", "infomap_meant"]
    assert "n_per_class=7" in left_out[0] and "n=7 is out of range: it must be at most 6" in left_out[1]
    told = capsys.readouterr().err
    assert all(note in told for note in left_out)


def test_a_file_of_figures_is_read_before_anything_is_made(start, tmp_path):
    with pytest.raises(InputError, match="must begin with the line row,metric,value"):
        (tmp_path / "figures.csv").write_text("x")
        start("--published", tmp_path / "figures.csv", "--output", tmp_path / "t")
    assert not (tmp_path / "t").exists()


def test_each_row_has_its_tiles(folder, tiny_npz, tmp_path):
    table = open_image_table(folder / "pool")
    pool, real = Tiles(table.images, table.columns["label"]), load_tiles(tiny_npz).split("train")
    embeddings = np.random.default_rng(0).standard_normal((len(pool), 4)).astype(np.float32)
    tiles = CellTiles(real, pool, embeddings, tmp_path)

    def of(row: str, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
        (cell,) = planned_infodist_cells([row], [2], [seed])
        found, _ = tiles.of(cell)
        assert len(found) <= tiles.most(cell)
        return np.asarray(found.images[:]), found.labels

    def equal(found: tuple[np.ndarray, np.ndarray], expected: Tiles) -> bool:
        return np.array_equal(found[0], expected.images[:]) and np.array_equal(found[1], expected.labels)

    assert equal(of("real_all"), real) and equal(of("pool_all"), pool)
    assert equal(of("real_random", 3), real.subset(sample_per_class(real.labels, 2, 3)))
    chosen = RandomSelector(n_per_class=2, random_state=3).fit(embeddings, pool.labels).selected_indices_
    assert equal(of("random", 3), pool.subset(chosen))
    for row, choose in (("infomap_published", choose_as_published), ("infomap_meant", choose_as_meant)):
        chosen = [
            rows[choose(embeddings[rows], 2, 3).chosen]
            for label in range(5)
            for rows in [np.flatnonzero(pool.labels == label)]
        ]
        assert equal(of(row, 3), pool.subset(np.concatenate(chosen)))
        assert equal(of(f"{row}@softmaxes=3", 3), pool.subset(np.concatenate(chosen)))


def cell(row: str, size: int | None, seed: int, accuracy: float, num_train: int = 18) -> dict:
    scores = {"accuracy": accuracy, "auc": 0.75, "f1": 0.5}
    found = {"num_links": [0, 90], "num_communities": [1000, 3]} if row.startswith("infomap") else None
    about = {"row": row, "size": size, "seed": seed, "num_train": num_train, "selection": found}
    return {**about, "validation": scores, "test": scores}


def test_a_table_of_the_whole_recipe_by_hand():
    cells = [
        cell("infomap_published", 100, 0, 0.5, 900), cell("infomap_published", 100, 1, 0.75, 880),
        cell("real_all", None, 0, 1.0, 5000),
    ]  # fmt: skip
    rows = summarise_infodist(cells, {"infomap_published": {"f1": "0.6", "accuracy": "71 %"}})
    text = infodist_markdown({"epochs": 1000, "published_epochs": 1000, "rows": rows}, "test")
    assert text.splitlines() == [
        "## Test tiles, 1,000 epochs",
        "",
        "| trained on | row | images per class | tiles | seeds | ACC | AUC | macro F1 | published |",
        "|---|---|---|---|---|---|---|---|---|",
        "| the pool by Infomap as the published code does it | `infomap_published` | 100 | 880 to 900 | 2 "
        "| 0.625 ± 0.177 | 0.750 ± 0.000 | 0.500 ± 0.000 | ACC 71 %, macro F1 0.6 |",
        "| all real training tiles | `real_all` | all | 5,000 | 1 | 1.000 | 0.750 | 0.500 |  |",
    ]
    assert selection_notes(cells) == [
        "infomap_published, 100 per class: graphs of 0 to 90 links a class, in which Infomap found 3 to 1,000 "
        "communities"
    ]


def test_a_killed_table_goes_on_as_a_user_goes_on(folder, tiny_npz, offline_environment, tmp_path, table):
    """The command, killed when it has a few cells, and the same command again: the scores are those of one call."""
    output = tmp_path / "table"
    command = [sys.executable, "-m", "histodistill.training.cli", "benchmark", folder, "--data", tiny_npz, *OPTIONS]
    command += ["--rows", *ROWS[:4], "--seeds", "0", "--output", output]
    with open(tmp_path / "log", "w") as log:
        first = subprocess.Popen(
            list(map(str, command)), env=offline_environment, stdout=log, stderr=log, start_new_session=True
        )
        deadline = time.monotonic() + 300
        while len(list((output / "cells").glob("*.json"))) < 1:
            assert first.poll() is None and time.monotonic() < deadline, (tmp_path / "log").read_text()
            time.sleep(0.01)
        os.killpg(first.pid, signal.SIGKILL)
        first.wait()
    kept = {path: path.stat().st_mtime_ns for path in (output / "cells").glob("*.json")}
    assert len(kept) < 4 and not read_record(output)["complete"]

    second = subprocess.run(
        list(map(str, command)), env=offline_environment, capture_output=True, text=True, check=False
    )
    assert second.returncode == 0, second.stderr
    assert {path: path.stat().st_mtime_ns for path in kept} == kept  # none was trained again
    of_one_call = {name: one for name, one in cells_of(table).items() if one["seed"] == 0 and one["row"] in ROWS[:4]}
    assert cells_of(output) == of_one_call
    assert "| random real training tiles | `real_random` | 2 | 10 | 1 |" in second.stdout
    assert second.stdout.endswith(f"benchmark: saved to {output}\n")
    assert (output / "infodist.md").is_file() and read_record(output)["complete"]
