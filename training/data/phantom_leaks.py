"""Planted leaks: images that give away patients of the phantom, and none of their tiles.

An audit that only looks for tiles passes them. How much is given away is known, so that they tell what an audit by
patient sees; honest images tell how often it is wrong.
"""

from __future__ import annotations

import numpy as np

from histodistill.selection.checks import check_share
from histodistill.selection.names import SYMMETRIES
from histodistill.selection.streams import stream
from histodistill.selection.views import apply_symmetry
from histodistill.training.data.phantom import PHANTOM_CLASSES, draw_tiles
from histodistill.training.data.phantom_patients import Patients, draw_patients, join_patients
from histodistill.training.data.tiles import Tiles
from histodistill.training.running.errors import InputError


# What keeps the drawings of leaks apart from each other, and from the splits of the phantom, whose keys are shorter.
_LOOKS, _PLACES = 0, 1
# Neighbouring fields of view have this share of a side in common, and so about half of their area.
_OVERLAP = 0.7
# Grey levels by which the noise of a near copy differs: less than its limit by far.
_NOISE = 2.0


def copied_looks(known: Patients, share: float, n_per_class: int, *, image_size: int = 28, seed: int = 0) -> Tiles:
    """Images of new places: a share of them in known patients, the others in patients that nobody has seen.

    Args:
        known: The patients that a model was trained on.
        share: Of the images of each class that have the look of one of them, drawn at random: 0 for an honest set, to
            1. The other images are of as many patients, the validation patients of `seed`.
        n_per_class: Images of each class, at least 1.
        image_size: Side in pixels, at least 16.
        seed: Of the drawings and of patients that nobody has seen. A leak is planted, not honest, where these are
            known, too: known patients are those of another seed.

    Returns:
        The images in class order, with the patient of each as its group.
    """
    check_share("share", share)
    rng = stream("patients whose looks are copied", seed)
    fresh = draw_patients("validation", len(known), seed)
    copied = round(share * n_per_class)
    rows = rng.integers(len(known), size=(len(PHANTOM_CLASSES), n_per_class))
    rows[:, copied:] += len(known)
    labels = np.repeat(np.arange(len(PHANTOM_CLASSES)), n_per_class)
    patients = join_patients(known, fresh)[rows.ravel()]
    return draw_tiles(labels, patients, image_size=image_size, key=(seed, _LOOKS, 0))


def neighbouring_tiles(
    patients: Patients, n_per_patient: int, *, image_size: int = 28, seed: int = 0
) -> tuple[Tiles, Tiles]:
    """Pairs of tiles cut from one drawing of twice their area, side by side: what lies in both is about half of each.

    Args:
        patients: P, whose tiles are cut.
        n_per_patient: Tiles of each class and patient, at least 1.
        image_size: Side in pixels, at least 16.
        seed: Of the drawings.

    Returns:
        Two sets of the same patients and classes in the same order, of which tile i of the one overlaps tile i of the
        other.
    """
    labels = np.repeat(np.arange(len(PHANTOM_CLASSES)), n_per_patient * len(patients))
    rows = np.tile(np.repeat(np.arange(len(patients)), n_per_patient), len(PHANTOM_CLASSES))
    moved = image_size - round(_OVERLAP * image_size)
    drawn = draw_tiles(labels, patients[rows], image_size=image_size + moved, key=(seed, _PLACES, 0))
    windows = (drawn.images[:, :image_size, :image_size], drawn.images[:, moved:, moved:])
    first, second = (Tiles(np.ascontiguousarray(w), labels, None, drawn.groups, drawn.attributes) for w in windows)
    return first, second


def duplicate_tiles(tiles: Tiles, share: float, seed: int = 0) -> Tiles:
    """Tiles of which a share stands there a second time: turned or mirrored, with a little noise of its own.

    As many data sets are: a tile was augmented, or cut twice, before anybody looked.

    Args:
        tiles: With groups or without.
        share: Of the tiles that are returned, which stand for those that give way to them: 0 to 0.5.
        seed: Of what is drawn.

    Returns:
        As many tiles as there were; duplicates have label, group and attributes of the tile that they repeat.

    Raises:
        InputError: If there are not as many tiles to repeat.
    """
    count = round(share * len(tiles))
    if not 0 <= count <= len(tiles) // 2:
        raise InputError(f"share={share} is out of range: it must be 0 to 0.5, for a tile is repeated once at most")
    rng = stream("tiles that stand there twice", seed)
    order = rng.permutation(len(tiles))
    repeated, dropped = order[:count], order[len(tiles) - count :]
    kept = np.arange(len(tiles))
    kept[dropped] = repeated
    found = tiles.subset(kept)
    images = np.array(found.images)
    for row, symmetry in zip(dropped, rng.integers(SYMMETRIES, size=count), strict=True):
        turned = apply_symmetry(images[row][None], symmetry)[0]
        images[row] = np.clip(np.rint(turned + rng.normal(0, _NOISE, turned.shape)), 0, 255)
    return Tiles(images, found.labels, found.soft_labels, found.groups, found.attributes)
