"""Measures which disguises of real tiles the audit sees through, and how many innocent tiles it takes for copies.

    python -m histodistill.training.benchmarks.disguises --data crc5_28.npz --number 100 --tiles 3000

Training tiles are disguised and searched for among the training tiles, with limits by the validation tiles, as
`histodistill audit` does it. Test tiles, which should be of other slides, are the innocent images; a second table
tells what would be found if more or fewer of these were taken for copies.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from histodistill.training.running.options import StepParser, config, option, run_script
from histodistill.training.running.source_options import SourceOptions


if TYPE_CHECKING:
    import numpy as np


# Shares of innocent tiles that are taken for copies; of each it is told what share of disguised ones is found then.
FALSE_ALARMS = (0.002, 0.005, 0.01, 0.02, 0.05)


@config
class DisguisesConfig(SourceOptions):
    """Options of `disguises`."""

    data: str | Path = option("the real tiles, with splits for training, validation and test")
    number: int = option("tiles that are disguised in each way", default=100, at_least=1)
    tiles: int = option("training tiles that are searched, drawn at random; 0 takes all", default=3000, at_least=0)
    innocent: int = option("test tiles that must not be found", default=500, at_least=1)
    embedders: tuple[str, ...] = option("spaces beside pixels, as for audit", default=("untrained",))
    seed: int = option("of all draws", default=0, at_least=0, below=2**31)
    output: Path | None = option("JSON file with all figures", default=None)


def make_parser() -> StepParser[DisguisesConfig]:
    """The parser of the command line."""
    return StepParser(
        DisguisesConfig, prog="python -m histodistill.training.benchmarks.disguises", description=__doc__
    )


def run(config: DisguisesConfig) -> list[dict[str, Any]]:
    """Measures everything, and prints a table.

    Returns:
        For each disguise: `disguise`, `found`, the share of images that are taken for copies, `by`, score → the share
        that it alone takes, and `found_at`, the shares that would be found if no more than each of `FALSE_ALARMS` of
        the innocent tiles were; the first is "none", of the innocent tiles. The JSON file holds them, too.

    Raises:
        InputError: Where there are too few tiles.
    """
    import numpy as np

    from histodistill.selection.copies import CopyIndex
    from histodistill.selection.disguises import DISGUISES
    from histodistill.selection.image_audit import find_limits
    from histodistill.selection.real_tiles import LabelledImages, RealTiles
    from histodistill.selection.streams import stream
    from histodistill.selection.views import has_content
    from histodistill.training.data.sources import load_tiles
    from histodistill.training.models.embedders import named_embeddings
    from histodistill.training.running.errors import InputError, param
    from histodistill.training.running.files import write_json

    source = load_tiles(config.data, **config.source_options())
    rng = stream("disguised tiles", config.seed)

    def drawn(split: str, count: int) -> np.ndarray:
        images = source.split(split).images
        return np.asarray(images[rng.permutation(np.flatnonzero(has_content(images)))[: count or None]])

    tiles, innocent = drawn("train", config.tiles), drawn("test", config.number + config.innocent)
    if len(tiles) < config.number or len(innocent) <= config.number:
        raise InputError(
            f"{param('number')}={config.number} is out of range: there are {len(tiles)} training and {len(innocent)} "
            "test tiles that show something, and further test tiles are the innocent ones"
        )
    validation = source.split("validation")
    known = [LabelledImages(x, np.zeros(len(x), np.int64)) for x in (tiles, validation.images)]
    real = RealTiles(known[0], None, known[1])
    index = CopyIndex(real.all_images, named_embeddings(config.embedders))
    limits = find_limits(real, index, config.seed)
    images = {"none: innocent tiles": innocent[config.number :]}
    images |= {
        name: disguise(tiles[: config.number], innocent[: config.number], rng) for name, disguise in DISGUISES.items()
    }
    rows: list[dict[str, Any]] = []
    combined: dict[str, np.ndarray] = {}
    for name, disguised in images.items():
        started = time.process_time()
        scores = index.search(disguised)
        by = {score: float((parts < limits.limit).mean()) for score, parts in limits.parts(scores).items()}
        seconds = (time.process_time() - started) / len(disguised)
        found, combined[name] = float(limits.is_copy(scores).mean()), limits.score(scores)
        rows.append({"disguise": name, "found": found, "by": by, "seconds": seconds})
        alone = ", ".join(f"{score} {100 * share:.0f}" for score, share in by.items())
        print(f"{name:<46}{100 * found:6.1f} %   ({alone})", flush=True)
    thresholds = thresholds_of(combined[rows[0]["disguise"]])
    for row in rows:
        row["found_at"] = [float((combined[row["disguise"]] < threshold).mean()) for threshold in thresholds]
    print("\nfound, if at most so many innocent tiles were: " + ", ".join(f"{rate:.1%}" for rate in FALSE_ALARMS))
    for row in rows[1:]:
        print(f"{row['disguise']:<46}" + "".join(f"{100 * share:7.1f} %" for share in row["found_at"]))
    if config.output is not None:
        write_json(config.output, rows)
    return rows


def thresholds_of(innocent: np.ndarray) -> np.ndarray:
    """The highest scores below which at most each of `FALSE_ALARMS` of the innocent tiles lie, of their scores N."""
    import numpy as np

    return np.sort(innocent)[(np.array(FALSE_ALARMS) * len(innocent)).astype(int)]


if __name__ == "__main__":
    run_script(make_parser, run)
