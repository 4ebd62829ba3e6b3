"""Options of the methods of the literature that a results table can have as rows; nothing here imports torch."""

from __future__ import annotations

from histodistill.training.running.options import StepConfig, config, option


#: What such rows begin with; the method's name follows.
PEER = "peer:"


@config
class MatchingConfig(StepConfig):
    """How distribution matching goes (`peer:dm`): see `peers.DistributionMatching`."""

    steps: int = option("steps, each with a network of new random weights", default=1000, at_least=1)
    real_batch_size: int = option("real tiles of each class in a step", default=64, at_least=1)
    learning_rate: float = option("of the pixels, which are in [-1, 1]", default=1.0, above=0)
    stain_strength: float = option(
        "largest change of stain, the same for all images of a class in a step", default=0.1, at_least=0, below=1
    )


#: Name of a method → its options.
PEERS = {"dm": MatchingConfig}
