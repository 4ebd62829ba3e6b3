"""What tiles are good for, seen without decoding any: what loading them would refuse, and advice beside it."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace

import numpy as np

from histodistill.selection.audit_verdict import FEWEST_GROUPS
from histodistill.selection.group_audit import SINGLE_TEST_LEVEL
from histodistill.selection.image_audit import FEWEST_VALIDATION_TILES
from histodistill.selection.near_copies import in_order
from histodistill.selection.permutation import detectable_auc
from histodistill.selection.summaries import counted
from histodistill.training.data.grouping import Grouping
from histodistill.training.data.inspection import SplitCounts, count_split, names_of_groups, tiles_per_group
from histodistill.training.data.listing import ListedSplit, Listing
from histodistill.training.data.names import some
from histodistill.training.data.source_checks import (
    CLASSES,
    GROUPS,
    SIZES,
    SPLITS,
    check_groups,
    check_labels,
    check_shape,
)
from histodistill.training.data.splits import MADE
from histodistill.training.data.tiles import HELD_OUT
from histodistill.training.running.errors import InputError, param
from histodistill.training.running.findings import FAIL, PASS, WARN, Finding


# Training tiles of a class below which its images are hardly more than copies of them.
_FEW_TILES = 10
# How many times as many tiles one class may have as another without a word.
_UNEVEN = 10
# The AUC of an attack that must be found: nine of ten pairs of a training and a held-out group are told apart.
_STRONG_LEAK = 0.9


def look_at_listing(listing: Listing, grouping: Grouping, image_size: int | None) -> Iterator[Finding]:
    """What loading the tiles would refuse or warn of.

    Args:
        listing: What there is.
        grouping: What was said of the groups.
        image_size: Side in pixels to which tiles are brought; None where they stay as they are.
    """
    yield from check_labels(listing.name, listing.class_names, listing.splits)
    if "train" in listing.splits:
        yield from check_groups(listing.name, listing.splits, grouping)
    if listing.hint is not None:
        yield replace(listing.hint, private="")  # which is how loading tells it
    yield from _look_at_sizes(listing, image_size)


def _look_at_sizes(listing: Listing, image_size: int | None) -> Iterator[Finding]:
    if not listing.sizes:
        return
    seen = ", by the headers of a sample" if listing.is_sample else ""
    by_number = sorted(listing.sizes.items(), key=lambda item: (-item[1], item[0]))
    shown = some([f"{width}x{height} ({count:,})" for (width, height), count in by_number])
    if image_size is not None:
        yield Finding(SIZES, PASS, f"{shown} pixels{seen}, brought to {image_size}x{image_size}")
        return
    if len(listing.sizes) > 1:
        yield Finding(
            SIZES,
            FAIL,
            f"the tiles of {listing.name} are of {len(listing.sizes)} sizes{seen}, {shown} pixels",
            f"give {param('image_size')} to bring all to one size",
        )
        return
    ((width, height),) = listing.sizes
    faults = list(check_shape(listing.name, width, height))
    yield from faults or [Finding(SIZES, PASS, f"{width}x{height} pixels{seen}")]


def look_at_use(listing: Listing, planned: Mapping[str, ListedSplit], audit_share: float) -> Iterator[Finding]:
    """What the tiles are good for: advice, and what a distillation would refuse though the tiles can be loaded.

    Args:
        listing: What there is; `look_at_listing` finds nothing that fails in it.
        planned: What `plan_splits` made of it.
        audit_share: Share of the training tiles that is held out.
    """
    counts = {split: count_split(listing.class_names, tiles) for split, tiles in planned.items()}
    yield from _look_at_classes(counts)
    yield from _look_at_splits(listing, counts)
    yield from _look_at_groups(listing, planned, counts)
    if audit_share:
        yield from _look_at_held_out(counts, listing.group_kind or "group", audit_share)


def _look_at_classes(counts: Mapping[str, SplitCounts]) -> Iterator[Finding]:
    train = counts["train"].per_class
    least, most = min(train, key=train.__getitem__), max(train, key=train.__getitem__)
    yield Finding(CLASSES, PASS, f"{len(train)} classes with {_range(train.values())} training tiles each")
    few = [name for name, count in train.items() if count < _FEW_TILES]
    if few:
        yield Finding(
            CLASSES,
            WARN,
            f"{counted(len(few), 'class has', 'classes have')} fewer than {_FEW_TILES} training tiles ({some(few)})",
            "images of so few tiles are hardly more than copies of them; add tiles, or leave such a class out",
        )
    if train[most] > _UNEVEN * max(1, train[least]):
        yield Finding(
            CLASSES,
            WARN,
            f"class {most!r} has {train[most] / max(1, train[least]):.0f} times as many training tiles as class "
            f"{least!r}",
            "rare classes are drawn more often in training, which gives them no more variety; add tiles of them",
        )
    for split in ("validation", "test"):
        missing = [name for name, count in counts[split].per_class.items() if not count] if split in counts else []
        if missing:
            yield Finding(
                CLASSES,
                WARN,
                f"the {split} split has no tile of {counted(len(missing), 'class', 'classes')} ({some(missing)})",
                "nothing is measured of it; add tiles",
            )


def _look_at_splits(listing: Listing, counts: Mapping[str, SplitCounts]) -> Iterator[Finding]:
    given = list(listing.splits)
    yield Finding(SPLITS, PASS, f"given: {', '.join(f'{split} {len(listing.splits[split]):,}' for split in given)}")
    made = [split for split in MADE if split not in listing.splits and split in counts]
    for split in made:
        groups, kind = counts[split].groups, listing.group_kind or "group"
        of_groups = "" if groups is None else f" of {counted(groups, kind)}"
        yield Finding(
            SPLITS,
            WARN,
            f"there is no {split} split, so {counts[split].tiles:,} training tiles{of_groups} become it",
            "another split of yours, by patient, may say more about new tiles",
        )
    if "test" not in counts:
        told = f"{listing.name} has no test split, and too few tiles or groups of a class to make one"
        yield Finding(SPLITS, FAIL, told, "add tiles, or a test split")
    if counts["validation"].tiles < FEWEST_VALIDATION_TILES:
        yield Finding.of_error(SPLITS, too_few_validation_tiles(listing.name, counts["validation"].tiles))


def too_few_validation_tiles(name: str, count: int) -> InputError:
    """What the audit says of a source with so few validation tiles that it cannot tell copies."""
    return InputError(f"{name} has {count} validation tiles: to tell copies takes at least {FEWEST_VALIDATION_TILES}")


def _look_at_groups(
    listing: Listing, planned: Mapping[str, ListedSplit], counts: Mapping[str, SplitCounts]
) -> Iterator[Finding]:
    spread, per_class = tiles_per_group(listing.splits), counts["train"].groups_per_class
    if spread is None or per_class is None:
        yield Finding(
            GROUPS,
            WARN,
            "single tiles only, nothing is known about patients",
            f"say which tiles belong together with {param('group_column')}, {param('group_pattern')}, arrays such as "
            "train_groups, or a manifest",
        )
        return
    kind, (least, median, most) = listing.group_kind or "group", spread
    each = (
        f"{counted(least, 'tile')}" if least == most else f"{least:,} to {most:,} tiles, the median is {median:,.0f}"
    )
    yield Finding(GROUPS, PASS, f"{counted(len(names_of_groups(listing.splits)), kind)} with {each}")
    few = [name for name, count in per_class.items() if count < FEWEST_GROUPS]
    if few:
        yield Finding(
            GROUPS,
            WARN,
            f"{counted(len(few), 'class has', 'classes have')} training tiles of fewer than {FEWEST_GROUPS} "
            f"{kind}s ({some(few)})",
            f"such a class may point to persons; add tiles of other {kind}s, or leave it out",
        )
    groups = planned["train"].groups
    assert groups is not None
    pairs = np.unique(np.stack([in_order(groups), planned["train"].labels], axis=1), axis=0)
    single = int((np.bincount(pairs[:, 0]) == 1).sum())
    if single:
        of_all = counted(counts["train"].groups or 0, f"training {kind}")
        yield Finding(GROUPS, PASS, f"{single:,} of {of_all} have tiles of one class only")


def _look_at_held_out(counts: Mapping[str, SplitCounts], kind: str, audit_share: float) -> Iterator[Finding]:
    held, train = counts[HELD_OUT], counts["train"]
    if held.groups is None or train.groups is None:
        yield Finding(SPLITS, PASS, f"{held.tiles:,} tiles are held out for the audit, {train.tiles:,} are trained on")
        return
    told = (
        f"{held.tiles:,} tiles of {counted(held.groups, kind)} are held out for the audit, {train.tiles:,} of "
        f"{train.groups:,} are trained on"
    )
    auc = detectable_auc(train.groups, held.groups, SINGLE_TEST_LEVEL)
    if auc is None:
        told += ", too few to show any leak, so that nothing can pass"
    else:
        told += f", which shows leaks from an AUC of about {auc:.2f} on"
    if auc is not None and auc <= _STRONG_LEAK:
        yield Finding(SPLITS, PASS, told)
        return
    mend = f"give {param('audit_share')} more than {audit_share:g}, or tiles of more {kind}s"
    yield Finding(SPLITS, WARN, told, mend)


def _range(numbers: Collection[int]) -> str:
    least, most = min(numbers), max(numbers)
    return f"{least:,}" if least == most else f"{least:,} to {most:,}"
