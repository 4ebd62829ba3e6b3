"""What a denoiser gives, cheap to read: nothing here imports torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


#: The velocity, or the data without noise, as diffusers calls them.
VELOCITY, DATA = PREDICTION_TYPES = ("flow_prediction", "sample")


@dataclass(frozen=True)
class DenoiserOutput:
    """What a denoiser gives.

    Attributes:
        prediction_type: One of `PREDICTION_TYPES`.
        skip_noise: Of one that gives the data, above 0 where part of what it sees is added to its output: see
            `pipelines.add_what_was_seen`.
    """

    prediction_type: str = VELOCITY
    skip_noise: float = 0.0

    @classmethod
    def of(cls, pipeline: Any) -> DenoiserOutput:
        """That of a `HistologyPipeline`'s denoiser; a sampler that knows of flows alone takes the velocity."""
        return cls(pipeline.scheduler.config.get("prediction_type", VELOCITY), pipeline.config.skip_noise)
