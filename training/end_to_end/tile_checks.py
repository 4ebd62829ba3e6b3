"""What a distillation looks at before it begins: whether the tiles suit it, as far as is seen without their pixels."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from histodistill.training.data.grouping import Grouping
from histodistill.training.data.inspection import plan_splits
from histodistill.training.data.listing import ListedSplit, Listing
from histodistill.training.data.source_advice import look_at_listing, look_at_use
from histodistill.training.data.source_checks import SIZES, SPLITS
from histodistill.training.running.errors import InputError, param
from histodistill.training.running.findings import FAIL, Finding
from histodistill.training.running.presets import Changes, Preset


def list_source(data: str | Path, image_size: int | None, options: Mapping[str, Any]) -> Listing:
    """What a source holds: see `list_tiles`.

    Args:
        data: The source.
        image_size: As for `load_tiles`.
        options: All that is said of groups and files, see `SourceOptions.source_options`.
    """
    from histodistill.training.data.sources import list_tiles

    without = ("split_seed", "allow_shared_groups", "cache_dir", "max_unreadable")
    return list_tiles(
        data, image_size=image_size, **{name: value for name, value in options.items() if name not in without}
    )


def look_at_tiles(
    listing: Listing,
    grouping: Grouping,
    image_size: int | None,
    audit_share: float,
    preset: Preset,
    units: np.ndarray | None = None,
    *,
    changes: Changes | None = None,
) -> tuple[list[Finding], list[Finding], dict[str, ListedSplit] | None]:
    """All that can be said of tiles before a distillation.

    Args:
        listing: The tiles.
        grouping: What was said of their groups.
        image_size: Side in pixels to which they are brought; None where they stay as they are.
        audit_share: Share of the training tiles that is held out.
        preset: What the models are like.
        units: See `plan_splits`.
        changes: Options of its steps that hold in place of the preset's: step → option → value.

    Returns:
        What loading the tiles would say, what else there is to say, and the splits with which models are trained; None
        where there can be none.
    """
    loading = list(look_at_listing(listing, grouping, image_size))
    beyond: list[Finding] = []
    planned = None
    if not any(finding.status == FAIL and finding.name != SIZES for finding in loading):
        try:
            planned = plan_splits(listing, grouping.split_seed, audit_share, units)
        except InputError as error:
            beyond.append(Finding.of_error(SPLITS, error))
        else:
            beyond += look_at_use(listing, planned, audit_share)
    size = image_size or side_of(listing)
    if size is not None:
        try:
            check_image_size(preset, size, changes)
        except InputError as error:
            beyond.append(Finding.of_error(SIZES, error))
    return loading, beyond, planned


def side_of(listing: Listing) -> int | None:
    """The side in pixels of tiles that are all square and of one size, as far as was seen; None for others."""
    return next(iter(listing.sizes))[0] if len(listing.sizes) == 1 and len(set(*listing.sizes)) == 1 else None


def check_image_size(
    preset: Preset, image_size: int, changes: Changes | None = None, num_train: int | None = None
) -> None:
    """Checks that the models of a preset can halve tiles as often as they do.

    Args:
        preset: What the models are like.
        image_size: Side of the tiles in pixels.
        changes: See `look_at_tiles`. An autoencoder from elsewhere is not looked at here.
        num_train: Number of training tiles, which may decide options, too; None where it is not known yet.

    Raises:
        InputError: If they cannot: better now than after the autoencoder is trained.
    """

    def fitted(size: int) -> Preset:
        sized = preset.for_image_size(size) if num_train is None else preset.for_tiles(size, num_train)
        return sized.with_changes(changes or {})

    def suits(size: int) -> bool:
        return size % 2 ** fitted(size).model_halvings == 0

    if "autoencoder" in fitted(image_size).autoencoder or suits(image_size):
        return
    sizes = (image_size + sign * distance for distance in range(1, image_size) for sign in (-1, 1))
    suiting = next(filter(suits, sizes), 2 ** fitted(image_size).model_halvings)
    changed = f" with what {param('set')} says" if changes else ""
    raise InputError(
        f"tiles of {image_size} px do not suit this preset{changed}, whose models halve them "
        f"{fitted(image_size).model_halvings} times: give {param('image_size')} {suiting}"
    )
