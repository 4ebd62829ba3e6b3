from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
from importlib import import_module, metadata
from types import ModuleType

import pytest

from histodistill.training import cli
from histodistill.training.running.options import StepConfig, StepParser, config, option


# What takes seconds to import, or is an extra.
HEAVY = (
    "torch", "diffusers", "transformers", "datasets", "accelerate", "matplotlib", "sklearn", "faiss", "infomap",
    "safetensors", "opacus", "peft", "gradio",
)  # fmt: skip
# What one starts with `accelerate launch`, by the name of the module.
SCRIPTS = ("train_autoencoder", "train_diffusion", "train_classifier")


def run(*argv: str) -> int:
    with pytest.raises(SystemExit) as stopped:
        cli.main(list(argv))
    return stopped.value.code


def step_of(name: str) -> ModuleType:
    return import_module(f"histodistill.training.{cli.COMMANDS[name].step}")


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_command_has_a_step(name):
    step = step_of(name)
    parser = cli.command_parser(name)
    assert isinstance(parser, StepParser)
    assert issubclass(parser.config_class, StepConfig)
    assert callable(step.run)
    # What the user typed, and what the step's module says it does.
    assert parser.prog == f"histodistill {name}"
    assert parser.description == step.__doc__


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_processes_can_be_asked_for_where_they_share_the_work(name):
    fields = step_of(name).make_parser().config_class.__dataclass_fields__
    if cli.COMMANDS[name].shares_work:
        assert fields["num_processes"].default == 1


@pytest.mark.parametrize("name", SCRIPTS)
def test_every_training_has_a_step(name):
    step = import_module(f"histodistill.training.{name}")
    assert isinstance(step.make_parser(), StepParser) and callable(step.run)


def test_no_command_prints_help(capsys):
    assert run() == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("usage: histodistill")
    assert all(f"\n  {name} " in captured.err for name in cli.COMMANDS)


def test_help_lists_the_commands(capsys):
    assert run("--help") == 0
    text = capsys.readouterr().out
    assert all(f"\n  {name} " in text and command.help in text for name, command in cli.COMMANDS.items())


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (
            ["destill", "--data", "phantom"],
            "'destill' is no command (did you mean distill?): use one of inspect, distill, train, generate, select, "
            "review, audit, merge, compare, evaluate-pool, benchmark, publish, verify, export, publish-metrics, "
            "demo-app, report, holds, clean, cache, doctor, completion",
        ),
        (
            ["train", "difusion", "--data", "phantom"],
            "'train difusion' is no command (did you mean diffusion?): use one of autoencoder, diffusion, classifier",
        ),
        (["--versoin"], "--versoin is no option of histodistill (did you mean --version?): histodistill --help lists"),
        (["train", "--hlp"], "--hlp is no option of histodistill train (did you mean --help?): histodistill train"),
        (["-x"], "unrecognized arguments: -x: histodistill --help tells how"),
        (
            ["train", "diffusion", "--autoencoders", "a"],
            "--autoencoders is no option of histodistill train diffusion (did you mean --autoencoder?): "
            "histodistill train diffusion --help lists them",
        ),
    ],
)
def test_what_is_unknown_is_refused_in_one_sentence(argv, message, capsys):
    assert run(*argv) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(f"error: {message}") and captured.err.count("\n") == 1


def test_trainings_are_listed(capsys):
    assert run("train") == 2
    told = capsys.readouterr().err
    assert run("train", "--help") == 0
    assert capsys.readouterr().out == told
    assert told.startswith("usage: histodistill train ")
    listed = re.findall(r"^  (train \w+) ", told, re.MULTILINE)
    assert listed == ["train autoencoder", "train diffusion", "train classifier"]


def test_the_number_of_processes_is_no_setting_of_a_training():
    for name in ("train autoencoder", "train diffusion", "train classifier"):
        config_class = cli.command_parser(name).config_class
        options = {"data": "phantom", "output": "o"}
        if name == "train diffusion":
            options["autoencoder"] = "a"
        assert config_class(**options, num_processes=2).settings() == config_class(**options).settings()


def test_version(capsys):
    assert run("--version") == 0
    assert capsys.readouterr().out == f"histodistill {metadata.version('histodistill')}\n"


def test_command_that_is_told_to_end_does_so_with_one_sentence(monkeypatch, capsys):
    def told_to_end(_):
        signal.raise_signal(signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(step_of("report"), "run", told_to_end)
    assert run("report", "r") == 143
    assert capsys.readouterr().err == "error: histodistill report was told to end: run the same command again\n"
    assert signal.getsignal(signal.SIGTERM) == before


@pytest.mark.parametrize(
    ("name", "argv", "remedy"),
    [
        ("distill", ["--data", "phantom", "--output", "o"], "the same command goes on where it stopped"),
        ("generate", ["--pipeline", "p", "--output", "o"], "run the same command again"),
        (
            "train classifier",
            ["--data", "phantom", "--output", "o"],
            "run the same command again with --resume latest",
        ),
    ],
)
def test_interrupted_command_ends_with_one_sentence(name, argv, remedy, monkeypatch, capsys):
    def interrupted(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(step_of(name), "run", interrupted)
    assert run(*name.split(), *argv) == 130
    assert capsys.readouterr().err == f"error: histodistill {name} was interrupted: {remedy}\n"


@config
class AnyConfig(StepConfig):
    """Stands for the options of a step."""

    anything: str = option("whatever it is")
    num_processes: int = option("how many", default=1)


@pytest.fixture
def called(monkeypatch):
    """`called(name)` replaces the step of a command and returns the list of what it is run with."""

    def replace(name: str) -> list[StepConfig]:
        seen = []
        step = step_of(name)
        monkeypatch.setattr(step, "make_parser", lambda: StepParser(AnyConfig, prog=f"histodistill {name}"))
        monkeypatch.setattr(step, "run", seen.append)
        monkeypatch.delattr(step, "exit_code", raising=False)
        return seen

    return replace


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_arguments_reach_the_command(name, called, capsys):
    seen = called(name)
    cli.main([*name.split(), "--anything", "at all"])
    assert seen == [AnyConfig(anything="at all")]
    assert run(*name.split(), "--anything", "at all", "--help") == 0
    assert capsys.readouterr().out.startswith(f"usage: histodistill {name} ")
    assert run(*name.split(), "--nothing") == 2
    assert len(seen) == 1


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_several_processes_run_the_step_where_they_share_the_work(name, called, monkeypatch):
    seen, started = called(name), []
    monkeypatch.setattr(cli, "run_module", lambda *call: started.append(call))
    argv = ["--anything", "at all", "--num-processes", "2"]
    cli.main([*name.split(), *argv])
    if cli.COMMANDS[name].shares_work:
        assert seen == [] and started == [(f"histodistill.training.{cli.COMMANDS[name].step}", argv, 2)]
    else:
        assert started == [] and seen == [AnyConfig(anything="at all", num_processes=2)]


def test_wrong_options_start_no_processes(monkeypatch, capsys):
    monkeypatch.setattr(cli, "run_module", lambda *call: pytest.fail("a process was started"))
    argv = ["--pipeline", "p", "--output", "o", "--num-processes", "2", "--per-class", "0"]
    assert run("generate", *argv) == 2
    assert capsys.readouterr().err == "error: --per-class=0 is out of range: it must be at least 1\n"


@pytest.mark.parametrize(
    ("name", "step"),
    [
        ("generate", "generate"),
        ("select", "distillation.select"),
        ("compare", "evaluation.compare"),
        ("evaluate-pool", "evaluation.evaluate_pool"),
        # What measures how fast training is lies in another room.
        ("benchmark", "tables.results_table"),
    ],
)
def test_steps_of_commands(name, step):
    assert cli.COMMANDS[name].step == step


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
    cli.main(["report", str(folder)])
    assert capsys.readouterr().out == f"report: {folder / 'report.html'}\n"
    assert (folder / "report.html").is_file()


def test_report_of_nothing(tmp_path, capsys):
    assert run("report", str(tmp_path / "run")) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ") and captured.err.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_help_is_quick(tmp_path):
    # In a process of its own, since this one has imported everything by now.
    code = f"""
import contextlib, io, json, sys
from importlib import import_module
from histodistill.training.cli import COMMANDS, main
found, before = {{}}, set()
def show(name, call):
    text, code = io.StringIO(), None
    with contextlib.redirect_stdout(text):
        try:
            call()
        except SystemExit as stop:
            code = stop.code
    imported = {{m for m in {HEAVY!r} if m in sys.modules}}
    found[name] = [code, text.getvalue(), sorted(imported - before)]
    before.update(imported)
show("histodistill", lambda: main(["--help"]))
for name in COMMANDS:
    show(f"histodistill {{name}}", lambda: main([*name.split(), "--help"]))
for name in {SCRIPTS!r}:
    show(name, lambda: import_module(f"histodistill.training.{{name}}").make_parser().read(["--help"]))
print(json.dumps(found))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert set(found) == {"histodistill", *(f"histodistill {name}" for name in cli.COMMANDS), *SCRIPTS}
    for name, (exit_code, text, imported) in found.items():
        assert exit_code == 0, name
        assert text.startswith(f"usage: {name} "), name
        assert imported == [], f"{name} --help imports {imported}"


def test_module_is_the_command(tmp_path):
    command = [sys.executable, "-m", "histodistill.training.cli", "nothing"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("error: 'nothing' is no command") and done.stderr.count("\n") == 1
