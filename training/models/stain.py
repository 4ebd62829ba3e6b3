"""Stains of H&E tiles: taking colours apart by Beer–Lambert, changing the amounts of stain, and evening them out."""

from __future__ import annotations

import torch

from histodistill.selection.stains import DARKEST, STAIN_VECTORS
from histodistill.training.data.pixels import to_device


# The vectors of `selection.stains`, but scaled and inverted in float32. Its matrices, made in float64 and rounded,
# would differ in the last bit, and with them every classifier that was trained with changed stains.
_STAINS = torch.tensor(STAIN_VECTORS, dtype=torch.float32)
#: From amounts of stain (haematoxylin, eosin, DAB) to optical densities (red, green, blue), float32 3×3.
RGB_FROM_HED = _STAINS / _STAINS.norm(dim=1, keepdim=True)
#: From optical densities to amounts of stain, float32 3×3.
HED_FROM_RGB = torch.linalg.inv(RGB_FROM_HED)
# The least share of light that counts, in [0, 1]: black has no finite density.
_DARKEST = DARKEST / 255
# The least deviation of density that is brought to one: bare glass has no contrast, and its noise would be blown up.
_LEAST_DEVIATION = 0.02


def optical_density(images: torch.Tensor) -> torch.Tensor:
    """Absorbance −ln(I/I₀) of `images`, float N×3×H×W in [-1, 1]: 0 for white, 5.5 for black."""
    return -((images + 1) / 2).clamp(min=_DARKEST).log()


def change_stains(images: torch.Tensor, scales: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
    """Changes the amounts of stain in image i: densities × scales[i] + offsets[i] (N×3: H, E, DAB).

    `images` is float N×3×H×W in [-1, 1]. The colours are taken apart by Beer–Lambert with the stain vectors of
    Ruifrok & Johnston (2001); the change is that of Tellez et al. (IEEE TMI 2018).
    """
    to_hed, to_rgb, scales, offsets = (
        to_device(values.to(images.dtype), images.device) for values in (HED_FROM_RGB, RGB_FROM_HED, scales, offsets)
    )
    stains = torch.einsum("nchw,cs->nshw", optical_density(images), to_hed)
    stains = stains * scales[:, :, None, None] + offsets[:, :, None, None]
    colours = torch.einsum("nshw,sc->nchw", stains, to_rgb).neg().exp()
    return colours.clamp(max=1) * 2 - 1


def standardize_stain(images: torch.Tensor) -> torch.Tensor:
    """Optical densities of each image (float N×3×H×W in [-1, 1]), brought to mean 0 and deviation 1 in each channel.

    The colour transfer of Reinhard et al. (IEEE CG&A 2001) with fixed statistics as its target, on densities. It
    needs no reference image and no other tile, so a tile comes out the same whatever set it is in; how dark and how
    strongly stained a tile is as a whole is lost with it.
    """
    density = optical_density(images)
    deviation, mean = torch.std_mean(density, dim=(2, 3), keepdim=True, correction=0)
    return (density - mean) / deviation.clamp(min=_LEAST_DEVIATION)
