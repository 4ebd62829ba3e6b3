"""Measures the memory of each step of a distillation as the tiles become more.

    python -m histodistill.training.benchmarks.stage_memory --output runs/memory --tiles 25000 50000 100000

Tiles are drawn (a field of the phantom of twice their side is cut into four of them, which are of one patient) and
saved as a `.npz` file; eight tenths are train, one each validation and test. Then `distill` is followed step by step:
the decoding of the tiles, three trainings of a few steps, a small pool, the selection with its search for copies, a
comparison, and the audit. What is told of each is the most private memory that its process held, as Linux counts it
(RssAnon): pages of the cache of tiles, which the system gives back where it needs them, are no part of it; and the
processor's time, with how much more of it twice as many tiles take.

What the models learn does not matter here: they are tiny. Leaves `memory.json` and `memory.md` in the output folder.
What is finished is kept, so a killed measurement goes on where it was.
"""

from __future__ import annotations

import json
from math import log2
from pathlib import Path
from typing import TYPE_CHECKING, Any

from histodistill.training.running.options import StepConfig, StepParser, config, option, run_script


if TYPE_CHECKING:
    from collections.abc import Iterator


# Models that train in seconds, and steps that are enough to have had every kind of memory.
_PRESET = """
[autoencoder]
channels = [8, 16, 16]
latent_channels = 4
max_train_steps = {steps}
batch_size = 32
validation_steps = {steps}

[diffusion]
channels = [16]
layers_per_block = 1
attention_levels = 1
max_train_steps = {steps}
batch_size = 32
validation_steps = {steps}

[teacher]
architecture = "convnet"
width = 16
max_train_steps = {steps}
validation_steps = {steps}
batch_size = 32

[generate]
per_class = {per_class}
num_inference_steps = 1
guidance_scale = 1.0

[select]
n_per_class = 50
min_probability = 0.0
copy_embedders = {embedders}

[audit]
embedders = {embedders}

[compare]
train = ["convnet:2:real_all"]
"""
# Fields that are drawn at once.
_FIELDS = 500


@config
class StageMemoryConfig(StepConfig):
    """Options of `stage_memory`."""

    output: Path = option("folder for tiles, runs and the result", setting=False)
    tiles: tuple[int, ...] = option("numbers of tiles", default=(25_000, 50_000, 100_000), at_least=1000)
    image_size: int = option("side in pixels", default=64, at_least=16)
    per_class: int = option("images of each class in the pool", default=200, at_least=50)
    steps: int = option("steps of each training", default=30, at_least=1)
    untrained: bool = option(
        "also look for copies in features of an untrained network, as distill does: that takes some 7 ms of a core "
        "for a tile of 64 px, and memory that does not grow with their number",
        default=False,
    )


def make_parser() -> StepParser[StageMemoryConfig]:
    """The parser of the command line."""
    return StepParser(
        StageMemoryConfig, prog="python -m histodistill.training.benchmarks.stage_memory", description=__doc__
    )


def run(config: StageMemoryConfig) -> dict[str, Any]:
    """Measures what is not measured yet, and prints the table.

    Returns:
        Number of tiles → step → what `measure` gives.

    Raises:
        InputError: If a step refuses something.
        SystemExit: With the exit code of a step that failed, which has said why.
    """
    from histodistill.training.running.files import read_kept, write_json, write_text

    results: dict[str, Any] = read_kept(config.output / "memory.json") or {}
    tiles = config.output / "tiles.npy"
    for count in sorted(config.tiles, reverse=True):  # of the most, others are the first
        found = results.setdefault(str(count), {})
        data = config.output / f"phantom_{count}.npz"
        if not data.is_file():
            save_tiles(data, count, max(config.tiles), config.image_size, tiles)
        folder = config.output / f"run_{count}"
        embedders = json.dumps([*(["untrained"] if config.untrained else []), str(folder / "autoencoder")])
        preset = config.output / f"tiny_{count}.toml"
        write_text(preset, _PRESET.format(steps=config.steps, per_class=config.per_class, embedders=embedders))
        for name, module, argv in step_calls(folder, data, preset, config.output / "cache"):
            if name not in found:
                found[name] = measure(module, argv)
                write_json(config.output / "memory.json", results)
                told = f"{found[name]['bytes'] / 1e6:,.0f} MB, {found[name]['processor']:,.1f} s of the processor"
                print(f"{count:,} tiles, {name}: {told}", flush=True)
    table = table_lines({int(count): found for count, found in results.items()})
    write_text(config.output / "memory.md", "\n".join(table) + "\n")
    print("\n".join(table))
    return results


def save_tiles(path: Path, count: int, most: int, image_size: int, drawn: Path) -> None:
    """Saves the first `count` of `most` drawn tiles, in a random order of patients, with their patients.

    Args:
        path: The `.npz` file.
        count: Tiles, at most `most`.
        most: Tiles that are drawn where they are not there yet.
        image_size: Their side in pixels.
        drawn: The file that keeps them.
    """
    import numpy as np

    names = drawn.with_suffix(".names.npz")
    if not names.is_file():
        _draw(drawn, names, most, image_size)
    images = np.load(drawn, mmap_mode="r", allow_pickle=False)
    with np.load(names, allow_pickle=False) as kept:
        labels, patients = kept["labels"][:count], kept["patients"][:count]
    ends = {"train": count * 8 // 10, "val": count * 9 // 10, "test": count}
    arrays: dict[str, Any] = {}
    start = 0
    for split, end in ends.items():
        # Four tiles of a field follow each other, and thousands of a split of one patient: few lie across an end.
        arrays |= {
            f"{split}_images": images[start:end],
            f"{split}_labels": labels[start:end],
            f"{split}_groups": np.array([f"{split} {name}" for name in patients[start:end]]),
        }
        start = end
    temporary = path.with_suffix(".tmp.npz")
    np.savez(temporary, **arrays)
    temporary.replace(path)


def _draw(drawn: Path, names: Path, count: int, image_size: int) -> None:
    """Draws fields, and cuts each into four tiles."""
    import numpy as np

    from histodistill.selection.streams import stream
    from histodistill.training.data.phantom import PHANTOM_CLASSES, phantom_tiles
    from histodistill.training.running.progress import Progress

    drawn.parent.mkdir(parents=True, exist_ok=True)
    images = np.lib.format.open_memmap(drawn, "w+", np.uint8, (count, image_size, image_size, 3))
    labels, patients = np.empty(count, np.int64), np.empty(count, "<U16")
    done, seed = 0, 0
    with Progress(count, "drawing", "tiles") as progress:
        while done < count:
            per_class = -(-_FIELDS // len(PHANTOM_CLASSES))
            fields = phantom_tiles("train", per_class, image_size=2 * image_size, seed=seed)
            order = stream("order of drawings", seed).permutation(len(fields))
            cut = fields.images[order].reshape(len(order), 2, image_size, 2, image_size, 3)
            cut = cut.transpose(0, 1, 3, 2, 4, 5).reshape(-1, image_size, image_size, 3)[: count - done]
            part = slice(done, done + len(cut))
            images[part] = cut
            labels[part] = np.repeat(fields.labels[order], 4)[: len(cut)]
            assert fields.groups is not None
            patients[part] = [f"{seed} {name}" for name in np.repeat(fields.groups[order], 4)[: len(cut)]]
            done, seed = done + len(cut), seed + 1
            progress.update(len(cut))
    images.flush()
    np.savez(names, labels=labels, patients=patients)


def step_calls(run: Path, data: Path, preset: Path, cache: Path) -> Iterator[tuple[str, str, list[str]]]:
    """Name, module and command line of each step; the first decodes the tiles, and is asked for before anything else.

    Args:
        run: Folder of the run.
        data: The tiles.
        preset: The preset's file.
        cache: The cache of tiles.
    """
    from histodistill.training.end_to_end.distill import DistillConfig, open_run, stages
    from histodistill.training.end_to_end.inspect_tiles import InspectTilesConfig
    from histodistill.training.running.options import to_argv

    inspect = InspectTilesConfig(data=data, pixels=True, cache_dir=cache)
    yield "decoding and inspect", "histodistill.training.end_to_end.inspect_tiles", to_argv(inspect)
    distill = DistillConfig(data=data, output=run, preset=preset, cache_dir=cache, mixed_precision="no")
    record = open_run(distill)
    for stage in stages(distill, record):
        yield stage.title, stage.module, stage.argv


def measure(module: str, argv: list[str]) -> dict[str, float]:
    """Runs a module in a process of its own.

    Returns:
        `bytes`, the most private memory that it held at a time, looked at every 5 ms, `seconds`, and `processor`, the
        seconds that processors worked for it and for processes that it started.

    Raises:
        SystemExit: With its exit code, unless that is 0 or the answer no.
    """
    import os
    import resource
    import subprocess
    import sys
    import time

    from histodistill.training.running.memory import private_memory
    from histodistill.training.running.notes import STEP_OF_DISTILL
    from histodistill.training.running.program import ANSWER_IS_NO

    def processor() -> float:
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        return usage.ru_utime + usage.ru_stime

    started, worked, most = time.monotonic(), processor(), 0
    command = [sys.executable, "-m", module, *argv]
    process = subprocess.Popen(command, env={**os.environ, **STEP_OF_DISTILL}, stdout=subprocess.DEVNULL)
    while process.poll() is None:
        most = max(most, private_memory(process.pid))
        time.sleep(0.005)
    if process.returncode not in (0, ANSWER_IS_NO):
        raise SystemExit(process.returncode)
    seconds = {"seconds": time.monotonic() - started, "processor": processor() - worked}
    return {"bytes": most, **{name: round(each, 1) for name, each in seconds.items()}}


def table_lines(results: dict[int, dict[str, Any]]) -> list[str]:
    """Two tables in Markdown: MB of each step for each number of tiles, and bytes that each further tile takes; and
    seconds of the processor, and how many times as many twice the tiles take.
    """
    counts = sorted(results)
    memory = [["step", *(f"{count:,} tiles" for count in counts), "for each further tile"]]
    time = [[*memory[0][:-1], "for twice the tiles"]]
    for name in results[counts[0]]:
        found = [results[count].get(name) for count in counts]
        memory.append([name, *(f"{each['bytes'] / 1e6:,.0f} MB" if each else "" for each in found)])
        time.append([name, *(f"{each['processor']:,.1f} s" if each else "" for each in found)])
        ends = [(count, each) for count, each in zip(counts, found, strict=True) if each]
        (few, first), (many, last) = ends[0], ends[-1]
        memory[-1].append(f"{(last['bytes'] - first['bytes']) / max(1, many - few):,.0f} B")
        ratio = last["processor"] / first["processor"]
        time[-1].append(f"× {ratio ** (1 / log2(many / few)):.2f}" if many > few else "")
    ruler = "|---|" + "---:|" * (len(counts) + 1)
    lines = [[f"| {' | '.join(row)} |" for row in table] for table in (memory, time)]
    return [lines[0][0], ruler, *lines[0][1:], "", lines[1][0], ruler, *lines[1][1:]]


if __name__ == "__main__":
    run_script(make_parser, run)
