from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from histodistill.training.engine import accelerator as module
from histodistill.training.engine.accelerator import make_accelerator
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
