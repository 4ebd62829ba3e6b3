"""How many images a model is shown at once."""

from __future__ import annotations


# Images that a model is shown at once where nothing else is asked for: so many of this side in pixels or less, and of
# larger ones about as many pixels, but some. What a network of full width holds in between grows with them.
_USUAL_BATCH, _USUAL_SIDE, _LEAST_BATCH = 256, 32, 8


def usual_batch_size(image_size: int) -> int:
    """How many images of this side in pixels are shown to a model at once: a power of two, 256 of up to 32 pixels."""
    fitting = _USUAL_BATCH * _USUAL_SIDE**2 // max(image_size, _USUAL_SIDE) ** 2
    return max(_LEAST_BATCH, 1 << (fitting.bit_length() - 1)) if fitting else _LEAST_BATCH
