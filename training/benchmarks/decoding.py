"""Measures how fast tiles are decoded into the cache, beside processes that do nothing but open files with Pillow.

    python -m histodistill.training.benchmarks.decoding --output runs/decoding --tiles 20000 --image-size 224

JPEG files are made (parts of drawings of the phantom, turned and mirrored), a folder of them for each class. Then, a
few times one after the other, each time with the system's cache of files as the time before left it:

    pillow         so many processes as there are cores open every file, convert it to RGB and make an array of it
    first start    the folder is listed and all tiles are decoded into an empty cache

and at last

    later start    `load_tiles` of the same folder, with its splits, once the cache has them

Leaves `decoding.json` in the output folder.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from histodistill.training.running.options import StepConfig, StepParser, config, option, run_script


if TYPE_CHECKING:
    from collections.abc import Sequence

# Fields that are drawn, of twice the side of a tile, of which tiles are parts.
_FIELDS_PER_CLASS = 40


@config
class DecodingConfig(StepConfig):
    """Options of `decoding`."""

    output: Path = option("folder for tiles, caches and the result", setting=False)
    tiles: int = option("number of tiles", default=20_000, at_least=100)
    image_size: int = option("side in pixels", default=224, at_least=16)
    quality: int = option("of the JPEG files, on Pillow's scale", default=90, at_least=1, at_most=95)
    rounds: int = option("times that each is measured", default=3, at_least=1, setting=False)
    seed: int = option("which parts of the drawings are tiles", default=0, at_least=0)


def make_parser() -> StepParser[DecodingConfig]:
    """The parser of the command line."""
    return StepParser(DecodingConfig, prog="python -m histodistill.training.benchmarks.decoding", description=__doc__)


def run(config: DecodingConfig) -> dict[str, Any]:
    """Makes the files where they are not there, measures, and prints a line for each.

    Returns:
        `pillow`, `first_start`, `later_start`: seconds of each round; `share`: tiles per second of the first start
        over those of Pillow, of the medians.
    """
    import shutil
    import statistics
    import time

    from histodistill.training.data.sources import load_tiles
    from histodistill.training.running.files import write_json
    from histodistill.training.running.threads import usable_cores

    folder, cache = config.output / "tiles", config.output / "cache"
    make_files(folder, config)
    files = sorted(folder.rglob("*.jpg"))
    cores = usable_cores()
    found: dict[str, list[float]] = {"pillow": [], "first_start": [], "later_start": []}
    for _ in range(config.rounds):
        found["pillow"].append(time_pillow(files, cores))
        shutil.rmtree(cache, ignore_errors=True)
        found["first_start"].append(time_first_start(folder, cache))
    load_tiles(folder, cache_dir=cache)  # finds near copies, once
    for _ in range(config.rounds):
        started = time.perf_counter()
        load_tiles(folder, cache_dir=cache)
        found["later_start"].append(time.perf_counter() - started)
    medians = {name: statistics.median(times) for name, times in found.items()}
    for name, seconds in medians.items():
        rate = f", {len(files) / seconds:,.0f} tiles/s" if name != "later_start" else ""
        print(f"{name.replace('_', ' '):<12} {seconds:7.2f} s{rate}")
    share = medians["pillow"] / medians["first_start"]
    print(f"first start: {100 * share:.0f}% of the speed of {cores} processes of Pillow alone")
    result = {"tiles": len(files), "processes": cores, **found, "share": share}
    write_json(config.output / "decoding.json", {"settings": config.settings(), **result})
    return result


def make_files(folder: Path, config: DecodingConfig) -> None:
    """Writes the JPEG files, where they are not all there."""
    from PIL import Image

    from histodistill.selection.names import SYMMETRIES
    from histodistill.selection.streams import stream
    from histodistill.selection.views import apply_symmetry
    from histodistill.training.data.phantom import PHANTOM_CLASSES, phantom_tiles
    from histodistill.training.running.progress import Progress

    if len(list(folder.rglob("*.jpg"))) == config.tiles:
        return
    size, rng = config.image_size, stream("parts of drawings", config.seed)
    fields = phantom_tiles("train", _FIELDS_PER_CLASS, image_size=2 * size, seed=config.seed)
    with Progress(config.tiles, "writing", "files") as progress:
        for number in range(config.tiles):
            row = number % len(fields)
            down, right = rng.integers(0, size + 1, 2)
            tile = fields.images[row, down : down + size, right : right + size]
            tile = apply_symmetry(tile[None], int(rng.integers(SYMMETRIES)))[0]
            place = folder / "train" / PHANTOM_CLASSES[fields.labels[row]]
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray(tile).save(place / f"{number:06d}.jpg", quality=config.quality)
            progress.update()


def time_pillow(files: Sequence[Path], processes: int) -> float:
    """Seconds in which so many processes open all files; they are started before the clock is."""
    import time
    from concurrent.futures import ProcessPoolExecutor
    from multiprocessing import get_context

    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        shares = [files[first::processes] for first in range(processes)]
        list(pool.map(open_files, [share[:1] for share in shares] * 2))
        started = time.perf_counter()
        list(pool.map(open_files, shares))
        return time.perf_counter() - started


def open_files(files: Sequence[Path]) -> int:
    """Opens files as anybody would; returns how many values they have, so that none is left undone."""
    import numpy as np
    from PIL import Image

    count = 0
    for file in files:
        with Image.open(file) as image:
            count += np.asarray(image.convert("RGB")).size
    return count


def time_first_start(folder: Path, cache: Path) -> float:
    """Seconds in which a folder is listed and its tiles are decoded into the cache."""
    import time

    from histodistill.training.data.grouping import Grouping
    from histodistill.training.data.image_folder import open_image_folder
    from histodistill.training.data.storing import open_tiles
    from histodistill.training.data.tile_cache import TileCache
    from histodistill.training.data.tile_store import TileStore

    started = time.perf_counter()
    opened = open_image_folder(folder, Grouping())
    assert not isinstance(opened.pixels, TileStore)
    open_tiles(opened.pixels, opened.name, None, TileCache(cache))
    return time.perf_counter() - started


if __name__ == "__main__":
    run_script(make_parser, run)
