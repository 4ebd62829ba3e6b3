"""How often models are asked about tiles beside the steps of their trainings: what estimates reckon with, too.

Nothing here imports torch.
"""

from __future__ import annotations


#: Tiles that the scale of latents is measured on, at most: its error is then below a hundredth.
SCALE_TILES = 10_000
#: Images of each class in a picture of a denoiser's progress.
SHOWN_PER_CLASS = 8
#: Denoising steps of each of them.
SHOWN_STEPS = 20
#: Shares of noise at which the attack on weights asks the denoiser about a tile.
NOISE_LEVELS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)

# Tiles that tell what an autoencoder loses: so many of this side in pixels, of larger ones about as many pixels, but
# some, since a point of accuracy is one in a hundred.
_TELLING, _TELLING_SIDE, _LEAST_TELLING = 2048, 64, 512


def telling_number(image_size: int) -> int:
    """How many tiles of this side in pixels tell well enough what an autoencoder loses."""
    return max(_LEAST_TELLING, _TELLING * _TELLING_SIDE**2 // max(image_size, _TELLING_SIDE) ** 2)
