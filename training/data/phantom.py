"""`phantom`: a seeded, procedural set of tissue-like tiles for trying and testing the whole way through.

The tiles are drawings. They imitate the look of haematoxylin and eosin (H&E) staining well enough to exercise every
stage, and they are **not histology**: nothing measured on them says anything about tissue.

Each tile is made in two steps. Geometry gives two concentration maps, one for each stain; then the Beer-Lambert law
turns concentration into colour, `I = I0 * exp(-(c_H * v_H + c_E * v_E))`, with the stain vectors of Ruifrok and
Johnston, "Quantification of histochemical staining by color deconvolution" (Anal. Quant. Cytol. Histol. 23, 2001).
About half of the tiles hold some of a second tissue; the label is the tissue that fills most.

Tiles are of patients, each with stains, nuclei and glands of its own (`phantom_patients`), and these are of sites. The
test split imitates another centre: its mean stain differs. Within a patient, stains, focus and sensor noise vary a
little from tile to tile. `phantom-east`, `phantom-west` and `phantom-south` are of one site each, with other patients
and other drawings, to try what is done with several sites.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from histodistill.selection.checks import check_integer
from histodistill.selection.stains import STAIN_VECTORS
from histodistill.selection.streams import stream
from histodistill.training.data.grouping import Grouping
from histodistill.training.data.phantom_patients import STAININGS, Patients, draw_patients, site_key
from histodistill.training.data.phantom_tissues import TISSUES, gradient, waves
from histodistill.training.data.tiles import SPLITS, Tiles, TileSource
from histodistill.training.running.errors import InputError, param
from histodistill.training.running.suggestions import did_you_mean


#: The tissues that can be drawn; the index is the label.
PHANTOM_CLASSES = tuple(TISSUES)
#: The sites that patients can be of.
PHANTOM_SITES = tuple(STAININGS)
#: Tiles of each class by split, where nothing else is asked for.
PHANTOM_SIZES = {"train": 300, "validation": 60, "test": 100}
#: Least side of a tile in pixels: on fewer, nuclei are no longer to be seen.
MIN_IMAGE_SIZE = 16
# Tiles of each class that a patient has, at most; but there are so many patients at least, where tiles suffice, since
# of fewer none could be held out.
_TILES_PER_PATIENT, _FEWEST_PATIENTS = 3, 4
# Tiles of fewer pixels along a side are drawn at twice the size and averaged, so that edges are smooth.
_SMOOTH_FROM = 128
# Between tiles of one patient: the standard deviation of what is added to a stain vector, of the logarithm of the
# amount of a stain, of the light in grey levels, and of the loss of focus.
_VECTOR, _AMOUNT, _LIGHT, _BLUR = 0.01, 0.04, 0.7, 0.05


def phantom_source(
    *,
    image_size: int = 28,
    seed: int = 0,
    sizes: dict[str, int] | None = None,
    grouping: Grouping | None = None,
    site: str | None = None,
) -> TileSource:
    """Makes the phantom's splits in memory; nothing is read from disk or cached.

    Args:
        image_size: Side of a tile in pixels, at least 16. The same seed shows the same fields of view at any size.
        seed: At least 0.
        sizes: Tiles per class for each split; by default 300 / 60 / 100, which are of 100 / 20 / 34 patients.
        grouping: What was said of the groups, which can be no more than what they are called.
        site: Of which all patients are, one of `PHANTOM_SITES`; None for the usual ones of each split.

    Raises:
        InputError: `image_size`, `seed` or a size out of range, or groups elsewhere than in the drawings.
    """
    grouping = (grouping or Grouping()).usual("patient")
    if grouping.was_asked_for:
        option = param("group_column" if grouping.column is not None else "group_pattern")
        raise InputError(f"phantom has patients of its own, and neither columns nor files: leave {option} out")
    sizes = PHANTOM_SIZES if sizes is None else sizes
    splits = {name: phantom_tiles(name, n, image_size=image_size, seed=seed, site=site) for name, n in sizes.items()}
    return TileSource(
        name="phantom",
        class_names=list(PHANTOM_CLASSES),
        splits=splits,
        image_size=image_size,
        license="Apache-2.0",
        attribution="Procedural drawings made by histodistill; not histology.",
        group_kind=grouping.kind,
    )


def phantom_tiles(
    split: str,
    n_per_class: int,
    *,
    image_size: int = 28,
    seed: int = 0,
    patients: Patients | None = None,
    site: str | None = None,
) -> Tiles:
    """Draws `n_per_class` tiles of each class, in class order: images uint8 N×H×W×3 RGB and labels int64 N.

    Each has its patient as its group, and the patient's site as the attribute `site`. Within a class, tiles of a
    patient follow each other. Deterministic for all arguments, up to the last bit of the machine's arithmetic.

    Args:
        split: One of `SPLITS`. It decides, together with the seed, what is drawn.
        n_per_class: At least 1.
        image_size: Side of a tile in pixels, at least 16.
        seed: At least 0.
        patients: Whose tiles are drawn, as many of each patient as of another, or one more. By default they are the
            split's own, of up to three tiles of a class each. New tiles of patients that are there already are drawn
            with another seed, and with the patients of theirs: `draw_patients("train", 100, seed)`.
        site: Of which all patients are, one of `PHANTOM_SITES`; None for the usual ones of the split.

    Raises:
        InputError: An unknown split, or a number out of range.
    """
    if split not in SPLITS:
        meant = did_you_mean(split, SPLITS)
        raise InputError(f"split={split!r} is unknown{meant}: it must be one of {', '.join(SPLITS)}")
    check_integer(param("n_per_class"), n_per_class, 1, error=InputError)
    check_integer(param("image_size"), image_size, MIN_IMAGE_SIZE, error=InputError)
    check_integer(param("seed"), seed, 0, error=InputError)
    if patients is None:
        count = max(-(-n_per_class // _TILES_PER_PATIENT), min(n_per_class, _FEWEST_PATIENTS))
        patients = draw_patients(split, count, seed, site)
    labels = np.repeat(np.arange(len(PHANTOM_CLASSES)), n_per_class)
    rows = np.tile(np.arange(n_per_class) * len(patients) // n_per_class, len(PHANTOM_CLASSES))
    return draw_tiles(labels, patients[rows], image_size=image_size, key=(seed, SPLITS.index(split), *site_key(site)))


def draw_tiles(labels: np.ndarray, patients: Patients, *, image_size: int, key: Sequence[int]) -> Tiles:
    """Draws one tile of each of N classes and patients, which are its group, and their sites the attribute `site`.

    Args:
        labels: N whole numbers, places in `PHANTOM_CLASSES`.
        patients: N, one for each tile; the same one may be there many times.
        image_size: Side of a tile in pixels, at least 16.
        key: Whole numbers ≥ 0 that decide, together with the labels, which fields of view are drawn: those of two keys
            have nothing in common.
    """
    images = np.empty((len(labels), image_size, image_size, 3), dtype=np.uint8)
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        images[rows] = _class_tiles(stream("drawings of the phantom", *key, label), label, patients[rows], image_size)
    return Tiles(images, labels, groups=patients.names, attributes={"site": patients.sites})


def _class_tiles(rng: np.random.Generator, label: int, patients: Patients, size: int) -> np.ndarray:
    """Draws a tile of one class for each of N patients, uint8 N×S×S×3."""
    n = len(patients)
    factor = 2 if size < _SMOOTH_FROM else 1
    grid = size * factor
    stains = TISSUES[PHANTOM_CLASSES[label]](rng, patients, grid)

    # A second tissue in about half of the tiles, never the larger part.
    share = np.where(rng.random(n) < 0.5, rng.uniform(0.1, 0.49, n), 0.0)
    other = (label + rng.integers(1, len(PHANTOM_CLASSES), n)) % len(PHANTOM_CLASSES)
    relief = gradient(rng, n, grid) + 0.35 * waves(rng, n, grid, 4, 0.5, 1.5)
    for neighbour, draw in enumerate(TISSUES.values()):
        chosen = np.flatnonzero((other == neighbour) & (share > 0))
        if len(chosen):
            foreign = draw(rng, patients[chosen], grid)
            for i, tile in enumerate(chosen):
                edge = np.quantile(relief[tile], share[tile])
                mask = np.clip((edge - relief[tile]) / 0.12 + 0.5, 0, 1)
                stains[:, tile] += mask * (foreign[:, i] - stains[:, tile])

    stains = stains.reshape(2, n, size, factor, size, factor).mean(axis=(3, 5))
    stains *= 1 + 0.10 * np.stack([waves(rng, n, size, 3, 0.3, 1.0) for _ in range(2)])
    blur = np.clip(patients.blur + rng.normal(0, _BLUR, n), 0, 1)
    return _render(rng, _defocus(stains, blur), patients)


def _render(rng: np.random.Generator, stains: np.ndarray, patients: Patients) -> np.ndarray:
    """Beer-Lambert: concentrations 2×N×S×S to uint8 N×S×S×3."""
    n, size = stains.shape[1], stains.shape[2]
    density = np.zeros((n, size, size, 3), dtype=np.float32)
    for number, plane in enumerate(stains):
        vectors = STAIN_VECTORS[number] + patients.vectors[:, number] + rng.normal(0, _VECTOR, (n, 3))
        vectors = np.clip(vectors, 0.01, None)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        amounts = patients.amounts[:, number] * np.exp(rng.normal(0, _AMOUNT, n))
        density += (plane * amounts[:, None, None])[..., None] * vectors[:, None, None, :].astype(np.float32)
    light = patients.light + rng.normal(0, _LIGHT, (n, 3))
    image = light[:, None, None, :] * np.exp(-density) + rng.normal(0, 3.0, density.shape)
    return np.clip(np.rint(image), 0, 255).astype(np.uint8)


def _defocus(stains: np.ndarray, blur: np.ndarray) -> np.ndarray:
    """Tiles 2×N×S×S out of focus by N degrees from 0 to 1: a mixture of the sharp map and its 3×3 binomial blur."""
    padded = np.pad(stains, ((0, 0), (0, 0), (1, 1), (1, 1)), mode="edge")
    rows = padded[:, :, :-2] + 2 * padded[:, :, 1:-1] + padded[:, :, 2:]
    blurred = (rows[..., :-2] + 2 * rows[..., 1:-1] + rows[..., 2:]) / 16
    return np.maximum(stains + blur[:, None, None].astype(np.float32) * (blurred - stains), 0)
