"""The real tiles as the privacy audit takes them."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np

from histodistill.selection.image_audit import FEWEST_VALIDATION_TILES
from histodistill.selection.near_copies import NearCopies
from histodistill.selection.real_tiles import LabelledImages, RealTiles
from histodistill.training.data.tile_copies import in_one_store
from histodistill.training.data.tile_store import StoredTiles
from histodistill.training.data.tiles import HELD_OUT, Tiles, TileSource
from histodistill.training.running.errors import InputError, param
from histodistill.training.running.files import read_json
from histodistill.training.running.formats import RUN_FORMAT, check_format


def real_tiles(source: TileSource) -> RealTiles:
    """The tiles of a source, by what models saw of them.

    Args:
        source: With a split "validation", and "held_out" where tiles were held out for the audit.

    Returns:
        The tiles of these splits and of train.

    Raises:
        InputError: If there are too few validation tiles, or none.
    """
    held_out = source.splits.get(HELD_OUT)
    validation = source.split("validation")
    if len(validation) < FEWEST_VALIDATION_TILES:
        raise InputError(
            f"{source.name} has {len(validation)} validation tiles: to tell copies takes at least "
            f"{FEWEST_VALIDATION_TILES}"
        )
    parts = [source.split("train"), *([] if held_out is None else [held_out]), validation]
    found, look_up = in_one_store(parts), None
    if found is not None and isinstance(found[0], StoredTiles):
        # Of all tiles that were decoded, which may have other candidates than those of the parts by themselves.
        look_up = partial(_repeats_at, found[0], np.concatenate(found[1]))
    return RealTiles(
        labelled(parts[0]), None if held_out is None else labelled(held_out), labelled(validation), look_up
    )


def _repeats_at(store: StoredTiles, rows: np.ndarray) -> NearCopies:
    return store.repeats.at(rows)


def audit_share_of(run: Path) -> float:
    """The share of the training tiles that a run keeps from its models; 0 for one that was not made by `distill`.

    Raises:
        InputError: If the run's record is of a later format, or does not say it as it should.
    """
    file = run / "run.json"
    if not file.is_file():
        return 0.0
    record = read_json(file)
    check_format(record, file, RUN_FORMAT)
    settings = record.get("settings")
    share = settings.get("audit_share", 0.0) if isinstance(settings, dict) else None
    if isinstance(share, bool) or not isinstance(share, int | float) or not 0 <= share < 1:
        raise InputError(f"{file} does not say which share of the tiles was held out: give {param('audit_share')}")
    return share


def labelled(tiles: Tiles) -> LabelledImages:
    """The same images, labels, groups and attributes for `selection`."""
    return LabelledImages(tiles.images, tiles.labels, tiles.groups, tiles.attributes)
