"""Makes the `Accelerator` of a script, after the checks that only the started processes can make."""

from __future__ import annotations

from pathlib import Path

from accelerate import Accelerator, PartialState
from accelerate.state import AcceleratorState, GradientState
from accelerate.tracking import get_available_trackers
from accelerate.utils import parse_flag_from_env

from histodistill.training.running.errors import InputError, param


def make_accelerator(
    mixed_precision: str,
    *,
    batch_size: int | None = None,
    gradient_accumulation_steps: int = 1,
    report_to: str | None = None,
    project_dir: str | Path | None = None,
) -> Accelerator:
    """An `Accelerator` for this process, whatever the one made before it was like.

    Several steps may run in one process, as in a notebook, each with a precision of its own. An accelerator of a step
    that has ended is not to be used any more.

    Args:
        mixed_precision: "no", "bf16" or "fp16".
        batch_size: Tiles per batch over all processes, where the script splits batches.
        gradient_accumulation_steps: Batches per optimizer step.
        report_to: A tracker, "all" or None.
        project_dir: Where trackers that write files put them.

    Raises:
        InputError: For fp16 without a GPU, a batch that cannot be shared evenly, or a tracker that is not installed.
    """
    # Accelerate reads this variable only when it makes an Accelerator: left to itself, a state made before that would
    # count one process where several run on a CPU.
    state = PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU"))
    if mixed_precision == "fp16" and state.device.type == "cpu":
        raise InputError(f"{param('mixed_precision')}=fp16 needs a GPU: give bf16 or no")
    if batch_size is not None and batch_size % state.num_processes:
        raise InputError(
            f"{param('batch_size')}={batch_size} cannot be split evenly over {state.num_processes} processes: give a "
            f"multiple of {state.num_processes}"
        )
    if report_to not in (None, "all") and report_to not in [str(t) for t in get_available_trackers()]:
        raise InputError(
            f"{param('report_to')}={report_to} is not installed: install it with pip, or leave the option out"
        )
    # Accelerate keeps one precision for the whole process and refuses another. What it knows of devices and processes
    # stays: that is the same for all steps.
    AcceleratorState._reset_state()
    GradientState._reset_state()
    return Accelerator(
        mixed_precision=mixed_precision,
        gradient_accumulation_steps=gradient_accumulation_steps,
        log_with=report_to,
        project_dir=project_dir,
    )
