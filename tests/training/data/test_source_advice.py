"""What is said of tiles that are listed: what loading them refuses is found with the same sentence, and advice."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from histodistill.training.data.grouping import Grouping
from histodistill.training.data.inspection import count_split, plan_splits, tiles_per_group
from histodistill.training.data.listing import ListedSplit, Listing
from histodistill.training.data.make_source import make_source
from histodistill.training.data.source_advice import look_at_listing, look_at_use
from histodistill.training.data.splits import hold_out_for_audit
from histodistill.training.data.tiles import HELD_OUT, Tiles
from histodistill.training.running.errors import InputError
from histodistill.training.running.findings import FAIL, PASS, WARN, Finding


def split(*counts: int, per_group: int | None = None, first: int = 0) -> ListedSplit:
    """So many tiles of each class; where they have groups, each has so many tiles of one class or several."""
    labels = np.repeat(np.arange(len(counts)), counts)
    if per_group is None:
        return ListedSplit(labels)
    order = np.argsort(np.concatenate([np.arange(count) for count in counts]), kind="stable")
    labels = labels[order]
    groups = np.array([f"P{first + i // per_group:03}" for i in range(len(labels))])
    return ListedSplit(labels, groups)


def listing(train: ListedSplit, kind: str | None = None, **splits: ListedSplit) -> Listing:
    names = [f"c{i}" for i in range(int(train.labels.max()) + 1)]
    return Listing("x", names, {"train": train, **splits}, {(16, 16): 10}, 0, group_kind=kind)


def advice(tiles: Listing, audit_share: float = 0.1, **said) -> dict[str, list[Finding]]:
    """Status → what is found of tiles that can be loaded."""
    grouping = Grouping(**said)
    assert not [finding for finding in look_at_listing(tiles, grouping, None) if finding.status == FAIL]
    planned = plan_splits(tiles, grouping.split_seed, audit_share)
    found = list(look_at_use(tiles, planned, audit_share))
    return {status: [finding for finding in found if finding.status == status] for status in (PASS, WARN, FAIL)}


def told(findings: list[Finding]) -> str:
    return "\n".join(finding.for_command_line().sentence() for finding in findings)


GIVEN = {"validation": split(8, 8), "test": split(5, 5)}


def test_nothing_is_wrong_with_many_tiles_of_many_groups():
    tiles = listing(
        split(200, 200, per_group=4),
        "patient",
        validation=split(20, 20, per_group=4, first=200),
        test=split(20, 20, per_group=4, first=300),
    )
    found = advice(tiles)
    assert found[WARN] == found[FAIL] == []
    assert "120 patients with 4 tiles" in told(found[PASS])
    assert "40 tiles of 10 patients are held out for the audit, 360 of 90 are trained on" in told(found[PASS])


def test_single_tiles():
    found = advice(listing(split(50, 50), **GIVEN))
    (only,) = found[WARN]
    assert only.found == "single tiles only, nothing is known about patients"
    assert "--group-column, --group-pattern" in told([only])
    assert "10 tiles are held out for the audit, 90 are trained on" in told(found[PASS])


def test_few_and_uneven_tiles_and_classes_that_are_not_measured():
    found = told(advice(listing(split(200, 8), validation=split(8, 8), test=split(5)))[WARN])
    assert "1 class has fewer than 10 training tiles (c1)" in found
    assert "class 'c0' has 26 times as many training tiles as class 'c1'" in found
    assert "the test split has no tile of 1 class (c1): nothing is measured of it" in found


def test_few_groups_of_a_class_may_point_to_persons():
    tiles = listing(split(60, 60, per_group=20), "patient", **GIVEN)
    found = told(advice(tiles)[WARN])
    assert (
        "2 classes have training tiles of fewer than 5 patients (c0, c1): such a class may point to persons" in found
    )
    assert "are held out for the audit" in found  # 2 of 6 are too few to say much


def test_groups_of_one_class_are_told():
    labels = np.repeat([0, 1], 100)
    train = ListedSplit(labels, np.array([f"P{i // 5}" for i in range(200)]))
    assert "35 of 35 training groups have tiles of one class only" in told(
        advice(listing(train, "group", **GIVEN))[PASS]
    )


@pytest.mark.parametrize("per_group", [None, 4])
def test_splits_that_are_made_are_those_that_loading_makes(per_group):
    train = split(100, 100, per_group=per_group)
    tiles = listing(train, "patient" if per_group else None)
    planned = plan_splits(tiles, None, 0.1)
    images = np.random.default_rng(0).integers(0, 256, (200, 8, 8, 3), dtype=np.uint8)
    grouping = Grouping(kind="patient" if per_group else None)
    loaded = make_source(
        "x", ["c0", "c1"], {"train": Tiles(images, train.labels, None, train.groups)}, grouping=grouping
    )
    loaded = hold_out_for_audit(loaded, 0.1)
    assert planned.keys() == loaded.splits.keys() == {"train", "validation", "test", HELD_OUT}
    for name, part in planned.items():
        assert np.array_equal(part.labels, loaded.splits[name].labels)
        if per_group:
            assert np.array_equal(part.groups, loaded.splits[name].groups)
    found = told(advice(tiles)[WARN])
    of_groups = " of 5 patients" if per_group else ""
    assert f"there is no validation split, so 20 training tiles{of_groups} become it" in found


def test_what_distillation_refuses_though_it_can_be_loaded():
    found = advice(listing(split(20, 20), validation=split(3, 4)))
    assert "x has 7 validation tiles: to tell copies takes at least 8" in told(found[FAIL])
    found = advice(listing(split(20, 1), validation=split(8, 4)))
    assert "x has no test split, and too few tiles or groups of a class to make one" in told(found[FAIL])


REFUSED = [
    ({"train": split(4)}, {}, "x has only one class (c0)"),
    ({"train": split(4, 0, 2)}, {}, "class 'c1' (label 1) of x has no training tile: every class needs one"),
    (
        {"train": split(4, 4), "test": split(1, 1, 1)},
        {},
        "the test split of x holds the label 2: labels must be 0 to 1",
    ),
    ({"train": split(4, 4), "test": ListedSplit(np.empty(0, np.int64))}, {}, "the test split of x is empty"),
    ({"train": split(4, 4)}, {"column": "p"}, "x has no groups by {}=p: leave it out"),
    ({"train": split(4, 4)}, {"kind": "slide"}, "{}=slide is given and x has no groups"),
    (
        {"train": split(4, 4, per_group=2), "test": split(2, 2, per_group=2, first=3)},
        {},
        "1 group is in both train and test of x (such as 'P003'): what is measured on them looks better",
    ),
]


@pytest.mark.parametrize(("splits", "said", "sentence"), REFUSED)
def test_what_loading_refuses_is_found_with_the_same_sentence(splits, said, sentence):
    names = ["c0"] if sentence.endswith("(c0)") else ["c0", "c1", "c2"][: int(splits["train"].labels.max()) + 1]
    tiles = Listing("x", names, splits, {(8, 8): 1}, 0)
    grouping = Grouping(**said)
    (found,) = [finding for finding in look_at_listing(tiles, grouping, None) if finding.status == FAIL]
    loaded = {
        name: part.with_images(np.random.default_rng(0).integers(0, 256, (len(part), 8, 8, 3), dtype=np.uint8))
        for name, part in splits.items()
    }
    with pytest.raises(InputError) as refusal:
        make_source("x", names, loaded, grouping=grouping)
    assert found.sentence() == refusal.value.marked()
    assert str(refusal.value).startswith(sentence.format("group_column" if "column" in said else "group_kind"))
    assert "P003" not in found.found + found.mend


def test_shared_groups_that_are_allowed_are_warned_of():
    splits = {"train": split(4, 4, per_group=2), "test": split(2, 2, per_group=2, first=3)}
    tiles = Listing("x", ["c0", "c1"], splits, {}, 0)
    (found,) = look_at_listing(tiles, Grouping(allow_shared=True), None)
    assert found.status == WARN and found.found.startswith("1 group is in both train and test of x")


@pytest.mark.parametrize(
    ("sizes", "image_size", "status", "text"),
    [
        ({(16, 16): 9}, None, PASS, "16x16 pixels"),
        (
            {(16, 16): 9, (20, 18): 30},
            None,
            FAIL,
            "the tiles of x are of 2 sizes, 20x18 (30), 16x16 (9) pixels: give ",
        ),
        ({(16, 16): 9, (20, 18): 30}, 16, PASS, "20x18 (30), 16x16 (9) pixels, brought to 16x16"),
        ({(20, 18): 3}, None, FAIL, "the tiles of x are 20x18 pixels: they must be square; give --image-size"),
        ({(6, 6): 3}, None, FAIL, "the tiles of x are 6x6 pixels: they must be at least 8"),
    ],
)
def test_sizes(sizes, image_size, status, text):
    tiles = replace(listing(split(4, 4)), sizes=sizes)
    (found,) = look_at_listing(tiles, Grouping(), image_size)
    assert found.status == status and told([found]).startswith(text)


def test_counts():
    tiles = listing(split(3, 1, per_group=2), "patient", test=split(1, 0, per_group=1))
    counts = count_split(tiles.class_names, tiles.splits["train"])
    assert (counts.tiles, counts.groups) == (4, 2)
    assert (counts.per_class, counts.groups_per_class) == ({"c0": 3, "c1": 1}, {"c0": 2, "c1": 1})
    assert tiles_per_group(tiles.splits) == (2, 2.5, 3)  # P000 is in both
    assert tiles_per_group({"train": split(2, 2)}) is None
