from __future__ import annotations

import numpy as np
import pytest

from histodistill.hub_cards.tables import ImageTable, check_table
from histodistill.training.distillation.site_choice import match_classes, parse_shares, rename_classes, take_shares
from histodistill.training.running.errors import InputError


def table(counts, ranks=True):
    """Images of classes, each with its own first pixel; the ranks of a class run backwards."""
    labels = np.repeat(np.arange(len(counts)), list(counts.values()))
    images = np.zeros((len(labels), 8, 8, 3), np.uint8)
    images[:, 0, 0, 0] = np.arange(len(labels))
    columns = {"label": labels, "soft_label": np.eye(len(counts), dtype=np.float32)[labels]}
    if ranks:
        columns["rank"] = np.concatenate([np.arange(count, 0, -1) for count in counts.values()])
    return ImageTable(images, columns, list(counts))


def pixels(found):
    return found.images[:, 0, 0, 0].tolist()


def test_shares_take_the_best_of_each_class_as_far_as_the_smallest_site_goes():
    tables = {"a": table({"x": 6, "y": 5}), "b": table({"x": 2, "y": 3}, ranks=False)}
    found = take_shares(tables, {"a": 4, "b": 2})  # as 2 to 1
    # Of x: 4 and 2; of y: 4 and 2, for half of 5 is no number of images.
    assert pixels(found["a"]) == [2, 3, 4, 5, 7, 8, 9, 10]  # the lowest ranks, which stand last
    assert pixels(found["b"]) == [0, 1, 2, 3]  # the first ones
    for each in found.values():
        check_table(each)  # ranks are 1 to their number
    with pytest.raises(
        InputError, match=r"^shares asks for 3 images of x of b at least, which has 2: give it a small"
    ):
        take_shares(tables, {"a": 1, "b": 3})


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["a=1", "c=2"], r"shares=c=2 is no share: write NAME=NUMBER once for each of a, b"),
        (["a=1", "a=2"], r"shares=a=2 is no share"),
        (["a=0", "b=1"], r"shares=a=0 is no share: .*whole number from 1 to 1000"),
        (["a=1.5", "b=1"], r"shares=a=1.5 is no share"),
        (["a=²", "b=1"], r"shares=a=² is no share"),
        (["a=99999999999999", "b=1"], r"is no share"),
        (["a", "b=1"], r"shares=a is no share"),
        (["a=1"], r"shares=a=1 does not name b: give each site a share"),
    ],
)
def test_wrong_shares_are_one_sentence(texts, message):
    with pytest.raises(InputError, match=message) as error:
        parse_shares(texts, ["a", "b"])
    assert "\n" not in str(error.value)


def test_shares_are_read_by_the_names_of_sites_whatever_is_in_them():
    assert parse_shares(["x = y=2", "b=30"], ["x = y", "b"]) == {"x = y": 2, "b": 30}


def test_classes_are_matched_by_their_names():
    tables = {"a": table({"x": 1, "y": 2}), "b": table({"y": 1, "x": 2})}
    found = match_classes(tables, keep_all=False)
    assert {each.class_names == ["x", "y"] for each in found.values()} == {True}
    assert found["b"].columns["label"].tolist() == [1, 0, 0] and pixels(found["b"]) == [0, 1, 2]
    assert found["b"].columns["soft_label"].tolist() == [[0, 1], [1, 0], [1, 0]]


def test_classes_of_some_sites_are_refused_or_kept_and_never_made_up():
    tables = {"a": table({"x": 1}), "b": table({"y": 4, "x": 3})}
    with pytest.raises(
        InputError, match=r"^a has no class y, but x: give classes that are the same one name by rename"
    ):
        match_classes(tables, keep_all=False)
    found = match_classes(tables, keep_all=True)
    assert found["a"].class_names == found["b"].class_names == ["x", "y"]
    assert found["a"].columns["soft_label"].tolist() == [[1, 0]]
    # Shares are those of the sites that have a class.
    shared = take_shares(found, {"a": 1, "b": 2})
    assert np.bincount(shared["b"].columns["label"]).tolist() == [2, 4] and len(shared["a"]) == 1


def test_renamed_classes_become_one():
    tables = {"a": table({"tumour: grade 1": 1, "y": 1}), "b": table({"tumor": 2, "y": 1})}
    found = rename_classes(tables, ["a:tumour: grade 1=tumor"])
    assert found["a"].class_names == ["tumor", "y"] and found["b"] == tables["b"]
    match_classes(found, keep_all=False)


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["a:z=x"], r"rename=a:z=x names no class of a site: write NAME:OLD=NEW, of a: x, y; b: x"),
        (["c:x=z"], r"rename=c:x=z names no class of a site"),
        (["x=z"], r"rename=x=z names no class of a site"),
        (["a:x="], r"rename=a:x= cannot be done at a: its class '' has "),
        (["a:x=y"], r"rename=a:x=y cannot be done at a: its class 'y' is named twice"),
        (["a:x=z", "a:x=w"], r"rename=a:x=w gives a class another name once more"),
        (["a:x=<img src=1>"], r"cannot be done at a: its class '<img src=1>' has "),
    ],
)
def test_wrong_renames_are_one_sentence(texts, message):
    with pytest.raises(InputError, match=message) as error:
        rename_classes({"a": table({"x": 1, "y": 1}), "b": table({"x": 1})}, texts)
    assert "\n" not in str(error.value)
