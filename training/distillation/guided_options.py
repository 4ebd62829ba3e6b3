"""Options of the rows of a results table whose images guide each other, or are guided, while they are sampled.

Nothing here imports torch.
"""

from __future__ import annotations

from typing import ClassVar

from histodistill.training.running.options import StepConfig, config, like, option


#: What such rows begin with; the method's name follows.
GUIDED = "guided:"


@config
class GuidedConfig(StepConfig):
    """What all guidance has: see `guided_sampling`.

    Attributes:
        method: Its name in a row.
    """

    method: ClassVar[str]

    strength: float = option(
        "how far a step moves what is predicted, in standard deviations of the latents, at a noise level of 1",
        default=0.3,
        at_least=0,
    )
    stop: float = option("share of the steps that are guided: the first ones", default=0.5, at_least=0, at_most=1)


@config
class ModesConfig(GuidedConfig):
    """How images are drawn to modes of the pool (`guided:modes`): see `guided_sampling.distance_to_modes`."""

    method = "modes"


@config
class RepulsionConfig(GuidedConfig):
    """How images of a class repel each other (`guided:repulsion`): see `guided_sampling.likeness`."""

    method = "repulsion"

    strength: float = like(GuidedConfig, "strength", default=0.15)


#: Name of a method → its options.
GUIDES: dict[str, type[GuidedConfig]] = {kind.method: kind for kind in (ModesConfig, RepulsionConfig)}
