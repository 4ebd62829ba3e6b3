from __future__ import annotations

import os
from datetime import timedelta
from types import SimpleNamespace

import pytest
import torch

from histodistill.training.engine import accelerator as module
from histodistill.training.engine.accelerator import device_record, make_accelerator, require_compiler
from histodistill.training.running.errors import InputError


pytestmark = pytest.mark.usefixtures("fresh_accelerate")


def test_steps_of_one_process_have_a_precision_each():
    for precision, accumulation in (("bf16", 2), ("no", 1), ("bf16", 3)):
        accelerator = make_accelerator(precision, gradient_accumulation_steps=accumulation)
        assert accelerator.mixed_precision == precision
        assert accelerator.gradient_accumulation_steps == accumulation
        assert accelerator.sync_gradients
        with accelerator.autocast():
            product = torch.ones(2, 2) @ torch.ones(2, 2)
        assert product.dtype == (torch.bfloat16 if precision == "bf16" else torch.float32)


def test_accumulation_that_was_cut_short_is_forgotten():
    first = make_accelerator("no", gradient_accumulation_steps=2)
    with pytest.raises(ZeroDivisionError), first.accumulate(torch.nn.Linear(1, 1)):
        assert not first.sync_gradients
        raise ZeroDivisionError
    assert make_accelerator("no").sync_gradients


def test_what_is_known_of_the_processes_stays(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    first = make_accelerator("no")
    monkeypatch.delenv("ACCELERATE_USE_CPU")
    assert make_accelerator("bf16").device == first.device


@pytest.fixture
def state(monkeypatch):
    """Pretends to be one of four processes on a CPU."""
    monkeypatch.setattr(
        module, "PartialState", lambda **_: SimpleNamespace(device=torch.device("cpu"), num_processes=4)
    )


def test_processes_wait_for_work_that_one_does_alone(monkeypatch):
    given = []

    def state(**options):
        given.append(options)
        return SimpleNamespace(device=torch.device("cpu"), num_processes=1)

    monkeypatch.setattr(module, "PartialState", state)
    make_accelerator("no")
    # By torch's own limit a validation of half an hour would end a training.
    assert given[0]["timeout"] >= timedelta(hours=12)


def test_options_reach_accelerate(tmp_path):
    accelerator = make_accelerator("bf16", batch_size=1, gradient_accumulation_steps=3, project_dir=tmp_path)
    assert accelerator.mixed_precision == "bf16"
    assert accelerator.gradient_accumulation_steps == 3
    assert accelerator.project_dir == tmp_path
    assert accelerator.num_processes == 1


def test_the_cpu_can_be_asked_for(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    assert make_accelerator("no").device.type == "cpu"


def test_fp16_needs_a_gpu(state):
    with pytest.raises(InputError, match=r"^mixed_precision=fp16 needs a GPU: give bf16 or no$"):
        make_accelerator("fp16")


@pytest.mark.parametrize("batch_size", [3, 6])
def test_every_process_gets_as_many_tiles(state, batch_size):
    message = rf"^batch_size={batch_size} cannot be split evenly over 4 processes: give a multiple of 4$"
    with pytest.raises(InputError, match=message):
        make_accelerator("no", batch_size=batch_size)
    make_accelerator("no", batch_size=8)


def test_a_script_that_splits_no_batches_has_no_such_limit(state):
    make_accelerator("no")


@pytest.mark.filterwarnings("ignore:`log_with=all` was passed but no supported trackers")
def test_tracker_must_be_installed(monkeypatch, tmp_path):
    monkeypatch.setattr(module, "get_available_trackers", lambda: ["wandb"])
    with pytest.raises(InputError, match=r"^report_to=tensorboard is not installed: install it with pip"):
        make_accelerator("no", report_to="tensorboard")
    # "all" is whatever there is.
    make_accelerator("no", report_to="all", project_dir=tmp_path)


HOSTILE = {
    "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "4",
    "ACCELERATE_MIXED_PRECISION": "fp16",
    "ACCELERATE_DYNAMO_BACKEND": "inductor",
    "ACCELERATE_USE_FSDP": "true",
    "ACCELERATE_USE_DEEPSPEED": "True",
    "ACCELERATE_USE_MEGATRON_LM": "true",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "true",
    "ACCELERATE_USE_SAGEMAKER": "true",
    "ACCELERATE_TORCH_DEVICE": "meta",
    "ACCELERATE_SPLIT_BATCHES": "true",
    "ACCELERATE_DEBUG_MODE": "perhaps",
    "ACCELERATE_OF_A_LATER_VERSION": "7",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_options_win_over_the_environment_which_is_told(monkeypatch, capsys, name):
    monkeypatch.setenv(name, HOSTILE[name])
    accelerator = make_accelerator("bf16", gradient_accumulation_steps=2)
    assert (accelerator.mixed_precision, accelerator.gradient_accumulation_steps) == ("bf16", 2)
    assert accelerator.distributed_type == "NO" and accelerator.device.type != "meta"
    assert accelerator.state.dynamo_plugin.backend == "NO"
    # Accelerate looks at some of them only when gradients are clipped.
    model, optimizer = accelerator.prepare(net := torch.nn.Linear(2, 1), torch.optim.SGD(net.parameters(), lr=1.0))
    for _ in range(2):
        with accelerator.accumulate(model):
            accelerator.backward(model(torch.ones(4, 2, device=accelerator.device)).sum())
            if accelerator.sync_gradients:
                accelerator.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
    error = capsys.readouterr().err
    assert error.startswith(f"warning: {name}={HOSTILE[name]} of the environment") and error.count("\n") == 1
    assert name not in os.environ


def test_all_that_is_not_used_is_told_in_one_line(monkeypatch, capsys):
    for name, value in HOSTILE.items():
        monkeypatch.setenv(name, value)
    make_accelerator("no")
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert all(f"{name}={value}" in error for name, value in HOSTILE.items())


def test_what_asks_for_nothing_or_the_same_is_not_told(monkeypatch, capsys):
    """`accelerate launch` sets these whatever it is told."""
    for name, value in {
        "MIXED_PRECISION": "bf16",
        "GRADIENT_ACCUMULATION_STEPS": "3",
        "DYNAMO_BACKEND": "NO",
        "DYNAMO_MODE": "default",
        "DYNAMO_USE_FULLGRAPH": "False",
        "USE_FSDP": "false",
        "USE_CPU": "None",
        "LOG_LEVEL": "error",
    }.items():
        monkeypatch.setenv(f"ACCELERATE_{name}", value)
    make_accelerator("bf16", gradient_accumulation_steps=3)
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")  # by its default
    make_accelerator("bf16")
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("value", ["perhaps", "2", "cuda"])
def test_a_cpu_that_is_asked_for_in_other_words(monkeypatch, value):
    monkeypatch.setenv("ACCELERATE_USE_CPU", value)
    with pytest.raises(
        InputError, match=rf"^the environment has ACCELERATE_USE_CPU={value}: set it to true or false$"
    ):
        make_accelerator("no")


@pytest.mark.parametrize("value", ["", "false", "0", "None"])
def test_a_cpu_that_is_not_asked_for(monkeypatch, value):
    monkeypatch.setenv("ACCELERATE_USE_CPU", value)
    assert make_accelerator("no").num_processes == 1


def test_float32_on_a_gpu_is_tf32_in_trainings_alone(monkeypatch):
    asked = []
    monkeypatch.setattr(
        module, "PartialState", lambda **_: SimpleNamespace(device=torch.device("cuda"), num_processes=1)
    )
    monkeypatch.setattr(torch, "set_float32_matmul_precision", asked.append)
    make_accelerator("no", tf32=True)
    make_accelerator("no")
    assert asked == ["high", "highest"]
    # A CPU would take something else for it.
    monkeypatch.setattr(
        module, "PartialState", lambda **_: SimpleNamespace(device=torch.device("cpu"), num_processes=1)
    )
    make_accelerator("no", tf32=True)
    assert asked == ["high", "highest"]


def test_records_tell_of_the_device(monkeypatch):
    assert device_record(SimpleNamespace(device=torch.device("cpu"))) == {"device": "cpu"}
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H200")
    for precision, tf32 in (("high", True), ("highest", False)):
        monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda precision=precision: precision)
        gpu = SimpleNamespace(device=torch.device("cuda"))
        assert device_record(gpu) == {"device": "NVIDIA H200", "tf32": tf32}


@pytest.mark.parametrize(
    ("device", "message"), [("cpu", "compile needs a C\\+\\+ compiler: install it"), ("cuda", "compile needs Triton")]
)
def test_what_compiling_needs_is_asked_for_at_once(monkeypatch, device, message):
    monkeypatch.setattr(module.shutil, "which", lambda name: "/usr/bin/g++" if name == "g++" else None)
    monkeypatch.setattr(module, "find_spec", lambda name: object())
    require_compiler(torch.device(device))
    monkeypatch.setattr(module.shutil, "which", lambda name: None)
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=message):
        require_compiler(torch.device(device))
