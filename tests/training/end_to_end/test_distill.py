from __future__ import annotations

import dataclasses
import json
import re
import shutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch
from audits import add_audit
from diffusers import AutoencoderTiny
from PIL import Image
from sentences import without_notes

from histodistill.training import train_diffusion
from histodistill.training.data.image_dataset import read_image_dataset
from histodistill.training.data.phantom import phantom_tiles
from histodistill.training.end_to_end import distill
from histodistill.training.end_to_end.measuring import Measured
from histodistill.training.end_to_end.rough_cost import usual_seconds
from histodistill.training.end_to_end.tile_checks import check_image_size
from histodistill.training.running.errors import InputError
from histodistill.training.running.files import read_json, write_json
from histodistill.training.running.options import run_script
from histodistill.training.running.presets import load_preset
from histodistill.training.running.stages import is_complete, read_record


TITLES = ["autoencoder", "teacher", "denoiser", "pool", "selection", "comparison", "privacy audit"]
FOLDERS = ["autoencoder", "teacher", "pipeline", "pool", "distilled", "comparison", "audit"]
SCRIPTS = ["train_autoencoder", "train_classifier", "train_diffusion", "generate", "select", "compare", "audit"]
ROOMS = ["", "", "", "", "distillation.", "evaluation.", "evaluation."]
TINY = Path()


@pytest.fixture(autouse=True)
def tiny(tiny_preset):
    """Makes the file of the preset known to the functions here."""
    global TINY
    TINY = tiny_preset


@pytest.fixture
def started(monkeypatch) -> list[str]:
    """The names of the scripts that would have been started; none is."""
    scripts = []
    monkeypatch.setattr(distill, "measure_apart", lambda _: "it is not to be")
    monkeypatch.setattr(distill, "run_module", lambda module, *_: scripts.append(module.rpartition(".")[2]))
    return scripts


@pytest.fixture
def copy(tiny_run, tmp_path) -> Path:
    """A copy of the tiny run that a test may change."""
    return shutil.copytree(tiny_run.folder, tmp_path / "run")


def options_of(data: object, output: object) -> list[str]:
    """What the tiny run was started with."""
    return ["--data", str(data), "--output", str(output), "--preset", str(TINY), "--mixed-precision", "no"]


def call(data: object, output: object, *argv: object) -> None:
    """The command that made the tiny run, with more options."""
    argv = [*options_of(data, output), *map(str, argv)]
    run_script(distill.make_parser, distill.run, argv)


def refused(capsys, data: object, output: object, *argv: object) -> str:
    """The sentence with which a command line is refused."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stopped:
        call(data, output, *argv)
    assert stopped.value.code == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    said = without_notes(captured.err)
    assert said.startswith("error: ") and said.endswith("\n") and said.count("\n") == 1
    return said.removeprefix("error: ").rstrip("\n")


def files(folder: Path) -> dict[str, tuple[int, int]]:
    """Size and time of change of every file."""
    found = (path for path in folder.rglob("*") if path.is_file())
    return {str(path): (path.stat().st_size, path.stat().st_mtime_ns) for path in found}


# The whole way.


def test_killed_run_goes_on_where_it_was(tiny_run):
    assert tiny_run.when_killed["complete"] is False
    first = re.search(r"^autoencoder: goes on after (\d+) of 150 steps$", tiny_run.progress, re.MULTILINE)
    assert 5 <= int(first[1]) < 150 and int(first[1]) % 5 == 0
    assert read_record(tiny_run.folder / "autoencoder")["complete"]


def test_every_stage_is_finished(tiny_run):
    assert all(is_complete(tiny_run.folder / folder) for folder in FOLDERS)
    assert (tiny_run.folder / "selector").is_dir()
    assert (tiny_run.folder / "report.html").read_text().lower().startswith("<!doctype html>")
    # Whatever is written under another name first has got its own.
    assert [path for path in tiny_run.folder.rglob("*") if path.name.endswith(".tmp")] == []


def test_results(tiny_run):
    results = read_json(tiny_run.folder / "results.json")
    rows = {row["row"]: row for row in results["rows"]}
    assert {name: row["num_train"] for name, row in rows.items()} == {
        "real_all": 60,
        "real_random": 15,
        "distilled_ce": 15,
    }
    recovery = rows["distilled_ce"]["accuracy"]["mean"] / rows["real_all"]["accuracy"]["mean"]
    assert results["recovery"] == {"convnet": pytest.approx(recovery)}
    assert results["notes"] == []


def test_summary_is_printed(tiny_run):
    lines = tiny_run.output.splitlines()
    results = read_json(tiny_run.folder / "results.json")
    header = next(line for line in lines if line.split()[-3:] == ["ACC", "AUC", "F1"])
    for row, line in zip(results["rows"], lines[lines.index(header) + 1 :], strict=False):
        expected = [f"{row[metric]['mean']:.3f}" for metric in ("accuracy", "auc", "f1")]
        assert line.split()[-4:] == [str(row["num_train"]), *expected]
        assert row["title"] in line
    assert f"{100 * results['recovery']['convnet']:.1f}" in tiny_run.output
    assert str(tiny_run.folder / "report.html") in lines[-1]


def test_what_a_run_writes_off_a_terminal(tiny_run):
    """Both streams together: a line for each step, nothing twice, nothing of libraries, no bars."""
    notes = tiny_run.progress.splitlines()
    steps = [line for line in notes if line.startswith("[")]
    for number, (title, line) in enumerate(zip(TITLES, steps, strict=True), start=1):
        times = r"\d:\d\d so far, (about \d+ min|less than a minute) left"
        assert re.fullmatch(rf"\[{number}/7\] {title} · {times}", line)
    # That it was killed, what it was made of, where it went on, what is lost, that it is finished, what to do next.
    assert [re.split(r"[ :]", line)[0] for line in notes if line not in steps] == [
        str(tiny_run.folder), "tiles", "warning", "autoencoder", "what", "warning", "all", "Look", "Publish"
    ]  # fmt: skip
    lines = [line for line in notes + tiny_run.output.splitlines() if line]
    assert len(set(lines)) == len(lines) < 45
    assert "\r" not in tiny_run.progress + tiny_run.output


def test_distilled_set(tiny_run):
    images, columns, class_names = read_image_dataset(tiny_run.folder / "distilled")
    assert images.shape == (15, 16, 16, 3)
    assert np.bincount(columns["label"]).tolist() == [3] * 5
    assert class_names == ["adipose", "glands", "lymphocytes", "mucus", "stroma"]
    # They are images of the pool.
    pool_images, pool, _ = read_image_dataset(tiny_run.folder / "pool")
    places = [pool["seed"].tolist().index(seed) for seed in columns["seed"]]
    assert np.array_equal(pool_images[places], images)
    assert np.array_equal(pool["label"][places], columns["label"])


def test_results_open_in_a_fresh_process(tiny_run, tmp_path):
    code = """
import sys
import numpy as np, torch
from diffusers import DiffusionPipeline
run = sys.argv[1]
pipe = DiffusionPipeline.from_pretrained(f"{run}/pipeline", trust_remote_code=True)
assert not any(name.split(".")[0] == "histodistill" for name in sys.modules)
pipe.set_progress_bar_config(disable=True)

from datasets import load_dataset
distilled = load_dataset(f"{run}/distilled", split="train")
row = distilled[4]
name = distilled.features["label"].int2str(row["label"])
generator = torch.Generator().manual_seed(row["seed"])
again = pipe(class_labels=[name], generator=generator, num_inference_steps=2, guidance_scale=1.5).images[0]
difference = np.abs(np.asarray(again).astype(int) - np.asarray(row["image"]).astype(int)).max()
assert difference <= 1, f"{name} made again from its seed differs by {difference}"
assert len(row["soft_label"]) == 5 and abs(sum(row["soft_label"]) - 1) <= 5e-4  # each to 4 digits

from histodistill.selection import BaseSelector
selector = BaseSelector.from_pretrained(f"{run}/selector")
pool = load_dataset(f"{run}/pool", split="train")
assert [pool[int(i)]["seed"] for i in selector.selected_indices_] == distilled["seed"][:]
print("all of it")
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(tiny_run.folder)],
        env=tiny_run.environment, cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout == "all of it\n"


# Again.


def test_finished_stages_are_skipped(tiny_run, copy, started, capsys):
    before = files(copy)
    call(tiny_run.data, copy)
    assert started == []
    output, notes = capsys.readouterr()
    steps = [line for line in notes.splitlines() if line.startswith("[")]
    for number, (title, line) in enumerate(zip(TITLES, steps, strict=True), start=1):
        assert re.fullmatch(rf"\[{number}/7\] {title} · finished before, in \d:\d\d", line)
    assert "ACC" in output and "Report:" in output
    after = files(copy)
    assert {name for name in before if after[name] != before[name]} <= {str(copy / "report.html")}


@pytest.mark.parametrize("kept", [(), ("audit.json",), ("audit.json", "audit/stage.json")], ids=str)
def test_refusal_of_the_audit_is_a_result(kept, tiny_run, copy, monkeypatch, capsys):
    """Exit code 1 of the audit, with all that it leaves; without, it is that of a program that could not begin."""
    add_audit(copy, copies=3)
    left = {"audit.json": read_json(copy / "audit.json"), "audit/stage.json": read_json(copy / "audit" / "stage.json")}
    for name in left:
        (copy / name).unlink()

    def run_module(module, *_):
        assert module.endswith(".audit")
        for name in kept:
            write_json(copy / name, left[name])
        raise SystemExit(1)

    monkeypatch.setattr(distill, "run_module", run_module)
    if len(kept) < 2:
        with pytest.raises(SystemExit) as stopped:
            call(tiny_run.data, copy)
        assert stopped.value.code == 1
        return
    # It is the same where the audit was finished before.
    for _ in range(2):
        call(tiny_run.data, copy)
        lines = capsys.readouterr().out.splitlines()
        (line,) = [line for line in lines if line.startswith("Must not be published: ")]
        assert str(copy / "selector") in line and "3 of 15 images are copies" in line
        assert lines[-1] == f"What was found:        {copy / 'report.html'}, {copy / 'audit.json'}"


def test_what_to_do_next(tiny_run, copy, monkeypatch):
    run = copy.rename(copy.with_name("my run"))
    config = distill.DistillConfig(data=tiny_run.data, output=run, preset=str(TINY))
    monkeypatch.setattr(distill, "find_spec", lambda _: None)
    add_audit(run)
    assert distill.next_lines(config) == [
        f"Look and try:  histodistill demo-app '{run}' --data {tiny_run.data}   (needs gradio)",
        f"Publish:       histodistill publish '{run}' --namespace YOU   (shows what would go up; --push does it)",
    ]
    add_audit(run, weights_auc=0.9)
    _, publish, weights = distill.next_lines(config)
    assert publish.startswith(
        f"Publish:       histodistill publish '{run}' --namespace YOU --only dataset selector   ("
    )
    steps = read_json(run / "pipeline" / "stage.json")["settings"]["max_train_steps"]
    assert weights.startswith("Weights:       one who holds them may know training tiles, and not by the images: ")
    assert weights.endswith(f"half of the steps, --set diffusion.max_train_steps={steps // 2}") and steps > 1
    add_audit(run, copies=3, weights_auc=0.9)
    assert distill.next_lines(config)[1:] == [
        "Publish:       not as it is, since nothing of it passed the privacy audit"
    ]


@pytest.mark.parametrize(
    ("gone", "scripts"),
    [
        # The audit also seals the record of the pool, as it does the scores.
        (["pool"], ["generate", "audit"]),
        (["comparison/stage.json"], ["compare"]),
        (["results.json"], ["compare", "audit"]),
        (["pipeline", "pool", "distilled"], ["train_diffusion", "generate", "select", "audit"]),
        (FOLDERS, SCRIPTS),
    ],
)
def test_only_what_is_missing_runs(gone, scripts, tiny_run, copy, started, monkeypatch):
    for name in gone:
        shutil.rmtree(copy / name) if (copy / name).is_dir() else (copy / name).unlink()
    monkeypatch.setattr("histodistill.training.reporting.report_page.write_report", lambda _: None)
    call(tiny_run.data, copy)
    assert started == scripts


def test_unfinished_stage_runs(tiny_run, copy, started):
    write_json(copy / "teacher" / "stage.json", {**read_record(copy / "teacher"), "complete": False})
    call(tiny_run.data, copy)
    assert started == ["train_classifier", "audit"]


def test_lost_pool_is_made_again_and_is_the_same(tiny_run, copy, monkeypatch, capfd):
    for name, value in tiny_run.environment.items():
        monkeypatch.setenv(name, value)
    shutil.rmtree(copy / "pool")
    call(tiny_run.data, copy)
    output, notes = capfd.readouterr()
    # The audit seals the record of the pool, which tells how long it took: nothing else is new in it.
    assert notes.count("finished before") + output.count("nothing was measured again") == 6
    assert re.search(r"^\[4/7\] pool · \d:\d\d so far, (about|less than) ", notes, re.MULTILINE)
    assert re.search(r"^pool: 40 images saved to ", output, re.MULTILINE)
    images, columns, _ = read_image_dataset(copy / "pool")
    old_images, old_columns, _ = read_image_dataset(tiny_run.folder / "pool")
    assert np.array_equal(images, old_images)
    assert all(np.array_equal(columns[name], old_columns[name]) for name in old_columns)


def test_failed_stage_ends_the_run_with_its_exit_code(tiny_run, copy, monkeypatch):
    def run_module(*_):
        raise SystemExit(7)

    shutil.rmtree(copy / "pool")
    monkeypatch.setattr(distill, "run_module", run_module)
    with pytest.raises(SystemExit) as stopped:
        call(tiny_run.data, copy)
    assert stopped.value.code == 7


@pytest.mark.parametrize(
    ("argv", "named"),
    [
        (["--seed", "1"], "seed"),
        (["--audit-share", "0"], "the tiles, audit_share"),
        (["--mixed-precision", "bf16"], "mixed_precision"),
        (["--image-size", "24"], "image_size, the tiles"),
        (["--preset", "cpu-demo"], "autoencoder, diffusion, teacher, generate, select, compare, compare_options"),
    ],
)
def test_run_with_other_settings_is_left_untouched(argv, named, tiny_run, capsys):
    before = files(tiny_run.folder)
    message = refused(capsys, tiny_run.data, tiny_run.folder, *argv)
    assert message == f"{tiny_run.folder} holds a run with other settings ({named}): give another --output"
    assert files(tiny_run.folder) == before


def test_the_denoiser_may_begin_from_a_pipeline(tiny_run, tmp_path, monkeypatch, capsys):
    shutil.copytree(tiny_run.folder / "pipeline", tmp_path / "others" / "pipeline")
    monkeypatch.chdir(tmp_path)
    start = "others/pipeline"
    options = [*options_of(tiny_run.data, tmp_path / "run"), "--set", f"diffusion.init_from={start}"]
    config = distill.make_parser().read(options)
    run = distill.open_run(config)
    assert read_json(tmp_path / "run" / "run.json")["settings"]["diffusion"]["init_from"] == start
    call = distill.stages(config, run)[2]
    assert call.config.init_from == start and train_diffusion.make_parser().read(call.argv) == call.config
    # A folder that is not there is told of now, and not when the autoencoder is trained.
    message = refused(capsys, tiny_run.data, tmp_path / "new", "--set", "diffusion.init_from=others/none")
    assert message == (
        "--init-from others/none is no folder: give the folder of a pipeline or its id on the Hub, user/name"
    )
    giving = ("--set", "diffusion.init_from=others/pipeline", "--set", "diffusion.prediction_type=sample")
    message = refused(capsys, tiny_run.data, tmp_path / "new", *giving)
    assert "has the --prediction-type flow_prediction, and here it is sample: give the one that it has" in message
    assert not (tmp_path / "new").exists()
    # A finished denoiser needs it no more.
    shutil.copytree(tiny_run.folder / "pipeline", tmp_path / "run" / "pipeline")
    shutil.rmtree(tmp_path / "others")
    assert distill.open_run(config) == run


SELECTED = "audit, audit.json, comparison, distilled, "


@pytest.mark.parametrize(
    ("argv", "named", "made"),
    [
        (["--n-per-class", "2"], "select", f"{SELECTED}report.html, results.json, selector"),
        (["--per-class", "9"], "generate", f"{SELECTED}pool, report.html, results.json, selector"),
    ],
)
def test_pool_and_selection_are_made_anew_once_the_old_ones_are_away(argv, named, made, tiny_run, tmp_path, capsys):
    before = files(tiny_run.folder)
    message = refused(capsys, tiny_run.data, tiny_run.folder, *argv)
    assert message == (
        f"{tiny_run.folder} holds a run with other settings ({named}): give another --output, or move {made} away to "
        "make them anew from the models that are there"
    )
    assert files(tiny_run.folder) == before

    run = tmp_path / "run"
    shutil.copytree(tiny_run.folder, run, ignore=lambda folder, names: set(made.split(", ")) & set(names))
    opened = distill.open_run(distill.make_parser().read([*options_of(tiny_run.data, run), *argv]))
    assert read_json(run / "run.json") == opened
    assert {
        name
        for name, value in read_json(tiny_run.folder / "run.json")["settings"].items()
        if value != opened["settings"][name]
    } == {named}


def test_run_with_other_tiles_is_left_untouched(tiny_run, tmp_path, capsys):
    with np.load(tiny_run.data) as old:
        arrays = dict(old)
    arrays["test_labels"] = arrays["test_labels"][::-1]
    np.savez(tmp_path / "other.npz", **arrays)
    before = files(tiny_run.folder)
    message = refused(capsys, tmp_path / "other.npz", tiny_run.folder)
    assert message == f"{tiny_run.folder} holds a run with other settings (the tiles): give another --output"
    assert files(tiny_run.folder) == before


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"settings": null}'])
def test_damaged_record_of_a_run(text, tiny_tiles, tmp_path, capsys):
    (tmp_path / "run.json").write_text(text)
    message = refused(capsys, tiny_tiles, tmp_path)
    assert message == f"{tmp_path / 'run.json'} is not a run's record or is damaged: give another --output"
    assert (tmp_path / "run.json").read_text() == text


def test_how_it_runs_may_change(tiny_run, copy, started):
    # The processes, and where the tiles lie, are no settings of a run.
    shutil.copy(tiny_run.data, copy.parent / "moved.npz")
    call(copy.parent / "moved.npz", copy, "--num-processes", 2)
    assert started == []


# From the command line to the scripts.


def plan(data: Path, output: Path, *argv: object) -> list[distill.StageCall]:
    argv = ["--data", str(data), "--output", str(output), "--preset", str(TINY), *map(str, argv)]
    config = distill.make_parser().read(argv)
    return distill.stages(config, distill.open_run(config))


def parsed(stage: distill.StageCall):
    """What the process of a stage reads from its command line."""
    config = import_module(stage.module).make_parser().read(stage.argv)
    assert config == stage.config
    return config


def test_options_reach_the_scripts(tiny_tiles, tmp_path):
    options = ["--per-class", 9, "--n-per-class", 4, "--seed", 3, "--mixed-precision", "no", "--num-processes", 2]
    options += ["--audit-share", 0.2]
    out = tmp_path / "run"
    stages = plan(tiny_tiles, out, *options)
    assert [stage.title for stage in stages] == TITLES
    assert [stage.folder for stage in stages] == FOLDERS
    modules = [f"histodistill.training.{room}{script}" for room, script in zip(ROOMS, SCRIPTS, strict=True)]
    assert [stage.module for stage in stages] == modules
    # Selection has nothing to share.
    assert [stage.num_processes for stage in stages] == [2, 2, 2, 2, 1, 2, 1]
    autoencoder, teacher, diffusion, generate, select, compare, audit = map(parsed, stages)
    for args in (autoencoder, diffusion, teacher):
        assert (args.data, args.image_size, args.resume) == (str(tiny_tiles), 16, "latest")
        assert (args.mixed_precision, args.seed) == ("no", 3)
    assert (generate.seed, select.seed, compare.seeds) == (3, 3, (3,))
    assert (generate.per_class, select.n_per_class) == (9, 4)
    assert (autoencoder.output, diffusion.output, teacher.output) == (
        out / "autoencoder",
        out / "pipeline",
        out / "teacher",
    )
    assert (diffusion.autoencoder, generate.pipeline) == (out / "autoencoder", out / "pipeline")
    assert (diffusion.align, diffusion.optimizer) == (out / "teacher", "muon")  # by the preset
    assert (generate.output, select.pool, select.teacher, select.output) == (
        out / "pool",
        out / "pool",
        out / "teacher",
        out,
    )
    assert [args.audit_share for args in (autoencoder, diffusion, teacher, audit)] == [0.2] * 4
    embedders = ("untrained", str(out / "autoencoder"))
    assert (select.drop_copies, select.copy_embedders, select.data) == (True, embedders, str(tiny_tiles))
    assert (audit.run, audit.data, audit.embedders, audit.seed) == (out, str(tiny_tiles), embedders, 3)
    assert (compare.run, compare.data, compare.image_size) == (out, str(tiny_tiles), 16)
    assert compare.plan == [("convnet", 2, ("real_all", "real_random", "distilled_ce"))]
    assert teacher.n_per_class is None


def test_a_denoiser_is_aligned_where_the_preset_says_so(tiny_tiles, tmp_path, tiny_preset):
    preset = tmp_path / "alone.toml"
    preset.write_text(tiny_preset.read_text().replace("align_weight = 0.5\n", ""))
    [_, _, diffusion, *_] = plan(tiny_tiles, tmp_path / "run", "--preset", preset)
    assert parsed(diffusion).align is None
    with pytest.raises(SystemExit):
        plan(tiny_tiles, tmp_path / "run", "--set", "diffusion.align=somewhere")


def test_a_teacher_without_maps_goes_with_a_denoiser_that_is_not_aligned(tiny_tiles, tmp_path):
    options = ["--set", "teacher.architecture=vit", "teacher.width=64", "diffusion.align_weight=0"]
    [_, teacher, diffusion, *_] = plan(tiny_tiles, tmp_path / "run", *options)
    assert (parsed(teacher).architecture, parsed(diffusion).align) == ("vit", None)


def test_an_autoencoder_that_does_not_fit_is_refused_at_once(tiny_tiles, tmp_path, capsys):
    for name, levels in (("fits", 2), ("deep", 6)):
        widths, blocks = (8,) * levels, (1,) * levels
        AutoencoderTiny(
            encoder_block_out_channels=widths, decoder_block_out_channels=widths, latent_channels=2,
            num_encoder_blocks=blocks, num_decoder_blocks=blocks,
        ).save_pretrained(tmp_path / name)  # fmt: skip
    named = f"autoencoder.autoencoder={tmp_path / 'deep'}"
    message = refused(capsys, tiny_tiles, tmp_path / "run", "--set", named)
    assert "takes tiles whose side is divisible by 32, and these have 16 px" in message
    levels = ["--set", f"autoencoder.autoencoder={tmp_path / 'fits'}", "diffusion.channels=8,8,8,8,8"]
    message = refused(capsys, tiny_tiles, tmp_path / "run", *levels)
    assert "latents of 8×8 cannot be halved 4 times: give fewer" in message
    assert not (tmp_path / "run").exists()


def test_denoiser_sees_few_tiles_less_often(tiny_tiles, tmp_path, tiny_preset):
    (tmp_path / "few.toml").write_text(f"max_epochs = 1\n{tiny_preset.read_text()}")
    [_, _, diffusion, *_] = plan(tiny_tiles, tmp_path / "run", "--preset", tmp_path / "few.toml")
    assert parsed(diffusion).max_train_steps == 55 // 8  # one tile in twelve is held out for the audit


def test_record_of_a_run(tiny_run):
    run = read_json(tiny_run.folder / "run.json")
    assert run["num_tiles"] == {"train": 55, "validation": 20, "test": 20, "held_out": 5}
    assert (run["data"], run["preset"], run["image_size"], run["seed"]) == ("tiles", "tiny", 16, 0)
    assert run["class_names"] == ["adipose", "glands", "lymphocytes", "mucus", "stroma"]


@pytest.mark.parametrize(("has_gpu", "preset"), [(True, "gpu"), (False, "cpu")])
def test_default_preset_suits_the_machine(has_gpu, preset, tiny_tiles, tmp_path, monkeypatch, started):
    monkeypatch.setattr(distill, "has_cuda", lambda: has_gpu)
    monkeypatch.setattr("histodistill.training.reporting.report_page.write_report", lambda _: None)
    run_script(distill.make_parser, distill.run, ["--data", str(tiny_tiles), "--output", str(tmp_path / "run")])
    assert read_json(tmp_path / "run" / "run.json")["preset"] == preset
    assert started == SCRIPTS


# A time budget.


def begin(tiles: Path, output: Path, *argv: object, unit_seconds: float = 0.01) -> dict:
    """What run.json of a new run holds, where every tile and image costs the same; nothing is measured."""

    def measured(plan):
        run = {"image_size": 16, "class_names": list("abcde"), "num_tiles": {"train": 55}}
        return Measured(dict.fromkeys(usual_seconds(plan, run), unit_seconds), 10**6)

    config = distill.make_parser().read([*options_of(tiles, output), *map(str, argv)])
    return distill.open_run(config, measured=measured)


def never(_):
    raise AssertionError("a run that was begun is not measured again")


def test_a_budget_is_fitted_once_and_kept(tiny_tiles, tmp_path, capsys):
    whole = begin(tiny_tiles, tmp_path / "whole")
    seconds = sum(whole["estimate"]["seconds"].values())
    assert "fitted" not in whole and "time_budget" not in whole["settings"]
    budget = ["--time-budget", f"{round(0.8 * seconds)}s"]
    capsys.readouterr()
    run = begin(tiny_tiles, tmp_path / "run", *budget)
    assert "fitted to 1 min: of what the preset does, denoiser " in capsys.readouterr().err
    assert run["settings"]["time_budget"] == round(0.8 * seconds)
    steps = run["settings"]["autoencoder"]["max_train_steps"]
    assert 5 < steps < 150 and run["fitted"]["autoencoder"] == {"max_train_steps": steps}
    assert 0.6 * seconds < sum(run["estimate"]["seconds"].values()) < 0.8 * seconds
    assert read_json(tmp_path / "run" / "run.json") == run

    config = distill.make_parser().read([*options_of(tiny_tiles, tmp_path / "run"), *budget])
    assert distill.open_run(config, measured=never) == run
    # The same time in other words is the same budget.
    words = ["--time-budget", f"0m{round(0.8 * seconds)}s"]
    assert begin(tiny_tiles, tmp_path / "run", *words)["settings"] == run["settings"]


@pytest.mark.parametrize("budget", [["--time-budget", "3h"], []])
def test_another_budget_is_another_run(budget, tiny_tiles, tmp_path, capsys, monkeypatch):
    begin(tiny_tiles, tmp_path / "run", "--time-budget", "2h")
    monkeypatch.setattr(distill, "measure_apart", never)
    message = refused(capsys, tiny_tiles, tmp_path / "run", *budget)
    assert message == f"{tmp_path / 'run'} holds a run with other settings (time_budget): give another --output"


def test_what_is_set_is_not_fitted(tiny_tiles, tmp_path):
    argv = ["--set", "teacher.max_train_steps=9", "--per-class", 8]
    seconds = sum(begin(tiny_tiles, tmp_path / "whole", *argv)["estimate"]["seconds"].values())
    argv += ["--time-budget", f"{round(seconds)}s"]  # a little is left for what was not foreseen
    run = begin(tiny_tiles, tmp_path / "run", *argv)
    assert run["settings"]["teacher"]["max_train_steps"] == 9 and run["settings"]["generate"]["per_class"] == 8
    assert "autoencoder" in run["fitted"] and "generate" not in run["fitted"]
    assert "max_train_steps" not in run["fitted"].get("teacher", {})


def test_a_pool_that_was_fitted_is_not_chosen_from_beyond_what_it_has(tiny_tiles, tmp_path, capsys):
    seconds = sum(begin(tiny_tiles, tmp_path / "whole")["estimate"]["seconds"].values())
    budget = ["--time-budget", f"{round(0.8 * seconds)}s"]
    run = begin(tiny_tiles, tmp_path / "run", *budget)
    fitted, whole = run["settings"]["generate"]["per_class"], 8
    assert fitted < whole
    most = int(0.9 * whole)  # of the preset's pool
    message = refused(capsys, tiny_tiles, tmp_path / "run", *budget, "--n-per-class", str(most))
    assert message.startswith(f"--n-per-class={most} is more than nine tenths of the {fitted} pool images of a class")
    assert read_json(tmp_path / "run" / "run.json") == run


def test_a_budget_that_is_too_small(tiny_tiles, tmp_path, capsys, monkeypatch):
    with pytest.raises(InputError, match="time_budget is too short: the least takes about 1 min here: give that"):
        begin(tiny_tiles, tmp_path / "run", "--time-budget", "2s")
    assert not (tmp_path / "run").exists()
    message = refused(capsys, tiny_tiles, tmp_path / "run", "--time-budget", "soon")
    assert message == "--time-budget=soon is no length of time: write it as in 90m, 2h, 1h30m or 5400s"


def test_what_could_not_be_measured_is_told_and_the_run_goes_on(tiny_tiles, tmp_path, capsys):
    config = distill.make_parser().read(options_of(tiny_tiles, tmp_path / "run"))
    run = distill.open_run(config, measured=lambda _: "there is no model")
    assert "estimate" not in run
    assert "warning: what the steps take could not be measured" in capsys.readouterr().err


def test_a_run_that_fits_on_no_disk_is_refused(tiny_tiles, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9, 10**5))
    with pytest.raises(InputError, match=r"is on a disk with 100\.0 kB free, and the run needs about"):
        begin(tiny_tiles, tmp_path / "run")
    assert not (tmp_path / "run").exists()


# Options of single steps.


def test_what_is_set_reaches_the_step_and_the_record(tiny_tiles, tmp_path):
    argv = ["--set", "diffusion.learning_rate=1e-4", "autoencoder.channels=16,8", "--set", "select.drop_copies=false"]
    argv += ["--set", "audit.plant=7", "--set", "compare.batch_size=9", "--set", "teacher.normalize-stain=true"]
    stages = plan(tiny_tiles, tmp_path / "run", *argv)
    autoencoder, teacher, diffusion, _, select, compare, audit = map(parsed, stages)
    assert (diffusion.learning_rate, autoencoder.channels, teacher.normalize_stain) == (1e-4, (16, 8), True)
    assert (select.drop_copies, audit.plant, compare.batch_size) == (False, 7, 9)
    # The rest is the preset's.
    assert (diffusion.max_train_steps, autoencoder.latent_channels, compare.plan[0].steps) == (10, 2, 2)
    run = read_json(tmp_path / "run" / "run.json")
    assert run["set"] == [word for word in argv if word != "--set"]
    assert run["settings"]["diffusion"]["learning_rate"] == 1e-4
    assert run["settings"]["audit"] == {"plant": 7} and run["settings"]["compare_options"] == {"batch_size": 9}


def test_several_texts_are_set_with_spaces_between_them(tiny_tiles, tmp_path):
    rows = "convnet:2:real_all,distilled_ce resnet18:1:real_all"
    *_, compare, _ = plan(tiny_tiles, tmp_path / "run", "--set", f"compare.train={rows}")
    assert compare.config.train == tuple(rows.split())


def test_precision_that_a_later_step_cannot_have(tiny_tiles, tmp_path, started, capsys, monkeypatch):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    message = refused(capsys, tiny_tiles, tmp_path / "run", "--set", "generate.mixed_precision=fp16")
    assert message == "--mixed-precision=fp16 needs a GPU: give bf16 or no"
    assert started == [] and not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("text", "named", "made"),
    [
        ("audit.plant=7", "audit", "audit, audit.json, report.html"),
        ("compare.train=convnet:3:real_all", "compare", "comparison, report.html, results.json"),
        ("compare.batch_size=9", "compare_options", "comparison, report.html, results.json"),
    ],
)
def test_what_comes_last_is_made_anew_once_the_old_one_is_away(text, named, made, tiny_run, capsys):
    message = refused(capsys, tiny_run.data, tiny_run.folder, "--mixed-precision", "no", "--set", text)
    assert message == (
        f"{tiny_run.folder} holds a run with other settings ({named}): give another --output, or move {made} away to "
        "make them anew from the models that are there"
    )


def test_nothing_set_leaves_the_record_as_it_always_was(tiny_run):
    run = read_json(tiny_run.folder / "run.json")
    assert "set" not in run
    assert not {"audit", "compare_options"} & set(run["settings"])


def test_steps_that_are_set_are_not_cut(tiny_tiles, tmp_path):
    _, _, diffusion, *_ = plan(tiny_tiles, tmp_path / "run", "--set", "diffusion.max_train_steps=5000")
    assert diffusion.config.max_train_steps == 5000  # the preset's 200 epochs of 55 tiles would be 1,375


def test_run_with_other_set_options_is_left_untouched(tiny_run, capsys):
    message = refused(capsys, tiny_run.data, tiny_run.folder, "--set", "teacher.width=4")
    assert message == f"{tiny_run.folder} holds a run with other settings (teacher): give another --output"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("learning_rate=1", "--set learning_rate=1 is not STEP.OPTION=VALUE with one of the steps autoencoder, "),
        ("denoiser.seed=1", "--set denoiser.seed=1 is not STEP.OPTION=VALUE with one of the steps autoencoder, "),
        ("diffusion.channels", "--set diffusion.channels is not STEP.OPTION=VALUE"),
        (
            "diffusion.learning=1",
            "--set diffusion.learning=1: learning is no option of diffusion (did you mean learning_rate?): it must ",
        ),
        ("teacher.width=wide", "--set teacher.width=wide: width=wide cannot be read: it must be a whole number"),
        ("teacher.width=0", "--set teacher.width=0: width=0 is out of range: it must be at least 1"),
        ("select.selector=best", "--set select.selector=best: selector=best is unknown: it must be one of infomap, "),
        ("teacher.output=x", "--set teacher.output=x: output cannot be set for one step, since distill gives it to "),
        ("select.exclude=a.json", "--set select.exclude=a.json: exclude cannot be set for one step, since distill "),
        ("generate.seed=3", "--set generate.seed=3: seed cannot be set for one step, since distill gives it to all"),
        ("diffusion.dropout=2", "--set diffusion.dropout=2: dropout=2.0 is out of range: it must be at least 0 and "),
        ("select.n_per_class=9", "--n-per-class=9 is more than nine tenths of the 8 pool images of a class"),
        (
            "teacher.architecture=vit",
            "teacher.architecture=vit has no maps of features, which the denoiser is aligned with: give --set "
            "diffusion.align_weight=0, or one of convnet and resnet18",
        ),
        (
            "autoencoder.channels=8,8,8,8,8,8",
            "tiles of 16 px do not suit this preset with what --set says, whose models halve them 5 times: give "
            "--image-size 32",
        ),
        (
            "select.n_neighbors=-3",
            "--set select.n_neighbors=-3: n_neighbors=-3 is out of range: it must be ",
        ),
        ("select.markov_time=0", "--set select.markov_time=0: markov_time=0.0 is out of range: it must be above 0"),
        ("diffusion.=1", "--set diffusion.=1 is not STEP.OPTION=VALUE with one of the steps autoencoder, "),
        (
            "autoencoder.dp_epsilon=4",
            "--set autoencoder.dp_epsilon=4: dp_epsilon cannot be set here, since ",
        ),
        (
            "diffusion.channels=8,,16",
            "--set diffusion.channels=8,,16: channels=8,,16 cannot be read: it must be ",
        ),
        (
            "teacher.loss=worst",
            "--set teacher.loss=worst: loss=worst is unknown: it must be one of ce, joint, contrastive",
        ),
    ],
)
def test_bad_set_options(text, message, tiny_tiles, tmp_path, started, capsys):
    assert refused(capsys, tiny_tiles, tmp_path / "run", "--set", text).startswith(message)
    assert started == [] and not (tmp_path / "run").exists()


def test_an_option_is_set_once(tiny_tiles, tmp_path, capsys):
    twice = ["--set", "teacher.width=4", "teacher.width=8"]
    assert refused(capsys, tiny_tiles, tmp_path / "run", *twice) == "--set names teacher.width twice: name it once"
    both = ["--set", "generate.per_class=9", "--per-class", 9]
    message = "--set generate.per_class=9 and --per-class are the same option: give one of them"
    assert refused(capsys, tiny_tiles, tmp_path / "run", *both) == message


def test_a_preset_whose_option_no_step_knows(tiny_tiles, tmp_path, tiny_preset, capsys):
    text = tiny_preset.read_text()
    (tmp_path / "a.toml").write_text(text.replace("[teacher]", "[teacher]\nwidht = 3"))
    (tmp_path / "b.toml").write_text(text.replace("width = 8", 'width = "8"'))
    (tmp_path / "c.toml").write_text(text.replace("[teacher]", "[teacher]\nseed = 3"))
    for name, expected in {
        "a": "section [teacher]: widht is no option (did you mean width?): it must be one of ",
        "b": "section [teacher]: width='8' is of another type: it must be a whole number",
        "c": "section [teacher]: seed cannot be set for one step, since distill gives it to all: leave it out here",
    }.items():
        message = refused(capsys, tiny_tiles, tmp_path / "run", "--preset", tmp_path / f"{name}.toml")
        assert message.startswith(f"{tmp_path / name}.toml, {expected}")
    assert not (tmp_path / "run").exists()


def test_from_python(tiny_tiles, tmp_path, tiny_preset, started, monkeypatch):
    monkeypatch.setattr("histodistill.training.reporting.report_page.write_report", lambda _: None)
    config = distill.DistillConfig(data=tiny_tiles, output=tmp_path / "run", preset=str(tiny_preset))
    assert distill.run(config) == tmp_path / "run"
    assert started == SCRIPTS
    with pytest.raises(InputError, match=r"^n_per_class=0 is out of range: it must be at least 1$"):
        distill.DistillConfig(data=tiny_tiles, output=tmp_path / "run", n_per_class=0)


# Bad input.


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--n-per-class", 0], "--n-per-class=0 is out of range: it must be at least 1"),
        (["--per-class", 0], "--per-class=0 is out of range: it must be at least 1"),
        (["--num-processes", 0], "--num-processes=0 is out of range: it must be at least 1"),
        (
            ["--per-class", 23171, "--set", "select.selector=facility_location"],
            "--per-class=23171 is more than the selector facility_location can compare: it must be at most 23170",
        ),
        (["--seed", -1], "--seed=-1 is out of range: it must be at least 0 and below 2^31"),
        (["--seed", 2**31], "--seed=2147483648 is out of range: it must be at least 0 and below 2^31"),
        (["--audit-share", 1], "--audit-share=1.0 is out of range: it must be at least 0 and below 1"),
        (
            ["--n-per-class", 9],
            "--n-per-class=9 is more than nine tenths of the 8 pool images of a class, and copies are dropped: "
            "raise --per-class or lower --n-per-class",
        ),
        (
            ["--per-class", 2],
            "--n-per-class=3 is more than nine tenths of the 2 pool images of a class, and copies are dropped: "
            "raise --per-class or lower --n-per-class",
        ),
        (["--image-size", 4], "--image-size=4 is out of range: it must be at least 8"),
        (
            ["--image-size", 17],
            "tiles of 17 px do not suit this preset, whose models halve them 1 times: give --image-size 16",
        ),
    ],
)
def test_bad_options(argv, message, tiny_tiles, tmp_path, started, capsys):
    assert refused(capsys, tiny_tiles, tmp_path / "run", *argv) == message
    assert started == [] and not (tmp_path / "run").exists()


def test_files_of_reviewers_are_about_a_set_that_is_there(tiny_tiles, tmp_path, started, capsys):
    said = refused(capsys, tiny_tiles, tmp_path / "run", "--exclude", "review.json")
    assert said.startswith("--exclude is about a set that was reviewed, and ") and said.endswith("without it first")
    assert started == [] and not (tmp_path / "run").exists()


def test_fp16_without_a_gpu(tiny_tiles, tmp_path, started, capsys, monkeypatch):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    message = refused(capsys, tiny_tiles, tmp_path / "run", "--mixed-precision", "fp16")
    assert message == "--mixed-precision=fp16 needs a GPU: give bf16 or no"
    assert started == [] and not (tmp_path / "run").exists()


@pytest.mark.parametrize(("image_size", "better"), [(27, 28), (30, 28)])
def test_size_that_the_models_of_a_preset_cannot_halve(image_size, better, tiny_preset):
    preset = load_preset(tiny_preset).with_options("diffusion", {"channels": [8, 8]})
    # 30 px can be halved once: the autoencoder would be trained before the denoiser failed.
    with pytest.raises(InputError, match=rf"halve them 2 times: give image_size {better}$"):
        check_image_size(preset, image_size)
    check_image_size(preset, better)


def test_size_that_fits_what_is_set(tiny_preset):
    preset = load_preset(tiny_preset).with_options("diffusion", {"channels": [8, 8]})
    check_image_size(preset, 30, {"diffusion": {"channels": [8]}})
    # What an autoencoder from elsewhere halves is not known here.
    check_image_size(preset, 30, {"autoencoder": {"autoencoder": "some/autoencoder"}})
    with pytest.raises(InputError, match=r"halve them 3 times: give image_size 24$"):
        check_image_size(preset, 28, {"diffusion": {"channels": [8, 8, 8]}})


def test_size_that_does_not_fit_what_few_tiles_have(tiny_preset):
    preset = dataclasses.replace(load_preset(tiny_preset), max_epochs=1, few_tiles={"channels": [8, 8]})
    steps = preset.diffusion["max_train_steps"]
    many = steps * preset.diffusion["batch_size"]
    for num_train in (None, many):
        check_image_size(preset, 30, num_train=num_train)
    with pytest.raises(InputError, match=r"halve them 2 times: give image_size 28$"):
        check_image_size(preset, 30, num_train=many // 2)


def arrays_of(path: Path) -> dict[str, np.ndarray]:
    with np.load(path) as file:
        return dict(file)


def save(folder: Path, arrays: dict[str, np.ndarray]) -> Path:
    np.savez(folder / "bad.npz", **arrays)
    return folder / "bad.npz"


def image_folder(folder: Path) -> Path:
    """Four tiles of each of two classes in each split."""
    tiles = phantom_tiles("train", 4, image_size=16)
    for split in ("train", "validation", "test"):
        for name, start in (("fat", 0), ("gland", 4)):
            place = folder / split / name
            place.mkdir(parents=True)
            for i in range(4):
                Image.fromarray(tiles.images[start + i]).save(place / f"{i}.png")
    return folder


def missing_file(folder, good):
    return folder / "nothing.npz", "nothing.npz does not exist: a source is phantom, one of pathmnist, "


def missing_folder(folder, good):
    return folder / "nothing" / "at" / "all", "nothing/at/all does not exist: a source is phantom, "


def file_of_another_kind(folder, good):
    (folder / "tiles.txt").write_text("tiles")
    return folder / "tiles.txt", "tiles.txt is neither a folder nor a .npz, .csv, .tsv or .parquet file: "


def empty_folder(folder, good):
    (folder / "empty").mkdir()
    return folder / "empty", "empty is empty: tiles are expected as "


def one_class_in_a_file(folder, good):
    arrays = arrays_of(good)
    del arrays["class_names"]
    for split in ("train", "val", "test"):
        arrays[f"{split}_labels"] = np.zeros_like(arrays[f"{split}_labels"])
    return save(folder, arrays), "bad has only one class (class 0): at least 2 are needed"


def one_class_in_a_folder(folder, good):
    image_folder(folder / "tiles")
    for split in ("train", "validation", "test"):
        shutil.rmtree(folder / "tiles" / split / "gland")
    return folder / "tiles", "tiles has only one class (fat): at least 2 are needed"


def class_without_training_tiles(folder, good):
    image_folder(folder / "tiles")
    for path in (folder / "tiles" / "train" / "gland").iterdir():
        path.unlink()
    return folder / "tiles", "gland holds no image"


def corrupt_file(folder, good):
    (folder / "bad.npz").write_bytes(b"these are no tiles at all")
    return folder / "bad.npz", "bad.npz cannot be read as a .npz file ("


def truncated_file(folder, good):
    (folder / "bad.npz").write_bytes(good.read_bytes()[: good.stat().st_size // 2])
    return folder / "bad.npz", "bad.npz cannot be read as a .npz file ("


def file_with_a_damaged_array(folder, good):
    data = bytearray(good.read_bytes())
    data[len(data) // 3] ^= 255
    (folder / "bad.npz").write_bytes(data)
    return folder / "bad.npz", "bad.npz cannot be read as a .npz file ("


def file_without_labels(folder, good):
    arrays = arrays_of(good)
    del arrays["train_labels"]
    return save(folder, arrays), "bad.npz has no array 'train_labels': the MedMNIST layout needs "


def label_too_high(folder, good):
    arrays = arrays_of(good)
    arrays["test_labels"][0] = 9
    return save(folder, arrays), "the test split of bad holds the label 9: labels must be 0 to 4, "


def negative_label(folder, good):
    arrays = {name: a.astype(np.int64) if name.endswith("labels") else a for name, a in arrays_of(good).items()}
    arrays["train_labels"][3] = -1
    return save(folder, arrays), "holds -1: labels must be 0 to number of classes - 1"


def splits_of_different_size(folder, good):
    arrays = arrays_of(good)
    arrays["test_images"] = np.zeros((20, 20, 20, 3), dtype=np.uint8)
    return save(folder, arrays), "the tiles of bad are of 2 sizes, 16x16 (80), 20x20 (20) pixels: give --image-size"


def images_of_different_size(folder, good):
    image_folder(folder / "tiles")
    Image.new("RGB", (18, 18)).save(folder / "tiles" / "train" / "gland" / "1.png")
    return folder / "tiles", "the tiles of tiles are of 2 sizes, 16x16 (23), 18x18 (1) pixels: give --image-size"


def images_of_different_mode(folder, good):
    image_folder(folder / "tiles")
    Image.new("L", (16, 16)).save(folder / "tiles" / "train" / "gland" / "1.png")
    return folder / "tiles", "1.png is grey, of one channel: "


def grey_images(folder, good):
    arrays = arrays_of(good)
    arrays["val_images"] = arrays["val_images"][..., 0]
    return save(folder, arrays), "val_images in "


def damaged_image(folder, good):
    image_folder(folder / "tiles")
    file = folder / "tiles" / "test" / "fat" / "2.png"
    file.write_bytes(file.read_bytes()[:60])
    return folder / "tiles", "2.png cannot be read as an image: it may be damaged; "


def unknown_medmnist_name(folder, good):
    return "organmnist", "organmnist is not a MedMNIST name that can be used: a source is phantom, one of pathmnist, "


def no_test_split(folder, good):
    arrays = {name: array for name, array in arrays_of(good).items() if not name.startswith("test")}
    # One tile of the first class is left, which cannot be given to a test split.
    rows = np.flatnonzero(arrays["train_labels"].reshape(-1) != 0)
    rows = np.append(rows, np.flatnonzero(arrays["train_labels"].reshape(-1) == 0)[:1])
    arrays |= {name: arrays[name][rows] for name in ("train_images", "train_labels")}
    return save(folder, arrays), "bad has no test split, and too few tiles or groups of a class to make one: add"


BAD_SOURCES = [
    missing_file, missing_folder, file_of_another_kind, empty_folder, one_class_in_a_file, one_class_in_a_folder,
    class_without_training_tiles, corrupt_file, truncated_file, file_with_a_damaged_array, file_without_labels,
    label_too_high, negative_label, splits_of_different_size, images_of_different_size, images_of_different_mode,
    grey_images, damaged_image, unknown_medmnist_name, no_test_split,
]  # fmt: skip


@pytest.mark.parametrize("make", BAD_SOURCES, ids=lambda make: make.__name__)
def test_bad_tiles(make, tiny_tiles, tmp_path, started, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    source, expected = make(tmp_path, tiny_tiles)
    assert expected in refused(capsys, source, tmp_path / "run")
    assert started == [] and not (tmp_path / "run").exists()


def test_good_folder_of_images_is_taken(tmp_path, started, monkeypatch):
    # The one from which the bad ones above are made.
    monkeypatch.setattr("histodistill.training.reporting.report_page.write_report", lambda _: None)
    call(image_folder(tmp_path / "tiles"), tmp_path / "run")
    assert started == SCRIPTS
    assert read_json(tmp_path / "run" / "run.json")["class_names"] == ["fat", "gland"]


def test_folder_of_something_else_is_left_untouched(tiny_tiles, tmp_path, started, capsys):
    (tmp_path / "notes.txt").write_text("mine")
    message = refused(capsys, tiny_tiles, tmp_path)
    assert message == f"--output={tmp_path} is not a run and not empty: give a new folder"
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"] and started == []


def test_output_that_is_a_file(tiny_tiles, tmp_path, started, capsys):
    (tmp_path / "notes.txt").write_text("mine")
    assert "is not a run and not empty" in refused(capsys, tiny_tiles, tmp_path / "notes.txt")
    assert "cannot be written" in refused(capsys, tiny_tiles, tmp_path / "notes.txt" / "run")
    assert (tmp_path / "notes.txt").read_text() == "mine" and started == []


def test_empty_folder_is_taken(tiny_tiles, tmp_path):
    (tmp_path / "run").mkdir()
    plan(tiny_tiles, tmp_path / "run")
    assert json.loads((tmp_path / "run" / "run.json").read_text())["preset"] == "tiny"


def test_exit_code_of_the_real_command(tmp_path):
    command = [
        sys.executable,
        "-m",
        "histodistill.training.cli",
        "distill",
        "--data",
        "nothing.npz",
        "--output",
        "run",
    ]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("error: nothing.npz does not exist: ") and done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_run_records_the_precision_that_auto_stood_for(tiny_tiles, tmp_path, monkeypatch):
    for usual in ("no", "bf16"):
        monkeypatch.setattr("histodistill.training.running.precision.usual_precision", lambda usual=usual: usual)
        config = distill.DistillConfig(data=tiny_tiles, output=tmp_path / usual, preset="cpu-demo", audit_share=0)
        settings = distill.open_run(config)["settings"]
        assert settings["mixed_precision"] == settings["generate"]["mixed_precision"] == usual
