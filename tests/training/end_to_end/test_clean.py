"""`histodistill clean`: what is private and no longer needed goes, and nothing else."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from histodistill.training import cli
from histodistill.training.distillation.made_sets import made_set_file
from histodistill.training.end_to_end import clean
from histodistill.training.end_to_end.leavings import LEAVINGS, PRIVATE, PUBLISHABLE
from histodistill.training.reporting import report
from histodistill.training.running.errors import InputError
from histodistill.training.running.files import read_json, write_json
from histodistill.training.tables.rows import parse_row


@pytest.fixture
def copy(tiny_run, tmp_path) -> Path:
    """A copy of the tiny run that a test may change."""
    return shutil.copytree(tiny_run.folder, tmp_path / "run")


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def folders(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_dir()}


def test_a_dry_run_shows_what_would_go_and_removes_nothing(copy, capsys):
    before = files(copy)
    would = clean.run(clean.CleanConfig(run=copy, dry_run=True))
    assert files(copy) == before
    assert capsys.readouterr().out.startswith("would remove ")
    assert {path.relative_to(copy).as_posix() for path in would} < before


def test_what_is_left_is_all_that_is_needed(copy, capsys):
    before = files(copy)
    gone = {path.relative_to(copy).as_posix() for path in clean.run(clean.CleanConfig(run=copy))}
    assert files(copy) == before - gone
    assert {path.split("/")[1] for path in gone} == {
        "checkpoints", "progress", "closest_distilled.png", "closest_pool.png"
    }  # fmt: skip
    assert not folders(copy) & {"autoencoder/checkpoints", "autoencoder/progress", "teacher/checkpoints"}
    assert {"audit", "autoencoder"} <= folders(copy)
    out = capsys.readouterr().out
    assert "left, and may leave the house if the audit passes and you decide so: distilled, selector, pipeline" in out
    assert "left, since no step" not in out
    # Once more there is nothing to do.
    assert clean.run(clean.CleanConfig(run=copy)) == []
    assert capsys.readouterr().out.startswith("nothing to remove\n")


def test_a_cleaned_run_is_finished_and_reports(tiny_run, copy, monkeypatch, capsys):
    clean.run(clean.CleanConfig(run=copy))
    (copy / "report.html").unlink()
    report.run(report.ReportConfig(run=copy))
    from histodistill.training.end_to_end import distill

    started = []
    monkeypatch.setattr(distill, "run_module", lambda *words: started.append(words))
    argv = [word if word != str(tiny_run.folder) else str(copy) for word in tiny_run.argv]
    cli.main(["distill", *argv[argv.index("distill") + 1 :]] if "distill" in argv else ["distill", *argv])
    assert started == []


def test_what_is_not_ours_stays(copy, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "step-1.png").write_text("mine")
    mine = ["notes.txt", "autoencoder/checkpoints/notes.txt", "audit/closest_pool.png.txt", "x/checkpoints/a.txt"]
    for name in mine:
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        (copy / name).write_text("mine")
    shutil.rmtree(copy / "pipeline" / "progress")
    (copy / "pipeline" / "progress").symlink_to(elsewhere)
    (copy / "pipeline" / "checkpoints" / "checkpoint-1").mkdir(parents=True, exist_ok=True)
    (copy / "pipeline" / "checkpoints" / "checkpoint-1" / "state.json").symlink_to(elsewhere / "step-1.png")
    clean.run(clean.CleanConfig(run=copy))
    assert all((copy / name).read_text() == "mine" for name in mine)
    assert (elsewhere / "step-1.png").read_text() == "mine"
    assert (copy / "pipeline" / "progress").is_symlink()


def test_what_a_killed_process_left_goes(copy):
    left = copy / "audit" / f".closest_pool.png.{'0a' * 8}.tmp"
    left.write_bytes(b"tile")
    folder = copy / "autoencoder" / ".new.123.tmp"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (copy / "pool" / "chunks").mkdir()
    (copy / "pool" / "chunks" / "chunk-000001.npz").write_bytes(b"")
    clean.run(clean.CleanConfig(run=copy))
    assert not left.exists() and not folder.exists() and not (copy / "pool" / "chunks").exists()


@pytest.mark.parametrize("step", ["autoencoder", "audit"])
def test_a_run_that_is_not_finished_is_refused(step, copy):
    record = read_json(copy / step / "stage.json")
    write_json(copy / step / "stage.json", record | {"complete": False})
    before = files(copy)
    with pytest.raises(InputError, match=rf"is not finished \({step} is not\)"):
        clean.run(clean.CleanConfig(run=copy))
    assert files(copy) == before
    assert clean.run(clean.CleanConfig(run=copy, force=True))


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    (tmp_path / "audit").mkdir()
    (tmp_path / "audit" / "closest_pool.png").write_text("mine")
    with pytest.raises(InputError, match="is no run"):
        clean.run(clean.CleanConfig(run=tmp_path))


def test_what_a_table_keeps_of_real_tiles_is_a_leaving(copy):
    benchmark = copy / "benchmark"
    peer = made_set_file(benchmark, "peers", parse_row("peer:dm:steps=9").file_name, 10, 0)
    found = [benchmark / "inputs.npz", benchmark / "inputs-1.npz", peer, peer.with_suffix(".png")]
    of_infodist = benchmark / "infodist" / "cells" / "checkpoints" / "random-2-seed0" / "checkpoint-9" / "state.json"
    found += [benchmark / "infodist" / "inputs.npz", of_infodist]
    for path in found:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"made of real tiles")
    clean.run(clean.CleanConfig(run=copy))
    assert not any(path.exists() for path in found)


def test_guided_images_that_nobody_has_audited_are_a_leaving(copy):
    file = made_set_file(copy / "benchmark", "guided", parse_row("guided:modes:stop=0.3").file_name, 10, 0)
    others = [file.with_suffix(".txt"), copy / "guided" / file.name]
    for path in (file, file.with_suffix(".png"), *others):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"sampled")
    clean.run(clean.CleanConfig(run=copy))
    assert not file.exists() and not file.with_suffix(".png").exists()
    assert all(path.exists() for path in others)  # which are the user's own


def test_every_entry_of_a_run_is_known(tiny_run):
    names = {entry.name for entry in tiny_run.folder.iterdir()}
    assert names <= {*PRIVATE, *PUBLISHABLE}
    assert len({leaving.title for leaving in LEAVINGS}) == len(LEAVINGS)
