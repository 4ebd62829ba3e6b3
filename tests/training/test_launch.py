from __future__ import annotations

import argparse
import json
import sys
from types import SimpleNamespace

import pytest

from histodistill.training import launch
from histodistill.training.launch import add_launch_option, run_module


@pytest.fixture
def started(monkeypatch):
    """The commands that would have been started, with their environments."""
    commands = []

    def run(command, *, env, check):
        commands.append((command, env))
        return SimpleNamespace(returncode=0)

    monkeypatch.setattr(launch.subprocess, "run", run)
    monkeypatch.delenv("ACCELERATE_USE_CPU", raising=False)
    return commands


def test_one_process_is_started_as_python_does(started):
    run_module("package.script", ["--steps", "3"])
    [(command, environment)] = started
    assert command == [sys.executable, "-m", "package.script", "--steps", "3"]
    assert "ACCELERATE_USE_CPU" not in environment


@pytest.mark.parametrize("has_gpu", [False, True])
def test_several_are_started_by_accelerate(has_gpu, started, monkeypatch):
    monkeypatch.setattr(launch, "_has_gpu", lambda: has_gpu)
    run_module("package.script", ["--steps", "3"], 2)
    [(command, environment)] = started
    assert command[:3] == [sys.executable, "-m", "accelerate.commands.launch"]
    options = command[3:]
    assert options[options.index("--num_processes") + 1] == "2"
    # Without --multi_gpu, accelerate starts one process on a CPU and says nothing.
    assert "--multi_gpu" in options and "--cpu" not in options
    assert options[-4:] == ["-m", "package.script", "--steps", "3"]
    assert environment.get("ACCELERATE_USE_CPU") == (None if has_gpu else "true")


def test_accelerate_understands_the_command(started, monkeypatch):
    from accelerate.commands.launch import launch_command_parser

    monkeypatch.setattr(launch, "_has_gpu", lambda: False)
    run_module("package.script", ["--num-processes", "2", "--steps", "3"], 2)
    args = launch_command_parser().parse_args(started[0][0][3:])
    assert args.num_processes == 2 and args.module
    assert args.training_script == "package.script"
    assert args.training_script_args == ["--num-processes", "2", "--steps", "3"]


def test_exit_code_of_the_module_is_passed_on(monkeypatch, capsys):
    monkeypatch.setattr(launch.subprocess, "run", lambda *_, **__: SimpleNamespace(returncode=2))
    with pytest.raises(SystemExit) as stopped:
        run_module("package.script", [])
    assert stopped.value.code == 2
    # The module has said what was wrong.
    assert capsys.readouterr().err == ""


def test_a_killed_module_is_named(monkeypatch, capsys):
    monkeypatch.setattr(launch.subprocess, "run", lambda *_, **__: SimpleNamespace(returncode=-9))
    with pytest.raises(SystemExit) as stopped:
        run_module("package.script", [])
    assert stopped.value.code == 137
    error = capsys.readouterr().err
    assert error == "error: package.script was killed by signal 9: run the same command again to go on\n"


def test_module_runs_and_its_arguments_arrive(tmp_path, monkeypatch):
    (tmp_path / "probe.py").write_text(
        "import sys; open(sys.argv[1], 'w').write(sys.argv[2]); sys.exit(len(sys.argv))"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(SystemExit) as stopped:
        run_module("probe", [str(tmp_path / "seen"), "two words"])
    assert stopped.value.code == 3
    assert (tmp_path / "seen").read_text() == "two words"


@pytest.mark.launch
def test_two_processes_on_a_cpu_know_of_each_other(tmp_path, monkeypatch):
    (tmp_path / "probe.py").write_text(
        "import json, sys\n"
        "from histodistill.training.accelerator import make_accelerator\n"
        "from histodistill.training.errors import InputError\n"
        "accelerator = make_accelerator('no', batch_size=2)\n"
        "try:\n"
        "    make_accelerator('no', batch_size=1)\n"
        "except InputError as error:\n"
        "    refused = str(error)\n"
        "facts = [accelerator.process_index, accelerator.num_processes, accelerator.device.type, refused]\n"
        "accelerator.wait_for_everyone()\n"
        "open(f'{sys.argv[1]}/{accelerator.process_index}.json', 'w').write(json.dumps(facts))\n"
        "accelerator.end_training()\n"
    )
    monkeypatch.setattr(launch, "_has_gpu", lambda: False)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    run_module("probe", [str(tmp_path)], 2)
    facts = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    assert [fact[:3] for fact in facts] == [[0, 2, "cpu"], [1, 2, "cpu"]]
    assert facts[0][3].startswith("--batch-size=1 cannot be split evenly over 2 processes")


def test_option():
    parser = argparse.ArgumentParser()
    add_launch_option(parser)
    assert parser.parse_args([]).num_processes == 1
    assert parser.parse_args(["--num-processes", "4"]).num_processes == 4
