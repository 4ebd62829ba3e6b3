from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from histodistill.training.running import launch
from histodistill.training.running.launch import run_module


@pytest.fixture
def started(monkeypatch):
    """The commands that would have been started, with their environments."""
    commands = []

    def run(command, environment):
        commands.append((command, environment))
        return 0

    monkeypatch.setattr(launch, "_run", run)
    monkeypatch.delenv("ACCELERATE_USE_CPU", raising=False)
    return commands


def test_one_process_is_started_as_python_does(started):
    run_module("package.script", ["--steps", "3"])
    [(command, environment)] = started
    assert command == [sys.executable, "-m", "package.script", "--steps", "3"]
    assert "ACCELERATE_USE_CPU" not in environment


@pytest.mark.parametrize("has_gpu", [False, True])
def test_several_are_started_by_accelerate(has_gpu, started, monkeypatch):
    monkeypatch.setattr(launch, "has_cuda", lambda: has_gpu)
    run_module("package.script", ["--steps", "3"], 2)
    [(command, environment)] = started
    assert command[:3] == [sys.executable, "-m", "histodistill.training.running.several"]
    options = command[3:]
    assert options[options.index("--num_processes") + 1] == "2"
    # Without --multi_gpu, accelerate starts one process on a CPU and says nothing.
    assert "--multi_gpu" in options and "--cpu" not in options
    assert options[-4:] == ["-m", "package.script", "--steps", "3"]
    assert environment.get("ACCELERATE_USE_CPU") == (None if has_gpu else "true")


def test_accelerate_understands_the_command(started, monkeypatch):
    from accelerate.commands.launch import launch_command_parser

    monkeypatch.setattr(launch, "has_cuda", lambda: False)
    run_module("package.script", ["--num-processes", "2", "--steps", "3"], 2)
    args = launch_command_parser().parse_args(started[0][0][3:])
    assert args.num_processes == 2 and args.module
    assert args.training_script == "package.script"
    assert args.training_script_args == ["--num-processes", "2", "--steps", "3"]


CLUSTERS = {
    "two machines": """
compute_environment: LOCAL_MACHINE
distributed_type: MULTI_GPU
machine_rank: 1
main_process_ip: 10.255.255.1
main_process_port: 29555
mixed_precision: fp8
num_machines: 2
num_processes: 8
rdzv_backend: c10d
gpu_ids: '3'
enable_cpu_affinity: true
dynamo_config: {dynamo_backend: INDUCTOR, dynamo_mode: max-autotune}
""",
    "DeepSpeed": """
compute_environment: LOCAL_MACHINE
distributed_type: DEEPSPEED
num_machines: 4
num_processes: 32
deepspeed_config: {gradient_accumulation_steps: 4, zero_stage: 3, deepspeed_multinode_launcher: standard}
""",
    "FSDP": """
compute_environment: LOCAL_MACHINE
distributed_type: FSDP
num_processes: 8
mixed_precision: bf16
fsdp_config: {fsdp_sharding_strategy: FULL_SHARD, fsdp_version: 2}
parallelism_config: {parallelism_config_tp_size: 2}
""",
    "SageMaker": "compute_environment: AMAZON_SAGEMAKER\ndistributed_type: NO\nmixed_precision: fp16\n",
    "TPU": "compute_environment: LOCAL_MACHINE\ndistributed_type: XLA\ntpu_use_cluster: true\n",
    "MPI": "compute_environment: LOCAL_MACHINE\ndistributed_type: MULTI_CPU\nuse_cpu: true\nnum_machines: 2\n"
    "mpirun_config: {mpirun_hostfile: /hosts}\n",
    "of another version": "distributed_type: MULTI_GPU\nwhat_is_this: 1\n",
    "no YAML": "{[",
}


@pytest.mark.parametrize("cluster", CLUSTERS)
def test_processes_are_started_on_this_machine_whatever_a_configuration_says(started, monkeypatch, tmp_path, cluster):
    """What PyTorch's launcher is told in the end, by Accelerate's own reckoning."""
    import torch.distributed.run
    from accelerate.commands import launch as accelerate_launch
    from accelerate.commands.config import config_args

    file = tmp_path / "default_config.yaml"
    file.write_text(CLUSTERS[cluster])
    for module in (accelerate_launch, config_args):
        monkeypatch.setattr(module, "default_config_file", str(file), raising=False)
    monkeypatch.setenv("PET_NNODES", "2")
    monkeypatch.setenv("PET_RDZV_ENDPOINT", "10.255.255.1:1")
    monkeypatch.setattr(launch, "has_cuda", lambda: False)
    run_module("package.script", ["--steps", "3"], 2)
    [(command, environment)] = started

    told = []
    monkeypatch.setattr(torch.distributed.run, "run", lambda args: told.append((args, dict(os.environ))))
    with monkeypatch.context() as patch:
        for name in os.environ.keys() - environment.keys():
            patch.delenv(name)
        accelerate_launch.launch_command(accelerate_launch.launch_command_parser().parse_args(command[3:]))
    [(args, environment)] = told
    assert (args.nnodes, args.nproc_per_node, args.node_rank, args.rdzv_endpoint) == ("1:1", "2", 0, "")
    assert (args.rdzv_backend, args.master_addr) == ("static", "127.0.0.1")
    assert (args.training_script, args.training_script_args) == ("package.script", ["--steps", "3"])
    asked = {name: value for name, value in environment.items() if name.startswith("ACCELERATE_")}
    assert asked.pop("ACCELERATE_MIXED_PRECISION") == asked.pop("ACCELERATE_DYNAMO_BACKEND").lower() == "no"
    assert {value.lower() for value in asked.values()} <= {"false", "default"}, asked


def test_failure_of_one_of_several_processes_is_no_answer(monkeypatch):
    # As accelerate's launcher ends whatever its processes ended with.
    monkeypatch.setattr(launch, "_run", lambda *_: 1)
    monkeypatch.setattr(launch, "has_cuda", lambda: False)
    for num_processes, code in ((1, 1), (2, 2)):
        with pytest.raises(SystemExit) as stopped:
            run_module("package.script", [], num_processes)
        assert stopped.value.code == code


def test_exit_code_of_the_module_is_passed_on(monkeypatch, capsys):
    monkeypatch.setattr(launch, "_run", lambda *_: 2)
    with pytest.raises(SystemExit) as stopped:
        run_module("package.script", [])
    assert stopped.value.code == 2
    # The module has said what was wrong.
    assert capsys.readouterr().err == ""


def test_a_killed_module_is_named(monkeypatch, capsys):
    monkeypatch.setattr(launch, "_run", lambda *_: -9)
    with pytest.raises(SystemExit) as stopped:
        run_module("package.script", [])
    assert stopped.value.code == 137
    error = capsys.readouterr().err
    assert error == (
        "error: package.script was killed by signal 9, as the system does where memory is short: run the same command "
        "again to go on\n"
    )


def test_module_runs_and_its_arguments_arrive(tmp_path, monkeypatch):
    (tmp_path / "probe.py").write_text(
        "import sys; open(sys.argv[1], 'w').write(sys.argv[2]); sys.exit(len(sys.argv))"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    with pytest.raises(SystemExit) as stopped:
        run_module("probe", [str(tmp_path / "seen"), "two words"])
    assert stopped.value.code == 3
    assert (tmp_path / "seen").read_text() == "two words"


# A script that works until it is ended, and the command that starts it.
LONG_WORK = """
import os, time
from pathlib import Path
from histodistill.training.running.options import StepConfig, StepParser, config, option, run_script

@config
class ProbeConfig(StepConfig):
    begun: Path = option("file that says so", positional=True)


def work(probe):
    new = probe.begun.with_suffix(".new")
    new.write_text(str(os.getpid()))
    new.rename(probe.begun)
    time.sleep(600)

run_script(lambda: StepParser(ProbeConfig, prog="probe"), work)
"""
COMMAND = """
import signal, sys
from histodistill.training import cli
from histodistill.training.running import launch

# Where these tests run in the background of a shell, Ctrl-C is switched off.
signal.signal(signal.SIGINT, signal.default_int_handler)
launch._PATIENCE = float(sys.argv[2])
cli.run_command = lambda command, argv: launch.run_module("probe", argv)
cli.main(["distill", sys.argv[1]])
"""


@pytest.fixture
def end_command(tmp_path):
    """`end_command(kill, number, patience)` ends the command with a signal while its script works.

    Returns its exit code, what both wrote to standard error, and whether the script still works.
    """
    (tmp_path / "probe.py").write_text(LONG_WORK)
    search = os.pathsep.join(filter(None, [str(tmp_path), os.environ.get("PYTHONPATH")]))
    begun = tmp_path / "begun"
    processes = []

    def end(kill, number: int, patience: float) -> tuple[int, str, bool]:
        argv = [sys.executable, "-c", COMMAND, str(begun), str(patience)]
        with open(tmp_path / "errors", "w") as errors:
            process = subprocess.Popen(
                argv, env={**os.environ, "PYTHONPATH": search}, stderr=errors, start_new_session=True
            )
        processes.append(process)
        deadline = time.monotonic() + 300
        while not begun.exists():
            assert process.poll() is None and time.monotonic() < deadline, (tmp_path / "errors").read_text()
            time.sleep(0.05)
        kill(process.pid, number)
        code = process.wait(300)
        try:
            os.kill(int(begun.read_text()), 0)
        except ProcessLookupError:
            return code, (tmp_path / "errors").read_text(), False
        return code, (tmp_path / "errors").read_text(), True

    yield end
    for process in processes:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def test_sigterm_ends_the_module_as_well(end_command):
    code, errors, still_works = end_command(os.kill, signal.SIGTERM, patience=300)
    assert (code, still_works) == (143, False)
    assert errors == "error: probe was killed by signal 15: run the same command again to go on\n"


@pytest.mark.parametrize(
    ("kill", "patience"), [(os.killpg, 300), (os.kill, 0.2)], ids=["by a terminal", "the command alone"]
)
def test_interrupted_command_ends_with_one_sentence_after_its_module(end_command, kill, patience):
    code, errors, still_works = end_command(kill, signal.SIGINT, patience)
    assert (code, still_works) == (130, False)
    assert errors == "error: histodistill distill was interrupted: the same command goes on where it stopped\n"


def test_handler_of_sigterm_is_put_back():
    before = signal.getsignal(signal.SIGTERM)
    assert launch._run([sys.executable, "-c", "raise SystemExit(4)"], dict(os.environ)) == 4
    assert signal.getsignal(signal.SIGTERM) is before


def test_module_runs_from_another_thread():
    codes = []
    command = [sys.executable, "-c", "raise SystemExit(4)"]
    thread = threading.Thread(target=lambda: codes.append(launch._run(command, dict(os.environ))))
    thread.start()
    thread.join()
    assert codes == [4]


@pytest.fixture
def probe(tmp_path, monkeypatch):
    """`probe(text)` makes the module `probe` for processes on a CPU, with one thread each."""
    monkeypatch.setattr(launch, "has_cuda", lambda: False)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return (tmp_path / "probe.py").write_text


@pytest.mark.launch
def test_two_processes_on_a_cpu_know_of_each_other(probe, tmp_path):
    probe(
        "import json, sys\n"
        "from histodistill.training.engine.accelerator import make_accelerator\n"
        "from histodistill.training.running.errors import InputError\n"
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
    run_module("probe", [str(tmp_path)], 2)
    facts = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    assert [fact[:3] for fact in facts] == [[0, 2, "cpu"], [1, 2, "cpu"]]
    assert facts[0][3].startswith("batch_size=1 cannot be split evenly over 2 processes")


@pytest.mark.launch
def test_a_lost_process_ends_the_others_with_one_sentence(probe, capfd):
    """Its peer waits for it in vain; what the launcher and libraries make of that in many lines is not told."""
    probe(
        "import os, signal, torch\n"
        "from histodistill.training.engine.accelerator import make_accelerator\n"
        "from histodistill.training.running.program import as_program\n"
        "with as_program():\n"
        "    accelerator = make_accelerator('no')\n"
        "    accelerator.wait_for_everyone()\n"
        "    if accelerator.process_index:\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    accelerator.gather(torch.ones(1))\n"
    )
    with pytest.raises(SystemExit) as stopped:
        run_module("probe", [], 2)
    assert stopped.value.code == 137
    told = [line for line in capfd.readouterr().err.splitlines() if line]
    assert told[-1].startswith("error: probe was killed by signal 9, as the system does where memory is short: ")
    assert not any("Traceback" in line for line in told) and len(told) <= 2, told
