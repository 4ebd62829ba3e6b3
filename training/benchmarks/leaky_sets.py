"""Measures how often the audit passes sets that give nothing away, and sets of which a part is disguised tiles.

    python -m histodistill.training.benchmarks.leaky_sets --data crc5_28.npz --sets 20

Each set is audited as `histodistill distill` does it: what the screen takes for copies is left out, and the rest is
judged beside the pool. Innocent images are test tiles, which should be of other slides; in a leaky set a share of them
is replaced by training tiles, each disguised in one of the ways of `selection.disguises`, drawn at random.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from histodistill.training.running.options import StepParser, config, option, run_script
from histodistill.training.running.source_options import SourceOptions


@config
class LeakySetsConfig(SourceOptions):
    """Options of `leaky_sets`."""

    data: str | Path = option("the real tiles, with splits for training, validation and test")
    sets: int = option("innocent sets, and as many leaky ones", default=20, at_least=1)
    tiles: int = option("training tiles of a set, of which a tenth is held out", default=1000, at_least=40)
    times: int = option("how often each tile is there, the further ones a little changed", default=1, at_least=1)
    validation: int = option("validation tiles, by which the limits of copying are set", default=1000, at_least=8)
    images: int = option("images of a set before copies are left out", default=200, at_least=10)
    share: float = option("share of a leaky set that is disguised training tiles", default=0.2, above=0, at_most=1)
    plant: int = option("as for audit", default=20, at_least=20)
    embedders: tuple[str, ...] = option("spaces beside pixels, as for audit", default=("untrained",))
    seed: int = option("of the first set; the next ones have the next seeds", default=0, at_least=0, below=2**30)
    output: Path | None = option("JSON file with all verdicts", default=None)


def make_parser() -> StepParser[LeakySetsConfig]:
    """The parser of the command line."""
    return StepParser(
        LeakySetsConfig, prog="python -m histodistill.training.benchmarks.leaky_sets", description=__doc__
    )


def run(config: LeakySetsConfig) -> list[dict[str, Any]]:
    """Audits all sets, and prints a line for each.

    Returns:
        For each set `seed`, `leaky`, `num_left_out`, images that were left out as copies, `num_missed`, disguised
        tiles that were not, `passed`, and `failed`, the names of the findings that do not hold. The JSON file holds
        them, too.

    Raises:
        InputError: Where there are too few tiles.
    """
    from histodistill.training.data.sources import load_tiles
    from histodistill.training.models.embedders import named_embeddings
    from histodistill.training.running.errors import InputError, param
    from histodistill.training.running.files import write_json

    source = load_tiles(config.data, **config.source_options())
    counts = {split: len(source.split(split).labels) for split in ("train", "test")}
    for split, name in (("train", "tiles"), ("test", "images")):
        if counts[split] < getattr(config, name):
            raise InputError(
                f"{param(name)}={getattr(config, name)} is out of range: there are {counts[split]} {split} tiles"
            )
    embeddings, found = named_embeddings(config.embedders), []
    for seed in range(config.seed, config.seed + config.sets):
        for leaky in (False, True):
            found.append(_verdict(source, config, embeddings, seed, leaky))
            if config.output is not None:
                write_json(config.output, found)
    for leaky, word in ((False, "innocent"), (True, "leaky")):
        passed = [verdict["passed"] for verdict in found if verdict["leaky"] == leaky]
        print(f"{sum(passed)} of {len(passed)} {word} sets pass")
    return found


def _verdict(source: Any, config: LeakySetsConfig, embeddings: Any, seed: int, leaky: bool) -> dict[str, Any]:
    """The verdict on one set."""
    import numpy as np

    from histodistill.selection.disguises import DISGUISES
    from histodistill.selection.image_audit import audit_images, find_copies
    from histodistill.selection.real_tiles import LabelledImages, RealTiles
    from histodistill.selection.streams import stream
    from histodistill.selection.views import compress_jpeg, has_content, shift

    rng = stream("sets that leak or not", seed)

    def drawn(split: str, count: int) -> tuple[np.ndarray, np.ndarray]:
        tiles = source.split(split)
        rows = np.sort(rng.permutation(len(tiles.labels))[:count])
        return np.asarray(tiles.images[rows]), np.asarray(tiles.labels)[rows]

    tiles, labels = drawn("train", config.tiles)
    images, classes = drawn("test", config.images)
    changed = [shift(compress_jpeg(tiles), number % 2, number // 2) for number in range(1, config.times)]
    every, every_label = np.concatenate([tiles, *changed]), np.tile(labels, config.times)
    # With all its copies, as the tiles of a run are held out.
    held, seen = (
        (part[:, None] + len(tiles) * np.arange(config.times)).reshape(-1)
        for part in np.split(rng.permutation(len(tiles)), [len(tiles) // 10])
    )
    rows = rng.permutation(len(images))[: round(config.share * len(images))] if leaky else np.empty(0, np.int64)
    if leaky:
        originals = rng.permutation(seen[has_content(every[seen])])[: len(rows)]
        names = list(DISGUISES)
        for row, original in zip(rows, originals, strict=True):
            disguise = DISGUISES[names[rng.integers(len(names))]]
            images[row] = disguise(every[[original]], images[[row]], rng)[0]
            classes[row] = every_label[original]
    pool = LabelledImages(images, classes)
    real = RealTiles(
        train=LabelledImages(every[seen], every_label[seen]),
        held_out=LabelledImages(every[held], every_label[held]),
        validation=LabelledImages(*drawn("validation", config.validation)),
    )
    is_copy, _ = find_copies(images, real, embeddings, seed)
    kept = pool[~is_copy]
    verdict = audit_images(
        kept.images,
        kept.labels,
        train=real.train,
        held_out=real.held_out,
        validation=real.validation,
        pool=pool,
        embeddings=embeddings,
        n_planted=config.plant,
        seed=seed,
    )
    failed = [finding.name for finding in verdict.findings if not finding.passed]
    print(
        f"{'leaky' if leaky else 'innocent'} set {seed}: {int(is_copy.sum())} of {len(pool)} left out, {len(rows)} "
        f"disguised tiles, of which {int((~is_copy[rows]).sum())} stay; "
        f"{'passed' if verdict.passed else 'not passed, by ' + ', '.join(failed)}",
        flush=True,
    )
    return {
        "seed": seed,
        "leaky": leaky,
        "num_left_out": int(is_copy.sum()),
        "num_missed": int((~is_copy[rows]).sum()),
        "passed": verdict.passed,
        "failed": failed,
    }


if __name__ == "__main__":
    run_script(make_parser, run)
