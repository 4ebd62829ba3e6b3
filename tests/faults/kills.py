"""Ends every step at random moments, goes on, and compares the end with that of a step that nobody disturbed.

    python tests/faults/kills.py [--kills 20] [--signal KILL|INT|TERM] [--steps NAME …] [--seed 0]

Each step works in a process of its own, forked from this one, which has the libraries already: so many kills take
seconds, and all of them meet the step's own work. What it starts in turn is forked from it. It is begun again until it
has been ended so many times; then it may finish, and what it leaves must be what the other one left, byte for byte but
for times, versions and memory in JSON. SIGKILL and SIGINT reach all processes of a step at once, as where a machine
goes down or a terminal sends Ctrl-C, and SIGTERM the first of them. After SIGINT and SIGTERM it must have told one
sentence, and left no claim. Prints a line for each step; the exit code is 1 where one is not as it should be.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn


#: Keys of JSON files whose values differ from run to run.
OF_THE_MOMENT = {"versions", "peak_memory", "device_memory", "estimate"}
#: Files that are not compared: pages and cards tell times.
NOT_COMPARED = (".html",)
TRAINING = "--max-train-steps 12 --validation-steps 3 --checkpointing-steps 2 --batch-size 8 --mixed-precision no"
#: What `distill` does of everything.
PRESET = """
[autoencoder]
channels = [8, 8]
latent_channels = 2
max_train_steps = 6
validation_steps = 3
checkpointing_steps = 2
batch_size = 8
[diffusion]
channels = [8]
layers_per_block = 1
attention_levels = 1
max_train_steps = 6
validation_steps = 3
checkpointing_steps = 2
batch_size = 8
[teacher]
width = 8
max_train_steps = 6
validation_steps = 3
checkpointing_steps = 2
batch_size = 8
[generate]
per_class = 8
num_inference_steps = 2
chunk_size = 8
[select]
n_per_class = 3
n_neighbors = 3
[compare]
train = ["convnet:4:real_all,real_random,distilled_ce"]
[audit]
weight_tiles = 8
plant = 4
"""
#: Step → its module, the parts of a run that it needs, and the words of its command line; {run} is the folder of the
#: run that it works in, {data} the tiles, and {preset} a file of `PRESET`.
STEPS: dict[str, tuple[str, tuple[str, ...], str]] = {
    "train autoencoder": (
        "train_autoencoder",
        (),
        f"--data {{data}} --output {{run}}/autoencoder --channels 8 8 --latent-channels 2 --resume latest {TRAINING}",
    ),
    "train classifier": (
        "train_classifier",
        (),
        f"--data {{data}} --output {{run}}/teacher --width 8 --resume latest {TRAINING}",
    ),
    "train diffusion": (
        "train_diffusion",
        ("autoencoder",),
        "--data {data} --output {run}/pipeline --autoencoder {run}/autoencoder --channels 8 --layers-per-block 1 "
        f"--attention-levels 1 --resume latest {TRAINING}",
    ),
    "generate": (
        "generate",
        ("pipeline",),
        "--pipeline {run}/pipeline --output {run}/pool --per-class 8 --num-inference-steps 2 --chunk-size 8",
    ),
    "select": (
        "distillation.select",
        ("teacher", "pool"),
        "--pool {run}/pool --teacher {run}/teacher --output {run} --n-per-class 3 --n-neighbors 3",
    ),
    "compare": (
        "evaluation.compare",
        ("teacher", "pool", "selector", "distilled"),
        "{run} --data {data} --train convnet:4:real_all,real_random,distilled_ce --mixed-precision no",
    ),
    "evaluate-pool": (
        "evaluation.evaluate_pool",
        ("autoencoder", "pipeline", "teacher", "pool"),
        "{run} --data {data} --train convnet:4:real_all,pool_all --mixed-precision no",
    ),
    "audit": (
        "evaluation.audit",
        ("autoencoder", "pipeline", "teacher", "pool", "selector", "distilled"),
        "{run} --data {data} --plant 4 --weight-tiles 8",
    ),
    "merge": (
        "distillation.merge",
        ("distilled", "twin"),
        "{run} {run}/twin --names north south --output {run}/merged",
    ),
    "report": ("reporting.report", ("teacher", "pool", "selector", "distilled"), "{run}"),
    "benchmark": (
        "tables.results_table",
        ("teacher", "pool"),
        "{run} --data {data} --rows real_all real_random random infomap --sizes 3 --seeds 0 1 --train convnet:2,4 "
        "--batch-size 8 --whole-batch-size 8 --jobs 2 --mixed-precision no",
    ),
    "distill": (
        "end_to_end.distill",
        (),
        "--data {data} --output {run} --preset {preset} --mixed-precision no",
    ),
}


@dataclass
class Ended:
    """How a process ended: its exit code, or minus the signal, what it said and how long it took in seconds."""

    code: int
    said: str
    seconds: float


class Steps:
    """Runs steps in processes that are forked from this one.

    Args:
        place: Folder for all that is made.
        data: The tiles.
    """

    def __init__(self, place: Path, data: Path):
        self.place, self.data, self.made, self.preset = place, data, place / "made", place / "tiny.toml"
        self.preset.write_text(PRESET)

    def run(
        self,
        name: str,
        run: Path,
        until: Callable[[int], None] | None = None,
        first: Callable[[], None] | None = None,
    ) -> Ended:
        """Runs a step, which does `first` before all else, and `until` with its process's number once it works."""
        module, _, words = STEPS[name]
        argv = words.format(run=run, data=self.data, preset=self.preset).split()
        said = self.place / "said.txt"
        begun = time.monotonic()
        here, there = os.pipe()
        process = os.fork()
        if process == 0:
            os.setpgid(0, 0)
            if first is not None:
                first()
            os._exit(_work(module, argv, said, lambda: os.close(there)))
        os.close(there)
        os.read(here, 1)  # nothing, when it is closed there
        os.close(here)
        if until is not None:
            until(process)
        code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
        return Ended(code, said.read_text(errors="replace"), time.monotonic() - begun)

    def fresh(self, name: str, folder: Path) -> Path:
        """A new run with what a step needs."""
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        for part in STEPS[name][1]:
            shutil.copytree(self.made / part, folder / part)
        return folder


def _work(module: str, argv: list[str], said: Path, begun: Callable[[], None]) -> int:
    """What the forked process does: the step as a script, with what it says in a file; `begun` where it answers."""
    with open(said, "w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    _answer_as_new()
    _fork_others()
    return _script(f"histodistill.training.{module}", argv, begun)


def _script(module: str, argv: list[str], begun: Callable[[], None] = lambda: None) -> int:
    """Runs a step as a script, and returns its exit code; `begun` is called before its work."""
    from histodistill.training.running.options import run_script

    step = import_module(module)

    def run(config: Any) -> Any:
        begun()
        return step.run(config)

    try:
        run_script(step.make_parser, run, argv, getattr(step, "exit_code", None))
    except SystemExit as ended:
        return int(ended.code or 0)
    except BaseException:
        import traceback

        traceback.print_exc()
        return 99
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
    return 0


def _answer_as_new() -> None:
    """Has signals answered as in a new process."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _fork_others() -> None:
    """Has processes that this one starts forked from it: imports alone would take most of their time."""
    from histodistill.training.end_to_end import distill
    from histodistill.training.running import launch
    from histodistill.training.tables import cell_processes

    os.register_at_fork(after_in_child=_answer_as_new)
    launch.subprocess = SimpleNamespace(Popen=_Forked, TimeoutExpired=subprocess.TimeoutExpired)
    cell_processes.get_context = lambda _: multiprocessing.get_context("fork")
    # Nothing that comes out depends on it.
    distill.measure_apart = lambda _: "it is not asked for"


class _Forked:
    """What `run_module` has of a process that it starts: `python -m MODULE WORDS`, forked from this one."""

    def __init__(self, command: list[str], env: Mapping[str, str]):
        self.process = os.fork()
        if self.process == 0:
            os.environ.clear()
            os.environ.update(env)
            _, _, module, *argv = command
            os._exit(_script(module, argv))

    def wait(self, timeout: float | None = None) -> int:
        """Its exit code, once it has ended; minus the signal where one ended it."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            found, status = os.waitpid(self.process, 0 if deadline is None else os.WNOHANG)
            if found:
                return os.waitstatus_to_exitcode(status)
            if deadline is not None and time.monotonic() > deadline:
                raise subprocess.TimeoutExpired("", timeout or 0)
            time.sleep(0.01)

    def terminate(self) -> None:
        """Tells it to end."""
        os.kill(self.process, signal.SIGTERM)


def content(folder: Path) -> dict[str, str]:
    """SHA-256 of each file of a folder, of JSON without what is of the moment."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.suffix not in NOT_COMPARED:
            data = path.read_bytes()
            if path.suffix == ".json":
                data = json.dumps(_timeless(json.loads(data)), sort_keys=True).encode()
            found[str(path.relative_to(folder))] = hashlib.sha256(data).hexdigest()
    return found


def _timeless(value: Any) -> Any:
    if isinstance(value, dict):
        kept = {key: each for key, each in value.items() if key not in OF_THE_MOMENT and "second" not in key}
        # A record is sealed by the hash of files with times in them, such as those that end in stage.json; and its
        # fingerprint is that of its settings, which are compared themselves.
        sealed = {"sealed", "records", "sha256", "fingerprint", *(key for key in kept if key.endswith("stage.json"))}
        return {key: _timeless(each) for key, each in kept.items() if key not in sealed}
    return [_timeless(each) for each in value] if isinstance(value, list) else value


def differences(one: Mapping[str, str], other: Mapping[str, str]) -> list[str]:
    """The files that are not the same in both."""
    return sorted(name for name in one.keys() | other.keys() if one.get(name) != other.get(name))


def disturb(steps: Steps, name: str, kills: int, number: signal.Signals, draw: random.Random) -> tuple[int, list[str]]:
    """Ends a step so many times, lets it finish, and begins anew where it was finished too early.

    Returns:
        How often it was ended while it worked, and what is not as it should be.
    """
    undisturbed = steps.fresh(name, steps.place / "run")
    usual = steps.run(name, undisturbed)
    if usual.code not in (0, 1):
        return 0, [f"undisturbed: {usual.code}: {usual.said[-300:]}"]
    wanted = content(undisturbed)
    shutil.rmtree(steps.place / "undisturbed", ignore_errors=True)
    undisturbed.rename(steps.place / "undisturbed")
    run = steps.fresh(name, steps.place / "run")  # in a folder of the same name, which records may tell
    wrong: list[str] = []
    ended = 0
    while ended < kills:

        def end(process: int) -> None:
            time.sleep(draw.uniform(0, 1.05) * usual.seconds)
            (os.kill if number == signal.SIGTERM else os.killpg)(process, number)

        now = steps.run(name, run, end)
        if now.code in (0, 1):
            wrong += [f"after {ended} kills: {each} differs" for each in differences(wanted, content(run))]
            run = steps.fresh(name, steps.place / "run")
            continue
        ended += 1
        wrong += _wrong_end(now, number, run)
    last = steps.run(name, run)
    if last.code != usual.code:
        wrong.append(f"it does not go on: {last.code}: {last.said[-300:]}")
    wrong += [f"{each} differs" for each in differences(wanted, content(run))]
    return ended, wrong


def _wrong_end(now: Ended, number: signal.Signals, run: Path) -> list[str]:
    if number == signal.SIGKILL:
        return [] if now.code == -number else [f"ended with {now.code}: {now.said[-300:]}"]
    wrong = []
    if now.code != 128 + number:
        wrong.append(f"ended with {now.code}: {now.said[-300:]}")
    lines = now.said.replace("\r", "\n").splitlines()
    if "Traceback" in now.said or not lines or not lines[-1].startswith("error: "):
        wrong.append(f"said {now.said[-300:]}")
    if left := [path for path in run.rglob(".*") if path.suffix in (".lock", ".tmp")]:
        wrong.append(f"left {left}")
    return wrong


def make_tiles(path: Path) -> Path:
    """16-pixel phantom tiles: 12 for training, 4 for validation and 4 for testing per class."""
    import numpy as np

    from histodistill.training.data.phantom import phantom_source

    source = phantom_source(image_size=16, sizes={"train": 12, "validation": 4, "test": 4})
    arrays = {"class_names": np.array(source.class_names)}
    for split, prefix in (("train", "train"), ("validation", "val"), ("test", "test")):
        tiles = source.split(split)
        arrays |= {f"{prefix}_images": tiles.images, f"{prefix}_labels": tiles.labels[:, None]}
    np.savez(path, **arrays)
    return path


def make_inputs(steps: Steps, wanted: Sequence[str]) -> None:
    """Makes a run by the steps in order, until it has all parts that some of them need."""
    needed = {part for name in wanted for part in STEPS[name][1]}
    for name in STEPS:
        if all((steps.made / part).exists() for part in needed):
            return
        made = steps.run(name, steps.made)
        if made.code not in (0, 1):
            raise SystemExit(f"{name}: {made.code}: {made.said}")
        if name == "select":  # as if another site had made the same
            shutil.copytree(steps.made / "distilled", steps.made / "twin")


def import_all() -> None:
    """Imports what the steps import, so that the forked processes need not."""
    for module in ("torch", "diffusers", "transformers", "datasets", "accelerate", "sklearn", "scipy.stats"):
        import_module(module)
    for module, _, _ in STEPS.values():
        import_module(f"histodistill.training.{module}")
    for module in ("engine.diffusion_training", "tables.cell_workers", "reporting.report_page"):
        import_module(f"histodistill.training.{module}")


def parser_of(description: str | None) -> argparse.ArgumentParser:
    """What the command lines of these scripts have in common."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", nargs="+", default=list(STEPS), choices=list(STEPS))
    parser.add_argument("--seed", type=int, default=0)
    return parser


def try_steps(
    args: argparse.Namespace, attempt: Callable[[Steps, str, random.Random], tuple[str, list[str]]], well: str
) -> NoReturn:
    """Makes what steps need, tries each that is asked for, prints a line for it, and ends with 1 where one went wrong.

    Args:
        args: Of `parser_of`.
        attempt: Tries a step of this name, and returns what was done and what is not as it should be.
        well: What is said where nothing is.
    """
    failed = False
    with tempfile.TemporaryDirectory() as place:
        os.environ["HISTODISTILL_CACHE"] = str(Path(place, "cache"))
        import_all()
        steps = Steps(Path(place), make_tiles(Path(place, "tiles.npz")))
        make_inputs(steps, args.steps)
        for name in args.steps:
            done, wrong = attempt(steps, name, random.Random(f"{args.seed} {name}"))
            print(f"{name}: {done}, {'; '.join(wrong) or well}", flush=True)
            failed |= bool(wrong)
    raise SystemExit(int(failed))


def main() -> None:
    """Runs what the command line asks for."""
    parser = parser_of(__doc__)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--signal", default="KILL", choices=("KILL", "INT", "TERM"))
    args = parser.parse_args()

    def attempt(steps: Steps, name: str, draw: random.Random) -> tuple[str, list[str]]:
        ended, wrong = disturb(steps, name, args.kills, signal.Signals[f"SIG{args.signal}"], draw)
        return f"ended {ended} times by SIG{args.signal}", wrong

    try_steps(args, attempt, "as undisturbed")


if __name__ == "__main__":
    main()
