"""By how much better than chance two pictures agree, if faint details count as much as coarse and strong forms.

Pictures of tissue are smooth: most of what grey levels vary by is in few coarse forms, and many tiles share these.
What tells a copy is that the fine details agree, too, faint as they are. So both pictures are whitened: each frequency
is divided by what there is of it, as far as that is more than noise, as phase correlation does. Then a blurred or a
faint picture has the same details as a sharp one, and all that count are independent of each other.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np


# Variance of grey levels that counts as noise: frequencies with less power than it hardly count.
_NOISE = 1.0
# Frequencies between which power is interpolated, evenly spaced on a logarithmic scale, and the highest of them in
# cycles per px; the lowest is 1.5 half periods of the shorter side.
_KNOTS, _HIGHEST = 14, 0.6
# What is around a pixel: standard deviation in px of the Gaussian. That of grey levels there that is mostly noise; and
# the most that a pixel differs from what is around it, in standard deviations: an edge of something pasted has more.
_AROUND, _FAINTEST, _MOST = 3.0, 3.0, 2.0
# The least that a picture is taken to leave unexplained of another: interpolation and rounding leave as much.
_LEAST_UNEXPLAINED = 1e-4


def evened(pictures: np.ndarray) -> np.ndarray:
    """Pictures with the same brightness and contrast all over, so that nothing strong hides what is faint elsewhere.

    From each pixel goes the mean around it, and what is left is divided by its standard deviation around.

    Args:
        pictures: float32 N×s×s, grey levels.

    Returns:
        float32 N×s×s, grey levels with a mean of 127.5 and a standard deviation of 40 or less.
    """
    from scipy.ndimage import gaussian_filter  # here, as below, since whoever only reads tiles has no time for it

    widths = (0, _AROUND, _AROUND)
    detail = pictures - gaussian_filter(pictures, widths)
    variance = gaussian_filter(np.square(detail), widths)
    return 127.5 + 40 * np.clip(detail / np.sqrt(variance + _FAINTEST**2), -_MOST, _MOST)


def log_likelihood_ratio(explained: np.ndarray, number: np.ndarray) -> np.ndarray:
    """−½ n log(1 − r²): what a correlation r of n independent pairs of numbers is worth.

    Args:
        explained: The r², at most 1, of any shape.
        number: The n, of the same shape.

    Returns:
        The same shape, at least 0.
    """
    return -0.5 * number * np.log(np.clip(1 - explained, _LEAST_UNEXPLAINED, 1))


def whitened_score(first: np.ndarray, second: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """`log_likelihood_ratio` of whitened pictures.

    The n is the effective sample size of two random fields of their spectra, 1 / Σ p q over all frequencies with
    shares of power p and q (Clifford, Richardson and Hémon 1989), of all numbers the share that are counted.

    Args:
        first, second: float32 P×h×w, grey levels of P pairs of pictures; 2 px at least along either side.
        counts: bool P×h×w, which pixels are compared.

    Returns:
        float64 P, at least 0; 0 where no pixel is compared.
    """
    number = counts.sum(axis=(1, 2))
    height, width = counts.shape[1:]
    spectra, powers, shares = zip(*(_spectrum(each, counts, number) for each in (first, second)), strict=True)
    # What either picture has lost to noise counts in neither.
    weights = shares[0] * shares[1]
    one, other = (
        spectrum * weights / np.sqrt(power + _NOISE) for spectrum, power in zip(spectra, powers, strict=True)
    )
    energies = [np.square(each).sum(axis=1) for each in (one, other)]
    explained = np.square((one * other).sum(axis=1)) / np.maximum(energies[0] * energies[1], 1e-12)
    of_one, of_other = (_smoothed(np.square(each), height, width) for each in (one, other))
    alike = (of_one * of_other).sum(axis=1) / np.maximum(of_one.sum(axis=1) * of_other.sum(axis=1), 1e-12)
    independent = np.minimum(1 / np.maximum(alike, 1e-12), height * width) * number / (height * width)
    return log_likelihood_ratio(explained, independent)


def _spectrum(
    pictures: np.ndarray, counts: np.ndarray, number: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The cosine transform of pictures, its power, smoothed, and which share of that is no noise: float64 P×(h·w)."""
    from scipy.fft import dctn

    height, width = pictures.shape[1:]
    mean = (pictures * counts).sum(axis=(1, 2)) / np.maximum(number, 1)
    pictures = (pictures - mean[:, None, None]) * counts
    # The cosine transform takes pictures to go on mirrored at their edges, so that these are no details.
    spectrum = dctn(pictures.astype(np.float64), axes=(1, 2), norm="ortho").reshape(len(pictures), -1)
    spectrum[:, 0] = 0
    power = _smoothed(np.square(spectrum), height, width)
    return spectrum, power, power / (power + _NOISE)


def _smoothed(power: np.ndarray, height: int, width: int) -> np.ndarray:
    """Power of P pictures, P×(h·w), averaged over all directions and neighbouring frequencies."""
    hats, mean = _hats(height, width)
    return (power @ mean) @ hats.T


@lru_cache(maxsize=128)  # 0.9 MB each of 64×64 pixels
def _hats(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """(h·w)×K: how much each frequency has of each knot, and the same over the sums of knots, without frequency 0."""
    frequency = np.hypot(np.arange(height)[:, None] / (2 * height), np.arange(width) / (2 * width)).reshape(-1)
    knots = np.log(np.geomspace(1.5 / (2 * min(height, width)), _HIGHEST, _KNOTS))
    place = np.interp(np.log(np.maximum(frequency, np.exp(knots[0]))), knots, np.arange(_KNOTS))
    before = np.minimum(place.astype(int), _KNOTS - 2)
    rows = np.arange(len(place))
    hats = np.zeros((len(place), _KNOTS))
    hats[rows, before], hats[rows, before + 1] = 1 - (place - before), place - before
    hats[0] = 0
    return hats, hats / np.maximum(hats.sum(axis=0), 1e-9)
