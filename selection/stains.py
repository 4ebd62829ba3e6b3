"""Stains of H&E tiles: optical density, and changing the amounts of stain.

Light that passes a stained section is weakened by each stain as the Beer–Lambert law says, so densities of stains add
up, unlike grey levels. Arrays in, arrays out; images are uint8 N×S×S×3 throughout.
"""

from __future__ import annotations

import numpy as np


#: Optical densities per unit of stain (red, green, blue) of haematoxylin, eosin and DAB, one row each, as measured by
#: Ruifrok & Johnston ("Quantification of histochemical staining by color deconvolution", Analytical and Quantitative
#: Cytology and Histology 23, 2001, table 1). Rows are of length one only to two digits: whoever uses them scales them.
STAIN_VECTORS = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11], [0.27, 0.57, 0.78]])
#: The lowest grey level (of 255) whose density is taken as it is when stains are changed: 0 has no finite density.
DARKEST = 1
# The same where densities of two images are compared: below two grey levels, one of them is a large step in density.
_DARKEST_COMPARED = 2.0

# From amounts of stain to densities of red, green and blue, 3×3.
_RGB_FROM_HED = STAIN_VECTORS / np.linalg.norm(STAIN_VECTORS, axis=1, keepdims=True)
# And back.
_HED_FROM_RGB = np.linalg.inv(_RGB_FROM_HED)


def optical_density(images: np.ndarray) -> np.ndarray:
    """How much light an image takes away: −ln of the share that passes.

    Args:
        images: Grey levels in [0, 255], of any type and shape.

    Returns:
        float32 of the same shape, from 0 for white to 4.85 for black, in which two grey levels and less are one.
    """
    return -np.log(np.maximum(images.astype(np.float32), _DARKEST_COMPARED) / 255)


def change_stains(images: np.ndarray, scales: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """Changes the amounts of stain: those of image i become amounts × scales[i] + offsets[i].

    The colours are taken apart by Beer–Lambert with the stain vectors of Ruifrok & Johnston (2001); the change is
    that of Tellez et al. (IEEE TMI 2018). `histodistill.training.models.stain` does the same with tensors.

    Args:
        images: uint8 N×S×S×3.
        scales: Real numbers N×3, for haematoxylin, eosin and DAB; 1 changes nothing.
        offsets: Real numbers N×3, in units of optical density; 0 changes nothing.

    Returns:
        uint8 N×S×S×3.
    """
    # Not `optical_density`: a change must keep the darkest levels apart, and is computed in float64.
    stains = -np.log(np.maximum(images, DARKEST) / 255) @ _HED_FROM_RGB
    stains = stains * scales[:, None, None, :] + offsets[:, None, None, :]
    return (np.exp(-(stains @ _RGB_FROM_HED)).clip(0, 1) * 255).round().astype(np.uint8)
