"""Compares ways of learning from several sites that may not share their tiles, with sites simulated from one source.

    python -m histodistill.training.benchmarks.sites_study --data my_tiles.npz --output runs/sites --preset cpu

The training tiles are split over sites with unequal class shares; or there are sites already, each with a source of
its own, as with `--data phantom-east --more-sites phantom-west phantom-south`. Each site distils its own tiles: every
stage from the autoencoder to the selection, and no audit. The options are the preset's, but for those that
--autoencoder-steps, --diffusion-steps, --teacher-steps, --per-class and --n-per-class give. Then classifiers are
trained, a row each, on

    merged        the distilled sets of all sites
    distilled-N   the distilled set of site N alone
    site-N        the real tiles of site N alone
    pooled        the real tiles of all sites together
    sampled       random ones of them, as many of each class as merged has, or as the rarest class has if it has fewer
    federated     the real tiles of all sites by federated averaging

all with the same recipe and the same number of steps, scored on the same validation and test tiles; `sites` is the
mean of site-N. Validation and test tiles are those of the source, or of all sources together, for every site. What is
finished is kept, so a killed benchmark goes on where it was. Leaves `sites.json` and `sites.md` in the output folder.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING, Any

from histodistill.training.end_to_end.distill import DistillConfig
from histodistill.training.engine.classifier_config import ClassifierConfig
from histodistill.training.evaluation.plans import CellsConfig, Planned, parse_plan
from histodistill.training.models.architectures import ARCHITECTURES, is_from_elsewhere
from histodistill.training.running.claims import claiming
from histodistill.training.running.errors import InputError, param
from histodistill.training.running.options import StepParser, config, like, option, require, run_script
from histodistill.training.running.presets import PRESET_NAMES, load_preset, preset_name


if TYPE_CHECKING:
    from histodistill.training.data.tiles import TileSource

# What each site trains, and whose number of steps can be given: the step's name, and its model's.
TRAINED = {"autoencoder": "autoencoder", "diffusion": "denoiser", "teacher": "teacher"}
# The options that decide the result, beside the tiles; further seeds may be added to a study.
_RECORDED = (
    "sites",
    "concentration",
    "min_per_class",
    "preset",
    *(f"{stage}_steps" for stage in TRAINED),
    "per_class",
    "n_per_class",
    "rounds",
    "split_seed",
    "train",
    "batch_size",
    "mixed_precision",
)


def _steps_option(stage: str) -> Any:
    return option(f"steps of the {TRAINED[stage]} of each site; default: preset", default=None, at_least=1)


@config
class SitesStudyConfig(CellsConfig):
    """Options of `sites_study`."""

    data: str | Path = option("the real tiles: any source with a validation and a test split")
    output: Path = option("folder for the sites and the result", claimed=True)
    more_sites: tuple[str, ...] = option(
        "sources of further sites: --data is then that of the first, and no tiles are split", default=()
    )
    image_size: int | None = option("side in pixels; default: the size tiles have", default=None)
    sites: int = option("number of sites", default=4, at_least=2)
    concentration: float = option("of the Dirichlet distribution of the shares", default=0.3, above=0)
    min_per_class: int = option("tiles that a site has of each class, at least", default=20, at_least=1)
    preset: str = option(f"{', '.join(PRESET_NAMES)} or a .toml file: of the distillation at each site", default="cpu")
    autoencoder_steps: int | None = _steps_option("autoencoder")
    diffusion_steps: int | None = _steps_option("diffusion")
    teacher_steps: int | None = _steps_option("teacher")
    per_class: int | None = option("pool images of each class; default: preset", default=None, at_least=1)
    n_per_class: int = option("distilled images of each class and site", default=100, at_least=1)
    rounds: int = option("of federated averaging", default=10, at_least=1)
    split_seed: int = option("seed of the split over sites, and of distillation", default=0)
    train: str = option("classifier to train", default="convnet:600", metavar="ARCHITECTURE:STEPS")
    batch_size: int = like(CellsConfig, "batch_size", default=32)
    seeds: tuple[int, ...] = like(CellsConfig, "seeds", default=(0, 1, 2, 3, 4))

    def check(self) -> None:
        """Checks preset, seeds and steps."""
        from histodistill.selection.communities import LARGEST_RANDOM_STATE

        super().check()
        load_preset(self.preset)
        rule = f"0 to {LARGEST_RANDOM_STATE}, the largest that a selector takes"
        require(0 <= self.split_seed <= LARGEST_RANDOM_STATE, "split_seed", self.split_seed, f"it must be {rule}")
        require(max(self.seeds, default=0) <= LARGEST_RANDOM_STATE, "seeds", self.seeds, f"each must be {rule}")
        if is_from_elsewhere(self.train.partition(":")[0]):
            known = ", ".join(ARCHITECTURES)
            raise InputError(f"{param('train')}={self.train}: the architecture must be one of {known}")
        if self.train.count(":") > 1:
            raise InputError(f"{param('train')}={self.train}: write ARCHITECTURE:STEPS, as in convnet:600")
        if self.steps % self.rounds:
            raise InputError(
                f"{param('rounds')}={self.rounds} does not divide the {self.steps} steps of {param('train')}: "
                "give numbers that do"
            )

    @functools.cached_property
    def plan(self) -> Planned:
        """Architecture and steps."""
        return parse_plan([self.train], ())[0]

    @property
    def steps(self) -> int:
        """Optimizer steps, which our own networks have."""
        return self.plan.steps or 1

    @property
    def recipe(self) -> ClassifierConfig:
        """How all classifiers are trained, but for the seed."""
        return ClassifierConfig(
            architecture=self.plan.architecture,
            max_train_steps=self.steps,
            batch_size=self.batch_size,
            validation_steps=self.steps,
        )

    @property
    def max_train_steps(self) -> dict[str, int]:
        """Steps of each model that are given, by the name of the step that trains it."""
        given = {stage: getattr(self, f"{stage}_steps") for stage in TRAINED}
        return {stage: steps for stage, steps in given.items() if steps is not None}

    def recorded(self) -> dict[str, Any]:
        """The options that decide the result."""
        values = {name: getattr(self, name) for name in _RECORDED}
        more = {"more_sites": len(self.more_sites)} if self.more_sites else {}
        return {**values, **more, "preset": preset_name(self.preset), "train": [self.train]}

    def of_site(self, number: int) -> DistillConfig:
        """The options of the distillation at one site, counted from 1."""
        folder = self.output / f"site-{number}"
        return DistillConfig(
            data=folder / "tiles.npz",
            output=folder / "run",
            preset=self.preset,
            per_class=self.per_class,
            n_per_class=self.n_per_class,
            # No audit follows, so no tile is kept from the models for it.
            audit_share=0,
            seed=self.split_seed,
            mixed_precision=self.mixed_precision,
            num_processes=self.num_processes,
        )


def make_parser() -> StepParser[SitesStudyConfig]:
    """The parser of the command line."""
    return StepParser(
        SitesStudyConfig, prog="python -m histodistill.training.benchmarks.sites_study", description=__doc__
    )


@claiming
def run(config: SitesStudyConfig) -> dict[str, Any]:
    """Distils at every site, trains what is missing, and writes the table.

    Returns:
        What sites.json holds: the name of the data, the classes, tiles of each class at each site, and the rows as
        `sites_table.summarise_sites` returns them.

    Raises:
        InputError: For tiles that cannot be split so, or a folder of another study.
    """
    import numpy as np

    from histodistill.training.benchmarks.site_cells import distil_site, train_cells
    from histodistill.training.benchmarks.sites import join_sources, split_over_sites
    from histodistill.training.data.sources import load_tiles
    from histodistill.training.running.stages import Stage
    from histodistill.training.tables.results_summary import SPLITS

    source = load_tiles(config.data, image_size=config.image_size)
    for split in SPLITS:
        source.split(split)
    if config.more_sites:
        others = [load_tiles(more, image_size=source.image_size) for more in config.more_sites]
        source, parts = join_sources([source, *others])
    else:
        labels, sites = source.split("train").labels, config.sites
        parts = split_over_sites(labels, sites, config.concentration, config.split_seed, config.min_per_class)
    train = source.split("train")
    settings = {"stage": "sites", "data": source.fingerprint(), **config.recorded()}
    stage = Stage(config.output, settings, remedy=f"give another {param('output')}, or delete it")
    stage.begin()

    real = [train.subset(part) for part in parts]
    distilled = []
    for number, own in enumerate(real, 1):
        distilled.append(distil_site(config.of_site(number), source, own, config.max_train_steps))
        stage.save_progress()
    # As many real tiles as the merged sets hold, or as there are.
    as_many = min(len(real) * config.n_per_class, int(np.bincount(train.labels).min()))
    cells = train_cells(
        stage,
        config.recipe,
        config.seeds,
        source,
        real,
        distilled,
        as_many=as_many,
        num_rounds=config.rounds,
        mixed_precision=config.mixed_precision,
    )
    counts = [np.bincount(site.labels, minlength=len(source.class_names)).tolist() for site in real]
    results = write_table(config, source, counts, cells, as_many)
    stage.finish(num_cells=len(cells))
    return results


def write_table(
    config: SitesStudyConfig, source: TileSource, counts: list[list[int]], cells: list[dict[str, Any]], as_many: int
) -> dict[str, Any]:
    """Sums up the cells, writes sites.json and sites.md, and prints the latter.

    Args:
        config: Of the study.
        source: The real tiles.
        counts: Tiles of each class, for each site.
        cells: All cells.
        as_many: Tiles of each class that `sampled` has.

    Returns:
        What sites.json holds.
    """
    from histodistill.training.benchmarks.sites_table import score_table, site_table, summarise_sites, titles
    from histodistill.training.running.files import write_json, write_text

    table = summarise_sites(cells)
    results = {"data": source.name, "class_names": source.class_names, "tiles_per_site": counts, "rows": table}
    write_json(config.output / "sites.json", results)
    named = titles(len(counts), config.rounds, as_many, is_cut=as_many < len(counts) * config.n_per_class)
    text = site_table(counts, source.class_names) + "\n" + score_table(table, named)
    write_text(config.output / "sites.md", text)
    print(text)
    return results


if __name__ == "__main__":
    run_script(make_parser, run)
