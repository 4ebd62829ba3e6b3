"""What cards tell of the groups of real tiles."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from histodistill.hub_cards.group_facts import GroupFacts


FACTS = {
    "kind": "patient", "train": 90, "held_out": 10, "per_class": {"gland": 90, "fat": 3}, "least_tiles": 2,
    "median_tiles": 14.5, "shared": 0, "made": [],
}  # fmt: skip


def sentences(**changes) -> list[str]:
    return GroupFacts(**{**FACTS, **changes}).sentences()


def test_numbers_of_patients_and_of_their_tiles_are_told():
    assert sentences() == [
        "The training tiles are of 90 patients, with 2 tiles at least and 14.5 in the median, and 10 patients more "
        "were held out whole for the privacy audit.",
        "Classes of so few patients may point to persons (fat: 3 patients).",
    ]


def test_what_was_done_to_the_splits_is_told():
    found = sentences(kind="slide", train=1, held_out=0, per_class={"gland": 7}, shared=3, made=["validation", "test"])
    assert found == [
        "The training tiles are of 1 slide, with 2 tiles at least and 14.5 in the median.",
        "The tiles came without validation and test, which were made of whole slides.",
        "3 slides stand in several of the splits that the tiles came with: scores look better than they are, and the "
        "audit says less.",
    ]


@pytest.mark.parametrize(
    "changes",
    [
        {"kind": "Mrs Miller"}, {"names": ["miller"]}, {"per_class": {"gland": "miller"}}, {"train": "9"},
        {"made": ["miller"]}, {"median_tiles": -1}, {"per_class": {"a/b\n": 3}},
    ],
)  # fmt: skip
def test_nothing_else_can_be_told(changes):
    with pytest.raises(ValidationError):
        sentences(**changes)
