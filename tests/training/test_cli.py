from __future__ import annotations

import json
import shutil
import subprocess
import sys
from importlib import import_module, metadata
from pathlib import Path

import pytest

from histodistill.training import cli, commands


HEAVY = ("torch", "diffusers", "transformers", "datasets", "accelerate", "sklearn", "faiss", "infomap")


def run(*argv: str) -> int:
    with pytest.raises(SystemExit) as stopped:
        cli.main(list(argv))
    return stopped.value.code


def test_every_command_is_a_module_and_the_other_way_round():
    files = {path.stem for path in Path(commands.__file__).parent.glob("*.py")} - {"__init__"}
    assert files == {name.replace("-", "_") for name in cli.COMMANDS}


def test_no_command_prints_help(capsys):
    assert run() == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("usage: histodistill")
    assert all(f"\n  {name} " in captured.err for name in cli.COMMANDS)


def test_help_lists_the_commands(capsys):
    assert run("--help") == 0
    text = capsys.readouterr().out
    assert all(f"\n  {name} " in text and about in text for name, about in cli.COMMANDS.items())


def test_unknown_command_is_refused_in_one_sentence(capsys):
    assert run("destill", "--data", "phantom") == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == (
        "error: 'destill' is no command: use one of distill, generate, select, audit, merge, compare, "
        "evaluate-pool, benchmark, publish, publish-metrics, demo-app, report\n"
    )


def test_version(capsys):
    assert run("--version") == 0
    assert capsys.readouterr().out == f"histodistill {metadata.version('histodistill')}\n"


@pytest.mark.parametrize(
    ("name", "remedy"),
    [("distill", "the same command goes on where it stopped"), ("publish-metrics", "run the same command again")],
)
def test_interrupted_command_ends_with_one_sentence(name, remedy, monkeypatch, capsys):
    def interrupted(_):
        raise KeyboardInterrupt

    module = import_module(f"histodistill.training.commands.{name.replace('-', '_')}")
    monkeypatch.setattr(module, "main", interrupted)
    assert run(name) == 130
    assert capsys.readouterr().err == f"error: histodistill {name} was interrupted: {remedy}\n"


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_arguments_reach_the_command(name, monkeypatch):
    seen = []
    module = import_module(f"histodistill.training.commands.{name.replace('-', '_')}")
    monkeypatch.setattr(module, "main", seen.append)
    cli.main([name, "--anything", "at all", "--help"])
    assert seen == [["--anything", "at all", "--help"]]


@pytest.mark.parametrize(
    ("name", "argv", "num_processes"),
    [
        ("generate", ["--pipeline", "p", "--output", "o", "--num-processes", "2"], (2,)),
        ("select", ["--pool", "p", "--teacher", "t", "--output", "o"], ()),
        ("compare", ["--run", "r", "--data", "phantom"], (1,)),
        ("evaluate-pool", ["r", "--data", "phantom"], (1,)),
    ],
)
def test_commands_start_the_script_of_their_name(name, argv, num_processes, monkeypatch):
    started = []
    stem = name.replace("-", "_")
    module = import_module(f"histodistill.training.commands.{stem}")
    monkeypatch.setattr(module, "run_module", lambda *call: started.append(call))
    cli.main([name, *argv])
    assert started == [(f"histodistill.training.{stem}", argv, *num_processes)]


def test_benchmark_starts_the_script_of_the_table(monkeypatch):
    # The module called benchmark measures how fast training is.
    started = []
    argv = ["r", "--data", "phantom", "--rows", "random", "infomap:quota=sqrt", "--jobs", "2"]
    monkeypatch.setattr("histodistill.training.commands.benchmark.run_module", lambda *call: started.append(call))
    cli.main(["benchmark", *argv])
    assert started == [("histodistill.training.tables.results_table", argv)]


@pytest.mark.parametrize(
    ("option", "value", "rule"),
    [
        ("--per-class", "0", "it must be at least 1"),
        ("--num-inference-steps", "0", "it must be at least 1"),
        ("--chunk-size", "-2", "it must be at least 1"),
        ("--num-processes", "0", "it must be at least 1"),
        ("--guidance-scale", "-0.5", "it must be at least 0"),
        ("--seed", "-1", "it must be at least 0 and below 2^31"),
        ("--seed", "2147483648", "it must be at least 0 and below 2^31"),
    ],
)
def test_bad_options_of_generate(option, value, rule, capsys):
    assert run("generate", "--pipeline", "p", "--output", "o", option, value) == 2
    assert capsys.readouterr().err == f"error: {option}={value} is out of range: {rule}\n"


def test_report_of_a_run(tiny_run, tmp_path, capsys):
    folder = shutil.copytree(tiny_run.folder, tmp_path / "run")
    (folder / "report.html").unlink()
    cli.main(["report", "--run", str(folder)])
    assert capsys.readouterr().out == f"report: {folder / 'report.html'}\n"
    assert (folder / "report.html").is_file()


def test_report_of_nothing(tmp_path, capsys):
    assert run("report", "--run", str(tmp_path / "run")) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ") and captured.err.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_help_is_quick(tmp_path):
    # In a process of its own, since this one has imported everything by now.
    code = f"""
import contextlib, io, json, sys
from histodistill.training.cli import COMMANDS, main
found = {{}}
def show(name, call):
    text = io.StringIO()
    with contextlib.redirect_stdout(text):
        try:
            call()
        except SystemExit as stop:
            found[name] = [stop.code, text.getvalue(), [m for m in {HEAVY!r} if m in sys.modules]]
show("", lambda: main(["--help"]))
for name in COMMANDS:
    show(name, lambda: main([name, "--help"]))
print(json.dumps(found))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert set(found) == {"", *cli.COMMANDS}
    for name, (exit_code, text, imported) in found.items():
        assert exit_code == 0, name
        assert text.startswith(f"usage: histodistill {name}".rstrip() + " "), name
        assert imported == [], f"{name or 'histodistill'} --help imports {imported}"


def test_module_is_the_command(tmp_path):
    command = [sys.executable, "-m", "histodistill.training.cli", "nothing"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("error: 'nothing' is no command") and done.stderr.count("\n") == 1
