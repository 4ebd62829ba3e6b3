"""Patients of the phantom: each with a look of its own, which all tiles of the patient share.

What tells patients apart in real tiles is drawn at random here: how their sections took up the stains, how large
nuclei are, the shape of glands, how coarse the tissue is, and the light and focus of the scan. So the truth about a
leak of patients is known: tiles can be drawn anew of patients whose other tiles a model has seen, and of patients that
nobody has seen.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np

from histodistill.selection.streams import stream
from histodistill.training.data.tiles import SPLITS


#: The sites that patients are of, by split: train and validation are of two of them, test is of a third. There are
#: further patients of each site alone, in all splits.
SITES = {"train": ("east", "west"), "validation": ("east", "west"), "test": ("south",)}
#: How a site stains: what it adds to the stain vectors (`STAIN_VECTORS`) of haematoxylin and of eosin, and what it
#: multiplies the amounts of the two by.
STAININGS = {
    "east": ((0.00, 0.00, 0.00), (0.08, -0.02, 0.12), (1.05, 0.97)),
    "west": ((0.00, 0.00, 0.00), (0.04, 0.02, 0.08), (0.95, 1.03)),
    "south": ((-0.07, 0.05, 0.07), (0.12, -0.05, 0.22), (1.12, 0.86)),
}
# Between patients: the standard deviation of what is added to a stain vector, and of the logarithms of the amounts of
# the stains, of the size of nuclei and of the coarseness of the tissue. All stay within two deviations, or else nuclei
# would no longer look like nuclei.
_VECTOR, _AMOUNT, _NUCLEI, _COARSENESS = 0.065, 0.22, 0.20, 0.20
_MOST_DEVIATIONS = 2.0
# Least and largest share that the shorter axis of a crypt has of the longer one, and its lumen's radius of its own.
_ROUNDNESS, _LUMEN = (0.50, 1.0), (0.12, 0.55)
# Grey levels of the light where nothing is on the slide: the mean, and the standard deviations of its brightness and,
# beside that, of each channel. And the most that focus is lost.
_LIGHT, _BRIGHTNESS, _TINT, _BLUR = 241, 3.5, 3.0, 0.8


def site_key(site: str | None) -> tuple[int, ...]:
    """What goes into the seeds of all that is drawn for one site alone; nothing for None."""
    return () if site is None else (list(STAININGS).index(site),)


@dataclass(frozen=True, eq=False)
class Patients:
    """P patients, in arrays that have a row for each.

    Attributes:
        names: Text P, such as `train-007`.
        sites: Text P, the site that stained the sections: see `SITES`.
        vectors: float64 P×2×3, what is added to the optical densities (red, green, blue) of haematoxylin and eosin.
        amounts: float64 P×2, what the amounts of the two are multiplied by.
        nuclei: float64 P, what the axes of nuclei are multiplied by.
        roundness: float64 P, the shorter axis of a crypt over its longer one, 0.5 to 1.
        lumen: float64 P, the radius of the lumen over that of the crypt, 0.12 to 0.55.
        coarseness: float64 P, what fibres, swirls and fat cells are enlarged by.
        light: float64 P×3, grey levels (red, green, blue) of the scanner's light where nothing is on the slide.
        blur: float64 P, how far the slide was out of focus: 0 for not at all, to 0.8.
    """

    names: np.ndarray
    sites: np.ndarray
    vectors: np.ndarray
    amounts: np.ndarray
    nuclei: np.ndarray
    roundness: np.ndarray
    lumen: np.ndarray
    coarseness: np.ndarray
    light: np.ndarray
    blur: np.ndarray

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, rows: np.ndarray) -> Patients:
        return Patients(**{field.name: getattr(self, field.name)[rows] for field in fields(self)})

    def __repr__(self) -> str:
        shown = ", ".join(map(str, self.names[:3]))
        return f"Patients({shown}{', …' if len(self) > 3 else ''}: {len(self)})"


def draw_patients(split: str, count: int, seed: int = 0, site: str | None = None) -> Patients:
    """Draws the patients of a split. The first ones of a seed are the same, however many are drawn.

    Args:
        split: One of `SPLITS`, which decides of their names and sites: no patient is in two splits.
        count: At least 1.
        seed: At least 0.
        site: Of which they all are, a key of `STAININGS`; they are others than those of several sites. None for the
            split's own sites.
    """
    rng = stream("looks of the phantom's patients", seed, SPLITS.index(split), *site_key(site))
    # A row of numbers for each patient, so that further ones follow.
    normal, uniform = np.empty((count, 14)), np.empty((count, 4))
    for row in range(count):
        normal[row], uniform[row] = rng.standard_normal(normal.shape[1]), rng.random(uniform.shape[1])
    normal = np.clip(normal, -_MOST_DEVIATIONS, _MOST_DEVIATIONS)
    factors = np.exp(normal[:, 6:10])
    choice, prefix = (SITES[split], "") if site is None else ((site,), f"{site}-")
    sites = np.array(choice)[(uniform[:, 0] * len(choice)).astype(int)]
    stainings = [STAININGS[name] for name in sites]
    return Patients(
        names=np.array([f"{prefix}{split}-{number:03d}" for number in range(count)]),
        sites=sites,
        vectors=np.array([staining[:2] for staining in stainings]) + _VECTOR * normal[:, :6].reshape(count, 2, 3),
        amounts=np.array([staining[2] for staining in stainings]) * factors[:, :2] ** _AMOUNT,
        nuclei=factors[:, 2] ** _NUCLEI,
        roundness=_ROUNDNESS[0] + uniform[:, 1] * (_ROUNDNESS[1] - _ROUNDNESS[0]),
        lumen=_LUMEN[0] + uniform[:, 2] * (_LUMEN[1] - _LUMEN[0]),
        coarseness=factors[:, 3] ** _COARSENESS,
        light=_LIGHT + _BRIGHTNESS * normal[:, 10, None] + _TINT * normal[:, 11:],
        blur=_BLUR * uniform[:, 3],
    )


def join_patients(first: Patients, second: Patients) -> Patients:
    """The patients of both, one after the other."""
    names = (field.name for field in fields(Patients))
    return Patients(**{name: np.concatenate([getattr(first, name), getattr(second, name)]) for name in names})
