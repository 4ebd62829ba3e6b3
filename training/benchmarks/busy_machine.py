"""Measures training beside other programs: how much of its speed is left where each core has another one to run.

    python -m histodistill.training.benchmarks.busy_machine --seconds 20 --repeats 3

The ConvNet is trained on tiles of noise, in a process of its own each time, with the machine to itself, and with a
process beside it on each core that only counts. With half of each core, half of the speed is the most that can be
left. How long OpenMP's threads wait for each other before they sleep decides how much is.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

from histodistill.training.running.options import StepConfig, StepParser, config, option, run_script


# What is tried → its variables: as libraries do it, as this project has it, and what lies between.
POLICIES: dict[str, dict[str, str]] = {
    "as libraries do it": {},
    "passive": {"OMP_WAIT_POLICY": "PASSIVE"},
    "1,000 turns": {"GOMP_SPINCOUNT": "1000"},
    "30,000 turns": {"GOMP_SPINCOUNT": "30000"},
}
# A process that counts, and one that trains for so many seconds and prints how many tiles it has seen in each.
_COUNTS = "while True: pass"
_TRAINS = """
import sys, time, torch
from histodistill.training.models.classifiers import Classifier
seconds, threads, size = float(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
if threads: torch.set_num_threads(threads)
torch.manual_seed(0)
model = Classifier("convnet", 9, size).train()
optimizer = torch.optim.SGD(model.parameters(), 0.01)
images, labels = torch.randn(128, 3, size, size), torch.arange(128) % 9
def step():
    optimizer.zero_grad()
    torch.nn.functional.cross_entropy(model(images).logits, labels).backward()
    optimizer.step()
for _ in range(3): step()
start, count = time.perf_counter(), 0
while time.perf_counter() - start < seconds:
    step()
    count += 1
print(count * 128 / (time.perf_counter() - start))
"""


@config
class BusyMachineConfig(StepConfig):
    """Options of `busy_machine`."""

    seconds: float = option("that each training takes", default=20.0, above=0)
    repeats: int = option("times that everything is measured", default=3, at_least=1)
    image_size: int = option("side of the tiles in pixels", default=28, at_least=8)
    output: Path | None = option("JSON file with all figures", default=None)


def make_parser() -> StepParser[BusyMachineConfig]:
    """The parser of the command line."""
    return StepParser(
        BusyMachineConfig, prog="python -m histodistill.training.benchmarks.busy_machine", description=__doc__
    )


def run(config: BusyMachineConfig) -> list[dict[str, Any]]:
    """Measures all policies in turn, and prints a table.

    Returns:
        For each policy and number of threads `policy`, `threads`, `quiet` and `busy`, the medians of tiles per second,
        `kept`, the second over the first, and `of_usual`, the first over that of the first policy with all threads.
        The JSON file holds them, too.
    """
    from histodistill.training.running.files import write_json
    from histodistill.training.running.threads import usable_cores

    cores = usable_cores()
    tried = [(policy, threads) for policy in POLICIES for threads in sorted({cores, max(1, cores - 1)}, reverse=True)]
    speeds: dict[tuple[str, int, bool], list[float]] = {}
    for _ in range(config.repeats):
        for policy, threads in tried:
            for is_busy in (False, True):
                with _beside(cores if is_busy else 0):
                    speed = _speed(config, POLICIES[policy], threads)
                speeds.setdefault((policy, threads, is_busy), []).append(speed)
    rows = []
    usual = median(speeds[tried[0][0], tried[0][1], False])
    print("| threads wait | threads | tiles/s alone | of the usual | tiles/s beside others | of that kept |")
    print("|---|---:|---:|---:|---:|---:|")
    for policy, threads in tried:
        quiet, busy = (median(speeds[policy, threads, is_busy]) for is_busy in (False, True))
        row = {"policy": policy, "threads": threads, "quiet": quiet, "busy": busy}
        rows.append({**row, "kept": busy / quiet, "of_usual": quiet / usual})
        print(f"| {policy} | {threads} | {quiet:.0f} | {quiet / usual:.2f} | {busy:.0f} | {busy / quiet:.2f} |")
    if config.output is not None:
        write_json(config.output, rows)
    return rows


@contextmanager
def _beside(count: int) -> Iterator[None]:
    """So many processes run meanwhile that want a core each."""
    others = [subprocess.Popen([sys.executable, "-c", _COUNTS]) for _ in range(count)]
    try:
        time.sleep(0.5 if others else 0)
        yield
    finally:
        for other in others:
            other.kill()
            other.wait()


def _speed(config: BusyMachineConfig, policy: dict[str, str], threads: int) -> float:
    """Tiles per second of a training in a process of its own."""
    without = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_"))}
    words = [sys.executable, "-c", _TRAINS, str(config.seconds), str(threads), str(config.image_size)]
    done = subprocess.run(words, env={**without, **policy}, check=True, capture_output=True, text=True)
    return float(done.stdout)


if __name__ == "__main__":
    run_script(make_parser, run)
