"""The options that say how to choose from a pool, which `select` and the rows of the results table share."""

from __future__ import annotations

from histodistill.selection import QUOTA_RULES, RANKINGS, SELECTOR_NAMES, WEIGHTINGS
from histodistill.training.running.options import StepConfig, config, option


#: Title of the group of options that leave out images before anything is chosen.
FILTERS = "what may be selected at all"
# Title of the group of options that `DistillSelector` has beyond those of every selector.
_INFOMAP = "communities, and the selector infomap"


@config
class SelectorConfig(StepConfig):
    """How to choose. The selector checks the values of its own."""

    selector: str = option("how to select", default="kernel_herding", choices=SELECTOR_NAMES)
    n_per_class: int = option("images to keep of each class", default=100, at_least=1)
    seed: int = option("seed of the selector", default=0, at_least=0, below=2**31)
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
    n_neighbors: int = option("neighbours of each image in the graph", default=15, at_least=1, group=_INFOMAP)
    weighting: str = option("weights of the links", default="local_gaussian", choices=WEIGHTINGS, group=_INFOMAP)
    markov_time: float = option("larger finds fewer, larger communities", default=1.0, above=0, group=_INFOMAP)
    num_trials: int = option("searches, of which the best counts", default=5, at_least=1, group=_INFOMAP)
    quota: str = option("images per community", default="proportional", choices=QUOTA_RULES, group=_INFOMAP)
    ranking: str = option(
        "which images of a community", default="modular_centrality", choices=RANKINGS, group=_INFOMAP
    )
