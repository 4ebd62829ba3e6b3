"""The options that say how to choose from a pool, which `select` and the rows of the results table share."""

from __future__ import annotations

from pathlib import Path

from histodistill.selection import QUOTA_RULES, RANKINGS, SELECTOR_NAMES, WEIGHTINGS
from histodistill.training.running.errors import InputError, param
from histodistill.training.running.options import StepConfig, config, option


#: Title of the group of options that leave out images before anything is chosen.
FILTERS = "what may be selected at all"
# Title of the group of options that `DistillSelector` has beyond those of every selector.
_INFOMAP = "communities, and the selector infomap"


@config
class SelectorConfig(StepConfig):
    """How to choose. The selector checks the values of its own."""

    selector: str = option("how to select", default="kernel_herding", choices=SELECTOR_NAMES)
    n_per_class: int = option("images to keep of each class", default=100)
    seed: int = option("seed of the selector", default=0)
    min_probability: float = option(
        "drop images that the teacher takes for their own class with less; 0 drops none",
        default=0.0,
        at_least=0,
        at_most=1,
        group=FILTERS,
    )
    typical_share: float | None = option(
        "drop images that lie farther from the real tiles of their class than this share of these do from each "
        "other; needs --data; default: drop none",
        default=None,
        at_least=0,
        at_most=1,
        group=FILTERS,
    )
    n_neighbors: int = option("neighbours of each image in the graph", default=15, group=_INFOMAP)
    weighting: str = option("weights of the links", default="local_gaussian", choices=WEIGHTINGS, group=_INFOMAP)
    markov_time: float = option("larger finds fewer, larger communities", default=1.0, group=_INFOMAP)
    num_trials: int = option("searches, of which the best counts", default=5, group=_INFOMAP)
    quota: str = option("images per community", default="proportional", choices=QUOTA_RULES, group=_INFOMAP)
    ranking: str = option(
        "which images of a community", default="modular_centrality", choices=RANKINGS, group=_INFOMAP
    )


@config
class SelectConfig(SelectorConfig):
    """Options of `select`."""

    pool: Path = option("folder that generate left", setting=False)
    teacher: Path = option("folder of a classifier trained on the real tiles", setting=False)
    data: str | Path | None = option(
        "the real tiles, which --typical-share and --drop-copies go by", default=None, setting=False
    )
    embedder: str | Path = option(
        "untrained: a ConvNet with random weights; teacher: the teacher's features; a transformers vision model; "
        "or the folder of an autoencoder for its latents",
        default="untrained",
        setting=False,  # its fingerprint tells it
    )
    output: Path = option("folder for selector/ and distilled/", setting=False)
    drop_copies: bool = option(
        "drop images that are copies of a real tile, as histodistill audit finds them; needs --data",
        default=False,
        group=FILTERS,
    )
    copy_embedders: tuple[str, ...] = option(
        "embedding spaces, beside pixels, in which copies are looked for; the audit looks in untrained and "
        "RUN/autoencoder unless told otherwise, and distill drops what it finds in these",
        default=("untrained",),
        group=FILTERS,
        setting=False,  # their fingerprints tell them
    )

    @property
    def needs_real_tiles(self) -> bool:
        """Whether an option goes by real tiles."""
        return self.typical_share is not None or self.drop_copies

    def check(self) -> None:
        """Checks that there are real tiles where an option goes by them."""
        if self.needs_real_tiles and self.data is None:
            name = "drop_copies" if self.drop_copies else "typical_share"
            raise InputError(f"{param('data')} is missing: {param(name)} goes by the real tiles, so name them")
