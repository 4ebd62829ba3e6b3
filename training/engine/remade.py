"""Images of a set that are made again from its seeds: how they were made, and how near the new ones come."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from histodistill.hub_cards.documents import check_document
from histodistill.hub_cards.errors import ContentError
from histodistill.hub_cards.set_record import SET_RECORD, Generation, SetRecord
from histodistill.hub_cards.tables import ImageTable
from histodistill.selection.image_rows import Images
from histodistill.training.data.image_dataset import read_image_table
from histodistill.training.running.errors import InputError
from histodistill.training.running.files import read_json
from histodistill.training.running.stages import read_record


# Images that are compared at a time.
_BATCH = 256


@dataclass(frozen=True, repr=False)
class SeededSet:
    """A distilled set whose images can be made again.

    Attributes:
        table: The set, with the column `seed`.
        generation: With what.
    """

    table: ImageTable
    generation: Generation


def read_seeded_set(folder: Path) -> SeededSet:
    """A set that says with what its images are made again from their seeds.

    Args:
        folder: Of the set: as `select` left it, or as it was published.

    Raises:
        InputError: For what is no such set, or does not say so.
    """
    table = read_image_table(folder)
    if "site" in table.columns:
        raise InputError(
            f"{folder} is merged of several sites, each with a pipeline of its own: give the set of one site"
        )
    if "seed" not in table.columns:
        raise InputError(f"{folder} has no seeds: give a set with the column seed")
    try:
        generation = _generation(folder)
    except ContentError as error:
        raise InputError(f"{folder} does not say rightly how its images were made ({error}): get it anew") from error
    if generation is None:
        raise InputError(
            f"{folder} does not say how its images were made, as sets of earlier versions do not: choose or publish "
            "it anew with this version"
        )
    return SeededSet(table, generation)


def _generation(folder: Path) -> Generation | None:
    """How the images of a set were made, by what `publish` or `select` left beside it; None where it does not say."""
    if (folder / SET_RECORD).exists():  # a link in the cache of the Hub
        return check_document(read_json(folder / SET_RECORD), SetRecord).generation
    made = (read_record(folder) or {}).get("generation")
    return None if made is None else check_document(made, Generation)


def compare_images(made: Images, given: Images) -> dict[str, Any]:
    """How near images come to others, one by one.

    Args:
        made: uint8 N×S×S×3.
        given: Of the same shape.

    Returns:
        `num_images`; `different`, the numbers of those that are not equal to the pixel, from 0; and of these
        `max_difference` and `mean_difference` in grey levels, over all pixels and channels, and `psnr`, the least in
        dB; the last three are None where all are equal.
    """
    different, largest, sums, squares = [], 0, 0.0, []
    for first in range(0, len(given), _BATCH):
        rows = slice(first, first + _BATCH)
        apart = np.abs(made[rows].astype(np.int16) - given[rows]).reshape(len(given[rows]), -1)
        mine = np.flatnonzero(apart.any(axis=1))
        different += (first + mine).tolist()
        largest = max(largest, int(apart.max()))
        sums += float(apart[mine].mean(axis=1).sum())
        squares += np.square(apart[mine], dtype=np.float64).mean(axis=1).tolist()
    found = {"num_images": len(given), "different": different}
    if not different:
        return {**found, "max_difference": None, "mean_difference": None, "psnr": None}
    return {
        **found,
        "max_difference": largest,
        "mean_difference": sums / len(different),
        "psnr": float(10 * np.log10(255**2 / max(squares))),
    }


def likeness_lines(found: dict[str, Any]) -> list[str]:
    """What `compare_images` found, in words."""
    different, total = found["different"], found["num_images"]
    lines = [f"{total - len(different)} of {total} images are equal to the pixel"]
    if different:
        lines.append(
            f"the others are up to {found['max_difference']} grey levels apart, {found['mean_difference']:.2g} in the "
            f"mean, PSNR at least {found['psnr']:.1f} dB; they are, counted from 0: {', '.join(map(str, different))}"
        )
    return lines
