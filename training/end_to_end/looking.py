"""Looks at a source for `inspect_tiles`: at what is listed of it, and at its pixels where that is asked for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from histodistill.selection.summaries import counted
from histodistill.training.data.grouping import Grouping
from histodistill.training.data.inspection import Inspection, count_split
from histodistill.training.data.left_out import SAID, tell_each
from histodistill.training.data.listing import ListedSplit, Listing
from histodistill.training.data.pixel_checks import CONTENT, COPIES, Duplicates, count_duplicates, look_at_pixels
from histodistill.training.data.source_checks import CLASSES, GROUPS, SIZES, SPLITS
from histodistill.training.data.sources import load_tiles
from histodistill.training.data.tile_store import store_of
from histodistill.training.data.tiles import TileSource
from histodistill.training.end_to_end.distill import (
    DistillConfig,
    default_preset,
    fit_preset,
    resolve_preset,
)
from histodistill.training.end_to_end.rough_cost import rough_cost
from histodistill.training.end_to_end.steps import stage_calls
from histodistill.training.end_to_end.tile_checks import list_source, look_at_tiles, side_of
from histodistill.training.running.errors import InputError
from histodistill.training.running.files import format_size
from histodistill.training.running.findings import FAIL, PASS, WARN, Finding
from histodistill.training.running.notes import hushed
from histodistill.training.running.progress import about
from histodistill.training.running.source_options import of_groups


if TYPE_CHECKING:
    from histodistill.training.end_to_end.inspect_tiles import InspectTilesConfig

# What findings are about, as their lines begin.
_PIXELS, _COSTS = "pixels", "costs"
# What all findings are about, in the order in which they are told.
_TOPICS = (CLASSES, SPLITS, GROUPS, SIZES, _PIXELS, COPIES, CONTENT, _COSTS)
# Stands for the folder of a run, which is not made.
_UNUSED = Path("unused")


@dataclass(frozen=True, eq=False)
class _Pixels:
    """What the pixels tell.

    Attributes:
        modes, duplicates: See `Inspection`.
        units: int64 N of the training tiles, see `find_units`; None where they could not be decoded.
        findings: What is wrong with them.
        splits: The tiles that are there, without those that are left out; None where they could not be decoded.
    """

    modes: dict[str, int] | None
    duplicates: Duplicates | None
    units: np.ndarray | None
    findings: list[Finding]
    splits: dict[str, ListedSplit] | None = None


def look(config: InspectTilesConfig) -> Inspection:
    """What is found in a source."""
    options = config.source_options()
    distillation = DistillConfig(
        data=config.data,
        output=_UNUSED,
        preset=default_preset(),
        image_size=config.image_size,
        audit_share=config.audit_share,
        **options,
    )
    preset = resolve_preset(distillation)
    listing = list_source(config.data, config.image_size, options)
    pixels = _look_at_pixels(config, options, listing) if config.pixels else _Pixels(None, None, None, [])
    if pixels.splits is not None:
        listing = replace(listing, splits=pixels.splits)
    loading, beyond, planned = look_at_tiles(
        listing, Grouping.of(**of_groups(options)), config.image_size, config.audit_share, preset, pixels.units
    )
    findings = [*loading, *beyond, *pixels.findings]
    counts = None
    if planned is not None:
        counts = {split: count_split(listing.class_names, tiles) for split, tiles in planned.items()}
        size = config.image_size or side_of(listing)
        if size is not None and not any(finding.status == FAIL for finding in findings):
            num_tiles = {split: count.tiles for split, count in counts.items()}
            findings.append(_costs(distillation, size, num_tiles, listing.class_names))
    return Inspection(
        listing.name,
        listing.class_names,
        listing.group_kind,
        {split: count_split(listing.class_names, tiles) for split, tiles in listing.splits.items()},
        counts,
        listing.sizes,
        pixels.modes,
        pixels.duplicates,
        tuple(finding.for_command_line() for finding in sorted(findings, key=lambda each: _TOPICS.index(each.name))),
    )


def _look_at_pixels(config: InspectTilesConfig, options: Mapping[str, Any], listing: Listing) -> _Pixels:
    """Decodes all tiles, in whatever splits they are."""
    from histodistill.selection.units import units_of_pairs
    from histodistill.training.data.tile_copies import pairs_of_copies

    modes = None
    try:
        modes = dict(sorted(listing.count_modes().items(), key=lambda item: (-item[1], item[0])))
        with hushed():
            source = load_tiles(
                config.data,
                image_size=config.image_size,
                hold_out_validation=False,
                **{**options, "allow_shared_groups": True},
            )
    except InputError as error:
        found, mend = "not all tiles can be decoded and used", "mend what is said without --json"
        refusal = error.for_command_line()
        if modes and list(modes) != ["RGB"]:
            shown = ", ".join(f"{mode} {count:,}" for mode, count in modes.items())
            found = f"{found}: their colour modes are {shown}"
        return _Pixels(modes, None, None, [Finding(_PIXELS, FAIL, found, mend, private=refusal)])
    train = source.splits["train"]
    pairs = pairs_of_copies([*source.splits.values()])
    duplicates = count_duplicates(source.splits, pairs)
    of_train = pairs[(pairs < len(train)).all(axis=1)]  # train comes first
    units = units_of_pairs(of_train, len(train), train.groups)
    findings = [*_look_at_left_out(source, sum(map(len, listing.splits.values())))]
    findings += look_at_pixels(source.splits, duplicates)
    there = {
        split: ListedSplit(tiles.labels, tiles.groups, tiles.attributes) for split, tiles in source.splits.items()
    }
    return _Pixels(modes, duplicates, units, findings, there)


def _look_at_left_out(source: TileSource, count: int) -> Iterator[Finding]:
    """How many of `count` tiles are not among those of a source that was loaded, and why."""
    found = store_of([tiles.images for tiles in source.splits.values()])
    by_reason = Counter(tile.why for tile in found[0].left_out.values()) if found is not None else Counter()
    for why, number in by_reason.items():
        told = f"{number:,} of {counted(count, 'tile')} {SAID[why]} and are left out"
        if why == "unreadable" and found is not None:
            tell_each([tile for tile in found[0].left_out.values() if tile.why == why])
            yield Finding(_PIXELS, WARN, told, "mend their files, or take them out")
        else:
            yield Finding(_PIXELS, PASS, told)


def _costs(config: DistillConfig, image_size: int, num_tiles: Mapping[str, int], class_names: list[str]) -> Finding:
    """What a distillation with the usual preset takes."""
    preset = fit_preset(resolve_preset(config), config, image_size, num_tiles["train"])
    run = {
        "image_size": image_size,
        "num_tiles": num_tiles,
        "class_names": class_names,
        "settings": preset.settings(),
    }
    cost = rough_cost(stage_calls(config.common, run), run)
    time = "" if config.preset == "gpu" else f"{about(cost.seconds)} on one core of a server, and "
    told = f"a run with the preset {config.preset} takes {time}{format_size(cost.disk)} on disk, half or twice as much"
    return Finding(_COSTS, PASS, told)
